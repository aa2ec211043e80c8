"""What learners ask of a chain: the log likelihood of a recording or of a panel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from statespace.chains import gaussian
from statespace.chains.gaussian.algebra import UNROLLED
from statespace.methods.kalman import Kalman, initial_law
from statespace.methods.lowering import at, steps_of
from statespace.scores import whiten
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
        complete=panel.complete,
        dt=panel.dt,
        labels=None,
    )


def smooth_recordings(function: Callable[..., Any], model: Any, *args: Any) -> Any:
    """``function`` of each recording of stacked ones: all at once where states are few, else in turn on CPU.

    A smoother of many states calls LAPACK in branches that `vmap` would all take, and that can wait for each
    other: see :func:`statespace.chains.gaussian.covariances.factorise_moments`.
    """
    first = jax.tree.map(lambda x: x[0], args[0])
    states = initial_law(model, at(steps_of(first)[0], 0)).mean.shape[0]
    if states <= UNROLLED or jax.default_backend() != "cpu":
        return jax.vmap(function)(*args)
    return jax.lax.map(lambda one: function(*one), args)


def log_likelihood(model: Any, data: Series | Panel, method: Kalman) -> Float[Array, ""]:
    """Log likelihood of a recording, or of all recordings of a panel."""
    if isinstance(data, Panel):
        return jnp.sum(jax.vmap(lambda s: log_likelihood(model, s, method))(stacked(data)))
    chain, how = method.lower(model, data)
    return gaussian.log_likelihood(chain, **how)


def pointwise(model: Any, data: Series | Panel, method: Kalman) -> Float[Array, "..."]:
    """Log predictive density of each moment, shape ``(T,)`` or ``(S, T)``."""
    if isinstance(data, Panel):
        return jax.vmap(lambda s: pointwise(model, s, method))(stacked(data))
    chain, how = method.lower(model, data)
    return gaussian.pointwise(chain, **how)


@eqx.filter_jit
def standardised_errors(model: Any, data: Series | Panel, method: Kalman) -> Float[Array, "..."]:
    """One-step prediction errors, whitened, shape ``(T, m)`` or ``(S, T, m)``; NaN where missing."""
    if isinstance(data, Panel):
        return jax.vmap(lambda s: standardised_errors(model, s, method))(stacked(data))
    chain, how = method.lower(model, data)
    run = gaussian.filter(chain, **how)
    return whiten(data.channels - run.observation_mean, run.observation_covariance)[0]
