"""EM for counts with linear dynamics: the nearest normal law of the states, then regressions on them.

What rises is the evidence lower bound. The E-step is :class:`~statespace.ConjugateVI`; given its law of the
states the transition and the initial law have closed forms, as in the linear Gaussian model, and each
channel's loadings are those of a generalised linear model with uncertain regressors, found by Newton's
method: its derivatives are expectations over one number, the predictor.

References:
    Smith & Brown (2003); Mangion, Yuan, Kadirkamanathan, Niranjan & Sanguinetti (2011), Online variational
    inference for state-space models with point-process observations; Macke, Buesing & Sahani (2015),
    Estimating state and parameters in state space models of spike trains.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from statespace.chains import gaussian
from statespace.densities import log_densities
from statespace.emissions import newton
from statespace.learners import regressions
from statespace.learners.expectations import statistics as sums
from statespace.learners.likelihood import each_recording, recordings
from statespace.learners.problem import Problem
from statespace.learners.regressions import Regression, Statistics
from statespace.linearisation import GaussHermite
from statespace.methods.gaussian_sites import ConjugateVI
from statespace.methods.lowering import steps_of
from statespace.model import Step
from statespace.optimisation.climbing import climb
from statespace.parameters import parameters, replace, supports
from statespace.series import Series

REMEDY = "use float64, or ConjugateVI() with a smaller `tolerance`"
_ORDER = 20  # points of the expectations, as many as ConjugateVI takes
_COEFFICIENTS = ("observation_matrix", "observation_offset", "observation_input_matrix")
_DISPERSION = "concentration"
_EVALUATIONS = 20  # of the dispersion's objective in one M-step


class States(NamedTuple):
    """The states of all moments of all recordings, and what was observed there.

    Attributes:
        mean: shape ``(N, n)``.
        covariance: shape ``(N, n, n)``.
        y: shape ``(N, m)``, NaN where missing and in the padding.
        steps: of the moments, stacked.
    """

    mean: Float[Array, "N n"]
    covariance: Float[Array, "N n n"]
    y: Float[Array, "N m"]
    steps: Step


class _Expected(NamedTuple):
    """Of each entry's log density and derivatives, times powers of the standardised predictor."""

    value: Float[Array, "N m"]
    slope: tuple[Array, Array]
    curvature: tuple[Array, Array, Array]


def check(problem: Problem) -> None:
    """Refuse methods that raise no bound.

    Raises:
        TypeError: naming the one that does.
    """
    if not isinstance(problem.method, ConjugateVI):
        raise TypeError(
            "EM of PoissonLinearDynamics raises the bound that ConjugateVI() gives: pass "
            f"`method=ss.ConjugateVI()`, got {type(problem.method).__name__}. By MaximumLikelihood() and "
            "ScoreAscent() other methods can be used."
        )


def expect(model: Any, problem: Problem) -> tuple[Float[Array, ""], dict[str, Any]]:
    """The evidence lower bound, the statistics of the regressions of states, and the states."""
    data, within = recordings(problem.data)

    def one(series: Series, within: Bool[Array, " T"]) -> tuple:
        chain, how = problem.method.lower(model, series)
        states = gaussian.smooth(chain, **how)
        found = sums(model, series, states, _regressions(model), within)
        site = chain.potentials
        square = states.covariance + states.mean[:, :, None] * states.mean[:, None, :]
        replaced = jnp.sum(site.shift * states.mean) - 0.5 * jnp.sum(site.precision * square)
        steps = steps_of(series)[0]
        steps = jax.tree.map(lambda x: jnp.broadcast_to(x, (len(series), *x.shape[1:])), steps)
        here = States(states.mean, states.covariance, series.channels, steps)
        return found, here, states.log_likelihood - replaced

    found, states, rest = each_recording(one, model, problem.method, data, within)
    states = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), states)
    bound = jnp.sum(rest) + jnp.sum(_expected(model, states, _matrix(model)).value)
    return bound, jax.tree.map(lambda x: jnp.sum(x, axis=0), found) | {"states": states}


def maximise(
    model: Any, problem: Problem, statistics: dict[str, Any], floor: Float[Array, ""]
) -> tuple[dict[str, Array], Bool[Array, ""]]:
    """New values of the free parameters, and whether a covariance has collapsed."""
    new: dict[str, Array] = {}
    collapsed = jnp.zeros((), bool)
    for part in _regressions(model):
        given: Statistics = statistics[part.label]
        moved, flag = regressions.maximise(model, part, given, problem.priors, floor)
        new |= moved
        collapsed = collapsed | flag
    return new | _observation(model, problem, statistics["states"]), collapsed


def collapse(model: Any) -> str:
    """What a collapse is, and what to do about it."""
    scale = np.array2string(np.asarray(parameters(model)["transition_scale"]), precision=3)
    return (
        "the noise of the states collapsed to zero beside their size. Give EM(floor=...) a least variance, "
        f"put a prior on `transition_scale`, freeze it, or use fewer states. It is now {scale}."
    )


def _regressions(model: Any) -> tuple[Regression, ...]:
    inputs = "transition_input_matrix"
    driven = inputs if inputs in parameters(model) else None
    return (
        Regression("transition", "transition_matrix", None, driven, "transition_scale"),
        Regression("initial", None, "initial_mean", None, "initial_scale"),
    )


