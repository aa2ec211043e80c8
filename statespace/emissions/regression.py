"""Weighted Gaussian regressions, one for each state: densities and their maximum, with missing entries.

A scale has shape ``(K, m)``, standard deviations of independent channels, or ``(K, m, m)``, lower triangular
factors of covariances; its leading axis is 1 where all states share it.
"""

from __future__ import annotations

import functools
import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Bool, Float

from statespace.chains.gaussian import algebra
from statespace.emissions.base import visited


class Quadratic(NamedTuple):
    """Residuals against a scale, of the observed channels of each moment.

    Attributes:
        squared: squared length of the whitened residual.
        log_det: log determinant of the scale.
        channels: how many were observed.
    """

    squared: Float[Array, "T K"]
    log_det: Float[Array, "T #K"]
    channels: Float[Array, "T 1"]


def quadratic(
    residuals: Float[Array, "T K m"], seen: Bool[Array, "T m"], scale: Float[Array, "..."]
) -> Quadratic:
    """Residuals against a scale; entries that were not seen are integrated out.

    Args:
        residuals: finite, whatever they are where nothing was seen.
        seen: which entries count.
        scale: ``(K | 1, m)`` or ``(K | 1, m, m)``.
    """
    count = jnp.sum(seen, axis=1, keepdims=True).astype(residuals.dtype)
    if scale.ndim == 2:
        z = jnp.where(seen[:, None], residuals * (1 / scale), 0)
        return Quadratic(_over_channels(z * z), seen.astype(scale.dtype) @ jnp.log(scale).T, count)

    def whole(residuals: Array, seen: Array, scale: Array) -> tuple[Array, Array]:
        """Of rows that were seen entirely or not at all."""
        some = seen[:, :1]
        z = jax.vmap(_whiten, (0, 1), 1)(_all_states(scale, residuals), residuals)
        log_det = jax.vmap(algebra.log_diagonal)(scale)
        squared = jnp.where(some, jnp.sum(z * z, axis=-1), 0)
        return squared, jnp.where(some, log_det, jnp.zeros_like(log_det))

    def partly(residuals: Array, seen: Array, scale: Array) -> tuple[Array, Array]:
        factors = jax.vmap(lambda s: _visible(s, seen)[0])(scale)
        log_det = jax.vmap(jax.vmap(algebra.log_diagonal))(factors).T
        factors = jnp.broadcast_to(factors, (residuals.shape[1], *factors.shape[1:]))
        e = jnp.where(seen[:, None], residuals, 0)
        solve = lambda l, b: algebra.solve_lower(l, b[:, None])[:, 0]
        z = jax.vmap(jax.vmap(solve), (0, 1), 1)(factors, e)
        return jnp.sum(z * z, axis=-1), log_det

    squared, log_det = jax.lax.cond(partly_seen(seen), partly, whole, residuals, seen, scale)
    return Quadratic(squared, log_det, count)


def _over_channels(values: Float[Array, "*b m"]) -> Float[Array, "*b"]:
    """Their sum; of few channels written out, which XLA:CPU vectorises over the other axes."""
    if values.shape[-1] > algebra.UNROLLED:
        return jnp.sum(values, axis=-1)
    return functools.reduce(operator.add, (values[..., i] for i in range(values.shape[-1])))


def _all_states(scale: Array, residuals: Array) -> Array:
    return jnp.broadcast_to(scale, (residuals.shape[1], *scale.shape[1:]))


def _whiten(factor: Float[Array, "m m"], residuals: Float[Array, "T m"]) -> Float[Array, "T m"]:
    return algebra.solve_lower(factor, residuals.T).T


def _visible(
    factor: Float[Array, "m m"], seen: Bool[Array, "T m"]
) -> tuple[Float[Array, "T m m"], Float[Array, "m m"]]:
    """Factors of the covariance of what was seen, with ones on the diagonal for the rest, and that of all."""
    square = factor @ factor.T
    both = seen[:, :, None] & seen[:, None, :]
    known = jnp.where(both, square, jnp.eye(len(square), dtype=square.dtype))
    return jax.vmap(algebra.cholesky)(known), square


@custom_vmap
def _any_partly(seen: Bool[Array, "T m"]) -> Bool[Array, ""]:
    return jnp.any(jnp.any(seen, axis=-1) & ~jnp.all(seen, axis=-1))


@_any_partly.def_vmap
def _(size: int, batched: list[bool], seen: Array) -> tuple[Array, bool]:
    # One answer for the whole batch, so that a branch on it stays a branch.
    return _any_partly(seen.reshape(-1, seen.shape[-1])), False


def partly_seen(seen: Bool[Array, "T m"]) -> Bool[Array, ""]:
    """Whether some channels of a moment were seen and others not; one answer for all of a `vmap`."""
    return jnp.zeros((), bool) if seen.shape[-1] == 1 else _any_partly(seen)


