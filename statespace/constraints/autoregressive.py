"""Stationary autoregressions and invertible moving averages as constraints."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from numpyro.distributions import biject_to, constraints
from numpyro.distributions.transforms import ParameterFreeTransform

from statespace.models import polynomials, vector_autoregression


class _Stationary(constraints.ParameterFreeConstraint):
    event_dim = 1

    def __call__(self, x: Any) -> Array:
        return polynomials.is_stationary(jnp.asarray(x))

    def feasible_like(self, prototype: Any) -> Array:
        return jnp.zeros_like(prototype)


class _Invertible(_Stationary):
    def __call__(self, x: Any) -> Array:
        return polynomials.is_invertible(jnp.asarray(x))


stationary = _Stationary()
"""Coefficients of a stationary autoregression, in the last axis."""

invertible = _Invertible()
"""Coefficients of an invertible moving average ``e_t + theta_1 e_{t-1} + ...``, in the last axis."""


class StationaryTransform(ParameterFreeTransform):
    """Unconstrained numbers to the coefficients of a stationary autoregression."""

    domain = constraints.real_vector
    codomain = stationary
    _sign = 1.0

    def __call__(self, x: Float[Array, "*b p"]) -> Float[Array, "*b p"]:
        """``phi`` whose partial autocorrelations are ``tanh(x)``."""
        return self._sign * polynomials.from_partial(jnp.tanh(x))

    def _inverse(self, y: Float[Array, "*b p"]) -> Float[Array, "*b p"]:
        return jnp.arctanh(polynomials.to_partial(self._sign * y))

    def log_abs_det_jacobian(
        self, x: Float[Array, "*b p"], y: Float[Array, "*b p"], intermediates: Any = None
    ) -> Float[Array, "*b"]:
        """``log |d phi / d x|``: Barndorff-Nielsen & Schou (1973), equation (9), times that of tanh.

        A partial autocorrelation ``r_k`` adds ``r_k`` times the reversal to a vector of k - 1 coefficients:
        half of the eigenvalues of that map are ``1 - r_k``, the others ``1 + r_k``.
        """
        k = jnp.arange(x.shape[-1])
        # log(1 - tanh x) and log(1 + tanh x), without cancellation at large |x|
        minus = jnp.log(2.0) - jax.nn.softplus(2.0 * x)
        plus = jnp.log(2.0) - jax.nn.softplus(-2.0 * x)
        return jnp.sum((1 + (k + 1) // 2) * minus + (1 + k // 2) * plus, axis=-1)


class InvertibleTransform(StationaryTransform):
    """Unconstrained numbers to the coefficients of an invertible moving average."""

    codomain = invertible
    _sign = -1.0


class _StationaryVector(constraints.ParameterFreeConstraint):
    event_dim = 3

    def __call__(self, x: Any) -> Array:
        return vector_autoregression.is_stationary(jnp.asarray(x))

    def feasible_like(self, prototype: Any) -> Array:
        return jnp.zeros_like(prototype)


stationary_vector = _StationaryVector()
"""Matrices ``(p, k, k)`` of a stationary vector autoregression."""


class StationaryVectorTransform(ParameterFreeTransform):
    """Unconstrained ``(p, k, k)`` to the matrices of a stationary vector autoregression."""

    domain = constraints.independent(constraints.real, 3)
    codomain = stationary_vector

    def __call__(self, x: Float[Array, "*b p k k"]) -> Float[Array, "*b p k k"]:
        """``Phi`` whose partial autocorrelations are ``(I + A A^T)^(-1/2) A``."""
        return vector_autoregression.from_free(x)

    def _inverse(self, y: Float[Array, "*b p k k"]) -> Float[Array, "*b p k k"]:
        return vector_autoregression.to_free(y)

    def log_abs_det_jacobian(
        self, x: Float[Array, "*b p k k"], y: Float[Array, "*b p k k"], intermediates: Any = None
    ) -> Float[Array, "*b"]:
        """``log |d Phi / d A|``, from the dense Jacobian of the ``p k^2`` entries."""

        def one(a: Array) -> Array:
            jacobian = jax.jacfwd(vector_autoregression.from_free)(a).reshape(a.size, a.size)
            return jnp.linalg.slogdet(jacobian)[1]

        return vector_autoregression.batched(one)(x)


biject_to.register(_Stationary)(lambda constraint: StationaryTransform())
biject_to.register(_Invertible)(lambda constraint: InvertibleTransform())
biject_to.register(_StationaryVector)(lambda constraint: StationaryVectorTransform())
