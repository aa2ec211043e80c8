"""What inference returns: the law of the states given the data, and of observations to come."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy.special import ndtri
from jaxtyping import Array, Float, Int, PRNGKeyArray

from statespace.arviz import predictions, require_arviz, time_coordinate, to_inference_data
from statespace.conditionals.affine import psd_factor
from statespace.labels import Labels, channel_names, table
from statespace.probabilities import probabilities, tails
from statespace.scores import Score, score_gaussian, whiten
from statespace.series import as_series


class Gaussians(eqx.Module):
    """A Gaussian at each moment: the face that posteriors and forecasts share."""

    mean: eqx.AbstractVar[Float[Array, "T d"]]
    covariance: eqx.AbstractVar[Float[Array, "T d d"]]
    times: eqx.AbstractVar[Float[Array, " T"]]
    labels: eqx.AbstractVar[Labels | None]

    def __len__(self) -> int:
        return self.mean.shape[0]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the d coordinates."""
        raise NotImplementedError

    @property
    def std(self) -> Float[Array, "T d"]:
        """Standard deviation of each coordinate at each moment."""
        variance = jnp.diagonal(self.covariance, axis1=-2, axis2=-1)
        return jnp.sqrt(jnp.maximum(variance, 0.0))

    def quantile(self, q: Any) -> Float[Array, "*Q T d"]:
        """Quantiles of each coordinate at each moment.

        Args:
            q: a probability in (0, 1), or an array of them.

        Returns:
            Shape ``(T, d)``, or ``(Q, T, d)`` for Q probabilities.

        Raises:
            ValueError: if a probability is not inside (0, 1).
        """
        probabilities("q", q)
        z = ndtri(jnp.asarray(q, self.mean.dtype))[..., None, None]
        # A flat direction has an infinite deviation; its median is the mean all the same.
        return self.mean + jnp.where(z == 0, 0.0, z * self.std)

    def interval(self, level: float = 0.9) -> tuple[Float[Array, "T d"], Float[Array, "T d"]]:
        """Bounds of the central interval with this probability, each ``(T, d)``.

        Raises:
            ValueError: if the level is not inside (0, 1).
        """
        low, high = self.quantile(jnp.asarray(tails(level)))
        return low, high

    def to_pandas(self, level: float = 0.9) -> Any:
        """A DataFrame over the moments, with columns (coordinate, mean | std | lower | upper).

        Args:
            level: probability of the central interval between lower and upper.
        """
        low, high = self.interval(level)
        parts = {"mean": self.mean, "std": self.std, "lower": low, "upper": high}
        return table(self.names, parts, self.times, self.labels)

    def _sample_each(self, key: PRNGKeyArray, draws: int) -> Float[Array, "draws T d"]:
        """Draws that are independent from moment to moment."""
        return _each_moment(self.mean, self.covariance, key, draws)


