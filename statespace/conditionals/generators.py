"""Continuous-time Markov chains on finitely many states: what follows from a generator.

A generator ``Q`` has rates off its diagonal, per unit of time, and rows that sum to zero. Everything here is
arithmetic with non-negative numbers: nothing cancels, so small probabilities and nearly separate groups of
states keep their relative accuracy.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jaxtyping import Array, Bool, Float

_JUMPS = 8.0  # jumps of the uniformised chain that one sum over their number is to cover
_TERMS = 44  # of that sum: what it leaves out has a probability below 1e-18
_NEAR, _FAR = (
    8,
    40,
)  # doublings of the interval so covered: for gaps, and for what is next to eternity


def generator_of(rates: Float[Array, "*b K K"]) -> Float[Array, "*b K K"]:
    """The generator with these rates off its diagonal; the diagonal given is not looked at."""
    states = rates.shape[-1]
    off = jnp.where(jnp.eye(states, dtype=bool), 0, rates)
    return off - jnp.eye(states, dtype=off.dtype) * jnp.sum(off, axis=-1, keepdims=True)


def transition_probabilities(
    generator: Float[Array, "K K"], interval: Float[Array, ""]
) -> Float[Array, "K K"]:
    """``P = exp(Q dt)``: where the chain is after an interval (columns) by where it was (rows).

    By uniformisation (Jensen 1953): with ``B = I + Q / w`` and ``w`` the largest rate of leaving, ``P`` is
    the sum of ``B^n`` weighted by the Poisson probabilities of n jumps. The powers do not depend on the
    interval, so that under `vmap` many intervals share them and cost one matrix product. What an interval
    is longer than ``h = 8 / w`` is composed of ``P(h), P(2h), P(4h) …``, which are shared as well.

    The derivatives, also of higher order and in both modes, are those of ``exp(Q dt)`` with respect to all
    entries of ``Q``, whether or not eigenvalues coincide.

    Args:
        generator: ``Q``, shape ``(K, K)``.
        interval: ``dt``, not negative.

    Returns:
        Non-negative, with rows that sum to one.
    """
    states = generator.shape[0]
    fixed = jax.lax.stop_gradient(generator)
    fastest = jnp.max(-jnp.diagonal(fixed))
    fastest = jnp.where(fastest > 0, fastest, 1)
    powers = _powers(jnp.eye(states, dtype=generator.dtype) + generator / fastest)
    longest = jnp.asarray(_JUMPS, generator.dtype)
    jumps = interval * fastest
    whole = jnp.floor(jax.lax.stop_gradient(jumps) / longest)
    whole = jnp.clip(whole, 0, 2.0 ** (_NEAR + _FAR) - 1)
    here = _stochastic(_mixed(powers, jnp.minimum(jumps - whole * longest, 2 * longest)))
    block = _stochastic(_mixed(powers, longest))

    def near(here: Array, block: Array, whole: Array) -> Array:
        here, block = _compose(here, block, whole, _NEAR)
        more = jnp.floor(whole / 2.0**_NEAR)
        return jax.lax.cond(
            anywhere(more > 0),
            jax.checkpoint(lambda here, block, more: _compose(here, block, more, _FAR)[0]),
            lambda here, block, more: here,
            here,
            block,
            more,
        )

    return jax.lax.cond(
        anywhere(whole > 0),
        jax.checkpoint(near),
        lambda here, block, whole: here,
        here,
        block,
        whole,
    )


@custom_vmap
def anywhere(condition: Bool[Array, "..."]) -> Bool[Array, ""]:
    """Whether a condition holds anywhere, in all of a `vmap` too: a branch on it stays a branch."""
    return jnp.any(condition)


@anywhere.def_vmap
def _(size: int, batched: list[bool], condition: Array) -> tuple[Array, bool]:
    return anywhere(condition), False


def _powers(matrix: Float[Array, "K K"]) -> Float[Array, "n K K"]:
    """The powers 0, 1 … of a matrix, so many that of states in a row the last is reached from the first."""
    count = max(_TERMS, len(matrix))
    eye = jnp.eye(len(matrix), dtype=matrix.dtype)
    rest = jax.lax.scan(lambda p, _: (p @ matrix, p @ matrix), eye, None, length=count - 1)[1]
    return jnp.concatenate([eye[None], rest])


def poisson(mean: Float[Array, ""], count: int) -> Float[Array, " n"]:
    """Probabilities of 0, 1 … ``count - 1`` under a Poisson law of a moderate mean, which may be zero."""
    ratios = mean / jnp.arange(1, count, dtype=mean.dtype)
    return jnp.exp(-mean) * jnp.concatenate([jnp.ones(1, mean.dtype), jnp.cumprod(ratios)])


def _mixed(powers: Float[Array, "n K K"], mean: Float[Array, ""]) -> Float[Array, "K K"]:
    """The powers of a jump chain weighted by the Poisson probabilities of so many jumps."""
    return jnp.tensordot(poisson(mean, len(powers)), powers, axes=1)


@jax.custom_jvp
def _stochastic(probs: Float[Array, "K K"]) -> Float[Array, "K K"]:
    """Rows scaled to sum to one, which all but for rounding they do: no part of the derivative."""
    return probs / jnp.sum(probs, axis=-1, keepdims=True)


@_stochastic.defjvp
def _(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    return _stochastic(*primals), tangents[0]


def _compose(here: Array, block: Array, whole: Array, doublings: int) -> tuple[Array, Array]:
    """``here @ block^(whole mod 2^doublings)``, and the block doubled so often."""

    def double(carry: tuple[Array, Array], i: Array) -> tuple[tuple[Array, Array], None]:
        here, block = carry
        odd = jnp.floor(whole / 2.0**i) % 2 == 1
        here = jnp.where(odd, _stochastic(here @ block), here)
        return (here, _stochastic(block @ block)), None

    i = jnp.arange(doublings, dtype=here.dtype)
    return jax.lax.scan(double, (here, block), i)[0]


class JumpStatistics(NamedTuple):
    """What a path of a jump process says of its rates.

    Attributes:
        dwell: time spent in each state.
        jumps: number of jumps from each state (rows) to each other one (columns); zero diagonal.
    """

    dwell: Float[Array, "*b K"]
    jumps: Float[Array, "*b K K"]


def expected_statistics(
    generator: Float[Array, "K K"],
    intervals: Float[Array, " n"],
    pairs: Float[Array, "n K K"],
) -> JumpStatistics:
    """Expected time in each state and number of jumps between them, given the ends of intervals.

    Given that an interval begins in a and ends in b, ``E[dwell_i] = I_ii / P_ab`` and
    ``E[jumps_ij] = q_ij I_ij / P_ab`` with ``I_ij = int_0^dt P_ai(s) P_jb(dt - s) ds`` (Hobolth & Jensen
    2005). Summed over a, b and all intervals with weights ``pairs / P`` that integral is the adjoint of the
    derivative of ``exp(Q dt)``, for which Van Loan (1978) would exponentiate a matrix of twice the size.

    Args:
        generator: ``Q``.
        intervals: their lengths, not negative.
        pairs: probabilities, or expected numbers, of the states at the beginning (rows) and at the end
            (columns) of each interval, zero for what is to be left out.
    """
    every = lambda q: jax.vmap(transition_probabilities, (None, 0))(q, intervals)
    probs, adjoint = jax.vjp(every, generator)
    ratios = jnp.where(probs > 0, pairs / jnp.where(probs > 0, probs, 1), 0)
    (integral,) = adjoint(ratios.astype(probs.dtype))
    off = ~jnp.eye(len(generator), dtype=bool)
    return JumpStatistics(jnp.diagonal(integral), jnp.where(off, generator * integral, 0))


def path_log_likelihood(
    generator: Float[Array, "K K"], statistics: JumpStatistics
) -> Float[Array, ""]:
    """``log prod q_ij^{jumps_ij} e^{-q_ij dwell_i}``: log density of a path that is known throughout."""
    off = ~jnp.eye(len(generator), dtype=bool)
    log_rates = jnp.log(jnp.where(off & (generator > 0), generator, 1))
    impossible = jnp.any(off & (generator <= 0) & (statistics.jumps > 0))
    value = jnp.sum(statistics.jumps * log_rates)
    value = value + jnp.sum(statistics.dwell * jnp.diagonal(generator))
    return jnp.where(impossible, -jnp.inf, value)
