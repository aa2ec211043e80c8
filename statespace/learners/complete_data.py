"""The density of states and observations together: what is known once a path of states is given."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from statespace import densities
from statespace.functionals import Additive
from statespace.methods import potentials
from statespace.methods.lowering import at, steps_of
from statespace.methods.particle_lowering import initial_law
from statespace.model import Step
from statespace.series import Series


def in_type_of(new: Any, old: Any) -> Any:
    """States in the types of others: what is drawn may come in the default precision."""
    return jax.tree.map(lambda a, b: jnp.asarray(a).astype(b.dtype), new, old)


def moments(model: Any, series: Series) -> tuple[Step, Float[Array, "T m"]]:
    """The steps of a recording, with past observations where the model reads them, and its values."""
    steps = potentials.with_history(model.observation, series, steps_of(series)[0])
    return steps, series.channels


def log_density(
    model: Any, series: Series, path: Any, within: Bool[Array, " T"]
) -> Float[Array, ""]:
    """``log p(x_{0:T}, y_{0:T})`` of one path of states.

    Args:
        model: any model whose initial law and transition have densities.
        series: the recording; missing entries are integrated out.
        path: the states, shape ``(T, ...)``.
        within: False after the end of a padded recording.
    """
    steps, y = moments(model, series)
    later = jax.tree.map(lambda a: a[1:], (path, steps))
    before = jax.tree.map(lambda a: a[:-1], path)
    move = lambda x, new, step: jnp.sum(model.transition(x, step).log_prob(new))
    see = lambda x, step, y: densities.log_density(model.observation(x, step), y)
    first = _entry(model, at(path, 0), at(steps, 0))
    moved = jax.vmap(move)(before, *later)
    seen = jax.vmap(see)(path, steps, y)
    return first + jnp.sum(jnp.where(within[1:], moved, 0)) + jnp.sum(jnp.where(within, seen, 0))


def score(
    place: Callable[[Float[Array, " p"]], Any], z: Float[Array, " p"], length: Any
) -> Additive:
    """The gradient of :func:`log_density` in a vector of parameters, as an additive functional of the path.

    Args:
        place: the model at a vector.
        z: the vector.
        length: number of moments before the padding.
    """

    def move(z: Array, previous: Any, state: Any, step: Step) -> Array:
        return jnp.sum(place(z).transition(previous, step).log_prob(state))

    def see(z: Array, state: Any, step: Step, y: Array) -> Array:
        return densities.log_density(place(z).observation(state, step), y)

    def later(previous: Any, state: Any, step: Step, y: Array) -> Array:
        both = lambda z: move(z, previous, state, step) + see(z, state, step, y)
        return jnp.where(step.index < length, jax.grad(both)(z), 0)

    def first(state: Any, step: Step, y: Array) -> Array:
        both = lambda z: _entry(place(z), state, step) + see(z, state, step, y)
        return jax.grad(both)(z)

    return Additive(later, first)


def _entry(model: Any, state: Any, step: Step) -> Array:
    return jnp.sum(initial_law(model, step).log_prob(state))
