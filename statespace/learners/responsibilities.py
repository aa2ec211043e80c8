"""Where EM can start from: guesses of which state made which observation."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from statespace.chains import finite
from statespace.conditionals import aggregates
from statespace.series import Series

_CERTAINTY = 0.9  # of the guessed state; the rest is spread, so that no variance starts at zero
_ROUNDS = 25  # of Lloyd's algorithm, which is a start only


def soften(
    labels: Int[Array, "S T"], states: int, within: Bool[Array, "S T"]
) -> Float[Array, "S T K"]:
    """Weights of the states from guessed ones; zero after the end of a recording."""
    hot = jax.nn.one_hot(labels, states)
    weights = _CERTAINTY * hot + (1 - _CERTAINTY) / states
    return jnp.where(within[..., None], weights, 0)


def drawn(model: Any, method: Any, series: Series, key: PRNGKeyArray) -> Int[Array, " T"]:
    """States drawn from the model's own law of them, soft labels included, without a look at the data."""
    unseen = eqx.tree_at(lambda s: s.y, series, jnp.full_like(series.y, jnp.nan))
    path = finite.sample(method.lower(model, unseen), key, 1, parallel=method.parallel)[0]
    return aggregates.whole(model.transition.aggregate, path)


def clustered(y: Float[Array, "N m"], clusters: int, key: PRNGKeyArray) -> Int[Array, " N"]:
    """Clusters of observations by k-means, channels at unit variance and missing entries at the mean.

    References:
        Lloyd (1982); Arthur & Vassilvitskii (2007) for the first centres.
    """
    seen = ~jnp.isnan(y)
    count = jnp.maximum(jnp.sum(seen, axis=0), 1)
    mean = jnp.sum(jnp.where(seen, y, 0), axis=0) / count
    centred = jnp.where(seen, y - mean, 0)
    scale = jnp.sqrt(jnp.sum(centred**2, axis=0) / count)
    points = centred / jnp.where(scale > 0, scale, 1)
    some = jnp.any(seen, axis=1)
    keys = jax.random.split(key, clusters)

    def squares(centres: Array) -> Float[Array, "N k"]:
        norms = jnp.sum(points**2, axis=1)[:, None] + jnp.sum(centres**2, axis=1)
        return jnp.maximum(norms - 2 * points @ centres.T, 0)

    def pick(key: Array, weights: Array) -> Array:
        weights = jnp.where(some, weights, 0)
        logs = jnp.log(jnp.where(weights > 0, weights, 1))
        return points[jax.random.categorical(key, jnp.where(weights > 0, logs, -jnp.inf))]

    first = pick(keys[0], jnp.ones(len(y), y.dtype))
    centres = jnp.broadcast_to(first, (clusters, y.shape[1]))
    for i in range(1, clusters):
        nearest = jnp.min(squares(centres), axis=1)
        apart = jnp.any(jnp.where(some, nearest, 0) > 0)
        centres = centres.at[i].set(pick(keys[i], jnp.where(apart, nearest, 1)))

    def round_(_: Array, centres: Array) -> Array:
        hot = jax.nn.one_hot(jnp.argmin(squares(centres), axis=1), clusters, dtype=y.dtype)
        hot = jnp.where(some[:, None], hot, 0)
        size = jnp.sum(hot, axis=0)[:, None]
        return jnp.where(size > 0, hot.T @ points / jnp.where(size > 0, size, 1), centres)

    centres = jax.lax.fori_loop(0, _ROUNDS, round_, centres)
    return jnp.argmin(squares(centres), axis=1)
