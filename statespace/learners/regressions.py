"""The M-step: a linear Gaussian model is three regressions, each with a closed-form maximum.

``target = W z + N(0, C)``: of the state on the previous state (transition), of the observation on the state
(observation), of the first state on a constant (initial law). The expectations come as statistics of the
residual of the *current* coefficients, so that nothing cancels once these are close to the maximum.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from statespace.conditionals.affine import AffineGaussian, Gaussian
from statespace.model import Model
from statespace.models.linear_gaussian import LinearGaussian
from statespace.optimisation.climbing import climb
from statespace.parameters import Frozen, parameters, supports


class Regression(NamedTuple):
    """Names of the parameters in ``target = matrix x + offset + inputs u + noise``; None where absent."""

    label: str
    matrix: str | None
    offset: str | None
    inputs: str | None
    scale: str


class Statistics(NamedTuple):
    """Expected sums over moments, ``e`` the residual at the current coefficients.

    Attributes:
        ee: of ``e e'``, shape ``(d, d)``.
        ez: of ``e z'``, shape ``(d, p)``.
        zz: of ``z z'``, shape ``(p, p)``.
        moments: number of moments.
    """

    ee: Float[Array, "d d"]
    ez: Float[Array, "d p"]
    zz: Float[Array, "p p"]
    moments: Float[Array, ""]


def regressions(model: Any) -> tuple[Regression, ...]:
    """The transition, observation and initial law of a model as regressions.

    An initial law with diffuse directions is left out: there is nothing to learn of it.

    Raises:
        TypeError: if the model is none of those with a closed-form M-step.
    """
    bare = model
    while isinstance(bare, Frozen):
        bare = bare.model
    if isinstance(bare, LinearGaussian):
        given = {k: f"transition_{k}" for k in ("matrix", "offset", "input_matrix", "scale")}
        seen = {k: f"observation_{k}" for k in ("matrix", "offset", "input_matrix", "scale")}
        names = set(parameters(bare))
        present = lambda name: name if name in names else None
        pick = lambda label, known: Regression(
            label,
            known["matrix"],
            present(known["offset"]),
            present(known["input_matrix"]),
            known["scale"],
        )
        first = Regression("initial", None, "initial_mean", None, "initial_scale")
        return pick("transition", given), pick("observation", seen), first
    if isinstance(bare, Model) and isinstance(bare.initial, Gaussian) and _of_arrays(bare):
        parts = (
            _affine("transition", bare.transition),
            _affine("observation", bare.observation),
        )
        if bare.initial.diffuse is not None:
            return parts
        scale = _scale("initial", bare.initial)
        return (*parts, Regression("initial", None, "initial.mean", None, scale))
    raise TypeError(
        f"EM has a closed-form M-step for LinearGaussian, and for ss.Model with a Gaussian initial law "
        f"and AffineGaussian conditionals made of arrays, not for {type(bare).__name__}; use "
        "MaximumLikelihood(), which takes every model that has a log likelihood."
    )


def check_scales(model: Any) -> None:
    """Refuse noise that spans fewer directions than there are coordinates, unless it is frozen.

    Raises:
        ValueError: naming the parameter and the remedy.
    """
    free = parameters(model, frozen=False)
    for part in regressions(model):
        scale = free.get(part.scale)
        if scale is not None and scale.ndim == 2 and scale.shape[0] != scale.shape[1]:
            d = scale.shape[0]
            raise ValueError(
                f"EM learns {part.scale!r} as ({d},) standard deviations or a ({d}, {d}) factor, but it "
                f"has shape {scale.shape}; freeze it, or give it one of these shapes."
            )


def coefficients(model: Any, regression: Regression) -> Float[Array, "d p"]:
    """The current coefficients, one block of columns after the other."""
    values = parameters(model)
    columns = []
    for name in regression[1:4]:
        if name is not None:
            value = values[name]
            columns.append(value[:, None] if value.ndim == 1 else value)
    return jnp.concatenate(columns, axis=1)


def covariance(model: Any, regression: Regression) -> Float[Array, "d d"]:
    """The current noise covariance."""
    value = parameters(model)[regression.scale]
    return _as_covariance(regression, value)


def maximise(
    model: Any, regression: Regression, statistics: Statistics, priors: Any, floor: Array
) -> tuple[dict[str, Array], Array]:
    """New values of the free parameters of a regression, and whether its covariance has collapsed.

    Frozen blocks of columns stay; the others are regressed on what these leave. That maximum does not
    depend on the covariance, and the covariance is then the mean square of the new residual.

    Args:
        model: at the current parameters.
        regression: which part of it.
        statistics: expected sums at the current parameters.
        priors: by parameter name; with any in this regression, the maximum is found numerically.
        floor: the least eigenvalue of a learned covariance.
    """
    free = parameters(model, frozen=False)
    names = [name for name in regression[1:] if name is not None and name in free]
    old = coefficients(model, regression)
    movable = _movable(model, regression, free)
    change = _regress(statistics, movable)
    square = residual_square(statistics, change) / statistics.moments
    collapsed = jnp.zeros((), bool)
    if regression.scale in names:
        size = jnp.diagonal(square + old @ statistics.zz @ old.T / statistics.moments)
        if parameters(model)[regression.scale].ndim == 1:
            square = jnp.diag(jnp.diagonal(square))
        square = _clip(square, floor)
        collapsed = _collapsed(square, size)
    if any(name in priors for name in names):
        return _climb(model, regression, statistics, priors, names), collapsed
    new = dict(_columns(model, regression, old + change))
    new[regression.scale] = _from_covariance(regression, parameters(model), square)
    return {name: new[name].astype(free[name].dtype) for name in names}, collapsed


def _regress(s: Statistics, movable: np.ndarray) -> Float[Array, "d p"]:
    """Change of the coefficients; zero in the columns that may not move."""
    change = jnp.zeros_like(s.ez)
    if not movable.any():
        return change
    index = np.flatnonzero(movable)
    zz = s.zz[np.ix_(index, index)]
    scale = 1.0 / jnp.sqrt(jnp.maximum(jnp.diagonal(zz), jnp.finfo(zz.dtype).tiny))
    factor = jax.scipy.linalg.cho_factor(zz * scale[:, None] * scale[None, :], lower=True)
    solved = jax.scipy.linalg.cho_solve(factor, (s.ez[:, index] * scale).T).T * scale
    return change.at[:, index].set(solved)


def residual_square(s: Statistics, change: Array) -> Float[Array, "d d"]:
    """Expected sum of squares of the residual after a change of the coefficients."""
    cross = change @ s.ez.T
    total = s.ee - cross - cross.T + change @ s.zz @ change.T
    return (total + total.T) / 2


def _climb(
    model: Any, regression: Regression, s: Statistics, priors: Any, names: list[str]
) -> dict[str, Array]:
    """The expected log likelihood plus log priors, climbed from the current parameters."""
    known, values = supports(model), parameters(model)
    old = coefficients(model, regression)

    def objective(new: dict[str, Array]) -> Array:
        here = values | new
        blocks = [here[n] for n in regression[1:4] if n is not None]
        full = jnp.concatenate([b[:, None] if b.ndim == 1 else b for b in blocks], axis=1)
        factor = jnp.linalg.cholesky(_as_covariance(regression, here[regression.scale]))
        square = residual_square(s, full - old)
        half = jax.scipy.linalg.solve_triangular(factor, square, lower=True)
        trace = jnp.trace(jax.scipy.linalg.solve_triangular(factor, half.T, lower=True))
        log_det = 2 * jnp.sum(jnp.log(jnp.diagonal(factor)))
        prior = sum(jnp.sum(priors[n].log_prob(new[n])) for n in names if n in priors)
        return prior - (s.moments * log_det + trace) / 2

    within = {n: priors[n].support if n in priors else known[n] for n in names}
    return climb(objective, {n: values[n] for n in names}, within)


def _movable(model: Any, regression: Regression, free: dict[str, Array]) -> np.ndarray:
    """Which columns belong to parameters that are to be learned."""
    values = parameters(model)
    out: list[bool] = []
    for name in regression[1:4]:
        if name is not None:
            width = 1 if values[name].ndim == 1 else values[name].shape[1]
            out += [name in free] * width
    return np.array(out)


def _columns(model: Any, regression: Regression, full: Array) -> list[tuple[str, Array]]:
    """Coefficients back to the parameters they came from."""
    values, out, begin = parameters(model), [], 0
    for name in regression[1:4]:
        if name is None:
            continue
        if values[name].ndim == 1:
            out.append((name, full[:, begin]))
            begin += 1
        else:
            out.append((name, full[:, begin : begin + values[name].shape[1]]))
            begin += values[name].shape[1]
    return out


def _as_covariance(regression: Regression, value: Array) -> Array:
    if regression.scale.endswith("covariance"):
        return value
    return jnp.diag(value**2) if value.ndim == 1 else value @ value.T


def _from_covariance(regression: Regression, values: dict[str, Array], square: Array) -> Array:
    if regression.scale.endswith("covariance"):
        return square
    if values[regression.scale].ndim == 1:
        return jnp.sqrt(jnp.diagonal(square))
    return jnp.linalg.cholesky(square)


def _clip(square: Array, floor: Array) -> Array:
    """Eigenvalues raised to the floor: the maximum under that constraint (Anderson & Olkin 1985)."""

    def clip(square: Array) -> Array:
        values, vectors = jnp.linalg.eigh(square)
        return (vectors * jnp.maximum(values, floor)) @ vectors.T

    return jax.lax.cond(floor > 0, clip, lambda s: s, square)


def _collapsed(square: Array, size: Array) -> Array:
    """Whether a covariance has no more meaning beside the size of what it is the noise of."""
    eps = jnp.finfo(square.dtype).eps
    variance = jnp.diagonal(square)
    gone = jnp.any(~(variance > 10 * eps * size))
    scale = 1.0 / jnp.sqrt(jnp.where(variance > 0, variance, 1.0))
    least = jnp.linalg.eigvalsh(square * scale[:, None] * scale[None, :])[0]
    return gone | ~(least > 10 * eps)


def _of_arrays(model: Model) -> bool:
    """Whether every part of the transition and the observation is a constant array."""
    parts = ("matrix", "offset", "scale", "covariance")
    return all(
        isinstance(conditional, AffineGaussian)
        and not any(callable(getattr(conditional, part)) for part in parts)
        for conditional in (model.transition, model.observation)
    )


def _affine(label: str, conditional: AffineGaussian) -> Regression:
    offset = None if conditional.offset is None else f"{label}.offset"
    return Regression(label, f"{label}.matrix", offset, None, _scale(label, conditional))


def _scale(label: str, conditional: Any) -> str:
    return f"{label}.scale" if conditional.scale is not None else f"{label}.covariance"
