"""Stationary vector autoregressions (Ansley & Kohn 1986, J. Stat. Comput. Simul. 24, 99).

The matrices ``Phi_1 … Phi_p`` of ``x_t = sum_j Phi_j x_{t-j} + e_t``, ``e_t ~ N(0, I)``, are stationary when
their partial autocorrelation matrices have singular values below 1, and every such matrix is
``(I + A A^T)^(-1/2) A`` of an unconstrained ``A``.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Bool, Float

from statespace.conditionals.stationary import discrete_lyapunov


def companion(phi: Float[Array, "p k k"]) -> Float[Array, "pk pk"]:
    """Transition matrix of ``(x_t, x_{t-1}, …, x_{t-p+1})``."""
    p, k, _ = phi.shape
    top = jnp.concatenate(list(phi), axis=1)
    return jnp.concatenate([top, jnp.eye((p - 1) * k, p * k, dtype=phi.dtype)])


def stationary_covariance(phi: Float[Array, "p k k"]) -> Float[Array, "pk pk"]:
    """Covariance of ``(x_t, …, x_{t-p+1})`` under unit innovations; not finite where not stationary."""
    p, k, _ = phi.shape
    noise = jnp.zeros((p * k, p * k), phi.dtype).at[:k, :k].set(jnp.eye(k, dtype=phi.dtype))
    return discrete_lyapunov(companion(phi), noise)


def from_partial(partial: Float[Array, "p k k"]) -> Float[Array, "p k k"]:
    """``Phi`` under unit innovations from partial autocorrelation matrices: Whittle's (1963) recursion."""
    eye = jnp.eye(partial.shape[-1], dtype=partial.dtype)
    ahead, back = eye, eye  # variances of the prediction errors, forwards and backwards in time
    phi: list[Array] = []
    psi: list[Array] = []
    for p in partial:
        root, root_back = jnp.linalg.cholesky(ahead), jnp.linalg.cholesky(back)
        last = root @ p @ _inverse(root_back)
        last_back = root_back @ p.T @ _inverse(root)
        phi, psi, ahead, back = _extend(phi, psi, last, last_back, ahead, back)
    root = jnp.linalg.cholesky(ahead)
    return jnp.stack([_inverse(root) @ f @ root for f in phi])


def to_partial(phi: Float[Array, "p k k"]) -> Float[Array, "p k k"]:
    """Partial autocorrelation matrices of ``Phi`` under unit innovations; inverse of :func:`from_partial`."""
    order, k, _ = phi.shape
    covariance = stationary_covariance(phi)
    gamma = [covariance[:k, j * k : (j + 1) * k] for j in range(order)]
    gamma.append(sum(phi[j] @ gamma[order - 1 - j] for j in range(order)))
    unit = _inverse(jnp.linalg.cholesky(gamma[0]))
    gamma = [unit @ g @ unit.T for g in gamma]
    eye = jnp.eye(k, dtype=phi.dtype)
    ahead, back = eye, eye
    fit: list[Array] = []
    fit_back: list[Array] = []
    out = []
    for s in range(order):
        rest = gamma[s + 1] - sum((fit[j] @ gamma[s - j] for j in range(s)), 0 * eye)
        last = jnp.linalg.solve(back, rest.T).T
        last_back = jnp.linalg.solve(ahead, rest).T
        root, root_back = jnp.linalg.cholesky(ahead), jnp.linalg.cholesky(back)
        out.append(_inverse(root) @ last @ root_back)
        fit, fit_back, ahead, back = _extend(fit, fit_back, last, last_back, ahead, back)
    return jnp.stack(out)


def _extend(
    phi: list[Array], psi: list[Array], last: Array, last_back: Array, ahead: Array, back: Array
) -> tuple[list[Array], list[Array], Array, Array]:
    """One more lag in the forward and the backward autoregression."""
    longer = [f - last @ b for f, b in zip(phi, psi[::-1])]
    longer_back = [b - last_back @ f for b, f in zip(psi, phi[::-1])]
    smaller = ahead - last @ back @ last.T
    smaller_back = back - last_back @ ahead @ last_back.T
    return (
        [*longer, last],
        [*longer_back, last_back],
        0.5 * (smaller + smaller.T),
        0.5 * (smaller_back + smaller_back.T),
    )


def _inverse(lower: Array) -> Array:
    return solve_triangular(lower, jnp.eye(len(lower), dtype=lower.dtype), lower=True)


def is_stationary(phi: Float[Array, "*b p k k"]) -> Bool[Array, "*b"]:
    """Whether these are the matrices of a stationary vector autoregression."""
    return jnp.all(jnp.isfinite(batched(stationary_covariance)(phi)), axis=(-2, -1))


def from_free(a: Float[Array, "*b p k k"]) -> Float[Array, "*b p k k"]:
    """``Phi`` whose partial autocorrelations are ``(I + A A^T)^(-1/2) A``."""

    def one(a: Array) -> Array:
        eye = jnp.eye(a.shape[-1], dtype=a.dtype)
        return from_partial(
            jnp.stack([_inverse(jnp.linalg.cholesky(eye + m @ m.T)) @ m for m in a])
        )

    return batched(one)(a)


def to_free(phi: Float[Array, "*b p k k"]) -> Float[Array, "*b p k k"]:
    """Inverse of :func:`from_free`."""

    def one(phi: Array) -> Array:
        eye = jnp.eye(phi.shape[-1], dtype=phi.dtype)
        partial = to_partial(phi)
        return jnp.stack([_inverse(jnp.linalg.cholesky(eye - p @ p.T)) @ p for p in partial])

    return batched(one)(phi)


def batched(function: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """The function of ``(p, k, k)`` over any leading axes."""

    def over(x: Array) -> Array:
        for _ in range(jnp.ndim(x) - 3):
            return jax.vmap(over)(x)
        return function(x)

    return over
