"""Products of vectors and matrices of probabilities, and of their logarithms.

Matrix axes come first and any batch axes last. Up to :data:`FEW` states the products are plain
multiply-adds, because XLA:CPU compiles a loop into one native kernel only when its body is small and holds
no library call, and because trailing batch axes then vectorise.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import reduce

import jax
import jax.numpy as jnp
from jaxtyping import Array

FEW = 8


def vecmat(v: Array, a: Array) -> Array:
    """``v A``: a law of states moved by a transition matrix."""
    return v @ a if a.shape[0] > FEW else jnp.sum(v[:, None] * a, axis=0)


def matvec(a: Array, v: Array) -> Array:
    """``A v``: what is known of the next state, told of the present one."""
    return a @ v if a.shape[0] > FEW else jnp.sum(a * v[None], axis=1)


def total(x: Array, axis: int = 0) -> Array:
    """Sum over an axis of states; XLA:CPU reduces a short one slowly."""
    return _fold(operator.add, x, axis) if x.shape[axis] <= FEW else jnp.sum(x, axis=axis)


def peak(x: Array, axis: int = 0) -> Array:
    """Maximum over an axis of states."""
    return _fold(jnp.maximum, x, axis) if x.shape[axis] <= FEW else jnp.max(x, axis=axis)


def _fold(operation: Callable[[Array, Array], Array], x: Array, axis: int) -> Array:
    return reduce(operation, jnp.moveaxis(x, axis, 0))


def log(p: Array) -> Array:
    """Logarithm whose derivative at zero is zero, not infinite: what is impossible stays so."""
    positive = p > 0
    return jnp.where(positive, jnp.log(jnp.where(positive, p, 1)), -jnp.inf)


def logsumexp(x: Array, axis: int) -> Array:
    """``log sum exp x``; where all entries are ``-inf`` so is the result, and its derivative is zero."""
    peak = jax.lax.stop_gradient(jnp.max(x, axis=axis, keepdims=True))
    peak = jnp.where(jnp.isneginf(peak), 0, peak)
    total = jnp.sum(jnp.exp(x - peak), axis=axis)
    return log(total) + jnp.squeeze(peak, axis)
