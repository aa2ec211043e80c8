"""The backward half of smoothing: each state given the next one, and the recursion through them.

Given the data up to t, ``x_t = m_t + G_t (x_{t+1} - m_{t+1|t}) + N(0, C_t)`` (Rauch, Tung & Striebel
1965). The smoothed covariances ``C_t + G_t P_{t+1} G_t^T`` are sums of positive semi-definite terms. The
adjoint of the likelihood gives them as ``P - P N P``, whose absolute error grows with the square of
``P``: under a prior variance of 10^7 nothing is left of it in float32, and one digit in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from statespace.chains.associative import prefix_scan
from statespace.chains.batching import batch_last
from statespace.chains.gaussian import algebra as la
from statespace.chains.gaussian.covariances import scan_moments, vmap_moments
from statespace.chains.gaussian.forward import Forward, covariances
from statespace.chains.gaussian.means import compose
from statespace.chains.gaussian.types import Chain, Form


class States(NamedTuple):
    """Smoothed means with their diffuse columns, covariances, and ``Cov(x_t, x_{t+1})``."""

    columns: Float[Array, "T n c"]
    covariance: Float[Array, "T n n"]
    lag_one: Float[Array, "S n n"]


def backward_pass(chain: Chain, run: Forward, form: Form, parallel: bool) -> States:
    """All smoothed states, from what the forward pass left."""
    last = covariances(run.gains.filtered[-1:], form)
    if run.means.filtered.shape[0] == 1:
        return States(run.means.filtered, last, jnp.zeros((0, *last.shape[1:]), last.dtype))
    gain, spread = _kernels(chain, run, form)
    if parallel:
        end = (jnp.zeros_like(gain[:1]), last)
        elements = jax.tree.map(lambda x, e: jnp.concatenate([x, e]), (gain, spread), end)
        covariance = prefix_scan(_compose_covariances, elements, reverse=True)[1]
    else:
        covariance = _sequential_covariances(gain.shape[0])(last[0], gain, spread)
    lag_one = vmap_moments(la.matmul, gain, covariance[1:])
    return States(_columns(run, gain, parallel), covariance, lag_one)


def smoothed_columns(chain: Chain, run: Forward, form: Form, parallel: bool) -> Array:
    """Smoothed means alone, with their diffuse columns."""
    if run.means.filtered.shape[0] == 1:
        return run.means.filtered
    return _columns(run, _kernels(chain, run, form)[0], parallel)


def _kernels(chain: Chain, run: Forward, form: Form) -> tuple[Array, Array]:
    """``G_t`` and ``C_t`` for every moment but the last."""
    f, g = chain.transitions, run.gains
    kernel = _kernel_sqrt if form == "sqrt" else _kernel_covariance
    return vmap_moments(kernel, g.filtered[:-1], f.matrix, f.noise, g.predicted[1:])


def _kernel_covariance(p: Array, f: Array, q: Array, ahead: Array) -> tuple[Array, Array]:
    """``G = P F^T (F P F^T + Q)^-`` and, in Joseph's form, ``(I - G F) P (I - G F)^T + G Q G^T``."""
    fp = la.matmul(f, p)
    gain = la.transpose(_solve_semidefinite(ahead, fp))
    left = la.eye(p.shape[0], p) - la.matmul(gain, f)
    return gain, la.sandwich(left, p) + la.sandwich(gain, q)


def _solve_semidefinite(s: Array, b: Array) -> Array:
    """``S^- b`` for a positive semi-definite S and b in its range."""
    n = s.shape[0]
    if n > la.UNROLLED:
        factor = jnp.linalg.cholesky(s)
        values, vectors = jnp.linalg.eigh(s)
        # the eigenvalues bound what Cholesky can do: it is better conditioned where it exists
        floor = n * jnp.finfo(s.dtype).eps * values[-1]
        inverse = jnp.where(values > floor, 1 / jnp.where(values > floor, values, 1), 0)
        singular = jnp.isnan(factor).any() | (values[0] <= floor)
        safe = jnp.where(singular, jnp.eye(n, dtype=s.dtype), factor)
        direct = la.solve_lower_t(safe, la.solve_lower(safe, b))
        return jnp.where(singular, vectors @ (inverse[:, None] * (vectors.T @ b)), direct)
    factor = la.semi_cholesky(s)
    pivots = jnp.stack([factor[i, i] for i in range(n)])
    dead = pivots == 0
    # a dead pivot has a zero column; a one in its place and a zero right-hand side skip its coordinate
    unit = la.eye(n, factor) * dead[:, None]
    z = jnp.where(dead[:, None], 0, la.solve_lower(factor + unit, jnp.where(dead[:, None], 0, b)))
    return jnp.where(dead[:, None], 0, la.solve_lower_t(factor + unit, z))


