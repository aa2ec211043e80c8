"""Exact inference in linear Gaussian models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from statespace.chains import gaussian
from statespace.methods.gaussian_lowering import (
    check_shapes,
    initial_law,
    linear,
    noise_over_time,
    observed,
    widened,
)
from statespace.methods.gaussian_method import GaussianMethod, Lowered, in_parallel
from statespace.methods.lowering import at, dtype_of, stack, steps_of
from statespace.series import Series

if TYPE_CHECKING:
    from statespace.methods.online_kalman import Online


class Kalman(GaussianMethod):
    """Exact filter and smoother of linear Gaussian models (Kalman 1960; Rauch, Tung & Striebel 1965).

    Needs: ``initial`` Gaussian; ``transition`` an ``AffineGaussian`` or ``LinearDiffusion``;
    ``observation`` an ``AffineGaussian``. Missing entries, irregular times, inputs and exactly diffuse
    initial states are supported.

    Args:
        form: "covariance", or "sqrt" for recursions on factors, which float32 and nearly singular models
            need. None: "sqrt" in float32, "covariance" in float64.
        parallel: whether to use associative scans (Särkkä & García-Fernández 2021), whose depth is
            logarithmic in the number of moments. They need positive definite ``H Q H^T + R``. None: on
            accelerators only.

    Raises:
        ValueError: if ``form`` is neither.
    """

    def lower(self, model: Any, series: Series) -> Lowered:
        """The chain of a model on a recording.

        Raises:
            TypeError: if a conditional is not of a kind that exact Gaussian inference needs.
            ValueError: if the conditionals' shapes do not fit each other or the recording.
        """
        steps, varies = steps_of(series)
        initial = initial_law(model, at(steps, 0))
        transition = linear(model, "transition", type(self).__name__)
        observation = linear(model, "observation", type(self).__name__)
        check_shapes(initial, transition, observation, series, at(steps, 0))
        later = jax.tree.map(lambda x: x[1:] if len(series) > 1 else x, steps)
        moves = stack(transition.at, later, varies)
        sees = stack(observation.at, steps, varies)
        dtype = dtype_of(series, initial, moves, sees)
        form = self.form or ("sqrt" if dtype == jnp.float32 else "covariance")
        parallel = in_parallel(self.parallel, series)
        chain = gaussian.Chain(
            gaussian.Initial(initial.mean, widened(initial, moves, sees, form), initial.diffuse),
            gaussian.Transitions(moves.matrix, moves.offset, noise_over_time(moves, form)),
            observed(sees, noise_over_time(sees, form), series),
        )
        chain = jax.tree.map(lambda x: x if x.dtype == bool else x.astype(dtype), chain)
        return Lowered(chain, {"form": form, "parallel": parallel})

    def online(self, model: Any, dt: float) -> Online:
        """The filter one observation at a time."""
        from statespace.methods.online_kalman import Online

        return Online(model, self, dt)
