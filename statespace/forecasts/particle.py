"""Observations to come from a model whose states are known by particles."""

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
from statespace.posteriors.particle import ParticlePosterior
from statespace.series import Series


class ParticleForecast(SampledForecast):
    """The law of observations to come: at each moment a mixture over particles.

    Attributes:
        mean: ``E[y_t | data]``, shape ``(h, m)``.
        std: standard deviation of each channel, noise included, shape ``(h, m)``.
        times: shape ``(h,)``.
        posterior: of the states at all moments, those of the data too: paths.
        rows: which of those moments these are, shape ``(h,)``.
        labels: names of these moments and of the channels, or None.
    """

    mean: Float[Array, "h m"]
    std: Float[Array, "h m"]
    times: Float[Array, " h"]
    posterior: ParticlePosterior
    rows: Array
    observation: Any
    steps: Step
    labels: Labels | None = eqx.field(static=True, default=None)

    def log_scores(self, y: Float[Array, "h m"]) -> Float[Array, " h"]:
        """Log density of each observation under its mixture."""
        return _log_scores(self, y)


def forecast(
    model: Any, posterior: ParticlePosterior, series: Series, rows: Array
) -> ParticleForecast:
    """The forecast at some moments of a recording, from paths of the states of all of it.

    Where observations depend on earlier ones, or their distribution has no mean and variance, mean and
    deviation are those of 4,000 paths with a fixed key.
    """
    steps, _ = steps_of(series)
    observation, m = model.observation, series.channels.shape[1]
    found = None
    if not getattr(observation, "lags", 0):
        found = _moments(observation, posterior, jax.tree.map(lambda x: x[rows], steps), rows)
    if found is None:
        key = jax.random.key(0)
        draws = observations_on_paths(observation, posterior, steps, key, DRAWS)[:, rows]
        found = draws.mean(axis=0), draws.std(axis=0)
    mean, std = (x.reshape(len(rows), m) for x in found)
    times = series.times[rows]
    return ParticleForecast(mean, std, times, posterior, rows, observation, steps)


def _moments(
    observation: Any, posterior: ParticlePosterior, steps: Step, rows: Array
) -> tuple[Array, Array] | None:
    """Mean and deviation of the mixtures, where the observation's distributions have them."""

    def one(x: Any, step: Step) -> tuple[Array, Array]:
        mean, variance = mean_and_variance(observation(x, step))
        return jnp.ravel(mean), jnp.ravel(variance)

    states = jax.tree.map(lambda x: x[rows], posterior.particles)
    try:
        means, variances = jax.vmap(jax.vmap(one, in_axes=(0, None)))(states, steps)
    except (NotImplementedError, AttributeError):
        return None
    return of_mixtures(posterior.weights[rows], means, variances)


@eqx.filter_jit
def _log_scores(forecast: ParticleForecast, y: Array) -> Array:
    """Log density of each observation under its mixture."""
    observation, rows = forecast.observation, forecast.rows
    steps = steps_after(forecast, y)
    states = jax.tree.map(lambda x: x[rows], forecast.posterior.particles)
    one = lambda x, step, y: log_density(observation(x, step), y)
    each = jax.vmap(jax.vmap(one, in_axes=(0, None, None)))(states, steps, y)
    return jax.nn.logsumexp(each + forecast.posterior.log_weights[rows], axis=1)
