"""A Gaussian chain whose observations are sites, and the iteration that finds them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from statespace.chains import gaussian
from statespace.chains.gaussian import algebra as la
from statespace.chains.gaussian.step import absorb_site
from statespace.chains.moments import compensated_sum, scan_moments
from statespace.methods.implicit import fixed_point, held, like
from statespace.methods.sites import Law, Site, SiteRule, View, log_densities_of
from statespace.model import Step

_ROUNDS = (
    60  # of the derivative of the fixed point, by half steps, which contract where whole ones turn
)
_NEWTON = 3  # steps of Newton's method that carry derivatives, up to the second
_LEAST = 2.0**-30  # share of a step at which a line search gives up
_LEAST_DAMPED = (
    2.0**-6
)  # the same without an objective, where a smaller one would only look converged


class SiteConvergence(NamedTuple):
    """How an iteration for sites ended.

    Attributes:
        iterations: how many were made.
        change: what the last one, undamped, would have changed: of the means in posterior standard
            deviations, or of the variances relatively, at most.
        converged: whether it fell below the tolerance.
        cost: minus the log joint density at the mode, up to a constant (Laplace), or minus the log evidence.
        oscillates: whether it did not converge and the last two changes went against each other.
        guarded: number of sites whose precision was not positive (semi-)definite and was made so.
    """

    iterations: Int[Array, ""]
    change: Float[Array, ""]
    converged: Bool[Array, ""]
    cost: Float[Array, ""]
    oscillates: Bool[Array, ""]
    guarded: Int[Array, ""]


class Settings(NamedTuple):
    """Of an iteration: the most steps, the tolerance, and the share of the old sites that is kept.

    With a damping of None each step is as long as it may be: it is shortened until the objective rises, or,
    where there is none, when changes grow.
    """

    iterations: int
    tolerance: float
    damping: float | None = None


class Marginals(NamedTuple):
    """The states at each moment, as normal laws."""

    mean: Float[Array, "T n"]
    covariance: Float[Array, "T n n"]


class Iterate(NamedTuple):
    """Sites, and the states round which transitions are made affine; None where they are so already."""

    site: Site
    nominal: Marginals | None


class SiteProblem(NamedTuple):
    """A model on a recording, whose observations are to be replaced by sites.

    Attributes:
        rule: how.
        observation: the conditional.
        steps: of the moments, stacked.
        y: observations, shape ``(T, m)``.
        view: what they look at, stacked.
        initial: law of the first state.
        moves: the transitions, made affine round the given states.
        linear: whether they are affine already.
        form: of the chain.
        parallel: whether by associative scans.
    """

    rule: SiteRule
    observation: Any
    steps: Step
    y: Float[Array, "T m"]
    view: View
    initial: gaussian.Initial
    moves: Callable[[Any], gaussian.Transitions]
    linear: bool
    form: gaussian.Form
    parallel: bool = False

    @property
    def regular(self) -> bool:
        """Whether sites are sure to need no guard, and affine transitions no linearisation."""
        return self.linear and getattr(self.observation, "log_concave", False)

    @property
    def ascends(self) -> bool:
        """Whether each small enough step raises an objective."""
        return self.linear and self.rule.power == 0

    def nothing(self) -> Site:
        """Sites that say nothing."""
        shape = self.view.offset.shape
        zero = jnp.zeros(shape, self.initial.mean.dtype)
        return Site(jnp.zeros((*shape, shape[-1]), zero.dtype), zero)

    def chain(self, now: Iterate) -> tuple[gaussian.Chain, Float[Array, " T"]]:
        """The chain with these sites, and the logarithms of what its potentials leave out of them."""
        precision, shift, constant = jax.vmap(View.potential)(self.view, now.site)
        potentials = gaussian.Sites(precision, shift)
        return gaussian.Chain(self.initial, self.moves(now.nominal), potentials), constant

    def states(self, now: Iterate) -> Marginals:
        """The smoothed states."""
        return self.smoothed(now)[0]

    def smoothed(self, now: Iterate) -> tuple[Marginals, Float[Array, ""]]:
        """The smoothed states, and the log integral of the prior times the sites."""
        if len(self.y) == 1:
            mean, covariance, log_normaliser = self._one(now)
            return Marginals(mean[None], covariance[None]), log_normaliser
        chain, constant = self.chain(now)
        found = gaussian.smooth(chain, form=self.form, parallel=self.parallel)
        return Marginals(found.mean, found.covariance), found.log_likelihood + jnp.sum(constant)

    def log_normaliser(self, now: Iterate) -> Float[Array, ""]:
        """Log integral of the prior times the sites."""
        if len(self.y) == 1:
            return self._one(now)[2]
        chain, constant = self.chain(now)
        how = {"form": self.form, "parallel": self.parallel}
        return gaussian.log_likelihood(chain, **how) + compensated_sum(constant)

    def _one(self, now: Iterate) -> tuple[Array, Array, Array]:
        """Mean, covariance and log normaliser of a single moment."""
        only = jax.tree.map(lambda x: x[0], (self.view, now.site))
        precision, shift, constant = View.potential(*only)
        law = self.initial
        mean, spread, log_scale, gram = absorb_site(
            law.mean[:, None], law.noise, precision, shift, self.form
        )
        covariance = spread if self.form == "covariance" else la.matmul_t(spread, spread)
        return mean[:, 0], covariance, log_scale - 0.5 * gram[0, 0] + constant

    def laws(self, states: Marginals) -> Law:
        """Of what the observations look at."""
        return jax.vmap(View.law)(self.view, states.mean, states.covariance)

    def target(self, now: Iterate, states: Marginals) -> tuple[Iterate, Bool[Array, "T c"]]:
        """Where an undamped step leads, and which sites are guarded there."""

        def one(step: Step, y: Array, law: Law, site: Site) -> tuple[Site, Array]:
            return self.rule.update(log_densities_of(self.observation, step, y), law, site)

        site, guarded = jax.vmap(one)(self.steps, self.y, self.laws(states), now.site)
        return Iterate(site, None if self.linear else states), guarded

    def surplus(self, now: Iterate, states: Marginals) -> Float[Array, " T"]:
        """What each moment adds to the log normaliser in the log evidence."""

        def one(step: Step, y: Array, law: Law, site: Site) -> Array:
            found = self.rule.surplus(log_densities_of(self.observation, step, y), law, site)
            return jnp.sum(found)

        return jax.vmap(one)(self.steps, self.y, self.laws(states), now.site)

    def evidence(self, now: Iterate, states: Marginals) -> Float[Array, ""]:
        """The log evidence: the approximation of ``log p(y)`` that goes with the rule."""
        return self.log_normaliser(now) + compensated_sum(self.surplus(now, states))

    def prior_means(self) -> Float[Array, "T n"]:
        """The means of the states before any observation, where transitions are affine."""
        first, count = self.initial.mean, len(self.y)
        if count == 1:
            return first[None]
        moves = self.moves(None)

        def one(mean: Array, at: tuple[Array, Array]) -> tuple[Array, Array]:
            ahead = at[0] @ mean + at[1]
            return ahead, ahead

        rest = scan_moments(one, first, (moves.matrix, moves.offset), count - 1)[1]
        return jnp.concatenate([first[None], rest])

    def merit(self, now: Iterate, states: Marginals, log_normaliser: Array, prior: Any) -> Array:
        """What the iteration raises: the log joint density at the mean (up to a constant), or the evidence.

        The mean m of the chain with sites obeys ``P (m - prior) = shift - precision m`` with the prior's
        precision P, which is therefore never formed.
        """
        if not self.rule.at_mean:
            return log_normaliser + jnp.sum(self.surplus(now, states))
        z = self.laws(states).mean
        z0 = jax.vmap(lambda v, x: v.matrix @ x + v.offset)(self.view, prior)
        pull = now.site.shift - jnp.einsum("tcab,tcb->tca", now.site.precision, z)
        log_sites = jax.vmap(Site.log_value)(now.site, z)
        observed = jnp.sum(self.surplus(now, states)) + jnp.sum(log_sites)
        return observed - 0.5 * jnp.sum(pull * (z - z0))


def mix(old: Iterate, new: Iterate, share: Array) -> Iterate:
    """Part of the way from one iterate to another, in natural parameters: all damping there is."""
    return jax.tree.map(lambda a, b: a + share.astype(a.dtype) * (b - a), old, new)


class _Search(NamedTuple):
    now: Iterate
    states: Marginals
    target: Iterate
    guarded: Array
    merit: Array
    share: Array
    change: Array
    moved: Array
    turn: Array
    best: Iterate
    best_merit: Array
    iteration: Array
    tolerance: Array
    going: Array


def solve(
    problem: SiteProblem, start: Iterate, settings: Settings
) -> tuple[Iterate, SiteConvergence, Array]:
    """Sites that no longer change; if there are none within the iterations, the best that were met.

    The best are those with the largest objective, or where no objective rises with each step those that an
    undamped step would have changed least.

    Returns:
        The sites, how the iteration ended, and the share of the last step.
    """
    dtype = problem.initial.mean.dtype
    eps = jnp.finfo(dtype).eps
    searches = settings.damping is None and problem.ascends
    prior = problem.prior_means() if problem.ascends and problem.rule.at_mean else None

    def body(s: _Search) -> _Search:
        trial = mix(s.now, s.target, s.share)
        states, merit = problem.smoothed(trial)
        if problem.ascends:
            merit = problem.merit(trial, states, merit, prior)
        moved, change, noise = _difference(s.states, states)
        begins = s.iteration == 0  # the start itself is evaluated
        change = jnp.where(begins, jnp.inf, change / s.share)
        fine = ~jnp.isnan(change) & (begins | jnp.isfinite(merit))
        slack = 100 * eps * (1 + jnp.abs(s.merit))
        taken = fine & ((merit >= s.merit - slack) | ~jnp.isfinite(s.merit) if searches else True)
        tolerance = jnp.maximum(settings.tolerance, 20 * eps * noise)
        target, guarded = problem.target(trial, states)

        share, least = s.share, _LEAST if searches else _LEAST_DAMPED
        if settings.damping is None:
            # near the fixed point an objective is flat, and only growing changes tell of too long a step
            grows = ~taken | ((change > s.change) & ~begins)
            share = jnp.where(grows, s.share / 2, jnp.minimum(1, 1.3 * s.share))
            share = jnp.maximum(share, least)
        better = taken & (merit > s.best_merit if problem.ascends else change < s.best_merit)
        better = better & jnp.isfinite(merit)
        new = s._replace(
            now=trial,
            states=states,
            target=target,
            guarded=guarded,
            merit=merit,
            moved=moved,
            turn=_cosine(moved, s.moved),
        )
        s = s._replace(change=jnp.where(fine, change, s.change))
        kept = jax.tree.map(lambda a, b: jnp.where(taken, a, b), new, s)
        small = fine & (change <= tolerance)
        alive = taken | (share > least) if settings.damping is None else taken
        return kept._replace(
            share=share,
            change=s.change,
            best=jax.tree.map(lambda a, b: jnp.where(better, a, b), trial, s.best),
            best_merit=jnp.where(better, merit if problem.ascends else change, s.best_merit),
            iteration=s.iteration + 1,
            tolerance=tolerance,
            going=~small & alive,
        )

    shape = (len(problem.y), len(problem.initial.mean))
    none = jnp.zeros(shape, dtype)
    low = jnp.asarray(-jnp.inf, dtype)
    first = _Search(
        now=start,
        states=Marginals(none, jnp.zeros((*shape, shape[1]), dtype)),
        target=start,
        guarded=jnp.zeros(problem.view.offset.shape[:2], bool),
        merit=low,
        share=jnp.asarray(1 - (settings.damping or 0.0), dtype),
        change=-low,
        moved=none,
        turn=jnp.zeros((), dtype),
        best=start,
        best_merit=low if problem.ascends else -low,
        iteration=jnp.asarray(0),
        tolerance=jnp.asarray(settings.tolerance, dtype),
        going=jnp.asarray(True),
    )
    end = jax.lax.while_loop(lambda s: s.going & (s.iteration <= settings.iterations), body, first)
    converged = end.change <= end.tolerance
    found = jax.tree.map(lambda a, b: jnp.where(converged, a, b), end.now, end.best)
    report = SiteConvergence(
        iterations=end.iteration - 1,
        change=end.change,
        converged=converged,
        cost=-end.merit if problem.ascends else jnp.full((), jnp.nan, dtype),
        oscillates=~converged & (end.turn < 0),
        guarded=jnp.sum(end.guarded),
    )
    return found, report, end.share


def _difference(old: Marginals, new: Marginals) -> tuple[Array, Array, Array]:
    """Moves of the means in standard deviations, the largest change, and how large means are."""
    variance = jnp.diagonal(new.covariance, axis1=1, axis2=2)
    before = jnp.diagonal(old.covariance, axis1=1, axis2=2)
    known = variance > 0
    sd = jnp.sqrt(jnp.where(known, variance, 1))
    moved = jnp.where(known, (new.mean - old.mean) / sd, 0)
    widened = jnp.where(known, (variance - before) / sd**2, 0)
    size = jnp.max(jnp.where(known, jnp.abs(new.mean) / sd, 0))
    bad = ~(jnp.isfinite(new.mean).all() & jnp.isfinite(variance).all() & (variance >= 0).all())
    change = jnp.maximum(jnp.max(jnp.abs(moved)), jnp.max(jnp.abs(widened)))
    return moved, jnp.where(bad, jnp.nan, change), 1 + size


def _cosine(a: Array, b: Array) -> Array:
    size = jnp.sqrt(jnp.sum(a**2) * jnp.sum(b**2))
    return jnp.sum(a * b) / jnp.where(size > 0, size, 1)


def differentiable(problem: SiteProblem, found: Iterate, share: Array) -> Iterate:
    """Sites that were found, with derivatives in whatever the problem was made of.

    They are those of the fixed point by the implicit function theorem. A step of Newton's method from the
    mode has no first derivative in where it began, so that a few of them carry their own.
    """
    found, share = jax.lax.stop_gradient((found, share))
    if problem.rule.at_mean and problem.regular:
        newton = lambda now, _: (problem.target(now, problem.states(now))[0], None)
        return like(found, lambda: jax.lax.scan(newton, found, None, length=_NEWTON)[0])

    def step(now: Iterate) -> Iterate:
        return mix(now, problem.target(now, problem.states(now))[0], share / 2)

    return fixed_point(step, found, _ROUNDS)


def log_evidence(problem: SiteProblem, found: Iterate, share: Array) -> Float[Array, ""]:
    """The log evidence at sites that were found, with derivatives in whatever the problem was made of.

    Expectation propagation and variational inference make it stationary in the sites and in the laws of the
    states, if no site is guarded: the first derivative does without theirs.
    """
    states = problem.states(found)
    if problem.regular and not problem.rule.at_mean:

        def whole() -> tuple[Iterate, Marginals]:
            sites = differentiable(problem, found, share)
            return sites, problem.states(sites)

        return problem.evidence(*held((found, states), whole))
    sites = differentiable(problem, found, share)
    return problem.evidence(sites, like(states, lambda: problem.states(sites)))
