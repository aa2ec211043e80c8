"""All moments of all recordings one after the other, for learners that go through them in one scan."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from statespace.learners import complete_data
from statespace.learners.likelihood import recordings
from statespace.learners.problem import Problem


class Moments(NamedTuple):
    """The moments of S recordings, ``S T`` of them with the padding.

    Attributes:
        step: what conditionals may depend on.
        y: the observations.
        begins: whether it is the first of a recording.
        within: whether it is not padding.
    """

    step: Any
    y: Float[Array, "ST m"]
    begins: Bool[Array, " ST"]
    within: Bool[Array, " ST"]


def in_turn(problem: Problem) -> Moments:
    """The moments of the problem's data."""
    series, within = recordings(problem.data)
    steps, y = jax.vmap(lambda s: complete_data.moments(problem.model, s))(series)
    begins = jnp.broadcast_to(jnp.arange(within.shape[1]) == 0, within.shape)
    flat = lambda a: a.reshape(within.size, *a.shape[2:])
    return Moments(*jax.tree.map(flat, (steps, y, begins, within)))
