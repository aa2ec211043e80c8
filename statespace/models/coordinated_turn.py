"""Coordinated turns: an object that flies curves, of which only directions are seen."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from statespace.checks import require_positive, require_shape
from statespace.model import Step
from statespace.models.bearings import Bearings, BearingsTracking
from statespace.parameters import parameter

if TYPE_CHECKING:
    from numpyro.distributions import Distribution


class CoordinatedTurn(BearingsTracking):
    """A turn in the plane at a rate that wanders, seen as angles from one or more sensors.

    Over an interval the velocity turns at the rate ``omega`` and is driven by white noise, which is
    integrated exactly at any interval; the rate then moves by ``turn_scale sqrt(dt)`` times standard normal
    noise (Bar-Shalom, Li & Kirubarajan 2001, section 11.7, with white acceleration). At ``omega = 0`` it is
    :class:`~statespace.BearingsOnly`, without a seam. The angles are those of that model.

    State: ``(x, y, vx, vy, omega)``, the rate in radians per unit of time, anticlockwise.

    Args:
        acceleration_scale: square root of the spectral density of the white acceleration, ``length /
            time^(3/2)``; scalar.
        noise_scale: of the angles, radians; a scalar for all sensors or shape ``(s,)``.
        initial_mean: of ``(x, y, vx, vy, omega)``, shape ``(5,)``.
        initial_scale: standard deviations, shape ``(5,)``.
        sensors: positions, shape ``(s, 2)``; None for moving sensors, whose positions are then the inputs of
            the recording, ``(T, 2 s)``: ``a_0, b_0, a_1, …``.
        turn_scale: how much the rate wanders, ``1 / time^(3/2)``; scalar.
        wrapped: True for von Mises noise, to which ``-pi`` and ``pi`` are the same. False for
            ``atan2 + N(0, noise_scale^2)`` without regard to whole turns, as several published data sets
            were simulated: Gaussian methods then suffer where an object passes behind a sensor.

    Raises:
        ValueError: if a parameter has the wrong shape or is outside its support, or the data have no inputs
            where the sensors' positions are to be read from them.

    Example:
        >>> model = ss.CoordinatedTurn(
        ...     0.1, 0.5, [0.0, 0.0, 1.0, 0.0, 0.0], np.ones(5), [[-1.5, 0.5], [1.0, 1.0]], turn_scale=0.3
        ... )
        >>> ss.smooth(model, angles, method=ss.IteratedSmoother())
    """

    turn_scale: Float[Array, ""] = parameter("positive", kw_only=True)
    wrapped: bool = eqx.field(static=True, default=True, kw_only=True)

    def __check_init__(self) -> None:
        require_shape("turn_scale", self.turn_scale, ())
        require_positive("turn_scale", self.turn_scale, zero=False)

    @property
    def state_names(self) -> tuple[str, ...]:
        """Names of the states."""
        return ("x", "y", "vx", "vy", "omega")

    @property
    def transition(self) -> Turn:
        """Law of the state some time later."""
        return Turn(self.acceleration_scale, self.turn_scale)

    @property
    def observation(self) -> Bearings:
        """Law of the angles."""
        return Bearings(self.noise_scale, self.sensors, self.channels, self.wrapped)


class Turn(eqx.Module):
    """The velocity turns by ``omega dt``, and the position follows; ``omega`` wanders.

    In complex numbers, with ``z`` the position: ``dz = v dt``, ``dv = i omega v dt + acceleration_scale dW``.
    """

    acceleration_scale: Float[Array, ""]
    turn_scale: Float[Array, ""]

    def __call__(self, state: Float[Array, " 5"], step: Step) -> Distribution:
        """The distribution of the next state."""
        from numpyro.distributions import MultivariateNormal

        dt = jnp.asarray(step.dt, state.dtype)
        z, v, omega = state[:2], state[2:4], state[4]
        angle = omega * dt
        ahead = dt * _scaled_rotation(_sine(angle), angle / 2 * _sine(angle / 2) ** 2)
        mean = jnp.concatenate(
            [
                z + ahead @ v,
                _scaled_rotation(jnp.cos(angle), jnp.sin(angle)) @ v,
                omega[None],
            ]
        )
        # Cov(z, z), Cov(z, v) and Cov(v, v) over s² dt³, s² dt² and s² dt
        own = 2 * _lag(angle)
        real, imaginary = _sine(angle / 2) ** 2 / 2, -angle * _lag(angle)
        s, root = self.acceleration_scale * jnp.sqrt(dt), jnp.sqrt(own)
        eye = jnp.eye(2, dtype=state.dtype)
        scale = jnp.zeros((5, 5), state.dtype)
        scale = scale.at[:2, :2].set(s * dt * root * eye)
        scale = scale.at[2:4, :2].set(s / root * _scaled_rotation(real, -imaginary))
        rest = 1 - (real**2 + imaginary**2) / own
        scale = scale.at[2:4, 2:4].set(s * jnp.sqrt(rest) * eye)
        scale = scale.at[4, 4].set(self.turn_scale * jnp.sqrt(dt))
        return MultivariateNormal(mean, scale_tril=scale, validate_args=False)


def _scaled_rotation(real: Float[Array, ""], imaginary: Float[Array, ""]) -> Float[Array, "2 2"]:
    """Multiplication by a complex number."""
    return jnp.stack([jnp.stack([real, -imaginary]), jnp.stack([imaginary, real])])


def _sine(angle: Float[Array, ""]) -> Float[Array, ""]:
    """``sin(a) / a``, smooth at zero."""
    return jnp.sinc(angle / jnp.pi)


def _lag(angle: Float[Array, ""]) -> Float[Array, ""]:
    """``(a - sin(a)) / a³``, smooth at zero."""
    small = jnp.abs(angle) < 1
    near = jnp.where(small, angle, 0.0) ** 2
    series = jnp.zeros_like(near)
    for k in reversed(range(9)):
        series = series * near + (-1) ** k / math.factorial(2 * k + 3)
    far = jnp.where(small, 1.0, angle)
    return jnp.where(small, series, (far - jnp.sin(far)) / far**3)
