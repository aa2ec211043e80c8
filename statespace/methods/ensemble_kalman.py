"""Ensemble Kalman filters and smoothers, for states of many coordinates."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal, NamedTuple, Self

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from statespace import angles
from statespace.chains import ensemble as chain
from statespace.chains.moments import compensated_sum
from statespace.checks import require_whole
from statespace.localisation import Localisation
from statespace.methods.linearised import check_conditionals, noise_at
from statespace.methods.lowering import at
from statespace.methods.particle_lowering import on_clouds
from statespace.model import Step, state_names
from statespace.posteriors.particle import ParticlePosterior
from statespace.series import Panel, Series

_LAG = 20  # moments; on Lorenz-96 the error falls up to there, and rises from thirty on


class EnsembleKalman(eqx.Module):
    """The ensemble Kalman filter and smoother (Evensen 1994; 2009), for states too large for covariances.

    Members move by the model itself, and are corrected with a gain made of their sample covariances. With
    few members the covariances of far-off coordinates are noise: ``localisation`` takes them out, and
    ``inflation`` makes up for the spread that is lost. Fits models whose transition can be drawn from and
    whose observation has a mean and a covariance; it is exact in the limit of many members for linear
    Gaussian ones only. The log likelihood is that of the ensemble's normal predictions, and is biased.

    Smoothing without localisation is a Rauch–Tung–Striebel pass with sample covariances (Raanes 2016), whose
    gains relate all coordinates to all. With localisation each observation corrects the members of the last
    moments too, at each place by the weights that it has for the present there (Evensen & van Leeuwen 2000;
    Nerger, Schulte & Bunse-Gerstner 2014).

    Args:
        members: N.
        update: "transform" draws nothing at random (ETKF; with localisation the LETKF, which needs
            observations with independent noises), "stochastic" perturbs the observations.
        inflation: factor on the members' deviations before each update.
        localisation: where states and observations are, and how far influence reaches.
        lag: moments back to which an observation corrects the members when smoothing. Long after, sample
            correlations are noise, and what was near has moved on. None: 20 with localisation, all without.
        key: source of randomness; the verbs put theirs here.

    Raises:
        ValueError: for fewer than two members, an unknown update, an inflation below 1, or a lag below 1.

    Example:
        >>> reach = ss.Localisation(radius=5.0, states=range(40), observations=range(40), period=40.0)
        >>> method = ss.EnsembleKalman(members=20, inflation=1.03, localisation=reach)
        >>> ss.filter(ss.Lorenz96(), y, method=method, key=key).mean
    """

    members: int = eqx.field(static=True, default=100)
    update: Literal["transform", "stochastic"] = eqx.field(static=True, default="transform")
    inflation: float = eqx.field(static=True, default=1.0)
    localisation: Localisation | None = None
    lag: int | None = eqx.field(static=True, default=None)
    key: PRNGKeyArray | None = None

    def __check_init__(self) -> None:
        require_whole("members", "EnsembleKalman", self.members, least=2)
        if self.update not in ("transform", "stochastic"):
            raise ValueError(
                '`update` of EnsembleKalman must be "transform" or "stochastic", got '
                f"{self.update!r}."
            )
        if not (math.isfinite(self.inflation) and self.inflation >= 1):
            raise ValueError(
                f"`inflation` of EnsembleKalman must be at least 1, got {self.inflation}."
            )
        if self.lag is not None and (not isinstance(self.lag, int) or self.lag < 1):
            raise ValueError(
                f"`lag` of EnsembleKalman must be at least 1 moment, or None, got {self.lag!r}."
            )

    def with_key(self, key: PRNGKeyArray) -> Self:
        """The same method with this source of randomness."""
        return dataclasses.replace(self, key=key)

    def check(self, model: Any, data: Series | Panel) -> None:
        """Refuse conditionals without moments, and a localisation that does not fit.

        Raises:
            TypeError: naming the conditional at fault.
            ValueError: naming the shapes.
        """
        check_conditionals(model, data, "EnsembleKalman")
        if self.localisation is None:
            return
        channels = data.channels.shape[-1]
        positions = len(self.localisation.observations)
        if positions != channels:
            raise ValueError(
                f"`localisation` of EnsembleKalman has positions of {positions} observations, but the data "
                f"have {channels} channels."
            )

    def breakdown(self, model: Any, series: Series) -> Any:
        """What failed first, and where; None where nothing did."""
        from statespace.methods.gaussian_checks import first_ensemble_failure

        run = eqx.filter_jit(self._run)(model, series)
        return first_ensemble_failure(run.forecast, run.predicted, run.filtered)

    def log_likelihood(self, model: Any, series: Series) -> Float[Array, ""]:
        """The sum of the log densities of the ensemble's one-step predictions."""
        return compensated_sum(self.pointwise(model, series))

    def pointwise(self, model: Any, series: Series) -> Float[Array, " T"]:
        """The log density of each moment under the ensemble's one-step prediction."""
        return self._run(model, series).pointwise

    def standardised_errors(self, model: Any, series: Series) -> Float[Array, "T m"]:
        """Errors of the one-step predictions over their standard deviations; NaN where missing."""
        run = self._run(model, series)
        return (series.channels - run.predicted) / run.spread

    def posterior(self, model: Any, series: Series, kind: Any) -> ParticlePosterior:
        """The law of the states, as members of equal weight: "filtered" or "smoothed"."""
        lag = self._lag_of(series) if kind == "smoothed" else 0
        run = self._run(model, series, lag or 0)
        members = run.filtered
        if lag is None:
            members = chain.smooth(run.filtered, run.forecast)
        elif lag:
            members = run.lagged
        steps, count = len(series), self.members
        dtype = run.pointwise.dtype
        _, moments = on_clouds(model, series)
        return ParticlePosterior(
            particles=members,
            log_weights=jnp.full((steps, count), -math.log(count), dtype),
            times=series.times,
            log_likelihood=compensated_sum(run.pointwise),
            pointwise=run.pointwise,
            ess=jnp.full(steps, float(count), dtype),
            resampled=jnp.zeros(steps, bool),
            impossible=jnp.zeros(steps, bool),
            y=series.channels,
            steps=moments.step,
            kind=kind,
            paths=kind == "smoothed",
            state_names=state_names(model),
        )

    def sample_states(self, model: Any, series: Series, key: PRNGKeyArray, draws: int) -> Array:
        """Draws among the smoothed members, which are paths."""
        own, rest = jax.random.split(key)
        return self.with_key(own).posterior(model, series, "smoothed").sample(rest, draws)

    def forecast(self, model: Any, series: Series, rows: Array) -> Any:
        """The law of observations at some moments of a recording, of which they are not part."""
        from statespace.forecasts.particle import forecast

        return forecast(model, self.posterior(model, series, "smoothed"), series, rows)

    def online(self, model: Any, dt: float) -> Any:
        """The filter one observation at a time."""
        from statespace.methods.online_ensemble import EnsembleOnline

        return EnsembleOnline(model, self, dt)

    def recordings_at_once(self, model: Any, series: Series) -> bool:
        """Whether a panel is to be run by `vmap`: its factorisations are run in turn on CPUs."""
        return jax.default_backend() != "cpu"

    def _lag_of(self, series: Series) -> int | None:
        """Moments back to which observations are heard; None for all of them, by a pass back."""
        if self.lag is None and self.localisation is None:
            return None
        return min(_LAG if self.lag is None else self.lag, len(series) - 1)

    def _run(self, model: Any, series: Series, lag: int = 0) -> _Run:
        if self.key is None:
            from statespace.methods.particle_filter import missing_key

            raise ValueError(missing_key(self))
        clouds, moments = on_clouds(model, series)
        keys = jax.vmap(lambda t: jax.random.split(jax.random.fold_in(self.key, t)))(
            jnp.arange(len(series))
        )
        first = clouds.start(keys[0, 0], self.members, at(moments, 0))

        def step(window: Array, row: tuple) -> tuple[Array, _Run]:
            moment, key = row
            ahead = clouds.propose(key[0], window[..., 0], moment)
            return self.corrected(model, ahead, moment, key[1], window[..., :lag])

        past = jnp.repeat(first[..., None], lag, axis=-1)  # moments before the first: not used
        begin, start = self.corrected(model, first, at(moments, 0), keys[0, 1], past)
        rest = jax.tree.map(lambda x: x[1:], (moments, keys))
        last, later = jax.lax.scan(step, begin, rest)
        run = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), start, later)
        recent = jnp.moveaxis(last[..., :lag], -1, 0)[::-1]
        return run._replace(lagged=jnp.concatenate([run.lagged[lag:], recent]))

    def corrected(
        self, model: Any, ahead: Array, moment: Any, key: Array, past: Array | None = None
    ) -> tuple[Array, _Run]:
        """The ensemble after an observation, and what is kept of the moment.

        Args:
            model: all conditionals.
            ahead: members before the observation, shape ``(N, n)``.
            moment: the moment and what is observed there.
            key: of the observation's perturbations.
            past: the same members at earlier moments, latest first, shape ``(N, n, lag)``.

        Returns:
            Present and past members after the observation, shape ``(N, n, 1 + lag)``; and of the moment.
        """
        step: Step = moment.step
        mask = ~jnp.isnan(moment.y)
        ahead = chain.inflated(ahead, self.inflation)
        look = lambda x: noise_at(model.observation, step, x, "covariance", "observation")
        seen, noises = jax.vmap(look)(ahead)
        noise = jnp.mean(noises, axis=0)
        if angles.given_by(model.observation, ahead[0], step):
            seen = angles.nearest(seen, seen[0])
            centre = jnp.mean(seen, axis=0)
            seen = seen + angles.nearest(centre, jnp.where(mask, moment.y, 0)) - centre
        predicted = jnp.mean(seen, axis=0)
        spread = jnp.sqrt(jnp.var(seen, axis=0, ddof=1) + jnp.diagonal(noise))
        both = mask[:, None] & mask[None, :]
        noise = jnp.where(both, noise, jnp.eye(len(mask), dtype=noise.dtype))
        seen = jnp.where(mask, seen, 0)
        error = jnp.where(mask, moment.y - predicted, 0)
        reach, window = self.localisation, ahead[..., None]
        if past is not None:
            window = jnp.concatenate([window, past], axis=-1)
        if self.update == "transform":
            taper = None if reach is None else reach.cross.astype(ahead.dtype)
            after = chain.transform(window, seen, noise, error, taper)
        else:
            root = jnp.linalg.cholesky(noise)
            draws = jax.random.normal(key, seen.shape, seen.dtype) @ root.T * mask
            tapers = None
            if reach is not None:
                tapers = (reach.cross.astype(ahead.dtype), reach.own.astype(ahead.dtype))
            after = chain.stochastic(window, seen, noise, error, draws, tapers)
        density = chain.log_density(seen, noise, error, mask)
        return after, _Run(after[..., 0], after[..., -1], ahead, predicted, spread, density)


class _Run(NamedTuple):
    """What a run leaves at each moment."""

    filtered: Float[Array, "T N n"]
    lagged: Float[Array, "T N n"]
    forecast: Float[Array, "T N n"]
    predicted: Float[Array, "T m"]
    spread: Float[Array, "T m"]
    pointwise: Float[Array, " T"]
