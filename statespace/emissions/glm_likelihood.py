"""The weighted likelihood of generalised linear models, in chunks of moments that stay in the cache."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from statespace.emissions.base import visited
from statespace.emissions.families import FAMILIES, fisher
from statespace.emissions.newton import Curve

_CHUNK = 1 << 18  # numbers in the arrays of one chunk of moments


class Regression(eqx.Module):
    """Weighted observations and their regressors: the data of an M-step.

    Attributes:
        emission: the GLM whose family and link are used.
        design: regressors of every moment of all recordings, the constant last, shape ``(n, p)``.
        y: observations, NaN where missing, shape ``(n, m)``.
        weights: of every moment in every state, shape ``(n, K)``.
    """

    emission: Any
    design: Float[Array, "n p"]
    y: Float[Array, "n m"]
    weights: Float[Array, "n K"]

    def curve(self, coefficients: Float[Array, "K m p q"]) -> Curve:
        """The weighted log likelihood, its gradient and Fisher information, with ``(p, q)`` flattened."""
        k, m, p, q = coefficients.shape
        glm, dtype = self.emission, coefficients.dtype
        family, scale = FAMILIES[glm.family], glm.scale

        def chunk(total: Curve, part: tuple[Array, Array, Array]) -> tuple[Curve, None]:
            x, y, w = part
            seen = ~jnp.isnan(y)
            w = w[:, :, None] * seen[:, None]
            y = jnp.where(seen, y, 0)[:, None]
            eta = jnp.einsum("np,kmpq->nkmq", x, coefficients)
            each = family.log_prob(y, glm.natural(eta), scale)
            statistic = jnp.broadcast_to(family.statistic(y, q), eta.shape)
            score, information = fisher(family, glm.natural, statistic, eta)
            w_score = w if scale is None else w / scale**2
            gradient = jnp.einsum("nkmq,np->kmpq", w_score[..., None] * score, x)
            left = (w_score[..., None, None] * information).reshape(len(x), -1)
            outer = (x[:, :, None] * x[:, None, :]).reshape(len(x), -1)
            square = (left.T @ outer).reshape(k, m, q, q, p, p)
            square = jnp.transpose(square, (0, 1, 4, 2, 5, 3)).reshape(k, m, p * q, p * q)
            value = jnp.sum(jnp.where(w > 0, w * each, 0), axis=(0, 1))
            found = Curve(value, gradient.reshape(k, m, -1), square)
            return jax.tree.map(jnp.add, total, found), None

        zero = Curve(
            jnp.zeros(m, dtype),
            jnp.zeros((k, m, p * q), dtype),
            jnp.zeros((k, m, p * q, p * q), dtype),
        )
        return jax.lax.scan(chunk, zero, self._chunks(p * p + 8 * k * m * q * q))[0]

    def scale(self, coefficients: Float[Array, "K m p q"], floor: Any) -> Float[Array, "#K m"]:
        """Standard deviations of the residuals of a Gaussian family; at least the root of ``floor``."""
        old = self.emission.scale
        eta = jnp.einsum("np,kmpq->nkmq", self.design, coefficients)
        mean = self.emission.natural(eta)[..., 0]
        seen = ~jnp.isnan(self.y)
        e = jnp.where(seen[:, None], jnp.nan_to_num(self.y)[:, None] - mean, 0)
        squares = jnp.einsum("nk,nkm->km", self.weights, e**2)
        count = self.weights.T @ seen.astype(e.dtype)
        if len(old) < len(squares):
            squares, count = (jnp.sum(a, axis=0, keepdims=True) for a in (squares, count))
        some = visited(count)
        variance = jnp.maximum(squares / jnp.where(some, count, 1), floor)
        return jnp.where(some, jnp.sqrt(variance), old)

    def _chunks(self, width: int) -> tuple[Array, Array, Array]:
        """Design, observations and weights in chunks of equal length, the last filled up with weight 0."""
        n = len(self.y)
        length = min(n, max(1, _CHUNK // width))
        count = -(-n // length)

        def cut(a: Array) -> Array:
            padded = jnp.pad(a, ((0, count * length - n), (0, 0)))
            return padded.reshape(count, length, a.shape[1])

        return cut(self.design), cut(self.y), cut(self.weights)
