"""Expectation maximisation for linear Gaussian models."""

from __future__ import annotations

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from statespace.learners.descent import rounding
from statespace.learners.expectations import expectations
from statespace.learners.information import bends, uncertainty
from statespace.learners.likelihood import bare, log_likelihood
from statespace.learners.priors import Priors, checked_priors, log_prior
from statespace.learners.problem import (
    Problem,
    check_start,
    curvature,
    density,
    not_finite,
    vector,
    with_values,
)
from statespace.learners.progress import bar
from statespace.learners.regressions import check_scales, maximise, regressions
from statespace.learners.result import FitResult
from statespace.parameters import parameters, replace

_BLOCK = 50  # iterations in one call of the compiled loop
_RUNNING, _CONVERGED, _FELL, _NOT_FINITE, _COLLAPSED = 0, 1, 2, 3, 4


class EM(eqx.Module):
    """Expectation maximisation: smooth the states, then regress on them, until nothing is gained.

    For ``LinearGaussian``, and for ``ss.Model`` with a Gaussian initial law and affine Gaussian conditionals
    made of arrays. Takes missing entries (of some or all channels), inputs, and panels of recordings of
    unequal length. A frozen parameter does not move, and the others are then at the maximum given it. A
    parameter with a prior is moved by climbing the expected log likelihood plus log prior.

    EM gets near a maximum reliably, and approaches it slowly: ``ss.fit(result, data)`` finishes the work by
    maximum likelihood, with standard errors.

    Args:
        iterations: at most so many.
        tolerance: stop when an iteration raises the log likelihood (plus log prior) by less than this.
        floor: the least eigenvalue that a learned covariance may have, in squared units of what it is
            the noise of. With a floor, no covariance collapses.
        standard_errors: whether to compute them at the end, from the Hessian.
        progress: whether to show a progress bar; None: when it takes more than a few seconds.

    References:
        Shumway & Stoffer (1982); Ghahramani & Hinton (1996), Parameter estimation for linear dynamical
        systems, equations 11-20; for missing channels Holmes, Ward & Wills (2012).
    """

    iterations: int = eqx.field(static=True, default=500)
    tolerance: float = eqx.field(static=True, default=1e-6)
    floor: float = eqx.field(static=True, default=0.0)
    standard_errors: bool = eqx.field(static=True, default=False)
    progress: bool | None = eqx.field(static=True, default=None)

    def __check_init__(self) -> None:
        if self.iterations < 1:
            raise ValueError(f"`iterations` must be at least 1, got {self.iterations}.")
        for name in ("tolerance", "floor"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"`{name}` must not be negative, got {getattr(self, name)}.")

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
        """Parameters at which no iteration raises the likelihood; see :func:`statespace.fit`.

        Raises:
            TypeError: if the model has no closed-form M-step.
            ValueError: if the start is impossible, a scale has no closed form, or a covariance collapses
                on the way.
        """
        check_scales(model)
        problem = Problem(model, bare(data), checked_priors(model, priors), method)
        check_start(problem, "EM")
        state, trace = self._run(problem)
        problem = with_values(problem, state.values)
        reason = self._verdict(int(state.status), trace, problem)
        z = vector(problem)
        total, likelihood = (float(v) for v in _densities(problem))
        trace.append(total)
        errors = None
        if self.standard_errors:
            value, _, hessian = (np.asarray(a, float) for a in curvature(problem, z))
            shape = bends(hessian, float(value), float(jnp.finfo(z.dtype).eps))
            errors = uncertainty(problem, np.asarray(z), shape)
        return FitResult(
            model=problem.model,
            data=data,
            learner="expectation maximisation",
            log_likelihood=likelihood,
            log_prior=total - likelihood if problem.priors else None,
            converged=int(state.status) == _CONVERGED,
            reason=reason,
            iterations=int(state.iteration),
            trace=np.asarray(trace),
            uncertainty=errors,
            _problem=problem,
        ).warn_unless_converged()

    def _run(self, problem: Problem) -> tuple[Progress, list[float]]:
        """Iterate, block by block, to the end."""
        values = parameters(problem.model, frozen=False)
        dtype = vector(problem).dtype
        tolerance, floor = jnp.asarray(self.tolerance, dtype), jnp.asarray(self.floor, dtype)
        zero = jnp.zeros((), int)
        state = Progress(
            values, jnp.full((), -jnp.inf, dtype), jnp.zeros(_BLOCK, dtype), zero, zero
        )
        trace: list[float] = []
        with bar(self.iterations, "EM", self.progress) as shown:
            while int(state.status) == _RUNNING and int(state.iteration) < self.iterations:
                begin = int(state.iteration)
                end = min(begin + _BLOCK, self.iterations)
                state = _iterate(problem, state, tolerance, floor, jnp.asarray(end))
                done = int(state.iteration) - begin
                trace += np.asarray(state.trace)[:done].tolist()
                shown.set_postfix_str(f"log likelihood {trace[-1]:.3f}", refresh=False)
                shown.update(done)
        return state, trace

    def _verdict(self, status: int, trace: list[float], problem: Problem) -> str:
        if status == _COLLAPSED:
            raise ValueError(
                f"EM stopped at iteration {len(trace)}: a noise covariance collapsed to zero beside "
                "what it is the noise of (the likelihood has no maximum, or one on the boundary). Give "
                "EM(floor=...) a least variance, put a prior on the scale, freeze it, or use fewer "
                f"states. The scales are now {_scales(problem.model)}."
            )
        if status == _NOT_FINITE:
            if len(trace) <= 1:
                raise not_finite("EM", trace[0] if trace else density(problem, vector(problem)))
            raise ValueError(
                f"EM stopped at iteration {len(trace)}: the log likelihood became {trace[-1]}. Start "
                "elsewhere, give EM(floor=...) a least variance, or use Kalman(form='sqrt')."
            )
        if status == _FELL:
            return (
                f"the log likelihood fell by {trace[-2] - trace[-1]:.3g} at iteration {len(trace)}, "
                "which only rounding can do; use float64, or Kalman(form='sqrt')"
            )
        if status == _CONVERGED:
            return "an iteration gains less than the tolerance"
        return (
            f"{self.iterations} iterations were not enough; raise `iterations`, or go on from here"
        )


