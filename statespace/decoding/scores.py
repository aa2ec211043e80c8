"""How well states were decoded."""

from __future__ import annotations

from typing import Any

import numpy as np


def normalised_rmse(states: Any, decoded: Any) -> float:
    """Root mean squared error relative to that of decoding zero throughout.

    Args:
        states: the true states, shape ``(T, n)``.
        decoded: the decoded ones, shape ``(T, n)``.

    Raises:
        ValueError: if the shapes differ.
    """
    states, decoded = _pair(states, decoded)
    return float(np.sqrt(np.mean((states - decoded) ** 2) / np.mean(states**2)))


def angular_error(states: Any, decoded: Any) -> float:
    """Mean absolute angle between true and decoded vectors, in radians: guessing gives ``pi / 2``.

    Moments at which either vector is zero have no angle, and do not count.

    Args:
        states: the true states, shape ``(T, n)``.
        decoded: the decoded ones, shape ``(T, n)``.

    Raises:
        ValueError: if the shapes differ.
    """
    states, decoded = _pair(states, decoded)
    size = np.linalg.norm(states, axis=1) * np.linalg.norm(decoded, axis=1)
    cosine = np.sum(states * decoded, axis=1)[size > 0] / size[size > 0]
    return float(np.mean(np.arccos(np.clip(cosine, -1, 1))))


def _pair(states: Any, decoded: Any) -> tuple[np.ndarray, np.ndarray]:
    states, decoded = np.asarray(states, float), np.asarray(decoded, float)
    if states.ndim != 2 or states.shape != decoded.shape:
        raise ValueError(
            f"`states` and `decoded` must have one shape (T, n), got {states.shape} and {decoded.shape}."
        )
    return states, decoded
