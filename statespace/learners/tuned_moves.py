"""Hamiltonian moves of the parameters inside a Gibbs sampler, tuned in the warm-up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray


class Settings(NamedTuple):
    """What the compiled sampler depends on.

    Attributes:
        warmup: moves that tune.
        steps: leapfrog steps of each.
        target_accept: acceptance rate that the step size is tuned to.
    """

    warmup: int
    steps: int
    target_accept: float


class Draw(NamedTuple):
    """One draw and what is known of how it came about; the names are those of ArviZ' sample statistics."""

    z: Array
    lp: Array
    acceptance_rate: Array
    diverging: Array
    step_size: Array


class Tuned(NamedTuple):
    """Parameters under way.

    Attributes:
        z: the unconstrained parameters.
        scale: variance of each, as far as the warm-up has found.
        tuning: of the step size.
        mean: of the draws of the warm-up that ``scale`` is being learned from.
        square: sum of their squared deviations.
        index: moves made.
        last: what is known of the last move.
    """

    z: Float[Array, " p"]
    scale: Float[Array, " p"]
    tuning: Any
    mean: Float[Array, " p"]
    square: Float[Array, " p"]
    index: Int[Array, ""]  # type: ignore[assignment]  # not the method of tuples
    last: Draw


def _tuner(settings: Settings) -> Any:
    from blackjax.adaptation.step_size import dual_averaging_adaptation

    return dual_averaging_adaptation(settings.target_accept)


def begin(z: Float[Array, " p"], settings: Settings) -> Tuned:
    """Before the first move."""
    zero = jnp.zeros((), z.dtype)
    last = Draw(z, zero, zero, jnp.zeros((), bool), zero)
    tuning = _tuner(settings)[0](jnp.asarray(0.1, z.dtype))
    scale, nothing = jnp.ones_like(z), jnp.zeros_like(z)
    return Tuned(z, scale, tuning, nothing, nothing, jnp.asarray(0), last)


def move(
    key: PRNGKeyArray, density: Callable[[Array], Array], state: Tuned, settings: Settings
) -> Tuned:
    """One Hamiltonian move that leaves the law with this log density as it is."""
    from blackjax.mcmc import hmc

    key_move, key_jitter = jax.random.split(key)
    _, update, final = _tuner(settings)
    tuned = state.index >= settings.warmup
    size = jnp.where(tuned, final(state.tuning), jnp.exp(state.tuning.log_step_size))
    # A random length of the trajectory keeps it from returning to where it began.
    jittered = size * jax.random.uniform(key_jitter, minval=0.8, maxval=1.2, dtype=state.z.dtype)
    before = hmc.init(state.z, density)
    after, known = hmc.build_kernel()(
        key_move, before, density, jittered, state.scale, settings.steps
    )
    z = after.position
    last = Draw(z, after.logdensity, known.acceptance_rate, known.is_divergent, size)

    # The scales are those of the second quarter of the warm-up; the step size is then tuned anew.
    half = settings.warmup // 2
    learning = (state.index >= half // 2) & (state.index < half)
    seen = jnp.where(learning, state.index - half // 2 + 1, 1).astype(z.dtype)
    mean = jnp.where(learning, state.mean + (z - state.mean) / seen, state.mean)
    square = jnp.where(learning, state.square + (z - state.mean) * (z - mean), state.square)
    switch = state.index == half - 1
    learned = half - half // 2
    variance = (square + 1e-3 * 5) / (learned + 5)  # as Stan: towards 1e-3 while draws are few
    tuning = update(state.tuning, known.acceptance_rate)
    again = _tuner(settings)[0](jnp.asarray(0.5, z.dtype))
    keep = lambda new, old: jnp.where(tuned, old, jnp.where(switch, new, old))
    tuning = jax.tree.map(lambda t, old: jnp.where(tuned, old, t), tuning, state.tuning)
    tuning = jax.tree.map(lambda a, t: keep(jnp.asarray(a, jnp.result_type(t)), t), again, tuning)
    return Tuned(z, keep(variance, state.scale), tuning, mean, square, state.index + 1, last)
