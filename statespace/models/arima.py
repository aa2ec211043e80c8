"""Autoregressions, ARMA and seasonal ARIMA, in companion form (Harvey 1989, section 4.1).

Coefficients are parameters whose supports are the stationary autoregressions and the invertible moving
averages (:mod:`statespace.constraints`), so that learners never leave these regions.
"""

from __future__ import annotations

from typing import Any, Literal

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from statespace.checks import (
    known,
    optional_array,
    require_finite,
    require_positive,
    require_shape,
)
from statespace.conditionals.stationary import discrete_lyapunov
from statespace.models.components import Block, Component
from statespace.models.polynomials import is_invertible, is_stationary, lag_polynomial, multiply
from statespace.parameters import parameter


def _coefficients(value: Any) -> Array | None:
    """A vector of coefficients; None where there are none."""
    value = optional_array(value)
    return None if value is None or value.shape == (0,) else value


class AR(Component):
    """A stationary autoregression, seen exactly.

    ``x_t = phi_1 x_{t-1} + ... + phi_p x_{t-p} + scale e_t``. To see it through noise, add
    :class:`Irregular`. It starts in its stationary law.

    Args:
        coefficients: ``phi``, shape ``(p,)``, stationary.
        scale: standard deviation of the innovations, positive.
        name: name in a sum, ``"ar"`` unless given.
        initial_law: proper Gaussian law of the first state, in place of the stationary one.

    Raises:
        ValueError: if the coefficients are not those of a stationary autoregression, or the scale is not a
            positive scalar.
    """

    coefficients: Float[Array, " p"] = parameter("stationary")
    scale: Float[Array, ""] = parameter("positive")

    def __check_init__(self) -> None:
        require_coefficients("coefficients", self.coefficients, "stationary")
        _require_innovations(self.scale)

    @property
    def usual_name(self) -> str:
        """The usual name of such a component."""
        return "ar"

    def _block(self) -> Block:
        ar = lag_polynomial(self.coefficients, -1.0)
        return arma_block(ar, jnp.ones(1, self.dtype), self.scale)


class ARMA(Component):
    """An autoregressive moving average about a mean.

    ``w_t - phi_1 w_{t-1} - ... = scale (e_t + theta_1 e_{t-1} + ...)``, ``y_t = mean + w_t``.

    Args:
        ar: ``phi``, shape ``(p,)``, stationary; None for a pure moving average.
        ma: ``theta``, shape ``(q,)``, invertible; None for a pure autoregression.
        scale: standard deviation of the innovations, positive.
        mean: of the series; None for zero.
        name: name in a sum, ``"arma"`` unless given.
        initial_law: proper Gaussian law of the first state, in place of the stationary one.

    Raises:
        ValueError: if the autoregression is not stationary, the moving average not invertible, or the scale
            not a positive scalar.
    """

    ar: Float[Array, " p"] | None = parameter("stationary", converter=_coefficients, default=None)
    ma: Float[Array, " q"] | None = parameter("invertible", converter=_coefficients, default=None)
    scale: Float[Array, ""] = parameter("positive", default=1.0)
    mean: Float[Array, ""] | None = parameter(converter=optional_array, default=None)

    def __check_init__(self) -> None:
        require_coefficients("ar", self.ar, "stationary")
        require_coefficients("ma", self.ma, "invertible")
        _require_innovations(self.scale)
        _require_mean(self.mean)

    @property
    def usual_name(self) -> str:
        """The usual name of such a component."""
        return "arma"

    def _block(self) -> Block:
        ar = lag_polynomial(self.ar, -1.0, dtype=self.dtype)
        ma = lag_polynomial(self.ma, 1.0, dtype=self.dtype)
        return arma_block(ar, ma, self.scale)._replace(offset=self.mean)


