"""Observations to come from a model whose states are known by normal laws, and whose observations are not."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from statespace.forecasts.sampled import SampledForecast
from statespace.labels import Labels
from statespace.model import Step
from statespace.posteriors.gaussian import GaussianPosterior


class NonGaussianForecast(SampledForecast):
    """The law of observations to come: at each moment the observation's, over a normal law of the state.

    Mean and covariance are by quadrature; quantiles and intervals those of drawn paths, of counts therefore
    whole numbers.

    Attributes:
        mean: ``E[y_t | data]``, shape ``(h, m)``.
        covariance: ``Cov[y_t | data]``, noise included, shape ``(h, m, m)``.
        times: shape ``(h,)``.
        posterior: of the states at all moments, those of the data too.
        rows: which of those moments these are, shape ``(h,)``.
        labels: names of these moments and of the channels, or None.
    """

    mean: Float[Array, "h m"]
    covariance: Float[Array, "h m m"]
    times: Float[Array, " h"]
    posterior: GaussianPosterior
    rows: Array
    observation: Any
    steps: Step
    rule: Any
    settings: Any = eqx.field(static=True)
    labels: Labels | None = eqx.field(static=True, default=None)

    @property
    def convergence(self) -> Any:
        """How the iteration for the states ended."""
        return self.posterior.convergence

    @property
    def std(self) -> Float[Array, "h m"]:
        """Standard deviation of each channel, noise included."""
        return jnp.sqrt(jnp.diagonal(self.covariance, axis1=1, axis2=2))

    def log_scores(self, y: Float[Array, "h m"]) -> Float[Array, " h"]:
        """Log density of each observation, as the method approximates it."""
        return _log_scores(self, y)


@eqx.filter_jit
def _log_scores(forecast: NonGaussianForecast, y: Array) -> Array:
    from statespace.methods.site_filter import update

    states, rows = forecast.posterior, forecast.rows

    def one(step: Step, y: Array, mean: Array, covariance: Array) -> Array:
        how = (forecast.rule, forecast.settings, forecast.observation, step, y)
        return update(*how, mean, covariance, "covariance").log_density

    steps = jax.tree.map(lambda x: x[rows], forecast.steps)
    y = y.astype(states.mean.dtype)
    return jax.vmap(one)(steps, y, states.mean[rows], states.covariance[rows])
