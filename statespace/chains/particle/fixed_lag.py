"""Fixed-lag smoothing: each state given the observations up to a few moments after it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from statespace.chains.particle.types import Cloud, Observer, Particles, Passage


def fixed_lag(lag: int) -> Observer:
    """An observer that follows the last ``lag`` ancestors of every particle (Kitagawa 1996): O(lag N) memory.

    Its state is the window: the particles and their ancestors of 1 … lag moments before, newest first. It
    gives out, at each moment t, those of moment t - lag with the weights of moment t; before moment ``lag``
    that means nothing.

    Args:
        lag: how many moments, at least 0.
    """

    def first(random: Any, cloud: Cloud, moment: Any) -> tuple[Particles, Cloud]:
        repeat = lambda x: jnp.broadcast_to(x, (lag + 1, *x.shape))
        window = jax.tree.map(repeat, cloud.particles)
        return window, Cloud(cloud.particles, cloud.log_weights)

    def later(window: Particles, passage: Passage) -> tuple[Particles, Cloud]:
        after = passage.after

        def shift(new: Any, old: Any) -> Any:
            return jnp.concatenate([new[None], old[:lag][:, passage.ancestors]])

        window = jax.tree.map(shift, after.particles, window)
        oldest = jax.tree.map(lambda x: x[lag], window)
        return window, Cloud(oldest, after.log_weights)

    return Observer(first, later)


def smoothed(window: Particles, out: Cloud, lag: int) -> Cloud:
    """The clouds of all moments, from what :func:`fixed_lag` left and gave out.

    The last ``lag`` moments have what comes after them, which is less.
    """
    steps = len(out.log_weights)
    lag = min(lag, steps - 1)

    def join(given: Any, last: Any) -> Any:
        return jnp.concatenate([given[lag:], last[:lag][::-1]])

    weights = jnp.broadcast_to(out.log_weights[-1], (lag + 1, out.log_weights.shape[1]))
    return Cloud(jax.tree.map(join, out.particles, window), join(out.log_weights, weights))
