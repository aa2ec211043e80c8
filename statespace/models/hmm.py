"""The hidden Markov model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from statespace.checks import require_shape
from statespace.conditionals import aggregates
from statespace.conditionals.finite import (
    Categorical,
    FiniteKernel,
    FiniteTransition,
    check_probabilities,
    pattern,
    sparse_simplex,
)
from statespace.parameters import as_array, parameter

STATIONARY = "stationary"


class HMM(eqx.Module):
    """A Markov chain over K states, each with its own law of the observation.

    Its parameters are ``initial_probs``, those of the transition (``transition.probs`` of a matrix) and those
    of the emission (``emission.mean`` …). Probabilities that are exactly zero stay zero when learned.

    Args:
        initial_probs: law of the first state, shape ``(K,)``; None for uniform; ``"stationary"`` for the
            stationary law of the transition matrix, which is then no parameter of its own.
        transition: probabilities, shape ``(K, K)``, row = from, column = to; or a kernel such as
            :class:`SoftmaxKernel` (driven by inputs) or :class:`RateMatrix` (irregular times).
        emission: one of ``ss.emissions``, or a function ``(state, step) -> numpyro Distribution``.
        state_names: names of the K states, for tables and plots.

    Raises:
        TypeError: if the transition or the emission is of another kind.
        ValueError: if probabilities do not sum to one, or the numbers of states differ.

    Example:
        >>> model = ss.HMM(None, [[0.9, 0.1], [0.2, 0.8]], ss.emissions.Poisson([1.0, 8.0]))

    References:
        Rabiner (1989), A tutorial on hidden Markov models; Zucchini & MacDonald (2009), Hidden Markov models
        for time series.
    """

    possible: Any = eqx.field(static=True)
    state_names: tuple[str, ...] | None = eqx.field(static=True)
    initial_probs: Float[Array, " K"] | None = parameter(
        sparse_simplex, of_owner=True, converter=None, default=None
    )
    transition: FiniteTransition = eqx.field(default=None)
    emission: Any = eqx.field(default=None)

    def __init__(
        self,
        initial_probs: Any,
        transition: Any,
        emission: Any,
        *,
        state_names: Sequence[str] | None = None,
    ):
        if isinstance(emission, type) or not callable(emission):
            raise TypeError(
                "`emission` must be one of ss.emissions, such as ss.emissions.Gaussian(mean, scale), or a "
                f"function (state, step) -> numpyro Distribution, got {emission!r}."
            )
        self.transition = _kernel(transition)
        self.emission = emission
        self.state_names = None if state_names is None else tuple(map(str, state_names))
        self.initial_probs = self._first(initial_probs)
        self.possible = None if self.initial_probs is None else pattern(self.initial_probs)
        self._check_states()

    @property
    def initial(self) -> Categorical:
        """Law of the state at the first moment."""
        kernel: Any = self.transition
        probs = self.initial_probs
        return Categorical(stationary_law(kernel.probs) if probs is None else probs)

    @property
    def observation(self) -> Any:
        """Law of the observation in each state."""
        return self.emission

    def _first(self, given: Any) -> Array | None:
        """Probabilities of the first state, None for the stationary ones."""
        if isinstance(given, str):
            if given != STATIONARY:
                raise ValueError(
                    f"`initial_probs` must be probabilities, None (uniform) or {STATIONARY!r}, got "
                    f"{given!r}."
                )
            if not isinstance(self.transition, FiniteKernel) or callable(self.transition.probs):
                raise ValueError(
                    "`initial_probs` can be stationary only where the transition is a constant matrix; give "
                    "probabilities, or None for uniform ones."
                )
            return None
        if given is None:
            states = _chain_states(self.transition) or _emission_states(self.emission)
            if states is None:
                raise ValueError(
                    "`initial_probs` must be given: neither the transition nor the emission says how many "
                    "states there are."
                )
            return jnp.full(states, 1 / states, float)
        probs = as_array(given)
        if probs.ndim != 1:
            raise ValueError(f"`initial_probs` must have shape (K,), got {probs.shape}.")
        check_probabilities("initial_probs", probs)
        return probs

    def _check_states(self) -> None:
        """The number of states of the parts must agree; parts that do not say it are not asked."""
        parts = _chain_states(self.transition)
        if self.initial_probs is not None and parts is not None:
            remedy = f"The transition is between {parts} states."
            require_shape("initial_probs", self.initial_probs, (parts,), remedy)
        parts = parts if self.initial_probs is None else len(self.initial_probs)
        states = aggregates.count(self.transition.aggregate, parts)
        seen = _emission_states(self.emission)
        if seen is not None and seen != states:
            raise ValueError(
                f"`emission` has {seen} states, but the transition is between {states}: its parameters need "
                f"a leading axis of {states}."
            )
        if self.state_names is not None and len(self.state_names) != states:
            raise ValueError(
                f"`state_names` must name the {states} states, got {len(self.state_names)}: "
                f"{self.state_names}."
            )


def stationary_law(matrix: Float[Array, "K K"]) -> Float[Array, " K"]:
    """The law that a transition matrix leaves as it is (Zucchini & MacDonald 2009, section 1.3.2).

    NaN where there is more than one.
    """
    states = len(matrix)
    system = jnp.eye(states, dtype=matrix.dtype) - matrix + 1
    return jnp.linalg.solve(system.T, jnp.ones(states, matrix.dtype))


def _kernel(transition: Any) -> FiniteTransition:
    if isinstance(transition, FiniteTransition):
        return transition
    if isinstance(transition, type) or callable(transition):
        raise TypeError(
            "`transition` must be a matrix (K, K) of probabilities or a kernel such as FiniteKernel or "
            f"SoftmaxKernel, got {transition!r}; a matrix that is a function of the step is "
            "FiniteKernel(function)."
        )
    return FiniteKernel(transition)


def _chain_states(kernel: FiniteTransition) -> int | None:
    """Number of states of the chain, where the kernel says it."""
    for name in ("probs", "logits"):
        value = getattr(kernel, name, None)
        if value is not None and not callable(value):
            return len(value)
    if kernel.aggregate is not None:
        return len(kernel.aggregate)
    return getattr(kernel, "states", None)


def _emission_states(emission: Any) -> int | None:
    states = getattr(emission, "states", None)
    return states if isinstance(states, int) else None
