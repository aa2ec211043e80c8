"""The M-step of switching linear models: the regressions of a linear one, weighted by each regime's share.

Given the mean field ``q(x) q(z)``, each regime is a linear Gaussian model in which a moment counts by the
regime's probability; what regimes share is learned from their sums. The law of the regimes is a table of
frequencies, or a multinomial regression on the states.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from statespace.chains import structured
from statespace.chains.switching_expectations import Regimes, expected_log_transitions
from statespace.conditionals.finite import FiniteKernel
from statespace.learners import em_finite, expectations, regressions
from statespace.learners.likelihood import recordings
from statespace.learners.priors import log_density
from statespace.learners.problem import Problem
from statespace.learners.regressions import Regression, Statistics
from statespace.methods.lowering import steps_of
from statespace.methods.structured_variational import regime_scores
from statespace.models.linear_gaussian import LinearGaussian
from statespace.models.switching import SwitchingLinearGaussian
from statespace.optimisation.climbing import climb
from statespace.parameters import freeze, parameters, replace
from statespace.series import Series

_EVALUATIONS = 25  # of a regression without a closed form; a warm start needs few

OF_LINEAR = {
    "matrix": "transition_matrix",
    "offset": "transition_offset",
    "scale": "transition_scale",
    "observation_matrix": "observation_matrix",
    "observation_offset": "observation_offset",
    "observation_scale": "observation_scale",
    "initial_mean": "initial_mean",
    "initial_scale": "initial_scale",
}
"""What the parameters of a switching model are called in a linear one."""

GROUPS = {
    "transition": ("matrix", "offset", "scale"),
    "observation": ("observation_matrix", "observation_offset", "observation_scale"),
    "initial": ("initial_mean", "initial_scale"),
}


class Moments(NamedTuple):
    """What the M-step needs of one recording.

    Attributes:
        parts: statistics of the regressions by their label, with a leading axis of regimes.
        first: probabilities of the first regime.
        pairs: of each regime and the next, zero after the last observation.
        mean: of the state that a pair leads from.
        covariance: of it.
    """

    parts: dict[str, Statistics]
    first: Float[Array, " K"]
    pairs: Float[Array, "T-1 K K"]
    mean: Float[Array, "T-1 n"]
    covariance: Float[Array, "T-1 n n"]


def linear(model: SwitchingLinearGaussian, regime: Any = 0) -> LinearGaussian:
    """The linear model of one regime."""
    values = {}
    for name, other in OF_LINEAR.items():
        value = getattr(model, name)
        values[other] = value if value is None else value[regime if len(value) > 1 else 0]
    return LinearGaussian(**values)


def moments(
    model: SwitchingLinearGaussian, series: Series, within: Array, q: structured.Structured
) -> Moments:
    """The expectations of one recording under a mean field."""
    weights = q.probs * within[:, None]

    def regime(k: Array, weight: Array) -> dict[str, Statistics]:
        of_regime = linear(model, k)
        parts = regressions.regressions(of_regime)
        return expectations.statistics(of_regime, series, q.states, parts, weight)

    parts = jax.vmap(regime, (0, 1))(jnp.arange(model.regimes), weights)
    pairs = jnp.where(within[1:, None, None], q.pairs, 0)
    return Moments(parts, q.probs[0], pairs, q.states.mean[:-1], q.states.covariance[:-1])


def maximise(
    model: Any, problem: Problem, found: Moments, floors: dict[str, Array]
) -> dict[str, Array]:
    """New values of the free parameters: the bound does not fall.

    Args:
        model: at the current parameters.
        problem: what is learned from what.
        found: the expectations, with a leading axis of recordings.
        floors: the least eigenvalue of each learned covariance, by label.
    """
    bare = em_finite.bare(model)
    total = jax.tree.map(lambda x: jnp.sum(x, axis=0), found.parts)
    new: dict[str, Array] = {}
    for label, names in GROUPS.items():
        present = [name for name in names if getattr(bare, name) is not None]
        free = [name for name in present if name in problem.names]
        if not free:
            continue
        part = next(p for p in regressions.regressions(linear(bare)) if p.label == label)
        alike = {len(getattr(bare, name)) for name in present}
        if len(alike) == 1 and not any(name in problem.priors for name in free):
            new |= _closed_form(bare, part, present, free, total[label], floors[label])
        else:
            new |= _climbed(bare, problem, part, present, free, total[label])
    return new | _first_regime(bare, problem, found) | _kernel(bare, problem, found)


def _closed_form(
    model: Any,
    part: Regression,
    present: list[str],
    free: list[str],
    statistics: Statistics,
    floor: Array,
) -> dict[str, Array]:
    """One regression for each regime, or one for all that share it."""
    lead = len(getattr(model, present[0]))
    if lead == 1:
        statistics = jax.tree.map(lambda x: jnp.sum(x, axis=0, keepdims=True), statistics)
    held = [OF_LINEAR[name] for name in present if name not in free]
    base = linear(model)

    def regime(values: dict[str, Array], statistics: Statistics) -> dict[str, Array]:
        here: Any = replace(base, values)
        here = freeze(here, *held) if held else here
        return regressions.maximise(here, part, statistics, {}, floor)[0]

    old = {OF_LINEAR[name]: getattr(model, name) for name in present}
    new = jax.vmap(regime)(old, statistics)
    # a regime of fewer moments than coefficients stays where it is
    enough = statistics.moments > statistics.zz.shape[-1] + 1 if part.label != "initial" else None
    for value in new.values():
        sound = jnp.all(jnp.isfinite(value), axis=tuple(range(1, value.ndim)))
        enough = sound if enough is None else enough & sound
    where = lambda value: enough.reshape(-1, *[1] * (value.ndim - 1))
    names = {name: OF_LINEAR[name] for name in free}
    return {
        name: jnp.where(where(old[other]), new[other], old[other]) for name, other in names.items()
    }


def _climbed(
    model: Any,
    problem: Problem,
    part: Regression,
    present: list[str],
    free: list[str],
    statistics: Statistics,
) -> dict[str, Array]:
    """The expected log density of regimes that share some of their parameters, or that have priors."""
    old = jax.vmap(lambda k: regressions.coefficients(linear(model, k), part))(
        jnp.arange(model.regimes)
    )

    def objective(new: dict[str, Array]) -> Array:
        here = replace(model, new)

        def regime(k: Array, old: Array, s: Statistics) -> Array:
            of_regime = linear(here, k)
            square = regressions.residual_square(s, regressions.coefficients(of_regime, part) - old)
            factor = jnp.linalg.cholesky(regressions.covariance(of_regime, part))
            half = jax.scipy.linalg.solve_triangular(factor, square, lower=True)
            trace = jnp.trace(jax.scipy.linalg.solve_triangular(factor, half.T, lower=True))
            return -s.moments * jnp.sum(jnp.log(jnp.diagonal(factor))) - 0.5 * trace

        total = jnp.sum(jax.vmap(regime)(jnp.arange(model.regimes), old, statistics))
        return total + _log_priors(problem, new)

    known, values = problem.supports(), parameters(model)
    return climb(objective, {name: values[name] for name in free}, known, _EVALUATIONS)


def _first_regime(model: Any, problem: Problem, found: Moments) -> dict[str, Array]:
    name = "initial_probs.probs"
    if name not in problem.names:
        return {}
    old = parameters(model)[name]
    return em_finite.frequencies(name, jnp.sum(found.first, axis=0), old, problem)


def _kernel(model: Any, problem: Problem, found: Moments) -> dict[str, Array]:
    """The law of the next regime: frequencies, or a regression by climbing the bound."""
    free = [name for name in problem.names if name.startswith("kernel.")]
    if not free:
        return {}
    values, kernel = parameters(model), model.kernel
    if isinstance(kernel, FiniteKernel):
        name = free[0]
        counts = jnp.sum(found.pairs, axis=(0, 1))
        frequent = em_finite.frequencies(name, counts, values[name], problem)
        if frequent:
            return frequent

    def one(kernel: Any, series: Series, pairs: Array, mean: Array, covariance: Array) -> Array:
        steps, varies = steps_of(series)
        later = jax.tree.map(lambda x: x[1:], steps)
        scores, weights = regime_scores(kernel, later, varies)
        regimes = Regimes(found.first[0], scores, weights)
        logs = expected_log_transitions(regimes, mean, covariance)
        return jnp.sum(jnp.where(pairs > 0, pairs * jnp.where(pairs > 0, logs, 0), 0))

    series = recordings(problem.data)[0]
    given = (series, found.pairs, found.mean, found.covariance)

    def objective(new: dict[str, Array]) -> Array:
        here = replace(model, new).kernel
        each = jax.vmap(lambda *of: one(here, *of))(*given)
        return jnp.sum(each) + _log_priors(problem, new)

    return climb(objective, {name: values[name] for name in free}, problem.supports(), _EVALUATIONS)


def _log_priors(problem: Problem, values: dict[str, Array]) -> Array:
    """Log density of the priors of some parameters."""
    given = [name for name in values if name in problem.priors]
    return sum((jnp.sum(log_density(problem.priors[n], values[n])) for n in given), jnp.zeros(()))