def regress(
    y: Float[Array, "N m"],
    regressors: Float[Array, "N d"],
    weights: Float[Array, "N K"],
    coefficients: Float[Array, "K m d"],
    scale: Float[Array, "..."],
    *,
    precision: Float[Array, "N K"] | None = None,
    floor: Any = 0.0,
    movable: np.ndarray | None = None,
    learn_scale: bool = True,
) -> tuple[Float[Array, "K m d"], Float[Array, "..."]]:
    """Coefficients and scale of ``y = W z + L e`` in each state at the maximum of the weighted log density.

    With missing entries and a full covariance they are one EM step towards it: these entries count by
    their expectation given the observed ones.

    Args:
        y: observations, NaN where missing.
        regressors: ``z``, finite.
        weights: of each moment in each state.
        coefficients: the current ``W``.
        scale: the current scale, whose shape says how it is shared.
        precision: factors of the inverse covariance at each moment; None for ones.
        floor: the least variance or eigenvalue of a covariance.
        movable: which columns of the coefficients move, shape ``(d,)``; None for all of them.
        learn_scale: whether the scale moves.

    Returns:
        The new coefficients and scale. A scale is NaN where the covariance has collapsed.
    """
    seen = ~jnp.isnan(y)
    values = jnp.where(seen, y, 0)
    residuals = lambda w: values[:, None] - _predicted(regressors, w)
    own = weights if precision is None else weights * precision
    index = np.arange(regressors.shape[1]) if movable is None else np.flatnonzero(movable)
    z = regressors[:, index]
    if scale.ndim == 2:
        count = weights.T @ seen.astype(y.dtype)
        if regressors.shape[1] == len(index) == 1:
            # one product, whose cost is to read the weights
            columns = jnp.concatenate([values * z, seen * z * z, values**2], axis=1)
            total, gram, size = jnp.split(own.T @ columns, 3, axis=1)
            some = visited(count) & (gram > 0)
            mean = jnp.where(some, total / jnp.where(some, gram, 1), coefficients[:, :, 0])
            coefficients = mean[:, :, None]
        else:
            size = own.T @ values**2
        if len(index) and regressors.shape[1] > 1:
            e = jnp.where(seen[:, None], residuals(coefficients), 0)
            change = _solve(_gram(z, own, seen), _cross(own, e, z))
            change = jnp.where(visited(count)[:, :, None], change, 0)
            coefficients = coefficients.at[:, :, index].add(change)
        e = jnp.where(seen[:, None], residuals(coefficients), 0)
        square = _over_moments(own, e)
    else:
        some = jnp.any(seen, axis=1)
        weights, own = (jnp.where(some[:, None], w, 0) for w in (weights, own))
        count = jnp.sum(weights, axis=0)[:, None, None]
        e, rest = _completed(residuals(coefficients), seen, weights, scale)
        if len(index):
            gram = _weighted_products(z[:, None], own)[:, None]
            change = jnp.where(visited(count), _solve(gram, _cross(own, e, z)), 0)
            coefficients = coefficients.at[:, :, index].add(change)
            e = e - _predicted(z, change)
        square = _weighted_products(e, own) + rest
        size = own.T @ values**2
    return coefficients, _scale(square, size, count, scale, floor) if learn_scale else scale


def _predicted(
    z: Float[Array, "N d"], coefficients: Float[Array, "K m d"]
) -> Float[Array, "N K m"]:
    if z.shape[1] == 1:  # no product of matrices, so that it is not stored
        return z[:, :, None] * coefficients[None, :, :, 0]
    return jnp.einsum("nd,kid->nki", z, coefficients)


def _gram(z: Array, weights: Array, seen: Array) -> Float[Array, "K m d d"]:
    """``sum w z z'`` over the moments at which each channel was seen."""
    m, d = seen.shape[1], z.shape[1]

    def apart(z: Array, weights: Array, seen: Array) -> Array:
        one = lambda mask: _weighted_products(z[:, None], jnp.where(mask[:, None], weights, 0))
        return jnp.moveaxis(jax.lax.map(one, seen.T), 0, 1)

    def together(z: Array, weights: Array, seen: Array) -> Array:
        once = _weighted_products(z[:, None], jnp.where(seen[:, :1], weights, 0))
        return jnp.broadcast_to(once[:, None], (weights.shape[1], m, d, d))

    return jax.lax.cond(partly_seen(seen), apart, together, z, weights, seen)


def _weighted_products(e: Float[Array, "N #K d"], weights: Array) -> Float[Array, "K d d"]:
    """``sum w e e'``, exactly symmetric."""
    weighted = e * weights[:, :, None]
    total = jnp.einsum("nki,nkj->kij", weighted, jnp.broadcast_to(e, weighted.shape))
    return (total + jnp.swapaxes(total, 1, 2)) / 2


def _over_moments(weights: Array, e: Float[Array, "N K m"]) -> Float[Array, "K m"]:
    """``sum w e^2`` of each channel."""
    if e.shape[2] > algebra.UNROLLED:
        return jnp.einsum("nk,nki->ki", weights, e * e)
    each = (jnp.sum(weights * e[:, :, i] ** 2, axis=0) for i in range(e.shape[2]))
    return jnp.stack(list(each), axis=1)


