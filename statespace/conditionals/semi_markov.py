"""Transitions with explicit durations, as a chain of sub-states."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from statespace.conditionals.finite import (
    FiniteTransition,
    check_probabilities,
    check_square,
    pattern,
    sparse_simplex,
)
from statespace.durations import Durations
from statespace.model import Step
from statespace.parameters import as_array, parameter


class SemiMarkovKernel(FiniteTransition):
    """Transitions between K states in each of which a stay has a law of duration.

    State k is a row of sub-states, entered at the first; from the i-th it goes on to the next, or leaves
    the state, with probability ``P(duration = i | duration >= i)``.

    Args:
        probs: where a state that is left goes, shape ``(K, K)``, row = from, rows summing to one, with zeros
            on the diagonal; a diagonal entry of one makes a state absorbing. An entry that is exactly zero
            stays zero when the matrix is learned.
        durations: the law of the duration of a stay in each state: one of :mod:`statespace.durations`.

    Raises:
        ValueError: if the matrix is not square, a row is no probability distribution or its diagonal entry
            is neither zero nor one, or the durations are of another number of states.

    References:
        Langrock & Zucchini (2011), Hidden Markov models with arbitrary state dwell-time distributions.
    """

    possible: Any = eqx.field(static=True)
    probs: Float[Array, "K K"] = parameter(sparse_simplex, of_owner=True)
    durations: Durations

    def __init__(self, probs: Any, durations: Durations):
        self.probs, self.durations = as_array(probs), durations
        check_square("probs", self.probs)
        check_probabilities("probs", self.probs)
        if not isinstance(durations, Durations):
            raise TypeError(
                "`durations` must be one of statespace.durations, such as durations.Poisson(rate, maximum), "
                f"got {type(durations).__name__}."
            )
        if not isinstance(self.probs, jax.core.Tracer):
            diagonal = np.diagonal(np.asarray(self.probs))
            if np.any((diagonal != 0) & (diagonal != 1)):
                raise ValueError(
                    "`probs` must have zeros on the diagonal (or a one, of an absorbing state), as the length "
                    f"of a stay is what `durations` says, got {diagonal}."
                )
        states = len(durations.parts)
        if states != len(self.probs):
            raise ValueError(
                f"`durations` are of {states} states, but `probs` is over {len(self.probs)}."
            )
        self.possible = pattern(self.probs)

    @property
    def aggregate(self) -> tuple[int, ...]:
        """Of which state each sub-state is a part."""
        return tuple(k for k, size in enumerate(self.durations.parts) for _ in range(size))

    @property
    def entrances(self) -> np.ndarray:
        """The first sub-state of each state, shape ``(K,)``."""
        return np.cumsum((0, *self.durations.parts[:-1]))

    def matrix(self, step: Step) -> Float[Array, "J J"]:
        """Probabilities of the next sub-state (columns) given the previous one (rows)."""
        owner, entrances = np.asarray(self.aggregate), self.entrances
        place = np.arange(len(owner)) - entrances[owner]
        leave, stay = (jnp.exp(logs)[owner, place] for logs in self.durations.log_hazards())
        final = place == np.asarray(self.durations.parts)[owner] - 1
        onward = np.where(final, np.arange(len(owner)), np.arange(len(owner)) + 1)
        moves = jnp.zeros((len(owner), len(owner)), leave.dtype)
        moves = moves.at[np.arange(len(owner)), onward].set(stay)
        return moves.at[:, entrances].add(leave[:, None] * self.probs.astype(leave.dtype)[owner])
