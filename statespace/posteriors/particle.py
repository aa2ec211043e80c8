"""The law of the states given the data, as weighted particles."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from statespace.arviz import require_arviz, time_coordinate, to_inference_data
from statespace.functionals import Additive
from statespace.labels import Labels, channel_names, moments, table
from statespace.model import Step
from statespace.probabilities import probabilities, tails, weighted_quantile


class ParticlePosterior(eqx.Module):
    """The law of the states given the data: N weighted particles at each moment.

    Attributes:
        particles: states, an array ``(T, N, ...)`` or a pytree of them.
        log_weights: shape ``(T, N)``, normalised at each moment.
        times: shape ``(T,)``.
        log_likelihood: log of an unbiased estimate of the density of all observations.
        pointwise: of the observations at each moment given those before, shape ``(T,)``, of which the log
            likelihood is the sum.
        ess: effective sample size of the filter's weights at each moment, shape ``(T,)``.
        resampled: whether ancestors were drawn on the way to each moment, shape ``(T,)``.
        impossible: at which moments no particle could produce the observation, shape ``(T,)``; they are
            passed over.
        y: the observations, shape ``(T, m)``, NaN where missing.
        steps: the steps of the moments.
        ancestors: of each particle the number of the one it came from, shape ``(T, N)``; None where they
            are not kept or the particles are paths.
        components: what each named part of the model contributes to the observations, or None.
        kind: "filtered" (given the data up to each moment) or "smoothed" (given all data).
        paths: whether the n-th particles of all moments are a path of states.
        states: the number K of states where they are finitely many, else None.
        labels: names of moments and channels, or None.
        state_names: names of the coordinates (of the K states), or None.
    """

    particles: Any
    log_weights: Float[Array, "T N"]
    times: Float[Array, " T"]
    log_likelihood: Float[Array, ""]
    pointwise: Float[Array, " T"]
    ess: Float[Array, " T"]
    resampled: Bool[Array, " T"]
    impossible: Bool[Array, " T"]
    y: Float[Array, "T m"]
    steps: Step
    ancestors: Int[Array, "T N"] | None = None
    components: dict[str, Any] | None = None
    kind: Literal["filtered", "smoothed"] = eqx.field(static=True, default="filtered")
    paths: bool = eqx.field(static=True, default=False)
    states: int | None = eqx.field(static=True, default=None)
    labels: Labels | None = eqx.field(static=True, default=None)
    state_names: tuple[str, ...] | None = eqx.field(static=True, default=None)

    def __len__(self) -> int:
        return self.log_weights.shape[0]

    @property
    def weights(self) -> Float[Array, "T N"]:
        """Weights, which sum to one at each moment."""
        return jnp.exp(self.log_weights)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the coordinates; x0, x1 … where the model gives none (0, 1 … of finite states)."""
        if self.state_names is not None:
            return self.state_names
        if self.states is not None:
            return tuple(str(k) for k in range(self.states))
        return tuple(f"x{i}" for i in range(self._flat(self.particles).shape[2]))

    @property
    def channel_names(self) -> tuple[str, ...]:
        """Names of the observed channels; y0, y1 … (y for a single one) where the data has none."""
        return channel_names(self.labels, self.y.shape[1])

    @property
    def probs(self) -> Float[Array, "T K"]:
        """Of finite states: the probability of each.

        Raises:
            ValueError: if the states are not finitely many.
        """
        if self.states is None:
            raise ValueError("only a posterior of finitely many states has `probs`: use `mean`.")
        is_one = self.particles[..., None] == jnp.arange(self.states)
        return jnp.sum(self.weights[..., None] * is_one, axis=1)

    @property
    def mean(self) -> Any:
        """Expectation of each state, shape ``(T, ...)``; of finite states their probabilities ``(T, K)``."""
        if self.states is not None:
            return self.probs
        return self.expectation(lambda x: x)

    @property
    def variance(self) -> Any:
        """Variance of each coordinate, in the shape of ``mean``."""
        if self.states is not None:
            return self.probs * (1 - self.probs)
        centre = self.mean
        square = lambda x, m: (x - m[:, None]) ** 2
        return self._weighted(jax.tree.map(square, self.particles, centre))

    @property
    def std(self) -> Any:
        """Standard deviation of each coordinate, in the shape of ``mean``."""
        return jax.tree.map(jnp.sqrt, self.variance)

    @property
    def covariance(self) -> Float[Array, "T n n"]:
        """Covariance of the coordinates of each state."""
        x = self._flat(self.particles)
        error = x - self._weighted(x)[:, None]
        return jnp.einsum("tn,tni,tnj->tij", self.weights, error, error)

    def quantile(self, q: Any) -> Any:
        """Quantiles of each coordinate: the least particle whose cumulative weight reaches ``q``.

        Args:
            q: a probability in (0, 1), or an array of them.

        Returns:
            Shape ``(T, ...)``, or ``(Q, T, ...)`` for Q probabilities.

        Raises:
            ValueError: if a probability is not inside (0, 1).
        """
        levels = probabilities("q", q)
        wanted = jnp.asarray(levels.ravel(), self.log_weights.dtype)
        each = lambda x: weighted_quantile(x, self.weights, wanted).reshape(
            levels.shape + x.shape[:1] + x.shape[2:]
        )
        return jax.tree.map(each, self.particles)

    def interval(self, level: float = 0.9) -> tuple[Any, Any]:
        """Bounds of the central interval with this probability, each in the shape of ``mean``.

        Raises:
            ValueError: if the level is not inside (0, 1).
        """
        low, high = tails(level)
        return self.quantile(low), self.quantile(high)

    def expectation(self, functional: Callable[..., Any] | Additive) -> Any:
        """Expectation of a function of each state, or of an additive functional of the path.

        Args:
            functional: ``state ->`` an array or a pytree of arrays; or an :class:`~statespace.Additive`.

        Returns:
            Of a function a leading axis of T; of an additive functional one value.

        Raises:
            ValueError: for an additive functional, if the particles are no paths.
        """
        if not isinstance(functional, Additive):
            return self._weighted(jax.vmap(jax.vmap(functional))(self.particles))
        if not self.paths:
            raise ValueError(
                "an additive functional needs paths of states, and these particles are single states: use "
                "`expect`, or `smooth` with BackwardSampling()."
            )
        return _additive(self, functional)

    def sample(self, key: PRNGKeyArray, draws: int = 1) -> Any:
        """Draws of the states, shape ``(draws, T, ...)``.

        Of paths these are joint trajectories; of single states, which are a law for each moment, they are
        independent from moment to moment.

        Args:
            key: a PRNG key.
            draws: how many.
        """
        if self.paths:
            chosen = jax.random.categorical(key, self.log_weights[-1], shape=(draws,))
            return jax.tree.map(lambda x: jnp.moveaxis(x[:, chosen], 1, 0), self.particles)
        chosen = jax.random.categorical(key, self.log_weights, shape=(draws, len(self)))
        every = jnp.arange(len(self))
        return jax.tree.map(lambda x: x[every, chosen], self.particles)

    def labelled(self, labels: Labels | None) -> ParticlePosterior:
        """The same with names of moments and channels."""
        return dataclasses.replace(self, labels=labels)

    def cut(self, size: int) -> ParticlePosterior:
        """The first moments of a padded recording."""
        over = {name: getattr(self, name) for name in _OVER_TIME}
        parts = jax.tree.map(lambda x: x[:size], over)
        return dataclasses.replace(self, **parts, log_likelihood=parts["pointwise"].sum())

    def to_pandas(self, level: float = 0.9) -> Any:
        """A DataFrame over the moments, with columns (coordinate, mean | std | lower | upper).

        Of finite states the columns are their probabilities.

        Args:
            level: probability of the central interval between lower and upper.
        """
        if self.states is not None:
            import pandas as pd

            index = moments(self.times, self.labels)
            return pd.DataFrame(np.asarray(self.probs), index=index, columns=list(self.names))
        low, high = self.interval(level)
        parts = {"mean": self.mean, "std": self.std, "lower": low, "upper": high}
        flat = {part: self._flat(x, lead=1) for part, x in parts.items()}
        return table(self.names, flat, self.times, self.labels)

    def to_arviz(self, key: PRNGKeyArray | None = None, draws: int = 500) -> Any:
        """For ArviZ: InferenceData (ArviZ < 1) or a DataTree (ArviZ >= 1).

        Groups: ``posterior`` with draws of ``states`` (chain, draw, time, state; no last axis of finite
        states); ``observed_data`` with ``y`` (time, channel); ``log_likelihood`` with the one-step predictive
        log density of ``y`` (time); ``sample_stats`` with ``ess`` (time).

        Args:
            key: a PRNG key for the draws; default: a fixed one.
            draws: how many.

        Raises:
            ImportError: if ArviZ is not installed.
        """
        require_arviz()
        drawn = self.sample(jax.random.key(0) if key is None else key, draws)
        dims: tuple[str, ...] = ("chain", "draw", "time")
        if self.states is None:
            drawn, dims = self._flat(drawn), (*dims, "state")
        groups = {
            "posterior": {"states": (dims, drawn[None])},
            "log_likelihood": {"y": (("time",), self.pointwise)},
            "observed_data": {"y": (("time", "channel"), self.y)},
            "sample_stats": {"ess": (("time",), self.ess)},
        }
        coords = {
            "time": time_coordinate(self.times, self.labels),
            "state": list(self.names),
            "channel": list(self.channel_names),
        }
        return to_inference_data(groups, coords)

    def _weighted(self, values: Any) -> Any:
        """Weighted means over the particles, of whatever has them as its second axis."""
        w = self.weights

        def each(x: Array) -> Array:
            weights = w.reshape(w.shape + (1,) * (x.ndim - 2))
            # a particle without weight counts for nothing, also where its value is infinite
            return jnp.sum(jnp.where(weights > 0, weights * x, 0), axis=1)

        return jax.tree.map(each, values)

    def _flat(self, values: Any, lead: int = 2) -> Float[Array, "T N n"]:
        """All coordinates of a pytree side by side."""
        parts = [x.reshape(*x.shape[:lead], -1) for x in jax.tree.leaves(values)]
        return jnp.concatenate(parts, axis=-1)


_OVER_TIME = (
    "particles",
    "log_weights",
    "times",
    "pointwise",
    "ess",
    "resampled",
    "impossible",
    "y",
    "steps",
    "ancestors",
)


def _additive(posterior: ParticlePosterior, functional: Additive) -> Any:
    """Weighted mean of a functional over the paths, one moment after the other."""
    weights = jnp.exp(posterior.log_weights[-1])
    mean = lambda h: jax.tree.map(lambda x: jnp.tensordot(weights, x, axes=1), h)
    rows = (posterior.particles, posterior.steps, posterior.y)

    def term(before: Any, at: tuple) -> tuple[Any, Any]:
        now, step, y = at
        each = jax.vmap(functional.later, in_axes=(0, 0, None, None))
        return now, mean(each(before, now, step, y))

    first, later = (jax.tree.map(lambda x, s=s: x[s], rows) for s in (0, slice(1, None)))
    terms = jax.lax.scan(term, first[0], later)[1]
    total = jax.tree.map(lambda x: jnp.sum(x, axis=0), terms)
    if functional.first is None:
        return total
    start = mean(jax.vmap(functional.first, in_axes=(0, None, None))(*first))
    return jax.tree.map(jnp.add, total, start)
