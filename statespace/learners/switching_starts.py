"""Where structured variational EM begins: a linear model's states, and regimes that are guessed from them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from statespace.chains import finite, gaussian, structured
from statespace.chains.switching_expectations import States
from statespace.conditionals.recurrent import RecurrentKernel
from statespace.emissions.autoregressive import Autoregressive
from statespace.learners import switching_regressions as m_step
from statespace.learners.em import EM
from statespace.learners.em_finite import bare as thawed
from statespace.learners.likelihood import bare, each_recording, recordings
from statespace.learners.problem import Problem
from statespace.learners.responsibilities import clustered, soften
from statespace.learners.result import ConvergenceWarning, FitResult
from statespace.methods.forward_backward import ForwardBackward
from statespace.methods.kalman import Kalman
from statespace.models.hmm import HMM
from statespace.parameters import freeze, parameters
from statespace.series import Panel, Series, as_data

_LINEAR_ITERATIONS = 50
_REGIME_ITERATIONS = 100
_REGIME_STARTS = 6


def each(problem: Problem, function: Any, *args: Any) -> Any:
    """``function`` of every recording, with a leading axis of recordings."""
    series, _ = recordings(problem.data)
    if isinstance(problem.data, Panel):
        return each_recording(function, problem.model, problem.method, series, *args)
    first = jax.tree.map(lambda x: x[0], args)
    return jax.tree.map(lambda x: x[None], function(problem.data, *first))


def warm(
    problem: Problem, keys: PRNGKeyArray, floors: dict[str, Array]
) -> Iterator[tuple[dict[str, Array], structured.Structured]]:
    """Parameters and a mean field to begin with, for each key: states of a linear model, guessed regimes.

    Args:
        problem: what is learned from what.
        keys: one for each start.
        floors: the least eigenvalue of each learned covariance, by label.
    """
    states = linear_states(problem, floors)
    recurrent = isinstance(thawed(problem.model).kernel, RecurrentKernel)
    for i, key in enumerate(keys):
        if recurrent == (i % 2 == 0):
            probs, pairs = clustered_regimes(problem, states, key)
        else:
            probs, pairs = autoregressive_regimes(problem, states, key, floors)
        yield joined(problem, states, probs, pairs, floors)


def linear_states(problem: Problem, floors: dict[str, Array]) -> States:
    """Smoothed states of a linear model: the mean of the regimes, learned by EM."""
    model = thawed(problem.model)
    mean = lambda x: x if x is None else jnp.mean(x, axis=0, keepdims=True)
    whole = {name: mean(getattr(model, name)) for name in m_step.OF_LINEAR}
    linear: Any = m_step.linear(_Parts(**whole))
    held = [other for name, other in m_step.OF_LINEAR.items() if name not in problem.names]
    held = [name for name in held if name in parameters(linear)]
    if held:
        linear = freeze(linear, *held)
    if parameters(linear, frozen=False):
        least = float(min(floors["observation"], floors["transition"]))
        learner = EM(iterations=_LINEAR_ITERATIONS, tolerance=0.1, floor=least, progress=False)
        linear = _quietly(learner, linear, problem.data, None).model
    return _smoothed(problem, linear)


class _Parts(eqx.Module):
    """The arrays of a switching model."""

    matrix: Array
    offset: Array | None
    scale: Array
    observation_matrix: Array
    observation_offset: Array | None
    observation_scale: Array
    initial_mean: Array
    initial_scale: Array


@eqx.filter_jit
def _smoothed(problem: Problem, linear: Any) -> States:
    def one(series: Series) -> States:
        chain, how = Kalman().lower(linear, series)
        smoothed = gaussian.smooth(chain, **how)
        return States(smoothed.mean, smoothed.covariance, smoothed.lag_one)

    return each(problem, one)


def autoregressive_regimes(
    problem: Problem, states: States, key: PRNGKeyArray, floors: dict[str, Array]
) -> tuple[Array, Array]:
    """Probabilities of regimes, and of pairs, in an autoregressive hidden Markov model of the states."""
    count = thawed(problem.model).regimes
    lengths = problem.data.lengths if isinstance(problem.data, Panel) else [states.mean.shape[1]]
    paths = [np.asarray(x)[:size] for x, size in zip(states.mean, lengths)]
    before = np.concatenate([x[:-1] for x in paths])
    rest = np.concatenate([x[1:] for x in paths]) - before
    n = before.shape[1]
    of_each = lambda part: np.repeat(part[None], count, axis=0)
    noise = np.cov(rest.T).reshape(n, n) + float(floors["transition"]) * np.eye(n)
    leaving = 0.1 / (count - 1)
    model = HMM(
        None,
        np.full((count, count), leaving) + (0.9 - leaving) * np.eye(count),
        Autoregressive(
            of_each(np.eye(n)[None]), of_each(rest.mean(axis=0)), of_each(np.linalg.cholesky(noise))
        ),
    )
    data = as_data(paths if len(paths) > 1 else paths[0])
    learner = EM(
        iterations=_REGIME_ITERATIONS,
        tolerance=0.1,
        floor=float(floors["transition"]),
        starts=_REGIME_STARTS,
        progress=False,
    )
    found = _quietly(learner, model, data, key).model
    return _finite(Problem(found, bare(data), {}, ForwardBackward()), states.mean.shape[1])


@eqx.filter_jit
def _finite(problem: Problem, size: int) -> tuple[Array, Array]:
    def one(series: Series) -> tuple[Array, Array]:
        chain = problem.method.lower(problem.model, series)
        smoothed = finite.smooth(chain, parallel=False)
        return smoothed.probs, finite.pairs(chain, smoothed)

    probs, pairs = each(problem, one)
    return probs, pairs


@eqx.filter_jit
def clustered_regimes(problem: Problem, states: States, key: PRNGKeyArray) -> tuple[Array, Array]:
    """Probabilities of regimes, and of pairs, from k-means of where the state is and how it moves on.

    An autoregressive model of the states knows nothing of places; where regimes depend on the state, they are
    regions of its space.
    """
    within = recordings(problem.data)[1]
    count = thawed(problem.model).regimes
    before, after = states.mean[:, :-1], states.mean[:, 1:]
    points = jnp.concatenate([before, after - before], axis=2)
    points = jnp.where(within[:, 1:, None], points, jnp.nan)
    found = clustered(points.reshape(-1, points.shape[2]), count, key).reshape(points.shape[:2])
    labels = jnp.concatenate([found[:, :1], found], axis=1)
    probs = soften(labels, count, jnp.ones_like(within)).astype(states.mean.dtype)
    return probs, probs[:, :-1, :, None] * probs[:, 1:, None, :]


@eqx.filter_jit
def joined(
    problem: Problem,
    states: States,
    probs: Array,
    pairs: Array,
    floors: dict[str, Array],
) -> tuple[dict[str, Array], structured.Structured]:
    """The parameters that fit states and regimes, and both as a mean field."""
    model = thawed(problem.model)

    def one(series: Series, *given: Any) -> tuple[structured.Structured, m_step.Moments]:
        chain, _ = problem.method.lower(model, series)
        states, probs, pairs = given
        q = structured.unknown(chain)._replace(states=states, probs=probs, pairs=pairs)
        return q, m_step.moments(model, series, chain.within, q)

    q, found = each(problem, one, states, probs, pairs)
    values = parameters(problem.model, frozen=False)
    return values | m_step.maximise(problem.model, problem, found, floors), q


def _quietly(learner: EM, model: Any, data: Any, key: PRNGKeyArray | None) -> FitResult:
    """A fit that is only a start, and need not have converged."""
    method = ForwardBackward() if isinstance(model, HMM) else Kalman()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return learner.fit(model, data, key=key, method=method)
