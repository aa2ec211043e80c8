"""Expectation maximisation: the loop, for every family of models that has an E-step and an M-step."""

from __future__ import annotations

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from statespace.conditionals.finite import FiniteTransition
from statespace.learners import em_counts, em_finite, em_gaussian
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
from statespace.learners.result import FitResult
from statespace.models.poisson_linear import PoissonLinearDynamics
from statespace.optimisation.descent import rounding
from statespace.parameters import Frozen, parameters, replace

_BLOCK = 50  # iterations in one call of the compiled loop
_RUNNING, _CONVERGED, _FELL, _NOT_FINITE, _COLLAPSED = 0, 1, 2, 3, 4
INITIALISATIONS = ("kmeans", "random")


class EM(eqx.Module):
    """Expectation maximisation: infer the states, then learn as if they were known, until nothing is gained.

    For models of finitely many states, with any transition and any observation; for ``LinearGaussian``
    and ``ss.Model`` with a Gaussian initial law and affine Gaussian conditionals made of arrays; and for
    ``PoissonLinearDynamics`` with ``method=ConjugateVI()``, whose evidence lower bound it raises. Takes
    missing entries (of some or all channels), inputs, soft labels, and panels of recordings of unequal
    length: each is smoothed by itself, and the parameters are learned from all. A frozen parameter does not
    move, and the others are then at the maximum given it. A parameter with a prior is moved by climbing the
    expected log likelihood plus log prior; a Dirichlet prior of probabilities adds its pseudo-counts (a
    "sticky" one is ``Dirichlet(ones((K, K)) + kappa * eye(K))``).

    EM gets near a maximum reliably, and approaches it slowly: ``ss.fit(result, data)`` finishes the work by
    maximum likelihood, with standard errors.

    Args:
        iterations: at most so many.
        tolerance: stop when an iteration raises the log likelihood (plus log prior) by less than this.
        floor: the least eigenvalue that a learned covariance may have, in squared units of what it is
            the noise of. With a floor, no covariance collapses.
        standard_errors: whether to compute them at the end, from the Hessian.
        starts: how many starts to make at once, for finite states; the first is the model as given, the
            best end is kept. More than one needs ``key`` in :func:`statespace.fit`.
        initialisation: what the emission of the other starts is learned from: ``"kmeans"``, clusters of the
            observations, or ``"random"``, states drawn from the model without a look at the data.
        progress: whether to show a progress bar; None: when it takes more than a few seconds.

    References:
        Baum et al. (1970); Dempster, Laird & Rubin (1977); Shumway & Stoffer (1982).
    """

    iterations: int = eqx.field(static=True, default=500)
    tolerance: float = eqx.field(static=True, default=1e-6)
    floor: float = eqx.field(static=True, default=0.0)
    standard_errors: bool = eqx.field(static=True, default=False)
    starts: int = eqx.field(static=True, default=1)
    initialisation: str = eqx.field(static=True, default="kmeans")
    progress: bool | None = eqx.field(static=True, default=None)

    def __check_init__(self) -> None:
        for name in ("iterations", "starts"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}.")
        for name in ("tolerance", "floor"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"`{name}` must not be negative, got {getattr(self, name)}.")
        if self.initialisation not in INITIALISATIONS:
            raise ValueError(
                f"`initialisation` must be one of {INITIALISATIONS}, got {self.initialisation!r}."
            )

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
            TypeError: if the model has no M-step.
            ValueError: if the start is impossible, a scale has no closed form, or a covariance collapses
                on the way.
        """
        problem = Problem(model, bare(data), checked_priors(model, priors), method)
        _family(model).check(problem)
        check_start(problem, "EM")
        states, traces = self._run(problem, self._beginnings(problem, key))
        best = _best(states)
        state, trace = jax.tree.map(lambda a: a[best], states), traces[best]
        problem = with_values(problem, state.values)
        reason = self._verdict(int(state.status), trace, problem)
        total, likelihood = (float(v) for v in _densities(problem))
        trace.append(total)
        errors = None
        if self.standard_errors:
            z = vector(problem)
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
            starts=tuple(map(np.asarray, traces)) if self.starts > 1 else None,
        ).warn_unless_converged()

    def _beginnings(self, problem: Problem, key: PRNGKeyArray | None) -> dict[str, Array]:
        """Values of the free parameters, with a leading axis of starts."""
        given = {k: v[None] for k, v in parameters(problem.model, frozen=False).items()}
        if self.starts == 1:
            return given
        if _family(problem.model) is not em_finite:
            raise TypeError(
                "EM(starts=...) is for models of finitely many states; for others use "
                "MaximumLikelihood(starts=...)."
            )
        if key is None:
            raise ValueError(
                f"EM(starts={self.starts}) disperses its starts at random: give `fit` a `key`, such as "
                "`jax.random.key(0)`."
            )
        em_finite.check_starts(problem)
        floor = jnp.asarray(self.floor, vector(problem).dtype)
        keys = jax.random.split(key, self.starts - 1)
        others = em_finite.disperse(problem, keys, self.initialisation, floor)
        return {k: jnp.concatenate([v, others[k].astype(v.dtype)]) for k, v in given.items()}

    def _run(self, problem: Problem, values: Any) -> tuple[Progress, list[list[float]]]:
        """Iterate, block by block, to the end of every start."""
        dtype = vector(problem).dtype
        tolerance, floor = jnp.asarray(self.tolerance, dtype), jnp.asarray(self.floor, dtype)
        zero = jnp.zeros(self.starts, int)
        low = jnp.full(self.starts, -jnp.inf, dtype)
        state = Progress(values, low, jnp.zeros((self.starts, _BLOCK), dtype), zero, zero)
        traces: list[list[float]] = [[] for _ in range(self.starts)]
        with bar(self.iterations, "EM", self.progress) as shown:
            for begin in range(0, self.iterations, _BLOCK):
                before = np.asarray(state.iteration)
                end = min(begin + _BLOCK, self.iterations)
                state = _iterate(problem, state, tolerance, floor, jnp.asarray(end))
                done = np.asarray(state.iteration) - before
                block = np.asarray(state.trace)
                for trace, values, count in zip(traces, block, done):
                    trace += values[:count].tolist()
                highest = np.nanmax([trace[-1] for trace in traces] + [-np.inf])
                shown.set_postfix_str(f"log likelihood {highest:.3f}", refresh=False)
                shown.update(int(done.max()))
                if not np.any(np.asarray(state.status) == _RUNNING):
                    break
        return state, traces

    def _verdict(self, status: int, trace: list[float], problem: Problem) -> str:
        family = _family(problem.model)
        if status == _COLLAPSED:
            raise ValueError(
                f"EM stopped at iteration {len(trace)}: {family.collapse(problem.model)}"
            )
        if status == _NOT_FINITE:
            if len(trace) <= 1:
                raise not_finite("EM", trace[0] if trace else density(problem, vector(problem)))
            raise ValueError(
                f"EM stopped at iteration {len(trace)}: the log likelihood became {trace[-1]}. Start "
                f"elsewhere, give EM(floor=...) a least variance, or {family.REMEDY}."
            )
        if status == _FELL:
            return (
                f"the log likelihood fell by {trace[-2] - trace[-1]:.3g} at iteration {len(trace)}, "
                f"which only rounding can do; {family.REMEDY}"
            )
        if status == _CONVERGED:
            return "an iteration gains less than the tolerance"
        return (
            f"{self.iterations} iterations were not enough; raise `iterations`, or go on from here"
        )


class Progress(NamedTuple):
    """EM under way, from several starts.

    Attributes:
        values: the free parameters, by name.
        density: log likelihood plus log prior one iteration ago.
        trace: those of the last block of iterations.
        iteration: how many were made.
        status: why it stopped, or that it did not.
    """

    values: dict[str, Float[Array, "starts ..."]]
    density: Float[Array, " starts"]
    trace: Float[Array, "starts b"]
    iteration: Int[Array, " starts"]
    status: Int[Array, " starts"]


def _family(model: Any) -> Any:
    """What knows the E-step and the M-step of a model."""
    if isinstance(model.transition, FiniteTransition):
        return em_finite
    bare = model
    while isinstance(bare, Frozen):
        bare = bare.model
    return em_counts if isinstance(bare, PoissonLinearDynamics) else em_gaussian


def _best(states: Progress) -> int:
    """The start that came highest, those that broke off last."""
    status, value = np.asarray(states.status), np.asarray(states.density)
    sound = (status != _COLLAPSED) & (status != _NOT_FINITE) & np.isfinite(value)
    return int(np.argmax(np.where(sound, value, -np.inf)))


@eqx.filter_jit
def _iterate(
    problem: Problem, states: Progress, tolerance: Array, floor: Array, end: Array
) -> Progress:
    """Iterations up to number ``end`` of every start, in one compiled loop."""
    family = _family(problem.model)

    def goes_on(s: Progress) -> Array:
        return (s.status == _RUNNING) & (s.iteration < end)

    def iteration(s: Progress, begin: Array) -> Progress:
        model = replace(problem.model, s.values)
        value, statistics = family.expect(model, problem)
        value = (value + log_prior(model, problem.priors)).astype(s.density.dtype)
        moved, collapsed = family.maximise(model, problem, statistics, floor)
        gain = value - s.density
        small = jnp.maximum(tolerance, rounding(value))
        status = jnp.where(gain < small, _CONVERGED, _RUNNING)
        status = jnp.where(gain < -jnp.maximum(1e-6 * jnp.abs(value), small), _FELL, status)
        status = jnp.where(collapsed & (status == _RUNNING), _COLLAPSED, status)
        status = jnp.where(jnp.isfinite(value), status, _NOT_FINITE)
        keep = status != _RUNNING
        values = jax.tree.map(lambda a, b: jnp.where(keep, a, b), s.values, s.values | moved)
        return Progress(
            values=values,
            density=value,
            trace=s.trace.at[s.iteration - begin].set(value),
            iteration=s.iteration + 1,
            status=status.astype(s.status.dtype),
        )

    def run(s: Progress) -> Progress:
        begin = s.iteration
        return jax.lax.while_loop(goes_on, lambda s: iteration(s, begin), s)

    if len(states.status) > 1:
        return jax.vmap(run)(states)
    only = run(jax.tree.map(lambda a: a[0], states))
    return jax.tree.map(lambda a: a[None], only)


@eqx.filter_jit
def _densities(problem: Problem) -> tuple[Array, Array]:
    """Log likelihood plus log prior, and the log likelihood."""
    likelihood = log_likelihood(problem.model, problem.data, problem.method)
    return likelihood + log_prior(problem.model, problem.priors), likelihood
