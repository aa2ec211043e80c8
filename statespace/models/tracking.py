"""Moving objects in continuous time, seen at whatever moments they were: tracking models.

The state follows a linear stochastic differential equation, discretised exactly at every interval, so
regular, irregular and missing observation times need no care. ``length`` and ``time`` stand for the units of
the positions and of the recording's times.
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import block_diag
from jaxtyping import Array, Float

from statespace.checks import (
    optional_array,
    optional_scale,
    require_finite,
    require_positive,
)
from statespace.conditionals.affine import AffineGaussian, Gaussian
from statespace.conditionals.diffusion import LinearDiffusion
from statespace.parameters import parameter

_AXES = ("x", "y", "z")


class Tracking(eqx.Module):
    """What the tracking models share: positions first in the state, seen with independent noise."""

    dims: int = eqx.field(static=True, default=2, kw_only=True)
    initial_law: Gaussian | None = eqx.field(
        metadata={"constant": True}, default=None, kw_only=True
    )

    def _axes(self, name: str) -> Float[Array, " dims"]:
        """A parameter with one value an axis; a missing scale is zero."""
        value = getattr(self, name)
        return jnp.broadcast_to(jnp.zeros(()) if value is None else value, (self.dims,))

    def _check_axes(self, *names: str) -> None:
        if self.dims not in (1, 2, 3):
            raise ValueError(
                f"`dims` of {type(self).__name__} must be 1, 2 or 3, got {self.dims!r}."
            )
        for name in names:
            value = getattr(self, name)
            if value is not None and jnp.shape(value) not in ((), (self.dims,)):
                raise ValueError(
                    f"`{name}` of {type(self).__name__} must be a scalar for all axes or have shape "
                    f"({self.dims},), got {jnp.shape(value)}; set `dims` to the number of axes."
                )
        law = self.initial_law
        if law is not None and law.mean.shape != (len(self.state_names),):
            raise ValueError(
                f"`initial_law` of {type(self).__name__} must be for its {len(self.state_names)} states "
                f"{self.state_names}, got a mean of shape {law.mean.shape}."
            )

    def _names(self, *prefixes: str) -> tuple[str, ...]:
        return tuple(prefix + axis for prefix in prefixes for axis in _AXES[: self.dims])

    @property
    def state_names(self) -> tuple[str, ...]:
        """Names of the states: positions, velocities, accelerations, each by axis."""
        raise NotImplementedError

    @property
    def observation(self) -> AffineGaussian:
        """Law of the observed position."""
        noise = self._axes("noise_scale")
        return AffineGaussian(
            jnp.eye(self.dims, len(self.state_names), dtype=noise.dtype), None, noise
        )

    @property
    def initial(self) -> Gaussian:
        """Law of the state at the first observation."""
        return self._start() if self.initial_law is None else self.initial_law

    def _start(self) -> Gaussian:
        raise NotImplementedError


def _positive(**kwargs: Any) -> Any:
    return parameter("positive", **kwargs)


class ConstantVelocity(Tracking):
    """Nearly constant velocity: ``dx = v dt``, ``dv = acceleration_scale dW`` in each axis.

    Bar-Shalom, Li & Kirubarajan (2001), section 6.2.2. States: positions, then velocities, exactly diffuse at
    the start.

    Args:
        acceleration_scale: square root of the spectral density of the white acceleration, ``length /
            time^(3/2)``: in a time t the velocity changes by about ``acceleration_scale * sqrt(t)``. A scalar
            for all axes, or shape ``(dims,)``.
        noise_scale: standard deviation of an observed position, ``length``; a scalar or ``(dims,)``.
        dims: number of axes, 1 to 3.
        initial_law: proper Gaussian law of the first state, in place of the diffuse one.

    Raises:
        ValueError: if a scale is not positive, or shapes do not fit ``dims``.
    """

    acceleration_scale: Float[Array, "..."] = _positive()
    noise_scale: Float[Array, "..."] | None = _positive(converter=optional_scale)

    def __check_init__(self) -> None:
        self._check_axes("acceleration_scale", "noise_scale")
        require_positive("acceleration_scale", self.acceleration_scale, zero=False)
        _require_noise(self.noise_scale)

    @property
    def state_names(self) -> tuple[str, ...]:
        """Names of the states: positions, then velocities."""
        return self._names("", "v")

    @property
    def transition(self) -> LinearDiffusion:
        """Law of the state some time later."""
        return integrators(self._axes("acceleration_scale"), 2)

    def _start(self) -> Gaussian:
        return _diffuse(self._axes("acceleration_scale"), 2)


class ConstantAcceleration(Tracking):
    """Nearly constant acceleration: ``dx = v dt``, ``dv = a dt``, ``da = jerk_scale dW`` in each axis.

    Bar-Shalom, Li & Kirubarajan (2001), section 6.2.3. States: positions, velocities, accelerations, exactly
    diffuse at the start.

    Args:
        jerk_scale: square root of the spectral density of the white jerk, ``length / time^(5/2)``. A scalar
            for all axes, or shape ``(dims,)``.
        noise_scale: standard deviation of an observed position, ``length``; a scalar or ``(dims,)``.
        dims: number of axes, 1 to 3.
        initial_law: proper Gaussian law of the first state, in place of the diffuse one.

    Raises:
        ValueError: if a scale is not positive, or shapes do not fit ``dims``.
    """

    jerk_scale: Float[Array, "..."] = _positive()
    noise_scale: Float[Array, "..."] | None = _positive(converter=optional_scale)

    def __check_init__(self) -> None:
        self._check_axes("jerk_scale", "noise_scale")
        require_positive("jerk_scale", self.jerk_scale, zero=False)
        _require_noise(self.noise_scale)

    @property
    def state_names(self) -> tuple[str, ...]:
        """Names of the states: positions, velocities, accelerations."""
        return self._names("", "v", "a")

    @property
    def transition(self) -> LinearDiffusion:
        """Law of the state some time later."""
        return integrators(self._axes("jerk_scale"), 3)

    def _start(self) -> Gaussian:
        return _diffuse(self._axes("jerk_scale"), 3)


class OrnsteinUhlenbeck(Tracking):
    """A position drawn back to its mean: ``dx = -rate (x - mean) dt + scale dW`` in each axis.

    Uhlenbeck & Ornstein (1930). States: positions; stationary at the start, with standard deviation
    ``scale / sqrt(2 rate)``.

    Args:
        rate: ``1 / time``; the correlation falls to 1/e in a time ``1 / rate``. A scalar for all axes, or
            shape ``(dims,)``.
        scale: ``length / sqrt(time)``; a scalar or ``(dims,)``.
        noise_scale: standard deviation of an observed position, ``length``; None for positions seen exactly.
        mean: ``length``; a scalar or ``(dims,)``; None for zero.
        dims: number of axes, 1 to 3; 1 unless given.
        initial_law: proper Gaussian law of the first state, in place of the stationary one.

    Raises:
        ValueError: if the rate or a scale is not positive, or shapes do not fit ``dims``.
    """

    rate: Float[Array, "..."] = _positive()
    scale: Float[Array, "..."] = _positive()
    noise_scale: Float[Array, "..."] | None = _positive(converter=optional_scale, default=None)
    mean: Float[Array, "..."] | None = parameter(converter=optional_array, default=None)
    dims: int = eqx.field(static=True, default=1, kw_only=True)

    def __check_init__(self) -> None:
        self._check_axes("rate", "scale", "noise_scale", "mean")
        require_positive("rate", self.rate, zero=False)
        require_positive("scale", self.scale, zero=False)
        _require_noise(self.noise_scale)
        if self.mean is not None:
            require_finite("mean", self.mean)

    @property
    def state_names(self) -> tuple[str, ...]:
        """Names of the states: positions."""
        return self._names("")

    @property
    def transition(self) -> LinearDiffusion:
        """Law of the state some time later."""
        rate = self._axes("rate")
        offset = None if self.mean is None else rate * self._axes("mean")
        return LinearDiffusion(-jnp.diag(rate), self._axes("scale"), offset)

    def _start(self) -> Gaussian:
        return Gaussian(
            self._axes("mean"), scale=self._axes("scale") / jnp.sqrt(2 * self._axes("rate"))
        )


class IntegratedOrnsteinUhlenbeck(Tracking):
    """A persistent walk: ``dx = v dt``, ``dv = -rate v dt + scale dW`` in each axis.

    The velocity forgets itself in a time ``1 / rate``: straight on short, diffusive on long times (Johnson,
    London, Lea & Durban 2008, Ecology 89, 1208). States: positions, exactly diffuse at the start, then
    velocities, stationary with standard deviation ``scale / sqrt(2 rate)``.

    Args:
        rate: ``1 / time``; a scalar for all axes, or shape ``(dims,)``.
        scale: ``length / time^(3/2)``; a scalar or ``(dims,)``.
        noise_scale: standard deviation of an observed position, ``length``; a scalar or ``(dims,)``.
        dims: number of axes, 1 to 3.
        initial_law: proper Gaussian law of the first state, in place of the default.

    Raises:
        ValueError: if the rate or a scale is not positive, or shapes do not fit ``dims``.
    """

    rate: Float[Array, "..."] = _positive()
    scale: Float[Array, "..."] = _positive()
    noise_scale: Float[Array, "..."] | None = _positive(converter=optional_scale)

    def __check_init__(self) -> None:
        self._check_axes("rate", "scale", "noise_scale")
        require_positive("rate", self.rate, zero=False)
        require_positive("scale", self.scale, zero=False)
        _require_noise(self.noise_scale)

    @property
    def state_names(self) -> tuple[str, ...]:
        """Names of the states: positions, then velocities."""
        return self._names("", "v")

    @property
    def transition(self) -> LinearDiffusion:
        """Law of the state some time later."""
        free = integrators(self._axes("scale"), 2)
        still = jnp.zeros((self.dims, self.dims), free.drift.dtype)
        return LinearDiffusion(
            free.drift - block_diag(still, jnp.diag(self._axes("rate"))), free.diffusion
        )

    def _start(self) -> Gaussian:
        speed = self._axes("scale") / jnp.sqrt(2 * self._axes("rate"))
        d = self.dims
        return Gaussian(
            jnp.zeros(2 * d, speed.dtype),
            scale=jnp.concatenate([jnp.zeros_like(speed), speed]),
            diffuse=np.arange(2 * d) < d,
        )


def integrators(scale: Float[Array, " d"], order: int) -> LinearDiffusion:
    """White noise integrated ``order`` times in each axis; positions come first in the state."""
    d = len(scale)
    n = order * d
    diffusion = jnp.zeros((n, d), scale.dtype).at[n - d :].set(jnp.diag(scale))
    return LinearDiffusion(jnp.eye(n, k=d, dtype=scale.dtype), diffusion)


def _diffuse(scale: Float[Array, " d"], order: int) -> Gaussian:
    zeros = jnp.zeros(order * len(scale), scale.dtype)
    return Gaussian(zeros, scale=zeros, diffuse=np.ones(len(zeros), bool))


def _require_noise(noise_scale: Array | None) -> None:
    """Observation noise may be absent, but not negative."""
    if noise_scale is not None:
        require_positive("noise_scale", noise_scale, zero=False)
