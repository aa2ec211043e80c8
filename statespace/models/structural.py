"""Structural components: level, trend, seasonal, cycle, irregular.

Harvey (1989), chapter 2; Durbin & Koopman (2012), chapter 3.

One step is one observation: write a gap in the recording as NaN. Scales are standard deviations, in the unit
of the observations. A scale that is left out (None, or 0) means that nothing moves the component; it is then
no parameter.
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from statespace.checks import (
    known,
    optional_array,
    optional_scale,
    require_positive,
    require_shape,
    require_standard_deviation,
    require_support,
)
from statespace.models.components import Block, Component, Structural, add
from statespace.parameters import as_array, parameter

__all__ = [
    "Cycle",
    "Irregular",
    "LocalLevel",
    "LocalLinearTrend",
    "Seasonal",
    "Structural",
    "add",
]


def _scale(**kwargs: Any) -> Any:
    """A field that holds a standard deviation, or None for no noise."""
    return parameter("positive", converter=optional_scale, **kwargs)


class LocalLevel(Component):
    """A level that wanders: ``mu_t = mu_{t-1} + level_scale e_t``, ``y_t = mu_t + noise_scale v_t``.

    Durbin & Koopman (2012), equation (2.3). State: ``level``, exactly diffuse at the start.

    Args:
        level_scale: standard deviation of the level's steps; None for a constant level.
        noise_scale: standard deviation of the observation noise; None where another component, or nothing,
            brings it.
        name: name in a sum, ``"level"`` unless given.
        initial_law: proper Gaussian law of the first level, in place of the diffuse one.

    Raises:
        ValueError: if a scale is negative or not a scalar.
    """

    level_scale: Float[Array, ""] | None = _scale(default=None)
    noise_scale: Float[Array, ""] | None = _scale(default=None)

    def __check_init__(self) -> None:
        require_standard_deviation("level_scale", self.level_scale)
        require_standard_deviation("noise_scale", self.noise_scale)

    @property
    def usual_name(self) -> str:
        """The usual name of such a component."""
        return "level"

    def _block(self) -> Block:
        one = jnp.ones(1, self.dtype)
        return Block(
            states=("level",),
            loading=one,
            matrix=one[:, None],
            scale=columns([self.level_scale], [one], self.dtype),
            covariance=lambda: jnp.zeros((1, 1), self.dtype),
            diffuse=(True,),
            noise=self.noise_scale,
        )


class LocalLinearTrend(Component):
    """A level with a slope: ``mu_t = mu_{t-1} + nu_{t-1} + e_t``, ``nu_t = nu_{t-1} + z_t``.

    Durbin & Koopman (2012), equation (3.2). Without ``level_scale`` it is the smooth trend (an integrated
    random walk, of which the smoothed level is a cubic spline), without ``slope_scale`` a random walk with
    constant drift, without both a straight line. States: ``level``, ``slope``, exactly diffuse at the start.

    Args:
        level_scale: standard deviation of ``e_t``; None for no level noise.
        slope_scale: standard deviation of ``z_t``; None for a constant slope.
        noise_scale: standard deviation of the observation noise; None where another component, or nothing,
            brings it.
        name: name in a sum, ``"trend"`` unless given.
        initial_law: proper Gaussian law of the first (level, slope), in place of the diffuse one.

    Raises:
        ValueError: if a scale is negative or not a scalar.
    """

    level_scale: Float[Array, ""] | None = _scale(default=None)
    slope_scale: Float[Array, ""] | None = _scale(default=None)
    noise_scale: Float[Array, ""] | None = _scale(default=None)

    def __check_init__(self) -> None:
        for name in ("level_scale", "slope_scale", "noise_scale"):
            require_standard_deviation(name, getattr(self, name))

    @property
    def usual_name(self) -> str:
        """The usual name of such a component."""
        return "trend"

    def _block(self) -> Block:
        level, slope = jnp.eye(2, dtype=self.dtype)
        return Block(
            states=("level", "slope"),
            loading=level,
            matrix=jnp.array([[1.0, 1.0], [0.0, 1.0]], self.dtype),
            scale=columns([self.level_scale, self.slope_scale], [level, slope], self.dtype),
            covariance=lambda: jnp.zeros((2, 2), self.dtype),
            diffuse=(True, True),
            noise=self.noise_scale,
        )


class Seasonal(Component):
    """A pattern that repeats every ``period`` steps and slowly changes.

    ``kind="dummy"``: the last ``period`` effects sum to ``scale e_t`` (Durbin & Koopman 2012, equation
    (3.3)); ``period - 1`` states. ``kind="trigonometric"``: a sum of stochastic harmonics of the period
    (equations (3.5)–(3.7)), each moved by noise of the same ``scale``; two states a harmonic, one for the
    harmonic of period 2. It takes fewer states for long periods with few harmonics, and periods that are no
    whole number. All states are exactly diffuse at the start.

    Args:
        period: steps in a period, at least 2; a whole number for dummies.
        scale: standard deviation of what moves the pattern; None for a fixed pattern.
        kind: ``"dummy"`` or ``"trigonometric"``.
        harmonics: of a trigonometric seasonal: how many, or which ones (``(1, 2, 4)``); None for all below
            or at half the period.
        name: name in a sum, ``"seasonal"`` unless given.
        initial_law: proper Gaussian law of the first state, in place of the diffuse one.

    Raises:
        ValueError: if the period is below 2 or, for dummies, no whole number; if the kind is unknown; if
            harmonics are given for dummies, repeat, or lie above half the period; if the scale is negative.
    """

    period: float = eqx.field(static=True)
    scale: Float[Array, ""] | None = _scale(default=None)
    kind: str = eqx.field(static=True, default="dummy")
    harmonics: tuple[int, ...] = eqx.field(static=True, default=())

    def __init__(
        self,
        period: float,
        scale: Any = None,
        kind: str = "dummy",
        harmonics: int | tuple[int, ...] | None = None,
        *,
        name: str | None = None,
        initial_law: Any = None,
    ):
        if not np.isfinite(period) or period < 2:
            raise ValueError(f"`period` of Seasonal must be at least 2 steps, got {period}.")
        if kind not in ("dummy", "trigonometric"):
            raise ValueError(
                f'`kind` of Seasonal must be "dummy" or "trigonometric", got {kind!r}.'
            )
        if kind == "dummy":
            if period != int(period):
                raise ValueError(
                    f"`period` of a dummy Seasonal must be a whole number of steps, got {period}; use "
                    'kind="trigonometric".'
                )
            if harmonics is not None:
                raise ValueError('`harmonics` belong to Seasonal(kind="trigonometric").')
        self.period = int(period) if period == int(period) else float(period)
        self.scale = scale
        self.kind = kind
        self.harmonics = () if kind == "dummy" else _chosen_harmonics(period, harmonics)
        self.name = name
        self.initial_law = initial_law

    def __check_init__(self) -> None:
        require_standard_deviation("scale", self.scale)

    @property
    def usual_name(self) -> str:
        """The usual name of such a component."""
        return "seasonal"

    def _block(self) -> Block:
        return self._dummies() if self.kind == "dummy" else self._harmonics()

    def _dummies(self) -> Block:
        n = int(self.period) - 1
        matrix = np.eye(n, k=-1)
        matrix[0] = -1.0
        first = jnp.eye(n, dtype=self.dtype)[0]
        return Block(
            states=tuple(f"lag{i}" for i in range(n)),
            loading=first,
            matrix=jnp.asarray(matrix, self.dtype),
            scale=columns([self.scale], [first], self.dtype),
            covariance=lambda: jnp.zeros((n, n), self.dtype),
            diffuse=(True,) * n,
        )

    def _harmonics(self) -> Block:
        states: list[str] = []
        loading: list[float] = []
        blocks: list[np.ndarray] = []
        for j in self.harmonics:
            alone = 2 * j == self.period  # at period 2 the sine is zero wherever it is looked at
            states += [f"cos{j}"] if alone else [f"cos{j}", f"sin{j}"]
            loading += [1.0] if alone else [1.0, 0.0]
            turn = rotation(2 * np.pi * j / self.period, np)
            blocks.append(turn[:1, :1] if alone else turn)
        n = len(states)
        matrix = np.zeros((n, n))
        start = 0
        for block in blocks:
            end = start + len(block)
            matrix[start:end, start:end] = block
            start = end
        eye = jnp.eye(n, dtype=self.dtype)
        return Block(
            states=tuple(states),
            loading=jnp.array(loading, self.dtype),
            matrix=jnp.asarray(matrix, self.dtype),
            scale=jnp.zeros((n, 0), self.dtype) if self.scale is None else self.scale * eye,
            covariance=lambda: jnp.zeros((n, n), self.dtype),
            diffuse=(True,) * n,
        )


class Cycle(Component):
    """A stochastic cycle: a rotation by ``2 pi / period`` a step, damped, and moved by noise.

    ``[c_t, s_t] = damping R(2 pi / period) [c_{t-1}, s_{t-1}] + scale e_t`` (Harvey 1989, equation
    (2.3.38)). States: ``cos`` (the contribution) and ``sin``. A damped cycle starts in its stationary law,
    of variance ``scale^2 / (1 - damping^2)``; an undamped one is exactly diffuse.

    Args:
        period: steps in a cycle, above 2.
        damping: factor of the amplitude per step, in [0, 1); None for an undamped cycle.
        scale: standard deviation of what moves the cycle; None for an undamped cycle of constant amplitude.
        name: name in a sum, ``"cycle"`` unless given.
        initial_law: proper Gaussian law of the first (cos, sin), in place of the default.

    Raises:
        ValueError: if the period is not above 2, the damping not in [0, 1), the scale negative; or if a
            damped cycle has no scale, which would be zero throughout.
    """

    period: Float[Array, ""] = parameter("period")
    damping: Float[Array, ""] | None = parameter(
        "unit_interval", converter=optional_array, default=None
    )
    scale: Float[Array, ""] | None = _scale(default=None)

    def __check_init__(self) -> None:
        require_shape("period", self.period, ())
        require_support("period", self.period, lambda x: x > 2, "be above 2 steps a cycle")
        require_standard_deviation("scale", self.scale)
        if self.damping is None:
            return
        require_shape("damping", self.damping, ())
        require_positive("damping", self.damping)
        if known(self.damping) and not self.damping < 1:
            raise ValueError(
                f"`damping` of Cycle must be in [0, 1), got {self.damping}; leave it out (None) for an "
                "undamped cycle, which is not stationary."
            )
        if self.scale is None:
            raise ValueError(
                "a damped Cycle without `scale` would be zero throughout: give it a scale, or leave out "
                "`damping` for a cycle of constant amplitude."
            )

    @property
    def usual_name(self) -> str:
        """The usual name of such a component."""
        return "cycle"

    def _block(self) -> Block:
        eye = jnp.eye(2, dtype=self.dtype)
        turn = rotation(2 * jnp.pi / self.period, jnp).astype(self.dtype)
        damped = self.damping is not None
        return Block(
            states=("cos", "sin"),
            loading=eye[0],
            matrix=self.damping * turn if damped else turn,
            scale=jnp.zeros((2, 0), self.dtype) if self.scale is None else self.scale * eye,
            covariance=lambda: (
                self.scale**2 / ((1 - self.damping) * (1 + self.damping)) * eye
                if damped
                else 0.0 * eye
            ),
            diffuse=(not damped,) * 2,
        )


class Irregular(Component):
    """Observation noise, for a sum of which no other component brings any.

    ``AR(coefficients=[0.7], scale=1.0) + Irregular(scale=0.5)`` is an autoregression seen through noise.

    Args:
        scale: standard deviation of the noise, positive.
        name: name in a sum, ``"irregular"`` unless given.

    Raises:
        ValueError: if the scale is not positive.
    """

    scale: Float[Array, ""] = parameter("positive", converter=as_array)

    def __check_init__(self) -> None:
        require_shape("scale", self.scale, (), "It is one standard deviation, of one series.")
        require_positive("scale", self.scale, zero=False)

    @property
    def usual_name(self) -> str:
        """The usual name of such a component."""
        return "irregular"

    def _block(self) -> Block:
        empty = jnp.zeros((0, 0), self.dtype)
        return Block(
            states=(),
            loading=empty[0:0].reshape(0),
            matrix=empty,
            scale=empty,
            covariance=lambda: empty,
            diffuse=(),
            noise=self.scale,
        )


def columns(scales: list[Array | None], directions: list[Array], dtype: Any) -> Float[Array, "n k"]:
    """A noise factor with one column for each scale that is there."""
    kept = [s * d for s, d in zip(scales, directions) if s is not None]
    return jnp.stack(kept, axis=1) if kept else jnp.zeros((len(directions[0]), 0), dtype)


def rotation(angle: Any, xp: Any) -> Any:
    """Clockwise rotation by an angle, as the harmonics turn from one step to the next."""
    c, s = xp.cos(angle), xp.sin(angle)
    return xp.stack([xp.stack([c, s]), xp.stack([-s, c])])


def _chosen_harmonics(period: float, harmonics: int | tuple[int, ...] | None) -> tuple[int, ...]:
    most = int(np.floor(period / 2 + 1e-9))
    if harmonics is None:
        return tuple(range(1, most + 1))
    chosen = (
        tuple(range(1, harmonics + 1))
        if isinstance(harmonics, (int, np.integer))
        else tuple(int(j) for j in harmonics)
    )
    if not chosen or len(set(chosen)) < len(chosen) or not all(1 <= j <= most for j in chosen):
        raise ValueError(
            f"`harmonics` of Seasonal with period {period} must be a number from 1 to {most}, or distinct "
            f"numbers in this range, got {harmonics}."
        )
    return chosen
