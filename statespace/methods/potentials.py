"""What observations say of a finite state: log densities at every state, missing entries integrated out."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

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


def lagged(y: Float[Array, "T m"], lags: int) -> Float[Array, "T p m"]:
    """The p rows before each row, newest first; NaN before the beginning."""
    past = [
        jnp.pad(y, ((j, 0), (0, 0)), constant_values=jnp.nan)[: len(y)] for j in range(1, lags + 1)
    ]
    return jnp.stack(past, axis=1)


def log_density(law: Any, y: Float[Array, " m"]) -> Float[Array, ""]:
    """Log density of one observation under a NumPyro distribution; NaN entries are integrated out."""
    import numpyro.distributions as dist

    seen = ~jnp.isnan(y)
    base = law
    while isinstance(base, dist.Independent):
        base = base.base_dist
    if base.event_shape == () or reads_nan(base):
        return jnp.sum(log_densities(base, y))
    if isinstance(base, dist.MultivariateNormal):
        both = seen[:, None] & seen[None, :]
        covariance = jnp.where(both, base.covariance_matrix, jnp.eye(len(y), dtype=y.dtype))
        error = jnp.where(seen, y - base.loc, 0.0)
        spare = 0.5 * jnp.log(2 * jnp.pi) * jnp.sum(~seen)
        return dist.MultivariateNormal(jnp.zeros_like(y), covariance).log_prob(error) + spare
    return jnp.where(jnp.all(seen), base.log_prob(_possible(base, y, seen)), 0.0)


def log_densities(law: Any, y: Float[Array, " m"]) -> Float[Array, " m"]:
    """Log density of each of several independent channels; 0 where an entry is NaN.

    A law that reads NaN itself may have channels of several entries.
    """
    import numpyro.distributions as dist

    seen = ~jnp.isnan(y)
    while isinstance(law, dist.Independent):
        law = law.base_dist
    if reads_nan(law):
        return jnp.atleast_1d(law.log_prob(y.reshape(shape_of(law))))
    possible = _possible(law, y, seen)
    return jnp.where(seen, law.log_prob(possible if law.batch_shape else possible[0]), 0.0)


def reads_nan(law: Any) -> bool:
    """Whether NaN has a meaning for a law besides a missing channel, as a bound that is not known."""
    while hasattr(law, "base_dist"):
        law = law.base_dist
    return getattr(law, "reads_nan", False)


def _possible(law: Any, y: Array, seen: Bool[Array, " m"]) -> Array:
    """The observation with missing entries filled by possible ones, whose density is then left out."""
    y = jnp.where(seen, y, law.support.feasible_like(y))
    return y.astype(int) if law.support.is_discrete else y


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
    m = data.channels.shape[-1]
    y = np.asarray(data.y).reshape(-1, m)
    if hasattr(observation, "check"):
        observation.check(y)
        return
    if getattr(observation, "lags", 0):
        step = step._replace(history=jnp.full((observation.lags, m), jnp.nan, data.y.dtype))
    check_law(observation(state, step), y)
    missing = np.isnan(y)
    partly = missing.any(axis=1) & ~missing.all(axis=1)
    if partly.any() and not marginal(observation(state, step)):
        raise ValueError(
            f"the moment in row {np.flatnonzero(partly)[0]} is missing in part, and "
            f"{type(observation(state, step)).__name__} is not known to have marginals: set the whole row to "
            "NaN, or use independent channels or a MultivariateNormal."
        )


def shape_of(law: Any) -> tuple[int, ...]:
    """Shape of one value of a distribution."""
    return tuple(law.batch_shape) + tuple(law.event_shape)


def marginal(law: Any) -> bool:
    """Whether single channels of a distribution can be integrated out here."""
    import numpyro.distributions as dist

    while isinstance(law, dist.Independent):
        law = law.base_dist
    return law.event_shape == () or reads_nan(law) or isinstance(law, dist.MultivariateNormal)


def check_law(law: Any, y: np.ndarray) -> None:
    """Refuse rows that are no values of a law.

    Args:
        law: a distribution.
        y: shape ``(T, m)``.

    Raises:
        ValueError: naming both shapes, or the values at fault.
    """
    m, shape = y.shape[1], shape_of(law)
    fits = math.prod(shape) == m if reads_nan(law) else shape == (m,) or (shape == () and m == 1)
    if not fits:
        raise ValueError(
            f"the data have {m} channel{'s' * (m != 1)}, but `observation` of the model gives values of "
            f"shape {shape}."
        )
    while hasattr(law, "base_dist"):
        law = law.base_dist
    if hasattr(law, "check_values"):
        law.check_values(y)


def first_step(data: Series | Panel) -> Step:
    """The step of the first moment of a recording, or of the first of a panel."""
    if isinstance(data, Panel):
        data = data.series[0]
    from statespace.methods.lowering import steps_of

    return at(steps_of(data)[0], 0)