def _cross(weights: Array, e: Array, z: Array) -> Float[Array, "K m d"]:
    return jnp.einsum("nki,nd->kid", e * weights[:, :, None], z)


def _solve(gram: Float[Array, "K #m d d"], cross: Float[Array, "K m d"]) -> Float[Array, "K m d"]:
    """``cross gram^{-1}``; nothing along directions that the weights leave undetermined."""
    d = gram.shape[-1]
    tiny, eps = jnp.finfo(gram.dtype).tiny, jnp.finfo(gram.dtype).eps
    size = jnp.diagonal(gram, axis1=-2, axis2=-1)
    some = size > tiny
    scale = jnp.where(some, 1 / jnp.sqrt(jnp.where(some, size, 1)), 0)
    # A ridge of the size of rounding on the *change* moves no maximum and keeps the solution small.
    eye = jnp.eye(d, dtype=gram.dtype)
    ridge = jnp.where(some, 10 * eps, 1)[..., None] * eye
    unit = gram * scale[..., :, None] * scale[..., None, :] + ridge
    unit = jnp.broadcast_to(unit, (*cross.shape, d))

    def one(a: Array, b: Array) -> Array:
        factor = algebra.cholesky(a)
        return algebra.solve_lower_t(factor, algebra.solve_lower(factor, b[:, None]))[:, 0]

    return jax.vmap(jax.vmap(one))(unit, cross * scale) * scale


def _completed(
    e: Array, seen: Array, weights: Array, scale: Array
) -> tuple[Float[Array, "N K m"], Float[Array, "K m m"]]:
    """Expected residuals of all channels given the observed ones, and the sum of what stays uncertain."""
    _, states, m = e.shape

    def partly(e: Array, seen: Array) -> tuple[Array, Array]:
        def one(factor: Array, e: Array, weights: Array) -> tuple[Array, Array]:
            factors, square = _visible(factor, seen)
            across = jnp.where(seen[:, :, None], square, 0)
            half = jax.vmap(algebra.solve_lower)(factors, across)
            z = jax.vmap(lambda l, b: algebra.solve_lower(l, b[:, None])[:, 0])(factors, e)
            expected = jnp.where(seen, e, jnp.einsum("nji,nj->ni", half, z))
            hidden = ~seen[:, :, None] & ~seen[:, None, :]
            left = jnp.where(hidden, square - jnp.einsum("nji,njl->nil", half, half), 0)
            return expected, jnp.einsum("n,nij->ij", weights, left)

        factors = jnp.broadcast_to(scale, (states, m, m))
        masked = jnp.where(seen[:, None], e, 0)
        return jax.vmap(one, (0, 1, 1), (1, 0))(factors, masked, weights)

    def whole(e: Array, seen: Array) -> tuple[Array, Array]:
        return jnp.where(seen[:, None, :1], e, 0), jnp.zeros((states, m, m), e.dtype)

    return jax.lax.cond(partly_seen(seen), partly, whole, e, seen)


def _scale(square: Array, size: Array, count: Array, old: Array, floor: Any) -> Array:
    """Of sums of squares of residuals; shared by all states where the old one is.

    NaN where a variance is no more than what rounding makes of observations of this size.
    """
    if len(old) == 1:
        square, size, count = (jnp.sum(a, axis=0, keepdims=True) for a in (square, size, count))
    some = visited(count)
    variance = square / jnp.where(some, count, 1)
    floor = jnp.asarray(floor, old.dtype)
    if old.ndim == 2:
        size = size / jnp.where(some, count, 1)
        variance = jnp.maximum(variance, floor)
        new = jnp.sqrt(jnp.where(_is_more_than_rounding(variance, size), variance, jnp.nan))
    else:
        size = size / jnp.where(some, count, 1)[:, :, 0]
        new = _factorise(variance, size, floor)
    return jnp.where(some, new, old)


def _is_more_than_rounding(variance: Array, size: Array) -> Array:
    return variance > (100 * jnp.finfo(variance.dtype).eps) ** 2 * size


def _factorise(covariance: Array, size: Array, floor: Array) -> Float[Array, "K m m"]:
    """Lower factors, eigenvalues raised to the floor; NaN where a covariance is singular to rounding."""

    def clip(square: Array) -> Array:
        values, vectors = jnp.linalg.eigh(square)
        return (vectors * jnp.maximum(values, floor)[:, None]) @ jnp.swapaxes(vectors, 1, 2)

    covariance = jax.lax.cond(floor > 0, clip, lambda s: s, covariance)
    factor = jax.vmap(algebra.cholesky)(covariance)
    pivots = jnp.diagonal(factor, axis1=1, axis2=2) ** 2
    variances = jnp.diagonal(covariance, axis1=1, axis2=2)
    apart = pivots > 10 * jnp.finfo(pivots.dtype).eps * variances
    fine = jnp.all(apart & _is_more_than_rounding(variances, size), axis=1)
    return jnp.where(fine[:, None, None], factor, jnp.nan)
