"""Hidden semi-Markov models."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from statespace.conditionals.finite import (
    Categorical,
    check_probabilities,
    pattern,
    sparse_simplex,
)
from statespace.conditionals.semi_markov import SemiMarkovKernel
from statespace.durations import Durations
from statespace.parameters import as_array, parameter


class HiddenSemiMarkov(eqx.Module):
    """A hidden chain whose stays have explicit laws of duration.

    Exact: each state stands for a row of sub-states (Langrock & Zucchini 2011), and all methods for finite
    states apply. Observations, soft labels and results are of the K states; ``posterior.parts`` is the
    posterior of the sub-states, which know how long the stay has lasted. At the first moment a stay begins.

    Args:
        initial_probs: probabilities of the first state, shape ``(K,)``.
        transition: where a state that is left goes, shape ``(K, K)``, with zeros on the diagonal; a row with
            a one on the diagonal is an absorbing state.
        durations: the law of the duration of a stay in each state: one of :mod:`statespace.durations`.
        emission: the law of the observation in each state: one of :mod:`statespace.emissions`, or any
            function ``(state, step) -> Distribution``.
        state_names: names of the states.

    Raises:
        ValueError: if shapes do not fit, or probabilities do not sum to one.

    Example:
        >>> model = ss.HiddenSemiMarkov(
        ...     initial_probs=[0.5, 0.5],
        ...     transition=[[0.0, 1.0], [1.0, 0.0]],
        ...     durations=ss.durations.NegativeBinomial([9.0, 4.0], [5.0, 5.0], maximum=30),
        ...     emission=ss.emissions.Gaussian(mean=[0.0, 2.0], scale=[1.0, 1.0]),
        ... )
    """

    possible: Any = eqx.field(static=True)
    initial_probs: Float[Array, " K"] = parameter(sparse_simplex, of_owner=True)
    transition: SemiMarkovKernel = eqx.field(default=None)
    emission: Any = eqx.field(default=None)
    state_names: tuple[str, ...] | None = eqx.field(static=True, default=None)

    def __init__(
        self,
        initial_probs: Any,
        transition: Any,
        durations: Durations,
        emission: Any,
        state_names: Any = None,
    ):
        self.initial_probs = as_array(initial_probs)
        self.transition = SemiMarkovKernel(transition, durations)
        self.emission = emission
        states = len(self.transition.probs)
        if self.initial_probs.shape != (states,):
            raise ValueError(
                f"`initial_probs` must have shape ({states},), one for each row of `transition`, got "
                f"{self.initial_probs.shape}."
            )
        check_probabilities("initial_probs", self.initial_probs)
        self.possible = pattern(self.initial_probs)
        if getattr(emission, "states", states) != states:
            raise ValueError(
                f"`emission` is of {emission.states} states, but `transition` is over {states}."
            )
        self.state_names = None if state_names is None else tuple(map(str, state_names))
        if self.state_names is not None and len(self.state_names) != states:
            raise ValueError(f"`state_names` must be {states} names, got {len(self.state_names)}.")

    @property
    def initial(self) -> Categorical:
        """Law of the first sub-state: a stay begins."""
        parts = len(self.transition.aggregate)
        probs = jnp.zeros(parts, self.initial_probs.dtype)
        return Categorical(probs.at[np.asarray(self.transition.entrances)].set(self.initial_probs))

    @property
    def observation(self) -> Any:
        """Law of the observation in each state."""
        return self.emission
