"""Gaussian-process regression on a subset of the examples."""

from __future__ import annotations

from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import cho_solve, solve_triangular
from jaxtyping import Array, Float

from statespace.decoding.regressor import Regressor, checked_pairs
from statespace.parameters import constant


class GaussianProcess(Regressor):
    """One Gaussian process for each coordinate of the response (Rasmussen & Williams 2006, chapter 2).

    Its kernel is the squared exponential of the Euclidean distance; amplitude, length and noise maximise the
    marginal likelihood, of each coordinate by itself.

    Args:
        points: how many examples to condition on, evenly spaced among those given; cost grows with the cube.
        tuned_on: how many of them the three hyperparameters are found on.

    Raises:
        ValueError: if either number is below 2.
    """

    points: int = eqx.field(static=True, default=1500)
    tuned_on: int = eqx.field(static=True, default=500)
    at: Float[Array, "N m"] | None = constant(default=None, converter=lambda x: x)
    mean: Float[Array, " n"] | None = constant(default=None, converter=lambda x: x)
    hyper: Float[Array, "n 3"] | None = constant(default=None, converter=lambda x: x)
    weights: Float[Array, "n N"] | None = constant(default=None, converter=lambda x: x)
    factors: Float[Array, "n N N"] | None = constant(default=None, converter=lambda x: x)

    def __check_init__(self) -> None:
        if self.points < 2 or self.tuned_on < 2:
            raise ValueError(
                "`points` and `tuned_on` of GaussianProcess must be at least 2, got "
                f"{self.points} and {self.tuned_on}."
            )

    def fit(self, y: Float[Array, "N m"], responses: Float[Array, "N n"]) -> GaussianProcess:
        """Find the hyperparameters, if they are not known yet, and condition on the examples."""
        y, responses = checked_pairs(y, responses, "GaussianProcess")
        mean = jnp.mean(responses, axis=0)
        hyper = self.hyper
        if hyper is None:
            few = _evenly(len(y), self.tuned_on)
            hyper = jnp.stack([_tune(y[few], values[few]) for values in (responses - mean).T])
        kept = _evenly(len(y), self.points)
        at = y[kept]
        made = [_condition(at, v[kept], h) for v, h in zip((responses - mean).T, hyper)]
        weights, factors = (jnp.stack(part) for part in zip(*made))
        return self.fitted(at=at, mean=mean, hyper=hyper, weights=weights, factors=factors)

    def __call__(self, y: Float[Array, " m"]) -> Float[Array, " n"]:
        """The mean response at one observation."""
        at = self.found("at")
        cross = jax.vmap(lambda h: _kernel(h, at, y[None])[:, 0])(self.hyper)
        return self.mean + jnp.sum(cross * self.weights, axis=1)

    def covariance(self, y: Float[Array, " m"]) -> Float[Array, "n n"]:
        """The predictive covariance of a response, its noise included: diagonal, as coordinates are apart."""
        at = self.found("at")

        def variance(h: Array, factor: Array) -> Array:
            half = solve_triangular(factor, _kernel(h, at, y[None])[:, 0], lower=True)
            return jnp.exp(2 * h[0]) - jnp.sum(half**2) + jnp.exp(2 * h[2])

        # one after the other: see statespace.chains.gaussian.covariances.factorise_moments
        each = [variance(h, factor) for h, factor in zip(self.hyper, self.factors)]
        return jnp.diag(jnp.stack(each))


def _evenly(count: int, wanted: int) -> np.ndarray:
    return np.unique(np.linspace(0, count - 1, min(count, wanted)).round().astype(int))


def _kernel(h: Array, a: Array, b: Array) -> Float[Array, "A B"]:
    """``h`` holds logarithms of amplitude, length and standard deviation of the noise."""
    square = (
        jnp.sum(a**2, axis=1)[:, None]
        + jnp.sum(b**2, axis=1)
        - 2 * jnp.matmul(a, b.T, precision="highest")
    )
    return jnp.exp(2 * h[0] - 0.5 * jnp.maximum(square, 0) * jnp.exp(-2 * h[1]))


def _noisy(h: Array, at: Array) -> Array:
    jitter = 10 * jnp.finfo(at.dtype).eps * jnp.exp(2 * h[0])
    return _kernel(h, at, at) + (jnp.exp(2 * h[2]) + jitter) * jnp.eye(len(at), dtype=at.dtype)


@jax.jit
def _condition(at: Array, values: Array, h: Array) -> tuple[Array, Array]:
    factor = jnp.linalg.cholesky(_noisy(h, at))
    return cho_solve((factor, True), values), factor


@jax.jit
@partial(jax.value_and_grad)
def _negative_evidence(h: Array, at: Array, values: Array) -> Array:
    factor = jnp.linalg.cholesky(_noisy(h, at))
    half = solve_triangular(factor, values, lower=True)
    total = 0.5 * jnp.sum(half**2) + jnp.sum(jnp.log(jnp.diagonal(factor)))
    return total / len(values)


def _tune(at: Array, values: Array) -> Float[Array, " 3"]:
    from scipy.optimize import minimize

    spread = float(jnp.std(values))
    length = float(jnp.sqrt(jnp.sum(jnp.var(at, axis=0))))
    start = np.log([spread, length, 0.7 * spread])

    def objective(h: np.ndarray) -> tuple[float, Any]:
        value, slope = _negative_evidence(jnp.asarray(h, at.dtype), at, values)
        if not np.isfinite(value):
            return 1e10, np.zeros(3)
        return float(value), np.asarray(slope, float)

    # bounds: where nothing more is to be gained, and the matrix could become singular
    bounds = [(x - 5, x + 5) for x in start[:2]] + [(start[2] - 6, start[2] + 3)]
    found = minimize(objective, start, jac=True, method="L-BFGS-B", bounds=bounds)
    return jnp.asarray(found.x, at.dtype)
