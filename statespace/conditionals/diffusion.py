"""Linear stochastic differential equations, discretised exactly."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from statespace.conditionals.affine import AffineGaussian
from statespace.model import Step

if TYPE_CHECKING:
    from numpyro.distributions import Distribution

_TERMS = 18  # of a Taylor series in ||A h|| <= 1/2: exact to rounding in float64
_DOUBLINGS = 24  # h = dt / 2^24 at the finest: ||A dt|| up to 8e6


class LinearDiffusion(eqx.Module):
    """``dx = (A x + b) dt + G dW``, exactly discretised at any ``dt``.

    Args:
        drift: ``A``, shape ``(d, d)``, per unit of time.
        diffusion: ``G``, shape ``(d, k)``, or ``(d,)`` for independent noise in each coordinate; state
            units per square root of the unit of time.
        offset: ``b``, shape ``(d,)``; None for zero.
    """

    drift: Float[Array, "d d"]
    diffusion: Float[Array, "..."]
    offset: Float[Array, " d"] | None

    def __init__(self, drift: Any, diffusion: Any, offset: Any = None):
        self.drift = jnp.asarray(drift)
        self.diffusion = jnp.asarray(diffusion)
        self.offset = None if offset is None else jnp.asarray(offset)
        d = self.drift.shape[0] if self.drift.ndim else 0
        if self.drift.ndim != 2 or self.drift.shape[1] != d:
            raise ValueError(f"`drift` of LinearDiffusion must be square, got {self.drift.shape}.")
        if self.diffusion.ndim not in (1, 2) or self.diffusion.shape[0] != d:
            raise ValueError(
                f"`diffusion` of LinearDiffusion must have shape ({d},) or ({d}, k) to go with a drift "
                f"of shape {self.drift.shape}, got {self.diffusion.shape}."
            )
        if self.offset is not None and self.offset.shape != (d,):
            raise ValueError(
                f"`offset` of LinearDiffusion must have shape ({d},) to go with a drift of shape "
                f"{self.drift.shape}, got {self.offset.shape}."
            )

    def at(self, step: Step) -> AffineGaussian:
        """The law of the state at ``step`` given the state ``step.dt`` before."""
        matrix, offset, covariance = discretise(
            self.drift, self.offset, self.diffusion, jnp.asarray(step.dt, self.drift.dtype)
        )
        return AffineGaussian(matrix, offset, covariance=covariance)

    def __call__(self, state: Float[Array, " d"], step: Step) -> Distribution:
        """The distribution of the state at ``step`` given the state ``step.dt`` before."""
        return self.at(step)(state, step)


def discretise(
    drift: Float[Array, "d d"],
    offset: Float[Array, " d"] | None,
    diffusion: Float[Array, "..."],
    dt: Float[Array, ""],
) -> tuple[Float[Array, "d d"], Float[Array, " d"], Float[Array, "d d"]]:
    """``F = e^{A dt}``, ``int_0^dt e^{A s} b ds`` and ``Q = int_0^dt e^{A s} G G^T e^{A^T s} ds``.

    Taylor series at ``h = dt / 2^s`` with ``||A h|| <= 1/2``, then s doublings ``Q <- Q + F Q F^T``,
    ``b <- b + F b``, ``F <- F F``. Only sums of positive semi-definite terms occur, so nothing cancels for
    short and nothing overflows for long intervals, as both do in the matrix fraction of Van Loan (1978).
    """
    d = drift.shape[0]
    noise = diffusion[:, None] * jnp.eye(d) if diffusion.ndim == 1 else diffusion
    rate = noise @ noise.T
    b = jnp.zeros(d, drift.dtype) if offset is None else offset
    size = jnp.max(jnp.sum(jnp.abs(drift), axis=1)) * jnp.abs(dt)
    doublings = jnp.clip(jnp.ceil(jnp.log2(jnp.maximum(2.0 * size, 1.0))), 0, _DOUBLINGS)
    h = dt / 2.0 ** jax.lax.stop_gradient(doublings)

    eye = jnp.eye(d, dtype=drift.dtype)
    power, f = eye, eye
    lie, q = rate * h, rate * h
    term, shift = b * h, b * h
    for k in range(1, _TERMS):
        power = drift @ power * (h / k)
        f = f + power
        lie = (drift @ lie + lie @ drift.T) * (h / (k + 1))
        q = q + lie
        term = drift @ term * (h / (k + 1))
        shift = shift + term

    def double(carry: tuple[Array, ...], i: Array) -> tuple[tuple[Array, ...], None]:
        f, shift, q = carry
        new = (f @ f, shift + f @ shift, q + f @ q @ f.T)
        return jax.tree.map(lambda a, b: jnp.where(i < doublings, a, b), new, carry), None

    (f, shift, q), _ = jax.lax.scan(double, (f, shift, q), jnp.arange(_DOUBLINGS))
    return f, shift, 0.5 * (q + q.T)
