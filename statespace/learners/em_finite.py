"""EM for models of finitely many states: Baum & Welch with any transition and any emission.

The E-step is forward-backward on each recording. The expected log density of states and observations is then
a sum of three, of the first state, of the transitions and of the observations, and each is raised by itself:
by frequencies, by the conditional's own M-step, or by gradient steps. What cannot be told apart is raised
together by gradient steps on the sum.
"""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from statespace.chains import finite
from statespace.conditionals import aggregates
from statespace.conditionals.finite import Categorical, FiniteKernel
from statespace.dependence import dependence
from statespace.learners.likelihood import channels, each_recording, recordings, stacked, steps
from statespace.learners.priors import log_density
from statespace.learners.problem import Problem
from statespace.learners.responsibilities import clustered, drawn, soften
from statespace.methods.forward_backward import initial_probs
from statespace.optimisation.climbing import climb
from statespace.parameters import Frozen, parameters, replace
from statespace.series import Panel, Series

REMEDY = "use float64"

_EVALUATIONS = (
    30  # of the expected log density in one M-step, which starts where the last one ended
)


class Statistics(NamedTuple):
    """Expected sufficient statistics of S recordings, over the J states of the chain.

    Attributes:
        initial: expected indicator of each first state, summed over the recordings.
        moves: expected transitions: summed over all moments, shape ``(J, J)``, where the matrix is constant;
            else those into each moment but the first, shape ``(S, T-1, J, J)``; zero after the end.
        occupancy: probabilities of the states, zero after the end of a recording.
    """

    initial: Float[Array, " J"]
    moves: Float[Array, "..."]
    occupancy: Float[Array, "S T J"]


class Part(NamedTuple):
    """A conditional of the model that is a field of it.

    Attributes:
        conditional: the field's value.
        prefix: the field's name.
        names: names of its free parameters, as the model has them.
        frozen: its own names of those that are not free.
    """

    conditional: Any
    prefix: str
    names: tuple[str, ...]
    frozen: frozenset[str]


def check(problem: Problem) -> None:
    """Refuse a prior under which a matrix of probabilities has no best value.

    Raises:
        ValueError: naming it.
    """
    from numpyro.distributions import Dirichlet

    for name, prior in problem.priors.items():
        if isinstance(prior, Dirichlet) and np.any(np.asarray(prior.concentration) < 1):
            raise ValueError(
                f"EM: the prior of {name!r} has concentrations below 1, under which zero probabilities have "
                "infinite density; use concentrations of at least 1, or NUTS()."
            )


def expect(model: Any, problem: Problem) -> tuple[Float[Array, ""], Statistics]:
    """Log likelihood and expected statistics of a recording or of a panel."""
    data, method = problem.data, problem.method
    one = lambda s, inside: _one(model, s, method, inside)
    if isinstance(data, Panel):
        value, each = each_recording(one, model, method, *recordings(data))
        moves = each.moves if each.moves.ndim == 4 else jnp.sum(each.moves, axis=0)
        return jnp.sum(value), Statistics(jnp.sum(each.initial, axis=0), moves, each.occupancy)
    value, found = one(data, None)
    moves = found.moves if found.moves.ndim == 2 else found.moves[None]
    return value, Statistics(found.initial, moves, found.occupancy[None])


def _one(
    model: Any, series: Series, method: Any, within: Bool[Array, " T"] | None
) -> tuple[Array, Statistics]:
    chain = method.lower(model, series)
    if len(chain.transitions) == 1 and (len(series) != 2 or _is_constant(model)):
        counts = finite.expected_counts(chain, within, parallel=method.parallel)
        return counts.log_likelihood, Statistics(
            counts.initial, counts.transitions, counts.occupancy
        )
    smoothed = finite.smooth(chain, parallel=method.parallel)
    pairs, occupancy = finite.pairs(chain, smoothed), smoothed.probs
    if within is not None:
        pairs = jnp.where(within[1:, None, None], pairs, 0)
        occupancy = jnp.where(within[:, None], occupancy, 0)
    return smoothed.filtered.log_likelihood, Statistics(occupancy[0], pairs, occupancy)


def _is_constant(model: Any) -> bool:
    kernel = bare(model).transition
    return isinstance(kernel, FiniteKernel) and not callable(kernel.probs)


def maximise(
    model: Any, problem: Problem, statistics: Statistics, floor: Float[Array, ""]
) -> tuple[dict[str, Array], Bool[Array, ""]]:
    """New values of the free parameters, and whether a scale has collapsed.

    Args:
        model: at the current parameters, which are those of ``statistics``.
        problem: what is learned from what.
        statistics: expected sums at the current parameters.
        floor: the least variance of a learned scale.
    """
    new: dict[str, Array] = {}
    left = set(problem.names)
    for solve in (_initial, _transition, _observation):
        solved = solve(model, problem, statistics, floor)
        new |= solved
        left -= set(solved)
    collapsed = jnp.zeros((), bool)
    for value in new.values():
        collapsed = collapsed | ~jnp.all(jnp.isfinite(value))
    if left:
        new |= _together(model, problem, statistics, sorted(left))
    return new, collapsed


