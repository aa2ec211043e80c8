"""How a noisy search of the maximum ends: what its way says of where it got to."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, PRNGKeyArray

from statespace.learners.estimates import end, estimates, still_rising
from statespace.learners.problem import Problem
from statespace.learners.result import FitResult

_PARTS = 8  # of the way, whose means are looked at


def searched(
    problem: Problem,
    data: Any,
    seen: Float[np.ndarray, "iterations p"],
    key: PRNGKeyArray,
    *,
    learner: str,
    lost: str,
    averaged: bool = True,
    remedy: str = "raise `iterations`",
) -> FitResult:
    """The result of a search: the mean of its second half, compared with that of its second quarter.

    Args:
        problem: as :func:`statespace.learners.estimates.beginning` made it.
        data: as :func:`statespace.fit` was given it.
        seen: unconstrained parameters after each iteration.
        key: for estimates of the log likelihood along the way.
        learner: what found it, in words.
        lost: what to do where the parameters leave their support.
        averaged: whether the mean of the second half is the result; False: the last point.
        remedy: what to do where the search was too short.

    Raises:
        ValueError: if the parameters left their support.
    """
    outside = np.flatnonzero(~np.isfinite(seen).all(axis=1))
    if len(outside):
        raise ValueError(
            f"{learner}: a parameter left its support at iteration {outside[0]}; {lost}."
        )
    last = seen[len(seen) // 2 :].mean(axis=0) if averaged else seen[-1]
    points = np.stack([*(part.mean(axis=0) for part in np.array_split(seen, _PARTS)), last])
    found = estimates(problem, jnp.asarray(points), key)
    return end(
        problem,
        data,
        jnp.asarray(last),
        learner=learner,
        found=found,
        index=_PARTS,
        reason=still_rising(found, _PARTS // 2 - 1, _PARTS, remedy),
        done="the second half of the iterations gained nothing",
        iterations=len(seen),
        trace=found.density,
    )
