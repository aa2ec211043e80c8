"""The E-step: expected sums over the states, and over missing entries, given the data."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from statespace.chains import gaussian
from statespace.learners.likelihood import each_recording, stacked
from statespace.learners.regressions import Regression, Statistics, coefficients, covariance
from statespace.parameters import parameters
from statespace.series import Panel, Series


def expectations(
    model: Any, data: Series | Panel, method: Any, parts: tuple[Regression, ...]
) -> tuple[Float[Array, ""], dict[str, Statistics]]:
    """Log likelihood, and the statistics of each regression by its label.

    A panel's recordings are smoothed one by one, and their sums added.
    """
    if isinstance(data, Panel):
        lengths = jnp.asarray(data.lengths)
        one = lambda s, length: _one(model, s, method, parts, jnp.arange(len(s)) < length)
        each = each_recording(one, model, method, stacked(data), lengths)
        return jax.tree.map(lambda a: jnp.sum(a, axis=0), each)
    return _one(model, data, method, parts, None)


def _one(
    model: Any,
    series: Series,
    method: Any,
    parts: tuple[Regression, ...],
    within: Bool[Array, " T"] | None,
) -> tuple[Array, dict[str, Statistics]]:
    """The statistics of one recording; ``within`` is False after its end, None where it has no padding."""
    chain, how = method.lower(model, series)
    states = gaussian.smooth(chain, **how)
    return states.log_likelihood, statistics(model, series, states, parts, within)


def statistics(
    model: Any,
    series: Series,
    states: Any,
    parts: tuple[Regression, ...],
    weights: Bool[Array, " T"] | Float[Array, " T"] | None,
) -> dict[str, Statistics]:
    """The statistics of each regression, from the states' means, covariances and lag-one covariances.

    Args:
        model: at the current parameters.
        series: the recording.
        states: their moments.
        parts: the regressions.
        weights: by which each moment counts: False or 0 after the end of a padded recording; None for all.
    """
    out = {}
    for part in parts:
        if part.label == "transition":
            after = None if weights is None else weights[1:]
            out[part.label] = _transition(model, part, series, states, after)
        elif part.label == "observation":
            out[part.label] = _observation(model, part, series, states, weights)
        else:
            mean, cov = states.mean[0], states.covariance[0]
            e = mean - coefficients(model, part)[:, 0]
            one = jnp.ones(1, mean.dtype)
            ee = jnp.outer(e, e) + cov
            once = Statistics(ee, e[:, None] * one, jnp.ones((1, 1), mean.dtype), one[0])
            share = 1 if weights is None else weights[0]
            out[part.label] = jax.tree.map(lambda x, share=share: share * x, once)
    return out


def _weighted(
    weights: Any, vectors: tuple[Array, ...], matrices: tuple[Array, ...]
) -> tuple[tuple[Array, ...], tuple[Array, ...], Float[Array, ""]]:
    """Rows whose products are summed, terms that are summed, and the number of moments, all weighted."""
    weights = weights.astype(vectors[0].dtype)
    root = jnp.sqrt(weights)[:, None]
    scaled = tuple(weights.reshape(-1, *[1] * (a.ndim - 1)) * a for a in matrices)
    return tuple(root * a for a in vectors), scaled, jnp.sum(weights)


def _transition(
    model: Any, part: Regression, series: Series, states: Any, weights: Array | None
) -> Statistics:
    """Of the state on the previous state. The inputs are those of the moment that is led into."""
    w = coefficients(model, part)
    n = states.mean.shape[1]
    z = _regressors(part, states.mean[:-1], None if series.inputs is None else series.inputs[1:])
    e = states.mean[1:] - z @ w.T
    before, after, lag = states.covariance[:-1], states.covariance[1:], states.lag_one
    count = jnp.asarray(len(z), z.dtype)
    if weights is not None:
        (z, e), (before, after, lag), count = _weighted(weights, (z, e), (before, after, lag))
    xx, yy, yx = jnp.sum(before, axis=0), jnp.sum(after, axis=0), jnp.sum(lag, axis=0).T
    f = w[:, :n] if part.matrix is not None else jnp.zeros((w.shape[0], n), w.dtype)
    fyx = f @ yx.T
    ee = e.T @ e + yy - fyx - fyx.T + f @ xx @ f.T
    return _collect(part, ee, e.T @ z, yx - f @ xx, z, xx, count)


def _observation(
    model: Any, part: Regression, series: Series, states: Any, weights: Array | None
) -> Statistics:
    """Of the observation on the state. A missing channel counts by its expectation given the others.

    With mask ``K``, ``y = (I - G)(H x + d) + G y_observed + N(0, (I - G) R)`` for the gain
    ``G = R K (K R K)^+``. A moment at which nothing was observed says nothing, and is left out.
    """
    w, r = coefficients(model, part), covariance(model, part)
    n = states.mean.shape[1]
    z = _regressors(part, states.mean, series.inputs)
    y, p = series.channels, states.covariance
    h = w[:, :n] if part.matrix is not None else jnp.zeros((w.shape[0], n), w.dtype)
    if series.complete:
        e, count = y - z @ w.T, jnp.asarray(len(z), z.dtype)
        if weights is not None:
            (z, e), (p,), count = _weighted(weights, (z, e), (p,))
        xx = jnp.sum(p, axis=0)
        ee = e.T @ e + h @ xx @ h.T
        return _collect(part, ee, e.T @ z, -h @ xx, z, xx, count)
    seen = series.observed
    some = jnp.any(seen, axis=1)
    e = jnp.where(seen, jnp.nan_to_num(y) - z @ w.T, 0)
    if _is_diagonal(model, part):
        rest = jnp.where(some[:, None] & ~seen, jnp.diagonal(r), 0)
        gain_h = jnp.where(seen[:, :, None], h, 0)
    else:
        gain = jax.vmap(lambda k: _gain(r, k))(seen)
        e = jnp.einsum("tij,tj->ti", gain, e)
        gain_h = gain @ h
        left = jnp.where(some[:, None, None], r - gain @ r, 0)
        rest = (left + jnp.swapaxes(left, 1, 2)) / 2
    counted = some if weights is None else some * weights
    (z, e), (p, rest), count = _weighted(counted, (z, e), (p, rest))
    gain_hp = gain_h @ p
    rest = jnp.sum(rest, axis=0)
    rest = jnp.diag(rest) if rest.ndim == 1 else rest
    ee = e.T @ e + jnp.sum(gain_hp @ jnp.swapaxes(gain_h, 1, 2), axis=0) + rest
    return _collect(part, ee, e.T @ z, -jnp.sum(gain_hp, axis=0), z, jnp.sum(p, axis=0), count)


def _is_diagonal(model: Any, part: Regression) -> bool:
    """Whether the noise is independent from channel to channel by construction."""
    return parameters(model)[part.scale].ndim == 1


def _gain(r: Float[Array, "m m"], seen: Bool[Array, " m"]) -> Float[Array, "m m"]:
    """What the observed residuals say of all channels' residuals: identity on the observed ones."""
    both = seen[:, None] & seen[None, :]
    eye = jnp.eye(len(seen), dtype=r.dtype)
    known = jnp.where(both, r, eye)
    across = jnp.where(seen[None, :], r, 0)
    gain = jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor(known, lower=True), across.T).T
    return jnp.where(seen[:, None], jnp.where(both, eye, 0), jnp.where(seen[None, :], gain, 0))


def _regressors(part: Regression, x: Array, inputs: Array | None) -> Float[Array, "T p"]:
    """Expected regressors, in the order of :func:`coefficients`."""
    blocks = []
    if part.matrix is not None:
        blocks.append(x)
    if part.offset is not None:
        blocks.append(jnp.ones((len(x), 1), x.dtype))
    if part.inputs is not None:
        blocks.append(inputs)
    return jnp.concatenate(blocks, axis=1)


def _collect(
    part: Regression, ee: Array, ez: Array, ex: Array, z: Array, xx: Array, count: Array
) -> Statistics:
    """Sums of means, plus what the uncertainty of the states adds to those that involve ``x``."""
    zz = z.T @ z
    if part.matrix is not None:
        n = len(xx)
        ez = ez.at[:, :n].add(ex)
        zz = zz.at[:n, :n].add(xx)
    return Statistics((ee + ee.T) / 2, ez, zz, count)
