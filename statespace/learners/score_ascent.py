"""Stochastic gradient ascent of the log likelihood, by scores that particles estimate."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from statespace.chains.particle import parisian
from statespace.learners import complete_data
from statespace.learners.estimates import beginning, needed_key
from statespace.learners.likelihood import recordings
from statespace.learners.priors import Priors
from statespace.learners.problem import Problem, vector
from statespace.learners.result import FitResult
from statespace.learners.sampling import check_counts, in_blocks, sweeps
from statespace.learners.searches import searched
from statespace.learners.state_paths import (
    Drawing,
    check_densities,
    check_drawing,
    complete,
    first_paths,
    moved_paths,
)
from statespace.learners.steps import check_optimiser, optimiser_for
from statespace.methods.functional_lowering import sums_of
from statespace.methods.particle_lowering import lower

_BLOCK = 20  # steps in one call of the compiled loop


class _Ascent(eqx.Module):
    """Steps along an estimated gradient, from paths of states that are carried from step to step."""

    iterations: int = eqx.field(static=True, default=500)
    learning_rate: float = eqx.field(static=True, default=0.1)
    optimiser: Any = eqx.field(static=True, default=None)
    particles: int = eqx.field(static=True, default=50)
    chains: int = eqx.field(static=True, default=4)
    proposal: Any = "bootstrap"
    resampling: Any = eqx.field(static=True, default="systematic")
    progress: bool | None = eqx.field(static=True, default=None)

    def __check_init__(self) -> None:
        check_counts(self, iterations=8, chains=1)
        check_optimiser(self.learning_rate, self.optimiser)
        check_drawing(self._drawing, type(self).__name__)

    @property
    def _drawing(self) -> Drawing:
        return Drawing(self.particles, self.proposal, self.resampling)

    @abstractmethod
    def gradient(
        self, problem: Problem, z: Float[Array, " p"], paths: Any, key: PRNGKeyArray
    ) -> tuple[Float[Array, " p"], Any]:
        """An estimate of the gradient of the log likelihood from one chain, and its new paths."""

    def fit(
        self,
        model: Any,
        data: Any,
        *,
        priors: Priors | None = None,
        key: PRNGKeyArray | None = None,
        method: Any = None,
        start: FitResult | None = None,
    ) -> FitResult:
        """The mean of the parameters over the second half of the steps; see :func:`statespace.fit`.

        Raises:
            TypeError: if the model's states have no density.
            ValueError: if ``key`` is missing, or the start is impossible.
        """
        learner = type(self).__name__
        keys = jax.random.split(needed_key(key, learner), 3)
        problem = beginning(model, data, priors, method, learner, keys[0])
        check_densities(model, problem.data, learner)
        state = _begin(self, problem, vector(problem), keys[1])
        seen = in_blocks(
            lambda state, count: _advance(self, problem, state, count),
            state,
            0,
            self.iterations,
            _BLOCK,
            learner,
            self.progress,
        )[0]
        return searched(
            problem,
            data,
            seen,
            keys[2],
            learner=f"{self._label} ({self.chains} chains of {self.particles} particles)",
            lost="lower `learning_rate`, or start nearer",
        ).warn_unless_converged()

    @property
    def _label(self) -> str:
        """What it is, in words."""
        raise NotImplementedError


class ScoreAscent(_Ascent):
    """Climb the log likelihood by scores from the Parisian particle Gibbs sampler.

    Fisher's identity makes the gradient an expectation of an additive functional of the path of states. A
    conditional PaRIS sweep estimates it from *all* particles, at each step of the optimiser anew, with the
    path that the last step left: since parameters move little between steps, the path has nearly its
    smoothing law, and the estimate nearly no bias, with few particles. Several chains go at once and their
    estimates are averaged. Steps shrink, and what is returned is the mean of the parameters over their second
    half (Polyak & Juditsky 1992). With priors the end is the maximum a posteriori.

    Args:
        iterations: steps.
        learning_rate: size of the first steps, in the unconstrained parameters, of Adam; they shrink as the
            -0.6th power of the number of the step after a tenth of them.
        optimiser: an optax transformation, in place of that.
        particles: of each sweep.
        chains: how many paths are carried.
        proposal: how particles are moved, as for :class:`statespace.ParticleFilter`.
        resampling: name of a scheme, of which the conditional version is used.
        draws: backward draws for each particle and moment.
        sweeps: of each step, of which the estimates are averaged.
        progress: whether to show a progress bar; None: when it takes more than a few seconds.

    References:
        Cardoso, Idrissi, Le Corff, Moulines & Olsson (2023), State and parameter learning with PARIS particle
        Gibbs, ICML, algorithm 3.
    """

    draws: int = eqx.field(static=True, default=2)
    sweeps: int = eqx.field(static=True, default=1)

    def __check_init__(self) -> None:
        for name in ("draws", "sweeps"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")

    @property
    def _label(self) -> str:
        return "score ascent by PPG"

    def gradient(
        self, problem: Problem, z: Float[Array, " p"], paths: Any, key: PRNGKeyArray
    ) -> tuple[Float[Array, " p"], Any]:
        """The sweeps' mean of what PaRIS expects of the score."""
        model, (series, within) = problem.place(z), recordings(problem.data)
        settings = self._drawing.settings

        def one(series: Any, inside: Array, path: Any, key: PRNGKeyArray) -> tuple[Any, Array]:
            chain = lower(model, series, self.proposal)
            score = sums_of(complete_data.score(problem.place, z, jnp.sum(inside)), model)

            def sweep(path: Any, key: PRNGKeyArray) -> tuple[Any, Array]:
                done = parisian.parisian_sweep(key, chain, path, score, settings, self.draws)
                return done.path, done.value

            path, values = jax.lax.scan(sweep, path, jax.random.split(key, self.sweeps))
            return path, jnp.mean(values, axis=0)

        paths, values = jax.vmap(one)(series, within, paths, jax.random.split(key, len(within)))
        return jnp.sum(values, axis=0), paths


