"""Expectation maximisation with paths of states drawn by particles."""

from __future__ import annotations

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from statespace.learners import expectations, regressions
from statespace.learners.estimates import beginning, needed_key
from statespace.learners.likelihood import recordings
from statespace.learners.priors import Priors, log_prior
from statespace.learners.problem import Problem, vector
from statespace.learners.regressions import Regression, Statistics
from statespace.learners.result import FitResult
from statespace.learners.sampling import check_counts, in_blocks, sweeps
from statespace.learners.searches import searched
from statespace.learners.state_paths import (
    Drawing,
    check_densities,
    check_drawing,
    complete_at,
    first_paths,
    moved_paths,
)
from statespace.optimisation.climbing import climb
from statespace.parameters import parameters, replace

_BLOCK = 20  # iterations in one call of the compiled loop


class ParticleEM(eqx.Module):
    """Draw paths of the states by particles, then learn as if they were the states, again and again.

    The paths are carried: a conditional particle filter moves each of them at every iteration, which leaves
    the smoothing law as it is with any number of particles. By stochastic approximation (SAEM) what is
    learned from is an average over the iterations that forgets ever more slowly, so that a few paths do: of
    the sufficient statistics where the model is linear and Gaussian, whose M-step has a closed form; of the
    parameters' moves in the unconstrained space for every other model, whose M-step climbs the complete-data
    log density. Without it the result is the mean of the parameters over the second half of the iterations.
    With priors the end is the maximum a posteriori.

    Args:
        iterations: how many.
        paths: how many are drawn of each recording.
        particles: of each conditional filter.
        proposal: how they are moved, as for :class:`statespace.ParticleFilter`.
        resampling: name of a scheme, of which the conditional version is used.
        stochastic_approximation: whether to average over iterations, with weights that fall as the -0.7th
            power of their number, after a quarter of them.
        evaluations: of the density and its gradient in an M-step without a closed form.
        progress: whether to show a progress bar; None: when it takes more than a few seconds.

    References:
        Lindsten (2013), An efficient stochastic approximation EM algorithm using conditional particle
        filters, ICASSP; Delyon, Lavielle & Moulines (1999) for SAEM; Olsson, Cappé, Douc & Moulines (2008)
        for EM by particles.
    """

    iterations: int = eqx.field(static=True, default=200)
    paths: int = eqx.field(static=True, default=4)
    particles: int = eqx.field(static=True, default=50)
    proposal: Any = "bootstrap"
    resampling: Any = eqx.field(static=True, default="systematic")
    stochastic_approximation: bool = eqx.field(static=True, default=True)
    evaluations: int = eqx.field(static=True, default=10)
    progress: bool | None = eqx.field(static=True, default=None)

    def __check_init__(self) -> None:
        check_counts(self, iterations=8, paths=1, evaluations=1)
        check_drawing(self._drawing, "ParticleEM")

    @property
    def _drawing(self) -> Drawing:
        return Drawing(self.particles, self.proposal, self.resampling)

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
        """Parameters that what is drawn given them leaves where they are; see :func:`statespace.fit`.

        Raises:
            TypeError: if the model's states have no density.
            ValueError: if ``key`` is missing, the start is impossible, or a covariance collapses on the way.
        """
        learner = "ParticleEM"
        keys = jax.random.split(needed_key(key, learner), 3)
        problem = beginning(model, data, priors, method, learner, keys[0])
        check_densities(model, problem.data, learner)
        parts = _closed_form(model)
        state = _begin(self, problem, vector(problem), keys[1], parts)
        seen = in_blocks(
            lambda state, count: _advance(self, problem, state, count, parts),
            state,
            0,
            self.iterations,
            _BLOCK,
            "particle EM",
            self.progress,
        )[0]
        kind = "stochastic approximation EM" if self.stochastic_approximation else "Monte Carlo EM"
        return searched(
            problem,
            data,
            seen,
            keys[2],
            learner=f"{kind} ({self.paths} paths, {self.particles} particles)",
            lost="a scale that collapses to zero does: put a prior on it, freeze it, or start nearer",
            averaged=not self.stochastic_approximation,
        ).warn_unless_converged()


class State(NamedTuple):
    """EM under way.

    Attributes:
        z: the unconstrained parameters.
        paths: of each recording, leaves ``(paths, S, T, ...)``.
        sums: the averaged statistics of each regression; None where there is no closed form.
        index: iterations made.
        key: source of randomness.
    """

    z: Float[Array, " p"]
    paths: Any
    sums: Any
    index: Int[Array, ""]  # type: ignore[assignment]  # not the method of tuples
    key: PRNGKeyArray


class Known(NamedTuple):
    """States that are known, as the E-step's statistics take them."""

    mean: Float[Array, "T n"]
    covariance: Float[Array, "T n n"]
    lag_one: Float[Array, "T-1 n n"]


def _closed_form(model: Any) -> tuple[Regression, ...] | None:
    """The model as regressions, if it is linear and Gaussian and its scales have a closed form."""
    try:
        regressions.check_scales(model)
        return regressions.regressions(model)
    except (TypeError, ValueError):
        return None


