"""Which recursion does the work: scaled probabilities, logarithms where those fail, or associative scans."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from statespace.chains.batching import fall_back
from statespace.chains.finite import logs, scaled
from statespace.chains.finite.types import Chain
from statespace.chains.moments import compensated_sum

Want = Literal["filtered", "smoothed", "counts", "slopes"]
_PARALLEL_TO = 32  # states up to which an accelerator gains by products of matrices


class Results(NamedTuple):
    """What the passes find; the later fields only where they are wanted.

    Attributes:
        probs: ``p(z_t | y_{0:t})``.
        predicted: ``p(z_t | y_{0:t-1})``.
        pointwise: ``log p(y_t | y_{0:t-1})``.
        smoothed: ``p(z_t | y_{0:T-1})``.
        ratios: ``smoothed / predicted``.
        sums: "counts": expected numbers of transitions ``(K, K)``, weighted by ``mask[t - 1] * mask[t]``.
            "slopes": derivative of the log likelihood in the transitions, in their shape.
    """

    probs: Float[Array, "T K"]
    predicted: Float[Array, "T K"]
    pointwise: Float[Array, " T"]
    smoothed: Float[Array, "T K"] | None = None
    ratios: Float[Array, "T K"] | None = None
    sums: Float[Array, "..."] | None = None


def use_parallel(parallel: bool | None, chain: Chain) -> bool:
    """Associative scans if asked for; if left open, on accelerators for few states."""
    if parallel is not None:
        return parallel
    return jax.default_backend() != "cpu" and chain.initial.shape[0] <= _PARALLEL_TO


def run(
    chain: Chain, want: Want, parallel: bool | None = None, mask: Float[Array, " T"] | None = None
) -> Results:
    """Run the passes that it takes. ``mask`` belongs to "counts"."""
    if mask is None:
        mask = jnp.ones_like(chain.potentials[:, 0])
    return _passes(want, use_parallel(parallel, chain))(*chain, mask)


def total(pointwise: Float[Array, " T"]) -> Float[Array, ""]:
    """The log likelihood: ``-inf`` if any moment is impossible."""
    impossible = jnp.isneginf(pointwise)
    finite = compensated_sum(jnp.where(impossible, 0, pointwise))
    return jnp.where(jnp.any(impossible), -jnp.inf, finite)


@cache
def _passes(want: Want, parallel: bool) -> Callable[..., Results]:
    def in_logs(initial, transitions, potentials, mask) -> Results:
        return _in_logs(Chain(initial, transitions, potentials), mask, want, parallel)

    def in_probabilities(initial, transitions, potentials, mask) -> tuple[Results, Array]:
        return _in_probabilities(Chain(initial, transitions, potentials), mask, want)

    return in_logs if parallel else fall_back(in_probabilities, in_logs)


def _in_probabilities(chain: Chain, mask: Array, want: Want) -> tuple[Results, Array]:
    past = scaled.forward(chain)
    results = Results(past.filtered, past.predicted, past.pointwise)
    if want == "filtered":
        return results, past.extreme
    probs, ratios = scaled.smooth(chain, past)
    results = results._replace(smoothed=probs, ratios=ratios)
    if want == "counts":
        results = results._replace(sums=_counts(chain, past.filtered, ratios, mask))
    elif want == "slopes":
        results = results._replace(sums=_slopes(chain, past.filtered, ratios))
    return results, past.extreme


def _in_logs(chain: Chain, mask: Array, want: Want, parallel: bool) -> Results:
    past = logs.forward(chain)
    results = Results(jnp.exp(past.filtered), jnp.exp(past.predicted), past.pointwise)
    if want == "filtered":
        return results
    probs, ratios = logs.smooth(chain, past)
    results = results._replace(smoothed=jnp.exp(probs), ratios=logs.linear(ratios))
    if want == "counts":
        sums = logs.counts(chain, past.filtered, ratios, mask)
        results = results._replace(sums=sums)
    elif want == "slopes":
        sums = logs.slopes(chain, past.filtered, ratios)
        results = results._replace(sums=sums)
    return results


def _counts(chain: Chain, filtered: Array, ratios: Array, mask: Array) -> Array:
    left, right, a = filtered[:-1] * (mask[:-1] * mask[1:])[:, None], ratios[1:], chain.transitions
    if len(a) == 1:
        return a[0] * (left.T @ right)
    return jnp.sum(left[:, :, None] * a * right[:, None, :], axis=0)


def _slopes(chain: Chain, filtered: Array, ratios: Array) -> Array:
    left, right = filtered[:-1], ratios[1:]
    if len(chain.transitions) == 1:
        return (left.T @ right)[None]
    return left[:, :, None] * right[:, None, :]