class ScoreClimbing(_Ascent):
    """Climb the log likelihood by Markov score climbing: the score of one path that is moved on at each step.

    At each step of the optimiser a conditional particle filter moves each chain's path by a kernel that keeps
    its smoothing law at the current parameters, and the gradient of the complete-data log density at that
    path is followed. Robbins and Monro's steps average over what the path still has of noise. A step is
    cheaper than one of ``ScoreAscent()`` and its gradient noisier.

    Args:
        iterations: steps.
        learning_rate: size of the first steps, in the unconstrained parameters, of Adam; they shrink as the
            -0.6th power of the number of the step after a tenth of them.
        optimiser: an optax transformation, in place of that.
        particles: of the conditional filter.
        chains: how many paths are carried.
        proposal: how particles are moved, as for :class:`statespace.ParticleFilter`.
        resampling: name of a scheme, of which the conditional version is used.
        progress: whether to show a progress bar; None: when it takes more than a few seconds.

    References:
        Naesseth, Lindsten & Blei (2020), Markovian score climbing: variational inference with KL(p||q),
        NeurIPS, section 2; Gu & Kong (1998) for the general form.
    """

    @property
    def _label(self) -> str:
        return "Markov score climbing"

    def gradient(
        self, problem: Problem, z: Float[Array, " p"], paths: Any, key: PRNGKeyArray
    ) -> tuple[Float[Array, " p"], Any]:
        """The gradient of the complete-data log density at the new paths."""
        new = moved_paths(problem, z, paths, key, self._drawing).path
        return jax.grad(lambda z: complete(problem, z, new))(z), new


class Climb(NamedTuple):
    """An ascent under way: the parameters, the optimiser's state, the paths of all chains, the randomness."""

    z: Float[Array, " p"]
    optimiser: Any
    paths: Any
    key: PRNGKeyArray


@eqx.filter_jit
def _begin(learner: _Ascent, problem: Problem, z: Array, key: PRNGKeyArray) -> Climb:
    key, key_paths = jax.random.split(key)
    draw = lambda k: first_paths(problem, z, k, learner._drawing)
    paths = jax.vmap(draw)(jax.random.split(key_paths, learner.chains))
    state = Climb(z, optimiser_for(learner, learner.iterations).init(z), paths, key)
    return jax.tree.map(lambda a: a[None], state)


@eqx.filter_jit
def _advance(
    learner: _Ascent, problem: Problem, state: Climb, count: Array
) -> tuple[Climb, Float[Array, "1 b p"]]:
    """``count`` steps, in buffers of a fixed length."""
    optimiser = optimiser_for(learner, learner.iterations)

    def step(state: Climb) -> Climb:
        key, key_paths = jax.random.split(state.key)
        keys = jax.random.split(key_paths, learner.chains)
        climb = lambda paths, k: learner.gradient(problem, state.z, paths, k)
        gradients, paths = jax.vmap(climb)(state.paths, keys)
        uphill = jnp.mean(gradients, axis=0) + jax.grad(problem.log_prior)(state.z)
        change, after = optimiser.update(-uphill, state.optimiser, state.z)
        return Climb(state.z + change, after, paths, key)

    return sweeps(jax.vmap(step), lambda s: s.z, state, count, _BLOCK)
