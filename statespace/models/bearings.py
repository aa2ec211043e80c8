"""Bearings: moving objects of which only directions are seen."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any

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
from statespace.conditionals.diffusion import LinearDiffusion
from statespace.model import Step
from statespace.models.tracking import integrators
from statespace.parameters import constant, parameter

if TYPE_CHECKING:
    from numpyro.distributions import Distribution


class BearingsTracking(eqx.Module):
    """What models of objects that are seen as angles share: positions ``(x, y)`` come first in the state."""

    acceleration_scale: Float[Array, ""] = parameter("positive")
    noise_scale: Float[Array, "..."] = parameter("positive")
    initial_mean: Float[Array, " n"] = parameter()
    initial_scale: Float[Array, " n"] = parameter("positive")
    sensors: Float[Array, "s 2"] | None = constant(converter=optional_array, default=None)

    def __check_init__(self) -> None:
        n, names = len(self.state_names), ", ".join(self.state_names)
        require_shape("acceleration_scale", self.acceleration_scale, ())
        require_shape("initial_mean", self.initial_mean, (n,), f"It is ({names}).")
        require_shape("initial_scale", self.initial_scale, (n,), f"It is of ({names}).")
        require_finite("initial_mean", self.initial_mean)
        if self.noise_scale.ndim > 1:
            raise ValueError(
                "`noise_scale` must be a scalar or have shape (s,), one for each sensor, got "
                f"{self.noise_scale.shape}."
            )
        for name in ("acceleration_scale", "noise_scale", "initial_scale"):
            require_positive(name, getattr(self, name), zero=False)
        if self.sensors is not None:
            if self.sensors.ndim != 2 or self.sensors.shape[1] != 2:
                raise ValueError(
                    "`sensors` must have shape (s, 2), a position for each; None for sensors whose positions "
                    f"are the recording's inputs; got {self.sensors.shape}."
                )
            if self.noise_scale.ndim:
                require_shape("noise_scale", self.noise_scale, self.sensors.shape[:1])
            require_finite("sensors", self.sensors)

    @property
    def channels(self) -> int:
        """Number of sensors, as far as the parameters tell."""
        if self.sensors is not None:
            return self.sensors.shape[0]
        return self.noise_scale.shape[0] if self.noise_scale.ndim else 1

    @property
    @abstractmethod
    def state_names(self) -> tuple[str, ...]:
        """Names of the states."""

    @property
    def initial(self) -> Gaussian:
        """Law of the state at the first observation."""
        return Gaussian(self.initial_mean, self.initial_scale)

    @property
    def observation(self) -> Bearings:
        """Law of the angles."""
        return Bearings(self.noise_scale, self.sensors, self.channels)


class BearingsOnly(BearingsTracking):
    """Nearly constant velocity in the plane, seen as angles from one or more sensors.

    The angle from sensor i at ``(a_i, b_i)`` is ``atan2(y - b_i, x - a_i)``, in radians, anticlockwise from
    the x axis, with von Mises noise: the angles ``-pi`` and ``pi`` are the same, which a normal law does not
    know. For small noise the concentration ``1 / noise_scale^2`` means a standard deviation of
    ``noise_scale``. Gordon, Salmond & Smith (1993), section 4.2, with one moving sensor.

    State: ``(x, y, vx, vy)``; it moves as :class:`~statespace.ConstantVelocity`, exactly at any interval.

    Args:
        acceleration_scale: square root of the spectral density of the white acceleration, ``length /
            time^(3/2)``; scalar.
        noise_scale: of the angles, radians; a scalar for all sensors or shape ``(s,)``.
        initial_mean: of ``(x, y, vx, vy)``, shape ``(4,)``.
        initial_scale: standard deviations, shape ``(4,)``. Proper, since angles from one sensor that does not
            move leave the distance open.
        sensors: positions, shape ``(s, 2)``; None for moving sensors, whose positions are then the inputs of
            the recording, ``(T, 2 s)``: ``a_0, b_0, a_1, …``.

    Raises:
        ValueError: if a parameter has the wrong shape or is outside its support, or the data have no inputs
            where the sensors' positions are to be read from them.
    """

    @property
    def state_names(self) -> tuple[str, ...]:
        """Names of the states."""
        return ("x", "y", "vx", "vy")

    @property
    def transition(self) -> LinearDiffusion:
        """Law of the state some time later."""
        return integrators(jnp.broadcast_to(self.acceleration_scale, (2,)), 2)


class Bearings(eqx.Module):
    """Angles under which a position is seen, with von Mises noise, or normal noise that knows no turns."""

    noise_scale: Float[Array, "..."]
    sensors: Float[Array, "s 2"] | None
    channels: int = eqx.field(static=True)
    wrapped: bool = eqx.field(static=True, default=True)

    def angles(self, state: Float[Array, " n"], step: Step) -> Float[Array, " s"]:
        """The angles without noise, in radians.

        Raises:
            ValueError: if the sensors' positions are neither given nor among the inputs.
        """
        sensors: Any = self.sensors
        if sensors is None:
            count = 2 * self.channels
            if step.inputs is None or jnp.shape(step.inputs) != (count,):
                raise ValueError(
                    "a model of bearings without `sensors` reads their positions from the inputs: pass "
                    f"`ss.Series(y, inputs=positions)` with `positions` of shape (T, {count})."
                )
            sensors = step.inputs.reshape(-1, 2)
        away = state[:2] - sensors
        return jnp.arctan2(away[:, 1], away[:, 0])

    def __call__(self, state: Float[Array, " n"], step: Step) -> Distribution:
        """The distribution of the angles."""
        from numpyro.distributions import Normal, VonMises

        angles = self.angles(state, step)
        if self.wrapped:
            return VonMises(angles, self.noise_scale**-2).to_event(1)
        return Normal(angles, self.noise_scale).to_event(1)
