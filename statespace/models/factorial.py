"""Factorial hidden Markov models: several independent chains behind one observation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import numpy as np

from statespace.conditionals.factorial import FactorialKernel, product
from statespace.conditionals.finite import Categorical


class FactorialHMM(eqx.Module):
    """Several hidden chains that move independently and are seen through one observation.

    A state is a tuple of one state of each chain, numbered with the last chain running fastest;
    ``posterior.factor(i)`` is the posterior of chain i. Exact: the work grows with the square of the product
    of the numbers of states.

    Args:
        initial_probs: for each chain the probabilities of its first state, shape ``(K_i,)``.
        transitions: for each chain a matrix ``(K_i, K_i)``, or any transition of a finite state but one with
            explicit durations.
        emission: the law of the observation in each tuple of states: ``emissions.AdditiveGaussian`` or
            ``emissions.AdditivePoisson``, another emission of ``K_0 K_1 …`` states, or any function
            ``(state, step) -> Distribution`` of the number of the tuple.

    Raises:
        ValueError: if there are not as many initial laws as chains, or their shapes do not fit.

    References:
        Ghahramani & Jordan (1997), Factorial hidden Markov models.

    Example:
        >>> sticky = [[0.95, 0.05], [0.05, 0.95]]
        >>> model = ss.FactorialHMM(
        ...     initial_probs=[[0.5, 0.5], [0.5, 0.5]],
        ...     transitions=[sticky, sticky],
        ...     emission=ss.emissions.AdditiveGaussian([[0.0, 1.0], [0.0, 2.5]], scale=0.3),
        ... )
    """

    initial_probs: tuple[Categorical, ...]
    transition: FactorialKernel
    emission: Any

    def __init__(self, initial_probs: Sequence[Any], transitions: Sequence[Any], emission: Any):
        self.initial_probs = tuple(
            p if isinstance(p, Categorical) else Categorical(p) for p in initial_probs
        )
        self.transition = FactorialKernel(transitions)
        self.emission = emission
        given = tuple(len(p.probs) for p in self.initial_probs)
        if given != self.transition.sizes:
            raise ValueError(
                f"`initial_probs` are of chains of {given} states, but `transitions` of chains of "
                f"{self.transition.sizes}: give one law for each chain."
            )
        states = int(np.prod(self.transition.factors))
        if getattr(emission, "states", states) != states:
            raise ValueError(
                f"`emission` is of {emission.states} states, but the chains have "
                f"{' x '.join(map(str, given))} = {states} tuples of states."
            )

    @property
    def initial(self) -> Categorical:
        """Law of the first tuple of states, which are independent."""
        return Categorical(product([p.probs for p in self.initial_probs]))

    @property
    def observation(self) -> Any:
        """Law of the observation in each tuple of states."""
        return self.emission