def _observation(model: Any, problem: Problem, states: States) -> dict[str, Array]:
    """The parameters of the observation that raise the expected log density (plus log prior)."""
    free, known = parameters(model, frozen=False), supports(model)
    names = [n for n in (*_COEFFICIENTS, _DISPERSION) if n in free]
    if any(name in problem.priors for name in names):
        within = {n: problem.priors[n].support if n in problem.priors else known[n] for n in names}

        def objective(new: dict[str, Array]) -> Array:
            here = replace(model, new)
            prior = sum(
                jnp.sum(problem.priors[n].log_prob(new[n])) for n in new if n in problem.priors
            )
            return prior + jnp.sum(_expected(here, states, _matrix(here)).value)

        return climb(objective, {n: free[n] for n in names}, within)
    new = _coefficients(model, states, [n for n in names if n != _DISPERSION])
    if _DISPERSION in names:
        moved = replace(model, new)

        def gain(value: dict[str, Array]) -> Array:
            return jnp.sum(_expected(replace(moved, value), states, _matrix(moved)).value)

        start = {_DISPERSION: free[_DISPERSION]}
        new |= climb(gain, start, {_DISPERSION: known[_DISPERSION]}, _EVALUATIONS)
    return new


def _coefficients(model: Any, states: States, names: list[str]) -> dict[str, Array]:
    """Loadings, offsets and weights of inputs by Newton's method, each channel by itself."""
    values = parameters(model)
    present = [name for name in _COEFFICIENTS if name in values]
    blocks = [v[:, None] if v.ndim == 1 else v for v in (values[name] for name in present)]
    held = np.concatenate(
        [np.full(b.shape[1], name not in names) for name, b in zip(present, blocks)]
    )
    if held.all():
        return {}
    z = _regressors(model, states)
    n = states.mean.shape[1]

    def curve(matrix: Float[Array, "1 m p"]) -> newton.Curve:
        found = _expected(model, states, matrix[0])
        (f1, f1e), (f2, f2e, f2ee) = found.slope, found.curvature
        along = _along(states, matrix[0, :, :n])
        g = jnp.pad(along, ((0, 0), (0, 0), (0, z.shape[1] - n)))
        gradient = f1.T @ z + jnp.einsum("tm,tmp->mp", f1e, g)
        cross = jnp.einsum("tm,tp,tmq->mpq", f2e, z, g)
        bend = jnp.einsum("tm,tp,tq->mpq", f2, z, z) + cross + jnp.swapaxes(cross, 1, 2)
        bend += jnp.einsum("tm,tmp,tmq->mpq", f2ee - f2, g, g)
        bend = bend.at[:, :n, :n].add(jnp.einsum("tm,tij->mij", f2, states.covariance))
        eye = jnp.eye(len(held), dtype=bend.dtype)
        information = jnp.where(held | held[:, None], eye, -bend)
        return newton.Curve(
            jnp.sum(found.value, axis=0), jnp.where(held, 0, gradient)[None], information[None]
        )

    best = newton.climb(curve, jnp.concatenate(blocks, axis=1)[None], 0)[0]
    columns = jnp.split(best, np.cumsum([b.shape[1] for b in blocks])[:-1], axis=1)
    return {
        name: c.reshape(values[name].shape) for name, c in zip(present, columns) if name in names
    }


def _matrix(model: Any) -> Float[Array, "m p"]:
    """Loadings, offset and weights of inputs side by side."""
    values = parameters(model)
    parts = [values[name] for name in _COEFFICIENTS if name in values]
    return jnp.concatenate([v[:, None] if v.ndim == 1 else v for v in parts], axis=1)


def _regressors(model: Any, states: States) -> Float[Array, "N p"]:
    """Expected regressors, in the order of :func:`_matrix`."""
    blocks = [states.mean, jnp.ones((len(states.mean), 1), states.mean.dtype)]
    if _COEFFICIENTS[2] in parameters(model):
        blocks.append(states.steps.inputs)
    return jnp.concatenate(blocks, axis=1)


def _along(states: States, loadings: Float[Array, "m n"]) -> Float[Array, "N m n"]:
    """How the states move with each predictor, in units of its standard deviation."""
    pull = jnp.einsum("tij,mj->tmi", states.covariance, loadings)
    variance = jnp.einsum("tmi,mi->tm", pull, loadings)
    return pull / jnp.sqrt(jnp.maximum(variance, jnp.finfo(pull.dtype).tiny))[..., None]


def _expected(model: Any, states: States, matrix: Float[Array, "m p"]) -> _Expected:
    """Expectations over the predictors, by Gauss–Hermite quadrature; 0 where nothing was observed."""
    observation, loadings = model.observation, matrix[:, : states.mean.shape[1]]
    centre = _regressors(model, states) @ matrix.T
    spread = jnp.einsum("mi,tij,mj->tm", loadings, states.covariance, loadings)
    spread = jnp.sqrt(jnp.maximum(spread, jnp.finfo(centre.dtype).tiny))
    points, weights = GaussHermite(_ORDER).points(1)[:2]
    nodes = jnp.asarray(points[:, 0], centre.dtype)

    def at(node: Array, step: Step, y: Array, centre: Array, spread: Array) -> tuple:
        density = lambda eta: log_densities(observation.law_of(eta, step), y)
        slope = jax.grad(lambda eta: jnp.sum(density(eta)))
        eta = centre + node * spread
        first, second = jax.jvp(slope, (eta,), (jnp.ones_like(eta),))
        return density(eta), first, second

    over_time = jax.vmap(at, in_axes=(None, 0, 0, 0, 0))
    value, f1, f2 = jax.vmap(over_time, in_axes=(0, None, None, None, None))(
        nodes, states.steps, states.y, centre, spread
    )
    mean = lambda x, power: jnp.tensordot(jnp.asarray(weights, x.dtype) * nodes**power, x, axes=1)
    return _Expected(
        mean(value, 0), (mean(f1, 0), mean(f1, 1)), (mean(f2, 0), mean(f2, 1), mean(f2, 2))
    )
