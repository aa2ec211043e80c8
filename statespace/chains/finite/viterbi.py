"""The most probable path."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

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
    height = jnp.max(chain.potentials, axis=1, keepdims=True)
    potentials = chain.potentials - jnp.where(jnp.isneginf(height), 0, height)

    if use_parallel(parallel, chain):
        best = associative.from_start(first, matrices, potentials, associative.max_product)
        last = _best(best[-1])
        path = associative.trace_back(_best, last, matrices, best)
        return path, joint_log_prob(chain, path)

    def forward(best: Array, at: tuple[Array, Array]) -> tuple[Array, Array]:
        matrix, potential = at
        peak = jnp.max(best)
        moved = jnp.max(best[:, None] + matrix, axis=0)
        best = moved + (potential - jnp.where(jnp.isneginf(peak), 0, peak))
        return best, best

    steps = length(chain) - 1
    start = first + potentials[0]
    _, later = scan_moments(forward, start, (matrices, potentials[1:]), steps)
    best = jnp.concatenate([start[None], later])

    def back(state: Array, at: tuple[Array, Array]) -> tuple[Array, Array]:
        matrix, best = at
        state = _best(best + matrix[:, state])
        return state, state

    last = _best(best[-1])
    before = scan_moments(back, last, (matrices, best[:-1]), steps, reverse=True)[1]
    path = jnp.concatenate([before, last[None]])
    return path, joint_log_prob(chain, path)


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
