"""The posterior of parameters and states together, by drawing them in turn: particle Gibbs."""

from __future__ import annotations

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from statespace.learners import tuned_moves
from statespace.learners.estimates import beginning, estimates, needed_key
from statespace.learners.likelihood import recordings
from statespace.learners.nuts import dispersed, values_of_draws
from statespace.learners.posterior_result import PosteriorResult
from statespace.learners.priors import Priors
from statespace.learners.problem import Problem, moved
from statespace.learners.result import FitResult
from statespace.learners.sampling import check_settings, in_blocks, sweeps
from statespace.learners.state_paths import (
    Drawing,
    check_densities,
    check_drawing,
    complete,
    first_paths,
    moved_paths,
)
from statespace.learners.tuned_moves import Settings, Tuned
from statespace.methods.choice import is_random

_BLOCK = 50  # sweeps in one call of the compiled loop
_STUCK = 0.1  # share of states that must move in a sweep


class ParticleGibbsLearner(eqx.Module):
    """Draw states and parameters in turn, the states by a conditional particle filter.

    A sweep draws a new path of each recording given the current parameters, by a particle filter that keeps
    the old path among its particles; then it moves the parameters given the new path by Hamiltonian Monte
    Carlo, tuned in the warm-up. The draws are from the exact posterior with any number of particles; few
    particles only move the path less. Parameters and path hold each other, so that successive draws are more
    alike than those of ``ParticleMarginalMetropolis()``, but a sweep does with fewer particles, and the
    number of parameters does not matter much.

    Args:
        warmup: sweeps that tune the sampler and are discarded.
        samples: sweeps kept, in each chain.
        chains: number of chains, which advance together.
        particles: of the conditional filter.
        proposal: how they are moved, as for :class:`statespace.ParticleFilter`.
        resampling: name of a scheme, of which the conditional version is used.
        selection: how the path is drawn: "backward" in time through all particles (Whiteley 2010), or by its
            lineage after the kept path's "ancestor" was drawn anew at each moment (Lindsten, Jordan & Schön
            2014).
        moves: moves of the parameters in a sweep.
        steps: leapfrog steps of each.
        target_accept: acceptance rate that the step size is tuned to.
        keep_states: whether to keep the states of each draw, as ``result.states``.
        spread: how far apart the chains start, in standard errors of ``start`` where it has any, else in
            units of the unconstrained parameters.
        progress: whether to show a progress bar; None: when it takes more than a few seconds.

    References:
        Andrieu, Doucet & Holenstein (2010), Particle Markov chain Monte Carlo methods, JRSS B 72, section
        2.4.3; Neal (2011), MCMC using Hamiltonian dynamics.
    """

    warmup: int = eqx.field(static=True, default=500)
    samples: int = eqx.field(static=True, default=1000)
    chains: int = eqx.field(static=True, default=4)
    particles: int = eqx.field(static=True, default=100)
    proposal: Any = "bootstrap"
    resampling: Any = eqx.field(static=True, default="systematic")
    selection: str = eqx.field(static=True, default="backward")
    moves: int = eqx.field(static=True, default=1)
    steps: int = eqx.field(static=True, default=8)
    target_accept: float = eqx.field(static=True, default=0.8)
    keep_states: bool = eqx.field(static=True, default=False)
    spread: float = eqx.field(static=True, default=0.1)
    progress: bool | None = eqx.field(static=True, default=None)

    def __check_init__(self) -> None:
        check_settings(self, warmup=0, samples=4, chains=1, moves=1, steps=1)
        check_drawing(self._drawing, "ParticleGibbsLearner")

    @property
    def _drawing(self) -> Drawing:
        return Drawing(self.particles, self.proposal, self.resampling, self.selection)

    def fit(
        self,
        model: Any,
        data: Any,
        *,
        priors: Priors | None = None,
        key: PRNGKeyArray | None = None,
        method: Any = None,
        start: FitResult | None = None,
    ) -> PosteriorResult:
        """Draws from the posterior; see :func:`statespace.fit`.

        Raises:
            TypeError: if the model's states have no density.
            ValueError: if ``key`` is missing, a free parameter has no prior, or the start is impossible.
        """
        learner = "ParticleGibbsLearner"
        keys = jax.random.split(needed_key(key, learner), 4)
        problem = beginning(model, data, priors, method, learner, keys[0], sampler=True)
        check_densities(model, problem.data, learner)
        z = dispersed(problem, keys[1], start, self.chains, self.spread, learner)
        tuning = Settings(self.warmup * self.moves, self.steps, float(self.target_accept))
        settings = Sampler(self._drawing, self.moves, tuning)
        state = _begin(problem, settings, z, jax.random.split(keys[2], self.chains))
        draws = in_blocks(
            lambda state, count: _advance(problem, settings, state, count, self.keep_states),
            state,
            self.warmup,
            self.samples,
            _BLOCK,
            "particle Gibbs",
            self.progress,
            lambda drawn: f", {float(np.mean(drawn.update_rate)):.0%} of states move",
        )
        z = jnp.asarray(draws.parameters.z)
        middle = jnp.mean(z, axis=(0, 1))
        found = estimates(problem, middle[None], keys[3])
        statistics = draws.parameters._asdict() | {"update_rate": draws.update_rate}
        statistics.pop("z")
        result = PosteriorResult.from_draws(
            problem=moved(problem, middle),
            data=data,
            learner=f"particle Gibbs ({self.chains} chains × {self.samples} draws, {self.warmup} warm-up)",
            draws=values_of_draws(problem, z),
            unconstrained=np.asarray(z),
            statistics=statistics,
            log_likelihood=float(found.log_likelihood[0]),
            log_prior=float(found.log_prior[0]),
            log_likelihood_variance=float(found.variance[0]) if is_random(method) else None,
            complaint=_complaint(float(np.mean(draws.update_rate)), self.particles),
            states=draws.states,
        )
        return result.warn_unless_converged()


