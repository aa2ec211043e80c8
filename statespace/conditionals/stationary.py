"""Stationary laws of linear dynamics, by doubling, with derivatives of every order and both modes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from statespace.conditionals.diffusion import discretise

_DOUBLINGS = 60  # sums 2^60 terms: any spectral radius that differs from 1 in float64


def discrete_lyapunov(
    matrix: Float[Array, "n n"], noise: Float[Array, "n n"]
) -> Float[Array, "n n"]:
    """The covariance ``P = F P F^T + Q`` of the stationary law of ``x_t = F x_{t-1} + e_t``.

    ``P = sum_k F^k Q F^kT``, summed by doubling (Smith 1968; Anderson & Moore 1979, section 6.7): the
    terms are positive semi-definite, so nothing cancels. ``P`` is linear in ``Q``, and its derivatives
    solve the same equation; they are taken that way, not through the iterations.

    Args:
        matrix: ``F``, with spectral radius below 1.
        noise: ``Q``, symmetric.

    Returns:
        The covariance; infinite or NaN where the spectral radius of ``F`` is not below 1, which a
        likelihood turns into a refused step.
    """
    dtype = jnp.result_type(matrix, noise)
    matrix, noise = matrix.astype(dtype), noise.astype(dtype)
    f = jax.lax.stop_gradient(matrix)

    def equation(p: Array) -> Array:
        return p - matrix @ p @ matrix.T

    p = jax.lax.custom_linear_solve(
        equation,
        noise,
        solve=lambda _, q: _sum_by_doubling(f, q),
        transpose_solve=lambda _, q: _sum_by_doubling(f.T, q),
    )
    return 0.5 * (p + p.T)


def continuous_lyapunov(
    drift: Float[Array, "n n"], diffusion: Float[Array, "..."]
) -> Float[Array, "n n"]:
    """The covariance ``A P + P A^T + G G^T = 0`` of the stationary law of ``dx = A x dt + G dW``.

    The law is also that of the process observed at intervals ``1 / ||A||``, discretised exactly.

    Args:
        drift: ``A``, with eigenvalues of negative real part.
        diffusion: ``G``, shape ``(n, k)``, or ``(n,)`` for independent noise.
    """
    size = jax.lax.stop_gradient(jnp.max(jnp.sum(jnp.abs(drift), axis=1)))
    f, _, q = discretise(drift, None, diffusion, 1.0 / jnp.where(size > 0, size, 1.0))
    return discrete_lyapunov(f, q)


def _sum_by_doubling(f: Float[Array, "n n"], q: Float[Array, "n n"]) -> Float[Array, "n n"]:
    """``sum_k F^k Q F^kT``, until a doubling adds nothing that the precision can hold."""
    eps = jnp.finfo(q.dtype).eps

    def unfinished(carry: tuple[Array, Array, Array, Array]) -> Array:
        _, _, growing, i = carry
        return growing & (i < _DOUBLINGS)

    def double(carry: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        f, p, _, i = carry
        more = f @ p @ f.T
        p = p + more
        # Terms too small to count can be followed by larger ones only while F^k still grows.
        growing = (jnp.max(jnp.abs(more)) > 0.1 * eps * jnp.max(jnp.abs(p))) | (
            jnp.max(jnp.abs(f)) > 1.0
        )
        return f @ f, p, growing & jnp.all(jnp.isfinite(p)), i + 1

    _, p, _, _ = jax.lax.while_loop(unfinished, double, (f, q, jnp.array(True), jnp.array(0)))
    return p
