"""Populations of animals: one that limits itself, and two of which one eats the other."""

from __future__ import annotations

from typing import TYPE_CHECKING

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from statespace.checks import (
    optional_array,
    require_finite,
    require_positive,
    require_shape,
)
from statespace.conditionals.affine import Gaussian
from statespace.model import Step
from statespace.parameters import parameter

if TYPE_CHECKING:
    from numpyro.distributions import Distribution


class ThetaLogistic(eqx.Module):
    """A population that limits itself: logistic growth with a power, and noise.

    ``x_t = x_{t-1} + growth dt (1 - (e^{x_{t-1}} / capacity)^theta) + scale sqrt(dt) e_t``, x the log
    abundance. Gilpin & Ayala (1973); Wang (2007); Polansky, de Valpine, Lloyd-Smith & Getz (2009). With
    ``theta = 1`` it is the Ricker model. The observation is the log abundance with normal noise, or, without
    ``noise_scale``, a Poisson count whose mean is the abundance. State: shape ``(1,)``.

    Args:
        growth: rate at which a small population grows, 1 / time, positive.
        capacity: abundance at which it stays, positive.
        theta: how suddenly growth ends, positive.
        scale: standard deviation of the noise of one unit of time, positive.
        noise_scale: standard deviation of an observed log abundance; None for Poisson counts.
        initial_mean: of the first log abundance; None for the capacity's.
        initial_scale: its standard deviation, positive.

    Raises:
        ValueError: if a parameter is no scalar or outside its support.
    """

    growth: Float[Array, ""] = parameter("positive")
    capacity: Float[Array, ""] = parameter("positive")
    theta: Float[Array, ""] = parameter("positive")
    scale: Float[Array, ""] = parameter("positive")
    noise_scale: Float[Array, ""] | None = parameter(
        "positive", converter=optional_array, default=None
    )
    initial_mean: Float[Array, ""] | None = parameter(converter=optional_array, default=None)
    initial_scale: Float[Array, ""] = parameter("positive", default=1.0)

    def __check_init__(self) -> None:
        for name in ("growth", "capacity", "theta", "scale", "noise_scale", "initial_scale"):
            value = getattr(self, name)
            if value is not None:
                require_shape(name, value, ())
                require_positive(name, value, zero=False)
        if self.initial_mean is not None:
            require_shape("initial_mean", self.initial_mean, ())
            require_finite("initial_mean", self.initial_mean)

    @property
    def state_names(self) -> tuple[str, ...]:
        """Name of the state."""
        return ("log_abundance",)

    @property
    def initial(self) -> Gaussian:
        """Law of the first log abundance."""
        mean = jnp.log(self.capacity) if self.initial_mean is None else self.initial_mean
        return Gaussian(mean[None], self.initial_scale[None])

    @property
    def transition(self) -> ThetaLogisticStep:
        """Law of the next log abundance."""
        return ThetaLogisticStep(self.growth, self.capacity, self.theta, self.scale)

    @property
    def observation(self) -> Abundance:
        """Law of the observation."""
        return Abundance(self.noise_scale, logs=True)


class ThetaLogisticStep(eqx.Module):
    """One step of the theta-logistic model."""

    growth: Float[Array, ""]
    capacity: Float[Array, ""]
    theta: Float[Array, ""]
    scale: Float[Array, ""]

    def __call__(self, state: Float[Array, " 1"], step: Step) -> Distribution:
        """The distribution of the next log abundance."""
        from numpyro.distributions import Normal

        dt = jnp.asarray(step.dt, state.dtype)
        crowding = jnp.exp(self.theta * (state - jnp.log(self.capacity)))
        mean = state + self.growth * dt * (1 - crowding)
        return Normal(mean, self.scale * jnp.sqrt(dt)).to_event(1)