class ARIMA(Component):
    """An ARIMA, with seasonal factors or without.

    ``phi(L) Phi(L^s) ((1 - L)^d (1 - L^s)^D y_t - mean) = theta(L) Theta(L^s) scale e_t``. The differences
    are taken in the state, whose lags of ``y`` are exactly diffuse at the start: missing values need no care,
    and the likelihood is that of the differenced series. For regressors add :class:`Regression`, for
    measurement error :class:`Irregular`.

    Args:
        order: ``(p, d, q)``.
        seasonal_order: ``(P, D, Q, s)``.
        ar: ``phi``, shape ``(p,)``; zeros unless given.
        ma: ``theta``, shape ``(q,)``; zeros unless given.
        seasonal_ar: ``Phi``, shape ``(P,)``; zeros unless given.
        seasonal_ma: ``Theta``, shape ``(Q,)``; zeros unless given.
        scale: standard deviation of the innovations, positive.
        mean: of the differenced series (with d = 1: the drift per step); None for zero.
        name: name in a sum, ``"arima"`` unless given.
        initial_law: proper Gaussian law of the first state, in place of the default.

    Raises:
        ValueError: if an order is negative or the season shorter than 2; if coefficients are not as many as
            the order says, not stationary or not invertible; or if the scale is not a positive scalar.
    """

    order: tuple[int, int, int] = eqx.field(static=True)
    seasonal_order: tuple[int, int, int, int] = eqx.field(static=True)
    ar: Float[Array, " p"] | None = parameter("stationary", converter=_coefficients)
    ma: Float[Array, " q"] | None = parameter("invertible", converter=_coefficients)
    seasonal_ar: Float[Array, " P"] | None = parameter("stationary", converter=_coefficients)
    seasonal_ma: Float[Array, " Q"] | None = parameter("invertible", converter=_coefficients)
    scale: Float[Array, ""] = parameter("positive")
    mean: Float[Array, ""] | None = parameter(converter=optional_array)

    def __init__(
        self,
        order: tuple[int, int, int],
        seasonal_order: tuple[int, int, int, int] = (0, 0, 0, 0),
        *,
        ar: Any = None,
        ma: Any = None,
        seasonal_ar: Any = None,
        seasonal_ma: Any = None,
        scale: Any = 1.0,
        mean: Any = None,
        name: str | None = None,
        initial_law: Any = None,
    ):
        self.order = _order("order", order, "(p, d, q)")
        self.seasonal_order = _order("seasonal_order", seasonal_order, "(P, D, Q, s)")
        *counts, season = self.seasonal_order
        if any(counts) and season < 2:
            raise ValueError(
                f"the season s of `seasonal_order` must be at least 2 steps, got {season}."
            )
        p, _, q = self.order
        self.ar = jnp.zeros(p) if ar is None else ar
        self.ma = jnp.zeros(q) if ma is None else ma
        self.seasonal_ar = jnp.zeros(counts[0]) if seasonal_ar is None else seasonal_ar
        self.seasonal_ma = jnp.zeros(counts[2]) if seasonal_ma is None else seasonal_ma
        self.scale = scale
        self.mean = mean
        self.name = name
        self.initial_law = initial_law

    def __check_init__(self) -> None:
        counts = (self.order[0], self.order[2], self.seasonal_order[0], self.seasonal_order[2])
        names = ("ar", "ma", "seasonal_ar", "seasonal_ma")
        for name, count, region in zip(names, counts, ("stationary", "invertible") * 2):
            value = getattr(self, name)
            have = 0 if value is None else len(jnp.atleast_1d(value))
            if have != count:
                raise ValueError(
                    f"`{name}` must have {count} coefficients to go with order={self.order} and "
                    f"seasonal_order={self.seasonal_order}, got {have}."
                )
            require_coefficients(name, value, region)
        _require_innovations(self.scale)
        _require_mean(self.mean)

    @property
    def usual_name(self) -> str:
        """The usual name of such a component."""
        return "arima"

    def _block(self) -> Block:
        s, dtype = self.seasonal_order[3], self.dtype
        ar = multiply(
            lag_polynomial(self.ar, -1.0, dtype=dtype),
            lag_polynomial(self.seasonal_ar, -1.0, s, dtype=dtype),
        )
        ma = multiply(
            lag_polynomial(self.ma, 1.0, dtype=dtype),
            lag_polynomial(self.seasonal_ma, 1.0, s, dtype=dtype),
        )
        arma = arma_block(ar, ma, self.scale)._replace(offset=self.mean)
        lags = difference_lags(self.order[1], self.seasonal_order[1], s)
        return integrate(arma, jnp.asarray(lags, dtype)) if len(lags) else arma


