"""Prefix scans of an associative operator."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp

Elements = TypeVar("Elements")
_BLOCKS = 8


def prefix_scan(
    combine: Callable[[Elements, Elements], Elements], elements: Elements, *, reverse: bool = False
) -> Elements:
    """All prefixes ``e_0``, ``e_0 * e_1``, … of elements stacked along their first axis.

    ``combine(earlier, later)`` acts on single elements; with ``reverse`` the scan runs from the end, and the
    element nearer the end is the earlier one. On an accelerator this is :func:`jax.lax.associative_scan` over
    all elements. On CPU, where its unrolled levels buy no speed and cost minutes of compile time, it scans
    inside all blocks at once, and then over the blocks: three copies of ``combine`` in the whole program.
    """
    many = jax.vmap(combine)
    total = jax.tree.leaves(elements)[0].shape[0]
    if jax.default_backend() != "cpu" or total <= 2 * _BLOCKS:
        return jax.lax.associative_scan(many, elements, reverse=reverse)
    flip = (lambda x: jnp.flip(x, 0)) if reverse else (lambda x: x)
    size = -(-total // _BLOCKS)
    # repeated last elements fill the last block: prefixes before them are not affected
    fill = size * _BLOCKS - total
    blocks = jax.tree.map(
        lambda x: (
            jnp.concatenate([flip(x), jnp.repeat(flip(x)[-1:], fill, axis=0)])
            .reshape(_BLOCKS, size, *x.shape[1:])
            .swapaxes(0, 1)
        ),
        elements,
    )

    inside = _running(many, blocks)
    before = _running(combine, jax.tree.map(lambda x: x[-1], inside))  # over whole blocks
    rest = jax.vmap(jax.vmap(combine))(
        jax.tree.map(lambda b: jnp.broadcast_to(b[:-1], (size, _BLOCKS - 1, *b.shape[1:])), before),
        jax.tree.map(lambda x: x[:, 1:], inside),
    )

    def join(x, r):
        x = jnp.concatenate([x[:, :1], r], axis=1).swapaxes(0, 1)
        return flip(x.reshape(size * _BLOCKS, *x.shape[2:])[:total])

    return jax.tree.map(join, inside, rest)


def _running(combine: Callable[[Elements, Elements], Elements], elements: Elements) -> Elements:
    """The same prefixes one after the other, in a loop."""

    def step(carry: Elements, new: Elements) -> tuple[Elements, Elements]:
        out = combine(carry, new)
        return out, out

    first = jax.tree.map(lambda x: x[0], elements)
    _, later = jax.lax.scan(step, first, jax.tree.map(lambda x: x[1:], elements))
    return jax.tree.map(lambda f, x: jnp.concatenate([f[None], x]), first, later)