class LotkaVolterra(eqx.Module):
    """Predators and prey: the chemical Langevin equation of the stochastic Lotka–Volterra process.

    Three reactions, prey are born at the rate ``birth u``, eaten (and become predators) at ``predation u v``,
    and predators die at ``death v``, with u prey and v predators. The counts' jumps are replaced by their
    diffusion approximation (Gillespie 2000), written for the logarithms, by Itô's formula, so that
    populations stay positive, and taken in one Euler–Maruyama step from each moment of the recording to the
    next. For steps finer than the observations give the recording more moments, with NaN there.

    State: ``(log u, log v)``. Observation: both populations with normal noise, or Poisson counts.

    Args:
        birth: of prey, 1 / time, positive.
        predation: 1 / (time · animal), positive.
        death: of predators, 1 / time, positive.
        noise_scale: standard deviations of the observed numbers, a scalar or shape ``(2,)``; None for Poisson
            counts.
        initial_mean: of the first logarithms, shape ``(2,)``.
        initial_scale: their standard deviations, shape ``(2,)``.

    Raises:
        ValueError: if a parameter has the wrong shape or is not positive.

    References:
        Boys, Wilkinson & Kirkwood (2008), Statistics and Computing 18, 125–135; Golightly & Wilkinson (2011),
        Interface Focus 1, 807–820.
    """

    birth: Float[Array, ""] = parameter("positive", default=0.5)
    predation: Float[Array, ""] = parameter("positive", default=0.0025)
    death: Float[Array, ""] = parameter("positive", default=0.3)
    noise_scale: Float[Array, "..."] | None = parameter(
        "positive", converter=optional_array, default=None
    )
    initial_mean: Float[Array, " 2"] = parameter(default=(4.605, 4.605))
    initial_scale: Float[Array, " 2"] = parameter("positive", default=(0.5, 0.5))

    def __check_init__(self) -> None:
        for name in ("birth", "predation", "death"):
            require_shape(name, getattr(self, name), ())
            require_positive(name, getattr(self, name), zero=False)
        require_shape("initial_mean", self.initial_mean, (2,), "It is of prey and predators.")
        require_shape("initial_scale", self.initial_scale, (2,), "It is of prey and predators.")
        require_finite("initial_mean", self.initial_mean)
        require_positive("initial_scale", self.initial_scale, zero=False)
        if self.noise_scale is not None:
            if jnp.shape(self.noise_scale) not in ((), (2,)):
                raise ValueError(
                    "`noise_scale` of LotkaVolterra must be a scalar or have shape (2,), got "
                    f"{jnp.shape(self.noise_scale)}."
                )
            require_positive("noise_scale", self.noise_scale, zero=False)

    @property
    def channels(self) -> int:
        """Both populations are seen."""
        return 2

    @property
    def state_names(self) -> tuple[str, ...]:
        """Names of the states."""
        return ("log_prey", "log_predators")

    @property
    def initial(self) -> Gaussian:
        """Law of the first logarithms."""
        return Gaussian(self.initial_mean, self.initial_scale)

    @property
    def transition(self) -> Langevin:
        """Law of the next logarithms."""
        return Langevin(self.birth, self.predation, self.death)

    @property
    def observation(self) -> Abundance:
        """Law of the observed numbers."""
        return Abundance(self.noise_scale, logs=False)


class Langevin(eqx.Module):
    """One Euler–Maruyama step of the Lotka–Volterra diffusion of the logarithms."""

    birth: Float[Array, ""]
    predation: Float[Array, ""]
    death: Float[Array, ""]

    def moments(self, state: Float[Array, " 2"]) -> tuple[Float[Array, " 2"], Float[Array, "2 2"]]:
        """Drift and lower triangular factor of the covariance, per unit of time."""
        prey, predators = jnp.exp(state)
        first = (self.birth + self.predation * predators) / prey
        second = (self.predation * prey + self.death) / predators
        cross = -self.predation
        drift = jnp.stack(
            [
                self.birth - self.predation * predators - 0.5 * first,
                self.predation * prey - self.death - 0.5 * second,
            ]
        )
        # first * second > predation^2, since every rate is positive
        corner = jnp.sqrt(first)
        below = cross / corner
        rest = jnp.sqrt(second - below**2)
        factor = jnp.stack([jnp.stack([corner, jnp.zeros_like(corner)]), jnp.stack([below, rest])])
        return drift, factor

    def __call__(self, state: Float[Array, " 2"], step: Step) -> Distribution:
        """The distribution of the next logarithms."""
        from numpyro.distributions import MultivariateNormal

        dt = jnp.asarray(step.dt, state.dtype)
        drift, factor = self.moments(state)
        return MultivariateNormal(state + drift * dt, scale_tril=factor * jnp.sqrt(dt))


class Abundance(eqx.Module):
    """What is seen of abundances whose logarithms are the state."""

    noise_scale: Float[Array, "..."] | None
    logs: bool = eqx.field(static=True)

    def __call__(self, state: Float[Array, " n"], step: Step) -> Distribution:
        """The distribution of an observation."""
        from numpyro.distributions import Normal, Poisson

        if self.noise_scale is None:
            return Poisson(jnp.exp(state)).to_event(1)
        return Normal(state if self.logs else jnp.exp(state), self.noise_scale).to_event(1)