@eqx.filter_jit
def _begin(learner: ParticleEM, problem: Problem, z: Array, key: PRNGKeyArray, parts: Any) -> State:
    key, key_paths = jax.random.split(key)
    draw = lambda k: first_paths(problem, z, k, learner._drawing)
    paths = jax.vmap(draw)(jax.random.split(key_paths, learner.paths))
    sums = None if parts is None else _sums(problem, z, paths, parts)
    return jax.tree.map(lambda a: a[None], State(z, paths, sums, jnp.asarray(0), key))


@eqx.filter_jit
def _advance(
    learner: ParticleEM, problem: Problem, state: State, count: Array, parts: Any
) -> tuple[State, Float[Array, "1 b p"]]:
    """``count`` iterations, in buffers of a fixed length."""
    early = learner.iterations // 4

    def step(state: State) -> State:
        key, key_paths = jax.random.split(state.key)
        move = lambda paths, k: moved_paths(problem, state.z, paths, k, learner._drawing).path
        paths = jax.vmap(move)(state.paths, jax.random.split(key_paths, learner.paths))
        gain = jnp.ones((), state.z.dtype)
        if learner.stochastic_approximation:
            gain = (1.0 + jnp.maximum(state.index - early, 0)).astype(gain.dtype) ** -0.7
        mix = lambda old, new: jax.tree.map(lambda a, b: a + gain * (b - a), old, new)
        if parts is None:
            sums, z = None, mix(state.z, _climbed(learner, problem, state.z, paths))
        else:
            sums = mix(state.sums, _sums(problem, state.z, paths, parts))
            z = _regressed(problem, state.z, sums, parts)
        return State(z, paths, sums, state.index + 1, key)

    return sweeps(jax.vmap(step), lambda s: s.z, state, count, _BLOCK)


def _climbed(learner: ParticleEM, problem: Problem, z: Array, paths: Any) -> Float[Array, " p"]:
    """The M-step by climbing the mean of the complete-data log density over the paths."""
    there = problem.place(z)

    def objective(values: dict[str, Array]) -> Array:
        model = replace(there, values)
        each = jax.vmap(lambda paths: complete_at(model, problem.data, paths))(paths)
        return jnp.mean(each) + log_prior(model, problem.priors)

    values = parameters(there, frozen=False)
    new = climb(objective, values, problem.supports(), learner.evaluations)
    return _vector(problem, replace(there, new))


def _vector(problem: Problem, model: Any) -> Float[Array, " p"]:
    """The unconstrained parameters of a model."""
    return Problem(model, problem.data, problem.priors, problem.method).vector()


def _sums(
    problem: Problem, z: Array, paths: Array, parts: tuple[Regression, ...]
) -> dict[str, Statistics]:
    """Sums of products of targets and regressors over all moments, means over the paths."""
    model, (series, within) = problem.place(z), recordings(problem.data)

    def one(series: Any, inside: Array, path: Array) -> dict[str, Statistics]:
        count, n = path.shape
        known = Known(path, jnp.zeros((count, n, n)), jnp.zeros((count - 1, n, n)))
        return expectations.statistics(model, series, known, parts, inside)

    every = jax.vmap(jax.vmap(one), in_axes=(None, None, 0))(series, within, paths)
    mean = jax.tree.map(lambda a: jnp.mean(jnp.sum(a, axis=1), axis=0).astype(z.dtype), every)
    return {part.label: _of_targets(model, part, mean[part.label]) for part in parts}


def _of_targets(model: Any, part: Regression, s: Statistics) -> Statistics:
    """Statistics of the targets themselves from those of residuals, which depend on the parameters."""
    w = regressions.coefficients(model, part)
    cross = s.ez @ w.T
    return Statistics(s.ee + cross + cross.T + w @ s.zz @ w.T, s.ez + w @ s.zz, s.zz, s.moments)


def _of_residuals(model: Any, part: Regression, s: Statistics) -> Statistics:
    """The other way round."""
    w = regressions.coefficients(model, part)
    cross = s.ez @ w.T
    return Statistics(s.ee - cross - cross.T + w @ s.zz @ w.T, s.ez - w @ s.zz, s.zz, s.moments)


def _regressed(
    problem: Problem, z: Array, sums: dict[str, Statistics], parts: tuple[Regression, ...]
) -> Float[Array, " p"]:
    """The M-step in closed form; NaN where a covariance has collapsed."""
    model = problem.place(z)
    new: dict[str, Array] = {}
    collapsed = jnp.zeros((), bool)
    for part in parts:
        given = _of_residuals(model, part, sums[part.label])
        floor = jnp.zeros((), z.dtype)
        moved, flag = regressions.maximise(model, part, given, problem.priors, floor)
        new |= moved
        collapsed = collapsed | flag
    return jnp.where(collapsed, jnp.nan, _vector(problem, replace(model, new)))
