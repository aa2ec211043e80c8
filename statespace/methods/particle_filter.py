"""Particle filters: inference for any model that can be simulated and weighed."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from typing import TYPE_CHECKING, Any, Self

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from statespace.chains import particle
from statespace.chains.particle.differentiable import StopGradient
from statespace.chains.particle.resampling import resampling_named
from statespace.conditionals.finite import FiniteTransition
from statespace.methods.particle_checks import check_data, check_proposal
from statespace.methods.particle_gradients import constant, gradient_named, with_score
from statespace.methods.particle_lowering import lower, states_of
from statespace.methods.proposals import proposal_named
from statespace.model import Step, state_names
from statespace.posteriors.particle import ParticlePosterior
from statespace.series import Panel, Series

if TYPE_CHECKING:
    from statespace.forecasts.particle import ParticleForecast
    from statespace.methods.online_particle import ParticleOnline


class ParticleMethod(eqx.Module):
    """What every method that moves and weighs particles shares.

    Args:
        particles: N, how many.
        proposal: how particles are moved: "bootstrap" by the transition.
        resampling: the scheme by which particles are drawn anew: "systematic", "stratified", "multinomial",
            "residual", "killing" or "ssp"; or a function ``(random, log_weights) -> ancestors``.
        threshold: draw anew when the effective sample size is below this share of N; 1: at every moment;
            0: never.
        gradient: how the log likelihood is differentiated. "score": by Fisher's identity along the ancestries
            of the particles, which is unbiased for the likelihood; "soft" and "transport": by resampling
            that is smooth in the weights (Karkus, Hsu & Lee 2018; Corenflos et al. 2021), or one of
            ``statespace.chains.particle.differentiable`` with settings of its own. None: a
            derivative is refused.
        key: source of randomness; the verbs put theirs here.

    Raises:
        ValueError: for fewer than two particles, a threshold outside [0, 1], or an unknown name.
    """

    particles: int = eqx.field(static=True, default=1000)
    proposal: Any = "bootstrap"
    resampling: Any = eqx.field(static=True, default="systematic")
    threshold: float = eqx.field(static=True, default=0.5)
    gradient: Any = eqx.field(static=True, default=None)
    key: PRNGKeyArray | None = None

    def __check_init__(self) -> None:
        name = type(self).__name__
        if not isinstance(self.particles, int) or self.particles < 2:
            raise ValueError(f"`particles` of {name} must be at least 2, got {self.particles}.")
        if not 0 <= self.threshold <= 1:
            raise ValueError(
                f"`threshold` of {name} is a share of the particles, inside [0, 1], got {self.threshold}."
            )
        resampling_named(self.resampling)
        proposal_named(self.proposal)
        gradient_named(self.gradient)

    def with_key(self, key: PRNGKeyArray) -> Self:
        """The same method with this source of randomness."""
        return dataclasses.replace(self, key=key)

    def check(self, model: Any, data: Series | Panel) -> None:
        """Refuse what cannot be run, before anything is traced."""
        check_data(model, data)
        check_proposal(model, data, self.proposal)

    def lower(self, model: Any, series: Series, steps: Step | None = None) -> particle.Chain:
        """The particle chain of a model on a recording, whose steps may be others than its own."""
        return lower(model, series, self.proposal, steps)

    def run(
        self, model: Any, series: Series, observer: particle.types.Observer | None = None
    ) -> particle.Run:
        """The filter, from the method's own key."""
        random = particle.keys(self._key(), len(series), observe=observer is not None)
        chain, gradient = self.lower(model, series), gradient_named(self.gradient)
        if isinstance(gradient, StopGradient):
            chain = with_score(chain, model, series)
        return particle.run(
            chain,
            random,
            self.particles,
            resample=self.resampling,
            threshold=self.threshold,
            observer=observer,
            gradient=gradient,
        )

    def log_likelihood(self, model: Any, series: Series) -> Float[Array, ""]:
        """Log of an unbiased estimate of ``p(y)``; minus infinity where no particle explains a moment."""
        value = self.run(model, series).log_likelihood
        return constant(value) if self.gradient is None else value

    def pointwise(self, model: Any, series: Series) -> Float[Array, " T"]:
        """Log of the estimate of ``p(y_t | y_0 … y_{t-1})`` of each moment."""
        return self.run(model, series).pointwise

    def standardised_errors(self, model: Any, series: Series) -> Float[Array, "T m"]:
        """Normal pseudo-residuals of the one-step predictions (Zucchini & MacDonald, section 6.2)."""
        from statespace.methods.particle_residuals import pseudo_residuals

        return pseudo_residuals(self, model, series)

    @abstractmethod
    def posterior(self, model: Any, series: Series, kind: Any) -> ParticlePosterior:
        """The law of the states: "filtered" or "smoothed"."""

    @abstractmethod
    def sample_states(self, model: Any, series: Series, key: PRNGKeyArray, draws: int) -> Array:
        """Joint draws of all states given all observations."""

    def filtered(self, model: Any, series: Series) -> ParticlePosterior:
        """The law of each state given the observations up to its moment, with ancestors."""
        run = self.run(model, series, particle.history)
        cloud, ancestors = run.out
        return posterior_of(model, series, run, cloud, "filtered", ancestors=ancestors)

    def forecast(self, model: Any, series: Series, rows: Array) -> ParticleForecast:
        """The law of observations at some moments of a recording, of which they are not part."""
        from statespace.forecasts.particle import forecast

        return forecast(model, self.posterior(model, series, "smoothed"), series, rows)

    def online(self, model: Any, dt: float) -> ParticleOnline:
        """The filter one observation at a time."""
        from statespace.methods.online_particle import ParticleOnline

        return ParticleOnline(model, self, dt)

    def recordings_at_once(self, model: Any, series: Series) -> bool:
        """Whether a panel is to be run by `vmap`: always."""
        return True

    def _key(self) -> PRNGKeyArray:
        if self.key is None:
            raise ValueError(missing_key(self))
        return self.key


