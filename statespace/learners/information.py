"""The observed information: how well each parameter is determined."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from statespace.learners.problem import Problem, scale_of_values
from statespace.parameters import parameters


class Uncertainty(NamedTuple):
    """Sampling uncertainty of the free parameters, from the curvature at the maximum.

    Attributes:
        unconstrained: standard errors in the unconstrained space, by name; NaN where the data leave
            a parameter undetermined.
        standard_errors: standard errors of the parameters, by name and of their shape (delta method).
        covariance: covariance of all free parameters on their own scale, flattened one after the
            other in the order of ``standard_errors``.
    """

    unconstrained: dict[str, np.ndarray]
    standard_errors: dict[str, np.ndarray]
    covariance: Float[np.ndarray, "k k"]


class Bends(NamedTuple):
    """Eigenvalues and eigenvectors of a Hessian whose coordinates are scaled to unit curvature."""

    scale: np.ndarray
    values: np.ndarray
    vectors: np.ndarray
    flat: np.ndarray  # directions in which there is no curvature beyond rounding


def bends(hessian: Float[np.ndarray, "p p"], value: float, eps: float) -> Bends:
    """The curvature of a loss of size ``value``, apart from what rounding makes of it.

    Where a second derivative could not be computed, nothing is known of the curvature: it counts as flat.
    """
    hessian = np.where(np.isfinite(hessian), hessian, 0.0)
    noise = 1e3 * eps * max(1.0, abs(value))
    size = np.abs(np.diag(hessian))
    scale = 1.0 / np.sqrt(np.maximum(size, noise))
    values, vectors = np.linalg.eigh(hessian * scale[:, None] * scale[None, :])
    tolerance = len(hessian) * max(eps**0.5, 1e-7)
    # A direction of unit length in the unconstrained space along which the loss bends by less than its
    # own rounding error is flat as well.
    along = vectors * scale[:, None]
    actual = np.abs(values) / np.sum(along**2, axis=0)
    return Bends(scale, values, vectors, (np.abs(values) <= tolerance) | (actual <= noise))


def uncertainty(problem: Problem, z: np.ndarray, shape: Bends) -> Uncertainty:
    """Standard errors and covariance of the free parameters at ``z``."""
    keep = ~shape.flat & (shape.values > 0)
    vectors = shape.vectors * shape.scale[:, None]
    root = vectors[:, keep] / np.sqrt(shape.values[keep])
    lost = np.abs(shape.vectors[:, ~keep]).max(axis=1, initial=0.0) > 1e-3

    sd = np.where(lost, np.nan, np.sqrt(np.sum(root**2, axis=1)))
    jacobian = {k: np.asarray(v, float) for k, v in scale_of_values(problem, z).items()}
    stacked = np.concatenate(list(jacobian.values()))
    unknown = np.abs(stacked[:, lost]).max(axis=1, initial=0.0) > 0
    factor = stacked @ root
    covariance = factor @ factor.T
    covariance[unknown] = np.nan
    covariance[:, unknown] = np.nan

    values = parameters(problem.model)
    errors, ends = {}, np.cumsum([len(j) for j in jacobian.values()])
    diagonal = np.sqrt(np.diag(covariance))
    for name, part in zip(jacobian, np.split(diagonal, ends[:-1])):
        errors[name] = part.reshape(values[name].shape)
    unconstrained = {k: np.asarray(v) for k, v in problem.split(sd).items()}
    return Uncertainty(unconstrained, errors, covariance)
