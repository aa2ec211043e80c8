"""Forward and backward recursions in probabilities, scaled to sum to one at each moment.

They are exact as long as no state loses its weight to underflow and then becomes the only way to what
follows, which takes transition probabilities that are zero or nearly so: ``extreme`` tells, and then
:mod:`statespace.chains.finite.logs` has to do the work.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from statespace.chains.batching import batch_last
from statespace.chains.finite import algebra
from statespace.chains.finite.types import Chain
from statespace.chains.moments import scan_moments


class Forward(NamedTuple):
    """Laws given the past, and what a moment's potential says of its state.

    Attributes:
        predicted: ``p(z_t | y_{0:t-1})``.
        filtered: ``p(z_t | y_{0:t})``.
        weights: the potential on a linear scale, divided by its expectation under ``predicted``.
        pointwise: the log of that expectation.
        extreme: whether weights were lost to underflow that may matter.
    """

    predicted: Float[Array, "T K"]
    filtered: Float[Array, "T K"]
    weights: Float[Array, "T K"]
    pointwise: Float[Array, " T"]
    extreme: Bool[Array, ""]


def largest(dtype: jnp.dtype) -> float:
    """Where ratios of probabilities are cut off, so that sums of them are finite."""
    info = jnp.finfo(dtype)
    return float(info.eps * info.max)


def forward(chain: Chain) -> Forward:
    """The filter. Impossible moments have ``pointwise`` ``-inf`` and are passed over."""
    initial, transitions, potentials = chain
    cap = jnp.log(largest(potentials.dtype))
    peak, excess = jax.lax.stop_gradient(_peaks(chain))
    # a moment at which every state is impossible says nothing of the states
    void = jnp.isneginf(peak)
    height = jnp.where(void, 0, peak)[:, None]
    linear = jnp.where(void[:, None], 1, jnp.exp(jnp.minimum(potentials - height, cap)))
    first = initial * linear[0]
    first = first / _positive(jnp.sum(first))
    predicted = jnp.concatenate([initial[None], _forward(first, transitions, linear[1:])])
    joint = predicted * linear
    total = jnp.sum(joint, axis=1)
    scale = 1 / _positive(total)[:, None]
    pointwise = jnp.where(void, -jnp.inf, algebra.log(total) + height[:, 0])
    lost = jnp.any(total == 0) | scarce(transitions, potentials, predicted, joint)
    return Forward(predicted, joint * scale, linear * scale, pointwise, excess | lost)


def _peaks(chain: Chain) -> tuple[Float[Array, " T"], Bool[Array, ""]]:
    """The height of each moment's potential, and whether one at the first moment is out of range.

    At the first moment, whose states may have any prior probability, it is that of prior and potential.
    """
    initial, _, potentials = chain
    first = jnp.max(algebra.log(initial) + potentials[0])
    above = jnp.where(initial > 0, potentials[0], -jnp.inf) - jnp.where(
        jnp.isneginf(first), 0, first
    )
    peaks = jnp.max(potentials, axis=1).at[0].set(first)
    return peaks, jnp.any(above > jnp.log(largest(potentials.dtype)))


def _positive(total: Array) -> Array:
    return jnp.where(total > 0, total, 1)


def scarce(
    transitions: Array, potentials: Array, predicted: Array, weight: Array
) -> Bool[Array, ""]:
    """Whether reachable states have so little weight that underflow may have cost some that matters.

    With all transition probabilities above ``sqrt(floor)`` every state is reached anew at every moment with
    more than that, and what is lost stays below rounding. Otherwise all weights of reachable states must
    be so large that their products with the smallest probability above zero are normal numbers.
    """
    info = jnp.finfo(weight.dtype)
    floor = float(info.tiny / info.eps)
    dense = jnp.all(transitions >= floor**0.5)
    least = jnp.min(transitions, initial=1, where=transitions > 0)
    alive = (predicted > 0) & ~jnp.isneginf(potentials)
    return ~dense & (jnp.min(weight, initial=jnp.inf, where=alive) < floor / least)


def backward(chain: Chain, weights: Float[Array, "T K"]) -> Float[Array, "T K"]:
    """``p(z_t | y_{0:T-1}) / p(z_t | y_{0:t})``."""
    before = _backward(chain.transitions, weights[1:])
    return jnp.concatenate([before, jnp.ones_like(weights[:1])])


def smooth(chain: Chain, run: Forward) -> tuple[Float[Array, "T K"], Float[Array, "T K"]]:
    """``p(z_t | y_{0:T-1})``, and its ratio to the predicted law."""
    after = backward(chain, run.weights)
    probs = run.filtered * after
    # one in exact arithmetic; rounding accumulates over the moments
    total = _positive(jnp.sum(probs, axis=1, keepdims=True))
    ratios = jnp.minimum(run.weights * after, largest(probs.dtype))
    return probs / total, ratios / total


def _forward_loop(first: Array, transitions: Array, linear: Array) -> Array:
    """Predicted laws from the second moment on."""
    batch = jnp.broadcast_shapes(first.shape[1:], transitions.shape[3:], linear.shape[2:])
    first = jnp.broadcast_to(first, (first.shape[0], *batch))

    def step(joint: Array, at: tuple[Array, Array]) -> tuple[Array, Array]:
        matrix, weight = at
        predicted = algebra.vecmat(joint, matrix) / _positive(jnp.sum(joint, axis=0))
        return predicted * weight, predicted

    return scan_moments(step, first, (transitions, linear), linear.shape[0])[1]


def _backward_loop(transitions: Array, weights: Array) -> Array:
    """Backward ratios up to the last moment but one."""
    batch = jnp.broadcast_shapes(transitions.shape[3:], weights.shape[2:])
    cap = largest(weights.dtype)

    def step(after: Array, at: tuple[Array, Array]) -> tuple[Array, Array]:
        matrix, weight = at
        before = algebra.matvec(matrix, jnp.minimum(weight * after, cap))
        return before, before

    last = jnp.ones((weights.shape[1], *batch), weights.dtype)
    arrays = (transitions, weights)
    return scan_moments(step, last, arrays, weights.shape[0], reverse=True)[1]


_forward = batch_last(_forward_loop, lambda first, *_: first.shape[0] <= algebra.UNROLLED)
_backward = batch_last(_backward_loop, lambda matrix, _: matrix.shape[1] <= algebra.UNROLLED)
