"""Values that were found by iteration, and their derivatives, which do not pass through it.

What an iteration has found is given a derivative by a rule of its own, that of another way to say the same
value. Nothing of that other way is computed, or even traced, before a derivative is asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp

Value = TypeVar("Value")


def like(value: Value, function: Callable[[], Value]) -> Value:
    """A value with the derivatives, of any order, of the function that would give it too."""
    return _like(jax.lax.stop_gradient(value), eqx.filter_closure_convert(function))


def held(value: Value, function: Callable[[], Value]) -> Value:
    """The same without the first derivative, where it is known not to matter; later ones are whole.

    An expression that is stationary in the value (envelope theorem) has the right derivatives then: the first
    needs none of the value, the second needs the first of it.
    """
    return _held(jax.lax.stop_gradient(value), eqx.filter_closure_convert(function))


def fixed_point(step: Callable[[Value], Value], at: Value, rounds: int) -> Value:
    """A fixed point that has been found, with its derivative by the implicit function theorem.

    With ``x = S(x, p)`` it is ``dx = (I - dS/dx)^{-1} dS/dp dp``: the tangent of one more step, and the
    sum of its images, of which there are ``rounds``.
    """
    at = jax.lax.stop_gradient(at)
    return _fixed_point(at, eqx.filter_closure_convert(step, at), rounds)


@eqx.filter_custom_jvp
def _like(value: Any, function: Callable[[], Any]) -> Any:
    return value


@_like.def_jvp
def _like_jvp(primals: tuple, tangents: tuple) -> tuple:
    value, function = primals
    _, tangent = eqx.filter_jvp(lambda function: function(), (function,), (tangents[1],))
    return _like(value, function), tangent


@eqx.filter_custom_jvp
def _held(value: Any, function: Callable[[], Any]) -> Any:
    return value


@_held.def_jvp
def _held_jvp(primals: tuple, tangents: tuple) -> tuple:
    value, function = primals
    return _like(value, function), jax.tree.map(jnp.zeros_like, value)


@eqx.filter_custom_jvp
def _fixed_point(at: Any, step: Callable[[Any], Any], rounds: int) -> Any:
    return at


@_fixed_point.def_jvp
def _fixed_point_jvp(primals: tuple, tangents: tuple) -> tuple:
    at, step, rounds = primals
    at = _fixed_point(at, step, rounds)  # derivatives of this rule need that of the point
    _, first = eqx.filter_jvp(lambda step: step(at), (step,), (tangents[1],))
    _, linear = jax.linearize(step, at)
    one = lambda v, _: (jax.tree.map(jnp.add, first, linear(v)), None)
    return at, jax.lax.scan(one, first, None, length=rounds)[0]
