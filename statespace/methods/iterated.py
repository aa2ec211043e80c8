"""Iterated smoothers: linearise round the smoothed states until they no longer move."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from statespace import angles
from statespace.chains import gaussian
from statespace.chains.gaussian import algebra as la
from statespace.chains.gaussian.forward import covariances
from statespace.chains.gaussian.forward import forward as forward_pass
from statespace.checks import require_whole
from statespace.linearisation import Linearisation, Taylor, lower_factor, require_rule, rule_of
from statespace.methods.gaussian_method import GaussianMethod, Lowered, in_parallel
from statespace.methods.implicit import fixed_point, like
from statespace.methods.linearised import (
    Nominal,
    Start,
    check_conditionals,
    linearised,
    noise_at,
    started,
)
from statespace.methods.linearising_filters import filtered, forward
from statespace.model import Step
from statespace.posteriors.gaussian import GaussianPosterior
from statespace.series import Panel, Series

_ROUNDS = 30  # of the derivative of the fixed point, which contract as the iteration does

Damping = Literal["levenberg-marquardt", "line-search"]


class Convergence(NamedTuple):
    """How an iteration ended.

    Attributes:
        iterations: how many were made.
        change: the last change of the states, in units of their posterior standard deviations, at most; NaN
            where a step led to what is no number, after which the states before it were kept.
        converged: whether it fell below the tolerance.
        cost: minus the log joint density at the states; NaN where the rule minimises none.
    """

    iterations: Int[Array, ""]
    change: Float[Array, ""]
    converged: Bool[Array, ""]
    cost: Float[Array, ""]


class IteratedSmoother(GaussianMethod):
    """Smooth, linearise round the smoothed states, and smooth again, to a fixed point.

    With ``Taylor()`` it is the Gauss–Newton method on the log joint density of all states (Bell 1994; Särkkä
    & Svensson 2020), and its fixed point the posterior mode where the noises do not depend on the state. With
    sigma points it is posterior linearisation (García-Fernández, Svensson & Särkkä 2017). Every iteration is
    one smoother of the Gaussian chain, sequential or associative. Gradients of the log likelihood are those
    of the fixed point (implicit function theorem), and do not pass through the iterations.

    Needs what ``ExtendedKalman`` and ``SigmaPointKalman`` need. Exact for linear Gaussian models. The log
    likelihood is that of the model linearised at the fixed point.

    Args:
        form: "covariance", or "sqrt" for recursions on factors. None: "sqrt" in float32.
        parallel: whether to use associative scans. None: on accelerators only.
        linearisation: a rule of ``statespace.linearisation``, or its name: "taylor", "cubature", "unscented"
            or "gauss-hermite".
        iterations: the most that are made.
        tolerance: change of the states, in posterior standard deviations, at which it stops.
        damping: "levenberg-marquardt" holds each step back by observing the states where they were (the
            smoothed step is then the exact Levenberg–Marquardt one); "line-search" shortens steps that do not
            descend; None takes full steps. Both make the cost fall in every iteration; they go with
            ``Taylor()``, which has a cost, and need noises that are not singular.

    Raises:
        TypeError: if ``linearisation`` is no rule.
        ValueError: if a setting is out of range, or damping does not go with the rule.
    """

    linearisation: Linearisation = eqx.field(static=True, default=Taylor(), converter=rule_of)
    iterations: int = eqx.field(static=True, default=50)
    tolerance: float = eqx.field(static=True, default=1e-8)
    damping: Damping | None = eqx.field(static=True, default=None)

    def __check_init__(self) -> None:
        require_rule("linearisation", "IteratedSmoother", self.linearisation)
        require_whole("iterations", "IteratedSmoother", self.iterations)
        if not self.tolerance >= 0:
            raise ValueError(
                f"`tolerance` of IteratedSmoother must not be negative, got {self.tolerance}."
            )
        if self.damping not in (None, "levenberg-marquardt", "line-search"):
            raise ValueError(
                '`damping` of IteratedSmoother must be "levenberg-marquardt", "line-search" or None, got '
                f"{self.damping!r}."
            )
        if self.damping is not None and not isinstance(self.linearisation, Taylor):
            raise ValueError(
                "`damping` of IteratedSmoother needs a cost that each step lowers, which Taylor() has and "
                f"{type(self.linearisation).__name__} has not: use damping=None."
            )

    def check(self, model: Any, data: Series | Panel) -> None:
        """Refuse conditionals without a mean and a covariance, and shapes that do not fit."""
        check_conditionals(model, data, type(self).__name__)

    def lower(self, model: Any, series: Series) -> Lowered:
        """The chain of the model made affine at the fixed point."""
        return self._solve(model, series).lowered

    def log_likelihood(self, model: Any, series: Series) -> Float[Array, ""]:
        """That of the model made affine at the fixed point."""
        found = self._solve(model, series)
        chain, how = found.lowered
        value = found.passes.smoothed.log_likelihood
        return like(value, lambda: gaussian.log_likelihood(chain, **how))

    def beginning(self, model: Any, series: Series) -> Lowered:
        """The chain of the model made affine along the filter's way."""
        start = started(model, series, self.form, type(self).__name__)
        how = {"form": start.form, "parallel": in_parallel(self.parallel, series)}
        return Lowered(filtered(model, start, self.linearisation)[0], how)

    def posterior(self, model: Any, series: Series, kind: Any) -> GaussianPosterior:
        """The law of the states, with how the iteration ended as its ``convergence``."""
        found = self._solve(model, series)
        passes = like(found.passes, lambda: _passes(*found.lowered))
        posterior = self.posterior_of(model, series, found.lowered, kind, *passes)
        return dataclasses.replace(posterior, convergence=found.convergence)

    def online(self, model: Any, dt: float) -> Any:
        """Refused: it needs the whole recording.

        Raises:
            TypeError: always.
        """
        raise TypeError(
            "IteratedSmoother needs the whole recording: use ExtendedKalman() or SigmaPointKalman() online."
        )

    def _solve(self, model: Any, series: Series) -> _Solved:
        start = started(model, series, self.form, type(self).__name__)
        how = {"form": start.form, "parallel": in_parallel(self.parallel, series)}
        problem = _Problem(model, start, self.linearisation)
        passes = jax.jit(lambda chain: _passes(chain, how))  # traced once for all its uses
        run = forward(model, start, self.linearisation)
        begin = Nominal(run.means.filtered[..., 0], covariances(run.gains.filtered, start.form))
        states, convergence, last = _iterate(self, problem, passes, begin)
        once = lambda states: passes(problem.chain(states)).states
        states = fixed_point(once, states, _ROUNDS)
        return _Solved(Lowered(problem.chain(states), how), convergence, last)