class Signal(Gaussians):
    """What the states say the observations are, without their noise: ``H x + d``.

    Attributes:
        mean: shape ``(T, m)``.
        covariance: shape ``(T, m, m)``.
        times: shape ``(T,)``.
        labels: of the recording, or None.
    """

    mean: Float[Array, "T m"]
    covariance: Float[Array, "T m m"]
    times: Float[Array, " T"]
    labels: Labels | None = eqx.field(static=True, default=None)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the channels."""
        return channel_names(self.labels, self.mean.shape[1])


class GaussianPosterior(Gaussians):
    """The law of the states given the data, Gaussian at each moment.

    Attributes:
        mean: ``E[x_t | data]``, shape ``(T, n)``.
        covariance: ``Cov[x_t | data]``, shape ``(T, n, n)``.
        times: shape ``(T,)``.
        log_likelihood: log density of all observations.
        pointwise: log density of the observations at each moment given those before, shape ``(T,)``, of
            which the log likelihood is the sum; 0 where nothing was observed.
        predicted_mean: of ``y_t`` given ``y_0 … y_{t-1}``, shape ``(T, m)``.
        predicted_covariance: the same, shape ``(T, m, m)``.
        y: the observations, shape ``(T, m)``, NaN where missing.
        lag_one: ``Cov[x_t, x_{t+1} | data]``, shape ``(T - 1, n, n)``, or None.
        chain: the Gaussian chain behind it, from which trajectories are drawn; None where there is none.
        rows: which moments of the chain these are, shape ``(T,)``; None for all of them.
        convergence: how the iteration ended, where the method is an iterated one; else None.
        components: what each named part of the model contributes to the observations, with ``mean`` and
            ``std``, ``(T,)`` each; None where the model names no parts.
        kind: "filtered" (given the data up to each moment) or "smoothed" (given all data).
        labels: names of moments and channels, or None.
        state_names: names of the n states, or None.
        form: the form of the chain's arithmetic, "covariance" or "sqrt".
        parallel: whether over an associative scan; None for by platform.
    """

    mean: Float[Array, "T n"]
    covariance: Float[Array, "T n n"]
    times: Float[Array, " T"]
    log_likelihood: Float[Array, ""] | None = None
    pointwise: Float[Array, " T"] | None = None
    predicted_mean: Float[Array, "T m"] | None = None
    predicted_covariance: Float[Array, "T m m"] | None = None
    y: Float[Array, "T m"] | None = None
    lag_one: Float[Array, "T-1 n n"] | None = None
    chain: Any = None
    rows: Int[Array, " T"] | None = None
    convergence: Any = None
    components: dict[str, Any] | None = None
    kind: Literal["filtered", "smoothed"] = eqx.field(static=True, default="smoothed")
    labels: Labels | None = eqx.field(static=True, default=None)
    state_names: tuple[str, ...] | None = eqx.field(static=True, default=None)
    form: str | None = eqx.field(static=True, default=None)
    parallel: bool | None = eqx.field(static=True, default=None)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the states; x0, x1 … where the model gives none."""
        if self.state_names is not None:
            return self.state_names
        return tuple(f"x{i}" for i in range(self.mean.shape[1]))

    @property
    def channel_names(self) -> tuple[str, ...]:
        """Names of the observed channels; y0, y1 … (y for a single one) where the data has none."""
        return channel_names(self.labels, 1 if self.y is None else self.y.shape[1])

    @property
    def innovations(self) -> Float[Array, "T m"]:
        """Standardised one-step prediction errors: independent N(0, 1) when the model is right.

        Several channels are whitened by the Cholesky factor of their predicted covariance, in their order.
        NaN where missing, and where the prediction was still diffuse (infinitely uncertain).

        Raises:
            ValueError: if the posterior holds no predictions.
        """
        if self.y is None or self.predicted_mean is None or self.predicted_covariance is None:
            raise ValueError(
                "this posterior holds no one-step predictions: make it with `filter` or `smooth` of a "
                "linear Gaussian model."
            )
        return whiten(self.y - self.predicted_mean, self.predicted_covariance)[0]

    @property
    def signal(self) -> Signal:
        """What the states say the observations are, without their noise: ``H x_t + d``.

        Raises:
            ValueError: if the posterior holds no linear observations.
        """
        potentials = None if self.chain is None else self.chain.potentials
        if not hasattr(potentials, "matrix"):
            raise ValueError(
                "this posterior holds no linear observations: make it with `filter` or `smooth` of a "
                "linear Gaussian model."
            )
        matrix = self._here(potentials.matrix)
        matrix = jnp.broadcast_to(matrix, (len(self), *matrix.shape[1:]))
        mean = jnp.einsum("tmn,tn->tm", matrix, self.mean) + self._here(potentials.offset)
        # An infinite variance reaches a channel only through an entry of H that is not zero.
        flat = jnp.isinf(jnp.diagonal(self.covariance, axis1=-2, axis2=-1))
        known = jnp.where(flat[:, :, None] | flat[:, None, :], 0.0, self.covariance)
        reached = jnp.any((matrix != 0) & flat[:, None, :], axis=-1)
        covariance = jnp.where(
            reached[:, :, None] & reached[:, None, :],
            jnp.inf,
            jnp.einsum("tmi,tij,tkj->tmk", matrix, known, matrix),
        )
        return Signal(mean, covariance, self.times, self.labels)

    def _here(self, part: Float[Array, "S *d"]) -> Float[Array, "S *d"]:
        """An array of the chain at these moments; one that is constant in time has length 1."""
        return part if len(part) == 1 or self.rows is None else part[self.rows]

    def sample(self, key: PRNGKeyArray, draws: int = 1) -> Float[Array, "draws T n"]:
        """Draws of the states.

        Of a smoothed posterior these are joint trajectories, exact draws from the law of all states given
        all data. A filtered posterior is a law for each moment, given different data, and has no joint
        one: its draws are independent from moment to moment, and NaN where a state is still diffuse.

        Args:
            key: a PRNG key.
            draws: how many.

        Raises:
            ValueError: if the posterior is smoothed but holds no chain to draw trajectories from.
        """
        if self.kind == "filtered":
            return self._sample_each(key, draws)
        if self.chain is None:
            raise ValueError(
                "this posterior holds no chain to draw trajectories from: make it with `smooth`, or "
                "draw with `sample_states(model, data, key=key, draws=draws)`."
            )
        return _trajectories(self.chain, self.rows, key, draws, self.form, bool(self.parallel))

    def labelled(self, labels: Labels | None) -> GaussianPosterior:
        """The same with names of moments and channels."""
        return dataclasses.replace(self, labels=labels)

    def cut(self, size: int) -> GaussianPosterior:
        """The first moments of a padded recording."""
        longest = len(self)

        def first(x: Array) -> Array:
            return x[:size] if x.shape[:1] == (longest,) else x

        moves = jax.tree.map(lambda x: x if len(x) == 1 else x[: size - 1], self.chain.transitions)
        chain = self.chain._replace(
            transitions=moves, potentials=jax.tree.map(first, self.chain.potentials)
        )
        parts = {name: jax.tree.map(first, getattr(self, name)) for name in _OVER_TIME}
        return dataclasses.replace(
            self,
            **parts,
            log_likelihood=parts["pointwise"].sum(),
            lag_one=None if self.lag_one is None else self.lag_one[: size - 1],
            chain=chain,
        )

    def to_arviz(self, key: PRNGKeyArray | None = None, draws: int = 500) -> Any:
        """For ArviZ: InferenceData (ArviZ < 1) or a DataTree (ArviZ >= 1).

        Groups: ``posterior`` with draws of ``states`` (chain, draw, time, state); ``observed_data`` with
        ``y`` (time, channel); ``log_likelihood`` with the one-step predictive log density of ``y`` (time).
        The last has no axis of draws because the parameters are fixed: there is nothing for
        ``arviz.loo`` to reweight. Draws of parameters (``fit`` with ``NUTS``) have one.

        Args:
            key: a PRNG key for the draws; default: a fixed one.
            draws: how many.

        Raises:
            ImportError: if ArviZ is not installed.
        """
        require_arviz()
        key = jax.random.key(0) if key is None else key
        states = (("chain", "draw", "time", "state"), self.sample(key, draws)[None])
        groups: dict[str, dict[str, tuple[tuple[str, ...], Any]]] = {
            "posterior": {"states": states}
        }
        if self.pointwise is not None:
            groups["log_likelihood"] = {"y": (("time",), self.pointwise)}
        if self.y is not None:
            groups["observed_data"] = {"y": (("time", "channel"), self.y)}
        coords = {
            "time": time_coordinate(self.times, self.labels),
            "state": list(self.names),
            "channel": list(self.channel_names),
        }
        return to_inference_data(groups, coords)


