"""What observations say of a finite state: log densities at every state, missing entries integrated out."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from statespace.densities import check_law, log_density, marginal
from statespace.emissions.base import lagged
from statespace.methods.gaussian_lowering import require_columns
from statespace.methods.lowering import at
from statespace.model import Step
from statespace.series import Panel, Series


def log_potentials(
    observation: Any, series: Series, steps: Step, states: int
) -> Float[Array, "T K"]:
    """``log p(y_t | state k)``, plus the log plausibility of the state where the recording has any.

    An observation with a method ``log_probs`` gives all of them at once; any other is called at every state
    and moment.
    """
    if hasattr(observation, "log_probs"):
        log_probs = observation.log_probs(series.channels, steps)
    else:
        every = jnp.arange(states)
        one = lambda y, step: jax.vmap(lambda k: log_density(observation(k, step), y))(every)
        log_probs = jax.vmap(one)(series.channels, with_history(observation, series, steps))
    if series.state_weights is None:
        return log_probs
    known = ~jnp.isnan(series.state_weights)
    weights = jnp.where(known, series.state_weights, 1.0)
    positive = weights > 0
    return log_probs + jnp.where(positive, jnp.log(jnp.where(positive, weights, 1.0)), -jnp.inf)


def with_history(observation: Any, series: Series, steps: Step) -> Step:
    """Steps with the last observations, where the observation reads them."""
    lags = getattr(observation, "lags", 0)
    return steps._replace(history=lagged(series.channels, lags)) if lags else steps


def check_observations(
    observation: Any, data: Series | Panel, states: int | None, step: Step, state: Any = 0
) -> None:
    """Refuse data that the observation cannot produce, before anything is traced.

    Args:
        observation: the conditional.
        data: what was recorded.
        states: the number of states, where they are finitely many.
        step: the first one.
        state: one of the states.

    Raises:
        ValueError: naming what is at fault.
    """
    weights = data.state_weights
    if weights is not None and states is not None and weights.shape[-1] != states:
        raise ValueError(
            f"`state_weights` of the data are over {weights.shape[-1]} states, but the model has {states}."
        )
    if isinstance(data.y, jax.core.Tracer):
        return
    if states is None:
        require_columns("observation", observation, state, step)
    m = data.channels.shape[-1]
    y = np.asarray(data.y).reshape(-1, m)
    if hasattr(observation, "check"):
        observation.check(y)
        return
    if getattr(observation, "lags", 0):
        step = step._replace(history=jnp.full((observation.lags, m), jnp.nan, data.y.dtype))
    check_law(observation, {"state": state, "step": step}, y)
    missing = np.isnan(y)
    partly = missing.any(axis=1) & ~missing.all(axis=1)
    if partly.any() and not marginal(observation(state, step)):
        raise ValueError(
            f"the moment in row {np.flatnonzero(partly)[0]} is missing in part, and "
            f"{type(observation(state, step)).__name__} is not known to have marginals: set the whole row to "
            "NaN, or use independent channels or a MultivariateNormal."
        )


def first_step(data: Series | Panel) -> Step:
    """The step of the first moment of a recording, or of the first of a panel."""
    if isinstance(data, Panel):
        data = data.series[0]
    from statespace.methods.lowering import steps_of

    return at(steps_of(data)[0], 0)
