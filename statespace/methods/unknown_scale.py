"""Exact inference in linear Gaussian models whose covariances share an unknown factor."""

from __future__ import annotations

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from statespace.chains import gaussian
from statespace.chains.gaussian import scale
from statespace.chains.gaussian.scale import InverseGamma, Terms
from statespace.chains.moments import compensated_sum
from statespace.checks import known
from statespace.methods.kalman import Kalman
from statespace.parameters import as_array
from statespace.posteriors.student import (
    StudentForecast,
    StudentPosterior,
    inflated,
    spread_out,
)
from statespace.scores import whiten
from statespace.series import Series
from statespace.student import as_normal


class ConjugateScale(Kalman):
    """Exact filter and smoother where an unknown factor multiplies all covariances (the Student t filter).

    ``s ~ InverseGamma(shape, rate)`` multiplies the covariances of the initial law, of the transition's and
    of the observation's noise, so that the model need only give them in proportion. Gains do not change; each
    observation is predicted by a Student t law with ``2 shape`` degrees of freedom, and adds one half to the
    shape and half its squared error, in units of its variance, to the rate. The likelihood is the density of
    one multivariate Student t law, the states are Student t, and their intervals widen where the recording
    is noisier than the model says. Each recording of a panel has a factor of its own.

    Needs what :class:`Kalman` needs, and supports what it supports. With ``q`` exactly diffuse directions
    the first q observations say nothing of the factor.

    Source: West & Harrison (1997), Bayesian Forecasting and Dynamic Models, section 4.5, where the
    unit of all variances is that of the observation; Tronarp, Karvonen & Särkkä (2019), Student's t-filters
    for noise scale estimation.

    Args:
        shape: of the factor's prior, positive. Its mean is ``rate / (shape - 1)`` above 1.
        rate: of the factor's prior, positive.
        form: "covariance", or "sqrt" for recursions on factors. None: "sqrt" in float32, "covariance" in
            float64.
        parallel: whether to use associative scans. None: on accelerators only.

    Raises:
        ValueError: if ``shape`` or ``rate`` is not a positive number, or ``form`` is neither.

    Example:
        >>> posterior = ss.smooth(model, y, method=ss.ConjugateScale(shape=2.0, rate=2.0))
        >>> posterior.interval(0.9), posterior.scale.mean[-1]
    """

    shape: Float[Array, ""] = eqx.field(kw_only=True)
    rate: Float[Array, ""] = eqx.field(kw_only=True)

    def __init__(
        self,
        shape: Any,
        rate: Any,
        form: gaussian.Form | None = None,
        parallel: bool | None = None,
    ):
        self.shape, self.rate = as_array(shape), as_array(rate)
        self.form, self.parallel = form, parallel

    def __check_init__(self) -> None:
        for name in ("shape", "rate"):
            value = getattr(self, name)
            if known(value) and not (np.shape(value) == () and 0 < float(value) < np.inf):
                raise ValueError(
                    f"`{name}` of ConjugateScale must be a positive number, got {value}."
                )

    def prior(self, dtype: Any) -> InverseGamma:
        """The law of the factor before any data."""
        return InverseGamma(self.shape.astype(dtype), self.rate.astype(dtype))

    def log_likelihood(self, model: Any, series: Series) -> Float[Array, ""]:
        """``log p(y)``, the factor integrated out."""
        chain, how = self.lower(model, series)
        prior = self.prior(chain.initial.mean.dtype)
        return scale.log_evidence(prior, scale.total(chain, **how))

    def pointwise(self, model: Any, series: Series) -> Float[Array, " T"]:
        """``log p(y_t | y_0 … y_{t-1})`` of each moment, the factor integrated out."""
        chain, how = self.lower(model, series)
        terms = scale.each(chain, **how)
        return scale.log_evidence(self._along(terms)[0], terms)

    def standardised_errors(self, model: Any, series: Series) -> Float[Array, "T m"]:
        """One-step prediction errors as standard normal deviates; NaN where missing."""
        return self.posterior(model, series, "filtered").errors

    def posterior(self, model: Any, series: Series, kind: Any) -> StudentPosterior:
        """The law of the states and of the factor: "filtered" or "smoothed"."""
        lowered = self.lower(model, series)
        plain = self.posterior_of(model, series, lowered, kind)
        terms = scale.each(lowered.chain, **lowered.how)
        before, after = self._along(terms)
        pointwise = scale.log_evidence(before, terms)
        last = jax.tree.map(lambda x: jnp.broadcast_to(x[-1], x.shape), after)
        shape, rate = last if kind == "smoothed" else after
        unit: Any = plain.predicted_covariance
        fields = {f.name: getattr(plain, f.name) for f in dataclasses.fields(plain)}
        fields |= {
            "covariance": inflated(plain.covariance, shape, rate),
            "predicted_covariance": inflated(unit, *before),
            "pointwise": pointwise,
            "log_likelihood": compensated_sum(pointwise),
        }
        if plain.lag_one is not None:
            mean = jnp.where(shape > 1, rate / jnp.where(shape > 1, shape - 1, 1), jnp.nan)
            fields["lag_one"] = plain.lag_one * mean[:-1, None, None]
        return StudentPosterior(
            **fields,
            unit_covariance=plain.covariance,
            shape=shape,
            rate=rate,
            errors=_deviates(series.channels - plain.predicted_mean, unit, before),
        )

    def sample_states(
        self, model: Any, series: Series, key: PRNGKeyArray, draws: int
    ) -> Float[Array, "draws T n"]:
        """Joint draws of all states given all observations, each with a draw of the factor."""
        chain, how = self.lower(model, series)
        law = self.prior(chain.initial.mean.dtype).after(scale.total(chain, **how))
        one, two = jax.random.split(key)
        drawn = gaussian.sample(chain, two, draws, **how)
        mean = gaussian.smooth(chain, **how).mean
        return spread_out(drawn, mean, law.shape[None], law.rate[None], one)

    def forecast(self, model: Any, series: Series, rows: Array) -> StudentForecast:
        """The law of observations at some moments of a recording, of which they are not part."""
        plain = super().forecast(model, series, rows)
        chain, how = self.lower(model, series)
        law = self.prior(plain.mean.dtype).after(scale.total(chain, **how))
        shape, rate = (jnp.broadcast_to(x, rows.shape) for x in law)
        given: Any = plain.state
        fields = {f.name: getattr(given, f.name) for f in dataclasses.fields(given)}
        fields["covariance"] = inflated(given.covariance, shape, rate)
        state = StudentPosterior(**fields, unit_covariance=given.covariance, shape=shape, rate=rate)
        return StudentForecast(
            plain.mean,
            inflated(plain.covariance, shape, rate),
            plain.times,
            state=state,
            unit_covariance=plain.covariance,
            shape=shape,
            rate=rate,
        )

    def online(self, model: Any, dt: float) -> Any:
        """The filter one observation at a time."""
        from statespace.methods.online_scale import ScaleOnline

        return ScaleOnline(model, self, dt)

    def _along(self, terms: Terms) -> tuple[InverseGamma, InverseGamma]:
        """The law of the factor before each moment's observation, and after it."""
        prior = self.prior(terms.free.dtype)
        sums = jax.tree.map(jnp.cumsum, terms)
        return prior.after(jax.tree.map(jnp.subtract, sums, terms)), prior.after(sums)


def _deviates(
    error: Float[Array, "T m"], unit: Float[Array, "T m m"], before: InverseGamma
) -> Float[Array, "T m"]:
    """Errors as normal deviates, each channel given the channels before it, which tell of the factor too."""
    white, _ = whiten(error, unit)
    seen = ~jnp.isnan(white)
    square = jnp.where(seen, white, 0) ** 2
    earlier = lambda x: jnp.cumsum(x, axis=1) - x
    shape = before.shape[:, None] + 0.5 * earlier(seen.astype(white.dtype))
    rate = before.rate[:, None] + 0.5 * earlier(square)
    return as_normal(white * jnp.sqrt(shape / rate), 2 * shape)
