"""Observations to come from a model of a finite state: mixtures over the states."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from statespace.densities import log_density, mean_and_variance
from statespace.forecasts.sampled import (
    DRAWS,
    SampledForecast,
    observations_on_paths,
    of_mixtures,
    steps_after,
)
from statespace.labels import Labels
from statespace.methods.lowering import steps_of
from statespace.model import Step
from statespace.posteriors.finite import FinitePosterior
from statespace.series import Series


class MixtureForecast(SampledForecast):
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

    def log_scores(self, y: Float[Array, "h m"]) -> Float[Array, " h"]:
        """Log density of each observation under its mixture."""
        return _log_scores(self, y)


def forecast(
    model: Any, posterior: FinitePosterior, series: Series, rows: Array
) -> MixtureForecast:
    """The forecast at some moments of a recording, from the smoothed states of all of it.

    Where observations depend on earlier ones, mean and deviation are those of 4,000 paths with a fixed key.
    """
    steps, _ = steps_of(series)
    observation = model.observation
    if getattr(observation, "lags", 0):
        key = jax.random.key(0)
        draws = observations_on_paths(observation, posterior, steps, key, DRAWS)[:, rows]
        mean, std = draws.mean(axis=0), draws.std(axis=0)
    else:
        each = jax.vmap(lambda step: _moments(observation, step, posterior.probs.shape[1]))
        means, variances = each(jax.tree.map(lambda x: x[rows], steps))
        mean, std = of_mixtures(posterior.probs[rows], means, variances)
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
        mean, variance = mean_and_variance(observation(k, step))
        return jnp.ravel(mean), jnp.ravel(variance)

    return jax.vmap(one)(jnp.arange(states))


@eqx.filter_jit
def _log_scores(forecast: MixtureForecast, y: Array) -> Array:
    """Log density of each observation under its mixture."""
    observation, states = forecast.observation, jnp.arange(forecast.probs.shape[1])
    steps = steps_after(forecast, y)
    each = lambda y, step: jax.vmap(lambda k: log_density(observation(k, step), y))(states)
    return jax.nn.logsumexp(jax.vmap(each)(y, steps), axis=1, b=forecast.probs)
