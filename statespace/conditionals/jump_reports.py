"""What a generator says of the process: where it stays, how long it takes, which way it turns.

The linear systems are solved by eliminating states one after the other, without a subtraction (Grassmann,
Taksar & Heyman 1985): every entry of a result has nearly full relative accuracy, rare states included, and
what takes for ever comes out infinite. All but :func:`relaxation_times` can be mapped by `vmap`, over
posterior draws for example, and differentiated.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from statespace.conditionals.generators import generator_of


@jax.jit
def stationary_law(generator: Float[Array, "K K"]) -> Float[Array, " K"]:
    """``p`` with ``p Q = 0``, summing to one.

    Where one closed class of states can be reached from everywhere, it is the law far in the future from any
    start; where there are several, one of many.
    """
    states = generator.shape[0]
    rates = jnp.where(jnp.eye(states, dtype=bool), 0, generator)
    least = jnp.sqrt(jnp.finfo(rates.dtype).tiny) * jnp.maximum(jnp.max(rates), 1e-30)
    below = jnp.arange(states)

    def eliminate(rates: Array, n: Array) -> tuple[Array, Array]:
        """Watch the chain only while it is below n; the column says how often n is visited meanwhile."""
        inside = below < n
        leaving = jnp.maximum(jnp.sum(jnp.where(inside, rates[n], 0)), least)
        visits = jnp.where(inside, rates[:, n], 0) / leaving
        rates = rates + visits[:, None] * jnp.where(inside, rates[n], 0)
        return rates, visits

    order = jnp.arange(states - 1, 0, -1)
    _, visits = jax.lax.scan(eliminate, rates, order)

    def add(law: Array, at: tuple[Array, Array]) -> tuple[Array, None]:
        n, visits = at
        law = law.at[n].set(law @ visits)
        return law / jnp.sum(law), None

    first = jnp.zeros(states, rates.dtype).at[0].set(1)
    return jax.lax.scan(add, first, (order[::-1], visits[::-1]))[0]


@jax.jit
def until_absorbed(
    generator: Float[Array, "K K"], inside: Bool[Array, " K"], earned: Float[Array, " K"]
) -> Float[Array, " K"]:
    """What is earned on the way until the process leaves a set of states, by where it starts.

    Solves ``sum_j Q_ij x_j = -earned_i`` inside, with x = 0 outside.

    Args:
        generator: ``Q``.
        inside: the states of the set.
        earned: not negative, per unit of time in each state: 1 for the time that it takes; the rate of
            jumping to a target for the probability that the target is where it goes.

    Returns:
        Infinite where the process may stay for ever while it earns; zero outside.
    """
    states = generator.shape[0]
    rates = jnp.where(jnp.eye(states, dtype=bool), 0, generator)
    rates = jnp.where(inside[:, None], rates, 0)
    earned = jnp.where(inside, earned, 0)
    below = jnp.arange(states)

    def eliminate(carry: tuple[Array, Array], n: Array) -> tuple[tuple[Array, Array], Any]:
        rates, earned = carry
        open_to = (below < n) | ~inside
        row = jnp.where(open_to, rates[n], 0)
        leaving = jnp.sum(row)
        visits = jnp.where(below < n, _over(rates[:, n], leaving), 0)
        rates = rates + _times(visits[:, None], row)
        earned = earned + _times(visits, earned[n])
        return (rates, earned), (jnp.where(inside, row, 0), leaving, earned[n])

    order = jnp.arange(states - 1, -1, -1)
    _, (rows, leaving, here) = jax.lax.scan(eliminate, (rates, earned), order)

    def substitute(found: Array, at: tuple) -> tuple[Array, None]:
        n, row, leaving, here = at
        value = _over(here + jnp.sum(_times(row, found)), leaving)
        return found.at[n].set(value), None

    start = jnp.zeros(states, rates.dtype)
    steps = (order[::-1], rows[::-1], leaving[::-1], here[::-1])
    return jax.lax.scan(substitute, start, steps)[0]


def _over(a: Array, b: Array) -> Array:
    """``a / b`` for numbers that are not negative, where nothing over nothing is nothing."""
    some = a > 0
    safe = jnp.where(b > 0, b, 1)
    return jnp.where(some, jnp.where(b > 0, a / safe, jnp.inf), 0)


def _times(a: Array, b: Array) -> Array:
    """``a b`` for numbers that are not negative, where nothing times infinity is nothing."""
    some = (a > 0) & (b > 0)
    return jnp.where(some, jnp.where(some, a, 1) * jnp.where(some, b, 1), 0)


@jax.jit
def mean_first_passage_times(generator: Float[Array, "K K"]) -> Float[Array, "K K"]:
    """Expected time until state j (column) is first entered from state i (row); zero on the diagonal."""
    one = jnp.ones(generator.shape[0], generator.dtype)
    to = lambda target: until_absorbed(generator, ~target, one)
    return jax.vmap(to)(jnp.eye(generator.shape[0], dtype=bool)).T


@jax.jit
def mean_first_passage_time(
    generator: Float[Array, "K K"], target: Bool[Array, " K"]
) -> Float[Array, " K"]:
    """Expected time until a set of states is first entered, by the state at the beginning."""
    return until_absorbed(generator, ~target, jnp.ones(generator.shape[0], generator.dtype))


@jax.jit
def committor(
    generator: Float[Array, "K K"], source: Bool[Array, " K"], target: Bool[Array, " K"]
) -> Float[Array, " K"]:
    """Probability of entering the target before the source: 0 in the source, 1 in the target.

    Its increments along jumps, times the stationary flow, are the ways of going from the one to the other
    (Metzner, Schütte & Vanden-Eijnden 2009, definition 2.2).
    """
    entering = jnp.sum(jnp.where(target, generator, 0), axis=1)
    return jnp.where(target, 1, until_absorbed(generator, ~source & ~target, entering))


def holding_times(generator: Float[Array, "K K"]) -> Float[Array, " K"]:
    """Expected time that a visit to each state lasts; infinite for a state that is never left."""
    return _over(jnp.ones(generator.shape[0], generator.dtype), -jnp.diagonal(generator))


def embedded_chain(generator: Float[Array, "K K"]) -> Float[Array, "K K"]:
    """Where the next jump goes, ``q_ij / sum_k q_ik``; a state that is never left follows itself."""
    leaving = -jnp.diagonal(generator)[:, None]
    eye = jnp.eye(generator.shape[0], dtype=generator.dtype)
    off = jnp.where(eye > 0, 0, generator) / jnp.where(leaving > 0, leaving, 1)
    return jnp.where(leaving > 0, off, eye)


def flows(generator: Float[Array, "K K"]) -> Float[Array, "K K"]:
    """Jumps from each state to each other one per unit of time, in the stationary process."""
    return jnp.maximum(stationary_law(generator)[:, None] * generator, 0)


@jax.jit
def entropy_production(generator: Float[Array, "K K"]) -> Float[Array, ""]:
    """Per unit of time, in nats: ``1/2 sum_ij (f_ij - f_ji) log(f_ij / f_ji)`` of the stationary flows ``f``.

    Zero if and only if the process looks the same run backwards; infinite where a jump has no reverse
    (Schnakenberg 1976, equation 7.6).
    """
    f = flows(generator)
    both, one = (f > 0) & (f.T > 0), (f > 0) != (f.T > 0)
    ratio = jnp.where(both, f, 1) / jnp.where(both, f.T, 1)
    total = jnp.sum(jnp.where(both, (f - f.T) * jnp.log(ratio), 0)) / 2
    return jnp.where(jnp.any(one), jnp.inf, total)


def relaxation_times(generator: Any) -> Float[np.ndarray, "*b k"]:
    """Times ``1 / |Re l|`` in which departures from the stationary law decay, the longest first.

    One for each eigenvalue ``l`` of ``Q`` but a zero one; infinite where zero is a multiple eigenvalue,
    because then the process has no unique stationary law.

    Args:
        generator: shape ``(..., K, K)``, known values.
    """
    generator = np.asarray(generator)
    speed = np.sort(-np.linalg.eigvals(generator.astype(float)).real, axis=-1)[..., 1:]
    rounding = 1e2 * np.finfo(float).eps * np.abs(generator).max(axis=(-2, -1))[..., None]
    return np.where(speed > rounding, 1 / np.where(speed > rounding, speed, 1.0), np.inf)


def closed_classes(rates: Any) -> list[tuple[int, ...]]:
    """The sets of states that are never left once entered and hold no smaller such set; known values."""
    from scipy.sparse.csgraph import connected_components

    links = np.asarray(generator_of(jnp.asarray(rates))) > 0
    count, member = connected_components(links, connection="strong")
    leaves = {member[i] for i, j in np.argwhere(links) if member[i] != member[j]}
    closed = [tuple(np.flatnonzero(member == c).tolist()) for c in range(count) if c not in leaves]
    return sorted(closed)