def collapse(model: Any) -> str:
    """What a collapse is, and what to do about it."""
    return (
        "a variance of the observations collapsed to zero: a state has kept a few observations for itself, "
        "where the likelihood has no maximum. Give EM(floor=...) a least variance, put a prior on the scale, "
        "freeze it, or use fewer states or more starts."
    )


@eqx.filter_jit
def disperse(
    problem: Problem, keys: Array, how: str, floor: Float[Array, ""]
) -> dict[str, Float[Array, "starts ..."]]:
    """Values of the free parameters to start from, one set for each key.

    The emission is that of guessed states; transitions and first state are the model's.

    Args:
        problem: what is learned from what.
        keys: one for each start.
        how: ``"kmeans"`` clusters the observations, ``"random"`` draws states from the model.
        floor: the least variance of a learned scale.
    """
    model, data, method = bare(problem.model), problem.data, problem.method
    part = _part(model, problem, "observation")
    series, within = recordings(data)
    y, when, states = channels(data), steps(data), part.conditional.states

    def one(key: PRNGKeyArray) -> dict[str, Array]:
        if how == "kmeans":
            labels = clustered(y.reshape(-1, y.shape[2]), states, key).reshape(y.shape[:2])
        else:
            draw = lambda s, k: drawn(model, method, s, k)
            labels = jax.vmap(draw)(series, jax.random.split(key, len(y)))
        weights = soften(labels, states, within).astype(y.dtype)
        new = part.conditional.m_step(y, when, weights, floor=floor)
        return parameters(problem.model, frozen=False) | _renamed(part, new)

    return jax.vmap(one)(keys)


def check_starts(problem: Problem) -> None:
    """Refuse several starts where there is nothing to disperse them by.

    Raises:
        TypeError: if the observation has no M-step.
    """
    part = _part(problem.model, problem, "observation")
    if part is None or not part.names or not hasattr(part.conditional, "m_step"):
        raise TypeError(
            "EM(starts=...) disperses the free parameters of the emission by its own M-step, and the "
            "observation of this model has none: use one of ss.emissions, or MaximumLikelihood(starts=...)."
        )


def bare(model: Any) -> Any:
    """The model that a frozen one holds."""
    while isinstance(model, Frozen):
        model = model.model
    return model


def _part(model: Any, problem: Problem, kind: str) -> Part | None:
    """A conditional and its parameters, if the model holds it as a field."""
    conditional = getattr(bare(model), kind)
    if not isinstance(conditional, eqx.Module):
        return None
    for prefix in vars(bare(model)):
        if getattr(bare(model), prefix) is conditional:
            begin = prefix + "."
            names = tuple(n for n in problem.names if n.startswith(begin))
            own = set(parameters(conditional))
            frozen = own - {n.removeprefix(begin) for n in names}
            return Part(conditional, prefix, names, frozenset(frozen))
    return None


def _initial(model: Any, problem: Problem, statistics: Statistics, floor: Any) -> dict[str, Array]:
    """Frequencies of the first states."""
    for name in ("initial_probs", "initial.probs"):
        if name in problem.names and isinstance(bare(model).initial, Categorical):
            old = parameters(model)[name]
            first = aggregates.fold(bare(model).transition.aggregate, statistics.initial)
            return frequencies(name, first, old, problem)
    return {}


def frequencies(name: str, counts: Array, old: Array, problem: Problem) -> dict[str, Array]:
    """Probabilities from expected counts, plus those of a Dirichlet prior; old ones where there are none."""
    from numpyro.distributions import Dirichlet

    if name in problem.priors:
        prior = problem.priors[name]
        if not isinstance(prior, Dirichlet):
            return {}
        counts = counts + jnp.where(old > 0, prior.concentration - 1, 0)
    total = jnp.sum(counts, axis=-1, keepdims=True)
    some = total > 0
    probs = jnp.where(some, counts / jnp.where(some, total, 1), old)
    return {name: probs.astype(old.dtype)}


def _transition(
    model: Any, problem: Problem, statistics: Statistics, floor: Any
) -> dict[str, Array]:
    """Frequencies of the transitions, or the kernel's own M-step."""
    part = _part(model, problem, "transition")
    if part is None or not part.names or _drives_the_first_state(model, problem, part):
        return {}
    if _is_constant(model):
        name = part.names[0]
        return frequencies(name, statistics.moves, part.conditional.probs, problem)
    priors = {n: p for n, p in problem.priors.items() if n in part.names}
    if not hasattr(part.conditional, "m_step") or part.frozen:
        return {}
    moves, later = statistics.moves, jax.tree.map(lambda a: a[:, 1:], steps(problem.data))
    if moves.ndim == 2:  # the same at every step, so that one stands for all
        moves, later = moves[None, None], jax.tree.map(lambda a: a[:1, :1], later)
    accepted = inspect.signature(part.conditional.m_step).parameters
    if priors and ("prior" not in accepted or len(part.names) > 1):
        return {}
    extra = {"prior": next(iter(priors.values()))} if priors else {}
    return _renamed(part, part.conditional.m_step(moves, later, **extra))


