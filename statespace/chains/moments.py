"""Loops, maps and sums over the moments of a chain."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def scan_moments(
    step: Callable, carry: Any, arrays: Any, steps: int, *, reverse: bool = False
) -> tuple[Any, Any]:
    """``lax.scan`` over arrays of leading length ``steps``, or 1 for those constant in time."""
    leaves, tree = jax.tree.flatten(arrays)
    varying = [x.shape[0] != 1 for x in leaves]
    moving = [x for x, v in zip(leaves, varying, strict=True) if v]

    def body(carry: Any, at: list[Array]) -> tuple[Any, Any]:
        turn = iter(at)
        now = [next(turn) if v else x[0] for x, v in zip(leaves, varying, strict=True)]
        return step(carry, jax.tree.unflatten(tree, now))

    return jax.lax.scan(body, carry, moving, length=steps, reverse=reverse)


def vmap_moments(function: Callable, *arrays: Array) -> Any:
    """`vmap` over moments; arrays of leading length 1 are constant in time."""
    steps = max(x.shape[0] for x in arrays)
    axes = tuple(None if x.shape[0] == 1 and steps > 1 else 0 for x in arrays)
    args = tuple(x[0] if ax is None else x for x, ax in zip(arrays, axes, strict=True))
    return jax.vmap(function, in_axes=axes)(*args)


def compensated_sum(x: Float[Array, "T *d"]) -> Float[Array, "*d"]:
    """The sum over the first axis, nearly as accurate as the rounded exact one.

    Columns of about sqrt(T) entries are added with two-sums (Knuth), all columns at once, and then the
    columns likewise.
    """
    steps = x.shape[0]
    rows = max(1, math.isqrt(steps))
    columns = -(-steps // rows)
    padded = jnp.concatenate([x, jnp.zeros((rows * columns - steps, *x.shape[1:]), x.dtype)])

    def add(carry: tuple[Array, Array], b: Array) -> tuple[tuple[Array, Array], None]:
        a, error = carry
        total = a + b
        part = total - a
        return (total, error + ((a - (total - part)) + (b - part))), None

    def down(x: Array) -> tuple[Array, Array]:
        return jax.lax.scan(add, (jnp.zeros_like(x[0]), jnp.zeros_like(x[0])), x)[0]

    sums, errors = down(padded.reshape(rows, columns, *x.shape[1:]))
    total, error = down(sums)
    return total + (error + jnp.sum(errors, axis=0))