class Sampler(NamedTuple):
    """What the compiled sampler depends on."""

    drawing: Drawing
    moves: int
    tuning: Settings


class Sweep(NamedTuple):
    """A chain under way.

    Attributes:
        parameters: with their tuning.
        paths: of each recording, leaves ``(S, T, ...)``.
        update_rate: the share of states that moved in the last sweep.
        key: source of randomness.
    """

    parameters: Tuned
    paths: Any
    update_rate: Float[Array, ""]
    key: PRNGKeyArray


class Draw(NamedTuple):
    """What is kept of a sweep."""

    parameters: Any
    update_rate: Float[Array, ""]
    states: Any


@eqx.filter_jit
def _begin(problem: Problem, settings: Sampler, z: Array, keys: PRNGKeyArray) -> Sweep:
    def one(z: Array, key: PRNGKeyArray) -> Sweep:
        key, key_path = jax.random.split(key)
        paths = first_paths(problem, z, key_path, settings.drawing)
        begun = tuned_moves.begin(z, settings.tuning)
        return Sweep(begun, paths, jnp.zeros((), z.dtype), key)

    return jax.vmap(one)(z, keys)


@eqx.filter_jit
def _advance(
    problem: Problem, settings: Sampler, state: Sweep, count: Array, keep_states: bool
) -> tuple[Sweep, Draw]:
    """``count`` sweeps of every chain, in buffers of a fixed length."""

    def look(s: Sweep) -> Draw:
        paths = s.paths if keep_states else None
        return Draw(s.parameters.last, s.update_rate, paths)

    return sweeps(jax.vmap(lambda s: sweep(problem, settings, s)), look, state, count, _BLOCK)


def sweep(problem: Problem, settings: Sampler, state: Sweep) -> Sweep:
    """Draw the paths given the current parameters, then move the parameters given the new paths."""
    key, key_paths, key_moves = jax.random.split(state.key, 3)
    parameters, drawing = state.parameters, settings.drawing
    new = moved_paths(problem, parameters.z, state.paths, key_paths, drawing)
    _, within = recordings(problem.data)
    rate = jnp.sum(new.moved & within) / jnp.sum(within)

    def density(z: Array) -> Array:
        return complete(problem, z, new.path) + problem.log_prior(z, volume=True).astype(z.dtype)

    def once(parameters: Tuned, key: PRNGKeyArray) -> tuple[Tuned, None]:
        return tuned_moves.move(key, density, parameters, settings.tuning), None

    keys = jax.random.split(key_moves, settings.moves)
    parameters, _ = jax.lax.scan(once, parameters, keys)
    return Sweep(parameters, new.path, rate.astype(state.update_rate.dtype), key)


def _complaint(update_rate: float, particles: int) -> str | None:
    """What to say where the path hardly moves, or None."""
    if update_rate >= _STUCK:
        return None
    return (
        f"only {update_rate:.0%} of the states move in a sweep; raise `particles` to {4 * particles}, or "
        'give a better `proposal`, such as "linearised"'
    )
