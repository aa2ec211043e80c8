"""What forecasts share whose quantiles and scores are those of drawn paths."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from statespace.arviz import predictions
from statespace.emissions.base import lagged
from statespace.labels import Labels, channel_names, table
from statespace.model import Step
from statespace.probabilities import probabilities, tails
from statespace.scores import Score
from statespace.series import as_series

DRAWS = 4000  # paths behind quantiles, and behind moments where observations depend on earlier ones


class SampledForecast(eqx.Module):
    """The law of observations to come, from which paths can be drawn."""

    if TYPE_CHECKING:  # subclasses have these as fields, in an order of their own

        @property
        def mean(self) -> Float[Array, "h m"]:
            """``E[y_t | data]``."""

        @property
        def std(self) -> Float[Array, "h m"]:
            """Standard deviation of each channel, noise included."""

        @property
        def times(self) -> Float[Array, " h"]:
            """The moments."""

        @property
        def labels(self) -> Labels | None:
            """Names of the moments and channels."""

        @property
        def posterior(self) -> Any:
            """Of the states at all moments, those of the data too."""

        @property
        def rows(self) -> Array:
            """Which of those moments these are."""

        @property
        def observation(self) -> Any:
            """The conditional."""

        @property
        def steps(self) -> Step:
            """Of all moments."""

    @abstractmethod
    def log_scores(self, y: Float[Array, "h m"]) -> Float[Array, " h"]:
        """Log density of each observation."""

    def __len__(self) -> int:
        return self.mean.shape[0]

    def sample(self, key: PRNGKeyArray, draws: int = 1) -> Float[Array, "draws h m"]:
        """Paths of observations to come, drawn jointly over the moments.

        Args:
            key: a PRNG key.
            draws: how many.
        """
        args = (self.observation, self.posterior, self.steps, key, draws)
        return jnp.take(observations_on_paths(*args), self.rows, axis=1)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the channels."""
        return channel_names(self.labels, self.mean.shape[1])

    def at(self, times: Array, labels: Labels | None) -> Self:
        """The same with its moments and their names."""
        changed: dict[str, Any] = {"times": times, "labels": labels}
        return dataclasses.replace(self, **changed)

    def quantile(self, q: Any, key: PRNGKeyArray | None = None) -> Float[Array, "*Q h m"]:
        """Quantiles of each channel at each moment, from 4,000 paths.

        Args:
            q: a probability in (0, 1), or an array of them.
            key: a PRNG key; default: a fixed one.

        Raises:
            ValueError: if a probability is not inside (0, 1).
        """
        levels = probabilities("q", q)
        draws = self.sample(jax.random.key(0) if key is None else key, DRAWS)
        return jnp.quantile(draws, jnp.asarray(levels, draws.dtype), axis=0)

    def interval(self, level: float = 0.9) -> tuple[Float[Array, "h m"], Float[Array, "h m"]]:
        """Bounds of the central interval with this probability, each ``(h, m)``."""
        low, high = self.quantile(tails(level))
        return low, high

    def to_pandas(self, level: float = 0.9) -> Any:
        """A DataFrame over the moments, with columns (channel, mean | std | lower | upper).

        Args:
            level: probability of the central interval between lower and upper.
        """
        low, high = self.interval(level)
        parts = {"mean": self.mean, "std": self.std, "lower": low, "upper": high}
        return table(self.names, parts, self.times, self.labels)

    def to_arviz(self, key: PRNGKeyArray | None = None, draws: int = 500) -> Any:
        """For ArviZ: group ``predictions`` with ``y`` (chain, draw, time, channel).

        Args:
            key: a PRNG key for the draws; default: a fixed one.
            draws: how many.

        Raises:
            ImportError: if ArviZ is not installed.
        """
        return predictions(self, key, draws)

    def score(self, y: Any, levels: Sequence[float] = (0.5, 0.8, 0.95)) -> Score:
        """Scores against what came: log score, CRPS, absolute error, coverage of intervals.

        The log score is of each moment by itself where observations do not depend on earlier ones; CRPS and
        coverage are those of 4,000 paths.

        Args:
            y: observations at the moments of the forecast, shape ``(h,)`` or ``(h, m)``, NaN where missing;
                a pandas object is aligned by its index where the forecast has dates.
            levels: probabilities of the central intervals whose coverage is counted.

        Raises:
            ValueError: if there is not one observation for each moment and channel.
        """
        index = None if self.labels is None else self.labels.index
        if index is not None and type(y).__module__.split(".")[0] == "pandas":
            y = y.reindex(index)
        values = as_series(y).channels
        if values.shape != self.mean.shape:
            raise ValueError(
                f"`y` must have shape {self.mean.shape}, one row for each moment of the forecast, got "
                f"{values.shape}."
            )
        return _score(self, values, tuple(levels))


