"""Lag polynomials, and the stationary region of their coefficients as a support.

The coefficients ``phi`` of ``x_t = phi_1 x_{t-1} + ... + phi_p x_{t-p} + e_t`` are stationary when all their
partial autocorrelations lie in (-1, 1). The support :data:`stationary` says so, and ``biject_to`` of it
reaches every such ``phi`` from unconstrained numbers.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from numpyro.distributions import biject_to, constraints
from numpyro.distributions.transforms import ParameterFreeTransform


def from_partial(r: Float[Array, "*b p"]) -> Float[Array, "*b p"]:
    """Autoregressive coefficients from partial autocorrelations: the Durbin–Levinson recursion.

    Barndorff-Nielsen & Schou (1973, J. Multivariate Analysis 3, 408); Monahan (1984).
    """
    phi = r[..., :1]
    for k in range(1, r.shape[-1]):
        last = r[..., k : k + 1]
        phi = jnp.concatenate([phi - last * phi[..., ::-1], last], axis=-1)
    return phi


def to_partial(phi: Float[Array, "*b p"]) -> Float[Array, "*b p"]:
    """Partial autocorrelations of autoregressive coefficients; inverse of :func:`from_partial`."""
    out = []
    for _ in range(phi.shape[-1]):
        last = phi[..., -1:]
        out.append(last)
        rest = phi[..., :-1]
        phi = (rest + last * rest[..., ::-1]) / (1.0 - last**2)
    return jnp.concatenate(out[::-1], axis=-1)


class _Stationary(constraints.ParameterFreeConstraint):
    event_dim = 1

    def __call__(self, x: Any) -> Array:
        r = to_partial(jnp.asarray(x))
        return jnp.all(jnp.abs(r) < 1, axis=-1)

    def feasible_like(self, prototype: Any) -> Array:
        return jnp.zeros_like(prototype)


class _Invertible(_Stationary):
    def __call__(self, x: Any) -> Array:
        return super().__call__(-jnp.asarray(x))


stationary = _Stationary()
"""Coefficients of a stationary autoregression, in the last axis."""

invertible = _Invertible()
"""Coefficients of an invertible moving average ``e_t + theta_1 e_{t-1} + ...``, in the last axis."""


class StationaryTransform(ParameterFreeTransform):
    """Unconstrained numbers to the coefficients of a stationary autoregression."""

    domain = constraints.real_vector
    codomain = stationary
    _sign = 1.0

    def __call__(self, x: Float[Array, "*b p"]) -> Float[Array, "*b p"]:
        """``phi`` whose partial autocorrelations are ``tanh(x)``."""
        return self._sign * from_partial(jnp.tanh(x))

    def _inverse(self, y: Float[Array, "*b p"]) -> Float[Array, "*b p"]:
        return jnp.arctanh(to_partial(self._sign * y))

    def log_abs_det_jacobian(
        self, x: Float[Array, "*b p"], y: Float[Array, "*b p"], intermediates: Any = None
    ) -> Float[Array, "*b"]:
        """``log |d phi / d x|``: Barndorff-Nielsen & Schou (1973), equation (9), times that of tanh.

        A partial autocorrelation ``r_k`` adds ``r_k`` times the reversal to a vector of k - 1 coefficients:
        half of the eigenvalues of that map are ``1 - r_k``, the others ``1 + r_k``.
        """
        k = jnp.arange(x.shape[-1])
        # log(1 - tanh x) and log(1 + tanh x), without cancellation at large |x|
        minus = jnp.log(2.0) - jax.nn.softplus(2.0 * x)
        plus = jnp.log(2.0) - jax.nn.softplus(-2.0 * x)
        return jnp.sum((1 + (k + 1) // 2) * minus + (1 + k // 2) * plus, axis=-1)


class InvertibleTransform(StationaryTransform):
    """Unconstrained numbers to the coefficients of an invertible moving average."""

    codomain = invertible
    _sign = -1.0


biject_to.register(_Stationary)(lambda constraint: StationaryTransform())
biject_to.register(_Invertible)(lambda constraint: InvertibleTransform())


def multiply(a: Float[Array, " p"], b: Float[Array, " q"]) -> Float[Array, " p_plus_q_minus_1"]:
    """Product of two lag polynomials, lowest order first."""
    return jnp.convolve(a, b)


def lag_polynomial(
    coefficients: Float[Array, " p"] | None, sign: float, period: int = 1, dtype: Any = None
) -> Float[Array, " p_period_plus_1"]:
    """``1 + sign * (c_1 L^s + c_2 L^2s + ...)``, lowest order first; 1 without coefficients."""
    if coefficients is None:
        return jnp.ones(1, dtype)
    spread = jnp.zeros((len(coefficients), period), coefficients.dtype)
    spread = spread.at[:, -1].set(sign * coefficients).reshape(-1)
    return jnp.concatenate([jnp.ones(1, spread.dtype), spread])
