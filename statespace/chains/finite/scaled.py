"""Forward and backward recursions in probabilities, scaled to sum to one at each moment.

They are exact as long as no state loses its weight to underflow and then becomes the only way to what
follows, which takes transition probabilities that are zero or nearly so: ``extreme`` tells, and then
:mod:`statespace.chains.finite.logs` has to do the work. For few states all arrays may have trailing batch
axes, of length one where an array is shared.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

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


def forward(chain: Chain, check: bool) -> Forward:
    """The filter. Impossible moments have ``pointwise`` ``-inf`` and are passed over.

    ``extreme`` is found out only if ``check``; it can be true only where :func:`needs_check`.
    """
    chain = _full(chain)
    linear = _to_linear(chain)
    later = _forward(linear.first, chain.transitions, linear.later)
    predicted = jnp.concatenate([chain.initial[None], later])
    joint = predicted * linear.weights
    total = algebra.total(joint, axis=1)
    scale = (1 / _positive(total))[:, None]
    pointwise = jnp.where(linear.void, -jnp.inf, algebra.log(total) + linear.height)
    extreme = jnp.zeros(total.shape[1:], bool)
    if check:
        extreme = jnp.any(total == 0, axis=0) | _excess(chain.initial, chain.potentials)
        extreme = extreme | scarce(chain.transitions, chain.potentials, predicted, joint)
    return Forward(predicted, joint * scale, linear.weights * scale, pointwise, extreme)


def evidence(chain: Chain) -> Float[Array, " T"]:
    """``pointwise`` of :func:`forward` alone, without a check."""
    chain = _full(chain)
    linear = _to_linear(chain)
    start = algebra.total(chain.initial * linear.weights[0])
    later = _totals(linear.first, chain.transitions, linear.later)
    totals = algebra.log(jnp.concatenate([start[None], later]))
    return jnp.where(linear.void, -jnp.inf, totals + linear.height)


def needs_check(chain: Chain) -> Bool[Array, ""]:
    """Whether underflow can cost anything: known before the recursion is run."""
    return ~_dense(chain.transitions) | _excess(chain.initial, chain.potentials)


def _full(chain: Chain) -> Chain:
    """The chain with all its trailing batch axes on the law and the potentials."""
    initial, transitions, potentials = chain
    batch = jnp.broadcast_shapes(initial.shape[1:], transitions.shape[3:], potentials.shape[2:])
    size = initial.shape[:1]
    potentials = jnp.broadcast_to(potentials, (len(potentials), *size, *batch))
    return Chain(jnp.broadcast_to(initial, (*size, *batch)), transitions, potentials)


class Linear(NamedTuple):
    """The potentials on a linear scale.

    Attributes:
        weights: ``exp(potentials - height)``.
        later: those from the second moment on.
        first: the filtered law of the first moment.
        height: the log of each moment's scale.
        void: moments at which every state is impossible; they say nothing of the states.
    """

    weights: Float[Array, "T K"]
    later: Float[Array, "T-1 K"]
    first: Float[Array, " K"]
    height: Float[Array, " T"]
    void: Bool[Array, " T"]


def _to_linear(chain: Chain) -> Linear:
    initial, _, potentials = chain
    cap = jnp.log(largest(potentials.dtype))
    prior = _first_height(initial, potentials)
    peaks = jnp.concatenate([prior[None], algebra.peak(potentials[1:], axis=1)])
    peaks = jax.lax.stop_gradient(peaks)
    void = jnp.isneginf(peaks)
    height = jnp.where(void, 0, peaks)
    first = jnp.exp(jnp.minimum(potentials[0] - height[0], cap)) + void[0]
    # a sum, because XLA:CPU vectorises no exponential inside a choice
    later = jnp.exp(potentials[1:] - height[1:, None]) + void[1:, None]
    law = initial * first
    law = law / _positive(algebra.total(law))
    return Linear(jnp.concatenate([first[None], later]), later, law, height, void)


def _first_height(initial: Array, potentials: Array) -> Array:
    """The height of the first moment, whose states may have any prior probability: of both together."""
    return algebra.peak(algebra.log(initial) + potentials[0])


def _excess(initial: Array, potentials: Array) -> Bool[Array, ""]:
    """Whether a potential of the first moment is out of range."""
    height = _first_height(initial, potentials)
    above = potentials[0] - jnp.where(jnp.isneginf(height), 0, height)
    return jnp.any((initial > 0) & (above > jnp.log(largest(above.dtype))), axis=0)


def _positive(total: Array) -> Array:
    return jnp.where(total > 0, total, 1)


def _dense(transitions: Array) -> Bool[Array, ""]:
    """Whether every state is reached from every other with a probability well above underflow.

    With all of them above ``sqrt(floor)``, what is lost stays below rounding.
    """
    return jnp.all(transitions >= _floor(transitions.dtype) ** 0.5, axis=(0, 1, 2))


def _floor(dtype: jnp.dtype) -> float:
    """Numbers above it keep their precision when some are added that underflow."""
    info = jnp.finfo(dtype)
    return float(info.tiny / info.eps)


def scarce(
    transitions: Array, potentials: Array, predicted: Array, weight: Array
) -> Bool[Array, ""]:
    """Whether reachable states have so little weight that underflow may have cost some that matters.

    It may unless the transitions are dense, or all products of these weights with the smallest
    transition probability above zero are normal numbers.
    """
    least = jnp.min(transitions, axis=(0, 1, 2), initial=1, where=transitions > 0)
    alive = (predicted > 0) & ~jnp.isneginf(potentials)
    lowest = jnp.min(weight, axis=(0, 1), initial=jnp.inf, where=alive)
    return ~_dense(transitions) & (lowest < _floor(weight.dtype) / least)


def smooth(chain: Chain, run: Forward) -> tuple[Float[Array, "T K"], Float[Array, "T K"]]:
    """``p(z_t | y_{0:T-1})``, and its ratio to the predicted law."""
    after = _backward(chain.transitions, run.weights)
    probs = run.filtered * after
    # one in exact arithmetic; rounding accumulates over the moments
    total = _positive(algebra.total(probs, axis=1))[:, None]
    ratios = jnp.minimum(run.weights * after, largest(probs.dtype))
    return probs / total, ratios / total


def _forward(first: Array, transitions: Array, linear: Array) -> Array:
    """Predicted laws from the second moment on."""

    def step(joint: Array, at: tuple[Array, Array]) -> tuple[Array, Array]:
        matrix, weight = at
        scale = 1 / _positive(algebra.total(joint))
        predicted = algebra.vecmat(joint, matrix) * scale
        return predicted * weight, predicted

    return scan_moments(step, first, (transitions, linear), linear.shape[0])[1]


def _totals(first: Array, transitions: Array, linear: Array) -> Array:
    """Expectations of the weights under the predicted laws, from the second moment on."""

    def step(joint: Array, at: tuple[Array, Array]) -> tuple[Array, Array]:
        matrix, weight = at
        total = algebra.total(joint)
        return algebra.vecmat(joint, matrix) * (1 / _positive(total)) * weight, total

    last, totals = scan_moments(step, first, (transitions, linear), linear.shape[0])
    return jnp.concatenate([totals, algebra.total(last)[None]])[1:]


def _backward(transitions: Array, weights: Array) -> Float[Array, "T K"]:
    """``p(z_t | y_{0:T-1}) / p(z_t | y_{0:t})``."""
    cap = largest(weights.dtype)

    def step(after: Array, at: tuple[Array, Array]) -> tuple[Array, Array]:
        matrix, weight = at
        before = algebra.matvec(matrix, jnp.minimum(weight * after, cap))
        return before, before

    last, arrays = jnp.ones_like(weights[0]), (transitions, weights[1:])
    before = scan_moments(step, last, arrays, len(weights) - 1, reverse=True)[1]
    return jnp.concatenate([before, last[None]])
