"""The greatest value of a transition's density from each state: what backward draws by rejection need."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from statespace.chains.particle.types import Particles
from statespace.methods.particle_laws import (
    AffineTransition,
    FiniteLaw,
    FunctionLaw,
    Moment,
    log_prob,
)
from statespace.model import Step

_HIGHEST_AT_LOC = frozenset(
    {
        "Cauchy",
        "Gumbel",
        "Laplace",
        "Logistic",
        "MultivariateNormal",
        "MultivariateStudentT",
        "Normal",
        "StudentT",
    }
)
"""Families of NumPyro whose density is highest at ``loc``."""


def bound_of(law: Any, step: Step) -> Callable[..., Array] | None:
    """``(previous, moment) -> (N,)``: the greatest log density; None where it is not known.

    It is known of linear Gaussian transitions, of finitely many states, and of functions that give a NumPyro
    distribution whose density is highest at its location; the noise may depend on the state.

    Args:
        law: a transition of clouds.
        step: the shapes of one.
    """
    if isinstance(law, AffineTransition):
        return lambda previous, moment: _gaussian(law, previous, moment)
    if isinstance(law, FiniteLaw):
        return lambda previous, moment: jnp.max(law.at(moment).logs, axis=1)[previous]
    if isinstance(law, FunctionLaw) and law.has_density and _has_peak(law, step):
        return lambda previous, moment: _at_peak(law, previous, moment)
    return None


def _gaussian(law: AffineTransition, previous: Particles, moment: Moment) -> Float[Array, " N"]:
    here = law.at(moment)
    peak = -(here.log_det + 0.5 * math.log(2 * math.pi) * here.factor.shape[0])
    return jnp.broadcast_to(peak, previous.shape[:1])


def _at_peak(law: FunctionLaw, previous: Particles, moment: Moment) -> Float[Array, " N"]:
    def one(state: Any) -> Float[Array, ""]:
        here = law.conditional(state, moment.step)
        return log_prob(here, _inner(here).loc)

    return jax.vmap(one)(previous)


def _has_peak(law: FunctionLaw, step: Step) -> bool:
    from numpyro.distributions import Distribution

    here = eqx.filter_eval_shape(law.conditional, law.like, step)
    return isinstance(here, Distribution) and type(_inner(here)).__name__ in _HIGHEST_AT_LOC


def _inner(law: Any) -> Any:
    from numpyro.distributions import Independent

    while isinstance(law, Independent):
        law = law.base_dist
    return law
