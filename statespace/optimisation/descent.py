"""L-BFGS as one flat loop: each turn is one evaluation of the objective.

A line search nested in a loop makes a batch of searches wait for each other twice, and traces the objective
several times over. Here the line search is part of the state, so that `vmap` over starting points wastes
nothing but finished lanes, and the objective is compiled once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

RUNNING, CONVERGED, STALLED = 0, 1, 2

_MEMORY = 10
_DECREASE = 1e-4  # Wolfe's constants, as in Nocedal & Wright (2006), section 3.1
_CURVATURE = 0.9
_TRIALS = 40  # evaluations in one line search
_EXPANSION = 4.0


class Descent(NamedTuple):
    """A search under way.

    Attributes:
        x: the best point so far, shape ``(p,)``; ``value`` and ``gradient`` belong to it.
        direction: where the line search goes; ``slope`` is the derivative along it.
        step: the step length to be tried next, inside the bracket ``(low, high)``.
        moves: past steps, newest first, and ``turns`` the changes of gradient along them.
        weights: one over their inner products; zero for an empty place.
        iterations: accepted steps, -1 before the first evaluation.
        status: ``RUNNING``, ``CONVERGED`` or ``STALLED``.
    """

    x: Float[Array, " p"]
    value: Float[Array, ""]
    gradient: Float[Array, " p"]
    direction: Float[Array, " p"]
    slope: Float[Array, ""]
    step: Float[Array, ""]
    low: Float[Array, ""]
    high: Float[Array, ""]
    value_low: Float[Array, ""]
    slope_low: Float[Array, ""]
    trials: Int[Array, ""]
    moves: Float[Array, "k p"]
    turns: Float[Array, "k p"]
    weights: Float[Array, " k"]
    iterations: Int[Array, ""]
    evaluations: Int[Array, ""]
    status: Int[Array, ""]


Objective = Callable[[Float[Array, " p"]], Float[Array, ""]]


def start(x: Float[Array, " p"]) -> Descent:
    """The state of a search before its first evaluation, which a trial step of no length makes."""
    integer = jnp.zeros((), int)
    zero = jnp.zeros((), x.dtype)
    history = jnp.zeros((_MEMORY, x.shape[0]), x.dtype)
    return Descent(
        x=x,
        value=zero + jnp.inf,
        gradient=jnp.zeros_like(x),
        direction=jnp.zeros_like(x),
        slope=zero,
        step=zero + 1,
        low=zero,
        high=zero + jnp.inf,
        value_low=zero + jnp.inf,
        slope_low=zero,
        trials=integer,
        moves=history,
        turns=history,
        weights=jnp.zeros(_MEMORY, x.dtype),
        iterations=integer - 1,
        evaluations=integer,
        status=integer,
    )


def advance(objective: Objective, state: Descent, tolerance: Array, limit: Array) -> Descent:
    """Go on until the search ends, or has made ``limit`` evaluations in all."""

    def goes_on(s: Descent) -> Array:
        return (s.status == RUNNING) & (s.evaluations < limit)

    return jax.lax.while_loop(goes_on, lambda s: _turn(objective, s, tolerance), state)


def rounding(value: Float[Array, ""]) -> Float[Array, ""]:
    """What a sum of this size can be wrong by; smaller differences mean nothing."""
    return 8 * jnp.finfo(value.dtype).eps * jnp.maximum(jnp.abs(value), 1.0)


def _evaluate(objective: Objective, x: Array) -> tuple[Array, Array]:
    """Value and gradient, infinite and zero where there is none."""
    value, gradient = jax.value_and_grad(objective)(x)
    fine = jnp.isfinite(value) & jnp.all(jnp.isfinite(gradient))
    return jnp.where(fine, value, jnp.inf), jnp.where(fine, gradient, 0.0)


def _turn(objective: Objective, s: Descent, tolerance: Array) -> Descent:
    """One evaluation: accept the trial step and aim anew, or narrow the bracket."""
    x = s.x + s.step * s.direction
    value, gradient = _evaluate(objective, x)
    slope = gradient @ s.direction
    s = s._replace(evaluations=s.evaluations + 1, trials=s.trials + 1)

    # Close to the minimum the decrease drowns in rounding, and the slope alone decides
    # (Hager & Zhang 2005, the approximate Wolfe conditions).
    enough = value <= s.value + _DECREASE * s.step * s.slope
    near = (value <= s.value + rounding(s.value)) & (slope <= (2 * _DECREASE - 1) * s.slope)
    enough = jnp.isfinite(value) & (enough | near)
    flat_enough = slope >= _CURVATURE * s.slope

    accepted = _accept(s, x, value, gradient, tolerance)
    narrowed = _narrow(s, value, slope, enough)
    return jax.tree.map(lambda a, b: jnp.where(enough & flat_enough, a, b), accepted, narrowed)


def _accept(s: Descent, x: Array, value: Array, gradient: Array, tolerance: Array) -> Descent:
    move, turn = x - s.x, gradient - s.gradient
    product = move @ turn
    useful = product > 1e-10 * jnp.linalg.norm(move) * jnp.linalg.norm(turn)
    weight = jnp.where(useful, 1.0 / jnp.where(useful, product, 1.0), 0.0)

    def store(old: Array, new: Array) -> Array:
        return jnp.where(useful, jnp.concatenate([new[None], old[:-1]]), old)

    s = s._replace(
        x=x,
        value=value,
        gradient=gradient,
        moves=store(s.moves, move),
        turns=store(s.turns, turn),
        weights=store(s.weights, weight),
        iterations=s.iterations + 1,
    )
    return _aim(s, tolerance)


def _aim(s: Descent, tolerance: Array) -> Descent:
    """A new direction; the search has converged when little is to be gained along it."""
    direction = -_inverse_hessian(s, s.gradient)
    slope = s.gradient @ direction
    first = s.weights[0] == 0
    # Without any history the gradient says nothing about how far to go: try a step of unit length.
    size = jnp.linalg.norm(s.gradient)
    direction = jnp.where(first, direction / jnp.where(size > 0, size, 1.0), direction)
    gain = jnp.where(first, size**2, -slope / 2)
    slope = jnp.where(first, -size, slope)

    small = jnp.maximum(tolerance, rounding(s.value))
    status = jnp.where((gain <= small) | (size == 0), CONVERGED, RUNNING)
    status = jnp.where(jnp.isfinite(s.value), status, STALLED)
    zero = jnp.zeros_like(slope)
    return s._replace(
        direction=direction,
        slope=slope,
        step=jnp.ones_like(slope),
        low=zero,
        high=zero + jnp.inf,
        value_low=s.value,
        slope_low=slope,
        trials=jnp.zeros_like(s.trials),
        status=status.astype(s.status.dtype),
    )


def _narrow(s: Descent, value: Array, slope: Array, enough: Array) -> Descent:
    """The bracket of Lewis & Overton (2013), with a safeguarded parabola in place of halving."""
    low = jnp.where(enough, s.step, s.low)
    value_low = jnp.where(enough, value, s.value_low)
    slope_low = jnp.where(enough, slope, s.slope_low)
    high = jnp.where(enough, s.high, s.step)

    width = high - low
    # The parabola through the value and slope at `low` and the value just found at `high`.
    excess = value - value_low - slope_low * width
    parabola = -slope_low * width**2 / (2 * jnp.where(excess > 0, excess, 1.0))
    usable = ~enough & jnp.isfinite(value) & (excess > 0)
    inside = jnp.where(usable, jnp.clip(parabola, 0.1 * width, 0.9 * width), 0.5 * width)
    step = jnp.where(jnp.isfinite(high), low + inside, _EXPANSION * low)

    # A line search that finds nothing starts once more, downhill and without its past; where there is no
    # slope, as before the first evaluation, there is no line to search.
    closed = jnp.isfinite(high) & (width <= jnp.finfo(step.dtype).eps * high)
    failed = (s.trials >= _TRIALS) | closed | (s.slope == 0)
    fresh = s.weights[0] == 0
    stuck = s._replace(status=jnp.full_like(s.status, STALLED))
    restarted = _aim(s._replace(weights=jnp.zeros_like(s.weights)), jnp.zeros_like(s.value))
    on = s._replace(step=step, low=low, high=high, value_low=value_low, slope_low=slope_low)
    return jax.tree.map(
        lambda a, b, c: jnp.where(failed, jnp.where(fresh, a, b), c), stuck, restarted, on
    )


def _inverse_hessian(s: Descent, vector: Array) -> Array:
    """The two-loop recursion (Nocedal & Wright 2006, algorithm 7.4)."""

    def back(q: Array, pair: tuple[Array, ...]) -> tuple[Array, Array]:
        move, turn, weight = pair
        a = weight * (move @ q)
        return q - a * turn, a

    def forth(r: Array, pair: tuple[Array, ...]) -> tuple[Array, None]:
        move, turn, weight, a = pair
        return r + move * (a - weight * (turn @ r)), None

    pairs = (s.moves, s.turns, s.weights)
    q, a = jax.lax.scan(back, vector, pairs)
    size = s.turns[0] @ s.turns[0]
    known = s.weights[0] > 0
    scale = jnp.where(known, 1.0 / jnp.where(known, s.weights[0] * size, 1.0), 1.0)
    r, _ = jax.lax.scan(forth, scale * q, (*pairs, a), reverse=True)
    return r
