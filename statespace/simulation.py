"""States and observations drawn from any model, one moment after the other."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from statespace.conditionals import aggregates
from statespace.methods.lowering import at, steps_of
from statespace.series import Series


@eqx.filter_jit
def states_and_observations(
    model: Any, series: Series, key: Array, first: Array | None = None
) -> tuple[Array, Array]:
    """A draw at the moments and with the inputs of a recording, whose values are not used.

    Args:
        model: anything with ``initial``, ``transition`` and ``observation``.
        series: the moments.
        key: source of randomness.
        first: the first state, in place of a draw from ``initial``.

    Returns:
        States ``(T, ...)``, or a pytree of them, and observations ``(T, m)``.

    Raises:
        ValueError: if the initial law is diffuse and no first state is given.
    """
    steps, _ = steps_of(series)
    keys = jax.random.split(key, 2 * len(series))
    aggregate = getattr(model.transition, "aggregate", None)
    if first is None:
        law = model.initial
        law = law if hasattr(law, "sample") else law(at(steps, 0))
        first = law.sample(keys[0])

    else:
        first = aggregates.entrance(aggregate, first)

    lags = getattr(model.observation, "lags", 0)

    def observe(x: Array, step: Any, key: Array, past: Array | None) -> Array:
        step = step if past is None else step._replace(history=past)
        state = aggregates.whole(aggregate, x)
        return jnp.ravel(model.observation(state, step).sample(key))

    def move(carry: tuple, at: tuple) -> tuple[tuple, tuple[Array, Array]]:
        x, past = carry
        step, k1, k2 = at
        known = step if past is None else step._replace(history=past)
        drawn = model.transition(x, known).sample(k1)
        x = jax.tree.map(lambda new, old: new.astype(old.dtype), drawn, x)
        y = observe(x, step, k2, past)
        return (x, _remember(past, y)), (x, y)

    past = None
    if lags:
        past = jnp.full((lags, series.channels.shape[1]), jnp.nan, series.y.dtype)
    y0 = observe(first, at(steps, 0), keys[1], past)
    later = jax.tree.map(lambda x: x[1:], steps)
    begin = (first, _remember(past, y0))
    _, (states, y) = jax.lax.scan(move, begin, (later, keys[2::2], keys[3::2]))
    joined = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), first, states)
    return aggregates.whole(aggregate, joined), jnp.concatenate([y0[None], y])


def _remember(past: Array | None, y: Array) -> Array | None:
    """The last observations with one more, newest first."""
    return None if past is None else jnp.concatenate([y[None].astype(past.dtype), past[:-1]])
