"""Ensemble updates: the gain of a Kalman filter, with sample covariances in place of exact ones.

Ensembles are arrays with members first, ``(N, n)``; an update also takes ``(N, n, k)``, states of k moments
that are all to hear of one observation. A missing channel has zero rows of everything, and unit noise.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

LOG_2PI = 1.8378770664093453


def anomalies(ensemble: Float[Array, "N *n"]) -> Float[Array, "N *n"]:
    """Deviations from the mean, over ``sqrt(N - 1)``: their products are sample covariances."""
    return (ensemble - jnp.mean(ensemble, axis=0)) / jnp.sqrt(len(ensemble) - 1.0)


def inflated(ensemble: Float[Array, "N n"], factor: float) -> Float[Array, "N n"]:
    """The same mean, with deviations that are larger."""
    mean = jnp.mean(ensemble, axis=0)
    return mean + factor * (ensemble - mean)


def log_density(
    seen: Float[Array, "N m"],
    noise: Float[Array, "m m"],
    error: Float[Array, " m"],
    mask: Bool[Array, " m"],
) -> Float[Array, ""]:
    """Log density of an observation under the ensemble's normal prediction."""
    a = anomalies(seen) * mask
    factor = jnp.linalg.cholesky(a.T @ a + noise)
    white = jax.scipy.linalg.solve_triangular(factor, error, lower=True)
    scale = jnp.sum(jnp.log(jnp.diagonal(factor)))
    return -scale - 0.5 * jnp.sum(white**2) - 0.5 * LOG_2PI * jnp.sum(mask)


def stochastic(
    ensemble: Float[Array, "N n *k"],
    seen: Float[Array, "N m"],
    noise: Float[Array, "m m"],
    error: Float[Array, " m"],
    perturbations: Float[Array, "N m"],
    tapers: tuple[Array, Array] | None = None,
) -> Float[Array, "N n *k"]:
    """Every member moves by the gain, each towards an observation perturbed anew (Burgers et al. 1998).

    Args:
        ensemble: states; earlier ones move by their covariance with the observation.
        seen: what each predicts to be observed, zero where missing.
        noise: covariance of the observation.
        error: the observation minus the mean of ``seen``.
        perturbations: draws of the observation's noise; their mean is taken out.
        tapers: influence of observations on states ``(n, m)`` and on each other ``(m, m)``.
    """
    x, y = anomalies(ensemble), anomalies(seen)
    cross, own = jnp.tensordot(y, x, axes=(0, 0)), y.T @ y
    if tapers is not None:
        reach = tapers[0].T.reshape(cross.shape[:2] + (1,) * (cross.ndim - 2))
        cross, own = cross * reach, own * tapers[1]
    factor = jax.scipy.linalg.cho_factor(own + noise, lower=True)
    perturbations = perturbations - jnp.mean(perturbations, axis=0)
    surprise = error + perturbations - (seen - jnp.mean(seen, axis=0))
    weights = jax.scipy.linalg.cho_solve(factor, surprise.T).T
    return ensemble + jnp.tensordot(weights, cross, axes=1)


def transform(
    ensemble: Float[Array, "N n *k"],
    seen: Float[Array, "N m"],
    noise: Float[Array, "m m"],
    error: Float[Array, " m"],
    taper: Float[Array, "n m"] | None = None,
) -> Float[Array, "N n *k"]:
    """The ensemble transform filter: one symmetric transformation of the members, nothing drawn at random.

    Bishop, Etherton & Majumdar (2001); Hunt, Kostelich & Szunyogh (2007). With a taper every coordinate of
    the state has a transformation of its own, for which far-off observations have more noise (LETKF); its
    values at earlier moments take part in it (Nerger, Schulte & Bunse-Gerstner 2014).

    Args:
        ensemble: states.
        seen: what each predicts to be observed, zero where missing.
        noise: covariance of the observation; diagonal where there is a taper.
        error: the observation minus the mean of ``seen``.
        taper: influence of each observation on each coordinate of the state.
    """
    mean, x = jnp.mean(ensemble, axis=0), anomalies(ensemble)
    factor = jnp.linalg.cholesky(noise)
    whiten = lambda a: jax.scipy.linalg.solve_triangular(factor, a, lower=True)
    s, e = whiten(anomalies(seen).T).T, whiten(error)
    if taper is None:
        return mean + _transformed(s, e, x.reshape(len(x), -1)).reshape(x.shape)

    def coordinate(x: Float[Array, "N k"], reach: Float[Array, " m"]) -> Float[Array, "N k"]:
        root = jnp.sqrt(reach)
        return _transformed(s * root, e * root, x)

    columns = x.reshape(*x.shape[:2], -1)
    moved = jax.vmap(coordinate, in_axes=(1, 0), out_axes=1)(columns, taper)
    return mean + moved.reshape(x.shape)


def _transformed(s: Float[Array, "N m"], e: Float[Array, " m"], x: Array) -> Float[Array, "N n"]:
    """Deviations from the old mean: the mean's move along the anomalies, and the anomalies transformed.

    By the thin singular values of ``S``: ``(I + S S^T)^{-1/2} = I + U ((1 + d²)^{-1/2} - 1) U^T``.
    """
    u, d, v = jnp.linalg.svd(s, full_matrices=False)
    along = u.T @ x
    move = (d / (1 + d**2) * (v @ e)) @ along
    turned = x + (u * (1 / jnp.sqrt(1 + d**2) - 1)) @ along
    return move + jnp.sqrt(len(x) - 1.0) * turned


def smooth(
    filtered: Float[Array, "T N n"], forecast: Float[Array, "T N n"]
) -> Float[Array, "T N n"]:
    """The Rauch–Tung–Striebel smoother of ensembles (Raanes 2016, section 3).

    Its gains are of all coordinates on all: it is not for ensembles that had to be localised.

    Args:
        filtered: ensembles after each observation.
        forecast: the same members before it; those of the first moment are not used.
    """

    def back(later: Array, at: tuple[Array, Array]) -> tuple[Array, Array]:
        here, ahead = at
        x, a = anomalies(here), anomalies(ahead)
        gain = jnp.linalg.pinv(a, rtol=1e-8) @ x  # (n, n), of the next state on this one
        out = here + (later - ahead) @ gain
        return out, out

    last = filtered[-1]
    _, earlier = jax.lax.scan(back, last, (filtered[:-1], forecast[1:]), reverse=True)
    return jnp.concatenate([earlier, last[None]])
