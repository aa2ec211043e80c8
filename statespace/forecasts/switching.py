"""Observations to come from a switching model whose states are known by mixtures."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from statespace.chains.gaussian.covariances import predict
from statespace.chains.gaussian.mixtures import covariances, mixture_moments, spreads
from statespace.forecasts.sampled import SampledForecast
from statespace.labels import Labels
from statespace.methods.lowering import steps_of
from statespace.model import Step
from statespace.posteriors.mixture import MixturePosterior
from statespace.probabilities import mixture_quantiles, probabilities
from statespace.scores import log_density
from statespace.series import Series


class SwitchingForecast(SampledForecast):
    """The law of observations to come: at each moment a mixture of N normal laws.

    Attributes:
        mean: ``E[y_t | data]``, shape ``(h, m)``.
        covariance: ``Cov[y_t | data]``, noise included, shape ``(h, m, m)``.
        times: shape ``(h,)``.
        log_weights: of the components, shape ``(h, N)``.
        means: of an observation in each component, shape ``(h, N, m)``.
        covariances: likewise, shape ``(h, N, m, m)``.
        posterior: of regimes and states at all moments, those of the data too.
        rows: which of those moments these are, shape ``(h,)``.
        labels: names of these moments and of the channels, or None.
    """

    mean: Float[Array, "h m"]
    covariance: Float[Array, "h m m"]
    times: Float[Array, " h"]
    log_weights: Float[Array, "h N"]
    means: Float[Array, "h N m"]
    covariances: Float[Array, "h N m m"]
    posterior: MixturePosterior
    rows: Array
    observation: Any
    steps: Step
    labels: Labels | None = eqx.field(static=True, default=None)

    @property
    def std(self) -> Float[Array, "h m"]:
        """Standard deviation of each channel, noise included."""
        return jnp.sqrt(jnp.diagonal(self.covariance, axis1=-2, axis2=-1))

    @property
    def probs(self) -> Float[Array, "h K"]:
        """Probabilities of the regimes at these moments."""
        return self.posterior.probs[self.rows]

    def quantile(self, q: Any, key: PRNGKeyArray | None = None) -> Float[Array, "*Q h m"]:
        """Quantiles of each channel of the mixture at each moment, by bisection.

        Args:
            q: a probability in (0, 1), or an array of them.
            key: not needed.

        Raises:
            ValueError: if a probability is not inside (0, 1).
        """
        levels = probabilities("q", q)
        law = (jnp.exp(self.log_weights), self.means, self.covariances)
        found = mixture_quantiles(*law, jnp.asarray(np.ravel(levels)))
        return found.reshape(levels.shape + self.mean.shape)

    def log_scores(self, y: Float[Array, "h m"]) -> Float[Array, " h"]:
        """Log density of each observation under its mixture."""
        return _log_scores(self.log_weights, self.means, self.covariances, y)


@jax.jit
def _log_scores(log_weights: Array, means: Array, laws: Array, y: Array) -> Array:
    """Log density of each observation under its mixture."""
    each = jax.vmap(lambda mean, covariance: log_density(y - mean, covariance), 1, 1)
    return jax.nn.logsumexp(log_weights + each(means, laws), axis=1)


def forecast(
    law: Any, posterior: MixturePosterior, series: Series, rows: Array
) -> SwitchingForecast:
    """The forecast at some moments of a recording, from the smoothed mixtures of all of it."""
    steps, _ = steps_of(series)
    m = series.channels.shape[1]

    def one(regime: Array, mean: Array, covariance: Array, step: Step) -> tuple[Array, Array]:
        spread = spreads(covariance[None], law.form)[0]
        means, laws = [], []
        for k in range(law.regimes):
            h, d, r = law.sees(k, step, mean, spread, jnp.zeros(m, mean.dtype))
            means.append(h @ mean + d)
            laws.append(covariances(predict(spread, h, r, law.form), law.form))
        return jnp.stack(means)[regime], jnp.stack(laws)[regime]

    parts = (posterior.regimes, posterior.means, posterior.covariances)
    there = jax.tree.map(lambda x: x[rows], (*parts, steps))
    means, laws = jax.vmap(jax.vmap(one, (0, 0, 0, None)))(*there)
    log_weights = posterior.log_weights[rows]
    mean, covariance = jax.vmap(mixture_moments)(jnp.exp(log_weights), means, laws)
    return SwitchingForecast(
        mean,
        covariance,
        series.times[rows],
        log_weights,
        means,
        laws,
        posterior,
        rows,
        law.model.observation,
        steps,
    )
