"""How `vmap` meets the small-matrix kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap


def batch_last(function: Callable[..., Any], small: Callable[..., bool]) -> Callable[..., Any]:
    """A function whose `vmap` puts the batch axis last instead of first.

    Matrices of a few rows vectorise over a batch only when the batch is the contiguous axis; `vmap` would
    put it first. ``function`` takes arrays and must accept trailing axes on all of them (length 1 where an
    array is not batched). Where ``small(*args)`` is false the ordinary `vmap` rule applies. Derivatives are
    those of ``function`` itself.
    """

    @custom_vmap
    def batchable(*args: Any) -> Any:
        return function(*args)

    @batchable.def_vmap
    def _(size: int, batched: Sequence[Any], *args: Any) -> tuple[Any, Any]:
        one = [
            jax.ShapeDtypeStruct(a.shape[1:], a.dtype) if b else a
            for a, b in zip(args, batched, strict=True)
        ]
        if not small(*one):
            out = jax.vmap(function, in_axes=[0 if b else None for b in batched])(*args)
        else:
            last = [
                jnp.moveaxis(a, 0, -1) if b else a[..., None]
                for a, b in zip(args, batched, strict=True)
            ]
            out = jax.tree.map(lambda a: jnp.moveaxis(a, -1, 0), differentiable(*last))
        return out, jax.tree.map(lambda _: True, out)

    @jax.custom_jvp
    def differentiable(*args: Any) -> Any:
        return batchable(*args)

    @differentiable.defjvp
    def _(primals: Any, tangents: Any) -> Any:
        return jax.jvp(function, primals, tangents)

    return differentiable
