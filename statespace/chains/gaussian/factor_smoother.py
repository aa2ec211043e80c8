"""Smoothed covariances in square-root form: Rauch–Tung–Striebel on factors, which never subtracts."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from statespace.chains.associative import prefix_scan
from statespace.chains.gaussian import algebra as la
from statespace.chains.gaussian.covariances import Gains, scan_moments, vmap_moments
from statespace.chains.gaussian.types import Transitions


def smoothed_covariances(
    transitions: Transitions, gains: Gains, parallel: bool
) -> tuple[Float[Array, "T n n"], Float[Array, "S n n"]]:
    """Covariances of the smoothed states, and lag-one covariances ``Cov(x_t, x_{t+1})``.

    With ``x_t = G x_{t+1} + Z e`` given the past, from one triangularisation of
    ``[[F U, L], [U, 0]]`` (Park & Kailath 1995), the factors obey ``U_t <- tria([G U_{t+1}, Z])``.
    """
    filtered = gains.filtered
    end = filtered[-1]
    if len(filtered) == 1:
        return la.matmul_t(end, end)[None], jnp.zeros((0, *end.shape), end.dtype)
    gain, rest = vmap_moments(
        _backward_kernel, filtered[:-1], transitions.matrix, transitions.noise
    )

    if parallel:

        def combine(first: tuple, second: tuple) -> tuple[Array, Array]:
            (g1, z1), (g2, z2) = first, second
            return la.matmul(g2, g1), _join(la.matmul(g2, z1), z2)

        elements = (
            jnp.concatenate([gain, jnp.zeros_like(end)[None]]),
            jnp.concatenate([rest, end[None]]),
        )
        factors = prefix_scan(combine, elements, reverse=True)[1]
    else:

        def step(u: Array, at: tuple[Array, Array]) -> tuple[Array, Array]:
            g, z = at
            u = _join(la.matmul(g, u), z)
            return u, u

        before = scan_moments(step, end, (gain, rest), len(gain), reverse=True)[1]
        factors = jnp.concatenate([before, end[None]])
    covariance = jax.vmap(la.matmul_t)(factors, factors)
    return covariance, jax.vmap(la.matmul)(gain, covariance[1:])


def _join(a: Array, b: Array) -> Array:
    """A factor of ``a a^T + b b^T``."""
    return la.tria(jnp.concatenate([a, b], axis=1))


def _backward_kernel(u: Array, f: Array, noise: Array) -> tuple[Array, Array]:
    """``G`` and ``Z`` of the law of a state given the next, from the filtered factor."""
    n = u.shape[0]
    zero = jnp.zeros((n, noise.shape[1]), u.dtype)
    top = jnp.concatenate([la.matmul(f, u), noise], axis=1)
    full = la.tria(jnp.concatenate([top, jnp.concatenate([u, zero], axis=1)]))
    predicted, cross, rest = full[:n, :n], full[n:, :n], full[n:, n:]
    # a generalised inverse on rows of unit length: states in different units keep their accuracy, and
    # directions without uncertainty drop out
    size = jnp.sqrt(jnp.sum(predicted**2, axis=1))
    inverse = 1 / jnp.where(size > 0, size, 1)
    unit = jnp.linalg.pinv(predicted * inverse[:, None], rtol=8 * n * jnp.finfo(u.dtype).eps)
    return la.matmul(cross, unit) * inverse, rest
