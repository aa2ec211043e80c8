"""Particle Gibbs: Markov chains of paths of states, and Parisian particle Gibbs: what is expected of them."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from statespace.chains import particle
from statespace.chains.particle.paris import Sums
from statespace.chains.particle.parisian import (
    Move,
    Settings,
    Sweep,
    Trajectories,
    backward_paths,
    conditional_move,
    parisian_sweep,
)
from statespace.functionals import Additive
from statespace.methods.backward_sampling import BackwardMethod
from statespace.methods.functional_lowering import over_path, sums_of
from statespace.methods.particle_filter import posterior_of
from statespace.methods.particle_lowering import states_of
from statespace.posteriors.particle import ParticlePosterior
from statespace.series import Series

if TYPE_CHECKING:
    from statespace.expectation import Expectation

Selection = Literal["backward", "ancestor", "lineage"]


class PathPosterior(ParticlePosterior):
    """Paths of states from Markov chains, in the order (chain, sweep).

    Attributes:
        update_rates: in which share of the sweeps the path's particle was another than before, shape
            ``(T,)``; where it is low more particles are needed.
        chains: how many there were.
    """

    update_rates: Float[Array, " T"] | None = None
    chains: int = eqx.field(static=True, default=1)

    def cut(self, size: int) -> PathPosterior:
        """The first moments of a padded recording."""
        rates = None if self.update_rates is None else self.update_rates[:size]
        return dataclasses.replace(super().cut(size), **{"update_rates": rates})  # type: ignore[return-value]


class PathSampler(BackwardMethod):
    """What the methods share that run Markov chains of paths.

    The first path of each chain is drawn backwards from an unconditional filter.
    """

    particles: int = eqx.field(static=True, default=100)
    threshold: float = eqx.field(static=True, default=1.0)
    sweeps: int = eqx.field(static=True, default=100)
    burn_in: int = eqx.field(static=True, default=10)
    chains: int = eqx.field(static=True, default=4)

    def __check_init__(self) -> None:
        name = type(self).__name__
        if self.chains < 1:
            raise ValueError(f"`chains` of {name} must be positive, got {self.chains}.")
        if not 0 <= self.burn_in < self.sweeps:
            raise ValueError(
                f"`burn_in` of {name} must be at least 0 and less than the number of `sweeps` "
                f"({self.sweeps}), got {self.burn_in}."
            )

    def posterior(self, model: Any, series: Series, kind: Any) -> ParticlePosterior:
        """The law of the states: "filtered", or "smoothed": the chains' paths after the burn-in."""
        if kind == "filtered":
            return self.filtered(model, series)
        chain, settings = self._settings(model, series)
        own, rest = jax.random.split(self._key())
        run = self.with_key(own).run(model, series)
        move = lambda key, path: self.move(key, chain, path, settings)
        kept = lambda move: (move.path, move.moved)
        paths, moved = self._chains(rest, chain, settings, move, kept)
        count = self.chains * (self.sweeps - self.burn_in)
        paths = jax.tree.map(lambda x: x[:, self.burn_in :], paths)
        paths = jax.tree.map(lambda x: jnp.moveaxis(x.reshape(count, *x.shape[2:]), 0, 1), paths)
        weights = jnp.full((len(series), count), -math.log(count), run.last.log_weights.dtype)
        plain = posterior_of(
            model, series, run, particle.Cloud(paths, weights), "smoothed", paths=True
        )
        fields = {f.name: getattr(plain, f.name) for f in dataclasses.fields(plain)}
        rates = jnp.mean(moved, axis=(0, 1), dtype=weights.dtype)
        return PathPosterior(**fields, update_rates=rates, chains=self.chains)

    def sample_states(self, model: Any, series: Series, key: PRNGKeyArray, draws: int) -> Array:
        """Draws of all states given all observations, from the paths after the burn-in."""
        own, rest = jax.random.split(key)
        return self.with_key(own).posterior(model, series, "smoothed").sample(rest, draws)

    def expect(self, model: Any, series: Series, functional: Additive) -> Expectation:
        """The expectation of an additive functional: the mean over the sweeps after the burn-in."""
        from statespace.expectation import Expectation, mean_and_error

        chain, settings = self._settings(model, series)
        sweep = self.sweep_of(model, chain, settings, functional)
        values, moved = self._chains(
            self._key(), chain, settings, sweep, lambda s: (s.value, s.moved)
        )
        rolled_out = jax.tree.map(lambda x: jnp.mean(x[:, self.burn_in :], axis=1), values)
        value, error = mean_and_error(rolled_out)
        rates = jnp.mean(moved, axis=(0, 1), dtype=jnp.result_type(float))
        return Expectation(value, error, values, rates)

    def move(self, key: PRNGKeyArray, chain: Any, path: Any, settings: Settings) -> Move:
        """A new path given one."""
        raise NotImplementedError

    def sweep_of(self, model: Any, chain: Any, settings: Settings, functional: Additive) -> Any:
        """``(key, path) ->`` a new path and an estimate of what is expected."""
        raise NotImplementedError

    def first_path(self, key: PRNGKeyArray, chain: Any, settings: Settings) -> Any:
        """A path drawn backwards from an unconditional filter."""
        own, rest = jax.random.split(key)
        run = particle.run(
            chain,
            particle.keys(own, len(jax.tree.leaves(chain.moments)[0])),
            settings.particles,
            resample=settings.resample,
            threshold=settings.threshold,
            observer=particle.history,
        )
        paths, _ = backward_paths(rest, chain, Trajectories(*run.out), settings.kernel, 1)
        return jax.tree.map(lambda x: x[:, 0], paths)

    def _settings(self, model: Any, series: Series) -> tuple[particle.Chain, Settings]:
        chain, kernel = self.lower_with_density(model, series)
        return chain, Settings(self.particles, self.resampling, self.threshold, kernel)

    def _chains(
        self, key: PRNGKeyArray, chain: Any, settings: Settings, sweep: Any, out: Any
    ) -> Any:
        """All chains at once: what each sweep gives out, leading axes ``(chains, sweeps)``."""

        def one(key: PRNGKeyArray) -> Any:
            own, rest = jax.random.split(key)
            path = self.first_path(own, chain, settings)

            def step(path: Any, key: PRNGKeyArray) -> tuple[Any, Any]:
                done = sweep(key, path)
                return done.path, out(done)

            return jax.lax.scan(step, path, jax.random.split(rest, self.sweeps))[1]

        return jax.vmap(one)(jax.random.split(key, self.chains))


