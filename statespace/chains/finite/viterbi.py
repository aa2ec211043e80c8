"""The most probable path."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from statespace.chains.batching import batch_last
from statespace.chains.finite import algebra, associative
from statespace.chains.finite.passes import use_parallel
from statespace.chains.finite.types import Chain, length
from statespace.chains.moments import compensated_sum, scan_moments


def viterbi(
    chain: Chain, parallel: bool | None = None
) -> tuple[Int[Array, " T"], Float[Array, ""]]:
    """The path of highest joint probability with the data, and the log of that (Viterbi 1967).

    Of equally probable paths, the one whose last state has the lowest number, then the last but one, and so
    on. If no path is possible, the value is ``-inf``. ``parallel`` as in
    :func:`statespace.chains.finite.filter`.
    """
    matrices, first = algebra.log(chain.transitions), algebra.log(chain.initial)
    potentials = chain.potentials
    if use_parallel(parallel, chain):
        best = associative.from_start(first, matrices, potentials, associative.max_product)
        last = _best(best[-1])
        path = associative.trace_back(_best, last, matrices, best)
        return path, joint_log_prob(chain, path)

    start, few = first + potentials[0], len(first) <= algebra.FEW
    last, kept = _forward(start, matrices, potentials[1:])
    # for few states the loop kept where each came from, for many the scores that tell
    arrays, before = (kept, _look_up) if few else ((matrices, kept), _recompute)
    end = _best(last)
    path = scan_moments(before, end, arrays, length(chain) - 1, reverse=True)[1]
    path = jnp.concatenate([path, end[None]])
    return path, joint_log_prob(chain, path)


def _forward_loop(start: Array, matrices: Array, potentials: Array) -> tuple[Array, Array]:
    """Scores of the best paths to each state at the last moment; and what tells the way back.

    That is the best state before each one, or where there are many states the scores of moments before the
    last. Scores are brought down by the highest of the moment before, so that they stay of order one.
    """
    batch = jnp.broadcast_shapes(start.shape[1:], matrices.shape[3:], potentials.shape[2:])
    start = jnp.broadcast_to(start, (start.shape[0], *batch))

    def step(score: Array, at: tuple[Array, Array]) -> tuple[Array, Array]:
        matrix, potential = at
        if len(score) <= algebra.FEW:
            ways = [score[j] + matrix[j] for j in range(len(score))]
            best, kept = _running_argmax(ways)
        else:
            best, kept = jnp.max(score[:, None] + matrix, axis=0), score
        peak = algebra.peak(score)
        return best + (potential - jnp.where(jnp.isneginf(peak), 0, peak)), kept

    return scan_moments(step, start, (matrices, potentials), potentials.shape[0])


_forward = batch_last(_forward_loop, lambda start, *_: len(start) <= algebra.FEW)


def _running_argmax(ways: list[Array]) -> tuple[Array, Array]:
    best, index = ways[0], jnp.zeros(ways[0].shape, jnp.int32)
    for j, way in enumerate(ways[1:], 1):
        better = way > best
        best, index = jnp.where(better, way, best), jnp.where(better, j, index)
    return best, index


def _look_up(state: Array, before: Array) -> tuple[Array, Array]:
    return before[state], before[state]


def _recompute(state: Array, at: tuple[Array, Array]) -> tuple[Array, Array]:
    matrix, score = at
    state = _best(score + matrix[:, state])
    return state, state


def _best(scores: Array) -> Array:
    return jnp.argmax(scores).astype(jnp.int32)


def joint_log_prob(chain: Chain, path: Int[Array, " T"]) -> Float[Array, ""]:
    """``log p(z_{0:T-1}, y_{0:T-1})`` of one path."""
    matrices = algebra.log(chain.transitions)
    moment = jnp.arange(length(chain) - 1) if len(matrices) > 1 else jnp.zeros(1, int)
    moves = matrices[moment, path[:-1], path[1:]]
    weights = jnp.take_along_axis(chain.potentials, path[:, None], axis=1)[:, 0]
    terms = weights + jnp.concatenate([algebra.log(chain.initial)[path[:1]], moves])
    possible = ~jnp.isneginf(terms)
    value = compensated_sum(jnp.where(possible, terms, 0))
    return jnp.where(jnp.all(possible), value, -jnp.inf)
