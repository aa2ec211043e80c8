"""Probabilities: a check of those that a caller gives, and where distribution functions reach them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtr, ndtri
from jaxtyping import Array, Float

_HALVINGS = 60  # of an interval that holds a quantile


class NoResiduals(TypeError):
    """A method or a distribution has no one-step predictions that observations could be held against."""


def probabilities(argument: str, values: Any) -> Any:
    """Probabilities as an array, those under a trace as they come.

    Args:
        argument: what the caller calls them.
        values: one number, or an array of any shape.

    Raises:
        ValueError: if one is not inside (0, 1).
    """
    if isinstance(values, jax.core.Tracer):
        return values
    array = np.asarray(values, float)
    if not ((array > 0) & (array < 1)).all():
        raise ValueError(f"`{argument}` must be probabilities inside (0, 1), got {values}.")
    return array


def tails(level: Any) -> Any:
    """Probabilities below the lower and the upper bound of the central interval of this level.

    Raises:
        ValueError: if the level is not inside (0, 1).
    """
    probabilities("level", level)
    return 0.5 - level / 2, 0.5 + level / 2


def normal_deviates(
    below: Float[Array, "T m"], observed: Float[Array, "T m"]
) -> Float[Array, "T m"]:
    """Observations as standard normal deviates, by the probability that lay below each; NaN where missing."""
    tiny = jnp.finfo(below.dtype).eps
    deviates = ndtri(jnp.clip(below, tiny, 1 - tiny))
    return jnp.where(jnp.isnan(observed), jnp.nan, deviates)


def weighted_quantile(
    x: Float[Array, "T N *d"], weights: Float[Array, "T N"], q: Float[Array, " Q"]
) -> Float[Array, "Q T *d"]:
    """At each moment the least value whose cumulative weight reaches each probability."""
    order = jnp.argsort(x, axis=1)
    values = jnp.take_along_axis(x, order, axis=1)
    wide = jnp.broadcast_to(weights.reshape(weights.shape + (1,) * (x.ndim - 2)), x.shape)
    total = jnp.cumsum(jnp.take_along_axis(wide, order, axis=1), axis=1)
    last = x.shape[1] - 1

    def one(level: Array) -> Array:
        place = jnp.minimum(jnp.sum(total < level * total[:, -1:], axis=1), last)
        return jnp.take_along_axis(values, place[:, None], axis=1)[:, 0]

    return jax.vmap(one)(q)


@jax.jit
def mixture_quantiles(
    weights: Float[Array, "T N"],
    means: Float[Array, "T N n"],
    covariances: Float[Array, "T N n n"],
    levels: Float[Array, " Q"],
) -> Float[Array, "Q T n"]:
    """Where the mixtures' distribution functions reach each level."""
    spread = jnp.sqrt(jnp.maximum(jnp.diagonal(covariances, axis1=-2, axis2=-1), 0))
    safe = jnp.maximum(spread, jnp.finfo(spread.dtype).tiny)
    counts = weights[..., None] > 0
    reach = 12 * spread  # no level but 0 and 1 lies further out
    low = jnp.min(jnp.where(counts, means - reach, jnp.inf), axis=1)
    high = jnp.max(jnp.where(counts, means + reach, -jnp.inf), axis=1)

    def one(level: Array) -> Array:
        def halve(_: Any, ends: tuple[Array, Array]) -> tuple[Array, Array]:
            low, high = ends
            middle = 0.5 * (low + high)
            below = jnp.sum(weights[..., None] * ndtr((middle[:, None] - means) / safe), axis=1)
            return jnp.where(below < level, middle, low), jnp.where(below < level, high, middle)

        return 0.5 * sum(jax.lax.fori_loop(0, _HALVINGS, halve, (low, high)))

    return jax.vmap(one)(levels.astype(means.dtype))