class ParticleGibbs(PathSampler):
    """Markov chains whose states are paths, with the exact smoothing law as their limit.

    Each sweep runs a filter that keeps the present path among its particles (conditional sequential Monte
    Carlo, Andrieu, Doucet & Holenstein 2010) and draws a new path through them. Any number of particles from
    2 is right in the limit; about as many as moments make the chain mix well.

    Args:
        particles: N, with the one that is kept.
        proposal: how particles are moved: see :class:`~statespace.ParticleFilter`.
        resampling: the scheme by which particles are drawn anew.
        threshold: draw anew when the effective sample size is below this share of N; 1: at every moment.
        gradient: how the log likelihood is differentiated.
        key: source of randomness; the verbs put theirs here.
        backward: how previous particles are drawn: see :class:`~statespace.BackwardSampling`.
        sweeps: how many in each chain.
        burn_in: how many of them are left out.
        chains: how many, in one call.
        selection: how a new path is drawn: "backward" from its last state to its first (Whiteley 2010);
            "ancestor": the kept path's ancestors are drawn anew on the way (Lindsten, Jordan & Schön 2014);
            "lineage": neither, for transitions without much to draw from.

    Raises:
        ValueError: for fewer than two particles, no chain, a burn-in that leaves no sweep, or an unknown
            name.

    Example:
        >>> posterior = ss.smooth(model, y, method=ss.ParticleGibbs(particles=50), key=key)
        >>> posterior.update_rates
    """

    selection: Selection = eqx.field(static=True, default="backward")

    def __check_init__(self) -> None:
        if self.selection not in ("backward", "ancestor", "lineage"):
            raise ValueError(
                "`selection` of ParticleGibbs must be 'backward', 'ancestor' or 'lineage', got "
                f"{self.selection!r}."
            )

    def move(self, key: PRNGKeyArray, chain: Any, path: Any, settings: Settings) -> Move:
        """A new path given one."""
        return conditional_move(key, chain, path, settings, self.selection)

    def sweep_of(self, model: Any, chain: Any, settings: Settings, functional: Additive) -> Any:
        """``(key, path) ->`` a new path, and the functional of it."""

        def sweep(key: PRNGKeyArray, path: Any) -> Sweep:
            new = self.move(key, chain, path, settings)
            moments = chain.moments
            value = over_path(functional, states_of(model, new.path), moments.step, moments.y)
            return Sweep(new.path, value, new.moved)

        return sweep


class ParisianParticleGibbs(PathSampler):
    """The Parisian particle Gibbs sampler (Cardoso, Moulines & Olsson 2023): smoothing without bias.

    Each sweep runs PaRIS with one path kept among the particles and draws the next path from those that the
    particles carry. Its estimate is unbiased once the path has the smoothing law; the bias that the first
    path brings dies out geometrically. The mean over the sweeps after the burn-in (the roll-out estimator)
    uses the statistics of *all* particles of each sweep.

    Args:
        particles: N, with the one that is kept.
        proposal: how particles are moved: see :class:`~statespace.ParticleFilter`.
        resampling: the scheme by which particles are drawn anew.
        threshold: draw anew when the effective sample size is below this share of N; 1: at every moment.
        gradient: how the log likelihood is differentiated.
        key: source of randomness; the verbs put theirs here.
        backward: how previous particles are drawn: see :class:`~statespace.BackwardSampling`.
        sweeps: how many in each chain.
        burn_in: how many of them are left out.
        chains: how many, in one call.
        draws: backward draws for each particle and moment.

    Raises:
        ValueError: for fewer than two particles, no chain, no draw, or a burn-in that leaves no sweep.

    Example:
        >>> method = ss.ParisianParticleGibbs(particles=10, sweeps=20, burn_in=2)
        >>> ss.expect(model, y, lag_one, method=method, key=key).value
    """

    sweeps: int = eqx.field(static=True, default=20)
    burn_in: int = eqx.field(static=True, default=2)
    draws: int = eqx.field(static=True, default=2)

    def __check_init__(self) -> None:
        if self.draws < 1:
            raise ValueError(
                f"`draws` of ParisianParticleGibbs must be positive, got {self.draws}."
            )

    def move(self, key: PRNGKeyArray, chain: Any, path: Any, settings: Settings) -> Move:
        """A new path given one, and nothing expected of it."""
        nothing = Sums(lambda previous, particles, moment: {})
        done = parisian_sweep(key, chain, path, nothing, settings, 1)
        return Move(done.path, done.moved)

    def sweep_of(self, model: Any, chain: Any, settings: Settings, functional: Additive) -> Any:
        """``(key, path) ->`` a new path, and the estimate of its sweep."""
        sums = sums_of(functional, model)
        return lambda key, path: parisian_sweep(key, chain, path, sums, settings, self.draws)
