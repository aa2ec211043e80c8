"""Resampling: from weights to the ancestors of the next cloud.

Every scheme is unbiased: particle j has ``N W_j`` descendants in expectation. What is random comes in as
uniform numbers, so that an algorithm can be checked by going through all of its random choices.

The conditional version of a scheme draws the other ancestors given that particle 0 is the ancestor of slot 0
(Andrieu, Doucet & Holenstein 2010; Chopin & Singh 2015; Karppinen, Singh & Vihola 2023). The law it
conditions is that of the scheme with its slots turned around by a uniform number of places, under which
each slot has ancestor j with probability ``W_j`` (the slots themselves lie on a circle: where a scheme
depends on the order of the particles, the place at which the order begins is uniform as well). A conditional
particle filter whose retained path is always in slot 0 then leaves the law of the path invariant.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

Weights = Float[Array, " N"]
Uniforms = Float[Array, " U"]
Ancestors = Int[Array, " N"]


@dataclasses.dataclass(frozen=True)
class Resampling:
    """One resampling scheme.

    Attributes:
        name: what it is called.
        draw: ``(uniforms, weights) -> ancestors``.
        draw_conditional: the same given that the first is 0.
        uniforms: of N particles, how many uniform numbers ``draw`` takes.
        conditional_uniforms: the same for ``draw_conditional``.
    """

    name: str
    draw: Callable[[Uniforms, Weights], Ancestors]
    draw_conditional: Callable[[Uniforms, Weights], Ancestors]
    uniforms: Callable[[int], int]
    conditional_uniforms: Callable[[int], int]

    def __call__(self, random: Any, log_weights: Float[Array, " N"]) -> Ancestors:
        """Draw N ancestors.

        Args:
            random: a PRNG key, or ``uniforms(N)`` numbers in [0, 1).
            log_weights: logarithms of weights that sum to one.
        """
        numbers = _numbers(random, self.uniforms(len(log_weights)), log_weights.dtype)
        return self.draw(numbers, jnp.exp(log_weights))

    def conditional(self, random: Any, log_weights: Float[Array, " N"]) -> Ancestors:
        """Draw N ancestors given that the first is 0.

        Args:
            random: a PRNG key, or ``conditional_uniforms(N)`` numbers in [0, 1).
            log_weights: logarithms of weights that sum to one.
        """
        numbers = _numbers(random, self.conditional_uniforms(len(log_weights)), log_weights.dtype)
        return self.draw_conditional(numbers, jnp.exp(log_weights)).at[0].set(0)


def is_key(random: Any) -> bool:
    """Whether this is a PRNG key, of the new kind or the old."""
    dtype = getattr(random, "dtype", None)
    if dtype is None:
        return False
    return jnp.issubdtype(dtype, jax.dtypes.prng_key) or dtype == jnp.uint32


def _numbers(random: Any, count: int, dtype: Any) -> Uniforms:
    if is_key(random):
        return jax.random.uniform(random, (count,), dtype)
    return jnp.asarray(random, dtype).reshape(count)


def _cumulative(weights: Weights) -> Weights:
    """Sums of the weights in units of 1 / N: never falling, and N at the end."""
    sums = _running(jnp.add, lambda x: jax.lax.cummax(jnp.cumsum(x)), weights)
    return sums * (len(weights) / sums[-1])


def _running(combine: Callable[..., Array], at_once: Callable[[Array], Array], x: Array) -> Array:
    """All of a row combined up to each entry."""

    def one_by_one(x: Array) -> Array:
        # A compiled loop of one addition: faster than log N passes, and sums to which a weight of zero
        # adds nothing do not differ by their rounding.
        step = lambda whole, part: (combine(whole, part),) * 2
        return jax.lax.scan(step, jnp.zeros((), x.dtype), x)[1]

    return jax.lax.platform_dependent(x, cpu=one_by_one, default=at_once)


def _owners(ends: Int[Array, " N"], possible: Bool[Array, " N"]) -> Ancestors:
    """Of each of N points the particle it belongs to, when ``ends[j]`` points belong to particles 0 … j."""
    count = len(ends)
    starts = jnp.concatenate([jnp.zeros(1, ends.dtype), ends[:-1]])
    starts = jnp.where((ends > starts) & possible, starts, count)  # without a point: dropped
    numbers = jnp.arange(count, dtype=jnp.int32)
    first = jnp.zeros(count, jnp.int32).at[starts].max(numbers, mode="drop")
    return _running(jnp.maximum, jax.lax.cummax, first)


def _sorted(ends: Float[Array, " N"], weights: Weights) -> Ancestors:
    count = len(weights)
    whole = jnp.clip(ends, 0, count).astype(jnp.int32)
    return _owners(whole, weights > 0)


# Systematic (Kitagawa 1996): points at distance 1 of each other, begun at a uniform place


def _systematic(uniforms: Uniforms, weights: Weights) -> Ancestors:
    return _sorted(jnp.ceil(_cumulative(weights) - uniforms[0]), weights)


def _systematic_conditional(uniforms: Uniforms, weights: Weights) -> Ancestors:
    """The first point is uniform within particle 0; those beyond the last particle come back to it."""
    sums = _cumulative(weights)
    ends = jnp.ceil(sums - uniforms[0] * sums[0])
    return _wrapped(_sorted(ends, weights), ends[-1])


def _wrapped(ancestors: Ancestors, end: Array) -> Ancestors:
    return jnp.where(jnp.arange(len(ancestors)) < end, ancestors, 0)


# Stratified (Kitagawa 1996): one uniform point in each stretch of length 1


def _stratified(uniforms: Uniforms, weights: Weights) -> Ancestors:
    return _sorted(_points_below(_cumulative(weights), uniforms), weights)


def _points_below(places: Float[Array, " N"], uniforms: Uniforms) -> Float[Array, " N"]:
    stretch = jnp.clip(jnp.floor(places), 0, len(uniforms) - 1)
    point = stretch + uniforms[stretch.astype(jnp.int32)]
    return stretch + (point < places)


def _stratified_conditional(uniforms: Uniforms, weights: Weights) -> Ancestors:
    """One point is uniform within particle 0, wherever the order of the particles begins."""
    count = len(weights)
    points, (begin, place) = uniforms[:-2], uniforms[-2:]
    begin = jnp.floor(begin * count).astype(jnp.int32)
    weights = jnp.roll(weights, -begin)
    sums = _cumulative(weights)
    zero = -begin % count
    end = sums[zero]
    start = jnp.where(zero == 0, 0, sums[zero - 1])
    place = start + place * (end - start)
    slot = jnp.clip(jnp.floor(place), 0, count - 1).astype(jnp.int32)
    points = points.at[slot].set(place - slot)
    ancestors = _sorted(_points_below(sums, points), weights)
    return jnp.roll((ancestors + begin) % count, -slot)


# Multinomial (Gordon, Salmond & Smith 1993): independent draws


def _multinomial(uniforms: Uniforms, weights: Weights) -> Ancestors:
    return _invert(uniforms * len(weights), weights)


def _invert(places: Float[Array, " U"], weights: Weights) -> Int[Array, " U"]:
    found = jnp.searchsorted(_cumulative(weights), places, side="right")
    return jnp.minimum(found, len(weights) - 1).astype(jnp.int32)


def _multinomial_conditional(uniforms: Uniforms, weights: Weights) -> Ancestors:
    others = _multinomial(uniforms, weights)
    return jnp.concatenate([jnp.zeros(1, jnp.int32), others])


# Residual (Liu & Chen 1998): the whole parts of N W as they are, the rest by independent draws


def _residual(uniforms: Uniforms, weights: Weights) -> Ancestors:
    copies, rest = _parts(weights)
    copies = copies + _drawn(uniforms, rest, len(weights) - jnp.sum(copies), False)
    return _owners(jnp.cumsum(copies, dtype=jnp.int32), copies > 0)


def _drawn(
    uniforms: Uniforms, rest: Float[Array, " N"], draws: Array, forced: Bool[Array, ""] | bool
) -> Int[Array, " N"]:
    """How often each is drawn; ``forced``: the first draw is particle 0."""
    count, total = len(rest), jnp.sum(rest)
    drawn = _invert(uniforms * count, rest / jnp.where(total > 0, total, 1))
    drawn = drawn.at[0].set(jnp.where(forced, 0, drawn[0]))
    counted = (jnp.arange(count) < draws).astype(jnp.int32)
    return jnp.zeros(count, jnp.int32).at[drawn].add(counted)


def _parts(weights: Weights) -> tuple[Int[Array, " N"], Float[Array, " N"]]:
    """The whole parts of the expected numbers of descendants, and what is left of them."""
    expected = weights * (len(weights) / jnp.sum(weights))
    whole = jnp.floor(expected)
    return whole.astype(jnp.int32), expected - whole


def _residual_conditional(uniforms: Uniforms, weights: Weights) -> Ancestors:
    """Slot 0 is one of the whole copies of particle 0, or else one of the independent draws.

    Which one it is decides how many of its copies are in the last slots.
    """
    copies, rest = _parts(weights)
    place = uniforms[-1] * (copies[0] + rest[0])
    beyond = place - copies[0]
    drawn = _drawn(uniforms[:-1], rest, len(weights) - jnp.sum(copies), beyond >= 0)
    among = beyond / jnp.where(rest[0] > 0, rest[0], 1) * drawn[0]
    copy = jnp.floor(jnp.where(beyond >= 0, copies[0] + among, place)).astype(jnp.int32)
    copies = copies + drawn
    return jnp.roll(_owners(jnp.cumsum(copies, dtype=jnp.int32), copies > 0), -copy)


# Killing (Del Moral 2004): each particle survives by its weight over the largest, or is replaced by a draw


def _killing(uniforms: Uniforms, weights: Weights) -> Ancestors:
    count = len(weights)
    survives = uniforms[:count] * jnp.max(weights) < weights
    return jnp.where(
        survives, jnp.arange(count, dtype=jnp.int32), _invert(uniforms[count:] * count, weights)
    )


def _killing_conditional(uniforms: Uniforms, weights: Weights) -> Ancestors:
    """First which slot particle 0 is the ancestor of, then the others; then this slot is turned to 0."""
    count = len(weights)
    kept = weights / jnp.max(weights)
    dead = jnp.sum(1 - kept)  # N P(slot = c) is 1 - kept_c, and for c = 0 what is left of N
    slots = (1 - kept).at[0].set(count - dead + kept.dtype.type(1) - kept[0])
    slot = _invert(uniforms[-1:] * count, slots / count)[0]
    return jnp.roll(_killing(uniforms[:-1], weights).at[slot].set(0), -slot)


# SSP (Srinivasan sampling process; Gerber, Chopin & Whiteley 2019): the whole parts of N W as they are; the
# rests are played out, two at a time, until each is 0 or 1


def _ssp(uniforms: Uniforms, weights: Weights) -> Ancestors:
    copies, rest = _parts(weights)
    copies = copies + _played(uniforms, rest, jnp.asarray(-1))
    return _owners(jnp.cumsum(copies, dtype=jnp.int32), copies > 0)


def _played(
    uniforms: Uniforms, rest: Float[Array, " N"], winner: Int[Array, ""]
) -> Int[Array, " N"]:
    """Zeros and ones with the given expectations and their sum.

    Args:
        uniforms: N - 1 numbers.
        rest: the expectations, within [0, 1).
        winner: the number of one that is to be 1, or -1. What is left in play of a particle is a martingale
            and ends as 1 or 0, so that the law given that it is 1 has the probabilities of each round
            multiplied by what it has afterwards over what it had before.
    """

    def play(carry: tuple[Array, Array], challenge: tuple[Array, ...]) -> tuple[Any, Any]:
        (i, p), (j, q, u) = carry, challenge
        total = p + q
        low = total < 1
        i_wins = jnp.where(low, p / jnp.where(total > 0, total, 1), (1 - q) / (2 - total))
        given_i = jnp.where(low, 1, i_wins / jnp.where(p > 0, p, 1))
        given_j = jnp.where(low, 0, 1 - (1 - i_wins) / jnp.where(q > 0, q, 1))
        i_wins = jnp.where(winner == i, given_i, jnp.where(winner == j, given_j, i_wins))
        first = u < i_wins
        # low: who loses is out with 0, who wins has both; high: who wins is out with 1
        out = jnp.where(first == low, j, i)
        stays = jnp.where(first == low, i, j)
        return (stays, jnp.where(low, total, total - 1)), (out, ~low)

    numbers = jnp.arange(len(rest), dtype=jnp.int32)
    challenges = numbers[1:], rest[1:], uniforms
    (last, left), (out, won) = jax.lax.scan(play, (numbers[0], rest[0]), challenges)
    ones = jnp.zeros(len(rest), jnp.int32).at[out].set(won.astype(jnp.int32))
    return ones.at[last].set(jnp.round(left).astype(jnp.int32))


def _ssp_conditional(uniforms: Uniforms, weights: Weights) -> Ancestors:
    """Slot 0 is one of the whole copies of particle 0, or else particle 0 wins.

    Which of the copies it is decides how many of them are in the last slots.
    """
    count = len(weights)
    copies, rest = _parts(weights)
    place = jnp.floor(uniforms[-1] * (copies[0] + rest[0])).astype(jnp.int32)
    begin = jnp.floor(uniforms[-2] * count).astype(jnp.int32)
    winner = jnp.where(place >= copies[0], (-begin) % count, -1)
    copies = copies + jnp.roll(_played(uniforms[:-2], jnp.roll(rest, -begin), winner), begin)
    return jnp.roll(_owners(jnp.cumsum(copies, dtype=jnp.int32), copies > 0), -place)


SCHEMES: dict[str, Resampling] = {
    scheme.name: scheme
    for scheme in (
        Resampling("systematic", _systematic, _systematic_conditional, lambda n: 1, lambda n: 1),
        Resampling(
            "stratified", _stratified, _stratified_conditional, lambda n: n, lambda n: n + 2
        ),
        Resampling(
            "multinomial", _multinomial, _multinomial_conditional, lambda n: n, lambda n: n - 1
        ),
        Resampling("residual", _residual, _residual_conditional, lambda n: n, lambda n: n + 1),
        Resampling("killing", _killing, _killing_conditional, lambda n: 2 * n, lambda n: 2 * n + 1),
        Resampling("ssp", _ssp, _ssp_conditional, lambda n: n - 1, lambda n: n + 1),
    )
}
"""The schemes by name."""


def resampling_named(scheme: str | Callable[..., Ancestors]) -> Callable[..., Ancestors]:
    """A scheme by its name, or what was given if it can be called.

    Raises:
        ValueError: if there is no scheme of this name.
        TypeError: if it is neither a name nor callable.
    """
    if isinstance(scheme, str):
        if scheme not in SCHEMES:
            raise ValueError(
                f"there is no resampling scheme {scheme!r}; there are {', '.join(SCHEMES)}"
            )
        return SCHEMES[scheme]
    if not callable(scheme):
        raise TypeError(
            f"resampling must be the name of a scheme ({', '.join(SCHEMES)}) or a function "
            f"(random, log_weights) -> ancestors; got {type(scheme).__name__}"
        )
    return scheme
