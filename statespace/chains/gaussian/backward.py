"""The backward half of smoothing.

Two ways lead to the smoothed states, and each loses its digits where the other keeps them. The adjoint
of the likelihood gives ``P - P N P`` (de Jong 1989), whose absolute error grows with the square of
``P``: under a prior variance of 10^7 nothing is left of it in float32, and one digit in float64. The law
of each state given the next one, ``x_t = m_t + G_t (x_{t+1} - m_{t+1|t}) + N(0, C_t)`` (Rauch, Tung &
Striebel 1965), gives sums of positive terms; but ``G`` is undetermined where ``P`` is far below the noise
of the transition, as in an autoregression that is observed exactly. So the first is taken at every
moment where it does not cancel, and the second at the others.
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
from statespace.chains.gaussian.covariances import factorise_moments, root
from statespace.chains.gaussian.forward import Forward, absorb_mask, covariances, pulls
from statespace.chains.gaussian.means import Adjoint, adjoint_pass, compose, in_two_rounds
from statespace.chains.gaussian.types import Chain, Form
from statespace.chains.moments import scan_moments, vmap_moments


class States(NamedTuple):
    """Smoothed means with their diffuse columns, covariances, and ``Cov(x_t, x_{t+1})``."""

    columns: Float[Array, "T n c"]
    covariance: Float[Array, "T n n"]
    lag_one: Float[Array, "S n n"]


def backward_pass(chain: Chain, run: Forward, form: Form, parallel: bool) -> States:
    """All smoothed states, from what the forward pass left."""
    back = _adjoint(chain, run, form, parallel)
    states, trusted = _by_adjoint(chain, run, back, form)
    if run.means.filtered.shape[0] == 1:
        return states

    def mixed(states: States) -> States:
        gain, spread = _kernels(chain, run, form)
        keep = trusted[:-1, None, None]
        # where the adjoint is trusted its result stands: a kernel without gain
        used, spread = jnp.where(keep, 0, gain), jnp.where(keep, states.covariance[:-1], spread)
        covariance = _covariances(states.covariance[-1], used, spread, parallel)
        columns = jnp.where(keep, states.columns[:-1], run.means.filtered[:-1])
        columns = _columns(states.columns[-1], used, columns, run.means.predicted[1:], parallel)
        lag_one = vmap_moments(la.matmul, gain, covariance[1:])
        return States(columns, covariance, jnp.where(keep, states.lag_one, lag_one))

    return jax.lax.cond(jnp.all(trusted), lambda s: s, mixed, states)


def smoothed_columns(chain: Chain, run: Forward, form: Form, parallel: bool) -> Array:
    """Smoothed means alone, with their diffuse columns."""
    return backward_pass(chain, run, form, parallel).columns


def _adjoint(chain: Chain, run: Forward, form: Form, parallel: bool) -> Adjoint:
    pull = pulls(absorb_mask(chain, form), run)
    return adjoint_pass(
        chain.transitions.matrix, pull.closed, pull.mean, pull.information, parallel
    )


def _by_adjoint(chain: Chain, run: Forward, back: Adjoint, form: Form) -> tuple[States, Array]:
    """States from ``m + P r`` and ``P - P N P``, and whether little cancels in them, for each moment."""
    filtered = covariances(run.gains.filtered, form)
    predicted = covariances(run.gains.predicted, form)
    eps = jnp.finfo(filtered.dtype).eps
    # below this share of the predicted variance a filtered variance is nothing but rounding
    noise = 1e3 * (eps if form == "covariance" else eps**2)

    def moment(m: Array, p: Array, before: Array, r: Array, n: Array) -> tuple[Array, Array, Array]:
        covariance = p - la.sandwich(p, n)
        # the size of the terms that are subtracted; their rounding is that of the difference
        size = jnp.sum(la.matmul(jnp.abs(p), jnp.abs(n)) * jnp.abs(p).T, axis=1)
        fine = size <= eps**-0.25 * jnp.diagonal(covariance)
        nothing = jnp.diagonal(p) <= noise * jnp.diagonal(before)
        return m + la.matmul(p, r), covariance, jnp.all(fine | nothing)

    def lag(f: Array, p: Array, n: Array, following: Array) -> Array:
        pf = la.matmul_t(p, f)
        return pf - la.matmul(pf, la.matmul(n, following))

    columns, covariance, trusted = vmap_moments(
        moment,
        run.means.filtered,
        filtered,
        predicted,
        back.mean_after,
        back.information_after,
    )
    lag_one = jnp.zeros((0, *covariance.shape[1:]), covariance.dtype)
    if len(covariance) > 1:
        f = chain.transitions.matrix
        lag_one = vmap_moments(lag, f, filtered[:-1], back.information[1:], predicted[1:])
    return States(columns, covariance, lag_one), trusted


def _covariances(last: Array, gain: Array, spread: Array, parallel: bool) -> Array:
    """``C_t + G_t P_{t+1} G_t^T``, from the end."""
    if not parallel:
        return _sequential_covariances(gain.shape[0])(last, gain, spread)
    end = (jnp.zeros_like(gain[:1]), last[None])
    elements = jax.tree.map(lambda x, e: jnp.concatenate([x, e]), (gain, spread), end)
    return prefix_scan(_compose_covariances, elements, reverse=True)[1]


def _kernels(chain: Chain, run: Forward, form: Form) -> tuple[Array, Array]:
    """``G_t`` and ``C_t`` for every moment but the last."""
    f, filtered = chain.transitions, run.gains.filtered[:-1]
    noise = f.noise
    if form == "covariance":
        filtered, noise = (factorise_moments(root, x) for x in (filtered, noise))
    return factorise_moments(_kernel, filtered, f.matrix, noise)


def _kernel(u: Array, f: Array, q: Array) -> tuple[Array, Array]:
    """``G`` and ``C`` from one triangularisation of ``[[F U, L], [U, 0]]``, which subtracts nothing.

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
    full = la.tria(jnp.concatenate([above, below], axis=0), seldom=True)
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


def _columns(last: Array, gain: Array, filtered: Array, ahead: Array, parallel: bool) -> Array:
    """``m_t + G_t (x_{t+1} - m_{t+1|t})``, from the end."""
    if not parallel:
        return _sequential_columns(gain.shape[0])(last, gain, filtered, ahead)
    maps = jnp.concatenate([gain, jnp.zeros_like(gain[:1])])

    def step(g: Array, m: Array, p: Array, after: Array) -> Array:
        return m + la.matmul(g, after - p)

    def correction(columns: Array) -> Array:
        now = vmap_moments(step, gain, filtered, ahead, columns[1:])
        gap = jnp.concatenate([now, last[None]]) - columns
        return prefix_scan(compose, (maps, gap), reverse=True)[1]

    return in_two_rounds(correction, jnp.zeros((len(maps), *last.shape), last.dtype))


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
