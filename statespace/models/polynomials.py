"""Lag polynomials, and the stationary region of their coefficients.

The coefficients ``phi`` of ``x_t = phi_1 x_{t-1} + ... + phi_p x_{t-p} + e_t`` are stationary when all their
partial autocorrelations lie in (-1, 1).
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


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


def is_stationary(phi: Float[Array, "*b p"]) -> Bool[Array, "*b"]:
    """Whether these are the coefficients of a stationary autoregression."""
    return jnp.all(jnp.abs(to_partial(phi)) < 1, axis=-1)


def is_invertible(theta: Float[Array, "*b p"]) -> Bool[Array, "*b"]:
    """Whether these are the coefficients of an invertible ``e_t + theta_1 e_{t-1} + ...``."""
    return is_stationary(-theta)


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
