"""Expectations of additive functionals while a filter runs: PaRIS (Olsson & Westerborn 2017, algorithm 2).

Each particle carries a statistic, an estimate of ``E[h(x_{0:t}) | x_t = particle, y_{0:t}]``. That of a new
particle is the mean of the statistics of a few particles, drawn by the backward kernel, from which it may
have come. Drawn twice or more the statistics stay mixed; with one draw they degenerate as the genealogy does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from statespace.chains.particle.backward import Backward
from statespace.chains.particle.recursion import take
from statespace.chains.particle.types import Chain, Cloud, Observer, Particles, Passage


class Sums(NamedTuple):
    """An additive functional of whole clouds.

    Attributes:
        later: ``(previous, particles, moment) ->`` arrays with the particles' axis first.
        first: ``(particles, moment) ->`` the same of the first moment; None for zero.
    """

    later: Callable[..., Any]
    first: Callable[..., Any] | None = None


def start(sums: Sums, cloud: Cloud, moment: Any) -> Any:
    """The statistics at the first moment, in the types that they keep."""
    shapes = jax.eval_shape(sums.later, cloud.particles, cloud.particles, moment)
    if sums.first is None:
        return jax.tree.map(lambda like: jnp.zeros(like.shape, like.dtype), shapes)
    first = sums.first(cloud.particles, moment)
    return jax.tree.map(lambda x, like: x.astype(jnp.result_type(x, like)), first, shapes)


def update(
    sums: Sums,
    statistics: Any,
    before: Particles,
    after: Particles,
    numbers: Int[Array, "N draws"],
    moment: Any,
) -> Any:
    """The statistics of new particles, from those of the particles they may have come from.

    Args:
        sums: the functional.
        statistics: of the previous particles.
        before: the previous particles.
        after: the new ones.
        numbers: of each new particle the numbers of previous ones, from the backward kernel.
        moment: the new moment's row.
    """

    def one(numbers: Int[Array, " N"]) -> Any:
        added = sums.later(take(before, numbers), after, moment)
        return jax.tree.map(lambda s, a: s + a.astype(s.dtype), take(statistics, numbers), added)

    every = jax.vmap(one, in_axes=1)(numbers)
    return jax.tree.map(lambda x: jnp.mean(x, axis=0), every)


def estimate(cloud: Cloud, statistics: Any) -> Any:
    """``E[h(x_{0:t}) | y_{0:t}]``: the statistics' weighted mean."""
    weights = jnp.exp(cloud.log_weights)
    return jax.tree.map(lambda x: jnp.tensordot(weights.astype(x.dtype), x, 1), statistics)


def paris(chain: Chain, sums: Sums, kernel: Backward, draws: int = 2) -> Observer:
    """An observer whose state are the statistics: O(N) memory, however long the recording.

    It gives out the estimate of each moment.

    Args:
        chain: that the filter runs.
        sums: the functional.
        kernel: the backward kernel.
        draws: how many for each particle and moment.
    """

    def first(random: Any, cloud: Cloud, moment: Any) -> tuple[Any, Any]:
        statistics = start(sums, cloud, moment)
        return statistics, estimate(cloud, statistics)

    def later(statistics: Any, passage: Passage) -> tuple[Any, Any]:
        random, before, ancestors, after, moment = passage
        numbers = kernel(random, chain, moment, before, after.particles, ancestors, draws)
        new = update(sums, statistics, before.particles, after.particles, numbers, moment)
        return new, estimate(after, new)

    return Observer(first, later)


class Genealogy(NamedTuple):
    """All clouds of a run, and from where backward draws say that their particles came.

    Attributes:
        clouds: with a leading axis of T.
        numbers: of each particle the numbers of particles of the moment before; those of the first moment
            mean nothing.
    """

    clouds: Cloud
    numbers: Int[Array, "T N draws"]


def recorder(chain: Chain, kernel: Backward, draws: int = 2) -> Observer:
    """An observer that gives out what PaRIS draws, a :class:`Genealogy`: O(N T) memory."""

    def first(random: Any, cloud: Cloud, moment: Any) -> tuple[None, Genealogy]:
        own = jnp.arange(len(cloud.log_weights), dtype=jnp.int32)
        return None, Genealogy(cloud, jnp.broadcast_to(own[:, None], (len(own), draws)))

    def later(state: None, passage: Passage) -> tuple[None, Genealogy]:
        random, before, ancestors, after, moment = passage
        numbers = kernel(random, chain, moment, before, after.particles, ancestors, draws)
        return None, Genealogy(after, numbers)

    return Observer(first, later)


def smoothing_weights(genealogy: Genealogy) -> Float[Array, "T N"]:
    """The weights of all particles given all observations, by one pass backwards.

    The weight of a particle is shared equally among those it may have come from. The estimate of any additive
    functional by these, and by :func:`pair_weights`, is the one that :func:`paris` gives on the way.
    """
    last = jnp.exp(genealogy.clouds.log_weights[-1])

    def back(weights: Array, numbers: Array) -> tuple[Array, Array]:
        shared = jnp.broadcast_to(weights[:, None], numbers.shape) / numbers.shape[1]
        earlier = jnp.zeros_like(weights).at[numbers].add(shared)
        return earlier, earlier

    _, earlier = jax.lax.scan(back, last, genealogy.numbers[1:], reverse=True)
    return jnp.concatenate([earlier, last[None]])


def pair_weights(genealogy: Genealogy) -> Float[Array, "pairs N draws"]:
    """The weight of each pair ``(numbers[t, i, j], i)`` of moments t - 1 and t given all observations."""
    weights, draws = smoothing_weights(genealogy), genealogy.numbers.shape[2]
    return jnp.broadcast_to(weights[1:, :, None] / draws, genealogy.numbers[1:].shape)


def trace(
    clouds: Cloud, numbers: Int[Array, "T N"], last: Int[Array, "*batch"]
) -> tuple[Particles, Int[Array, "T *batch"]]:
    """Paths back through time from particles of the last moment, and the numbers of the particles on them."""

    def back(number: Array, numbers: Array) -> tuple[Array, Array]:
        return numbers[number], number

    first, rest = jax.lax.scan(back, last, numbers[1:], reverse=True)
    chosen = jnp.concatenate([first[None], rest])
    path = jax.tree.map(lambda x: jax.vmap(lambda x, n: x[n])(x, chosen), clouds.particles)
    return path, chosen
