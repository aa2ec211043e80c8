"""What a finite chain is made of, and what inference returns. K states, T moments."""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Array, Float


class Chain(NamedTuple):
    """``p(z_0) prod p(z_t | z_{t-1})`` times a potential per moment, over states ``0, ..., K-1``.

    Attributes:
        initial: probabilities of ``z_0``.
        transitions: probabilities, row = from, column = to; entry ``t - 1`` leads into moment ``t``, and a
            leading axis of length 1 means constant in time.
        potentials: log weights of the states, ``log p(y_t | z_t = k)`` as a rule: 0 says nothing, ``-inf``
            that a state is impossible.
    """

    initial: Float[Array, " K"]
    transitions: Float[Array, "S K K"]
    potentials: Float[Array, "T K"]


class Filtered(NamedTuple):
    """Laws of the states given the past.

    Attributes:
        probs: ``p(z_t | y_{0:t})``. A moment that is impossible given its past is passed over.
        predicted: ``p(z_t | y_{0:t-1})``.
        pointwise: ``log p(y_t | y_{0:t-1})``.
        log_likelihood: their sum.
    """

    probs: Float[Array, "T K"]
    predicted: Float[Array, "T K"]
    pointwise: Float[Array, " T"]
    log_likelihood: Float[Array, ""]


class Smoothed(NamedTuple):
    """Laws of the states given all data.

    Attributes:
        probs: ``p(z_t | y_{0:T-1})``.
        ratios: ``p(z_t | y_{0:T-1}) / p(z_t | y_{0:t-1})``, also where both are zero.
        filtered: laws given the past.
    """

    probs: Float[Array, "T K"]
    ratios: Float[Array, "T K"]
    filtered: Filtered


class Counts(NamedTuple):
    """Expected sufficient statistics of the states given all data.

    Attributes:
        initial: expected indicator of each state at the first moment.
        transitions: expected number of transitions, row = from.
        occupancy: ``p(z_t | y_{0:T-1})`` at moments that count, else 0.
        log_likelihood: of all data.
    """

    initial: Float[Array, " K"]
    transitions: Float[Array, "K K"]
    occupancy: Float[Array, "T K"]
    log_likelihood: Float[Array, ""]


def length(chain: Chain) -> int:
    """Number of moments T."""
    return chain.potentials.shape[0]
