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


def evidence(chain: Chain, parallel: bool | None = None) -> Float[Array, " T"]:
    """``log p(y_t | y_{0:t-1})``, when nothing else is asked for."""
    if use_parallel(parallel, chain):
        return run(chain, "filtered", True).pointwise
    return _evidence(*chain)


def total(pointwise: Float[Array, " T"]) -> Float[Array, ""]:
    """The log likelihood: ``-inf`` if any moment is impossible."""
    impossible = jnp.isneginf(pointwise)
    finite = compensated_sum(jnp.where(impossible, 0, pointwise))
    return jnp.where(jnp.any(impossible), -jnp.inf, finite)


@cache
def _passes(want: Want, parallel: bool) -> Callable[..., Results]:
    def robust(initial, transitions, potentials, mask) -> Results:
        chain = Chain(initial, transitions, potentials)
        results, past, ratios = _in_logs(chain, want, parallel)
        if want == "counts":
            return results._replace(sums=logs.counts(chain, past.filtered, ratios, mask))
        if want == "slopes":
            return results._replace(sums=logs.slopes(chain, past.filtered, ratios))
        return results

    def fast(initial, transitions, potentials, mask) -> tuple[Results, Array]:
        chain = Chain(initial, transitions, potentials)
        if parallel:
            results, *_ = _in_logs(chain, want, parallel)
            # only the sums need more than the probabilities themselves
            failed = scaled.scarce(transitions, potentials, results.predicted, results.probs)
            failed = failed & (want in ("counts", "slopes"))
        else:
            results, failed = _in_probabilities(chain, want)
        if want == "counts":
            results = results._replace(sums=_counts(chain, results, mask))
        elif want == "slopes":
            results = results._replace(sums=_slopes(chain, results))
        return results, failed

    return fall_back(fast, robust)


def _evidence_in_probabilities(initial, transitions, potentials) -> tuple[Array, Array]:
    return scaled.evidence(Chain(initial, transitions, potentials))


def _evidence_of_the_filter(initial, transitions, potentials) -> Array:
    return run(Chain(initial, transitions, potentials), "filtered", False).pointwise


_evidence = fall_back(_evidence_in_probabilities, _evidence_of_the_filter)


def _in_probabilities(chain: Chain, want: Want) -> tuple[Results, Array]:
    past = scaled.forward(chain)
    results = Results(past.filtered, past.predicted, past.pointwise)
    if want != "filtered":
        probs, ratios = scaled.smooth(chain, past)
        results = results._replace(smoothed=probs, ratios=ratios)
    return results, past.extreme


def _in_logs(
    chain: Chain, want: Want, parallel: bool
) -> tuple[Results, logs.Forward, Array | None]:
    past = logs.forward(chain, parallel)
    results = Results(jnp.exp(past.filtered), jnp.exp(past.predicted), past.pointwise)
    if want == "filtered":
        return results, past, None
    probs, ratios = logs.smooth(chain, past, parallel)
    results = results._replace(smoothed=jnp.exp(probs), ratios=logs.linear(ratios))
    return results, past, ratios


def _counts(chain: Chain, found: Results, mask: Array) -> Float[Array, "K K"]:
    left = found.probs[:-1] * (mask[:-1] * mask[1:])[:, None]
    right, a = found.ratios[1:], chain.transitions
    if len(a) == 1:
        return a[0] * (left.T @ right)
    return jnp.sum(left[:, :, None] * a * right[:, None, :], axis=0)


def _slopes(chain: Chain, found: Results) -> Float[Array, "S K K"]:
    left, right = found.probs[:-1], found.ratios[1:]
    if len(chain.transitions) == 1:
        return (left.T @ right)[None]
    return left[:, :, None] * right[:, None, :]