class Progress(NamedTuple):
    """EM under way.

    Attributes:
        values: the free parameters, by name.
        density: log likelihood plus log prior one iteration ago.
        trace: those of the last block of iterations.
        iteration: how many were made.
        status: why it stopped, or that it did not.
    """

    values: dict[str, Array]
    density: Float[Array, ""]
    trace: Float[Array, " b"]
    iteration: Int[Array, ""]
    status: Int[Array, ""]


def _scales(model: Any) -> str:
    """The noise scales of a model in words."""
    values = parameters(model)
    names = [part.scale for part in regressions(model)]
    return ", ".join(f"{n} = {np.array2string(np.asarray(values[n]), precision=3)}" for n in names)


@eqx.filter_jit
def _iterate(
    problem: Problem, state: Progress, tolerance: Array, floor: Array, end: Array
) -> Progress:
    """Iterations up to number ``end``, in one compiled loop."""
    parts = regressions(problem.model)
    begin = state.iteration

    def goes_on(s: Progress) -> Array:
        return (s.status == _RUNNING) & (s.iteration < end)

    def iteration(s: Progress) -> Progress:
        model = replace(problem.model, s.values)
        value, statistics = expectations(model, problem.data, problem.method, parts)
        value = (value + log_prior(model, problem.priors)).astype(s.density.dtype)
        new, collapsed = dict(s.values), jnp.zeros((), bool)
        for part in parts:
            moved, flag = maximise(model, part, statistics[part.label], problem.priors, floor)
            new |= moved
            collapsed = collapsed | flag
        gain = value - s.density
        small = jnp.maximum(tolerance, rounding(value))
        status = jnp.where(gain < small, _CONVERGED, _RUNNING)
        status = jnp.where(gain < -jnp.maximum(1e-6 * jnp.abs(value), small), _FELL, status)
        status = jnp.where(collapsed & (status == _RUNNING), _COLLAPSED, status)
        status = jnp.where(jnp.isfinite(value), status, _NOT_FINITE)
        keep = status != _RUNNING
        values = jax.tree.map(lambda a, b: jnp.where(keep, a, b), s.values, new)
        return Progress(
            values=values,
            density=value,
            trace=s.trace.at[s.iteration - begin].set(value),
            iteration=s.iteration + 1,
            status=status.astype(s.status.dtype),
        )

    return jax.lax.while_loop(goes_on, iteration, state)


@eqx.filter_jit
def _densities(problem: Problem) -> tuple[Array, Array]:
    """Log likelihood plus log prior, and the log likelihood."""
    likelihood = log_likelihood(problem.model, problem.data, problem.method)
    return likelihood + log_prior(problem.model, problem.priors), likelihood
