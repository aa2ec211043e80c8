"""What learners ask of a method: the log likelihood of a recording or of a panel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from statespace.methods.choice import is_random
from statespace.methods.lowering import steps_of
from statespace.model import Step
from statespace.series import Panel, Series, as_data, assemble


def bare(data: Any) -> Series | Panel:
    """Data without labels, so that a program compiled for it serves any dates."""
    return as_data(data).drop_labels()


def stacked(panel: Panel) -> Series:
    """A panel as one Series with a leading axis on every array, to be mapped over by `vmap`."""
    return assemble(
        Series,
        y=panel.y,
        times=panel.times,
        inputs=panel.inputs,
        intervals=panel.intervals,
        state_weights=panel.state_weights,
        complete=panel.complete,
        dt=panel.dt,
        labels=None,
    )


def recordings(data: Series | Panel) -> tuple[Series, Bool[Array, "S T"]]:
    """All recordings with a leading axis, and which of their moments are not padding."""
    if isinstance(data, Panel):
        within = jnp.arange(data.y.shape[1]) < jnp.asarray(data.lengths)[:, None]
        return stacked(data), within
    return jax.tree.map(lambda a: a[None], data), jnp.ones((1, len(data)), bool)


def channels(data: Series | Panel) -> Float[Array, "S T m"]:
    """The observations of all recordings, with a leading axis."""
    return data.channels if isinstance(data, Panel) else data.channels[None]


def steps(data: Series | Panel) -> Step:
    """The steps of all recordings, shape ``(S, T, ...)``."""
    if isinstance(data, Panel):
        return jax.vmap(lambda s: steps_of(s)[0])(stacked(data))
    return jax.tree.map(lambda a: a[None], steps_of(data)[0])


def each_recording(function: Callable[..., Any], model: Any, method: Any, *args: Any) -> Any:
    """``function`` of each recording of stacked ones: all at once, or in turn if the method asks for it."""
    if method.recordings_at_once(model, jax.tree.map(lambda x: x[0], args[0])):
        return jax.vmap(function)(*args)
    return jax.lax.map(lambda one: function(*one), args)


def keys_of(method: Any, count: int) -> Any:
    """A key for each of several recordings, split from a random method's own; of any other None."""
    return jax.random.split(method.key, count) if is_random(method) else None


def keyed(method: Any, key: Any) -> Any:
    """The method for the recording of this key."""
    return method if key is None else method.with_key(key)


def log_likelihood(model: Any, data: Series | Panel, method: Any) -> Float[Array, ""]:
    """Log likelihood of a recording, or of all recordings of a panel."""
    if isinstance(data, Panel):
        one = lambda s, k: keyed(method, k).log_likelihood(model, s)
        return jnp.sum(jax.vmap(one)(stacked(data), keys_of(method, len(data))))
    return method.log_likelihood(model, data)


def pointwise(model: Any, data: Series | Panel, method: Any) -> Float[Array, "..."]:
    """Log predictive density of each moment, shape ``(T,)`` or ``(S, T)``."""
    if isinstance(data, Panel):
        one = lambda s, k: keyed(method, k).pointwise(model, s)
        return jax.vmap(one)(stacked(data), keys_of(method, len(data)))
    return method.pointwise(model, data)


@eqx.filter_jit
def standardised_errors(model: Any, data: Series | Panel, method: Any) -> Float[Array, "..."]:
    """One-step prediction errors, made standard normal, ``(T, m)`` or ``(S, T, m)``; NaN where missing."""
    if isinstance(data, Panel):
        one = lambda s, k: keyed(method, k).standardised_errors(model, s)
        return jax.vmap(one)(stacked(data), keys_of(method, len(data)))
    return method.standardised_errors(model, data)