class _Passes(NamedTuple):
    """A chain run forward and backward."""

    run: gaussian.Forward
    smoothed: gaussian.Smoothed

    @property
    def states(self) -> Nominal:
        """The smoothed ones."""
        return Nominal(self.smoothed.mean, self.smoothed.covariance)


def _passes(chain: gaussian.Chain, how: dict[str, Any]) -> _Passes:
    run = forward_pass(chain, **how)
    return _Passes(run, gaussian.smoothed_by(chain, run, **how))


class _Solved(NamedTuple):
    """The chain at the fixed point, how the iteration ended, and values (alone) of the chain's passes."""

    lowered: Lowered
    convergence: Convergence
    passes: _Passes


class _Problem(NamedTuple):
    """A model and a recording, to be linearised round any states."""

    model: Any
    start: Start
    rule: Linearisation

    def chain(self, states: Nominal) -> gaussian.Chain:
        """The chain of the model made affine round these states, given by their covariances."""
        if self.start.form == "sqrt":
            states = states._replace(spread=jax.vmap(lower_factor)(states.spread))
        return linearised(self.model, self.start, self.rule, states, states)

    def cost(self, x: Float[Array, "T n"]) -> Float[Array, ""]:
        """Minus the log joint density of states and observations, up to a constant."""
        initial, steps, y, mask, form = self.start
        model = self.model
        total = _half_square(x[0] - initial.mean, initial.noise, None, form)

        def seen(step: Step, x: Array, y: Array, mask: Array | None) -> Array:
            mean, noise = noise_at(model.observation, step, x, form, "observation")
            if angles.given_by(model.observation, x, step):
                mean = angles.nearest(mean, y)
            return _half_square(y - mean, noise, mask, form)

        total += jnp.sum(jax.vmap(seen)(steps, x, y, mask))
        if len(x) == 1:
            return total

        def moved(step: Step, before: Array, x: Array) -> Array:
            mean, noise = noise_at(model.transition, step, before, form, "transition")
            return _half_square(x - mean, noise, None, form)

        later = jax.tree.map(lambda a: a[1:], steps)
        return total + jnp.sum(jax.vmap(moved)(later, x[:-1], x[1:]))


def _half_square(
    error: Float[Array, " m"], noise: Float[Array, "m k"], mask: Array | None, form: gaussian.Form
) -> Float[Array, ""]:
    """``-log N(error; 0, noise)`` of the channels that were seen, up to a constant."""
    covariance = noise if form == "covariance" else la.matmul_t(noise, noise)
    if mask is not None:
        both = mask[:, None] & mask[None, :]
        covariance = jnp.where(both, covariance, jnp.eye(len(mask), dtype=noise.dtype))
        error = jnp.where(mask, error, 0)
    factor = la.cholesky(covariance)
    white = la.solve_lower(factor, error[:, None])
    return 0.5 * jnp.sum(white**2) + la.log_diagonal(factor)


class _Search(NamedTuple):
    states: Nominal
    cost: Array
    weight: Array
    iteration: Array
    change: Array
    moving: Array  # whether the states are still to move
    last: _Passes  # over the chain at the states, once they do not
    done: Array