class ParticleFilter(ParticleMethod):
    """Sequential importance resampling (Gordon, Salmond & Smith 1993): filter, likelihood and forecasts.

    Fits any model whose observations have a density. The likelihood is unbiased. As a smoother it gives the
    ancestors of its last particles, of which the early moments keep few: for smoothing use
    :class:`~statespace.BackwardSampling`.

    Args:
        particles: N, how many.
        proposal: how particles are moved. "bootstrap": by the transition; "linearised": towards the
            observation, by an expansion of its log density (:class:`statespace.proposals.Linearised`);
            "auxiliary": drawn anew by how well they predict it (:class:`statespace.proposals.Auxiliary`); or
            a function ``(state, step, y) -> Distribution``.
        resampling: the scheme by which particles are drawn anew: "systematic", "stratified", "multinomial",
            "residual", "killing" or "ssp"; or a function ``(random, log_weights) -> ancestors``.
        threshold: draw anew when the effective sample size is below this share of N; 1: at every moment;
            0: never.
        gradient: how the log likelihood is differentiated. "score": by Fisher's identity along the ancestries
            of the particles, which is unbiased for the likelihood; "soft" and "transport": by resampling
            that is smooth in the weights (Karkus, Hsu & Lee 2018; Corenflos et al. 2021), or one of
            ``statespace.chains.particle.differentiable`` with settings of its own. None: a
            derivative is refused.
        key: source of randomness; the verbs put theirs here.

    Raises:
        ValueError: for fewer than two particles, a threshold outside [0, 1], or an unknown name.

    References:
        Gordon, Salmond & Smith (1993), Novel approach to nonlinear/non-Gaussian Bayesian state estimation.
        Chopin & Papaspiliopoulos (2020), An introduction to sequential Monte Carlo, algorithm 10.3.

    Example:
        >>> posterior = ss.filter(model, y, method=ss.ParticleFilter(particles=2000), key=key)
    """

    def posterior(self, model: Any, series: Series, kind: Any) -> ParticlePosterior:
        """The law of the states: "filtered", or "smoothed": the ancestors of the last particles."""
        filtered = self.filtered(model, series)
        return filtered if kind == "filtered" else genealogy(filtered)

    def sample_states(self, model: Any, series: Series, key: PRNGKeyArray, draws: int) -> Array:
        """Draws among the ancestries of the last particles."""
        return self.posterior(model, series, "smoothed").sample(key, draws)


def posterior_of(
    model: Any,
    series: Series,
    run: particle.Run,
    cloud: particle.Cloud,
    kind: Any,
    *,
    ancestors: Int[Array, "T N"] | None = None,
    paths: bool = False,
) -> ParticlePosterior:
    """The posterior of a model's states from particles of its chain.

    Args:
        model: the model.
        series: the recording.
        run: of the filter.
        cloud: particles ``(T, N, ...)`` and normalised log weights ``(T, N)``.
        kind: "filtered" or "smoothed".
        ancestors: of each particle the number of the one it came from, shape ``(T, N)``.
        paths: whether the n-th particles of all moments are a path.
    """
    from statespace.conditionals import aggregates
    from statespace.methods.lowering import at, steps_of
    from statespace.methods.potentials import with_history

    steps = with_history(model.observation, series, steps_of(series)[0])
    states = None
    if isinstance(model.transition, FiniteTransition):
        parts = len(model.transition.matrix(at(steps, 0)))
        states = aggregates.count(model.transition.aggregate, parts)
    return ParticlePosterior(
        particles=states_of(model, cloud.particles),
        log_weights=cloud.log_weights,
        times=series.times,
        log_likelihood=run.log_likelihood,
        pointwise=run.pointwise,
        ess=run.ess,
        resampled=run.resampled,
        impossible=run.impossible,
        y=series.channels,
        steps=steps,
        ancestors=ancestors,
        kind=kind,
        paths=paths,
        states=states,
        state_names=state_names(model),
    )


def genealogy(filtered: ParticlePosterior) -> ParticlePosterior:
    """The paths that lead to the last particles, with their weights (Kitagawa 1996)."""
    size = filtered.log_weights.shape[1]

    def back(lines: Array, at: tuple) -> tuple[Array, Any]:
        particles, ancestors = at
        return ancestors[lines], jax.tree.map(lambda x: x[lines], particles)

    rows = (filtered.particles, filtered.ancestors)
    _, paths = jax.lax.scan(back, jnp.arange(size, dtype=jnp.int32), rows, reverse=True)
    last = jnp.broadcast_to(filtered.log_weights[-1], filtered.log_weights.shape)
    return dataclasses.replace(
        filtered,
        particles=paths,
        log_weights=last,
        ancestors=None,
        kind="smoothed",
        paths=True,
    )


def missing_key(method: Any) -> str:
    """What is said where a random method is given no key."""
    return f"{type(method).__name__} draws at random: give `key=`, a PRNG key such as `jax.random.key(0)`."
