"""Quasi-Monte Carlo points and the order in which particles take them (Gerber & Chopin 2015)."""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt32

from statespace.chains.particle.types import Particles

_BITS = 32  # of a point's coordinate
_CELLS = 16  # bits of a coordinate along the Hilbert curve, at most


@cache
def sobol(count: int, dimension: int) -> np.ndarray:
    """The first points of the Sobol sequence as 32-bit fractions, shape ``(count, dimension)``."""
    from scipy.stats import qmc

    with warnings.catch_warnings():
        # a number that is no power of two is less even, and works
        warnings.simplefilter("ignore", UserWarning)
        points = qmc.Sobol(dimension, scramble=False, bits=_BITS).random(count)
    return (points * 2.0**_BITS).astype(np.uint32)


def scrambled(key: PRNGKeyArray, points: UInt32[Array, "N d"], dtype: Any) -> Float[Array, "N d"]:
    """The points scrambled: each is then uniform on the unit cube, and together they stay as even.

    A random lower triangular matrix of bits for each coordinate, and a random shift (Matoušek 1998).
    """
    one, two = jax.random.split(key)
    d = points.shape[1]
    places = _BITS - 1 - jnp.arange(_BITS, dtype=jnp.uint32)
    diagonal = jnp.uint32(1) << places
    above = ~((diagonal - 1) | diagonal)
    rows = jax.random.bits(one, (d, _BITS), jnp.uint32) & above | diagonal
    parity = jax.lax.population_count(points[:, :, None] & rows) & 1
    mixed = jnp.sum(parity << places, axis=-1, dtype=jnp.uint32)
    shifted = mixed ^ jax.random.bits(two, (d,), jnp.uint32)
    digits = min(_BITS, jnp.finfo(dtype).nmant)
    whole = (shifted >> (_BITS - digits)).astype(dtype)
    return (whole + 0.5) * 2.0**-digits


def curve_order(particles: Particles) -> Int[Array, " N"]:
    """The order of particles along a line: by size, or along a Hilbert curve for several coordinates.

    The coordinates are standardised and mapped into the unit cube by the logistic function.
    """
    leaves = jax.tree.leaves(particles)
    count = len(leaves[0])
    x = jnp.concatenate([leaf.reshape(count, -1).astype(float) for leaf in leaves], axis=1)
    if x.shape[1] == 1:
        return jnp.argsort(x[:, 0])
    spread = jnp.std(x, axis=0)
    unit = jax.nn.sigmoid((x - jnp.mean(x, axis=0)) / jnp.where(spread > 0, spread, 1))
    bits = max(1, min(_CELLS, 64 // x.shape[1]))
    cells = jnp.minimum(unit * 2.0**bits, 2.0**bits - 1).astype(jnp.uint32)
    high, low = hilbert_index(cells[:, : 64 // bits], bits)
    return jnp.lexsort((low, high))


def hilbert_index(
    cells: UInt32[Array, "N n"], bits: int
) -> tuple[UInt32[Array, " N"], UInt32[Array, " N"]]:
    """Position along the Hilbert curve through the cells of a cube, as two words (Skilling 2004).

    Args:
        cells: coordinates of the cells, each less than ``2^bits``.
        bits: at most ``64 / n``.

    Returns:
        The higher and the lower 32 of the 64 bits of the position.
    """
    n = cells.shape[1]
    x = [cells[:, i] for i in range(n)]
    for bit in reversed(range(1, bits)):
        q = jnp.uint32(1 << bit)
        p = q - jnp.uint32(1)
        for i in range(n):
            swap = (x[0] ^ x[i]) & p
            inverted = (x[i] & q) != 0
            first = jnp.where(inverted, x[0] ^ p, x[0] ^ swap)
            x[i] = jnp.where(inverted, x[i], x[i] ^ swap) if i else first
            x[0] = first
    for i in range(1, n):
        x[i] = x[i] ^ x[i - 1]
    turn = jnp.zeros_like(x[0])
    for bit in reversed(range(1, bits)):
        q = jnp.uint32(1 << bit)
        turn = jnp.where((x[-1] & q) != 0, turn ^ (q - jnp.uint32(1)), turn)
    x = [c ^ turn for c in x]
    words = [jnp.zeros_like(turn), jnp.zeros_like(turn)]
    for place, (bit, i) in enumerate((b, i) for b in reversed(range(bits)) for i in range(n)):
        digit = (x[i] >> bit) & jnp.uint32(1)
        words[place // 32] |= digit << jnp.uint32(31 - place % 32)
    return words[0], words[1]
