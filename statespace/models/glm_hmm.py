"""Hidden Markov models whose observations follow generalised linear models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from statespace.conditionals.finite import FiniteKernel
from statespace.emissions.basis import Basis
from statespace.emissions.glm import GLM
from statespace.model import check_key
from statespace.models.hmm import HMM

_SIZE = 0.5  # standard deviation of the linear predictor that random weights of unit inputs give


class GLMHMM(HMM):
    """A hidden Markov model in which each state has its own generalised linear model of the observation.

    For behaviour (choices from stimuli and history) and for populations of neurons (spikes from the
    population's own past). This makes the emission :class:`statespace.emissions.GLM` with random starting
    weights: equal ones would be a saddle, at which no state differs from another. Other starts: other keys.

    Args:
        states: number K of states.
        family: of the observation: "bernoulli", "categorical", "gaussian" or "poisson".
        inputs: how many of the recording's inputs drive the observation, or which (a tuple of columns).
        channels: number m of channels.
        categories: number C of categories, coded 0 … C-1, where the family is categorical.
        history: functions over lags through which each channel's past drives every channel, such as
            ``ss.emissions.RaisedCosine(lags=20)``; None for none.
        link: the mean as a function of the linear predictor; None for the family's usual one.
        exposure: factor of a Poisson mean: the width of a bin, or the highest rate of a sigmoid.
        shared_bias: whether all states have the same bias.
        ridge: precision of a Gaussian prior of weights and coupling around zero.
        pooling: precision of a Gaussian prior of the coupling around its mean over the states.
        initial_probs: law of the first state, shape ``(K,)``; None for uniform.
        transition: probabilities, shape ``(K, K)``, or a kernel such as :class:`statespace.SoftmaxKernel`
            (driven by inputs); None to stay with probability 0.95.
        state_names: names of the K states.
        key: of the random starting weights; ``jax.random.key(0)`` if None.

    Raises:
        TypeError: if the key is none.
        ValueError: if a number is not positive, or as the emission and :class:`statespace.HMM` raise.

    Example:
        >>> model = ss.GLMHMM(3, family="bernoulli", inputs=4)
        >>> fitted = ss.fit(model, sessions, learner=ss.EM())
        >>> fitted.model.weights

    References:
        Ashwood et al. (2022), Mice alternate between discrete strategies during perceptual decision-making,
        Nature Neuroscience 25, 201-212; Escola et al. (2011), Neural Computation 23, 1071-1132.
    """

    def __init__(
        self,
        states: int,
        *,
        family: str = "bernoulli",
        inputs: int | tuple[int, ...] = 0,
        channels: int = 1,
        categories: int | None = None,
        history: Basis | None = None,
        link: str | None = None,
        exposure: float = 1.0,
        shared_bias: bool = False,
        ridge: float = 0.0,
        pooling: float = 0.0,
        initial_probs: Any = None,
        transition: Any = None,
        state_names: Sequence[str] | None = None,
        key: PRNGKeyArray | None = None,
    ):
        key = jax.random.key(0) if key is None else key
        check_key(key)
        columns = None if isinstance(inputs, int) else tuple(inputs)
        count = inputs if isinstance(inputs, int) else len(inputs)
        for name, value, least in (("states", states, 1), ("channels", channels, 1)):
            if value < least:
                raise ValueError(f"`{name}` of GLMHMM must be at least {least}, got {value}.")
        if count < 0:
            raise ValueError(f"`inputs` of GLMHMM must not be negative, got {inputs}.")
        if (categories is None) == (family == "categorical") or (categories or 2) < 2:
            raise ValueError(
                "`categories` of GLMHMM is the number of categories, at least 2, of the family "
                f"'categorical' and of no other, got {categories} for {family!r}."
            )
        rest = (channels,) if categories is None else (channels, categories - 1)
        functions = 0 if history is None else history.count
        size = _SIZE / max(count + channels * functions, 1) ** 0.5
        keys = jax.random.split(key, 3)
        normal = lambda i, *shape: size * jax.random.normal(keys[i], (states, *shape))
        bias = jnp.zeros((1 if shared_bias else states, *rest))
        driven = bool(count) or history is not None
        emission = GLM(
            bias if driven or shared_bias else normal(2, *rest),
            normal(0, *rest, count) if count else None,
            normal(1, channels, channels, functions) if history is not None else None,
            jnp.ones((states, channels)) if family == "gaussian" else None,
            family=family,
            link=link,
            columns=columns,
            basis=history,
            exposure=exposure,
            ridge=ridge,
            pooling=pooling,
        )
        if transition is None:
            leave = 0.05 / max(states - 1, 1)
            stay = 1 - leave * (states - 1)
            transition = jnp.full((states, states), leave).at[jnp.diag_indices(states)].set(stay)
        super().__init__(initial_probs, transition, emission, state_names=state_names)

    @property
    def weights(self) -> Float[Array, "K m *q d"] | None:
        """Weights of the inputs in each state; None if there are no inputs."""
        return self.emission.weights

    @property
    def bias(self) -> Float[Array, "#K m *q"]:
        """The constant of the linear predictor in each state."""
        return self.emission.bias

    @property
    def coupling(self) -> Float[Array, "K m m B"] | None:
        """Weights of the basis functions, to each channel from each; None without history."""
        return self.emission.coupling

    @property
    def filters(self) -> Float[Array, "K m m L"]:
        """How each channel (second axis) responds to a spike of each (third), at lags 1 … L.

        Raises:
            ValueError: if there is no history.
        """
        return self.emission.filters

    @property
    def transition_matrix(self) -> Float[Array, "K K"]:
        """Transition probabilities, row = from.

        Raises:
            ValueError: if they depend on the step.
        """
        if not isinstance(self.transition, FiniteKernel) or callable(self.transition.probs):
            raise ValueError(
                "the transitions of this GLMHMM depend on the step: use `model.transition.matrix(step)`."
            )
        return self.transition.probs
