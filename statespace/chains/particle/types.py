"""What the particle recursions are given, and what they give."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
from jaxtyping import Array, Bool, Float, Int

Particles = Any
"""N states: one array ``(N, ...)``, or a pytree of them."""


class Chain(eqx.Module):
    """A Feynman–Kac model (Del Moral 2004): how particles move and what they weigh, at each of T moments.

    The functions take and give whole clouds. What differs from moment to moment is in ``moments``, of which
    each is given its own row. What is random is an input, ``random``: a PRNG key, or whatever else the given
    functions draw from, so that an algorithm can be checked by going through all of its random choices.

    Attributes:
        moments: pytree of arrays with a leading axis of T.
        start: ``(random, count, moment) -> particles``: draws at the first moment.
        weigh_start: ``(particles, moment) -> (N,)``: log weights
            ``log p(x_0) p(y_0 | x_0) / q(x_0)``.
        propose: ``(random, previous, moment) -> particles``: one draw for each of N previous states.
        weigh: ``(previous, particles, moment) -> (N,)``: ``log p(y | x') p(x' | x) / q(x' | x)`` of each
            pair; 0 where nothing was observed and the proposal is the transition.
        transition: ``(previous, particles, moment) -> (N,)``: ``log p(x' | x)`` of each pair; None where
            there is no density.
        look_ahead: ``(particles, moment) -> (N,)``: how likely each particle is to explain the next moment's
            observation, in logarithms; ancestors are then drawn accordingly and the weights corrected (the
            auxiliary particle filter, Pitt & Shephard 1999). None: ancestors are drawn by their weights.
        bound: ``(previous, moment) -> (N,)``: the greatest value of ``log p(x' | x)`` over all ``x'``, of
            each ``x``; None where it is not known. Backward draws by rejection need it.
    """

    moments: Any
    start: Callable[..., Particles]
    weigh_start: Callable[..., Array]
    propose: Callable[..., Particles]
    weigh: Callable[..., Array]
    transition: Callable[..., Array] | None = None
    look_ahead: Callable[..., Array] | None = None
    bound: Callable[..., Array] | None = None


class Random(NamedTuple):
    """Where the random choices of a run come from: each a pytree with a leading axis of T.

    Attributes:
        propose: for ``start`` (the first) and ``propose``.
        resample: for the resampling that leads to each moment; the first is not used.
        observe: for an observer.
    """

    propose: Any
    resample: Any
    observe: Any = None


class Cloud(NamedTuple):
    """Weighted particles at one moment.

    Attributes:
        particles: N states.
        log_weights: shape ``(N,)``, normalised: their exponentials sum to one.
    """

    particles: Particles
    log_weights: Float[Array, " N"]


class Passage(NamedTuple):
    """One step of the recursion, as an observer sees it.

    Attributes:
        random: the observer's own.
        before: the cloud of the previous moment, with the weights that it had before any resampling.
        ancestors: of each new particle the number of the previous one it was moved from, shape ``(N,)``.
        after: the new cloud.
        moment: the new moment's row.
    """

    random: Any
    before: Cloud
    ancestors: Int[Array, " N"]
    after: Cloud
    moment: Any


class Observer(NamedTuple):
    """What is collected on the way.

    Attributes:
        first: ``(random, cloud, moment) -> (state, out)``.
        later: ``(state, passage) -> (state, out)``.
    """

    first: Callable[..., tuple[Any, Any]]
    later: Callable[..., tuple[Any, Any]]


class Run(NamedTuple):
    """What a run of the recursion gives.

    Attributes:
        last: the cloud at the last moment.
        log_likelihood: log of an unbiased estimate of ``p(y)``; minus infinity if at some moment no particle
            could produce the observation.
        pointwise: log of the estimate of ``p(y_t | y_{<t})``, shape ``(T,)``.
        ess: effective sample size of the weights at each moment, shape ``(T,)``.
        resampled: whether ancestors were drawn on the way to each moment, shape ``(T,)``.
        impossible: at which moments no particle could produce the observation, shape ``(T,)``. Such a moment
            is passed over: weights stay as they were.
        state: the observer's state at the end, or None.
        out: what the observer gave out, with a leading axis of T, or None.
    """

    last: Cloud
    log_likelihood: Float[Array, ""]
    pointwise: Float[Array, " T"]
    ess: Float[Array, " T"]
    resampled: Bool[Array, " T"]
    impossible: Bool[Array, " T"]
    state: Any = None
    out: Any = None
