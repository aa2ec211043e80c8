"""Pseudo-residuals of models with finitely many states: how surprising each observation was."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from statespace.methods.lowering import steps_of
from statespace.methods.potentials import with_history
from statespace.model import Step
from statespace.probabilities import NoResiduals, normal_deviates
from statespace.series import Series


def pseudo_residuals(
    observation: Any, series: Series, predicted: Float[Array, "T K"]
) -> Float[Array, "T m"]:
    """Each observation's one-step predictive probability as a normal deviate: N(0, 1) if the model is right.

    A discrete observation takes the middle of the interval that it stands for, which makes deviates a little
    too narrow. NaN where missing.

    Raises:
        TypeError: if the observation's distribution has no cumulative distribution function.

    References:
        Zucchini & MacDonald (2009), Hidden Markov models for time series, section 6.2.
    """
    steps = with_history(observation, series, steps_of(series)[0])
    y = series.channels
    states = jnp.arange(predicted.shape[1])

    def below(step: Step, y: Array, probs: Array) -> Array:
        each = jax.vmap(lambda k: cumulative(observation(k, step), y))(states)
        return probs @ each

    u = jax.vmap(below)(steps, jnp.where(jnp.isnan(y), 0, y), predicted)
    return normal_deviates(u, y)


def cumulative(law: Any, y: Float[Array, " m"]) -> Float[Array, " m"]:
    """``P(Y <= y)`` of each channel by itself; of a discrete law the middle of ``P(Y < y)`` and that."""
    import numpyro.distributions as dist

    while isinstance(law, dist.Independent):
        law = law.base_dist
    if isinstance(law, dist.MultivariateNormal):
        law = dist.Normal(law.loc, jnp.sqrt(law.variance))
    try:
        if not law.support.is_discrete:
            return jnp.broadcast_to(law.cdf(y), y.shape)
        if hasattr(law, "enumerate_support") and law.has_enumerate_support:
            values = law.enumerate_support(expand=False).reshape(-1)
            probs = jnp.exp(jax.vmap(lambda v: law.log_prob(jnp.full(law.batch_shape, v)))(values))
            probs = probs.reshape(len(values), -1)
            weight = (values[:, None] < y) + 0.5 * (values[:, None] == y)
            return jnp.broadcast_to(jnp.sum(probs * weight, axis=0), y.shape)
        count = y.astype(int)
        return jnp.broadcast_to(0.5 * (law.cdf(count) + law.cdf(count - 1)), y.shape)
    except NotImplementedError as error:
        raise NoResiduals(
            f"{type(law).__name__} has no cumulative distribution function, which residuals need."
        ) from error
