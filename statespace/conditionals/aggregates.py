"""States of a model that are made of several states of its chain: to and fro between the two.

``aggregate[j]`` is the state of the model that state j of the chain is a part of; None where they are the
same.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

Aggregate = tuple[int, ...] | None


def count(aggregate: Aggregate, parts: int) -> int:
    """Number of states of the model, of the number of states of its chain."""
    return parts if aggregate is None else max(aggregate) + 1


def expand(aggregate: Aggregate, values: Float[Array, "T K"]) -> Float[Array, "T J"]:
    """What is said of a state, said of each of its parts."""
    return values if aggregate is None else values[:, np.asarray(aggregate)]


def fold(aggregate: Aggregate, probs: Float[Array, "*T J"]) -> Float[Array, "*T K"]:
    """Probabilities of states, the sums over their parts."""
    return probs if aggregate is None else probs @ _members(aggregate, probs)


def fold_pairs(aggregate: Aggregate, probs: Float[Array, "*T J J"]) -> Float[Array, "*T K K"]:
    """Probabilities of pairs of states."""
    if aggregate is None:
        return probs
    members = _members(aggregate, probs)
    return members.T @ probs @ members


def whole(aggregate: Aggregate, parts: Int[Array, "*T"]) -> Int[Array, "*T"]:
    """The states of the model of which these are parts."""
    return parts if aggregate is None else jnp.asarray(aggregate)[parts]


def entrance(aggregate: Aggregate, state: Int[Array, ""]) -> Int[Array, ""]:
    """The first part of a state."""
    return state if aggregate is None else jnp.argmax(jnp.asarray(aggregate) == state)


def _members(aggregate: tuple[int, ...], like: Array) -> Float[Array, "J K"]:
    """One where a part belongs to a state."""
    return jnp.eye(max(aggregate) + 1, dtype=like.dtype)[np.asarray(aggregate)]
