"""The recursions as associative scans: of depth logarithmic in the number of moments.

Products are taken in logarithms (Hassan, Särkkä & García-Fernández 2021), which zeros do not break, and each
is brought back to a largest entry of one: what a moment contributes to the evidence is taken from one-step
predictions afterwards, never from inside the operator, where it would be rounded with all that came before.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from statespace.chains.associative import prefix_scan
from statespace.chains.finite import algebra
from statespace.chains.moments import vmap_moments

Product = Callable[[Array, Array], Array]


def sum_product(a: Array, b: Array) -> Array:
    """``log(A B)`` of the logarithms of both."""
    return algebra.logsumexp(a[:, :, None] + b[None], axis=1)


def max_product(a: Array, b: Array) -> Array:
    """The best of all ways: ``max_j a[i, j] + b[j, k]``."""
    return jnp.max(a[:, :, None] + b[None], axis=1)


def _level(matrix: Array) -> Array:
    """A matrix brought to a largest entry of zero, if it has any that is possible."""
    peak = jax.lax.stop_gradient(jnp.max(matrix))
    return matrix - jnp.where(jnp.isneginf(peak), 0, peak)


def from_start(
    first: Float[Array, " K"],
    matrices: Float[Array, "S K K"],
    potentials: Float[Array, "T K"],
    product: Product,
) -> Float[Array, "T K"]:
    """All products from the first moment on, up to factors: unnormalised laws or best scores."""
    head = jnp.broadcast_to(first + potentials[0], (1, *matrices.shape[1:]))
    tail = matrices + potentials[1:, None, :]
    elements = jnp.concatenate([head, tail])
    return prefix_scan(lambda a, b: _level(product(a, b)), elements)[:, 0]


def from_end(
    matrices: Float[Array, "S K K"], potentials: Float[Array, "T K"]
) -> Float[Array, "T K"]:
    """All products up to the last moment, summed over it, up to factors."""
    last = jnp.zeros_like(potentials[:1])
    if len(potentials) == 1:
        return last
    elements = matrices + potentials[1:, None, :]
    ways = prefix_scan(lambda a, b: _level(sum_product(b, a)), elements, reverse=True)
    return jnp.concatenate([algebra.logsumexp(ways, axis=2), last])


def trace_back(
    choose: Callable[..., Array],
    last: Int[Array, ""],
    matrices: Float[Array, "S K K"],
    scores: Float[Array, "T K"],
    *more: Array,
) -> Int[Array, " T"]:
    """A path from its last state: ``choose(scores_t + matrices_t[:, k], *more_t)`` is before state k.

    The choices are made for every k at once, and the maps from state to state then composed.
    """

    def before(matrix: Array, score: Array, *more: Array) -> Array:
        return jax.vmap(lambda column: choose(score + column, *more), in_axes=1)(matrix)

    end = jnp.broadcast_to(last, scores[:1].shape)
    if len(scores) == 1:
        return end[:, 0]
    maps = vmap_moments(before, matrices, scores[:-1], *(x[:-1] for x in more))
    elements = jnp.concatenate([maps, end])
    return prefix_scan(lambda later, now: now[later], elements, reverse=True)[:, 0]
