"""The law of regimes and states of a switching linear model: a mixture of normal laws at each moment."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from statespace.arviz import require_arviz, time_coordinate, to_inference_data
from statespace.conditionals.affine import psd_factor
from statespace.conditionals.switching import RegimeState
from statespace.labels import Labels, channel_names, moments
from statespace.posteriors.gaussian import Gaussians
from statespace.probabilities import mixture_quantiles, probabilities


class RegimesAndStates(Gaussians):
    """A normal law of the state and probabilities of the regime at each moment."""

    if TYPE_CHECKING:  # subclasses have these as fields, in an order of their own

        @property
        def y(self) -> Float[Array, "T m"]:
            """The observations."""

        @property
        def probs(self) -> Float[Array, "T K"]:
            """Probabilities of the regimes."""

        @property
        def state_names(self) -> tuple[str, ...] | None:
            """Names of the states, where the model gives them."""

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the states; x0, x1 … where the model gives none."""
        if self.state_names is not None:
            return self.state_names
        return tuple(f"x{i}" for i in range(self.mean.shape[1]))

    @property
    def channel_names(self) -> tuple[str, ...]:
        """Names of the observed channels; y0, y1 … (y for a single one) where the data has none."""
        return channel_names(self.labels, self.y.shape[1])

    @property
    def most_likely(self) -> Int[Array, " T"]:
        """The most probable regime of each moment."""
        return jnp.argmax(self.probs, axis=1)

    def to_pandas(self, level: float = 0.9) -> Any:
        """A DataFrame over the moments: the states as of a Gaussian law, and the regimes' probabilities.

        Columns are (coordinate, mean | std | lower | upper) and (regime, k).

        Args:
            level: probability of the central interval between lower and upper.
        """
        import pandas as pd

        states = super().to_pandas(level)
        columns = pd.MultiIndex.from_tuples([("regime", k) for k in range(self.probs.shape[1])])
        index = moments(self.times, self.labels)
        return states.join(pd.DataFrame(np.asarray(self.probs), index=index, columns=columns))

    @abstractmethod
    def sample(self, key: PRNGKeyArray, draws: int = 1) -> RegimeState:
        """Draws of regimes and states, ``regime`` ``(draws, T)`` and ``state`` ``(draws, T, n)``."""

    def to_arviz(self, key: PRNGKeyArray | None = None, draws: int = 500) -> Any:
        """For ArviZ: InferenceData (ArviZ < 1) or a DataTree (ArviZ >= 1).

        Groups: ``posterior`` with draws of ``states`` (chain, draw, time, state) and ``regimes`` (chain,
        draw, time); ``observed_data`` with ``y`` (time, channel). Of mixtures and particles besides
        ``log_likelihood`` with the one-step predictive log density of ``y`` (time) and ``sample_stats`` with
        ``ess`` (time).

        Args:
            key: a PRNG key for the draws; default: a fixed one.
            draws: how many.

        Raises:
            ImportError: if ArviZ is not installed.
        """
        require_arviz()
        drawn = self.sample(jax.random.key(0) if key is None else key, draws)
        over = ("chain", "draw", "time")
        groups: dict[str, dict[str, Any]] = {
            "posterior": {
                "states": ((*over, "state"), drawn.state[None]),
                "regimes": (over, drawn.regime[None]),
            },
            "observed_data": {"y": (("time", "channel"), self.y)},
        }
        coords = {
            "time": time_coordinate(self.times, self.labels),
            "state": list(self.names),
            "channel": list(self.channel_names),
        }
        return to_inference_data(groups | self._facts(), coords)

    def _facts(self) -> dict[str, dict[str, Any]]:
        """Further groups for ArviZ."""
        return {}


