"""Pseudo-residuals from particles: how surprising each observation was."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from statespace.chains.particle.types import Cloud, Observer, Passage
from statespace.methods.particle_lowering import on_clouds, states_of
from statespace.methods.pseudo_residuals import cumulative
from statespace.probabilities import normal_deviates
from statespace.series import Series


def pseudo_residuals(method: Any, model: Any, series: Series) -> Float[Array, "T m"]:
    """Each observation's one-step predictive probability as a normal deviate: N(0, 1) if the model is right.

    The prediction is the cloud of the moment before, moved by the transition whatever the proposal is. A
    discrete observation takes the middle of the interval that it stands for. NaN where missing.

    Raises:
        TypeError: if the observation's distribution has no cumulative distribution function.

    References:
        Zucchini & MacDonald (2009), Hidden Markov models for time series, section 6.2.
    """
    clouds, _ = on_clouds(model, series)

    def below(cloud: Cloud, step: Any, y: Array) -> Array:
        seen = jnp.where(jnp.isnan(y), 0, y)
        law = lambda x: cumulative(model.observation(x, step), seen)
        return jnp.exp(cloud.log_weights) @ jax.vmap(law)(states_of(model, cloud.particles))

    def first(random: Any, cloud: Cloud, moment: Any) -> tuple[None, Array]:
        size = len(cloud.log_weights)
        drawn = clouds.start(random, size, moment)
        even = jnp.full_like(cloud.log_weights, -jnp.log(size))
        return None, below(Cloud(drawn, even), moment.step, moment.y)

    def later(_: None, passage: Passage) -> tuple[None, Array]:
        moment = passage.moment
        moved = clouds.propose(passage.random, passage.before.particles, moment)
        cloud = Cloud(moved, passage.before.log_weights)
        return None, below(cloud, moment.step, moment.y)

    u = method.run(model, series, Observer(first, later)).out
    return normal_deviates(u, series.channels)
