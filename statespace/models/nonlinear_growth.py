"""The nonlinear growth model, on which nonlinear filters have been compared since 1978."""

from __future__ import annotations

from typing import TYPE_CHECKING

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from statespace.checks import require_finite, require_positive, require_shape
from statespace.conditionals.affine import Gaussian
from statespace.model import Step
from statespace.parameters import as_array, constant, parameter

if TYPE_CHECKING:
    from numpyro.distributions import Distribution


class NonlinearGrowth(eqx.Module):
    """``x_t = a x_{t-1} + b x_{t-1} / (1 + x_{t-1}^2) + c cos(1.2 t) + scale e_t``, seen as ``x_t^2 / 20``.

    The observation has normal noise and says nothing of the sign of the state, so that its law given the data
    has two modes for most of the time. Netto, Gimeno & Mendes (1978); Gordon, Salmond & Smith (1993),
    section 4.1. The state has shape ``(1,)``; t is the moment's time, and the law is that of one step,
    whatever the interval.

    Args:
        scale: standard deviation of the state's noise, positive.
        noise_scale: standard deviation of the observation's noise, positive.
        decay: a.
        growth: b.
        forcing: c.
        initial_scale: standard deviation of the first state, about zero.

    Raises:
        ValueError: if a parameter is no scalar, or a standard deviation not positive.
    """

    scale: Float[Array, ""] = parameter("positive", default=10.0**0.5)
    noise_scale: Float[Array, ""] = parameter("positive", default=1.0)
    decay: Float[Array, ""] = parameter(default=0.5)
    growth: Float[Array, ""] = parameter(default=25.0)
    forcing: Float[Array, ""] = parameter(default=8.0)
    initial_scale: Float[Array, ""] = constant(converter=as_array, default=5.0**0.5)

    def __check_init__(self) -> None:
        for name in ("scale", "noise_scale", "decay", "growth", "forcing", "initial_scale"):
            require_shape(name, getattr(self, name), ())
            require_finite(name, getattr(self, name))
        for name in ("scale", "noise_scale", "initial_scale"):
            require_positive(name, getattr(self, name), zero=False)

    @property
    def initial(self) -> Gaussian:
        """Normal, about zero."""
        return Gaussian(jnp.zeros(1, self.initial_scale.dtype), self.initial_scale[None])

    @property
    def transition(self) -> GrowthStep:
        """Law of the next state."""
        return GrowthStep(self.decay, self.growth, self.forcing, self.scale)

    @property
    def observation(self) -> Square:
        """Law of the observation."""
        return Square(self.noise_scale)


class GrowthStep(eqx.Module):
    """One step of the nonlinear growth model."""

    decay: Float[Array, ""]
    growth: Float[Array, ""]
    forcing: Float[Array, ""]
    scale: Float[Array, ""]

    def __call__(self, state: Float[Array, " 1"], step: Step) -> Distribution:
        """The distribution of the next state."""
        from numpyro.distributions import Normal

        time = jnp.asarray(step.time, state.dtype)
        drift = self.decay * state + self.growth * state / (1 + state**2)
        return Normal(drift + self.forcing * jnp.cos(1.2 * time), self.scale).to_event(1)


class Square(eqx.Module):
    """The square of the state, over 20, with noise."""

    scale: Float[Array, ""]

    def __call__(self, state: Float[Array, " 1"], step: Step) -> Distribution:
        """The distribution of an observation."""
        from numpyro.distributions import Normal

        return Normal(state**2 / 20, self.scale).to_event(1)
