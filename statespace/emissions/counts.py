"""Counts, events and labels of each state."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import gammaln
from jaxtyping import Array, Float

from statespace.checks import require_positive, require_shape, require_support
from statespace.conditionals.finite import check_probabilities, pattern, sparse_simplex
from statespace.emissions.base import (
    NONE,
    IndependentChannels,
    by_channel,
    pooled,
    require_channels,
    require_values,
    visited,
    weighted_mean,
    whole,
)
from statespace.emissions.gaussian import require_location
from statespace.model import Step
from statespace.parameters import as_array, parameter, replace

if TYPE_CHECKING:
    from numpyro.distributions import Distribution


class Poisson(IndependentChannels):
    """Counts of mean ``rate_k`` in state k.

    Args:
        rate: expected counts, shape ``(K, m)``, or ``(K,)`` for a single channel.

    Raises:
        ValueError: if a rate is not positive.
    """

    rate: Float[Array, "..."] = parameter("positive")

    def __check_init__(self) -> None:
        require_location("rate", self.rate)
        require_positive("rate", self.rate, zero=False)

    def check(self, y: Any) -> None:
        """Refuse what is no count."""
        require_channels(self, y, by_channel(self.rate).shape[1])
        require_counts("Poisson", y)

    def law(self, states: Any) -> Distribution:
        """Poisson laws of the channels."""
        from numpyro.distributions import Poisson

        return Poisson(self.rate[states])

    def log_probs(self, y: Float[Array, "T m"], steps: Step) -> Float[Array, "T K"]:
        """Log probability of every observation in every state, by two matrix products."""
        seen = ~jnp.isnan(y)
        counts, rate = jnp.where(seen, y, 0), by_channel(self.rate)
        constant = jnp.sum(gammaln(counts + 1), axis=1, keepdims=True)
        return counts @ jnp.log(rate).T - seen.astype(rate.dtype) @ rate.T - constant

    def m_step(
        self,
        y: Float[Array, "S T m"],
        steps: Step,
        weights: Float[Array, "S T K"],
        *,
        floor: Any = 0.0,
        frozen: frozenset[str] = NONE,
    ) -> Poisson:
        """Weighted means; see :meth:`Emission.m_step`. A state of zeros only keeps a tiny rate."""
        if "rate" in frozen:
            return self
        rate = weighted_mean(*pooled(y, weights), by_channel(self.rate))
        return replace(self, {"rate": _inside(rate, None).reshape(self.rate.shape)})


class Bernoulli(IndependentChannels):
    """Events, 0 or 1, of probability ``probs_k`` in state k.

    Args:
        probs: probability of a 1, shape ``(K, m)``, or ``(K,)`` for a single channel.

    Raises:
        ValueError: if a probability is not between 0 and 1.
    """

    probs: Float[Array, "..."] = parameter("unit_interval")

    def __check_init__(self) -> None:
        require_location("probs", self.probs)
        require_support(
            "probs", self.probs, lambda p: (p > 0) & (p < 1), "be strictly between 0 and 1"
        )

    def check(self, y: Any) -> None:
        """Refuse what is neither 0 nor 1."""
        require_channels(self, y, by_channel(self.probs).shape[1])
        require_values("Bernoulli", y, lambda v: (v == 0) | (v == 1), "0 or 1")

    def law(self, states: Any) -> Distribution:
        """Bernoulli laws of the channels."""
        from numpyro.distributions import BernoulliProbs

        return BernoulliProbs(self.probs[states])

    def log_probs(self, y: Float[Array, "T m"], steps: Step) -> Float[Array, "T K"]:
        """Log probability of every observation in every state, by two matrix products."""
        probs = by_channel(self.probs)
        ones = (y == 1).astype(probs.dtype)
        zeros = (y == 0).astype(probs.dtype)
        return ones @ jnp.log(probs).T + zeros @ jnp.log1p(-probs).T

    def m_step(
        self,
        y: Float[Array, "S T m"],
        steps: Step,
        weights: Float[Array, "S T K"],
        *,
        floor: Any = 0.0,
        frozen: frozenset[str] = NONE,
    ) -> Bernoulli:
        """Weighted frequencies; see :meth:`Emission.m_step`. They stay a rounding error off 0 and 1."""
        if "probs" in frozen:
            return self
        probs = weighted_mean(*pooled(y, weights), by_channel(self.probs))
        return replace(self, {"probs": _inside(probs, 1.0).reshape(self.probs.shape)})


class NegativeBinomial(IndependentChannels):
    """Counts of mean ``mean_k`` and variance ``mean_k + mean_k^2 / concentration_k`` in state k.

    Args:
        mean: expected counts, shape ``(K, m)``, or ``(K,)`` for a single channel.
        concentration: of the shape of ``mean``; the larger, the nearer to Poisson.

    Raises:
        ValueError: if shapes differ, or an entry is not positive.
    """

    mean: Float[Array, "..."] = parameter("positive")
    concentration: Float[Array, "..."] = parameter("positive")

    def __check_init__(self) -> None:
        require_location("mean", self.mean)
        require_shape("concentration", self.concentration, self.mean.shape)
        for name in ("mean", "concentration"):
            require_positive(name, getattr(self, name), zero=False)

    def check(self, y: Any) -> None:
        """Refuse what is no count."""
        require_channels(self, y, by_channel(self.mean).shape[1])
        require_counts("NegativeBinomial", y)

    def law(self, states: Any) -> Distribution:
        """Negative binomial laws of the channels."""
        from numpyro.distributions import NegativeBinomial2

        return NegativeBinomial2(self.mean[states], self.concentration[states])

    def log_probs(self, y: Float[Array, "T m"], steps: Step) -> Float[Array, "T K"]:
        """Log probability of every observation in every state; NaN entries are left out."""
        seen = ~jnp.isnan(y)
        counts = jnp.where(seen, y, 0)[:, None]
        each = _log_negative_binomial(counts, by_channel(self.mean), by_channel(self.concentration))
        constant = jnp.sum(jnp.where(seen, gammaln(counts[:, 0] + 1), 0), axis=1, keepdims=True)
        return jnp.sum(jnp.where(seen[:, None], each, 0), axis=-1) - constant

    def m_step(
        self,
        y: Float[Array, "S T m"],
        steps: Step,
        weights: Float[Array, "S T K"],
        *,
        floor: Any = 0.0,
        frozen: frozenset[str] = NONE,
    ) -> NegativeBinomial:
        """Weighted means, and Newton steps of the logarithm of the concentration that ascend."""
        y, weights = pooled(y, weights)
        mean, concentration = by_channel(self.mean), by_channel(self.concentration)
        if "mean" not in frozen:
            mean = _inside(weighted_mean(y, weights, mean), None)
        if "concentration" not in frozen:
            seen = ~jnp.isnan(y)
            counts = jnp.where(seen, y, 0)[:, None]
            shares = jnp.where(seen[:, None], weights[:, :, None], 0)

            def gain(log_concentration: Array) -> Array:
                each = _log_negative_binomial(counts, mean, jnp.exp(log_concentration))
                return jnp.sum(shares * each, axis=0)

            new = jnp.exp(_newton_each(gain, jnp.log(concentration)))
            concentration = jnp.where(visited(jnp.sum(shares, axis=0)), new, concentration)
        shape = self.mean.shape
        return replace(
            self, {"mean": mean.reshape(shape), "concentration": concentration.reshape(shape)}
        )


class Categorical(IndependentChannels):
    """Labels 0 … C-1 of probabilities ``probs_k`` in state k.

    Args:
        probs: shape ``(K, C)`` for a single channel, or ``(K, m, C)``; the last axis sums to one. An entry
            that is exactly zero stays zero when it is learned.

    Raises:
        ValueError: if the probabilities are negative, do not sum to one, or have another shape.
    """

    possible: Any = eqx.field(static=True)
    probs: Float[Array, "..."] = parameter(sparse_simplex, of_owner=True)

    def __init__(self, probs: Any):
        self.probs = as_array(probs)
        if self.probs.ndim not in (2, 3):
            raise ValueError(
                f"`probs` must have shape (K, C) or (K, m, C), got {self.probs.shape}."
            )
        check_probabilities("probs", self.probs)
        self.possible = pattern(self.probs)

    def check(self, y: Any) -> None:
        """Refuse what is no label."""
        probs = self._probs()
        require_channels(self, y, probs.shape[1])
        last = probs.shape[2] - 1
        require_values(
            "Categorical",
            y,
            lambda v: whole(v) & (v >= 0) & (v <= last),
            f"labels 0 … {last}, as `probs` has {last + 1} columns",
        )

    def law(self, states: Any) -> Distribution:
        """Categorical laws of the channels."""
        from numpyro.distributions import CategoricalProbs

        return CategoricalProbs(self.probs[states], validate_args=False)

    def log_probs(self, y: Float[Array, "T m"], steps: Step) -> Float[Array, "T K"]:
        """Log probability of every observation in every state; NaN entries are left out."""
        probs = self._probs()
        possible = probs > 0
        logs = jnp.where(possible, jnp.log(jnp.where(possible, probs, 1)), -jnp.inf)
        seen = ~jnp.isnan(y)
        labels = jnp.where(seen, y, 0).astype(int)
        each = logs[:, jnp.arange(probs.shape[1]), labels]
        return jnp.sum(jnp.where(seen, each, 0), axis=-1).T

    def m_step(
        self,
        y: Float[Array, "S T m"],
        steps: Step,
        weights: Float[Array, "S T K"],
        *,
        floor: Any = 0.0,
        frozen: frozenset[str] = NONE,
    ) -> Categorical:
        """Weighted frequencies; see :meth:`Emission.m_step`."""
        if "probs" in frozen:
            return self
        y, weights = pooled(y, weights)
        old = self._probs()
        hot = jax.nn.one_hot(jnp.where(jnp.isnan(y), -1, y).astype(int), old.shape[2])
        counts = jnp.einsum("nk,nmc->kmc", weights, hot.astype(weights.dtype))
        total = jnp.sum(counts, axis=-1, keepdims=True)
        some = visited(total)
        probs = jnp.where(some, counts / jnp.where(some, total, 1), old)
        return replace(self, {"probs": probs.reshape(self.probs.shape)})

    def _probs(self) -> Float[Array, "K m C"]:
        return self.probs[:, None] if self.probs.ndim == 2 else self.probs


def require_counts(name: str, y: Any) -> None:
    """Refuse what is no count.

    Raises:
        ValueError: naming the first such entry.
    """
    require_values(name, y, lambda v: whole(v) & (v >= 0), "counts 0, 1, 2, …")


def _log_negative_binomial(y: Array, mean: Array, concentration: Array) -> Array:
    """Without the terms of ``y`` alone."""
    spread = jnp.log1p(mean / concentration)
    return (
        gammaln(y + concentration)
        - gammaln(concentration)
        - (y + concentration) * spread
        + y * (jnp.log(mean) - jnp.log(concentration))
    )


def _newton_each(gain: Any, x: Float[Array, "K m"]) -> Float[Array, "K m"]:
    """Newton steps on a sum of functions of one entry each; of several lengths, the best, or none."""
    slopes = jax.grad(lambda x: jnp.sum(gain(x)))
    lengths = jnp.asarray([1.0, 0.25, 0.0], x.dtype)

    def step(_: Array, x: Array) -> Array:
        slope, bend = jax.jvp(slopes, (x,), (jnp.ones_like(x),))
        move = jnp.where(bend < 0, -slope / jnp.where(bend < 0, bend, -1), jnp.sign(slope))
        tries = x + lengths[:, None, None] * jnp.clip(move, -2, 2)
        values = jax.lax.map(gain, tries)
        values = jnp.where(jnp.isfinite(values), values, -jnp.inf)
        best = jnp.argmax(values, axis=0)
        return jnp.take_along_axis(tries, best[None], axis=0)[0]

    return jax.lax.fori_loop(0, 4, step, x)


def _inside(value: Array, upper: float | None) -> Array:
    """A mean that learning has brought to the edge of its support, just inside."""
    eps = float(np.finfo(np.dtype(value.dtype)).eps)
    return jnp.clip(value, eps, None if upper is None else upper - eps)
