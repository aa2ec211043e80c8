"""Starting values of linear dynamics seen through counts, from the counts' moments alone.

Where a log rate is normal the covariance of counts is a known function of that of log rates, which can be
inverted; its leading directions are the loadings, and covariances between one moment and later ones the
dynamics. Buesing, Macke & Sahani (2012), Spectral learning of linear dynamics from generalised-linear
observations with application to neural population data, NIPS 25.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

_LAGS = 4  # of the covariances that the dynamics are taken from
_ROUNDS = 100  # of principal factoring
_RADIUS = 0.99  # of the dynamics, at most


class PredictorMoments(NamedTuple):
    """Moments of the linear predictors of m channels.

    Attributes:
        mean: shape ``(m,)``.
        covariances: at the lags 0 … L, ``cov(later, earlier)``, shape ``(L + 1, m, m)``.
        overdispersion: variance of counts beyond Poisson's, in squared means, shape ``(m,)``.
    """

    mean: np.ndarray
    covariances: np.ndarray
    overdispersion: np.ndarray


class Dynamics(NamedTuple):
    """Linear dynamics whose stationary law is about standard normal.

    Attributes:
        matrix: shape ``(n, n)``.
        noise: covariance, shape ``(n, n)``.
        loadings: shape ``(m, n)``.
    """

    matrix: np.ndarray
    noise: np.ndarray
    loadings: np.ndarray


def count_covariances(recordings: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Means ``(m,)`` and covariances ``(L + 1, m, m)`` of channels at lags, missing entries left out.

    Args:
        recordings: each ``(T, m)``, NaN where missing.

    Raises:
        ValueError: if a channel has no observation.
    """
    rows = np.concatenate(recordings)
    seen = np.isfinite(rows)
    if not seen.any(axis=0).all():
        empty = np.flatnonzero(~seen.any(axis=0)).tolist()
        raise ValueError(f"channels {empty} of `counts` have no observation; leave them out.")
    mean = np.where(seen, rows, 0).sum(axis=0) / seen.sum(axis=0)
    covariances = []
    for lag in range(_LAGS + 1):
        total, pairs = np.zeros((len(mean),) * 2), np.zeros((len(mean),) * 2)
        for y in recordings:
            here = np.isfinite(y)
            centred = np.where(here, y - mean, 0.0)
            length = max(len(y) - lag, 0)
            total += centred[lag:].T @ centred[:length]
            pairs += here[lag:].T.astype(float) @ here[:length]
        covariances.append(total / np.maximum(pairs, 1))
    return mean, np.stack(covariances)


def log_linear_moments(
    mean: np.ndarray, covariances: np.ndarray, *, poisson: bool, states: int
) -> PredictorMoments:
    """Of log rates, from those of counts: ``cov(y_i, y_j) = m_i m_j (exp(s_ij) - 1)``, and noise if i = j.

    Args:
        mean: of the counts, positive.
        covariances: of the counts at lags.
        poisson: whether the noise has the variance of the mean; if not, variances say nothing of log rates.
        states: number of factors.
    """
    products = mean[:, None] * mean
    first = covariances[0] - (np.diag(mean) if poisson else 0)
    scaled = np.concatenate([first[None], covariances[1:]]) / products
    found = np.log1p(np.clip(scaled, -0.9, None))
    found[0] = _symmetric(found[0])
    if not poisson:
        found[0] = principal_factors(found[0], _communalities(found), states)
    variance = np.maximum(np.diagonal(found[0]), 0)
    excess = (np.diagonal(covariances[0]) - mean) / mean**2
    over = (1 + excess) / np.exp(variance) - 1
    return PredictorMoments(np.log(mean) - variance / 2, found, over)


def logistic_moments(
    mean: np.ndarray, covariances: np.ndarray, trials: np.ndarray, *, states: int
) -> PredictorMoments:
    """Of log odds, from those of successes in ``trials``, to first order.

    Args:
        mean: of the counts, between 0 and ``trials``.
        covariances: of the counts at lags.
        trials: shape ``(m,)``.
        states: number of factors.
    """
    p = mean / trials
    slope = trials * p * (1 - p)
    found = covariances / (slope[:, None] * slope)
    found[0] = principal_factors(_symmetric(found[0]), _communalities(found), states)
    return PredictorMoments(np.log(p / (1 - p)), found, np.zeros_like(mean))


def principal_factors(covariance: np.ndarray, start: np.ndarray, states: int) -> np.ndarray:
    """The covariance with its diagonal replaced by what n factors explain of it.

    With few channels that is not determined, and the diagonal becomes the given one.

    Args:
        covariance: shape ``(m, m)``, whose diagonal is not used.
        start: a first value of the diagonal.
        states: number of factors n.
    """
    out = covariance.copy()
    np.fill_diagonal(out, start)
    if len(out) > 2 * states:
        for _ in range(_ROUNDS):
            values, axes = np.linalg.eigh(out)
            leading = axes[:, -states:] ** 2 @ np.maximum(values[-states:], 0)
            np.fill_diagonal(out, leading)
    return out


def dynamics(covariances: np.ndarray, states: int) -> Dynamics:
    """Loadings from the covariance of predictors, and dynamics from those at lags.

    With ``G_k = H^+ S_k H^{+T}`` the covariances of the states, the matrix is the one that takes each to the
    next, ``G_{k+1} = F G_k``, by least squares.

    Args:
        covariances: of the predictors, shape ``(L + 1, m, m)``.
        states: number of states n.
    """
    values, axes = np.linalg.eigh(covariances[0])
    values, axes = values[::-1][:states], axes[:, ::-1][:, :states]
    # a direction that the moments do not see still needs a loading to learn from
    strength = np.sqrt(np.maximum(values, max(0.01 * values[0], 1e-3)))
    loadings = axes * strength
    inverse = axes / strength
    states_covariances = inverse.T @ covariances @ inverse
    states_covariances[0] = np.eye(states)
    before, after = states_covariances[:-1], states_covariances[1:]
    matrix = np.linalg.lstsq(
        before.transpose(0, 2, 1).reshape(-1, states),
        after.transpose(0, 2, 1).reshape(-1, states),
        rcond=None,
    )[0].T
    matrix *= min(1, _RADIUS / max(np.abs(np.linalg.eigvals(matrix)).max(), 1e-12))
    left, axes = np.linalg.eigh(np.eye(states) - matrix @ matrix.T)
    noise = axes * np.maximum(left, 1e-3) @ axes.T
    return Dynamics(matrix, noise, loadings)


def _communalities(covariances: np.ndarray) -> np.ndarray:
    """A first guess of variances without noise: covariances with the next moment, which have none."""
    return np.abs(np.diagonal(covariances[1]))


def _symmetric(matrix: np.ndarray) -> np.ndarray:
    return (matrix + matrix.T) / 2
