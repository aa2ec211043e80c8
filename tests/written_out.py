"""A model written out as the arrays of the dense oracle, one step at a time and with no lowering."""

from __future__ import annotations

import numpy as np
from oracle import Dense

import statespace as ss

LOG_2PI = np.log(2 * np.pi)


def dense(model, y, times=None, inputs=None) -> Dense:
    """What the model says of the data y (T, m): every kernel evaluated at every step."""
    y = np.asarray(y, float).reshape(len(y), -1)
    times = np.arange(len(y)) if times is None else np.asarray(times)
    gaps = np.diff(times, prepend=2 * times[0] - times[1])
    steps = [
        ss.Step(t, times[t], gaps[t], None if inputs is None else np.asarray(inputs[t]))
        for t in range(len(y))
    ]
    moves = [model.transition.at(s) for s in steps[1:]]
    looks = [model.observation.at(s) for s in steps]
    initial = model.initial
    directions = initial.diffuse
    P0 = covariance(initial)
    if directions is not None:
        finite = ~np.asarray(directions).astype(bool).any(axis=1)
        P0 = P0 * finite[:, None] * finite[None, :]
    return Dense(
        m0=initial.mean,
        P0=P0,
        A=directions,
        F=np.array([k.matrix for k in moves]),
        b=np.array([k.offset for k in moves]),
        Q=np.array([covariance(k) for k in moves]),
        H=np.array([k.matrix for k in looks]),
        d=np.array([k.offset for k in looks]),
        R=np.array([covariance(k) for k in looks]),
        y=y,
    )


def covariance(law) -> np.ndarray:
    """The covariance of a Gaussian or an affine conditional at one step."""
    if law.covariance is not None:
        return np.asarray(law.covariance)
    scale = np.asarray(law.scale)
    factor = np.diag(scale) if scale.ndim == 1 else scale
    return factor @ factor.T


def diffuse_count(model) -> int:
    """How many directions of the first state are diffuse."""
    return 0 if model.initial.diffuse is None else model.initial.diffuse.shape[1]


def per_direction(value: float, model) -> float:
    """A likelihood of statsmodels, which counts -log(2 pi) / 2 for a diffuse direction, without it."""
    return value + 0.5 * LOG_2PI * diffuse_count(model)
