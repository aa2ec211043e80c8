"""What all filters share that are fed one observation at a time."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from statespace.model import Step
from statespace.series import Series, assemble


def received(
    state: Any, dtype: Any, y: Any, inputs: Any, time: Any, *, optional: bool = False
) -> tuple[Any, Any, Any]:
    """The observation, inputs and time as arrays; inputs and a time that are None stay so.

    Args:
        state: before the observation, with its ``index`` and ``time``.
        dtype: of the arrays.
        y: a number or shape ``(m,)``.
        inputs: shape ``(k,)`` or None.
        time: of the observation, or None.
        optional: whether ``y`` may be None as well.

    Raises:
        ValueError: if ``time`` is not after the previous observation's.
    """
    check_later(time, state)
    if not (optional and y is None):
        y = jnp.atleast_1d(jnp.asarray(y, dtype))
    inputs = None if inputs is None else jnp.asarray(inputs, dtype)
    time = None if time is None else jnp.asarray(time, dtype)
    return y, inputs, time


def check_later(time: Any, state: Any) -> None:
    """Refuse a time that does not follow the previous observation's; traced ones pass.

    Raises:
        ValueError: if it does not.
    """
    traced = any(isinstance(x, jax.core.Tracer) for x in (time, state.time))
    if time is not None and not traced and state.index >= 0 and not time > state.time:
        raise ValueError(
            f"`time` must be after the previous observation's, {float(state.time)}, got {time}."
        )


def next_step(
    state: Any, dt: float, inputs: Array | None, time: Array | None
) -> tuple[Step, Array]:
    """The step of the next observation, and whether it is the first.

    Args:
        state: before the observation, with its ``index`` and ``time``.
        dt: since the previous observation, where no time is given; and at the first.
        inputs: shape ``(k,)`` or None.
        time: of the observation, or None.
    """
    time = state.time + dt if time is None else time
    first = state.index < 0
    return Step(state.index + 1, time, jnp.where(first, dt, time - state.time), inputs), first


def recent(
    history: Float[Array, "p m"] | None, y: Float[Array, " m"], step: Step
) -> tuple[Series, Step]:
    """The last observations as a recording, of which only the last moment counts, and its steps."""
    rows = y[None] if history is None else jnp.concatenate([history[::-1], y[None]])
    count = len(rows)
    steps = jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *jnp.shape(x))), step)
    series = assemble(
        Series,
        y=rows,
        times=steps.time,
        inputs=steps.inputs,
        intervals=steps.dt,
        state_weights=None,
        complete=None,
        dt=None,
        labels=None,
    )
    return series, steps
