"""Which state is which: the likelihood does not know the order of the states, so somebody has to say it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from itertools import permutations
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from statespace.conditionals.factorial import FactorialKernel
from statespace.conditionals.finite import FiniteKernel, FiniteTransition, SoftmaxKernel
from statespace.conditionals.jump import RateMatrix
from statespace.conditionals.recurrent import RecurrentKernel
from statespace.conditionals.semi_markov import SemiMarkovKernel
from statespace.learners.likelihood import log_likelihood
from statespace.learners.posterior_result import PosteriorResult
from statespace.learners.priors import log_prior
from statespace.learners.problem import Problem, moved
from statespace.learners.result import FitResult
from statespace.learners.switching_regressions import OF_LINEAR
from statespace.methods.structured_variational import StructuredVariational
from statespace.models.switching import SwitchingLinearGaussian
from statespace.parameters import Frozen, parameters, replace
from statespace.series import assemble
from statespace.verbs import smooth

Labelled = TypeVar("Labelled")
_FIXED = {
    SemiMarkovKernel: (
        "each state has sub-states and a law of duration of its own, and laws of different lengths tell the "
        "states apart. Build the model with its states in the order that is wanted, and fit from there."
    ),
    FactorialKernel: (
        "a state is a tuple of one state of each chain, and most orders of tuples belong to no such chains. "
        "Build the model with the states of each chain in the order that is wanted, and fit from there."
    ),
}
_UNKNOWN = (
    "it takes transitions that are a matrix, a matrix of rates (RateMatrix) or driven by inputs "
    "(SoftmaxKernel), and the regimes of SwitchingLinearGaussian and RecurrentSwitchingLinearGaussian."
)


def relabel(
    model: Labelled, *, by: Any = None, reference: Any = None, data: Any = None
) -> Labelled:
    """The same model with its states, or regimes, in another order.

    States are put in increasing order of a statistic, or each is matched with a state of a reference so that
    they agree best over all (Hungarian method). Draws from a posterior are put in order one by one, which
    undoes label switching within and between chains.

    Args:
        model: a model of finitely many states whose transition is a matrix, a matrix of rates or driven by
            inputs; a switching linear model, whose regimes are put in order; or the result of a learner,
            draws included.
        by: the name of a parameter of the emission, averaged over its other axes (of a switching model: of
            its dynamics or observation); or a function ``model -> (K,)``.
        reference: a model (or result) with the same parameters, whose emission is to be matched (of a
            switching model dynamics and observation, in the same coordinates of the state); or a path of
            states, shape ``(T,)`` (of a panel a list of them), which is compared with the smoothed states of
            ``data``, of a switching model by :class:`~statespace.StructuredVariational`.
        data: the recordings of a reference path.

    Returns:
        What was given, with permuted parameters.

    Raises:
        ValueError: unless exactly one of ``by`` and ``reference`` is given; if a name or shape does not fit.
        TypeError: if the transition is of another kind, or draws are to follow a path.

    References:
        Kuhn (1955) for the assignment; Stephens (2000), Dealing with label switching in mixture models.

    Example:
        >>> ordered = ss.relabel(fitted, by="emission.rate")
        >>> draws = ss.relabel(posterior, reference=ordered)
    """
    if (by is None) == (reference is None):
        raise ValueError("`relabel` needs exactly one of `by` and `reference`.")
    if isinstance(model, FitResult):
        return _relabelled_result(model, by, reference, data)
    _check_kernel(model)
    values = parameters(model)
    order = _orders(model, {k: v[None] for k, v in values.items()}, by, reference, data)[0]
    return _permuted(model, order, len(order), False)


def _relabelled_result(result: Any, by: Any, reference: Any, data: Any) -> Any:
    problem = result._problem
    _check_kernel(result.model)
    if not isinstance(result, PosteriorResult):
        model = relabel(result.model, by=by, reference=reference, data=data)
        changed = Problem(model, problem.data, problem.priors, problem.method)
        return dataclasses.replace(result, model=model, uncertainty=None, _problem=changed)
    return _relabelled_draws(result, by, reference)


def _relabelled_draws(result: PosteriorResult, by: Any, reference: Any) -> PosteriorResult:
    if reference is not None and not hasattr(_model(reference), "transition"):
        raise TypeError(
            "draws cannot follow a path: relabel a model by it, and give that model as `reference`."
        )
    chains, count = result._unconstrained.shape[:2]
    flat = {k: jnp.asarray(v).reshape(-1, *v.shape[2:]) for k, v in result.draws.items()}
    held = {k: v for k, v in parameters(result.model).items() if k not in flat}
    every = flat | {k: jnp.broadcast_to(v, (chains * count, *v.shape)) for k, v in held.items()}
    orders = _orders(result.model, every, by, reference, None)
    moves = _rearrangements(result.model)
    for name in held:
        for order in np.unique(orders, axis=0):
            if not np.array_equal(held[name], moves[name](np.asarray(held[name]), order)):
                raise TypeError(
                    f"draws cannot be relabelled where {name!r} was frozen: its states have an order already."
                )
    if not _symmetric(result.model):
        raise TypeError(
            "draws of probabilities or rates with structural zeros cannot be relabelled: these tell the "
            "states apart."
        )
    new: dict[str, np.ndarray] = {}
    for name, value in flat.items():
        pairs = zip(np.asarray(value), orders)
        ordered = np.stack([moves[name](v, order) for v, order in pairs])
        new[name] = ordered.reshape(chains, count, *ordered.shape[1:])
    problem = result._problem
    unconstrained = np.asarray(_unconstrained(problem, new))
    at = moved(problem, jnp.asarray(unconstrained.mean(axis=(0, 1))))
    return PosteriorResult.from_draws(
        problem=at,
        data=result.data,
        learner=result.learner,
        draws=new,
        unconstrained=unconstrained,
        statistics=result.statistics,
        log_likelihood=float(_likelihood(at)),
        log_prior=float(log_prior(at.model, at.priors)),
    )


def _reordered(axes: int, value: np.ndarray, order: np.ndarray) -> np.ndarray:
    """A parameter with the first of its axes in another order of states."""
    for axis in range(axes):
        value = np.take(value, order, axis=axis)
    return value


@eqx.filter_jit
def _unconstrained(problem: Problem, draws: dict[str, Array]) -> Float[Array, "chains draws p"]:
    bijections = problem.bijections()

    def one(values: dict[str, Array]) -> Array:
        return jnp.concatenate([bijections[n].inv(values[n]).ravel() for n in problem.names])

    return jax.vmap(jax.vmap(one))(draws)


@eqx.filter_jit
def _likelihood(problem: Problem) -> Float[Array, ""]:
    return log_likelihood(problem.model, problem.data, problem.method)


def _orders(
    model: Any, values: dict[str, Array], by: Any, reference: Any, data: Any
) -> Int[np.ndarray, "n K"]:
    """For each of n sets of values: which state comes to each place."""
    if by is not None:
        return np.argsort(np.asarray(_statistic(model, values, by)), axis=1, kind="stable")
    other = _model(reference)
    if hasattr(other, "transition"):
        costs = _distances(values, other, _emission_names(model))
    else:
        costs = -_overlap(model, other, data)[None]
    from scipy.optimize import linear_sum_assignment

    return np.stack([linear_sum_assignment(cost)[1] for cost in costs])


def _statistic(model: Any, values: dict[str, Array], by: Any) -> Float[Array, "n K"]:
    if isinstance(by, str):
        names = _emission_names(model)
        if by not in names:
            raise ValueError(f"`by`: {by!r} is no parameter of the emission; it has {names}.")
        return values[by].reshape(*values[by].shape[:2], -1).mean(axis=2)
    if not isinstance(by, Callable):
        raise ValueError(f"`by` must be the name of a parameter or a function, got {by!r}.")
    return jax.vmap(lambda v: jnp.asarray(by(replace(model, v))))(values)


def _distances(
    values: dict[str, Array], other: Any, names: list[str]
) -> Float[np.ndarray, "n K K"]:
    """Squared distances of emissions, from each state of the reference (rows) to each of ours (columns)."""
    known = parameters(other)
    total: Any = 0.0
    for name in names:
        if name not in known or known[name].shape != values[name].shape[1:]:
            raise ValueError(
                f"`reference` has no parameter {name!r} of shape {values[name].shape[1:]}."
            )
        if len(known[name]) > 1:
            ours = np.asarray(values[name]).reshape(*values[name].shape[:2], -1)
            theirs = np.asarray(known[name]).reshape(len(known[name]), -1)
            spread = np.maximum(theirs.std(axis=0), 1e-12 + 1e-6 * np.abs(theirs).max())
            gap = (ours[:, None] - theirs[None, :, None]) / spread
            total = total + np.sum(gap**2, axis=-1)
    return np.asarray(total)


def _overlap(model: Any, path: Any, data: Any) -> Float[np.ndarray, "K K"]:
    """For how long each state of a path (rows) is each of ours (columns), by the smoothed probabilities."""
    if data is None:
        raise ValueError("`reference` is a path of states: give the recordings as `data`.")
    switching = isinstance(_bare(model), SwitchingLinearGaussian)
    posterior = smooth(model, data, method=StructuredVariational() if switching else None)
    parts = [posterior] if hasattr(posterior, "probs") else list(posterior)
    paths = [path] if len(parts) == 1 and np.ndim(path[0]) == 0 else list(path)
    total: Any = 0.0
    for labels, part in zip(paths, parts, strict=True):
        probs, labels = np.asarray(part.probs), np.asarray(labels)
        if labels.shape != probs.shape[:1] or np.any((labels < 0) | (labels >= probs.shape[1])):
            raise ValueError(
                f"`reference` must be a path of states 0 … {probs.shape[1] - 1} of shape "
                f"{probs.shape[:1]}, got shape {labels.shape}."
            )
        total = total + np.eye(probs.shape[1])[labels.astype(int)].T @ probs
    return total


def _model(given: Any) -> Any:
    return given.model if isinstance(given, FitResult) else given


def _bare(model: Any) -> Any:
    while isinstance(model, Frozen):
        model = model.model
    return model


def _check_kernel(model: Any) -> None:
    kernel = _kernel(model)
    matrix = isinstance(kernel, FiniteKernel) and not callable(kernel.probs)
    if matrix or isinstance(kernel, SoftmaxKernel | RateMatrix | RecurrentKernel):
        return
    why = next((text for kind, text in _FIXED.items() if isinstance(kernel, kind)), _UNKNOWN)
    raise TypeError(f"`relabel` cannot reorder the states of {type(kernel).__name__}: {why}")


def _kernel(model: Any) -> Any:
    """The law of the next state; of a switching model that of the next regime."""
    inner = _bare(model)
    return inner.kernel if isinstance(inner, SwitchingLinearGaussian) else inner.transition


def _emission_names(model: Any) -> list[str]:
    """Parameters that tell the states apart: of the emission, or of the linear model of each regime."""
    inner = _bare(model)
    if isinstance(inner, SwitchingLinearGaussian):
        return [name for name in parameters(model) if name in OF_LINEAR]
    observation = model.observation
    field = next((f for f in vars(inner) if getattr(inner, f) is observation), None)
    return [name for name in parameters(model) if field and name.startswith(field + ".")]


def _rearrangements(model: Any) -> dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]]:
    """For each parameter the function that puts its value, given an order of the states, in that order."""
    kernel, states = _kernel(model), _states(model)
    seen = set(_emission_names(model))
    out: dict[str, Any] = {}
    for name, value in parameters(model).items():
        if name in seen:
            out[name] = partial(_reordered, int(len(value) == states))
        elif not name.startswith(("transition.", "kernel.")):
            out[name] = partial(_reordered, 1)
        elif isinstance(kernel, RateMatrix):
            out[name] = lambda rates, order: kernel.with_rates(rates).reordered(order).rates
        elif isinstance(kernel, RecurrentKernel):
            out[name] = partial(_of_kernel, kernel, name.removeprefix("kernel."))
        else:
            out[name] = partial(_reordered, 2)
    return out


def _of_kernel(
    kernel: RecurrentKernel, name: str, value: np.ndarray, order: np.ndarray
) -> np.ndarray:
    """A parameter of the law of recurrent regimes, with these in another order."""
    return getattr(replace(kernel, {name: jnp.asarray(value)}).reordered(order), name)


def _states(model: Any) -> int:
    kernel = _kernel(model)
    if isinstance(kernel, RateMatrix):
        return kernel.states
    if isinstance(kernel, RecurrentKernel):
        return kernel.regimes
    return len(kernel.probs if isinstance(kernel, FiniteKernel) else kernel.logits)


def _symmetric(model: Any) -> bool:
    """Whether no probability is zero for good."""
    kernel = _kernel(model)
    if isinstance(kernel, RateMatrix) and kernel.edges != tuple(
        permutations(range(kernel.states), 2)
    ):
        return False
    modules = (
        kernel,
        _bare(model),
        getattr(_bare(model), "initial_probs", None),
        model.observation,
    )
    patterns = [getattr(module, "possible", None) for module in modules]
    return all(np.all(p) for p in patterns if p is not None)


def _permuted(node: Any, order: np.ndarray, states: int, square: bool) -> Any:
    """A module with its states in another order, patterns of zeros included."""
    if isinstance(node, dict):
        return {k: _permuted(v, order, states, square) for k, v in node.items()}
    if eqx.is_inexact_array(node):
        if node.ndim == 0 or len(node) != states:
            return node
        return node[order][:, order] if square else node[order]
    if not isinstance(node, eqx.Module):
        return node
    if isinstance(node, RateMatrix | RecurrentKernel):
        return node.reordered(order)
    fields = {}
    for field in dataclasses.fields(node):
        value = getattr(node, field.name)
        if field.name == "possible" and value is not None:
            rows = [value[i] for i in order]
            value = tuple(tuple(row[j] for j in order) for row in rows) if square else tuple(rows)
        elif not field.metadata.get("static"):
            both = square or isinstance(value, FiniteTransition)
            value = _permuted(value, order, states, both)
        fields[field.name] = value
    return assemble(type(node), **fields)
