"""The mean pass forward, and the two adjoint passes backward. All are affine recursions with known gains.

Means carry columns, shape ``(n, c)``: the first is the mean proper, the others what a unit of each diffuse
direction of the initial state adds to it.
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
from statespace.chains.gaussian.covariances import pad_last
from statespace.chains.moments import scan_moments, vmap_moments


class Means(NamedTuple):
    """Per moment: predicted mean, innovation and filtered mean, with their columns."""

    predicted: Float[Array, "T n c"]
    innovation: Float[Array, "T m c"]
    filtered: Float[Array, "T n c"]


def mean_pass(
    mean: Float[Array, "n c"],
    matrix: Float[Array, "S n n"],
    offset: Float[Array, "S n"],
    design: Float[Array, "S m n"],
    residual: Float[Array, "T m"],
    gain: Float[Array, "T n m"],
    ahead: Float[Array, "T n m"],
    parallel: bool,
) -> Means:
    """``v = r - H m``, filtered ``m + K v``, next ``F m + (F K) v + b``; r and b enter the first column only.

    Args:
        mean: of the first state, with its columns.
        matrix: ``F``.
        offset: ``b``.
        design: ``H``.
        residual: ``r``, the observation less its offset.
        gain: ``K``.
        ahead: ``F K``.
        parallel: whether to use associative scans.
    """
    run = _parallel_means if parallel else _sequential_means(residual.shape[0])
    predicted = run(mean, matrix, offset, design, residual, ahead)
    return Means(predicted, *vmap_moments(_outputs, predicted, design, residual, gain))


def first_column(x: Array, columns: int) -> Array:
    """A vector as the first of ``columns`` columns."""
    return jnp.concatenate([x[:, None]] + [jnp.zeros_like(x)[:, None]] * (columns - 1), axis=1)


def _ahead(mean: Array, f: Array, b: Array, h: Array, r: Array, fk: Array) -> Array:
    """The next predicted mean."""
    c = mean.shape[1]
    innovation = first_column(r, c) - la.matmul(h, mean)
    return la.matmul(f, mean) + first_column(b, c) + la.matmul(fk, innovation)


def _outputs(mean: Array, h: Array, r: Array, k: Array) -> tuple[Array, Array]:
    """Innovation and filtered mean."""
    innovation = first_column(r, mean.shape[1]) - la.matmul(h, mean)
    return innovation, mean + la.matmul(k, innovation)


@cache
def _sequential_means(steps: int) -> Callable:
    def run(mean: Array, f: Array, b: Array, h: Array, r: Array, fk: Array) -> Array:
        batch = jnp.broadcast_shapes(
            mean.shape[2:], f.shape[3:], b.shape[2:], h.shape[3:], r.shape[2:], fk.shape[3:]
        )
        mean = jnp.broadcast_to(mean, (*mean.shape[:2], *batch))

        def step(mean: Array, at: tuple[Array, ...]) -> tuple[Array, Array]:
            return _ahead(mean, *at), mean

        arrays = (pad_last(f, steps), pad_last(b, steps), h, r, fk)
        return scan_moments(step, mean, arrays, steps)[1]

    return batch_last(run, _is_small)


def _is_small(mean: Array, f: Array, b: Array, h: Array, r: Array, fk: Array) -> bool:
    return max(mean.shape[0], mean.shape[1], h.shape[1]) <= la.UNROLLED


def _parallel_means(mean: Array, f: Array, b: Array, h: Array, r: Array, fk: Array) -> Array:
    """Prefixes of affine maps; a second round recovers what cancels in their products."""
    if r.shape[0] == 1:
        return mean[None]
    h, r, fk = h[:-1] if len(h) > 1 else h, r[:-1], fk[:-1]
    maps = vmap_moments(lambda f, h, fk: f - la.matmul(fk, h), f, h, fk)
    maps = jnp.concatenate([jnp.zeros_like(maps[:1]), maps])

    def correction(predicted: Array) -> Array:
        ahead = vmap_moments(_ahead, predicted[:-1], f, b, h, r, fk)
        gap = jnp.concatenate([mean[None], ahead]) - predicted
        return prefix_scan(compose, (maps, gap))[1]

    return in_two_rounds(correction, jnp.zeros((len(maps), *mean.shape), mean.dtype))


def in_two_rounds(correction: Callable[[Array], Array], start: Array) -> Array:
    """``x + correction(x)``, twice."""
    once = lambda x, _: (x + correction(x), None)
    return jax.lax.scan(once, start, None, length=2)[0]


def compose(first: tuple[Array, Array], second: tuple[Array, Array]) -> tuple[Array, Array]:
    """``x -> A2 (A1 x + b1) + b2``."""
    (a1, b1), (a2, b2) = first, second
    return la.matmul(a2, a1), la.matmul(a2, b1) + b2


def compose_moments(first: tuple, second: tuple) -> tuple[Array, Array, Array]:
    """The same, with ``P -> A2 (A1 P A1^T + C1) A2^T + C2`` beside it."""
    (a1, b1, c1), (a2, b2, c2) = first, second
    return la.matmul(a2, a1), la.matmul(a2, b1) + b2, la.sandwich(a2, c1) + c2


class Adjoint(NamedTuple):
    """What the data from a moment on say about its state.

    ``mean`` is the derivative of the log likelihood with respect to the predicted mean and
    ``information`` minus its second derivative; ``mean_after`` and ``information_after`` the same for the
    filtered mean, that is, from the next moment on.
    """

    mean: Float[Array, "T n c"]
    information: Float[Array, "T n n"]
    mean_after: Float[Array, "T n c"]
    information_after: Float[Array, "T n n"]


def adjoint_pass(
    matrix: Float[Array, "S n n"],
    closed: Float[Array, "T n n"],
    pull: Float[Array, "T n c"],
    information: Float[Array, "T n n"],
    parallel: bool,
) -> Adjoint:
    """The backward recursion of the disturbance smoother (de Jong 1989; Koopman & Shephard 1992).

    ``r <- h + (I - K H)^T F^T r`` and ``N <- J + (I - K H)^T F^T N F (I - K H)``.

    Args:
        matrix: ``F``.
        closed: ``I - K H``.
        pull: ``h = H^T S^{-1} v``.
        information: ``J = H^T S^{-1} H``.
        parallel: whether to use associative scans.
    """
    steps = closed.shape[0]
    if parallel:
        return _parallel_adjoint(matrix, closed, pull, information)
    r, r_after = _sequential_pull(steps)(matrix, closed, pull)
    n, n_after = _sequential_information(steps)(matrix, closed, information)
    return Adjoint(r, n, r_after, n_after)


@cache
def _sequential_pull(steps: int) -> Callable:
    def run(f: Array, closed: Array, pull: Array) -> tuple[Array, Array]:
        def step(after: Array, at: tuple) -> tuple[Array, tuple[Array, Array]]:
            f, a, h = at
            now = h + la.t_matmul(a, after)
            return la.t_matmul(f, now), (now, after)

        batch = jnp.broadcast_shapes(f.shape[3:], closed.shape[3:], pull.shape[3:])
        zero = jnp.zeros((*pull.shape[1:3], *batch), pull.dtype)
        return scan_moments(
            step, zero, (padfirst_column(f, steps), closed, pull), steps, reverse=True
        )[1]

    return batch_last(run, lambda f, a, h: max(f.shape[1], h.shape[2]) <= la.UNROLLED)


@cache
def _sequential_information(steps: int) -> Callable:
    def run(f: Array, closed: Array, information: Array) -> tuple[Array, Array]:
        def step(after: Array, at: tuple) -> tuple[Array, tuple[Array, Array]]:
            f, a, j = at
            now = j + la.sandwich(la.transpose(a), after)
            return la.sandwich(la.transpose(f), now), (now, after)

        batch = jnp.broadcast_shapes(f.shape[3:], closed.shape[3:], information.shape[3:])
        zero = jnp.zeros((*information.shape[1:3], *batch), information.dtype)
        arrays = (padfirst_column(f, steps), closed, information)
        return scan_moments(step, zero, arrays, steps, reverse=True)[1]

    return batch_last(run, lambda f, a, j: f.shape[1] <= la.UNROLLED)


def padfirst_column(x: Array, steps: int) -> Array:
    """Transitions repeated once at the front: entry t then leads into moment t."""
    if x.shape[0] == 0:
        return jnp.zeros((1, *x.shape[1:]), x.dtype)
    if x.shape[0] == 1 or x.shape[0] == steps:
        return x
    return jnp.concatenate([x[:1], x])


def _parallel_adjoint(f: Array, closed: Array, pull: Array, information: Array) -> Adjoint:
    steps = closed.shape[0]
    if steps == 1:
        return Adjoint(pull, information, jnp.zeros_like(pull), jnp.zeros_like(information))
    back = vmap_moments(lambda a, f: la.t_matmul(a, la.transpose(f)), closed[:-1], f)
    end = jnp.zeros((1, *back.shape[1:]), back.dtype)
    maps = jnp.concatenate([back, end])  # r_t = h_t + A_t r_{t+1}
    _, r, n = prefix_scan(compose_moments, (maps, pull, information), reverse=True)
    r_after = vmap_moments(la.t_matmul, f, r[1:])
    n_after = vmap_moments(lambda f, n: la.sandwich(la.transpose(f), n), f, n[1:])
    return Adjoint(
        r,
        n,
        jnp.concatenate([r_after, jnp.zeros_like(r[:1])]),
        jnp.concatenate([n_after, jnp.zeros_like(n[:1])]),
    )
