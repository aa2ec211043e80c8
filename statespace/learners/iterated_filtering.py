"""Iterated filtering: maximum likelihood by particles that carry parameters of their own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from statespace import densities
from statespace.chains.particle import recursion
from statespace.chains.particle.resampling import resampling_named
from statespace.chains.particle.types import Chain
from statespace.learners import complete_data
from statespace.learners.estimates import beginning, end, estimates, needed_key, still_rising
from statespace.learners.likelihood import recordings
from statespace.learners.passes import in_turn
from statespace.learners.priors import Priors, log_prior
from statespace.learners.problem import Problem, vector
from statespace.learners.result import FitResult
from statespace.learners.sampling import check_counts, in_blocks, sweeps
from statespace.methods.particle_lowering import initial_law
from statespace.series import Panel

_BLOCK = 10  # iterations in one call of the compiled loop
_APART = 2.0  # nats by which the ends of the swarms may differ


class IteratedFiltering(eqx.Module):
    """Maximum likelihood for any model that can be simulated, by perturbed parameters (IF2).

    Every particle of a filter has parameters of its own, which take a random step in the unconstrained
    space at each moment; those that explain the data survive. The swarm that is left is filtered again,
    with smaller steps, until it has gathered around the maximum; the result is the swarms' mean over the last
    quarter of the passes. The transition is only drawn from: it needs no density. With priors the end is the
    maximum a posteriori. The recordings of a panel are gone through one after the other (Bretó, Ionides &
    King 2020).

    Several swarms go at once; that they end at the same height is what tells that they found the maximum. A
    swarm drifts, as its particles are drawn anew, by about a standard error of the estimates where it has
    half as many particles as there are moments; the mean of S swarms by the root of S less. The log
    likelihood that is reported is that of ``method``.

    Args:
        particles: in each swarm.
        iterations: passes through the data.
        perturbation: standard deviation of the random walk of the unconstrained parameters over the first
            pass, spread over its moments; a number, or one for each parameter by name.
        cooling: what is left of the perturbation in the last pass; it falls geometrically.
        initial_only: names of parameters on which only the law of the first state depends: they are
            perturbed there alone, since later moments would only blur them.
        swarms: how many.
        resampling: name of the scheme.
        progress: whether to show a progress bar; None: when it takes more than a few seconds.

    References:
        Ionides, Nguyen, Atchadé, Stoev & King (2015), Inference for dynamic and latent variable models via
        iterated, perturbed Bayes maps, PNAS 112, algorithm IF2.
    """

    particles: int = eqx.field(static=True, default=1000)
    iterations: int = eqx.field(static=True, default=50)
    perturbation: Any = eqx.field(static=True, default=0.3)
    cooling: float = eqx.field(static=True, default=0.05)
    initial_only: tuple[str, ...] = eqx.field(static=True, default=(), converter=tuple)
    swarms: int = eqx.field(static=True, default=4)
    resampling: Any = eqx.field(static=True, default="systematic")
    progress: bool | None = eqx.field(static=True, default=None)

    def __check_init__(self) -> None:
        check_counts(self, particles=2, iterations=4, swarms=1)
        if not 0 < self.cooling <= 1:
            raise ValueError(f"`cooling` must be above 0 and at most 1, got {self.cooling}.")
        given = self.perturbation
        for value in given.values() if isinstance(given, Mapping) else [given]:
            if not value > 0:
                raise ValueError(
                    f"`perturbation` must be positive, got {value}; freeze a parameter instead."
                )
        resampling_named(self.resampling)

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
        """Parameters around which the swarms have gathered; see :func:`statespace.fit`.

        Raises:
            ValueError: if ``key`` is missing, a name is no free parameter, or the start is impossible.
        """
        learner = "IteratedFiltering"
        key_run, key_estimate = jax.random.split(needed_key(key, learner))
        problem = beginning(model, data, priors, method, learner, key_estimate)
        z = vector(problem)
        walk = Walk(
            *self._widths(problem),
            jnp.asarray(self.cooling ** (1 / (self.iterations - 1)), z.dtype),
        )
        swarm = jnp.broadcast_to(z, (self.swarms, self.particles, len(z)))
        state = _begin(swarm, jax.random.split(key_run, self.swarms))
        seen = in_blocks(
            lambda state, count: _advance(problem, walk, self.resampling, state, count),
            state,
            0,
            self.iterations,
            _BLOCK,
            "iterated filtering",
            self.progress,
            lambda drawn: f", log likelihood {drawn.log_likelihood[:, -1].max():.3f}",
        )
        quarter = self.iterations // 4
        ends = seen.mean[:, -quarter:].mean(axis=1)
        before = seen.mean[:, quarter : 2 * quarter].mean(axis=(0, 1))
        points = [*ends, ends.mean(axis=0), before]
        found = estimates(problem, jnp.asarray(np.stack(points), z.dtype), key_estimate)
        best, reason = self._verdict(found)
        return end(
            problem,
            data,
            jnp.asarray(points[best], z.dtype),
            learner=f"iterated filtering ({self.swarms} swarms of {self.particles} particles)",
            found=found,
            index=best,
            reason=reason,
            done="the swarms agree, and the second half of the iterations gained nothing",
            iterations=self.iterations,
            trace=seen.log_likelihood.mean(axis=0),
        ).warn_unless_converged()

    def _widths(self, problem: Problem) -> tuple[Array, Array]:
        """Standard deviation of the step at the first moment of a recording, and at every moment."""
        free = problem.free()
        given = self.perturbation
        named = dict(given) if isinstance(given, Mapping) else dict.fromkeys(free, given)
        for argument, names in (("perturbation", named), ("initial_only", self.initial_only)):
            unknown = [name for name in names if name not in free]
            if unknown:
                raise ValueError(
                    f"`{argument}` of IteratedFiltering names {unknown}, but the free parameters are "
                    f"{list(free)}."
                )
        missing = [name for name in free if name not in named]
        if missing:
            raise ValueError(
                f"`perturbation` of IteratedFiltering has no value for {missing}: give one, or freeze them."
            )
        _, within = recordings(problem.data)
        moments, count = float(within.sum()), len(within)
        wide = jnp.concatenate([jnp.full(v.size, named[k] / count**0.5) for k, v in free.items()])
        narrow = jnp.concatenate(
            [jnp.full(v.size, named[k] / moments**0.5) for k, v in free.items()]
        )
        only = np.concatenate([np.full(v.size, k in self.initial_only) for k, v in free.items()])
        return jnp.where(only, wide, narrow), jnp.where(only, 0.0, narrow)

    def _verdict(self, found: Any) -> tuple[int, str | None]:
        """The best of the points, and what is wrong with it, or None."""
        ends, mean, before = range(self.swarms), self.swarms, self.swarms + 1
        heights = found.density
        best = max(ends, key=lambda i: heights[i] if np.isfinite(heights[i]) else -np.inf)
        margin = max(_APART, 3 * found.error(best, mean))
        if heights[mean] >= heights[best] - margin:
            lowest = min(ends, key=lambda i: heights[i])
            best = mean
            apart = heights[mean] - heights[lowest]
            if not apart <= max(_APART, 3 * found.error(lowest, mean)):
                return best, (
                    f"the swarms ended at log likelihoods {apart:.3g} apart: there may be several maxima, or "
                    "`particles` or `iterations` are too few"
                )
            return best, still_rising(found, before, mean)
        return best, (
            "the mean of the swarms is much less likely than the best of them: there is more than one "
            "maximum; the best is returned"
        )


class Walk(NamedTuple):
    """Standard deviations of the steps at first moments and at all others, and how they fall in a pass."""

    first: Float[Array, " p"]
    later: Float[Array, " p"]
    cooling: Float[Array, ""]


class Swarm(NamedTuple):
    """A swarm after some passes: its parameters, and what is known of the last pass."""

    z: Float[Array, "N p"]
    index: Int[Array, ""]  # type: ignore[assignment]  # not the method of tuples
    key: PRNGKeyArray
    log_likelihood: Float[Array, ""]


class Seen(NamedTuple):
    """What is kept of each pass: the swarm's mean, and the log likelihood of the perturbed model."""

    mean: Float[Array, " p"]
    log_likelihood: Float[Array, ""]


