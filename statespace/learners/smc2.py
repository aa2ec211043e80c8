"""SMC²: the posterior of the parameters as data arrive, and the evidence, by particles that hold filters."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from statespace.chains.particle import resampling_named
from statespace.learners.estimates import beginning, bound, estimates, needed_key
from statespace.learners.likelihood import pointwise
from statespace.learners.nuts import values_of_draws
from statespace.learners.posterior_result import PosteriorResult
from statespace.learners.priors import Priors
from statespace.learners.problem import Problem, moved
from statespace.learners.progress import bar
from statespace.learners.result import FitResult
from statespace.learners.sampling import check_counts
from statespace.methods.choice import is_random
from statespace.parameters import parameters

_LIVELY = 0.05  # share of moves that must be accepted at the end


class SMC2(eqx.Module):
    """Draw the parameters from their posterior by sequential Monte Carlo, each with a filter of its own.

    Parameters are drawn from their priors and weighed by what their particle filters predict of one
    observation after the other. When the weights have become unequal, parameters are drawn anew by them and
    moved by steps of particle marginal Metropolis–Hastings on the data so far, whose size follows the swarm's
    own spread. When too few of these are accepted, because the filters' estimates vary too much on a longer
    recording, their particles are doubled. No start is needed, several modes are no obstacle, and the product
    of what was predicted is an estimate of the evidence, ``result.log_evidence``, by which models are
    compared.

    With an exact method, such as ``Kalman()``, it is iterated batch importance sampling (Chopin 2002).

    Args:
        parameters: how many parameter vectors: the draws that are returned.
        moves: Metropolis steps at each renewal.
        threshold: renew when the effective number of vectors is below this share of them.
        least_accepted: the acceptance rate below which the filters' particles are doubled.
        most_particles: up to this many.
        progress: whether to show a progress bar; None: when it takes more than a few seconds.

    References:
        Chopin, Jacob & Papaspiliopoulos (2013), SMC²: an efficient algorithm for sequential analysis of state
        space models, JRSS B 75, sections 3.1 to 3.6.
    """

    parameters: int = eqx.field(static=True, default=500)
    moves: int = eqx.field(static=True, default=4)
    threshold: float = eqx.field(static=True, default=0.5)
    least_accepted: float = eqx.field(static=True, default=0.1)
    most_particles: int = eqx.field(static=True, default=10_000)
    progress: bool | None = eqx.field(static=True, default=None)

    def __check_init__(self) -> None:
        check_counts(self, parameters=8, moves=1, most_particles=2)
        if not 0 < self.threshold <= 1:
            raise ValueError(f"`threshold` must be above 0 and at most 1, got {self.threshold}.")
        if not 0 <= self.least_accepted < 1:
            raise ValueError(f"`least_accepted` must be in [0, 1), got {self.least_accepted}.")

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
        """Draws from the posterior, and the evidence; see :func:`statespace.fit`.

        Raises:
            ValueError: if ``key`` is missing, a free parameter has no prior or an improper one, or nothing
                that is drawn from the priors makes an observation possible.
        """
        learner = "SMC2"
        keys = jax.random.split(needed_key(key, learner), 4)
        problem = beginning(model, data, priors, method, learner, keys[0], sampler=True)
        z = _from_priors(problem, keys[1], self.parameters)
        swarm = _filtered(problem, z, jax.random.split(keys[2], self.parameters))
        problem, swarm, report = self._through(problem, swarm, keys[3])
        order = np.random.default_rng(0).permutation(self.parameters)  # equal ones are neighbours
        z = jax.tree.map(lambda a: a[order][None], swarm.z)
        middle = jnp.mean(z, axis=(0, 1))
        found = estimates(problem, middle[None], keys[0])
        size = getattr(problem.method, "particles", None)
        filters = f", filters of {size} particles" if is_random(method) else ""
        return PosteriorResult.from_draws(
            problem=moved(problem, middle),
            data=data,
            learner=f"SMC² ({self.parameters} parameters{filters})",
            draws=values_of_draws(problem, z),
            unconstrained=np.asarray(z),
            statistics={"lp": np.asarray(_densities(problem, swarm))[order][None]},
            log_likelihood=float(found.log_likelihood[0]),
            log_prior=float(found.log_prior[0]),
            log_likelihood_variance=float(found.variance[0]) if is_random(method) else None,
            log_evidence=report.log_evidence,
            complaint=_complaint(report.accepted),
        ).warn_unless_converged()

    def _through(
        self, problem: Problem, swarm: Swarm, key: PRNGKeyArray
    ) -> tuple[Problem, Swarm, Report]:
        """Take in one observation after the other."""
        steps = swarm.predicted.shape[1]
        uniform = np.full(self.parameters, -np.log(self.parameters))
        weights, evidence, accepted = uniform, 0.0, 1.0
        predicted = np.asarray(swarm.predicted, float)
        with bar(steps, "SMC²", self.progress) as shown:
            for t in range(steps):
                weights = weights + predicted[:, t]
                total = np.logaddexp.reduce(weights)
                if not np.isfinite(total):
                    raise ValueError(
                        f"SMC2: none of {self.parameters} parameters makes observation {t} possible; use "
                        "more `parameters` or particles, or priors nearer to the data."
                    )
                evidence, weights = evidence + total, weights - total
                shown.update(1)
                effective = 1 / np.sum(np.exp(2 * weights))
                if effective >= self.threshold * self.parameters and t < steps - 1:
                    continue
                key, key_move, key_more = jax.random.split(key, 3)
                now = jnp.arange(steps) <= t
                log_weights = jnp.asarray(weights, swarm.z.dtype)
                swarm, rate = _renewed(problem, swarm, log_weights, now, key_move, self.moves)
                weights, accepted = uniform, float(rate)
                shown.set_postfix_str(f"{accepted:.0%} accepted", refresh=False)
                if accepted < self.least_accepted and self._may_double(problem):
                    problem, swarm, gain = _doubled(problem, swarm, now, key_more)
                    weights = uniform + np.asarray(gain, float)
                    weights = weights - np.logaddexp.reduce(weights)
                    if t == steps - 1:  # equal weights are returned
                        log_weights = jnp.asarray(weights, swarm.z.dtype)
                        key, key_move = jax.random.split(key)
                        swarm, rate = _renewed(
                            problem, swarm, log_weights, now, key_move, self.moves
                        )
                        accepted = float(rate)
                predicted = np.asarray(swarm.predicted, float)
        return problem, swarm, Report(float(evidence), accepted)

    def _may_double(self, problem: Problem) -> bool:
        if not is_random(problem.method):
            return False
        return 2 * problem.method.particles <= self.most_particles


class Swarm(NamedTuple):
    """Parameter vectors, and their filters: what each predicted, and the key that it ran from.

    A filter is a function of its parameters and its key, so that nothing of its particles has to be held.

    Attributes:
        z: unconstrained parameters.
        key: of each filter.
        predicted: log of the estimate of the density of each observation given those before.
    """

    z: Float[Array, "P p"]
    key: PRNGKeyArray
    predicted: Float[Array, "P T"]


class Report(NamedTuple):
    """The log evidence, and the acceptance rate of the last moves."""

    log_evidence: float
    accepted: float


def _from_priors(problem: Problem, key: PRNGKeyArray, count: int) -> Float[Array, "P p"]:
    """Unconstrained parameters drawn from the priors."""
    from numpyro.distributions import ImproperUniform

    free, bijections = parameters(problem.model, frozen=False), problem.bijections()
    parts = []
    for name, k in zip(free, jax.random.split(key, len(free))):
        prior = problem.priors[name]
        if isinstance(prior, ImproperUniform):
            raise ValueError(
                f"SMC2 draws from the priors, and that of {name!r} is improper: give one that can be drawn "
                "from."
            )
        own = len(prior.batch_shape + prior.event_shape)
        missing = free[name].shape[: free[name].ndim - own]
        draws = prior.sample(k, (count, *missing)).astype(free[name].dtype)
        parts.append(jax.vmap(bijections[name].inv)(draws).reshape(count, -1))
    return jnp.concatenate(parts, axis=1)


def _row(problem: Problem, z: Array, key: PRNGKeyArray) -> Float[Array, " T"]:
    """What the filter of these parameters and this key predicts of each observation."""
    each = pointwise(problem.place(z), problem.data, bound(problem, key).method).ravel()
    return jnp.where(jnp.isnan(each), -jnp.inf, each).astype(z.dtype)


@eqx.filter_jit
def _filtered(problem: Problem, z: Array, keys: PRNGKeyArray) -> Swarm:
    return Swarm(z, keys, jax.vmap(lambda z, k: _row(problem, z, k))(z, keys))


@eqx.filter_jit
def _densities(problem: Problem, swarm: Swarm) -> Float[Array, " P"]:
    every = jnp.ones(swarm.predicted.shape[1], bool)
    return jax.vmap(lambda s: _density(problem, s, every))(swarm)


def _density(problem: Problem, swarm: Swarm, now: Bool[Array, " T"]) -> Float[Array, ""]:
    """The estimated log posterior density of one vector given the observations so far."""
    so_far = jnp.sum(jnp.where(now, swarm.predicted, 0))
    return so_far + problem.log_prior(swarm.z, volume=True).astype(so_far.dtype)


@eqx.filter_jit
def _renewed(
    problem: Problem,
    swarm: Swarm,
    log_weights: Float[Array, " P"],
    now: Bool[Array, " T"],
    key: PRNGKeyArray,
    moves: int,
) -> tuple[Swarm, Float[Array, ""]]:
    """Vectors drawn anew by their weights, and moved; the share of moves that was accepted."""
    from blackjax.mcmc import random_walk

    count, p = swarm.z.shape
    key_select, key_move = jax.random.split(key)
    weights = jnp.exp(log_weights)
    error = swarm.z - weights @ swarm.z
    spread = (error * weights[:, None]).T @ error
    # 2.38 / sqrt(p) is the optimal size for a normal law in p dimensions (Roberts & Rosenthal 2001)
    ridge = 1e-8 * (jnp.trace(spread) + 1e-8) * jnp.eye(p, dtype=spread.dtype)
    root = 2.38 / p**0.5 * jnp.linalg.cholesky(spread + ridge)
    swarm = jax.tree.map(
        lambda a: a[resampling_named("systematic")(key_select, log_weights)], swarm
    )
    density = lambda swarm: _density(problem, swarm, now)

    def propose(key: PRNGKeyArray, at: Swarm) -> Swarm:
        key_z, key_filter = jax.random.split(key)
        z = at.z + root @ jax.random.normal(key_z, at.z.shape, at.z.dtype)
        return Swarm(z, key_filter, _row(problem, z, key_filter))

    def one(walk: Any, key: PRNGKeyArray) -> tuple[Any, Array]:
        walk, known = random_walk.build_rmh()(key, walk, density, propose)
        return walk, known.is_accepted

    def once(walk: Any, key: PRNGKeyArray) -> tuple[Any, Array]:
        return jax.vmap(one)(walk, jax.random.split(key, count))

    begun = jax.vmap(lambda s: random_walk.init(s, density))(swarm)
    walk, accepted = jax.lax.scan(once, begun, jax.random.split(key_move, moves))
    return walk.position, jnp.mean(accepted.astype(root.dtype))


def _doubled(
    problem: Problem, swarm: Swarm, now: Bool[Array, " T"], key: PRNGKeyArray
) -> tuple[Problem, Swarm, Float[Array, " P"]]:
    """Filters of twice as many particles, and the log weights of the exchange (section 3.6.1)."""
    method = dataclasses.replace(problem.method, particles=2 * problem.method.particles)
    problem = Problem(problem.model, problem.data, problem.priors, method)
    new = _filtered(problem, swarm.z, jax.random.split(key, len(swarm.z)))
    so_far = lambda s: jnp.sum(jnp.where(now, s.predicted, 0), axis=1)
    return problem, new, so_far(new) - so_far(swarm)


def _complaint(accepted: float) -> str | None:
    """What to say where the last moves changed next to nothing, or None."""
    if accepted >= _LIVELY:
        return None
    return (
        f"only {accepted:.1%} of the last moves were accepted, so that many draws are equal; raise "
        "`most_particles`, the particles of the method, or `moves`"
    )