def _kernel_sqrt(u: Array, f: Array, q: Array, _: Array) -> tuple[Array, Array]:
    """The same from one triangularisation of ``[[F U, L], [U, 0]]``, which subtracts nothing.

    A coordinate that is predicted without error gets an error of the size of rounding, or of one where it is
    constant: its gain then multiplies a deviation that is zero.
    """
    n = u.shape[0]
    fu = la.matmul(f, u)
    zero = jnp.zeros_like(u)
    size = jnp.sqrt(jnp.sum(fu * fu, axis=1) + jnp.sum(q * q, axis=1))
    size = jnp.where(size > 0, jnp.finfo(u.dtype).eps * size, 1)
    rounding = la.eye(n, u) * size[:, None]
    above = jnp.concatenate([fu, q, rounding], axis=1)
    below = jnp.concatenate([u, jnp.zeros((n, q.shape[1]), u.dtype), zero], axis=1)
    full = la.tria(jnp.concatenate([above, below], axis=0))
    gain = la.transpose(la.solve_lower_t(full[:n, :n], la.transpose(full[n:, :n])))
    return gain, la.matmul_t(full[n:, n:], full[n:, n:])


@cache
def _sequential_covariances(steps: int) -> Callable:
    def run(last: Array, gain: Array, spread: Array) -> Array:
        def step(after: Array, at: tuple[Array, Array]) -> tuple[Array, Array]:
            g, c = at
            now = c + la.sandwich(g, after)
            return now, now

        batch = jnp.broadcast_shapes(last.shape[2:], gain.shape[3:], spread.shape[3:])
        last = jnp.broadcast_to(last, (*last.shape[:2], *batch))
        before = scan_moments(step, last, (gain, spread), steps, reverse=True)[1]
        return jnp.concatenate([before, last[None]])

    return batch_last(run, lambda last, gain, spread: last.shape[0] <= la.UNROLLED)


def _compose_covariances(first: tuple, second: tuple) -> tuple[Array, Array]:
    (g1, c1), (g2, c2) = first, second
    return la.matmul(g2, g1), la.sandwich(g2, c1) + c2


def _columns(run: Forward, gain: Array, parallel: bool) -> Array:
    """``m_t + G_t (x_{t+1} - m_{t+1|t})``, from the end."""
    filtered, ahead = run.means.filtered, run.means.predicted[1:]
    if not parallel:
        return _sequential_columns(gain.shape[0])(filtered[-1], gain, filtered[:-1], ahead)
    maps = jnp.concatenate([gain, jnp.zeros_like(gain[:1])])

    def solve(shift: Array) -> Array:
        return prefix_scan(compose, (maps, shift), reverse=True)[1]

    def step(g: Array, m: Array, p: Array, after: Array) -> Array:
        return m + la.matmul(g, after - p)

    start = filtered[:-1] - vmap_moments(la.matmul, gain, ahead)
    columns = solve(jnp.concatenate([start, filtered[-1:]]))
    # one round of refinement recovers what cancels in the products of gains
    gap = vmap_moments(step, gain, filtered[:-1], ahead, columns[1:]) - columns[:-1]
    return columns + solve(jnp.concatenate([gap, jnp.zeros_like(filtered[-1:])]))


@cache
def _sequential_columns(steps: int) -> Callable:
    def run(last: Array, gain: Array, filtered: Array, ahead: Array) -> Array:
        def step(after: Array, at: tuple[Array, Array, Array]) -> tuple[Array, Array]:
            g, m, p = at
            now = m + la.matmul(g, after - p)
            return now, now

        shapes = (last.shape[2:], gain.shape[3:], filtered.shape[3:], ahead.shape[3:])
        last = jnp.broadcast_to(last, (*last.shape[:2], *jnp.broadcast_shapes(*shapes)))
        before = scan_moments(step, last, (gain, filtered, ahead), steps, reverse=True)[1]
        return jnp.concatenate([before, last[None]])

    return batch_last(run, lambda last, g, m, p: max(last.shape[:2]) <= la.UNROLLED)