def _drives_the_first_state(model: Any, problem: Problem, part: Part) -> bool:
    """Whether the law of the first state, such as a stationary one, follows from the transition."""
    values = {name: parameters(model)[name] for name in part.names}
    first = jax.tree.map(lambda a: a[0, 0], steps(problem.data))
    program = jax.make_jaxpr(lambda v: initial_probs(replace(model, v), first))(values)
    return any(dependence(program.jaxpr, [True] * len(values)))


def _observation(
    model: Any, problem: Problem, statistics: Statistics, floor: Any
) -> dict[str, Array]:
    """The emission's own M-step."""
    part = _part(model, problem, "observation")
    if part is None or not part.names or not hasattr(part.conditional, "m_step"):
        return {}
    if any(name in problem.priors for name in part.names):
        return {}
    extra: dict[str, Any] = {"frozen": part.frozen} if part.frozen else {}
    if extra and "frozen" not in inspect.signature(part.conditional.m_step).parameters:
        return {}
    data = problem.data
    weights = aggregates.fold(bare(model).transition.aggregate, statistics.occupancy)
    new = part.conditional.m_step(channels(data), steps(data), weights, floor=floor, **extra)
    return _renamed(part, new)


def _renamed(part: Part, new: Any) -> dict[str, Array]:
    """The free parameters of a new conditional, as the model names them."""
    values, old = parameters(new), parameters(part.conditional)
    own = {name: name.removeprefix(part.prefix + ".") for name in part.names}
    return {name: values[n].astype(old[n].dtype) for name, n in own.items()}


def _together(
    model: Any, problem: Problem, statistics: Statistics, names: list[str]
) -> dict[str, Array]:
    """Gradient steps on the expected log density plus log priors."""
    known = problem.supports()
    values = {name: value for name, value in parameters(model).items() if name in names}
    terms = _terms(model, problem, names)

    def objective(values: dict[str, Array]) -> Array:
        here = replace(model, values)
        total = _expected_log_density(here, problem, statistics, terms)
        for name in names:
            if name in problem.priors:
                total = total + jnp.sum(log_density(problem.priors[name], values[name]))
        return total

    return climb(objective, values, known, _EVALUATIONS)


def _terms(model: Any, problem: Problem, names: list[str]) -> frozenset[str]:
    """Which parts of the expected log density these parameters can have to do with."""
    transition = _part(model, problem, "transition")
    observation = _part(model, problem, "observation")
    moving = transition is not None and all(n in transition.names for n in names)
    seen = observation is not None and all(n in observation.names for n in names)
    if seen:
        return frozenset({"observation"})
    if moving:
        return frozenset({"initial", "transition"})
    return frozenset({"initial", "transition", "observation"})


def _expected_log_density(
    model: Any, problem: Problem, statistics: Statistics, terms: frozenset[str]
) -> Float[Array, ""]:
    """Of states and observations at a model, expected at another one."""
    data, method = problem.data, problem.method
    constant = statistics.moves.ndim == 2

    def one(series: Series, moves: Array | None, occupancy: Array) -> tuple[Array, Array, Array]:
        chain = method.lower(model, series)
        first = _expected(occupancy[0], _log(chain.initial))
        between = chain.transitions
        moved = _log(between[0]) if constant else _expected(moves, _log(between))
        return first, moved, _expected(occupancy, chain.potentials)

    moves = None if constant else statistics.moves
    if isinstance(data, Panel):
        axes = (0, None if constant else 0, 0)
        first, moved, seen = jax.vmap(one, axes)(stacked(data), moves, statistics.occupancy)
    else:
        parts = one(data, None if constant else moves[0], statistics.occupancy[0])
        first, moved, seen = (part[None] for part in parts)
    # the matrix is the same in all recordings
    moved = _expected(statistics.moves, moved[0]) if constant else moved
    each = {"initial": first, "transition": moved, "observation": seen}
    return jnp.sum(jnp.stack([jnp.sum(each[name]) for name in sorted(terms)]))


def _log(probs: Array) -> Array:
    positive = probs > 0
    return jnp.where(positive, jnp.log(jnp.where(positive, probs, 1)), -jnp.inf)


def _expected(weights: Array, logs: Array) -> Float[Array, ""]:
    """``sum w log p``, where zero weights count for nothing."""
    return jnp.sum(jnp.where(weights > 0, weights * jnp.where(weights > 0, logs, 0), 0))
