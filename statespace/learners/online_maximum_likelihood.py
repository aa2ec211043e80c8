"""Recursive maximum likelihood: the parameters follow the score of each observation as it comes."""

from __future__ import annotations

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from statespace import densities
from statespace.chains.particle import paris, resampling_named, take
from statespace.chains.particle.backward import kernel_named
from statespace.chains.particle.types import Chain, Cloud
from statespace.learners import complete_data
from statespace.learners.estimates import beginning, needed_key
from statespace.learners.passes import Moments, in_turn
from statespace.learners.priors import Priors
from statespace.learners.problem import Problem, vector
from statespace.learners.progress import bar
from statespace.learners.result import FitResult
from statespace.learners.searches import searched
from statespace.learners.state_paths import Drawing, check_densities, check_drawing
from statespace.learners.steps import check_optimiser, optimiser_for
from statespace.methods.functional_lowering import sums_of
from statespace.methods.particle_laws import Moment
from statespace.methods.particle_lowering import initial_law


class OnlineMaximumLikelihood(eqx.Module):
    """Learn from one observation after the other, in constant memory, by PaRIS' estimate of the score.

    A bootstrap filter runs at the parameters as they are; each particle carries, by PaRIS, the expected
    gradient of the complete-data log density of the paths that lead to it. What an observation adds to the
    filter's mean of it is the gradient of its predictive log density, along which the parameters move. Steps
    shrink, and the result is the mean of the parameters over the second half of them (Polyak & Juditsky
    1992). Several passes take a recording as often anew; the recordings of a panel follow one another. With
    priors, each observation brings its share of their gradient.

    The predictive density is that of parameters which kept moving: the end is near the maximum of the
    likelihood, and nearer the longer the recording.

    Args:
        passes: through the data.
        learning_rate: size of the first steps, in the unconstrained parameters, of Adam; they shrink as the
            -0.6th power of the number of the step after a tenth of them.
        optimiser: an optax transformation, in place of that.
        particles: of the filter.
        draws: backward draws for each particle and moment.
        backward: the backward kernel: "exact", "metropolis", or "auto" for the one by the number of
            particles.
        resampling: name of the scheme.
        progress: whether to show a progress bar; None: when it takes more than a few seconds.

    References:
        Poyiadjis, Doucet & Singh (2011), Particle approximations of the score and observed information
        matrix, Biometrika 98, section 4; Olsson & Westerborn Alenlöv (2020), Particle-based online estimation
        of tangent filters with application to parameter estimation, for PaRIS in it.
    """

    passes: int = eqx.field(static=True, default=1)
    learning_rate: float = eqx.field(static=True, default=0.02)
    optimiser: Any = eqx.field(static=True, default=None)
    particles: int = eqx.field(static=True, default=200)
    draws: int = eqx.field(static=True, default=2)
    backward: Any = eqx.field(static=True, default="auto")
    resampling: Any = eqx.field(static=True, default="systematic")
    progress: bool | None = eqx.field(static=True, default=None)

    def __check_init__(self) -> None:
        for name in ("passes", "draws"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        if self.backward not in ("auto", "exact", "metropolis"):
            raise ValueError(
                f'`backward` must be "auto", "exact" or "metropolis", got {self.backward!r}.'
            )
        check_optimiser(self.learning_rate, self.optimiser)
        check_drawing(Drawing(self.particles, None, self.resampling), "OnlineMaximumLikelihood")

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
        learner = "OnlineMaximumLikelihood"
        keys = jax.random.split(needed_key(key, learner), 3)
        problem = beginning(model, data, priors, method, learner, keys[0])
        check_densities(model, problem.data, learner)
        z = vector(problem)
        optimiser = None
        seen = []
        with bar(self.passes, "online maximum likelihood", self.progress) as shown:
            for k in jax.random.split(keys[1], self.passes):
                z, optimiser, steps = _pass(self, problem, z, optimiser, k)
                seen.append(np.asarray(steps))
                shown.update(1)
        within = np.asarray(in_turn(problem).within)
        path = np.concatenate([steps[within] for steps in seen])
        return searched(
            problem,
            data,
            path,
            keys[2],
            learner=f"online maximum likelihood ({self.passes} × {len(path) // self.passes} observations)",
            lost="lower `learning_rate`, or start nearer",
            remedy="raise `passes` or `learning_rate`",
        ).warn_unless_converged()


class Run(NamedTuple):
    """The recursion under way.

    Attributes:
        z: the unconstrained parameters.
        optimiser: its state.
        cloud: the filter's.
        statistics: of each particle the expected score of the paths that lead to it, shape ``(N, p)``.
        score: the filter's mean of them.
    """

    z: Float[Array, " p"]
    optimiser: Any
    cloud: Cloud
    statistics: Float[Array, "N p"]
    score: Float[Array, " p"]


@eqx.filter_jit
def _pass(
    learner: OnlineMaximumLikelihood, problem: Problem, z: Array, optimiser: Any, key: PRNGKeyArray
) -> tuple[Array, Any, Float[Array, "ST p"]]:
    """One pass: the parameters after it, the optimiser's state, and the parameters after each moment."""
    moments = in_turn(problem)
    length = jnp.sum(moments.within)
    rule = optimiser_for(learner, learner.passes * len(moments.within))
    optimiser = rule.init(z) if optimiser is None else optimiser
    key, key_first = jax.random.split(key)
    head = jax.tree.map(lambda a: a[0], moments)
    cloud, statistics = _begin(learner, problem, z, key_first, head)
    run = Run(z, optimiser, cloud, statistics, jnp.zeros_like(z))

    def step(run: Run, at: tuple[Any, PRNGKeyArray]) -> tuple[Run, Array]:
        moment, key = at
        fresh = lambda: (*_begin(learner, problem, run.z, key, moment), jnp.zeros_like(run.z))
        onward = lambda: (*_advance(learner, problem, run, key, moment), run.score)
        cloud, statistics, before = jax.lax.cond(moment.begins, fresh, onward)
        score = paris.estimate(cloud, statistics)
        prior = jax.grad(problem.log_prior)(run.z) / length
        change, state = rule.update(-(score - before + prior), run.optimiser, run.z)
        moved = Run(run.z + change, state, cloud, statistics, score)
        run = jax.tree.map(lambda new, old: jnp.where(moment.within, new, old), moved, run)
        return run, run.z

    run, path = jax.lax.scan(step, run, (moments, jax.random.split(key, len(moments.within))))
    return run.z, run.optimiser, path


def _begin(
    learner: OnlineMaximumLikelihood, problem: Problem, z: Array, key: PRNGKeyArray, moment: Moments
) -> tuple[Cloud, Array]:
    """The filter and its statistics at the first moment of a recording."""
    model, count = problem.place(z), learner.particles
    draw = lambda k: initial_law(model, moment.step).sample(k)
    particles = jax.vmap(draw)(jax.random.split(key, count))
    sums = sums_of(complete_data.score(problem.place, z, jnp.inf), model)
    cloud = Cloud(particles, _normalised(_seen(model, particles, moment)))
    return cloud, sums.first(particles, Moment(moment.step, moment.y))


def _advance(
    learner: OnlineMaximumLikelihood, problem: Problem, run: Run, key: PRNGKeyArray, moment: Moments
) -> tuple[Cloud, Array]:
    """The filter and its statistics one moment on, at the parameters as they are."""
    model, before = problem.place(run.z), run.cloud
    key_select, key_move, key_back = jax.random.split(key, 3)
    ancestors = resampling_named(learner.resampling)(key_select, before.log_weights)
    previous = take(before.particles, ancestors)
    move = lambda x, k: model.transition(x, moment.step).sample(k)
    drawn = jax.vmap(move)(previous, jax.random.split(key_move, learner.particles))
    particles = complete_data.in_type_of(drawn, previous)
    after = Cloud(particles, _normalised(_seen(model, particles, moment)))
    density = lambda x, new: jnp.sum(model.transition(x, moment.step).log_prob(new))
    chain = Chain(
        None, None, None, None, None, lambda previous, new, _: jax.vmap(density)(previous, new)
    )
    kernel = kernel_named(learner.backward, chain, learner.particles)
    numbers = kernel(key_back, chain, moment, before, particles, ancestors, learner.draws)
    sums = sums_of(complete_data.score(problem.place, run.z, jnp.inf), model)
    row = Moment(moment.step, moment.y)
    return after, paris.update(sums, run.statistics, before.particles, particles, numbers, row)


def _seen(model: Any, particles: Any, moment: Moments) -> Float[Array, " N"]:
    see = lambda x: densities.log_density(model.observation(x, moment.step), moment.y)
    return jax.vmap(see)(particles)


def _normalised(log_weights: Float[Array, " N"]) -> Float[Array, " N"]:
    """Weights that sum to one; equal ones where no particle explains the observation."""
    total = jax.nn.logsumexp(log_weights)
    level = -jnp.log(jnp.asarray(len(log_weights), log_weights.dtype))
    return jnp.where(jnp.isfinite(total), log_weights - total, level)
