"""Fisher scoring for generalised linear models: every state and every channel at once, never downhill."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from statespace.optimisation.descent import rounding

EVALUATIONS = 10  # of the objective in one search; a warm start needs two or three
_GAIN = 1e-10  # a step that promises less, in nats, is the last, and needs no checking
_DECREASE = 1e-4


class Curve(NamedTuple):
    """An objective at some coefficients: K states, m channels, p coefficients each.

    Attributes:
        value: of each channel, summed over the states, shape ``(m,)``.
        gradient: shape ``(K, m, p)``.
        information: minus its expected second derivative, shape ``(K, m, p, p)``.
    """

    value: Float[Array, " m"]
    gradient: Float[Array, "K m p"]
    information: Float[Array, "K m p p"]


class _Search(NamedTuple):
    best: Float[Array, "K m p"]
    value: Float[Array, " m"]
    step: Float[Array, "K m p"]
    gain: Float[Array, " m"]
    length: Float[Array, " m"]
    done: Bool[Array, " m"]
    evaluations: Int[Array, ""]


def climb(
    curve: Callable[[Float[Array, "K m p"]], Curve],
    start: Float[Array, "K m p"],
    shared: int,
    evaluations: int = EVALUATIONS,
) -> Float[Array, "K m p"]:
    """Coefficients of higher value, from ``start``: at the maximum, if a few steps reach it.

    A step that does not raise a channel's value is halved until it does. When the evaluations are used up,
    the best coefficients so far are what comes back.

    Args:
        curve: the objective, with its gradient and Fisher information.
        start: coefficients; the last ``shared`` of each channel are the same in all states.
        shared: how many coefficients the states share.
        evaluations: at most so many.
    """

    def turn(s: _Search) -> _Search:
        trial = s.best + s.length[:, None] * s.step
        at = curve(trial)
        enough = at.value >= s.value + _DECREASE * s.length * s.gain - jax.vmap(rounding)(at.value)
        moved = ~s.done & enough & jnp.isfinite(at.value)
        step = scoring_step(at.gradient, at.information, shared)
        gain = jnp.sum(at.gradient * step, axis=(0, 2)) / 2
        last = moved & (gain <= _GAIN)
        best = jnp.where(last[:, None], trial + step, trial)
        return _Search(
            best=jnp.where(moved[:, None], best, s.best),
            value=jnp.where(moved, at.value, s.value),
            step=jnp.where(moved[:, None], step, s.step),
            gain=jnp.where(moved, gain, s.gain),
            length=jnp.where(moved, 1, s.length / 2),
            done=s.done | last,
            evaluations=s.evaluations + 1,
        )

    # The first turn tries a step of no length from a value that everything exceeds.
    zero = jnp.zeros(start.shape[1], start.dtype)
    begin = _Search(
        best=start,
        value=zero - jnp.inf,
        step=jnp.zeros_like(start),
        gain=zero,
        length=zero + 1,
        done=zero > 0,
        evaluations=jnp.zeros((), int),
    )
    goes_on = lambda s: ~jnp.all(s.done) & (s.evaluations < evaluations)
    return jax.lax.while_loop(goes_on, turn, begin).best


def scoring_step(
    gradient: Float[Array, "K m p"], information: Float[Array, "K m p p"], shared: int
) -> Float[Array, "K m p"]:
    """``information^{-1} gradient``, where the last ``shared`` coefficients are common to the states.

    The information of a channel over all states is then an arrowhead, solved by its Schur complement. A
    little is added to the diagonal, so that a state that was never visited stays where it is.
    """
    p = gradient.shape[-1]
    eps = jnp.finfo(gradient.dtype).eps
    size = jnp.trace(information, axis1=-2, axis2=-1) / p
    ridge = 100 * eps * size + jnp.finfo(gradient.dtype).tiny ** 0.25
    information = information + ridge[..., None, None] * jnp.eye(p, dtype=gradient.dtype)
    if not shared:
        return solve(information, gradient[..., None])[..., 0]
    own = p - shared
    arrow, corner = information[..., :own, own:], jnp.sum(information[..., own:, own:], axis=0)
    tip = jnp.sum(gradient[..., own:], axis=0)
    reduced = jnp.zeros((*gradient.shape[:2], own, shared + 1), gradient.dtype)
    if own:
        right = jnp.concatenate([arrow, gradient[..., :own, None]], axis=-1)
        reduced = solve(information[..., :own, :own], right)
        corner = corner - jnp.sum(jnp.swapaxes(arrow, -1, -2) @ reduced[..., :-1], axis=0)
        tip = tip - jnp.sum(jnp.swapaxes(arrow, -1, -2) @ reduced[..., -1:], axis=0)[..., 0]
    common = solve(corner, tip[..., None])[..., 0]
    each = reduced[..., -1] - jnp.einsum("kmas,ms->kma", reduced[..., :-1], common)
    every = jnp.broadcast_to(common, (*gradient.shape[:2], shared))
    return jnp.concatenate([each, every], axis=-1)


def solve(a: Float[Array, "*n p p"], b: Float[Array, "*n p r"]) -> Float[Array, "*n p r"]:
    """``A^{-1} B`` for positive definite matrices, eliminating one column after the other in all of them.

    Not by LAPACK: XLA:CPU of jaxlib 0.10 can wait for ever when two batched calls of it run at once.
    """
    p = a.shape[-1]

    def eliminate(j: Array, both: Array) -> Array:
        row = both[..., j, :] / both[..., j, j, None]
        rest = both - both[..., :, j, None] * row[..., None, :]
        return rest.at[..., j, :].set(row)

    return jax.lax.fori_loop(0, p, eliminate, jnp.concatenate([a, b], axis=-1))[..., p:]
