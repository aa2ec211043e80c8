"""Forward and backward recursions in logarithms: exact for any zeros and any potentials, and slower."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from statespace.chains.batching import fall_back
from statespace.chains.finite import algebra, associative
from statespace.chains.finite.scaled import largest
from statespace.chains.finite.types import Chain
from statespace.chains.moments import scan_moments, vmap_moments


class Forward(NamedTuple):
    """Logarithms of the laws given the past, of the potentials' weights, and of their expectations.

    ``weights`` are potentials less ``pointwise``; both are as in
    :class:`statespace.chains.finite.scaled.Forward`.
    """

    predicted: Float[Array, "T K"]
    filtered: Float[Array, "T K"]
    weights: Float[Array, "T K"]
    pointwise: Float[Array, " T"]


def move(law: Array, matrix: Array) -> Array:
    """``log(v A)`` of the logarithms of both."""
    return algebra.logsumexp(law[:, None] + matrix, axis=0)


def recall(matrix: Array, ahead: Array) -> Array:
    """``log(A v)`` of the logarithms of both."""
    return algebra.logsumexp(matrix + ahead, axis=1)


def absorb(predicted: Array, potential: Array) -> tuple[Array, Array, Array]:
    """The filtered law, the weights and the evidence of one moment; an impossible one is passed over."""
    evidence = algebra.logsumexp(predicted + potential, axis=0)
    possible = ~jnp.isneginf(evidence)
    weights = jnp.where(possible, potential - jnp.where(possible, evidence, 0), 0)
    return predicted + weights, weights, evidence


def forward(chain: Chain, parallel: bool = False) -> Forward:
    """The filter. The associative scan cannot pass over impossible moments, and gives way to the loop."""
    if parallel:
        return _scan_or_loop(*chain)
    matrices = algebra.log(chain.transitions)
    first = algebra.log(chain.initial)
    start = absorb(first, chain.potentials[0])

    def step(filtered: Array, at: tuple[Array, Array]) -> tuple[Array, tuple]:
        matrix, potential = at
        predicted = move(filtered, matrix)
        filtered, weights, evidence = absorb(predicted, potential)
        return filtered, (predicted, filtered, weights, evidence)

    later = (matrices, chain.potentials[1:])
    _, rest = scan_moments(step, start[0], later, chain.potentials.shape[0] - 1)
    return Forward(
        *(jnp.concatenate([a[None], b]) for a, b in zip((first, *start), rest, strict=True))
    )


def _loop(initial: Array, transitions: Array, potentials: Array) -> Forward:
    return forward(Chain(initial, transitions, potentials))


def _scan(initial: Array, transitions: Array, potentials: Array) -> tuple[Forward, Array]:
    matrices, first = algebra.log(transitions), algebra.log(initial)
    laws = associative.from_start(first, matrices, potentials, associative.sum_product)
    total = algebra.logsumexp(laws, axis=1)[:, None]
    laws = laws - jnp.where(jnp.isneginf(total), 0, total)
    predicted = first[None]
    if len(potentials) > 1:
        predicted = jnp.concatenate([predicted, vmap_moments(move, laws[:-1], matrices)])
    filtered, weights, evidence = jax.vmap(absorb)(predicted, potentials)
    return Forward(predicted, filtered, weights, evidence), jnp.any(jnp.isneginf(evidence))


_scan_or_loop = fall_back(_scan, _loop)


def backward(
    chain: Chain, weights: Float[Array, "T K"], parallel: bool = False
) -> Float[Array, "T K"]:
    """Logarithm of ``p(z_t | y_{0:T-1}) / p(z_t | y_{0:t})``, up to a constant per moment."""
    if parallel:
        return associative.from_end(algebra.log(chain.transitions), weights)

    def step(after: Array, at: tuple[Array, Array]) -> tuple[Array, Array]:
        matrix, weight = at
        before = recall(matrix, weight + after)
        return before, before

    last = jnp.zeros_like(weights[0])
    arrays = (algebra.log(chain.transitions), weights[1:])
    before = scan_moments(step, last, arrays, weights.shape[0] - 1, reverse=True)[1]
    return jnp.concatenate([before, last[None]])


def smooth(
    chain: Chain, run: Forward, parallel: bool = False
) -> tuple[Float[Array, "T K"], Float[Array, "T K"]]:
    """Logarithms of ``p(z_t | y_{0:T-1})`` and of its ratio to the predicted law."""
    after = backward(chain, run.weights, parallel)
    probs = run.filtered + after
    total = algebra.logsumexp(probs, axis=1)[:, None]
    total = jnp.where(jnp.isneginf(total), 0, total)
    return probs - total, run.weights + after - total


def linear(x: Array) -> Array:
    """From logarithms of probabilities or of ratios; ratios are cut off."""
    return jnp.exp(jnp.minimum(x, jnp.log(largest(x.dtype))))


def pairs(chain: Chain) -> Float[Array, "moves K K"]:
    """``P(z_t = j, z_{t+1} = k | y_{0:T-1})``."""
    past = forward(chain)
    _, ratios = smooth(chain, past)
    return jnp.exp(past.filtered[:-1, :, None] + algebra.log(chain.transitions) + ratios[1:, None])


def counts(chain: Chain, filtered: Array, ratios: Array, mask: Array) -> Float[Array, "K K"]:
    """Sum of the pairs weighted by ``mask[t] * mask[t + 1]``, given the outcome of the passes."""

    def step(total: Array, at: tuple) -> tuple[Array, None]:
        law, ratio, weight, matrix = at
        return total + weight * jnp.exp(law[:, None] + matrix + ratio), None

    matrices = algebra.log(chain.transitions)
    arrays = (filtered[:-1], ratios[1:], mask[:-1] * mask[1:], matrices)
    zero = jnp.zeros((filtered.shape[1],) * 2, filtered.dtype)
    return scan_moments(step, zero, arrays, filtered.shape[0] - 1)[0]


def slopes(chain: Chain, filtered: Array, ratios: Array) -> Float[Array, "S K K"]:
    """Derivative of the log likelihood in the transitions, given the outcome of the passes."""
    if len(chain.transitions) != 1:
        return linear(filtered[:-1, :, None] + ratios[1:, None, :])

    def step(total: Array, at: tuple) -> tuple[Array, None]:
        law, ratio = at
        return algebra.logsumexp(jnp.stack([total, law[:, None] + ratio]), axis=0), None

    nothing = jnp.full((filtered.shape[1],) * 2, -jnp.inf, filtered.dtype)
    arrays = (filtered[:-1], ratios[1:])
    return linear(scan_moments(step, nothing, arrays, filtered.shape[0] - 1)[0])[None]
