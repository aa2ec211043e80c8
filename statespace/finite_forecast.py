"""Observations to come from a model of a finite state: mixtures over the states."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from statespace.finite_posterior import FinitePosterior
from statespace.labels import Labels
from statespace.methods.lowering import steps_of
from statespace.methods.potentials import lagged, log_density
from statespace.model import Step
from statespace.posterior import channel_names
from statespace.scores import Score
from statespace.series import Series, as_series

_DRAWS = (
    4000  # paths behind quantiles, and behind moments where observations depend on earlier ones
)


class MixtureForecast(eqx.Module):
    """The law of observations to come: at each moment a mixture over the states.

    Attributes:
        mean: ``E[y_t | data]``, shape ``(h, m)``.
        std: standard deviation of each channel, noise included, shape ``(h, m)``.
        probs: ``P(z_t = k | data)``, shape ``(h, K)``.
        times: shape ``(h,)``.
        posterior: of the states at all moments, those of the data too.
        rows: which of those moments these are, shape ``(h,)``.
        labels: names of these moments and of the channels, or None.
    """

    mean: Float[Array, "h m"]
    std: Float[Array, "h m"]
    probs: Float[Array, "h K"]
    times: Float[Array, " h"]
    posterior: FinitePosterior
    rows: Array
    observation: Any
    steps: Step
    labels: Labels | None = eqx.field(static=True, default=None)

    def __len__(self) -> int:
        return self.mean.shape[0]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the channels."""
        return channel_names(self.labels, self.mean.shape[1])

    def at(self, times: Array, labels: Labels | None) -> MixtureForecast:
        """The same with its moments and their names."""
        return dataclasses.replace(self, times=times, labels=labels)

    def sample(self, key: PRNGKeyArray, draws: int = 1) -> Float[Array, "draws h m"]:
        """Paths of observations to come, drawn jointly over the moments.

        Args:
            key: a PRNG key.
            draws: how many.
        """
        return _sample(self.observation, self.posterior, self.steps, key, draws)[:, self.rows]

    def quantile(self, q: Any, key: PRNGKeyArray | None = None) -> Float[Array, "*Q h m"]:
        """Quantiles of each channel at each moment, from 4,000 paths.

        Args:
            q: a probability in (0, 1), or an array of them.
            key: a PRNG key; default: a fixed one.

        Raises:
            ValueError: if a probability is not inside (0, 1).
        """
        levels = np.asarray(q, float)
        if not ((levels > 0) & (levels < 1)).all():
            raise ValueError(f"`q` must be probabilities inside (0, 1), got {q}.")
        draws = self.sample(jax.random.key(0) if key is None else key, _DRAWS)
        return jnp.quantile(draws, jnp.asarray(levels, draws.dtype), axis=0)

    def interval(self, level: float = 0.9) -> tuple[Float[Array, "h m"], Float[Array, "h m"]]:
        """Bounds of the central interval with this probability, each ``(h, m)``."""
        low, high = self.quantile([0.5 - level / 2, 0.5 + level / 2])
        return low, high

    def score(self, y: Any, levels: Sequence[float] = (0.5, 0.8, 0.95)) -> Score:
        """Scores against what came: log score, CRPS, absolute error, coverage of intervals.

        The log score is exact where observations do not depend on earlier ones, and then of each moment by
        itself; CRPS and coverage are those of 4,000 paths.

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


def forecast(
    model: Any, posterior: FinitePosterior, series: Series, rows: Array
) -> MixtureForecast:
    """The forecast at some moments of a recording, from the smoothed states of all of it.

    Where observations depend on earlier ones, mean and deviation are those of 4,000 paths with a fixed key.
    """
    steps, _ = steps_of(series)
    observation = model.observation
    if getattr(observation, "lags", 0):
        draws = _sample(observation, posterior, steps, jax.random.key(0), _DRAWS)[:, rows]
        mean, std = draws.mean(axis=0), draws.std(axis=0)
    else:
        each = jax.vmap(lambda step: _moments(observation, step, posterior.probs.shape[1]))
        means, variances = each(jax.tree.map(lambda x: x[rows], steps))
        weights = posterior.probs[rows][:, :, None]
        # A state that is not there counts for nothing, also where its moments are infinite.
        present = lambda x: jnp.sum(jnp.where(weights > 0, weights * x, 0.0), axis=1)
        mean = present(means)
        std = jnp.sqrt(present(variances + (means - mean[:, None]) ** 2))
    m = series.channels.shape[1]
    shape = (len(rows), m)
    return MixtureForecast(
        mean.reshape(shape),
        std.reshape(shape),
        posterior.probs[rows],
        series.times[rows],
        posterior,
        rows,
        observation,
        steps,
    )


def _moments(observation: Any, step: Step, states: int) -> tuple[Array, Array]:
    """Mean and variance of each channel in each state, ``(K, m)``."""

    def one(k: Array) -> tuple[Array, Array]:
        law = observation(k, step)
        return jnp.atleast_1d(law.mean), jnp.atleast_1d(law.variance)

    return jax.vmap(one)(jnp.arange(states))


@eqx.filter_jit
def _sample(
    observation: Any, posterior: FinitePosterior, steps: Step, key: PRNGKeyArray, draws: int
) -> Array:
    """Observations on drawn paths of the states; what was observed stays where later ones depend on it."""
    k1, k2 = jax.random.split(key)
    paths = posterior.sample(k1, draws)
    y, lags = posterior.y, getattr(observation, "lags", 0)

    def draw(z: Array, step: Step, key: Array) -> Array:
        return jnp.atleast_1d(observation(z, step).sample(key)).astype(y.dtype)

    keys = jax.random.split(k2, paths.shape)
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


def _score(forecast: MixtureForecast, y: Array, levels: tuple[float, ...]) -> Score:
    draws = np.sort(np.asarray(forecast.sample(jax.random.key(0), _DRAWS)), axis=0)
    values = np.asarray(y)
    # CRPS of the draws: E|X - y| - E|X - X'| / 2, the second by order statistics.
    ranks = (2 * np.arange(1, _DRAWS + 1) - _DRAWS - 1)[:, None, None]
    spread = (ranks * draws).sum(axis=0) / _DRAWS**2
    crps = np.abs(draws - values).mean(axis=0) - spread
    tails = np.asarray([0.5 + s * level / 2 for level in levels for s in (-1, 1)])
    bounds = np.quantile(draws, tails, axis=0).reshape(len(levels), 2, *values.shape)
    return Score(
        pointwise=np.asarray(_log_scores(forecast, y)),
        errors=values - np.asarray(forecast.mean),
        crps_each=crps,
        levels=levels,
        inside=(bounds[:, 0] <= values) & (values <= bounds[:, 1]),
    )


@eqx.filter_jit
def _log_scores(forecast: MixtureForecast, y: Array) -> Array:
    """Log density of each observation under its mixture."""
    observation, states = forecast.observation, jnp.arange(forecast.probs.shape[1])
    steps = jax.tree.map(lambda x: x[forecast.rows], forecast.steps)
    lags = getattr(observation, "lags", 0)
    if lags:
        whole = forecast.posterior.y.at[forecast.rows].set(y)
        steps = steps._replace(history=lagged(whole, lags)[forecast.rows])
    each = lambda y, step: jax.vmap(lambda k: log_density(observation(k, step), y))(states)
    return jax.nn.logsumexp(jax.vmap(each)(y, steps), axis=1, b=forecast.probs)
