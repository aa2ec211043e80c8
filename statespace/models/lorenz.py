"""Lorenz' models of 1963 and 1996: small chaotic systems, observed with noise."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from statespace.checks import require_finite, require_positive, require_shape
from statespace.conditionals.affine import Gaussian
from statespace.model import Step
from statespace.parameters import as_array, constant, parameter

if TYPE_CHECKING:
    from numpyro.distributions import Distribution


class _Flow(eqx.Module):
    """A differential equation observed at its coordinates, with noise in both."""

    scale: Float[Array, ""] = parameter("positive", default=0.1)
    noise_scale: Float[Array, ""] = parameter("positive", default=1.0)
    initial_scale: Float[Array, ""] = constant(converter=as_array, default=3.0)
    substeps: int = eqx.field(static=True, default=1)
    every: int = eqx.field(static=True, default=1)

    def __check_init__(self) -> None:
        for name in ("scale", "noise_scale", "initial_scale"):
            require_shape(name, getattr(self, name), ())
            require_finite(name, getattr(self, name))
            require_positive(name, getattr(self, name), zero=name == "scale")
        for name in ("substeps", "every"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")

    @property
    @abstractmethod
    def rest(self) -> Float[Array, " n"]:
        """Where the first state is expected."""

    @abstractmethod
    def velocity(self, x: Float[Array, " n"]) -> Float[Array, " n"]:
        """The right-hand side of the differential equation."""

    @property
    def initial(self) -> Gaussian:
        """Normal, about a point near the attractor."""
        return Gaussian(self.rest, jnp.full_like(self.rest, 1) * self.initial_scale)

    @property
    def transition(self) -> FlowStep:
        """Law of the next state."""
        return FlowStep(self.velocity, self.scale, self.substeps)

    @property
    def observation(self) -> Coordinates:
        """Law of the observation."""
        return Coordinates(self.noise_scale, self.every)


class Lorenz63(_Flow):
    """``dx = s (y - x)``, ``dy = x (r - z) - y``, ``dz = x y - b z`` (Lorenz 1963), coordinates observed.

    The equation is integrated over each interval by Runge–Kutta steps of fourth order; noise of standard
    deviation ``scale sqrt(dt)`` is then added.

    Args:
        scale: of the state's noise, per square root of time; 0 for none.
        noise_scale: standard deviation of the observations' noise, positive.
        initial_scale: standard deviation of each coordinate at first.
        substeps: Runge–Kutta steps in each interval.
        every: observe every so many coordinates, from the first.
        prandtl: s.
        rayleigh: r.
        ratio: b.

    Raises:
        ValueError: if a parameter is no scalar, or out of range.
    """

    prandtl: Float[Array, ""] = parameter(default=10.0)
    rayleigh: Float[Array, ""] = parameter(default=28.0)
    ratio: Float[Array, ""] = parameter(default=8.0 / 3.0)

    @property
    def rest(self) -> Float[Array, " 3"]:
        """On the attractor's axis."""
        return jnp.zeros(3, self.initial_scale.dtype).at[2].set(25.0)

    def velocity(self, x: Float[Array, " 3"]) -> Float[Array, " 3"]:
        """The right-hand side of the differential equation."""
        return jnp.stack(
            [
                self.prandtl * (x[1] - x[0]),
                x[0] * (self.rayleigh - x[2]) - x[1],
                x[0] * x[1] - self.ratio * x[2],
            ]
        )


class Lorenz96(_Flow):
    """``dx_i = (x_{i+1} - x_{i-2}) x_{i-1} - x_i + forcing`` on a ring (Lorenz 1996), coordinates observed.

    The equation is integrated over each interval by Runge–Kutta steps of fourth order (an interval of 0.05,
    about six hours of weather, needs one); noise of standard deviation ``scale sqrt(dt)`` is then added.

    Args:
        scale: of the state's noise, per square root of time; 0 for none.
        noise_scale: standard deviation of the observations' noise, positive.
        initial_scale: standard deviation of each coordinate at first.
        substeps: Runge–Kutta steps in each interval.
        every: observe every so many coordinates, from the first.
        forcing: 8 for chaos.
        size: number of coordinates.

    Raises:
        ValueError: if a parameter is no scalar or out of range, or there are fewer than 4 coordinates.
    """

    forcing: Float[Array, ""] = parameter(default=8.0)
    size: int = eqx.field(static=True, default=40)

    def __check_init__(self) -> None:
        if self.size < 4:
            raise ValueError(f"`size` of Lorenz96 must be at least 4, got {self.size}.")

    @property
    def rest(self) -> Float[Array, " n"]:
        """The mean over the attractor, about 2.3 at a forcing of 8."""
        return jnp.full(self.size, 2.3, self.initial_scale.dtype)

    def velocity(self, x: Float[Array, " n"]) -> Float[Array, " n"]:
        """The right-hand side of the differential equation."""
        return (jnp.roll(x, -1) - jnp.roll(x, 2)) * jnp.roll(x, 1) - x + self.forcing


def runge_kutta(
    velocity: Callable[[Array], Array], x: Float[Array, " n"], h: Float[Array, ""]
) -> Float[Array, " n"]:
    """One classical Runge–Kutta step of fourth order of ``dx / dt = velocity(x)``."""
    k1 = velocity(x)
    k2 = velocity(x + h / 2 * k1)
    k3 = velocity(x + h / 2 * k2)
    k4 = velocity(x + h * k3)
    return x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)


class FlowStep(eqx.Module):
    """A differential equation over one interval, with noise."""

    velocity: Callable[[Array], Array]
    scale: Float[Array, ""]
    substeps: int = eqx.field(static=True)

    def __call__(self, state: Float[Array, " n"], step: Step) -> Distribution:
        """The distribution of the next state."""
        from numpyro.distributions import Normal

        h = jnp.asarray(step.dt, state.dtype) / self.substeps

        def advance(x: Array, _: None) -> tuple[Array, None]:
            return runge_kutta(self.velocity, x, h), None

        if self.substeps == 1:
            mean = advance(state, None)[0]
        else:
            mean = jax.lax.scan(advance, state, None, length=self.substeps)[0]
        sd = self.scale * jnp.sqrt(h * self.substeps)  # zero where there is no noise
        return Normal(mean, sd, validate_args=False).to_event(1)


class Coordinates(eqx.Module):
    """Some coordinates of the state, with independent noise."""

    scale: Float[Array, ""]
    every: int = eqx.field(static=True)

    def __call__(self, state: Float[Array, " n"], step: Step) -> Distribution:
        """The distribution of an observation."""
        from numpyro.distributions import Normal

        return Normal(state[:: self.every], self.scale).to_event(1)