class Moment(NamedTuple):
    """One moment of a pass, which goes through all recordings."""

    step: Any
    y: Float[Array, " m"]
    begins: Any
    within: Any
    width: Float[Array, " p"]


class Carrier(NamedTuple):
    """Particles: states, and parameters of their own."""

    state: Any
    z: Float[Array, "N p"]


@eqx.filter_jit
def _begin(z: Array, keys: PRNGKeyArray) -> Swarm:
    count = len(keys)
    return Swarm(z, jnp.zeros(count, int), keys, jnp.zeros(count, z.dtype))


@eqx.filter_jit
def _advance(
    problem: Problem, walk: Walk, resampling: Any, state: Swarm, count: Array
) -> tuple[Swarm, Seen]:
    look = lambda s: Seen(jnp.mean(s.z, axis=0), s.log_likelihood)
    once = lambda s: _pass(problem, walk, resampling, s)
    return sweeps(jax.vmap(once), look, state, count, _BLOCK)


def _pass(problem: Problem, walk: Walk, resampling: Any, swarm: Swarm) -> Swarm:
    """One pass of a swarm through all recordings."""
    key, key_run, key_end = jax.random.split(swarm.key, 3)
    chain = _chain(problem, walk, swarm)
    resample = resampling_named(resampling)
    moments = len(chain.moments.within)
    run = recursion.run(
        chain,
        recursion.keys(key_run, moments),
        len(swarm.z),
        resample=resample,
        threshold=0.5,
    )
    left = resample(key_end, run.last.log_weights)
    return Swarm(run.last.particles.z[left], swarm.index + 1, key, run.log_likelihood)


