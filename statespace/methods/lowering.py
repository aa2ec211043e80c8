"""From conditionals to arrays over time, keeping apart what varies and what does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jaxtyping import Array

from statespace.dependence import dependence
from statespace.model import Step
from statespace.series import Series

Rows = TypeVar("Rows")


def steps_of(series: Series) -> tuple[Step, Step]:
    """The steps of a recording, stacked over time, and for each field whether it varies.

    On regular times ``dt`` does not vary.
    """
    count = len(series)
    index = jnp.arange(count)
    dt = series.intervals if series.dt is None else jnp.full(count, series.dt, series.times.dtype)
    steps = Step(index, series.times, dt, series.inputs)
    varies = Step(True, True, series.dt is None, None if series.inputs is None else True)
    return steps, varies


def at(steps: Rows, index: Any) -> Rows:
    """One of stacked steps, or of other rows."""
    return jax.tree.map(lambda x: x[index], steps)


def stack(function: Callable[[Step], Any], steps: Step, varies: Step) -> Any:
    """``function`` at all steps: each array of its result with a leading axis of time.

    The axis has length 1 where the array depends on nothing that varies, which is read off the traced
    program.
    """
    first = at(steps, 0)
    program = jax.make_jaxpr(function)(first)
    depends = dependence(program.jaxpr, jax.tree.leaves(varies))
    once = function(first)
    leaves, tree = jax.tree.flatten(once)
    if not any(depends):
        return jax.tree.unflatten(tree, [x[None] for x in leaves])
    every = jax.tree.leaves(jax.vmap(function)(steps))
    chosen = [e if d else x[None] for x, e, d in zip(leaves, every, depends, strict=True)]
    return jax.tree.unflatten(tree, chosen)


def dtype_of(series: Series, *parts: Any) -> Any:
    """The precision in which a model and a recording meet."""
    leaves = [x for x in jax.tree.leaves(parts) if isinstance(x, Array | jax.core.Tracer)]
    floats = [x.dtype for x in leaves if jnp.issubdtype(x.dtype, jnp.inexact)]
    return jnp.result_type(series.y.dtype, *floats)
