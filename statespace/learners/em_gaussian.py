"""EM for linear Gaussian models: smooth the states, then regress on them.

References:
    Shumway & Stoffer (1982); Ghahramani & Hinton (1996), Parameter estimation for linear dynamical systems,
    equations 11-20; for missing channels Holmes, Ward & Wills (2012).
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from statespace.learners import regressions
from statespace.learners.expectations import expectations
from statespace.learners.problem import Problem
from statespace.learners.regressions import Statistics
from statespace.methods.unknown_scale import ConjugateScale
from statespace.parameters import parameters

REMEDY = "use float64, or Kalman(form='sqrt')"


def check(problem: Problem) -> None:
    """Refuse noise that has no closed form.

    Raises:
        TypeError: if the model has no closed-form M-step, or the method an unknown scale.
        ValueError: if a scale has none.
    """
    if isinstance(problem.method, ConjugateScale):
        raise TypeError(
            "EM regresses on states whose covariances are known, and not on those of ConjugateScale: use "
            "MaximumLikelihood(), or EM with Kalman()."
        )
    regressions.check_scales(problem.model)


def expect(model: Any, problem: Problem) -> tuple[Float[Array, ""], dict[str, Statistics]]:
    """Log likelihood, and the statistics of each regression."""
    parts = regressions.regressions(model)
    return expectations(model, problem.data, problem.method, parts)


def maximise(
    model: Any, problem: Problem, statistics: dict[str, Statistics], floor: Float[Array, ""]
) -> tuple[dict[str, Array], Bool[Array, ""]]:
    """New values of the free parameters, and whether a covariance has collapsed."""
    new: dict[str, Array] = {}
    collapsed = jnp.zeros((), bool)
    for part in regressions.regressions(model):
        given = statistics[part.label]
        moved, flag = regressions.maximise(model, part, given, problem.priors, floor)
        new |= moved
        collapsed = collapsed | flag
    return new, collapsed


def collapse(model: Any) -> str:
    """What a collapse is, and what to do about it."""
    values = parameters(model)
    names = [part.scale for part in regressions.regressions(model)]
    scales = ", ".join(
        f"{n} = {np.array2string(np.asarray(values[n]), precision=3)}" for n in names
    )
    return (
        "a noise covariance collapsed to zero beside what it is the noise of (the likelihood has no "
        "maximum, or one on the boundary). Give EM(floor=...) a least variance, put a prior on the scale, "
        f"freeze it, or use fewer states. The scales are now {scales}."
    )
