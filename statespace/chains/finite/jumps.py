"""What a jump process does between two moments, drawn given the states at both of them."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.special import gammaln, xlogy
from jaxtyping import Array, Float, Int, PRNGKeyArray

from statespace.chains.finite.sampling import choose
from statespace.conditionals.generators import JumpStatistics


class Between(NamedTuple):
    """Statistics of paths drawn between given ends.

    Attributes:
        statistics: time in each state and number of jumps, summed over the intervals.
        missed: bound on the probability that an interval has more jumps of the uniformised chain than
            there was room for.
    """

    statistics: JumpStatistics
    missed: Float[Array, ""]


def sample_between(
    generator: Float[Array, "K K"],
    intervals: Float[Array, " n"],
    first: Int[Array, " n"],
    last: Int[Array, " n"],
    key: PRNGKeyArray,
    room: int,
) -> Between:
    """Draw the paths over intervals from their law given both ends.

    By uniformisation: the number of jumps of the chain ``B = I + Q / w``, some of which stay where they are,
    is Poisson(w dt) weighted by the probability of arriving; the states are drawn one after the other towards
    the known end, and the moments of the jumps are uniform (Fearnhead & Sherlock 2006, section 2.2; Hobolth &
    Stone 2009).

    Args:
        generator: ``Q``.
        intervals: their lengths, not negative.
        first: state at the beginning of each.
        last: state at its end, which can be reached.
        key: source of randomness.
        room: jumps of the uniformised chain in one interval for which there is room.
    """
    first, last = first.astype(jnp.int32), last.astype(jnp.int32)
    states, dtype, count = len(generator), generator.dtype, len(intervals)
    fastest = jnp.max(-jnp.diagonal(generator))
    fastest = jnp.where(fastest > 0, fastest, 1)
    eye = jnp.eye(states, dtype=dtype)
    # where rounding makes a state that is always left stay with probability -1e-17
    step = jnp.maximum(eye + generator / fastest, 0)
    powers = jax.lax.scan(lambda p, _: (p @ step, p @ step), eye, None, length=room)[1]
    arriving = jnp.swapaxes(jnp.concatenate([eye[None], powers]), 1, 2)  # n jumps, to, from

    key_number, key_path, key_times = jax.random.split(key, 3)
    jumps = jnp.arange(room + 1, dtype=dtype)
    mean = (fastest * intervals)[:, None]
    law = jnp.exp(xlogy(jumps, mean) - mean - gammaln(jumps + 1)) * arriving[:, last, first].T
    number = choose(law, jax.random.uniform(key_number, (count,), dtype))
    total = jnp.sum(law, axis=1)
    missed = jnp.max(_tail(mean[:, 0], room) / jnp.where(total > 0, total, 1), initial=0.0)

    # spacings of uniform moments are exponentials over their sum
    spacings = jax.random.exponential(key_times, (room + 1, count), dtype)
    spacings = jnp.where(jnp.arange(room + 1)[:, None] <= number, spacings, 0)
    spacings = spacings * (intervals / jnp.sum(spacings, axis=0))
    uniforms = jax.random.uniform(key_path, (room, count), dtype)

    def move(carry: tuple, at: tuple) -> tuple[tuple, None]:
        here, dwell, moved = carry
        k, lasts, u = at
        left = jnp.maximum(number - k, 0)
        there = choose(step[here] * arriving[left, last], u)
        there = jnp.where(k <= number, there, here)
        hot = jax.nn.one_hot(here, states, dtype=dtype)
        dwell = dwell + lasts @ hot
        moved = moved + hot.T @ jax.nn.one_hot(there, states, dtype=dtype)
        return (there, dwell, moved), None

    start = (first, jnp.zeros(states, dtype), jnp.zeros((states, states), dtype))
    steps = (jnp.arange(1, room + 1), spacings[:-1], uniforms)
    (here, dwell, moved), _ = jax.lax.scan(move, start, steps)
    dwell = dwell + spacings[-1] @ jax.nn.one_hot(here, states, dtype=dtype)
    return Between(JumpStatistics(dwell, jnp.where(eye > 0, 0, moved)), missed)


def _tail(mean: Float[Array, " n"], room: int) -> Float[Array, " n"]:
    """Bound on the probability of a Poisson variable beyond ``room``, by a geometric series."""
    following = room + 1.0
    first = jnp.exp(xlogy(following, mean) - mean - gammaln(following + 1))
    ratio = mean / (following + 1)
    return jnp.where(ratio < 1, first / jnp.where(ratio < 1, 1 - ratio, 1), 1)
