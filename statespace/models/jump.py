"""Markov jump processes: finitely many states in continuous time, seen at any moments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from statespace.checks import known, require_shape
from statespace.conditionals.finite import Categorical, check_probabilities, pattern, sparse_simplex
from statespace.conditionals.jump import RateMatrix
from statespace.emissions.counts import Categorical as Labels
from statespace.model import check_key
from statespace.models.jump_paths import JumpPaths, jump_bound, sample_paths
from statespace.parameters import parameter

_LAWS = ("uniform", "stationary")


class MarkovJumpProcess(eqx.Module):
    """A process that jumps between K states at constant rates, observed now and then.

    The moments of a recording may be any: over each interval the transition matrix is exact. The rates are
    learned by ``EM()`` with the exact expected times and jumps between the observations, by
    ``MaximumLikelihood()``, or with their posterior by ``JumpGibbs()`` and ``NUTS()``.

    Args:
        rates: a :class:`RateMatrix`, or shape ``(K, K)``: rates of the jumps, row = from, per unit of time. A
            rate that is exactly zero stays zero.
        emission: law of the observation in each state: one of ``ss.emissions``, or any function ``(state,
            step) -> Distribution``. None: the state itself is observed, as a label 0 … K-1. Labels that are
            sometimes wrong are ``ss.emissions.Categorical(confusion)``, row = the state.
        initial_probs: law of the state at the first observation: "uniform"; "stationary", which depends on
            the rates; or probabilities, shape ``(K,)``, which are learned too.
        state_names: names of the states, in order; default their numbers.

    Raises:
        ValueError: if shapes do not fit, probabilities do not sum to one, or a stationary law is asked for of
            a process that has several.

    Example:
        >>> channel = ss.MarkovJumpProcess(
        ...     rates=[[0.0, 3.0], [1.0, 0.0]],
        ...     emission=ss.emissions.Gaussian(mean=[0.0, 1.0], scale=[0.4, 0.4]),
        ...     state_names=("closed", "open"),
        ... )
        >>> paths = channel.sample_paths(duration=10.0, key=jax.random.key(0))

    References:
        Bladt & Sørensen (2005), Statistical inference for discretely observed Markov jump processes.
    """

    transition: RateMatrix
    emission: Any
    start: str = eqx.field(static=True)
    possible: Any = eqx.field(static=True)
    state_names: tuple[str, ...] | None = eqx.field(static=True)
    initial_probs: Float[Array, " K"] | None = parameter(
        sparse_simplex, of_owner=True, converter=None
    )

    def __init__(
        self,
        rates: Any,
        emission: Any = None,
        initial_probs: Any = "uniform",
        *,
        state_names: Sequence[str] | None = None,
    ):
        self.transition = rates if isinstance(rates, RateMatrix) else RateMatrix(rates)
        states = self.transition.states
        self.emission = Labels(jnp.eye(states)) if emission is None else emission
        if getattr(self.emission, "states", states) != states:
            raise ValueError(
                f"`emission` of MarkovJumpProcess is of {self.emission.states} states, but `rates` are of "
                f"{states}."
            )
        self.start, self.possible, self.initial_probs = _initial(initial_probs, states)
        if self.start == "stationary":
            self.transition.stationary_law()  # refuses what has several
        self.state_names = None if state_names is None else tuple(str(s) for s in state_names)
        if self.state_names is not None and len(self.state_names) != states:
            raise ValueError(
                f"`state_names` must name the {states} states, got {len(self.state_names)} names."
            )

    @property
    def states(self) -> int:
        """Number K of states."""
        return self.transition.states

    @property
    def initial(self) -> Categorical:
        """Law of the state at the first observation."""
        if self.start == "uniform":
            return Categorical(jnp.full(self.states, 1 / self.states, self.transition.rates.dtype))
        if self.start == "stationary":
            return Categorical(self.transition.stationary_law())
        return Categorical(self.initial_probs)

    @property
    def observation(self) -> Any:
        """Law of the observation."""
        return self.emission

    def sample_paths(
        self,
        duration: float,
        *,
        key: PRNGKeyArray,
        paths: int = 1,
        initial_state: int | None = None,
        max_jumps: int | None = None,
    ) -> JumpPaths:
        """Draw paths of the process itself, in continuous time, exactly.

        Args:
            duration: how long each path is.
            key: source of randomness.
            paths: how many.
            initial_state: where all begin; None to draw it from ``initial``.
            max_jumps: jumps of a path for which there is room; None for as many as a path can have, but for a
                probability of 1e-12. Traced rates need it.

        Returns:
            The paths. Where it is called under ``jit``, their ``complete`` says whether there was room.

        Raises:
            ValueError: if the duration is not positive or infinite, ``initial_state`` is no state, or a path
                has more jumps than ``max_jumps``.
        """
        check_key(key)
        if known(jnp.asarray(duration)) and not 0 < float(duration) < np.inf:
            raise ValueError(f"`duration` must be positive and finite, got {duration}.")
        if paths < 1:
            raise ValueError(f"`paths` must be positive, got {paths}.")
        law = self.initial.probs
        if initial_state is not None:
            if not 0 <= initial_state < self.states:
                raise ValueError(
                    f"`initial_state` must be a state from 0 to {self.states - 1}, got {initial_state}."
                )
            law = jnp.zeros_like(law).at[initial_state].set(1)
        generator = self.transition.generator
        if max_jumps is None:
            if not known(generator):
                raise ValueError(
                    "`sample_paths` of traced rates cannot know how many jumps a path may have: give it "
                    "`max_jumps`, and look at `complete`."
                )
            max_jumps = jump_bound(generator, duration)
        drawn = sample_paths(generator, law, jnp.asarray(duration), key, paths, max_jumps)
        if known(drawn.complete) and not bool(jnp.all(drawn.complete)):
            raise ValueError(
                f"{int(jnp.sum(~drawn.complete))} of {paths} paths jump more than `max_jumps` = {max_jumps} "
                f"times within {float(duration):g}; raise it, or leave it out."
            )
        return drawn


def _initial(probs: Any, states: int) -> tuple[str, Any, Array | None]:
    """What is known of the first state, which probabilities are possible, and the probabilities."""
    if isinstance(probs, str):
        if probs not in _LAWS:
            raise ValueError(
                f"`initial_probs` must be one of {', '.join(_LAWS)} or probabilities of shape ({states},), "
                f"got {probs!r}."
            )
        return probs, None, None
    probs = Categorical(probs).probs
    require_shape("initial_probs", probs, (states,))
    check_probabilities("initial_probs", probs)
    return "given", pattern(probs), probs
