"""Forward and backward recursions in probabilities, scaled to sum to one at each moment.

They are exact as long as no state loses its weight to underflow and then becomes the only way to what
follows, which takes transition probabilities that are zero or nearly so: ``extreme`` tells, and then
:mod:`statespace.chains.finite.logs` has to do the work. For few states all arrays may have trailing batch
axes, of length one where an array is shared.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from statespace.chains.finite import algebra
from statespace.chains.finite.types import Chain
from statespace.chains.moments import scan_moments

_PAIRED = 4  # states up to which two moments at once stay within one native kernel


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
    first, later = _to_linear(chain)
    law = first.weights * chain.initial
    start = _absorb(chain.initial, first, 0)
    moved = _forward(law / _positive(algebra.total(law)), chain.transitions, later.weights)
    rest = _absorb(moved, later, 1)
    predicted = jnp.concatenate([chain.initial[None], moved])
    filtered, weights, pointwise, joint, total = (
        jnp.concatenate([a[None], b]) for a, b in zip(start, rest, strict=True)
    )
    extreme = jnp.zeros(total.shape[1:], bool)
    if check:
        extreme = jnp.any(total == 0, axis=0) | _excess(chain.initial, chain.potentials)
        extreme = extreme | scarce(chain.transitions, chain.potentials, predicted, joint)
    return Forward(predicted, filtered, weights, pointwise, extreme)


def evidence(chain: Chain) -> Float[Array, "T *d"]:
    """``pointwise`` of :func:`forward` alone, without a check."""
    chain = _full(chain)
    first, later = _to_linear(chain)
    law = first.weights * chain.initial
    start = algebra.total(law)
    totals = _totals(law / _positive(start), chain.transitions, later.weights)
    return jnp.concatenate([_evidence(start, first)[None], _evidence(totals, later)])


def needs_check(chain: Chain) -> Bool[Array, "*d"]:
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
    """Potentials on a linear scale, of the first moment or of all later ones.

    Attributes:
        weights: ``exp(potentials - height)``.
        height: the log of each moment's scale.
        void: moments at which every state is impossible; they say nothing of the states.
    """

    weights: Float[Array, "*T K"]
    height: Float[Array, "*T"]
    void: Bool[Array, "*T"]


def _to_linear(chain: Chain) -> tuple[Linear, Linear]:
    # the first moment stays apart: XLA:CPU does not vectorise what it fuses with a concatenation
    cap = jnp.log(largest(chain.potentials.dtype))
    height, void = _level(_first_height(chain.initial, chain.potentials))
    first = jnp.exp(jnp.minimum(chain.potentials[0] - height, cap)) + void
    heights, voids = _level(algebra.peak(chain.potentials[1:], axis=1))
    # a sum, because it vectorises no exponential inside a choice either
    later = jnp.exp(chain.potentials[1:] - heights[:, None]) + voids[:, None]
    return Linear(first, height, void), Linear(later, heights, voids)


def _level(peak: Array) -> tuple[Array, Array]:
    peak = jax.lax.stop_gradient(peak)
    void = jnp.isneginf(peak)
    return jnp.where(void, 0, peak), void


def _absorb(
    predicted: Array, linear: Linear, axis: int
) -> tuple[Array, Array, Array, Array, Array]:
    """Filtered law, weights over their expectation, the log of that; joint weights and their sum."""
    joint = predicted * linear.weights
    total = algebra.total(joint, axis)
    scale = jnp.expand_dims(1 / _positive(total), axis)
    return joint * scale, linear.weights * scale, _evidence(total, linear), joint, total


def _evidence(total: Array, linear: Linear) -> Array:
    return jnp.where(linear.void, -jnp.inf, algebra.log(total) + linear.height)


def _first_height(initial: Array, potentials: Array) -> Array:
    """The height of the first moment, whose states may have any prior probability: of both together."""
    return algebra.peak(algebra.log(initial) + potentials[0])


def _excess(initial: Array, potentials: Array) -> Bool[Array, "*d"]:
    """Whether a potential of the first moment is out of range."""
    height = _first_height(initial, potentials)
    above = potentials[0] - jnp.where(jnp.isneginf(height), 0, height)
    return jnp.any((initial > 0) & (above > jnp.log(largest(above.dtype))), axis=0)


def _positive(total: Array) -> Array:
    return jnp.where(total > 0, total, 1)


def _dense(transitions: Array) -> Bool[Array, "*d"]:
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
) -> Bool[Array, "*d"]:
    """Whether reachable states have so little weight that underflow may have cost some that matters.

    It may unless the transitions are dense, or all products of these weights with the smallest
    transition probability above zero are normal numbers.
    """
    least = jnp.min(transitions, axis=(0, 1, 2), initial=1, where=transitions > 0)
    alive = (predicted > 0) & ~jnp.isneginf(potentials)
    lowest = jnp.min(weight, axis=(0, 1), initial=jnp.inf, where=alive)
    return ~_dense(transitions) & (lowest < _floor(weight.dtype) / least)


def smooth(chain: Chain, run: Forward) -> tuple[Float[Array, "T K *d"], Float[Array, "T K *d"]]:
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
    if len(first) <= _PAIRED and len(transitions) == 1 and len(linear) > 1:
        return _totals_in_pairs(first, transitions[0], linear)

    def step(carry: tuple[Array, Array], at: tuple[Array, Array]) -> tuple[Any, Array]:
        joint, total = carry
        matrix, weight = at
        joint = algebra.vecmat(joint, matrix) * (1 / _positive(total)) * weight
        total = algebra.total(joint)
        return (joint, total), total

    start = (first, algebra.total(first))
    return scan_moments(step, start, (transitions, linear), len(linear))[1]


def _totals_in_pairs(first: Array, matrix: Array, linear: Array) -> Array:
    """The same, scaling at every other moment: the division takes as long as the rest of a step.

    Two moments cannot underflow: with dense transitions each has more than ``sqrt(floor)``.
    """
    pairs = linear[: len(linear) // 2 * 2].reshape(-1, 2, *linear.shape[1:])

    def step(carry: tuple[Array, Array], weights: Array) -> tuple[Any, tuple[Array, Array]]:
        joint, total = carry
        once = algebra.vecmat(joint, matrix) * (1 / _positive(total)) * weights[0]
        twice = algebra.vecmat(once, matrix) * weights[1]
        total = algebra.total(twice)
        return (twice, total), (algebra.total(once), total)

    start = (first, algebra.total(first))
    (joint, total), (one, both) = jax.lax.scan(step, start, pairs)
    totals = jnp.stack([one, both / _positive(one)], axis=1).reshape(-1, *one.shape[1:])
    if len(linear) % 2 == 0:
        return totals
    joint = algebra.vecmat(joint, matrix) * (1 / _positive(total)) * linear[-1]
    return jnp.concatenate([totals, algebra.total(joint)[None]])


def _backward(transitions: Array, weights: Array) -> Float[Array, "T K *d"]:
    """``p(z_t | y_{0:T-1}) / p(z_t | y_{0:t})``."""
    cap = largest(weights.dtype)

    def step(after: Array, at: tuple[Array, Array]) -> tuple[Array, Array]:
        matrix, weight = at
        before = algebra.matvec(matrix, jnp.minimum(weight * after, cap))
        return before, before

    last, arrays = jnp.ones_like(weights[0]), (transitions, weights[1:])
    before = scan_moments(step, last, arrays, len(weights) - 1, reverse=True)[1]
    return jnp.concatenate([before, last[None]])
