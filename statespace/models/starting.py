"""Starting values of multivariate models, from data: principal components and least squares."""

from __future__ import annotations

import numpy as np


def principal_components(
    y: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Principal components with unit variance; a missing entry counts as the mean of its channel.

    Args:
        y: shape ``(T, m)``, NaN where missing.
        count: number of components k.

    Returns:
        loadings ``(m, k)``, components ``(T, k)``, what they leave ``(T, m)``, and the mean ``(m,)``.

    Raises:
        ValueError: if a channel has no observation, or the data span fewer than ``count`` dimensions.
    """
    present = np.isfinite(y)
    if not present.any(axis=0).all():
        empty = np.flatnonzero(~present.any(axis=0)).tolist()
        raise ValueError(f"channels {empty} of `y` have no observation; leave them out.")
    mean = np.nanmean(np.where(present, y, np.nan), axis=0)
    centred = np.where(present, y - mean, 0.0)
    u, s, vt = np.linalg.svd(centred, full_matrices=False)
    if s[count - 1] <= 1e-6 * s[0]:
        raise ValueError(f"`y` spans fewer than {count} dimensions; ask for fewer states.")
    root_t = np.sqrt(len(y))
    states = u[:, :count] * root_t
    loadings = vt[:count].T * s[:count] / root_t
    return loadings, states, centred - states @ loadings.T, mean


def least_squares_autoregression(
    states: np.ndarray, order: int, radius: float = 0.98
) -> tuple[np.ndarray, np.ndarray]:
    """Matrices ``(p, k, k)`` of a vector autoregression, made stable, and the covariance of its noise."""
    t, k = states.shape
    lagged = np.concatenate([states[order - j : t - j] for j in range(1, order + 1)], axis=1)
    fit = np.linalg.lstsq(lagged, states[order:], rcond=None)[0]
    phi = fit.T.reshape(k, order, k).transpose(1, 0, 2)
    companion = np.eye(order * k, k=-k)
    companion[:k] = fit.T
    largest = np.abs(np.linalg.eigvals(companion)).max()
    if largest > radius:
        phi = phi * (radius / largest) ** np.arange(1, order + 1)[:, None, None]
    rest = states[order:] - sum(
        states[order - j : t - j] @ phi[j - 1].T for j in range(1, order + 1)
    )
    return phi, rest.T @ rest / len(rest) + 1e-3 * np.eye(k)
