"""How `vmap` meets small-matrix kernels, and recursions with a way out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jaxtyping import Array


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


def fall_back(fast: Callable[..., Any], robust: Callable[..., Any]) -> Callable[..., Any]:
    """A function that is fast where that will do, and robust where it will not.

    ``fast(*args)`` returns ``(out, failed)``, ``robust(*args)`` returns ``out``. A batch (`vmap`) runs the
    robust function only if one of it failed. Derivatives are those of the function that was used.
    """

    def either(*args: Any) -> Any:
        out, failed = fast(*args)

        def mend() -> Any:
            def choose(r: Array, o: Array) -> Array:
                return jnp.where(failed.reshape(failed.shape + (1,) * (o.ndim - failed.ndim)), r, o)

            return jax.tree.map(choose, robust(*args), out)

        return jax.lax.cond(jnp.any(failed), mend, lambda: out)

    return _batched_by(either, lambda v: fall_back(v(fast), v(robust)))


def with_care(
    needed: Callable[..., Array], careful: Callable[..., Any], quick: Callable[..., Any]
) -> Callable[..., Any]:
    """The quick function, or the careful one where ``needed(*args)``, which is known beforehand.

    The careful one is right everywhere: a batch (`vmap`) runs it for all if one of it needs it, and
    otherwise pays nothing for it.
    """

    def either(*args: Any) -> Any:
        return jax.lax.cond(jnp.any(needed(*args)), careful, quick, *args)

    return _batched_by(either, lambda v: with_care(v(needed), v(careful), v(quick)))


def _batched_by(function: Callable[..., Any], batch: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` with `vmap` by ``batch(v)``, where ``v`` is the `vmap` that is due.

    Derivatives are those of ``function``.
    """

    @custom_vmap
    def batchable(*args: Any) -> Any:
        return function(*args)

    @batchable.def_vmap
    def _(size: int, batched: Sequence[Any], *args: Any) -> tuple[Any, Any]:
        axes = [0 if b else None for b in batched]
        out = batch(lambda f: jax.vmap(f, in_axes=axes, axis_size=size))(*args)
        return out, jax.tree.map(lambda _: True, out)

    @jax.custom_jvp
    def run(*args: Any) -> Any:
        return batchable(*args)

    run.defjvp(lambda primals, tangents: jax.jvp(function, primals, tangents))
    return run