def _iterate(
    method: IteratedSmoother, problem: _Problem, passes: Callable, begin: Nominal
) -> tuple[Nominal, Convergence, _Passes]:
    """States that no longer move, and the passes over the chain there.

    These are one more turn of the same loop, so that the program has one copy of them; but steps held back
    are those of another chain.
    """
    damped = method.damping is not None
    held_back = method.damping == "levenberg-marquardt"
    dtype = begin.mean.dtype
    tolerance = jnp.maximum(method.tolerance, 10 * jnp.finfo(dtype).eps)

    def attempt(s: _Search) -> tuple[Nominal, Array, Array, _Passes]:
        """The next states, their cost, the next weight of the damping, and passes at the present states."""
        chain = problem.chain(s.states)
        if held_back:
            chain = _held_back(chain, s.states, s.weight, problem.start.form)
            new = passes(chain).states
            cost = problem.cost(new.mean)
            return new, cost, jnp.where(cost <= s.cost, s.weight / 10, s.weight * 10), s.last
        found = passes(chain)
        new = found.states
        if not damped:
            return new, s.cost, s.weight, found
        step = new.mean - s.states.mean
        ascends = lambda c: ~(problem.cost(s.states.mean + c * step) <= s.cost) & (c > 1e-4)
        c = jax.lax.while_loop(
            lambda c: s.moving & ascends(c), lambda c: c / 2, jnp.ones((), dtype)
        )
        new = new._replace(mean=s.states.mean + c * step)
        return new, problem.cost(new.mean), s.weight, found

    def body(s: _Search) -> _Search:
        new, cost, weight, last = attempt(s)
        sd = jnp.sqrt(jnp.maximum(jnp.diagonal(new.spread, axis1=1, axis2=2), 0))
        moved = jnp.abs(new.mean - s.states.mean)
        known = sd == 0  # what is no number is not known, and makes the change no number
        change = jnp.max(jnp.where(known, 0, moved / jnp.where(known, 1, sd)))
        better = s.moving & (cost <= s.cost if damped else jnp.isfinite(change))
        # a step that was refused although it was this small can only have failed by rounding
        going = (change > tolerance) & (weight < 1e16) & jnp.isfinite(change)
        iteration = s.iteration + s.moving
        moving = s.moving & going & (iteration < method.iterations)
        return _Search(
            states=jax.tree.map(lambda a, b: jnp.where(better, a, b), new, s.states),
            cost=jnp.where(better, cost, s.cost),
            weight=weight,
            iteration=iteration,
            change=jnp.where(s.moving, change, s.change),
            moving=moving,
            last=last,
            done=~moving if held_back else ~s.moving,
        )

    unknown = lambda x: jnp.full(x.shape, jnp.nan, x.dtype)
    start = _Search(
        states=begin,
        cost=problem.cost(begin.mean) if damped else jnp.asarray(jnp.nan, dtype),
        weight=jnp.asarray(1e-2, dtype),
        iteration=jnp.asarray(0),
        change=jnp.asarray(jnp.inf, dtype),
        moving=jnp.asarray(True),
        last=jax.tree.map(unknown, jax.eval_shape(passes, problem.chain(begin))),
        done=jnp.asarray(False),
    )
    end = jax.lax.while_loop(lambda s: ~s.done, body, start)
    last = passes(problem.chain(end.states)) if held_back else end.last
    cost = end.cost
    if not damped and isinstance(method.linearisation, Taylor):
        cost = problem.cost(end.states.mean)
    return end.states, Convergence(end.iteration, end.change, end.change <= tolerance, cost), last


def _held_back(
    chain: gaussian.Chain, states: Nominal, weight: Array, form: gaussian.Form
) -> gaussian.Chain:
    """The chain with the states observed where they were, ``weight`` times as precisely as they are known."""
    p: Any = chain.potentials
    steps, n = states.mean.shape
    m, k = p.noise.shape[1:]
    dtype = states.mean.dtype
    variance = jnp.diagonal(states.spread, axis1=1, axis2=2) / weight
    own = jax.vmap(jnp.diag)(jnp.sqrt(variance) if form == "sqrt" else variance)
    noise = jnp.zeros((steps, m + n, k + n), dtype)
    noise = noise.at[:, :m, :k].set(p.noise).at[:, m:, k:].set(own)
    eye = jnp.broadcast_to(jnp.eye(n, dtype=dtype), (steps, n, n))
    beside = lambda a, b: jnp.concatenate([a, b], axis=1)
    potentials = gaussian.Observed(
        matrix=beside(p.matrix, eye),
        offset=beside(p.offset, jnp.zeros((steps, n), dtype)),
        noise=noise,
        value=beside(p.value, states.mean),
        mask=None if p.mask is None else beside(p.mask, jnp.ones((steps, n), bool)),
    )
    return chain._replace(potentials=potentials)