class SwitchingPosterior(RegimesAndStates):
    """The law of regime and state given the data: N paths of regimes, each with a normal law of the state.

    Attributes:
        mean: ``E[x_t | data]``, shape ``(T, n)``.
        covariance: ``Cov[x_t | data]``, shape ``(T, n, n)``.
        probs: ``P(r_t = k | data)``, shape ``(T, K)``.
        times: shape ``(T,)``.
        log_likelihood: log of an unbiased estimate of the density of all observations; exact where there are
            no more paths of regimes than particles.
        pointwise: of the observations at each moment given those before, shape ``(T,)``.
        ess: effective number of the filter's candidates at each moment, shape ``(T,)``.
        y: the observations, shape ``(T, m)``, NaN where missing.
        regimes: of each particle, shape ``(T, N)``.
        means: of the state given the particle's regimes, shape ``(T, N, n)``.
        covariances: shape ``(T, N, n, n)``.
        log_weights: of the particles, normalised at each moment, shape ``(T, N)``.
        states: joint draws of all states, one for each path of regimes, shape ``(T, N, n)``; None of a
            filtered law.
        errors: errors of the one-step predictions as standard normal deviates, shape ``(T, m)``; None where
            the filter leaves no law of the observations.
        kind: "filtered" (given the data up to each moment) or "smoothed" (given all data); the particles of a
            smoothed law are paths: the n-th of all moments go together.
        labels: names of moments and channels, or None.
        state_names: names of the n states, or None.
    """

    mean: Float[Array, "T n"]
    covariance: Float[Array, "T n n"]
    probs: Float[Array, "T K"]
    times: Float[Array, " T"]
    labels: Labels | None = eqx.field(static=True)
    log_likelihood: Float[Array, ""]
    pointwise: Float[Array, " T"]
    ess: Float[Array, " T"]
    y: Float[Array, "T m"]
    regimes: Int[Array, "T N"]
    means: Float[Array, "T N n"]
    covariances: Float[Array, "T N n n"]
    log_weights: Float[Array, "T N"]
    states: Float[Array, "T N n"] | None = None
    components: dict[str, Any] | None = None
    errors: Float[Array, "T m"] | None = None
    kind: Literal["filtered", "smoothed"] = eqx.field(static=True, default="filtered")
    state_names: tuple[str, ...] | None = eqx.field(static=True, default=None)

    @property
    def weights(self) -> Float[Array, "T N"]:
        """Weights of the particles, which sum to one at each moment."""
        return jnp.exp(self.log_weights)

    @property
    def innovations(self) -> Float[Array, "T m"]:
        """One-step prediction errors as standard normal deviates: N(0, 1) when the model is right.

        Of each channel by itself, by the probability that the mixture predicted had below what came. NaN
        where missing.

        Raises:
            ValueError: if the posterior does not hold them.
        """
        if self.errors is None:
            raise ValueError(
                "this posterior holds no one-step predictions of the observations: make it with "
                "`method=GaussianSum()` or InteractingMultipleModel(), or give the result of `ss.fit`, or "
                "its `residuals()`."
            )
        return self.errors

    def quantile(self, q: Any) -> Float[Array, "*Q T n"]:
        """Quantiles of each coordinate of the mixture at each moment, by bisection.

        Args:
            q: a probability in (0, 1), or an array of them.

        Returns:
            Shape ``(T, n)``, or ``(Q, T, n)`` for Q probabilities.

        Raises:
            ValueError: if a probability is not inside (0, 1).
        """
        levels = probabilities("q", q)
        law = (self.weights, self.means, self.covariances)
        found = mixture_quantiles(*law, jnp.asarray(levels.ravel()))
        return found.reshape(levels.shape + self.mean.shape)

    def sample(self, key: PRNGKeyArray, draws: int = 1) -> RegimeState:
        """Draws of regimes and states, ``regime`` ``(draws, T)`` and ``state`` ``(draws, T, n)``.

        Of a smoothed law these are joint trajectories, chosen among its paths; of a filtered one, which is a
        law for each moment, they are independent from moment to moment.

        Args:
            key: a PRNG key.
            draws: how many.
        """
        one, two = jax.random.split(key)
        if self.states is not None:
            chosen = jax.random.categorical(one, self.log_weights[-1], shape=(draws,))
            return RegimeState(self.regimes.T[chosen], jnp.moveaxis(self.states, 1, 0)[chosen])
        parts = (self.regimes, self.means, self.covariances, self.log_weights)
        return RegimeState(*_draw_each(*parts, one, two, draws))

    def labelled(self, labels: Labels | None) -> SwitchingPosterior:
        """The same with names of moments and channels."""
        return dataclasses.replace(self, labels=labels)

    def cut(self, size: int) -> SwitchingPosterior:
        """The first moments of a padded recording."""
        parts = {name: jax.tree.map(lambda x: x[:size], getattr(self, name)) for name in _OVER_TIME}
        return dataclasses.replace(self, **parts, log_likelihood=parts["pointwise"].sum())

    def _facts(self) -> dict[str, dict[str, Any]]:
        return {
            "log_likelihood": {"y": (("time",), self.pointwise)},
            "sample_stats": {"ess": (("time",), self.ess)},
        }


_OVER_TIME = (
    "mean",
    "covariance",
    "probs",
    "times",
    "pointwise",
    "ess",
    "y",
    "regimes",
    "means",
    "covariances",
    "log_weights",
    "states",
    "errors",
)


@partial(jax.jit, static_argnames="draws")
def _draw_each(
    regimes: Array,
    means: Array,
    covariances: Array,
    log_weights: Array,
    one: PRNGKeyArray,
    two: PRNGKeyArray,
    draws: int,
) -> tuple[Array, Array]:
    """Regimes and states of each moment's mixture, independent from moment to moment."""
    count, _, n = means.shape
    chosen = jax.random.categorical(one, log_weights, shape=(draws, count))
    every = jnp.arange(count)
    factors = jax.vmap(jax.vmap(psd_factor))(covariances)
    noise = jax.random.normal(two, (draws, count, n), means.dtype)
    moved = jnp.einsum("dtij,dtj->dti", factors[every, chosen], noise)
    return regimes[every, chosen], means[every, chosen] + moved