def arma_block(ar: Float[Array, " p1"], ma: Float[Array, " q1"], scale: Float[Array, ""]) -> Block:
    """``ar(L) w_t = ma(L) scale e_t``, stationary at the start; Harvey (1989), equation (4.1.5).

    The first state is ``w_t``, the i-th what is already known at t of ``w_{t+i}``.

    Args:
        ar: ``1 - phi_1 L - ...``, lowest order first.
        ma: ``1 + theta_1 L + ...``, lowest order first.
        scale: standard deviation of the innovations.
    """
    n = max(len(ar) - 1, len(ma))
    dtype = jnp.result_type(ar, ma, scale)
    phi = jnp.zeros(n, dtype).at[: len(ar) - 1].set(-ar[1:])
    matrix = jnp.eye(n, k=1, dtype=dtype).at[:, 0].set(phi)
    factor = jnp.zeros((n, 1), dtype).at[: len(ma), 0].set(scale * ma)
    return Block(
        states=tuple(f"ahead{i}" for i in range(n)),
        loading=jnp.eye(n, dtype=dtype)[0],
        matrix=matrix,
        scale=factor,
        covariance=lambda: discrete_lyapunov(matrix, factor @ factor.T),
        diffuse=(False,) * n,
    )


def difference_lags(d: int, seasonal_d: int, season: int) -> np.ndarray:
    """``c`` in ``(1 - L)^d (1 - L^s)^D y_t = y_t - c_1 y_{t-1} - ... - c_k y_{t-k}``."""
    polynomial = np.ones(1)
    for _ in range(d):
        polynomial = np.convolve(polynomial, [1.0, -1.0])
    for _ in range(seasonal_d):
        polynomial = np.convolve(polynomial, np.r_[1.0, np.zeros(season - 1), -1.0])
    return -polynomial[1:]


def integrate(inner: Block, lags: Float[Array, " k"]) -> Block:
    """The block of ``y_t = c_1 y_{t-1} + ... + c_k y_{t-k} + w_t`` from that of ``w_t``.

    The lags of ``y`` come first in the state, ``y_{t-1}`` to ``y_{t-k}``, exactly diffuse at the start.
    """
    k, n = len(lags), len(inner.states)
    loading = jnp.concatenate([lags, jnp.asarray(inner.loading)])
    shifted = jnp.eye(k - 1, k + n, dtype=lags.dtype)
    below = jnp.concatenate([jnp.zeros((n, k), lags.dtype), inner.matrix], axis=1)
    covariance = inner.covariance
    shift = None if inner.offset is None else jnp.zeros(k + n, lags.dtype).at[0].set(inner.offset)
    return Block(
        states=(*(f"lag{i}" for i in range(1, k + 1)), *inner.states),
        loading=loading,
        matrix=jnp.concatenate([loading[None], shifted, below]),
        scale=jnp.concatenate([jnp.zeros((k, inner.scale.shape[1]), lags.dtype), inner.scale]),
        covariance=lambda: jnp.pad(covariance(), ((k, 0), (k, 0))),
        diffuse=(True,) * k + inner.diffuse,
        shift=shift,
        offset=inner.offset,
    )


def require_coefficients(
    name: str, value: Array | None, region: Literal["stationary", "invertible"]
) -> None:
    """Refuse coefficients outside the region of stationary autoregressions or invertible moving averages.

    Raises:
        ValueError: naming the argument, the value, and the largest modulus of an inverse root.
    """
    if value is None:
        return
    if value.ndim != 1:
        raise ValueError(f"`{name}` must have shape (p,), got {value.shape}.")
    require_finite(name, value)
    sign, inside = (-1, is_stationary) if region == "stationary" else (1, is_invertible)
    if known(value) and not inside(value):
        modulus = np.abs(np.roots(np.r_[1.0, sign * np.asarray(value, float)])).max()
        remedy = "; take differences (`d` of ARIMA) rather than a unit root"
        raise ValueError(
            f"`{name}` must be {region}: all inverse roots of its polynomial inside the unit circle, but the "
            f"largest of {np.asarray(value)} has modulus {modulus:.6g}"
            f"{remedy if region == 'stationary' else ''}."
        )


def _require_innovations(scale: Array) -> None:
    require_shape("scale", scale, ())
    require_positive("scale", scale, zero=False)


def _require_mean(mean: Array | None) -> None:
    if mean is not None:
        require_shape("mean", mean, ())
        require_finite("mean", mean)


def _order(name: str, value: Any, form: str) -> Any:
    value = tuple(value)
    if len(value) != form.count(",") + 1 or not all(
        isinstance(v, (int, np.integer)) and v >= 0 for v in value
    ):
        raise ValueError(f"`{name}` must be {form}, whole numbers from 0, got {value}.")
    return tuple(int(v) for v in value)
