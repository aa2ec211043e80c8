"""Which recursion does the work: scaled probabilities, logarithms where those fail, or associative scans."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from statespace.chains.batching import batch_last, fall_back, with_care
from statespace.chains.finite import algebra, logs, scaled
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
    if parallel:
        return fall_back(partial(_from_logs, want), partial(_by_logs, want, True))
    quick = batch_last(lambda *args: _by_probabilities(want, False, *args)[0], _few)
    return with_care(_needs_check, _careful(want), quick)


@cache
def _careful(want: Want) -> Callable[..., Results]:
    """In probabilities, or in logarithms where those underflow."""
    checked = batch_last(partial(_by_probabilities, want, True), _few)
    return fall_back(checked, partial(_by_logs, want, False))


def _by_probabilities(want: Want, check: bool, *args: Array) -> tuple[Results, Array]:
    *arrays, mask = args
    chain = Chain(*arrays)
    past = scaled.forward(chain, check)
    results = Results(past.filtered, past.predicted, past.pointwise)
    if want != "filtered":
        probs, ratios = scaled.smooth(chain, past)
        results = results._replace(smoothed=probs, ratios=ratios)
    return _add_sums(results, chain, mask, want), past.extreme


def _by_logs(want: Want, parallel: bool, *args: Array) -> Results:
    *arrays, mask = args
    chain = Chain(*arrays)
    results, past, ratios = _in_logs(chain, want, parallel)
    if want == "counts":
        return results._replace(sums=logs.counts(chain, past.filtered, ratios, mask))
    if want == "slopes":
        return results._replace(sums=logs.slopes(chain, past.filtered, ratios))
    return results


def _from_logs(want: Want, *args: Array) -> tuple[Results, Array]:
    """By associative scans of logarithms, but the sums by products of probabilities."""
    *arrays, mask = args
    chain = Chain(*arrays)
    results, *_ = _in_logs(chain, want, True)
    # only the sums need more than the probabilities themselves
    failed = scaled.scarce(*chain[1:], results.predicted, results.probs)
    return _add_sums(results, chain, mask, want), failed & (want in ("counts", "slopes"))


def _few(initial: Any, *_: Any) -> bool:
    return initial.shape[0] <= algebra.FEW


def _needs_check(initial: Array, transitions: Array, potentials: Array, *_: Array) -> Array:
    return scaled.needs_check(Chain(initial, transitions, potentials))


def _checked_evidence(initial: Array, transitions: Array, potentials: Array) -> Array:
    mask = jnp.ones_like(potentials[:, 0])
    return _careful("filtered")(initial, transitions, potentials, mask).pointwise


def _quick_evidence(initial: Array, transitions: Array, potentials: Array) -> Array:
    return scaled.evidence(Chain(initial, transitions, potentials))


_evidence = with_care(_needs_check, _checked_evidence, batch_last(_quick_evidence, _few))


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


def _add_sums(found: Results, chain: Chain, mask: Array, want: Want) -> Results:
    a, left = chain.transitions, found.probs[:-1]
    if want == "counts":
        left = left * (mask[:-1] * mask[1:])[:, None]
        products = _products(left, found.ratios[1:], len(a) == 1)
        return found._replace(sums=jnp.sum(a * products, axis=0))
    if want == "slopes":
        return found._replace(sums=_products(left, found.ratios[1:], len(a) == 1))
    return found


def _products(left: Array, right: Array, summed: bool) -> Array:
    """``left_t[j] right_t[k]``, or their sum over t as one more leading axis."""
    if not summed:
        return left[:, :, None] * right[:, None]
    if left.ndim == 2:
        return (left.T @ right)[None]
    return jnp.sum(left[:, :, None] * right[:, None], axis=0, keepdims=True)
