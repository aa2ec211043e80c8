"""Paths drawn from their posterior law."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from statespace.chains.batching import fall_back
from statespace.chains.finite import algebra, associative, logs, passes, scaled
from statespace.chains.finite.passes import use_parallel
from statespace.chains.finite.types import Chain, length
from statespace.chains.moments import scan_moments


def sample(
    chain: Chain, key: Key[Array, ""], draws: int, parallel: bool | None = None
) -> Int[Array, "draws T"]:
    """Paths drawn from ``p(z_{0:T-1} | y_{0:T-1})`` by backward sampling (Chib 1996).

    Args:
        chain: the chain.
        key: a PRNG key.
        draws: number of paths.
        parallel: as in :func:`statespace.chains.finite.filter`.
    """
    uniforms = jax.random.uniform(key, (draws, length(chain)), chain.potentials.dtype)
    return paths(chain, uniforms, parallel)


def paths(
    chain: Chain, uniforms: Float[Array, "draws T"], parallel: bool | None = None
) -> Int[Array, "draws T"]:
    """:func:`sample` given its random numbers.

    The distribution function of each state, from the last moment to the first, is inverted at them.
    """
    if use_parallel(parallel, chain):
        return _composed(*chain, uniforms)
    return _paths(*chain, uniforms)


def _of_probabilities(initial, transitions, potentials, uniforms):
    found = passes.run(Chain(initial, transitions, potentials), "filtered", False)

    def back(state: Array, at: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        matrix, law, u = at
        state = choose(law * matrix.T[state], u)
        return state, state

    last = choose(found.probs[-1], uniforms[:, -1])
    out = _backward(back, last, transitions, found.probs, uniforms)
    return out, scaled.scarce(transitions, potentials, found.predicted, found.probs)


def _of_logs(initial, transitions, potentials, uniforms):
    past = logs.forward(Chain(initial, transitions, potentials))

    def back(state: Array, at: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        matrix, law, u = at
        state = choose(_to_linear(law + matrix.T[state]), u)
        return state, state

    last = choose(_to_linear(past.filtered[-1]), uniforms[:, -1])
    return _backward(back, last, algebra.log(transitions), past.filtered, uniforms)


def _backward(back, last: Array, matrices: Array, laws: Array, uniforms: Array) -> Array:
    arrays = (matrices, laws[:-1], uniforms.T[:-1])
    before = scan_moments(back, last, arrays, uniforms.shape[1] - 1, reverse=True)[1]
    return jnp.concatenate([before, last[None]]).T


def _composed(initial, transitions, potentials, uniforms):
    past = logs.forward(Chain(initial, transitions, potentials), True)
    matrices = algebra.log(transitions)

    def pick(x: Array, u: Array) -> Array:
        return choose(_to_linear(x), u)

    def path(u: Array) -> Array:
        last = pick(past.filtered[-1], u[-1])
        return associative.trace_back(pick, last, matrices, past.filtered, u)

    return jax.vmap(path)(uniforms)


_paths = fall_back(_of_probabilities, _of_logs)


def choose(weights: Float[Array, "*#d K"], u: Float[Array, "*#d"]) -> Int[Array, "..."]:
    """The state at which the distribution function of the weights passes u; never one of weight zero."""
    below = jnp.cumsum(weights, axis=-1)
    whole = below[..., -1:]
    before = (below <= u[..., None] * whole) & (below < whole)
    return jnp.sum(before, axis=-1, dtype=jnp.int32)


def _to_linear(x: Array) -> Array:
    peak = jnp.max(x, axis=-1, keepdims=True)
    return jnp.exp(x - jnp.where(jnp.isneginf(peak), 0, peak))
