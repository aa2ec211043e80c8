"""How variable a particle filter's estimates are, from the genealogy of a single run.

Particles that come from different ancestors far enough back are nearly independent, so that the spread
between families tells the variance. The theory is for multinomial resampling; with the other schemes, whose
estimates vary less, these are too large.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from statespace.chains.particle.types import Cloud, Observer, Passage, Run


def _of_families(values: Float[Array, " N"], families: Int[Array, " N"]) -> Float[Array, ""]:
    """Sum over families of the squared sum within."""
    sums = jax.ops.segment_sum(values, families, num_segments=len(values))
    return jnp.sum(sums**2)


def _eves_first(random: Any, cloud: Cloud, moment: Any) -> tuple[Array, Array]:
    eves = jnp.arange(len(cloud.log_weights), dtype=jnp.int32)
    return eves, _of_families(jnp.exp(cloud.log_weights), eves)


def _eves_later(eves: Array, passage: Passage) -> tuple[Array, Array]:
    eves = eves[passage.ancestors]
    return eves, _of_families(jnp.exp(passage.after.log_weights), eves)


eves = Observer(_eves_first, _eves_later)
"""Follows each particle's ancestor at the first moment.

Gives out the probability that two particles drawn by their weights have the same one, in memory of order N.
"""


def relative_variance(run: Run) -> Float[Array, " T"]:
    """Estimates of ``var(Z_t) / p(y_{0:t})^2``, about the variance of ``log Z_t``, at each moment.

    Times ``Z_t^2`` it is unbiased for the variance of ``Z_t`` if particles are resampled multinomially at
    every moment (Lee & Whiteley 2018, theorem 1). Where all particles have one ancestor it is 1 and says no
    more than that there are too few particles for so long a series. To have a variance of ``log Z`` of 1, at
    which pseudo-marginal samplers work best, N is to be multiplied by this estimate. It can be negative.

    Args:
        run: of a filter whose observer was :data:`eves`.
    """
    count = len(run.last.log_weights)
    generations = 1 + jnp.cumsum(run.resampled)
    return from_families(1 - run.out, count, generations)


def from_families(apart: Any, count: int, generations: Any) -> Any:
    """The estimate of :func:`relative_variance` at one moment, or an array of them.

    Args:
        apart: probability that two particles drawn by their weights have different first ancestors.
        count: number of particles.
        generations: how often ancestors were drawn, the start included.
    """
    return 1 - (count / (count - 1)) ** generations * apart


def filter_variance(function: Callable[..., Float[Array, " N"]], lag: int) -> Observer:
    """Follows a filtered expectation and the variance of its estimate (Olsson & Douc 2019, equation 16).

    Gives out ``(mean, variance)`` of each moment. Families are those of an ancestor ``lag`` moments back: a
    short lag leaves out what is carried on from before, a long one loses families, and any between 10 and 50
    or so mostly does. Memory of order ``lag N``.

    Args:
        function: ``(particles, moment) -> (N,)``.
        lag: in moments, at least 0.

    Raises:
        ValueError: if ``lag`` is negative.
    """
    if lag < 0:
        raise ValueError(f"lag must be at least 0 moments; got {lag}")

    def report(cloud: Cloud, families: Array, moment: Any) -> tuple[Array, Array]:
        weights, values = jnp.exp(cloud.log_weights), function(cloud.particles, moment)
        mean = jnp.sum(weights * values)
        return mean, _of_families(weights * (values - mean), families)

    def first(random: Any, cloud: Cloud, moment: Any) -> tuple[Array, tuple[Array, Array]]:
        own = jnp.arange(len(cloud.log_weights), dtype=jnp.int32)
        lines = jnp.broadcast_to(own, (lag + 1, len(own)))
        return lines, report(cloud, own, moment)

    def later(lines: Array, passage: Passage) -> tuple[Array, tuple[Array, Array]]:
        # row k: of each particle the number of its ancestor k moments ago, or at the first moment
        own = jnp.arange(lines.shape[1], dtype=jnp.int32)
        lines = jnp.concatenate([own[None], lines[:-1][:, passage.ancestors]])
        return lines, report(passage.after, lines[-1], passage.moment)

    return Observer(first, later)
