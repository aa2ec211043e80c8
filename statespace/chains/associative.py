"""Prefix scans of an associative operator."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

Elements = TypeVar("Elements")
_FEW = 16


def prefix_scan(
    combine: Callable[[Elements, Elements], Elements], elements: Elements, *, reverse: bool = False
) -> Elements:
    """All prefixes ``e_0``, ``e_0 * e_1``, … of elements stacked along their first axis.

    ``combine(earlier, later)`` acts on single elements; with ``reverse`` the scan runs from the end, and the
    element nearer the end is the earlier one. On an accelerator, and for few elements, this is
    :func:`jax.lax.associative_scan`. On CPU, where its unrolled levels buy no speed and cost minutes of
    compile time, it is :func:`_in_blocks`.
    """
    if jax.default_backend() != "cpu" or len(jax.tree.leaves(elements)[0]) <= _FEW:
        return jax.lax.associative_scan(jax.vmap(combine), elements, reverse=reverse)
    if not reverse:
        return _in_blocks(combine, elements)
    flip = lambda tree: jax.tree.map(lambda x: jnp.flip(x, 0), tree)
    return flip(_in_blocks(combine, flip(elements)))


def _in_blocks(combine: Callable[[Elements, Elements], Elements], elements: Elements) -> Elements:
    """The prefixes by about sqrt(T) blocks side by side, in one loop with one copy of ``combine``.

    The loop goes through the rows, which hold one element of each block, twice: first for the products of
    whole blocks, then from the products of all blocks before, for the prefixes. In between it makes the one
    of the other by doubling distances between blocks (Hillis & Steele 1986).
    """
    total = jax.tree.leaves(elements)[0].shape[0]
    levels = math.isqrt(total).bit_length() - 1
    blocks = 2**levels
    size = -(-total // blocks)

    def as_rows(x: Array) -> Array:
        # repeated last elements fill the last block: prefixes before them are not affected
        filled = jnp.concatenate([x, jnp.repeat(x[-1:], size * blocks - total, axis=0)])
        rows = filled.reshape(blocks, size, *x.shape[1:]).swapaxes(0, 1)
        return jnp.concatenate([rows, rows[:levels], rows])  # those between are not looked at

    block, doubling = np.arange(blocks), np.s_[size : size + levels]
    across = np.zeros(2 * size + levels, bool)  # whether products of blocks are combined
    across[doubling] = True
    distance = np.zeros(len(across), int)  # of the block that the earlier factor comes from
    distance[doubling] = 2 ** np.arange(levels)
    distance[size + levels] = 1
    joined = block >= distance[:, None]  # whether there is an earlier factor
    joined[0] = False

    def step(product: Elements, row: tuple) -> tuple[Elements, Elements]:
        new, distance, across, joined = row
        moved = lambda x: jax.tree.map(lambda x: jnp.roll(x, distance, axis=0), x)
        earlier = jax.lax.cond(distance > 0, moved, lambda x: x, product)
        later = jax.tree.map(lambda x, y: jnp.where(across, x, y), product, new)
        both = jax.vmap(combine)(earlier, later)

        def choose(both: Array, later: Array) -> Array:
            return jnp.where(joined.reshape(-1, *[1] * (both.ndim - 1)), both, later)

        product = jax.tree.map(choose, both, later)
        return product, product

    rows = jax.tree.map(as_rows, elements)
    first = jax.tree.map(lambda x: x[0], rows)
    _, out = jax.lax.scan(step, first, (rows, distance, across, joined))
    prefixes = lambda x: x[-size:].swapaxes(0, 1).reshape(size * blocks, *x.shape[2:])[:total]
    return jax.tree.map(prefixes, out)
