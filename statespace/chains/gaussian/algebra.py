"""Linear algebra for matrices small enough to be written out.

Matrix axes come first and any batch axes last: ``(r, c, *batch)``. Up to :data:`UNROLLED` the operations
are plain multiply-adds, because XLA:CPU compiles a loop into one native kernel only when no LAPACK call or
`dot` stands in its body, and because the trailing batch axes then vectorise. Beyond it they are the library
calls, which take no trailing axes (:func:`statespace.chains.batching.batch_last` sees to that).
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from functools import partial, reduce

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array

UNROLLED = 8


def _small(*matrices: Array) -> bool:
    return all(max(a.shape[:2]) <= UNROLLED for a in matrices)


def _few(rows: int, inner: int, columns: int) -> bool:
    """Whether a product is cheaper written out than as a library call."""
    return inner <= 2 * UNROLLED and rows * inner * columns <= 2 * UNROLLED**3


def _sum(terms: Iterable[Array]) -> Array:
    return reduce(operator.add, terms)


def transpose(a: Array) -> Array:
    """``A^T``."""
    return jnp.swapaxes(a, 0, 1)


def eye(n: int, like: Array) -> Array:
    """Identity with the trailing axes (of length one) and the dtype of ``like``."""
    return jnp.eye(n, dtype=like.dtype).reshape(n, n, *(1,) * (like.ndim - 2))


def matmul(a: Array, b: Array) -> Array:
    """``A B``."""
    if not _few(a.shape[0], a.shape[1], b.shape[1]):
        return a @ b
    return _sum(a[:, j, None] * b[None, j] for j in range(a.shape[1]))


def matmul_t(a: Array, b: Array) -> Array:
    """``A B^T``."""
    if not _few(a.shape[0], a.shape[1], b.shape[0]):
        return a @ b.T
    return _sum(a[:, j, None] * b[None, :, j] for j in range(a.shape[1]))


def t_matmul(a: Array, b: Array) -> Array:
    """``A^T B``."""
    if not _few(a.shape[1], a.shape[0], b.shape[1]):
        return a.T @ b
    return _sum(a[j, :, None] * b[j, None] for j in range(a.shape[0]))


def sandwich(a: Array, p: Array) -> Array:
    """``A P A^T``, exactly symmetric."""
    return symmetric(matmul_t(matmul(a, p), a))


def symmetric(p: Array) -> Array:
    """``(P + P^T) / 2``."""
    return 0.5 * (p + transpose(p))


def cholesky(s: Array) -> Array:
    """Lower Cholesky factor of a positive definite matrix."""
    if not _small(s):
        return jnp.linalg.cholesky(s)
    return _stack(_cholesky_rows(s, lambda pivot, _: (jnp.sqrt(pivot), 1 / jnp.sqrt(pivot))))


def semi_cholesky(s: Array) -> Array:
    """A lower factor of a positive semi-definite matrix; a pivot that is rounding error counts as zero."""
    eps = jnp.finfo(s.dtype).eps * s.shape[0]

    def root(pivot: Array, diagonal: Array) -> tuple[Array, Array]:
        keep = pivot > eps * diagonal
        r = jnp.sqrt(jnp.where(keep, pivot, 1.0))
        return jnp.where(keep, r, 0.0), jnp.where(keep, 1 / r, 0.0)

    return _stack(_cholesky_rows(s, root))


def _cholesky_rows(s: Array, root) -> list[list[Array]]:
    n = s.shape[0]
    rows: list[list[Array]] = [[] for _ in range(n)]
    for j in range(n):
        pivot = s[j, j] - sum(rows[j][k] * rows[j][k] for k in range(j))
        r, inverse = root(pivot, s[j, j])
        rows[j].append(r)
        for i in range(j + 1, n):
            rows[i].append((s[i, j] - sum(rows[i][k] * rows[j][k] for k in range(j))) * inverse)
    return rows


def _stack(rows: list[list[Array]]) -> Array:
    n, zero = len(rows), jnp.zeros_like(rows[0][0])
    return jnp.stack([jnp.stack(row + [zero] * (n - len(row))) for row in rows])


def solve_lower(l: Array, b: Array) -> Array:
    """``L^{-1} B`` for lower triangular L."""
    if not _small(l):
        return solve_triangular(l, b, lower=True)
    x: list[Array] = []
    for i in range(l.shape[0]):
        x.append((b[i] - sum(l[i, k] * x[k] for k in range(i))) / l[i, i])
    return jnp.stack(x)


def solve_lower_t(l: Array, b: Array) -> Array:
    """``L^{-T} B`` for lower triangular L."""
    if not _small(l):
        return solve_triangular(l, b, lower=True, trans=1)
    n = l.shape[0]
    x: list[Array] = [b[0]] * n
    for i in reversed(range(n)):
        x[i] = (b[i] - sum(l[k, i] * x[k] for k in range(i + 1, n))) / l[i, i]
    return jnp.stack(x)


def log_diagonal(l: Array) -> Array:
    """``sum_i log L_ii``."""
    if not _small(l):
        return jnp.sum(jnp.log(jnp.diagonal(l)))
    return _sum(jnp.log(l[i, i]) for i in range(l.shape[0]))


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def tria(m: Array, seldom: bool = False) -> Array:
    """Lower triangular ``L`` with non-negative diagonal and ``L L^T = M M^T``, from one QR of ``M^T``.

    Args:
        m: ``M``.
        seldom: whether it is to be a small program rather than a fast one, and `vmap` its only batch.
    """
    r, c = m.shape[:2]
    if c < r:
        m = jnp.concatenate([m, jnp.zeros((r, r - c, *m.shape[2:]), m.dtype)], axis=1)
    if seldom and r <= 2 * UNROLLED:
        return _householder_loop(m)
    if r > UNROLLED or m.shape[1] > 3 * UNROLLED:
        factor = jnp.linalg.qr(m.T, mode="r").T
        return factor * jnp.where(jnp.diagonal(factor) < 0, -1, 1).astype(m.dtype)
    return _householder(m)


def _householder(m: Array) -> Array:
    """Reflections applied from the right, one row at a time."""
    r = m.shape[0]
    columns = []
    for i in range(r):
        head, tail = m[0, 0], m[0, 1:]
        rest = jnp.sum(tail * tail, axis=0)
        norm = jnp.sqrt(head * head + rest)
        sign = jnp.where(head < 0, -1, 1).astype(m.dtype)
        v0 = head + sign * norm
        size = v0 * v0 + rest
        beta = jnp.where(size > 0, 2 / jnp.where(size > 0, size, 1), 0)
        below = m[1:]
        w = beta * (below[:, 0] * v0 + jnp.sum(below[:, 1:] * tail[None], axis=1))
        first = -sign * (below[:, 0] - w * v0)
        columns.append(jnp.concatenate([jnp.zeros((i, *norm.shape), m.dtype), norm[None], first]))
        m = below[:, 1:] - w[:, None] * tail[None]
    return jnp.stack(columns, axis=1)


def _householder_loop(m: Array) -> Array:
    """The same reflections in a loop, each over the whole matrix."""
    r, c = m.shape
    column = jnp.arange(c)

    def reflect(i: Array, m: Array) -> Array:
        row = jnp.where(column >= i, m[i], 0)
        sign = jnp.where(m[i, i] < 0, -1, 1).astype(m.dtype)
        v = row + jnp.where(column == i, sign * jnp.sqrt(jnp.sum(row * row)), 0)
        size = jnp.sum(v * v)
        beta = jnp.where(size > 0, 2 / jnp.where(size > 0, size, 1), 0)
        return m - beta * jnp.sum(m * v, axis=1)[:, None] * v

    factor = jnp.tril(jax.lax.fori_loop(0, r, reflect, m)[:, :r])
    return factor * jnp.where(jnp.diagonal(factor) < 0, -1, 1).astype(m.dtype)


@tria.defjvp
def _tria_jvp(seldom: bool, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (m,), (dm,) = primals, tangents
    factor = tria(m, seldom)
    n = factor.shape[0]
    # L^{-1} with the directions in which L is singular left out: the derivative along them is undefined
    pivot = jnp.abs(factor[jnp.arange(n), jnp.arange(n)])
    scale = jnp.sqrt(jnp.sum(factor * factor, axis=1))
    dead = pivot <= n * jnp.finfo(m.dtype).eps * scale
    full = jnp.moveaxis(factor, (0, 1), (-2, -1))
    gone = jnp.moveaxis(dead, 0, -1)
    safe = full + gone[..., None] * jnp.eye(n, dtype=m.dtype)
    ds = jnp.moveaxis(dm, (0, 1), (-2, -1)) @ jnp.swapaxes(
        jnp.moveaxis(m, (0, 1), (-2, -1)), -1, -2
    )
    ds = ds + jnp.swapaxes(ds, -1, -2)
    solve = jax.lax.linalg.triangular_solve
    half = solve(safe, ds, left_side=True, lower=True)
    inner = solve(safe, half, left_side=False, lower=True, transpose_a=True)
    inner = jnp.where(gone[..., None] & gone[..., None, :], 0, inner)
    phi = jnp.tril(inner, -1) + 0.5 * inner * jnp.eye(n, dtype=m.dtype)
    return factor, jnp.moveaxis(safe @ phi, (-2, -1), (0, 1))
