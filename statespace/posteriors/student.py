"""Laws whose covariances share an unknown factor: Gaussian given it, Student t without it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from statespace import student
from statespace.posteriors.gaussian import Forecast, GaussianPosterior, Gaussians, Signal
from statespace.scores import Score
from statespace.series import as_series

if TYPE_CHECKING:
    from numpyro.distributions import InverseGamma


class Students:
    """Student t laws over time, of records that hold Gaussian ones given the factor."""

    if TYPE_CHECKING:  # the records have these as fields
        mean: Float[Array, "T d"]
        unit_covariance: Float[Array, "T d d"]
        shape: Float[Array, " T"]
        rate: Float[Array, " T"]

    @property
    def degrees_of_freedom(self) -> Float[Array, " T"]:
        """Of the Student t law at each moment; the covariance is finite above 2."""
        return 2 * self.shape

    @property
    def scale_matrix(self) -> Float[Array, "T d d"]:
        """Of the Student t law at each moment: ``unit_covariance`` times rate / shape."""
        return self.unit_covariance * (self.rate / self.shape)[:, None, None]

    def quantile(self, q: Any) -> Float[Array, "*Q T d"]:
        """Quantiles of each coordinate at each moment.

        Args:
            q: a probability in (0, 1), or an array of them.

        Returns:
            Shape ``(T, d)``, or ``(Q, T, d)`` for Q probabilities.

        Raises:
            ValueError: if a probability is not inside (0, 1).
        """
        Gaussians.quantile(self, q)  # for its check of q
        levels = jnp.asarray(q, self.mean.dtype)[..., None]
        t = student.quantile(levels, self.degrees_of_freedom)[..., None]
        variance = jnp.diagonal(self.scale_matrix, axis1=-2, axis2=-1)
        # a flat direction has an infinite scale; its median is the mean all the same
        return self.mean + jnp.where(t == 0, 0.0, t * jnp.sqrt(jnp.maximum(variance, 0.0)))


class StudentSignal(Students, Signal):
    """What the states say the observations are, without their noise: see :class:`Signal`.

    Attributes:
        unit_covariance: given that the factor is 1, shape ``(T, m, m)``.
        shape: of the factor's law, shape ``(T,)``.
        rate: of the factor's law, shape ``(T,)``.
    """

    unit_covariance: Any = None
    shape: Any = None
    rate: Any = None


class StudentPosterior(Students, GaussianPosterior):
    """The law of the states given the data where an unknown factor multiplies all covariances.

    Student t at each moment, with ``2 shape`` degrees of freedom. ``mean`` is its centre, and its mean where
    there is more than one degree of freedom; ``covariance`` is infinite up to two of them. The fields of
    :class:`GaussianPosterior` are here as there, and besides:

    Attributes:
        unit_covariance: covariances given that the factor is 1, shape ``(T, n, n)``.
        shape: of the factor's inverse gamma law given the same data as the state, shape ``(T,)``.
        rate: likewise, shape ``(T,)``.
        errors: errors of the one-step predictions as standard normal deviates, shape ``(T, m)``; NaN where
            missing.
    """

    unit_covariance: Any = None
    shape: Any = None
    rate: Any = None
    errors: Any = None

    @property
    def scale(self) -> InverseGamma:
        """The law of the factor at each moment, of which the last one is given all the data."""
        from numpyro.distributions import InverseGamma

        return InverseGamma(self.shape, self.rate)

    @property
    def innovations(self) -> Float[Array, "T m"]:
        """One-step prediction errors as standard normal deviates: independent when the model is right.

        Each channel is taken given those before it. NaN where missing or where the prediction was diffuse.
        """
        return self.errors

    @property
    def signal(self) -> StudentSignal:
        """What the states say the observations are, without their noise: ``H x_t + d``."""
        given = self.given().signal
        covariance = inflated(given.covariance, self.shape, self.rate)
        law = (given.covariance, self.shape, self.rate)
        return StudentSignal(given.mean, covariance, self.times, self.labels, *law)

    def given(self, factor: float | Array = 1.0) -> GaussianPosterior:
        """The law of the states if the factor were known; trajectories are drawn with a factor of 1.

        Args:
            factor: a positive number.
        """
        return GaussianPosterior(
            mean=self.mean,
            covariance=self.unit_covariance * factor,
            times=self.times,
            chain=self.chain,
            rows=self.rows,
            kind=self.kind,
            labels=self.labels,
            state_names=self.state_names,
            form=self.form,
            parallel=self.parallel,
        )

    def sample(self, key: PRNGKeyArray, draws: int = 1) -> Float[Array, "draws T n"]:
        """Draws of the states, each with a draw of the factor.

        Of a smoothed posterior these are joint trajectories. Those of a filtered one are independent from
        moment to moment, the factor too, and NaN where a state is still diffuse.

        Args:
            key: a PRNG key.
            draws: how many.
        """
        one, two = jax.random.split(key)
        shape, rate = (self.shape, self.rate)
        if self.kind == "smoothed":  # one factor for all moments
            shape, rate = shape[-1:], rate[-1:]
        return spread_out(self.given().sample(two, draws), self.mean, shape, rate, one)

    def cut(self, size: int) -> StudentPosterior:
        """The first moments of a padded recording."""
        short: Any = super().cut(size)
        names = ("unit_covariance", "shape", "rate", "errors")
        return dataclasses.replace(short, **{name: getattr(self, name)[:size] for name in names})


class StudentForecast(Students, Forecast):
    """The law of observations to come, Student t at each moment: see :class:`Forecast`.

    Attributes:
        unit_covariance: given that the factor is 1, shape ``(h, m, m)``.
        shape: of the factor's law, shape ``(h,)``.
        rate: of the factor's law, shape ``(h,)``.
    """

    unit_covariance: Any = None
    shape: Any = None
    rate: Any = None

    def sample(self, key: PRNGKeyArray, draws: int = 1) -> Float[Array, "draws h m"]:
        """Paths of observations to come, drawn jointly over the moments, each with a draw of the factor.

        Args:
            key: a PRNG key.
            draws: how many.
        """
        one, two = jax.random.split(key)
        state: Any = self.state
        given = Forecast(self.mean, self.unit_covariance, self.times, state=state.given())
        law = (self.shape[-1:], self.rate[-1:])
        return spread_out(given.sample(two, draws), self.mean, *law, one)

    def score(self, y: Any, levels: Sequence[float] = (0.5, 0.8, 0.95)) -> Score:
        """Scores against what came, of the Student t laws: see :meth:`Forecast.score`.

        Raises:
            ValueError: if there is not one observation for each moment and channel.
        """
        super().score(y, levels)  # for its checks
        index = None if self.labels is None else self.labels.index
        if index is not None and type(y).__module__.split(".")[0] == "pandas":
            y = y.reindex(index)
        law = (self.mean, self.scale_matrix, self.degrees_of_freedom)
        return student.score(as_series(y).channels, *law, tuple(levels))


def inflated(
    unit: Float[Array, "T d d"], shape: Float[Array, " T"], rate: Float[Array, " T"]
) -> Float[Array, "T d d"]:
    """Covariances without the factor; infinite up to two degrees of freedom, with the sign that they have."""
    finite = (shape > 1)[:, None, None]
    mean = rate / jnp.where(shape > 1, shape - 1, 1)
    infinite = jnp.where(unit == 0, 0.0, jnp.copysign(jnp.inf, unit))
    return jnp.where(finite, unit * mean[:, None, None], infinite)


def spread_out(
    draws: Float[Array, "draws T d"],
    mean: Float[Array, "T d"],
    shape: Float[Array, " T"],
    rate: Float[Array, " T"],
    key: PRNGKeyArray,
) -> Float[Array, "draws T d"]:
    """Draws made with a factor of 1, as draws with one of its law, for each entry of ``shape``."""
    factor = rate / jax.random.gamma(key, shape, (len(draws), *np.shape(shape)), mean.dtype)
    return mean + jnp.sqrt(factor)[..., None] * (draws - mean)
