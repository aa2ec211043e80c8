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
from statespace.parameters import as_array, parameter, replace


class SemiMarkovKernel(FiniteTransition):
    """Transitions between K states in each of which a stay has a law of duration.

    State k is a row of sub-states, entered at the first; the probabilities to go on from one to the next and
    to leave the state give a stay its law of duration.

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
    durations: Durations = eqx.field(default=None)

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
                    "`probs` must have zeros on the diagonal (or a one, of an absorbing state), as how long "
                    f"a stay lasts is what `durations` says, got {diagonal}."
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
        owner, place, onward = self._rows()
        hold, go, leave = (jnp.exp(logs)[owner, place] for logs in self.durations.log_moves())
        moves = jnp.diag(hold).at[np.arange(len(owner)), onward].add(go)
        goes = leave[:, None] * self.probs.astype(leave.dtype)[owner]
        return moves.at[:, self.entrances].add(goes)

    def m_step(self, pairs: Float[Array, "S T J J"], steps: Step) -> SemiMarkovKernel:
        """The kernel that maximises, or raises, the expected log probability of transitions.

        Args:
            pairs: expected transitions between sub-states into each moment.
            steps: the steps of those moments.
        """
        owner, place, onward = self._rows()
        moves = jnp.sum(pairs, axis=(0, 1))
        goes = moves[:, self.entrances] * np.asarray(self.possible, float)[owner]
        shape = (len(self.probs), max(self.durations.parts))
        each = lambda counts: jnp.zeros(shape, moves.dtype).at[owner, place].set(counts)
        index = np.arange(len(owner))
        ahead = jnp.where(onward > index, moves[index, onward], 0)
        durations = self.durations.m_step(
            each(jnp.diagonal(moves)), each(ahead), each(jnp.sum(goes, axis=1))
        )
        counts = jnp.zeros_like(self.probs).at[owner].add(goes.astype(self.probs.dtype))
        total = jnp.sum(counts, axis=1, keepdims=True)
        probs = jnp.where(total > 0, counts / jnp.where(total > 0, total, 1), self.probs)
        kernel = replace(self, {"probs": probs})
        return eqx.tree_at(lambda k: k.durations, kernel, durations)

    def _rows(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of each sub-state the state, its place in the row, and the sub-state that a stay goes on to."""
        owner = np.asarray(self.aggregate)
        index = np.arange(len(owner))
        place = index - self.entrances[owner]
        final = place == np.asarray(self.durations.parts)[owner] - 1
        return owner, place, np.where(final, index, index + 1)
