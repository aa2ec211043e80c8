"""Products of vectors and matrices of probabilities, and of their logarithms.

Matrix axes come first and any batch axes last. Up to :data:`UNROLLED` states the products are plain
multiply-adds, because XLA:CPU compiles a loop into one native kernel only when its body is small and holds
no library call, and because trailing batch axes then vectorise.
"""

from __future__ import annotations

import operator
from functools import reduce

import jax
import jax.numpy as jnp
from jaxtyping import Array

UNROLLED = 8


def vecmat(v: Array, a: Array) -> Array:
    """``v A``: a law of states moved by a transition matrix."""
    if a.shape[0] > UNROLLED:
        return v @ a
    return reduce(operator.add, (v[j] * a[j] for j in range(a.shape[0])))


def matvec(a: Array, v: Array) -> Array:
    """``A v``: what is known of the next state, told of the present one."""
    if a.shape[0] > UNROLLED:
        return a @ v
    return reduce(operator.add, (a[:, k] * v[k] for k in range(a.shape[0])))


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
