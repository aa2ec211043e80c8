"""What learners share that know the log likelihood by estimates only."""

from __future__ import annotations

from typing import Any, NamedTuple

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from statespace.learners.likelihood import bare, log_likelihood
from statespace.learners.priors import Priors, checked_priors, log_prior
from statespace.learners.problem import Problem, check_start, moved, not_finite, vector
from statespace.learners.result import FitResult
from statespace.methods.choice import is_random

_WORTH = 0.5  # nats that are worth going on for


class Estimates(NamedTuple):
    """Log likelihoods at some parameters, by repeated runs.

    Attributes:
        log_likelihood: log of the mean of the estimates of the likelihood.
        variance: of the logarithm of a single estimate; zero for an exact method.
        log_prior: log density of the priors.
        repeats: number of runs.
    """

    log_likelihood: Float[np.ndarray, " c"]
    variance: Float[np.ndarray, " c"]
    log_prior: Float[np.ndarray, " c"]
    repeats: int

    @property
    def density(self) -> Float[np.ndarray, " c"]:
        """Log likelihood plus log prior."""
        return self.log_likelihood + self.log_prior

    def error(self, i: int, j: int) -> float:
        """Standard error of the difference of two of the log likelihoods."""
        return float(np.sqrt((self.variance[i] + self.variance[j]) / self.repeats))


def needed_key(key: PRNGKeyArray | None, learner: str) -> PRNGKeyArray:
    """The key, if there is one.

    Raises:
        ValueError: if there is none.
    """
    if key is None:
        raise ValueError(f"{learner} is random: give `fit` a `key`, such as `jax.random.key(0)`.")
    return key


def bound(problem: Problem, key: PRNGKeyArray) -> Problem:
    """The problem with a method whose randomness comes from this key."""
    if not is_random(problem.method):
        return problem
    return Problem(problem.model, problem.data, problem.priors, problem.method.with_key(key))


def estimates(
    problem: Problem, z: Float[Array, "c p"], key: PRNGKeyArray, repeats: int = 16
) -> Estimates:
    """Log likelihoods at several unconstrained vectors, with the same randomness at each."""
    repeats = repeats if is_random(problem.method) else 1
    each, prior = (
        np.asarray(a, float) for a in _estimates(problem, z, jax.random.split(key, repeats))
    )
    with np.errstate(invalid="ignore"):
        top = each.max(axis=1)
        level = np.where(np.isfinite(top), top, 0.0)
        mean = level + np.log(np.mean(np.exp(each - level[:, None]), axis=1))
        variance = each.var(axis=1, ddof=1) if repeats > 1 else np.zeros(len(each))
    return Estimates(mean, np.where(np.isnan(variance), np.inf, variance), prior, repeats)


@eqx.filter_jit
def _estimates(problem: Problem, z: Array, keys: PRNGKeyArray) -> tuple[Array, Array]:
    def one(z: Array) -> tuple[Array, Array]:
        model = problem.place(z)
        run = lambda k: log_likelihood(model, problem.data, bound(problem, k).method)
        return jax.vmap(run)(keys), log_prior(model, problem.priors)

    return jax.lax.map(one, z)


def still_rising(
    found: Estimates, earlier: int, later: int, remedy: str = "raise `iterations`"
) -> str | None:
    """What to say if the later of two points is clearly higher, or None."""
    gain = found.density[later] - found.density[earlier]
    if not gain > max(_WORTH, 3 * found.error(earlier, later)):
        return None
    return (
        f"the log likelihood (plus log prior) still rose by {gain:.3g} in the second half of the "
        f"iterations; go on from here, `ss.fit(result, ...)`, or {remedy}"
    )


def beginning(
    model: Any,
    data: Any,
    priors: Priors | None,
    method: Any,
    learner: str,
    key: PRNGKeyArray,
    *,
    sampler: bool = False,
) -> Problem:
    """The problem at its start, checked.

    Args:
        model: as :func:`statespace.fit` was given it.
        data: likewise.
        priors: likewise.
        method: likewise.
        learner: its name, for messages.
        key: for a first estimate of the log likelihood, and for what the result computes later.
        sampler: whether every parameter needs a prior.

    Raises:
        ValueError: if a prior is missing, or the start is outside its support or impossible.
    """
    checked = checked_priors(model, priors, every=learner if sampler else None)
    problem = bound(Problem(model, bare(data), checked, method), key)
    check_start(problem, learner)
    found = estimates(problem, vector(problem)[None], key, repeats=4)
    if not np.isfinite(found.density[0]):
        raise not_finite(learner, found.density[0])
    return problem


def end(
    problem: Problem,
    data: Any,
    z: Float[Array, " p"],
    *,
    learner: str,
    found: Estimates,
    index: int,
    reason: str | None,
    done: str,
    iterations: int,
    trace: Any,
) -> FitResult:
    """What a learner returns that stopped at ``z``, the point ``index`` of ``found``.

    Args:
        problem: as :func:`beginning` made it.
        data: as :func:`statespace.fit` was given it.
        z: unconstrained vector.
        learner: what found it, in words.
        found: log likelihoods at some points.
        index: which of them is ``z``.
        reason: what is wrong, or None.
        done: what to say where nothing is.
        iterations: how many were made.
        trace: of log likelihoods.
    """
    at = moved(problem, z)
    return FitResult(
        model=at.model,
        data=data,
        learner=learner,
        log_likelihood=float(found.log_likelihood[index]),
        log_prior=float(found.log_prior[index]) if problem.priors else None,
        converged=reason is None,
        reason=reason or done,
        iterations=iterations,
        trace=np.asarray(trace),
        uncertainty=None,
        _problem=at,
        log_likelihood_variance=float(found.variance[index]) if is_random(problem.method) else None,
    )
