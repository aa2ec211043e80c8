"""Transitions in continuous time between finitely many states."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from statespace.conditionals import jump_reports
from statespace.conditionals.finite import FiniteTransition, check_square
from statespace.conditionals.generators import (
    JumpStatistics,
    expected_statistics,
    generator_of,
    transition_probabilities,
)
from statespace.model import Step
from statespace.parameters import as_array, parameter
from statespace.series import assemble

_REPEATS = 100  # of learning the rates from given transitions, where one interval stands for all
_SETTLED = 1e-4  # relative change of the rates that is not worth going on for


class RateMatrix(FiniteTransition):
    """A Markov process in continuous time: from state i it jumps to state j at the rate ``q_ij``.

    Over an interval ``dt`` the transition matrix is ``exp(Q dt)``, exact for any interval, regular or not,
    and with exact derivatives. What is learned are the rates of the jumps that are possible: a rate that is
    exactly zero stays zero, and the diagonal of the generator ``Q`` follows from the others.

    Args:
        rates: shape ``(K, K)``, row = from, column = to, per unit of time; the diagonal is not looked at.
        edges: the pairs (from, to) whose rates are to be learned; None: all where ``rates`` is not zero.

    Attributes:
        rates: shape ``(E,)``: the rates along ``edges``, the parameter.
        edges: the possible jumps, pairs (from, to).
        states: the number K of states.

    Raises:
        ValueError: if the matrix is not square, or a rate is negative or not finite.

    Example:
        >>> flip = ss.RateMatrix([[0.0, 2.0], [0.5, 0.0]])
        >>> flip.stationary_law()
        Array([0.2, 0.8], dtype=float64)

    References:
        Norris (1997), Markov Chains, chapters 2 and 3.
    """

    edges: tuple[tuple[int, int], ...] = eqx.field(static=True)
    states: int = eqx.field(static=True)
    rates: Float[Array, " E"] = parameter("positive")

    def __init__(self, rates: Any, edges: Sequence[tuple[int, int]] | None = None):
        matrix = as_array(rates)
        check_square("rates", matrix)
        self.states = len(matrix)
        _check_rates(matrix)
        self.edges = _possible(matrix) if edges is None else _checked(edges, self.states)
        self.rates = matrix[self._from, self._to]

    @classmethod
    def from_generator(cls, generator: Any) -> RateMatrix:
        """The process with this generator, whose rows must sum to zero.

        Args:
            generator: ``Q``, shape ``(K, K)``.

        Raises:
            ValueError: naming the row, if a row does not sum to zero; or as for the rates themselves.
        """
        matrix = as_array(generator)
        check_square("generator", matrix)
        if not isinstance(matrix, jax.core.Tracer):
            value = np.asarray(matrix, float)
            total = value.sum(axis=1)
            tolerance = 1e3 * float(jnp.finfo(matrix.dtype).eps) * np.abs(value).sum(axis=1)
            if np.any(np.abs(total) > tolerance):
                row = int(np.argmax(np.abs(total) > tolerance))
                right = value[row, row] - total[row]
                raise ValueError(
                    f"`generator` must have rows that sum to zero, but row {row} sums to {total[row]:.6g}: "
                    f"its diagonal entry is {value[row, row]:.6g}, and minus the sum of its rates is "
                    f"{right:.6g}. `RateMatrix(rates)` computes the diagonal."
                )
        return cls(matrix)

    @property
    def _from(self) -> np.ndarray:
        return np.array([i for i, _ in self.edges], int)

    @property
    def _to(self) -> np.ndarray:
        return np.array([j for _, j in self.edges], int)

    @property
    def generator(self) -> Float[Array, "K K"]:
        """``Q``: the rates, and on the diagonal minus the sum of each row."""
        empty = jnp.zeros((self.states, self.states), self.rates.dtype)
        return generator_of(empty.at[self._from, self._to].set(self.rates))

    def reordered(self, order: Sequence[int]) -> RateMatrix:
        """The same process with its states in another order: ``order[i]`` becomes state i."""
        place = np.argsort(order)
        edges = [(int(place[i]), int(place[j])) for i, j in self.edges]
        rows = sorted(range(len(edges)), key=edges.__getitem__)
        rates = self.rates[np.array(rows, int)]
        edges = [edges[e] for e in rows]
        return assemble(RateMatrix, edges=tuple(edges), states=self.states, rates=rates)

    def with_rates(self, rates: Float[Array, " E"]) -> RateMatrix:
        """The same possible jumps at other rates, such as a posterior draw of them."""
        return eqx.tree_at(lambda m: m.rates, self, rates)

    def matrix(self, step: Step) -> Float[Array, "K K"]:
        """Probabilities of the state at ``step`` (columns) given the one ``step.dt`` before (rows)."""
        return transition_probabilities(
            self.generator, jnp.asarray(step.dt).astype(self.rates.dtype)
        )

    def statistics(
        self, pairs: Float[Array, "S t K K"], intervals: Float[Array, "S t"]
    ) -> JumpStatistics:
        """Expected time in each state and numbers of jumps, given the laws of both ends of intervals.

        Args:
            pairs: of each interval of each recording the joint probabilities of the states at its beginning
                (rows) and at its end (columns); zero to leave it out.
            intervals: their lengths.

        Returns:
            Sums over all intervals and recordings.
        """
        flat = jnp.reshape(pairs, (-1, self.states, self.states))
        return expected_statistics(self.generator, jnp.reshape(intervals, (-1,)), flat)

    def along(self, statistics: JumpStatistics) -> tuple[Float[Array, " E"], Float[Array, " E"]]:
        """Of each possible jump how often it happened, and for how long it could have."""
        return statistics.jumps[self._from, self._to], statistics.dwell[self._from]

    def m_step(
        self,
        pairs: Float[Array, "S t K K"],
        steps: Step,
        mask: Bool[Array, "S t"] | None = None,
        prior: Any = None,
    ) -> RateMatrix:
        """Rates under which the expected transitions between the moments are more probable, plus log prior.

        An EM algorithm inside of EM: what the paths do between the moments is inferred, and the rates are
        learned from it (:meth:`learned_from`), a few times, as this costs little beside inferring the states
        at the moments.

        Args:
            pairs: joint probabilities of successive states, ``t = T - 1`` of them in each recording.
            steps: the moments that the intervals lead to; ``dt`` has shape ``(S, t)``.
            mask: False for intervals after the end of a recording.
            prior: a NumPyro ``Gamma`` for each rate, or None.
        """
        if mask is not None:
            pairs = jnp.where(mask[..., None, None], pairs, 0)
        intervals = jnp.asarray(steps.dt)
        repeats = _REPEATS if intervals.size == 1 else _REPEATS // 20

        def goes_on(carry: tuple[Array, Array, Array]) -> Array:
            i, old, new = carry
            return (i < repeats) & jnp.any(jnp.abs(new - old) > _SETTLED * old)

        def again(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
            i, _, rates = carry
            here = self.with_rates(rates)
            return i + 1, rates, here.learned_from(here.statistics(pairs, intervals), prior).rates

        start = (jnp.asarray(0), jnp.zeros_like(self.rates), self.rates)
        return self.with_rates(jax.lax.while_loop(goes_on, again, start)[2])

    def learned_from(self, statistics: JumpStatistics, prior: Any = None) -> RateMatrix:
        """The most likely rates of paths of which it is known how long they stay and how often they jump.

        ``q_ij = (jumps_ij + a - 1) / (dwell_i + b)`` for a Gamma prior of shape a and rate b; with expected
        statistics the M-step of Bladt & Sørensen (2005). A state in which no time is spent keeps its rates
        where there is no prior.

        Args:
            statistics: times and numbers of jumps, known or expected.
            prior: a NumPyro ``Gamma`` for each rate, or None.
        """
        jumps, dwell = self.along(statistics)
        shape, rate = (1.0, 0.0) if prior is None else (prior.concentration, prior.rate)
        exposure = dwell + rate
        moved = (jumps + shape - 1) / jnp.where(exposure > 0, exposure, 1)
        moved = jnp.where(exposure > 0, moved, self.rates)
        # a rate of exactly zero would have no logarithm to go on from
        return self.with_rates(jnp.maximum(moved, jnp.finfo(self.rates.dtype).tiny))

    def stationary_law(self) -> Float[Array, " K"]:
        """Probability of each state far in the future.

        Raises:
            ValueError: if it depends on the start, because several sets of states are never left.
        """
        if not isinstance(self.rates, jax.core.Tracer):
            closed = jump_reports.closed_classes(self.generator)
            if len(closed) > 1:
                raise ValueError(
                    "this RateMatrix has no unique stationary law: its states fall into the sets "
                    f"{', '.join(str(list(c)) for c in closed)}, which are never left once entered."
                )
        return jump_reports.stationary_law(self.generator)

    def relaxation_times(self) -> Float[np.ndarray, " k"]:
        """Times in which departures from the stationary law decay, the longest first, K - 1 of them."""
        return jump_reports.relaxation_times(self.generator)

    def holding_times(self) -> Float[Array, " K"]:
        """Expected time that a visit to each state lasts; infinite for a state that is never left."""
        return jump_reports.holding_times(self.generator)

    def embedded_chain(self) -> Float[Array, "K K"]:
        """Where the next jump goes: probabilities, row = from."""
        return jump_reports.embedded_chain(self.generator)

    def mean_first_passage_times(self) -> Float[Array, "K K"]:
        """Expected time from state i (row) until state j (column) is entered; infinite if it may not be."""
        return jump_reports.mean_first_passage_times(self.generator)

    def mean_first_passage_time(self, target: Any) -> Float[Array, " K"]:
        """Expected time until any of the target states is first entered, by the state at the beginning.

        Args:
            target: a state, or several.

        Raises:
            ValueError: if a target is no state.
        """
        return jump_reports.mean_first_passage_time(self.generator, self._set("target", target))

    def committor(self, source: Any, target: Any) -> Float[Array, " K"]:
        """Probability, from each state, of entering the target states before the source states.

        Args:
            source: a state, or several.
            target: a state, or several others.

        Raises:
            ValueError: if one of them is no state, or a state is in both.
        """
        ends = self._set("source", source), self._set("target", target)
        if np.any(ends[0] & ends[1]):
            raise ValueError(
                f"`source` {source} and `target` {target} of a committor must not share states."
            )
        return jump_reports.committor(self.generator, *ends)

    def flows(self) -> Float[Array, "K K"]:
        """Jumps per unit of time from each state (row) to each other one in the stationary process."""
        return jump_reports.flows(self.generator)

    def entropy_production(self) -> Float[Array, ""]:
        """How far the stationary process is from being reversible in time, in nats per unit of time."""
        return jump_reports.entropy_production(self.generator)

    def _set(self, name: str, states: Any) -> np.ndarray:
        chosen = np.atleast_1d(np.asarray(states))
        if chosen.dtype.kind not in "iu" or np.any((chosen < 0) | (chosen >= self.states)):
            raise ValueError(
                f"`{name}` must be states from 0 to {self.states - 1}, or one of them, got {states}."
            )
        mask = np.zeros(self.states, bool)
        mask[chosen] = True
        return mask


def _check_rates(matrix: Array) -> None:
    """Refuse rates that are negative or not finite, where they are known."""
    if isinstance(matrix, jax.core.Tracer):
        return
    value = np.asarray(matrix, float)
    wrong = ~(np.isfinite(value) & (value >= 0)) & ~np.eye(len(value), dtype=bool)
    if np.any(wrong):
        i, j = np.argwhere(wrong)[0]
        raise ValueError(
            f"a rate must be finite and not negative, but that from state {i} to state {j} "
            f"(row {i}) is {value[i, j]}."
        )


def _possible(matrix: Array) -> tuple[tuple[int, int], ...]:
    """The jumps whose rates are not exactly zero; all of them where the rates are traced."""
    off = ~np.eye(len(matrix), dtype=bool)
    if not isinstance(matrix, jax.core.Tracer):
        off &= np.asarray(matrix) != 0
    return tuple((int(i), int(j)) for i, j in np.argwhere(off))


def _checked(edges: Sequence[tuple[int, int]], states: int) -> tuple[tuple[int, int], ...]:
    pairs = tuple((int(i), int(j)) for i, j in edges)
    for i, j in pairs:
        if i == j or not (0 <= i < states and 0 <= j < states):
            raise ValueError(
                f"`edges` must be pairs (from, to) of two of the states 0 to {states - 1}, got {(i, j)}."
            )
    if len(set(pairs)) < len(pairs):
        raise ValueError("`edges` of RateMatrix names a jump twice.")
    return pairs
