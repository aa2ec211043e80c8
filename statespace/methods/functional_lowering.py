"""From an additive functional of one path to sums over whole clouds."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from statespace.chains.particle.paris import Sums
from statespace.chains.particle.types import Particles
from statespace.functionals import Additive
from statespace.methods.particle_laws import Moment
from statespace.methods.particle_lowering import states_of
from statespace.model import Step


def sums_of(functional: Additive, model: Any) -> Sums:
    """The functional on clouds of the model's chain, whose moments are ``Moment`` rows."""

    def later(previous: Particles, particles: Particles, moment: Moment) -> Any:
        before, now = states_of(model, previous), states_of(model, particles)
        each = jax.vmap(functional.later, in_axes=(0, 0, None, None))
        return _arrays(each(before, now, moment.step, moment.y))

    def first(particles: Particles, moment: Moment) -> Any:
        assert functional.first is not None
        each = jax.vmap(functional.first, in_axes=(0, None, None))
        return _arrays(each(states_of(model, particles), moment.step, moment.y))

    return Sums(later, None if functional.first is None else first)


def over_path(functional: Additive, states: Any, steps: Step, y: Array) -> Any:
    """The functional of one path of states, T of them."""
    row = lambda s: jax.tree.map(lambda x: x[s], (states, steps, y))
    before = jax.tree.map(lambda x: x[:-1], states)
    terms = _arrays(jax.vmap(functional.later)(before, *row(slice(1, None))))
    total = jax.tree.map(lambda x: jnp.sum(x, axis=0), terms)
    if functional.first is None:
        return total
    return jax.tree.map(jnp.add, total, _arrays(functional.first(*row(0))))


def _arrays(values: Any) -> Any:
    """Every leaf a floating-point array: numbers and counts are averaged."""

    def one(x: Any) -> Array:
        x = jnp.asarray(x)
        return x if jnp.issubdtype(x.dtype, jnp.inexact) else x.astype(float)

    return jax.tree.map(one, values)
