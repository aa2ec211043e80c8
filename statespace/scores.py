"""How well Gaussian predictions met what came: whitened errors and proper scores."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtr, ndtri
from jaxtyping import Array, Float


@jax.jit
def whiten(
    error: Float[Array, "T m"], covariance: Float[Array, "T m m"]
) -> tuple[Float[Array, "T m"], Float[Array, "T m"]]:
    """Prediction errors made independent with unit variance by the Cholesky factor, ``L u = e``.

    Entry i of ``u`` is the error of channel i given the channels before it, over its standard deviation.
    A missing entry (NaN) is left out of the factorisation, and so is one with an infinite variance (a
    diffuse prediction says nothing) or none at all (the channels before determine it).

    Args:
        error: observation minus prediction; NaN where missing.
        covariance: of the prediction.

    Returns:
        ``u``, NaN where left out, and the conditional variances (squared diagonal of ``L``), 1 there.
    """
    return jax.vmap(_whiten_one)(error, covariance)


def _whiten_one(e: Float[Array, " m"], s: Float[Array, "m m"]) -> tuple[Array, Array]:
    variance = jnp.diagonal(s)
    use = jnp.isfinite(e) & jnp.isfinite(variance)
    e = jnp.where(use, e, 0.0)
    s = jnp.where(use[:, None] & use[None, :], s, 0.0)
    floor = e.size * jnp.finfo(s.dtype).eps * jnp.where(use, variance, 0.0)

    def eliminate(i: Array, carry: tuple[Array, ...]) -> tuple[Array, ...]:
        e, s, u, d = carry
        valid = use[i] & (s[i, i] > floor[i])
        pivot = jnp.where(valid, s[i, i], 1.0)
        gain = jnp.where(valid, s[:, i] / pivot, 0.0)
        u = u.at[i].set(jnp.where(valid, e[i] / jnp.sqrt(pivot), jnp.nan))
        return e - gain * e[i], s - jnp.outer(gain, s[i]), u, d.at[i].set(pivot)

    carry = (e, s, jnp.zeros_like(e), jnp.ones_like(e))
    return jax.lax.fori_loop(0, e.size, eliminate, carry)[2:]


@jax.jit
def log_density(
    error: Float[Array, "T m"], covariance: Float[Array, "T m m"]
) -> Float[Array, " T"]:
    """``log N(error; 0, covariance)`` of what was observed at each moment; 0 where nothing was."""
    u, variance = whiten(error, covariance)
    terms = u**2 + jnp.log(2 * jnp.pi * variance)
    return -0.5 * jnp.nansum(terms, axis=-1)


def gaussian_crps(error: Float[Array, "..."], std: Float[Array, "..."]) -> Float[Array, "..."]:
    """Continuous ranked probability score of ``N(0, std^2)`` at ``error``, in the error's unit.

    Gneiting & Raftery (2007), Strictly proper scoring rules, equation 21 (with the sign reversed, so that
    smaller is better; it is |error| where ``std`` is 0).
    """
    z = error / jnp.where(std > 0, std, 1.0)
    density = jnp.exp(-0.5 * z**2) / jnp.sqrt(2 * jnp.pi)
    score = std * (z * (2 * ndtr(z) - 1) + 2 * density - 1 / jnp.sqrt(jnp.pi))
    return jnp.where(std > 0, score, jnp.abs(error))


@dataclasses.dataclass(frozen=True, eq=False)
class Score:
    """Scores of a forecast against what came. Missing observations are left out.

    Attributes:
        pointwise: log density of what came at each moment, all channels together, shape ``(h,)``.
        errors: observation minus forecast mean, shape ``(h, m)``; NaN where missing.
        crps_each: continuous ranked probability score of each entry, shape ``(h, m)``.
        levels: the probabilities of the central intervals.
        inside: whether each entry lies in each interval, shape ``(levels, h, m)``.
    """

    pointwise: np.ndarray
    errors: np.ndarray
    crps_each: np.ndarray
    levels: tuple[float, ...]
    inside: np.ndarray

    @property
    def count(self) -> int:
        """Number of observed entries."""
        return int(np.isfinite(self.errors).sum())

    @property
    def log_score(self) -> float:
        """Mean log density per moment at which something was observed; larger is better."""
        seen = np.isfinite(self.errors).any(axis=1)
        return float(self.pointwise[seen].mean())

    @property
    def crps(self) -> float:
        """Mean continuous ranked probability score, in the observations' unit; smaller is better."""
        return float(np.nanmean(self.crps_each))

    @property
    def mae(self) -> float:
        """Mean absolute error of the forecast mean (its median too)."""
        return float(np.nanmean(np.abs(self.errors)))

    @property
    def rmse(self) -> float:
        """Root mean squared error of the forecast mean."""
        return float(np.sqrt(np.nanmean(self.errors**2)))

    @property
    def coverage(self) -> dict[float, float]:
        """Share of the observations inside each central interval; near its level when calibrated."""
        seen = np.isfinite(self.errors)
        return {level: float(hit[seen].mean()) for level, hit in zip(self.levels, self.inside)}

    def __str__(self) -> str:
        rows = [
            ("observations", f"{self.count:d}"),
            ("log score per moment", f"{self.log_score:.4f}"),
            ("CRPS", f"{self.crps:.4g}"),
            ("mean absolute error", f"{self.mae:.4g}"),
            ("root mean squared error", f"{self.rmse:.4g}"),
        ]
        rows += [(f"inside the {a:.0%} interval", f"{c:.0%}") for a, c in self.coverage.items()]
        width = max(len(v) for _, v in rows)
        return "\n".join(f"{name:<26}{value:>{width}}" for name, value in rows)


def score_gaussian(
    y: Float[Array, "h m"],
    mean: Float[Array, "h m"],
    covariance: Float[Array, "h m m"],
    levels: tuple[float, ...] = (0.5, 0.8, 0.95),
) -> Score:
    """Scores of the predictions ``N(mean, covariance)`` against ``y``; NaN is missing."""
    error = y - mean
    std = jnp.sqrt(jnp.maximum(jnp.diagonal(covariance, axis1=-2, axis2=-1), 0.0))
    half = ndtri(0.5 + 0.5 * jnp.asarray(levels, error.dtype))[:, None, None] * std
    return Score(
        pointwise=np.asarray(log_density(error, covariance)),
        errors=np.asarray(error),
        crps_each=np.asarray(gaussian_crps(error, std)),
        levels=tuple(levels),
        inside=np.asarray(jnp.abs(error) <= half),
    )