def of_mixtures(
    weights: Float[Array, "h N"], means: Float[Array, "h N m"], variances: Float[Array, "h N m"]
) -> tuple[Float[Array, "h m"], Float[Array, "h m"]]:
    """Mean and standard deviation of mixtures, from those of their parts."""
    w = weights[:, :, None]
    # a part without weight counts for nothing, also where its moments are infinite
    mixed = lambda x: jnp.sum(jnp.where(w > 0, w * x, 0.0), axis=1)
    mean = mixed(means)
    return mean, jnp.sqrt(mixed(variances + (means - mean[:, None]) ** 2))


def steps_after(forecast: SampledForecast, y: Float[Array, "h m"]) -> Step:
    """Steps of the forecast's moments, with the last observations where the next one reads them."""
    rows, lags = forecast.rows, getattr(forecast.observation, "lags", 0)
    steps = jax.tree.map(lambda x: x[rows], forecast.steps)
    if not lags:
        return steps
    return steps._replace(history=lagged(forecast.posterior.y.at[rows].set(y), lags)[rows])


@eqx.filter_jit
def observations_on_paths(
    observation: Any, posterior: Any, steps: Step, key: PRNGKeyArray, draws: int
) -> Float[Array, "draws T m"]:
    """Observations on drawn paths of the states; what was observed stays where later ones depend on it.

    Args:
        observation: the conditional.
        posterior: of the states at all T moments, with ``sample`` and ``y``.
        steps: of the moments.
        key: a PRNG key.
        draws: how many paths.
    """
    k1, k2 = jax.random.split(key)
    paths = posterior.sample(k1, draws)
    y, lags = posterior.y, getattr(observation, "lags", 0)

    def draw(z: Any, step: Step, key: Array) -> Array:
        return jnp.ravel(observation(z, step).sample(key)).astype(y.dtype)

    keys = jax.random.split(k2, (draws, len(y)))
    if not lags:
        return jax.vmap(jax.vmap(draw), in_axes=(0, None, 0))(paths, steps, keys)

    def move(past: Array, at: tuple) -> tuple[Array, Array]:
        z, step, key, seen = at
        drawn = draw(z, step._replace(history=past), key)
        value = jnp.where(jnp.isnan(seen), drawn, seen)
        return jnp.concatenate([value[None], past[:-1]]), drawn

    empty = jnp.full((lags, y.shape[1]), jnp.nan, y.dtype)
    path = lambda z, keys: jax.lax.scan(move, empty, (z, steps, keys, y))[1]
    return jax.vmap(path)(paths, keys)


def _score(forecast: SampledForecast, y: Array, levels: tuple[float, ...]) -> Score:
    draws = np.sort(np.asarray(forecast.sample(jax.random.key(0), DRAWS)), axis=0)
    values = np.asarray(y)
    # CRPS of the draws: E|X - y| - E|X - X'| / 2, the second by order statistics.
    ranks = (2 * np.arange(1, DRAWS + 1) - DRAWS - 1)[:, None, None]
    spread = (ranks * draws).sum(axis=0) / DRAWS**2
    crps = np.abs(draws - values).mean(axis=0) - spread
    tails = np.asarray([0.5 + s * level / 2 for level in levels for s in (-1, 1)])
    bounds = np.quantile(draws, tails, axis=0).reshape(len(levels), 2, *values.shape)
    return Score(
        pointwise=np.asarray(forecast.log_scores(y)),
        errors=values - np.asarray(forecast.mean),
        crps_each=crps,
        levels=levels,
        inside=(bounds[:, 0] <= values) & (values <= bounds[:, 1]),
    )
