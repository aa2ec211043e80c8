"""Laws of the states given the data."""

from __future__ import annotations

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from statespace.chains.batching import fall_back
from statespace.chains.finite import logs, passes, scaled
from statespace.chains.finite.types import Chain, Counts, Filtered, Smoothed


def filter(chain: Chain, parallel: bool | None = None) -> Filtered:
    """The forward recursion (Rabiner 1989, eq. 19-20, scaled as in its section V.A).

    Args:
        chain: the chain.
        parallel: whether to use associative scans (Hassan, Särkkä & García-Fernández 2021). None: on
            accelerators, for few states.
    """
    found = passes.run(chain, "filtered", parallel)
    return _filtered(found)


def smooth(chain: Chain, parallel: bool | None = None) -> Smoothed:
    """The forward and the backward recursion (Rabiner 1989, eq. 24-27). ``parallel`` as in :func:`filter`."""
    found = passes.run(chain, "smoothed", parallel)
    return Smoothed(found.smoothed, found.ratios, _filtered(found))


def _filtered(found: passes.Results) -> Filtered:
    return Filtered(found.probs, found.predicted, found.pointwise, passes.total(found.pointwise))


def pairs(chain: Chain, smoothed: Smoothed) -> Float[Array, "moves K K"]:
    """``P(z_t = j, z_{t+1} = k | y_{0:T-1})`` for t from 0 to T-2 (Rabiner 1989, eq. 37)."""
    filtered = smoothed.filtered
    return _pairs(*chain, filtered.probs, filtered.predicted, smoothed.ratios)


def _pairs_of_probabilities(initial, transitions, potentials, probs, predicted, ratios):
    out = probs[:-1, :, None] * transitions * ratios[1:, None, :]
    return out, scaled.scarce(transitions, potentials, predicted, probs)


def _pairs_of_logs(initial, transitions, potentials, *_):
    chain = Chain(initial, transitions, potentials)
    return logs.pairs(chain)


_pairs = fall_back(_pairs_of_probabilities, _pairs_of_logs)


def expected_counts(
    chain: Chain, mask: Bool[Array, " T"] | None = None, parallel: bool | None = None
) -> Counts:
    """The expected sufficient statistics: the E-step of Baum & Welch (Rabiner 1989, eq. 38-39).

    Args:
        chain: the chain.
        mask: moments that count, for recordings that are padded; a transition counts if both its ends do.
            The potentials of the others must be 0. None: all.
        parallel: as in :func:`filter`.
    """
    weight = None if mask is None else jnp.asarray(mask, chain.potentials.dtype)
    found = passes.run(chain, "counts", parallel, weight)
    occupancy = found.smoothed if weight is None else found.smoothed * weight[:, None]
    return Counts(occupancy[0], found.sums, occupancy, passes.total(found.pointwise))