_OVER_TIME = (
    "mean",
    "covariance",
    "times",
    "pointwise",
    "predicted_mean",
    "predicted_covariance",
    "y",
)


class Forecast(Gaussians):
    """The law of observations to come, Gaussian at each moment.

    Attributes:
        mean: ``E[y_t | data]``, shape ``(h, m)``.
        covariance: ``Cov[y_t | data]``, noise included, shape ``(h, m, m)``.
        times: shape ``(h,)``.
        state: the posterior of the states at these moments, or None.
        labels: names of these moments and of the channels, or None.
    """

    mean: Float[Array, "h m"]
    covariance: Float[Array, "h m m"]
    times: Float[Array, " h"]
    state: GaussianPosterior | None = None
    labels: Labels | None = eqx.field(static=True, default=None)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the channels."""
        return channel_names(self.labels, self.mean.shape[1])

    def at(self, times: Array, labels: Labels | None) -> Forecast:
        """The same with its moments and their names."""
        state = None if self.state is None else self.state.labelled(labels)
        return dataclasses.replace(self, times=times, labels=labels, state=state)

    def sample(self, key: PRNGKeyArray, draws: int = 1) -> Float[Array, "draws h m"]:
        """Paths of observations to come, drawn jointly over the moments.

        Args:
            key: a PRNG key.
            draws: how many.

        Raises:
            ValueError: if the forecast holds no chain to draw paths from.
        """
        if self.state is None or self.state.chain is None:
            raise ValueError(
                "this forecast holds no chain to draw paths from: make it with `forecast(model, data)`."
            )
        k1, k2 = jax.random.split(key)
        seen = self.state.chain.potentials
        matrix, offset, noise = map(self.state._here, (seen.matrix, seen.offset, seen.noise))
        states = self.state.sample(k1, draws)
        return _emit(states, matrix, offset, noise, k2, self.state.form)

    def score(self, y: Any, levels: Sequence[float] = (0.5, 0.8, 0.95)) -> Score:
        """Scores against what came: log score, CRPS, absolute error, coverage of intervals.

        Args:
            y: observations at the moments of the forecast, shape ``(h,)`` or ``(h, m)``, NaN where missing;
                a pandas object is aligned by its index where the forecast has dates.
            levels: probabilities of the central intervals whose coverage is counted.

        Raises:
            ValueError: if there is not one observation for each moment and channel.
        """
        probabilities("levels", levels)
        index = None if self.labels is None else self.labels.index
        if index is not None and type(y).__module__.split(".")[0] == "pandas":
            y = y.reindex(index)
        values = as_series(y).channels
        if values.shape != self.mean.shape:
            raise ValueError(
                f"`y` must have shape {self.mean.shape}, one row for each moment of the forecast, got "
                f"{values.shape}."
            )
        return score_gaussian(values, self.mean, self.covariance, tuple(levels))

    def to_arviz(self, key: PRNGKeyArray | None = None, draws: int = 500) -> Any:
        """For ArviZ: group ``predictions`` with ``y`` (chain, draw, time, channel).

        Args:
            key: a PRNG key for the draws; default: a fixed one.
            draws: how many.

        Raises:
            ImportError: if ArviZ is not installed.
        """
        return predictions(self, key, draws)


@eqx.filter_jit
def _each_moment(mean: Array, covariance: Array, key: PRNGKeyArray, draws: int) -> Array:
    """Draws that are independent from moment to moment; NaN where a coordinate is diffuse."""
    flat = jnp.isinf(jnp.diagonal(covariance, axis1=-2, axis2=-1))
    proper = jnp.where(flat[:, :, None] | flat[:, None, :], 0.0, covariance)
    factor = jax.vmap(psd_factor)(proper)
    noise = jax.random.normal(key, (draws, *mean.shape), mean.dtype)
    return jnp.where(flat, jnp.nan, mean + jnp.einsum("tij,dtj->dti", factor, noise))


@eqx.filter_jit
def _trajectories(
    chain: Any, rows: Array | None, key: PRNGKeyArray, draws: int, form: str | None, parallel: bool
) -> Array:
    """Joint draws of a chain's states, at the wanted moments."""
    from statespace.chains import gaussian

    sampled = gaussian.sample(chain, key, draws, form=form or "covariance", parallel=parallel)
    return sampled if rows is None else sampled[:, rows]


@eqx.filter_jit
def _emit(
    states: Array, matrix: Array, offset: Array, noise: Array, key: PRNGKeyArray, form: str | None
) -> Array:
    """Observations of drawn states; an array that is constant in time has a leading axis of 1."""
    factor = noise if form == "sqrt" else jax.vmap(psd_factor)(noise)
    white = jax.random.normal(key, (*states.shape[:2], factor.shape[-1]), states.dtype)
    return (
        jnp.einsum("...tmn,...tn->...tm", matrix, states)
        + offset
        + jnp.einsum("...tmk,...tk->...tm", factor, white)
    )