def _chain(problem: Problem, walk: Walk, swarm: Swarm) -> Chain:
    """States and parameters as one chain; at the beginning of a recording the state is drawn anew."""
    given = in_turn(problem)
    many = len(problem.data) if isinstance(problem.data, Panel) else 1
    width = jnp.where(given.begins[:, None], walk.first, walk.later)
    count = len(given.within)
    passed = swarm.index + jnp.arange(count) / count
    width = width * (walk.cooling**passed * given.within)[:, None]
    moments = Moment(*given, width.astype(swarm.z.dtype))

    def perturbed(random: Any, z: Array, moment: Moment) -> Array:
        return z + moment.width * jax.random.normal(random, z.shape, z.dtype)

    def enter(random: Any, z: Array, step: Any) -> Any:
        return initial_law(problem.place(z), step).sample(random)

    def move(random: Any, z: Array, x: Any, step: Any) -> Any:
        return complete_data.in_type_of(problem.place(z).transition(x, step).sample(random), x)

    def see(z: Array, x: Any, moment: Moment) -> Array:
        law = problem.place(z).observation(x, moment.step)
        return jnp.where(moment.within, densities.log_density(law, moment.y), 0)

    def start(random: Any, count: int, moment: Moment) -> Carrier:
        key_z, key_x = jax.random.split(random)
        z = perturbed(key_z, swarm.z, moment)
        draw = lambda k, z: enter(k, z, moment.step)
        return Carrier(jax.vmap(draw)(jax.random.split(key_x, count), z), z)

    def propose(random: Any, previous: Carrier, moment: Moment) -> Carrier:
        key_z, key_x, key_new = jax.random.split(random, 3)
        z = perturbed(key_z, previous.z, moment)
        draw = lambda k, z, x: move(k, z, x, moment.step)
        x = jax.vmap(draw)(jax.random.split(key_x, len(z)), z, previous.state)
        if many > 1:
            fresh = jax.vmap(lambda k, z: enter(k, z, moment.step))
            new = complete_data.in_type_of(fresh(jax.random.split(key_new, len(z)), z), x)
            x = jax.tree.map(lambda a, b: jnp.where(moment.begins, a, b), new, x)
        return Carrier(x, z)

    def weigh(previous: Carrier, particles: Carrier, moment: Moment) -> Array:
        return jax.vmap(lambda z, x: see(z, x, moment))(particles.z, particles.state)

    def weigh_start(particles: Carrier, moment: Moment) -> Array:
        seen = jax.vmap(lambda z, x: see(z, x, moment))(particles.z, particles.state)
        prior = jax.vmap(lambda z: log_prior(problem.place(z), problem.priors))(particles.z)
        return seen + prior.astype(seen.dtype)

    return Chain(moments, start, weigh_start, propose, weigh)
