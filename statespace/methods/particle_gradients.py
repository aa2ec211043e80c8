"""Derivatives of log likelihoods by particles: which kind, and what is said where there is none."""

from __future__ import annotations

import dataclasses
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from statespace.chains.particle.differentiable import Soft, StopGradient, Transport, fisher
from statespace.chains.particle.types import Chain, Particles
from statespace.methods.particle_laws import Moment
from statespace.methods.particle_lowering import on_clouds
from statespace.series import Series

_NAMED = {"score": StopGradient, "soft": Soft, "transport": Transport}


def gradient_named(gradient: Any) -> Any:
    """A kind of derivative by its name; None for none.

    Raises:
        ValueError: if there is none of this name.
    """
    if gradient is None or isinstance(gradient, StopGradient | Soft | Transport):
        return gradient
    if gradient in _NAMED:
        return _NAMED[gradient]()
    raise ValueError(f"`gradient` must be None or one of {sorted(_NAMED)}, got {gradient!r}.")


def with_score(chain: Chain, model: Any, series: Series) -> Chain:
    """A chain whose derivative is that of the model's densities, at particles that are held fixed.

    Raises:
        TypeError: if the transition has no density.
    """
    clouds, _ = on_clouds(model, series)
    if not clouds.transition.has_density:
        raise TypeError(
            'gradient="score" differentiates the density of `transition`, and that of this model has none: '
            'use "soft" or "transport".'
        )

    def joint_start(particles: Particles, moment: Moment) -> Float[Array, " N"]:
        first = clouds.initial.log_prob(particles)
        # a first state that is known has no density, and no derivative either
        first = jnp.where(jnp.isfinite(first), first, 0)
        return first + clouds.observation.log_prob(particles, moment)

    def joint(previous: Particles, particles: Particles, moment: Moment) -> Float[Array, " N"]:
        seen = clouds.observation.log_prob(particles, moment)
        return clouds.transition.log_prob(previous, particles, moment) + seen

    return fisher(chain, joint_start, joint)


def differentiable(method: Any) -> Any:
    """The method, with a derivative if it is one by particles that has none."""
    if hasattr(method, "gradient") and method.gradient is None:
        return dataclasses.replace(method, gradient="score")
    return method


@jax.custom_jvp
def constant(value: Array) -> Array:
    """A value that refuses to be differentiated."""
    return value


@constant.defjvp
def _refuse(primals: Any, tangents: Any) -> NoReturn:
    raise ValueError(
        "the log likelihood by particles is differentiated, but its method has no `gradient`: drawing "
        'ancestors is no smooth function. Use ParticleFilter(gradient="score") for an estimate of the score.'
    )
