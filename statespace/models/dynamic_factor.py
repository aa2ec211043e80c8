"""The dynamic factor model: many series moved by a few factors with dynamics of their own."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import block_diag
from jaxtyping import Array, Float

from statespace.checks import (
    is_lower_with_positive_diagonal,
    known,
    optional_array,
    require_finite,
    require_positive,
    require_shape,
    require_support,
)
from statespace.conditionals.affine import AffineGaussian, Gaussian
from statespace.models.starting import least_squares_autoregression, principal_components
from statespace.models.vector_autoregression import (
    companion,
    stationary_covariance,
)
from statespace.parameters import parameter


class DynamicFactor(eqx.Module):
    """``y_t = mean + loadings f_t + u_t`` with ``f_t = sum_j Phi_j f_{t-j} + e_t``, ``e_t ~ N(0, I)``.

    Geweke (1977); Stock & Watson (2011), section 2. The factors are identified by unit innovations and
    by loadings that are zero above the diagonal and positive on it: the first series moves with
    the first factor only. The idiosyncratic ``u_t`` is white, or each series' own first-order
    autoregression. Everything starts in its stationary law.

    States: the factors and their lags, ``f_t, …, f_{t-p+1}``; then ``u_t`` where it is autoregressive.

    Args:
        loadings: shape ``(m, k)``, m >= k, zero above the diagonal and positive on it.
        factor_matrices: ``Phi``, shape ``(p, k, k)``, stationary.
        noise_scale: standard deviations of ``u_t`` (of its innovations where autoregressive), shape ``(m,)``.
        idiosyncratic_ar: shape ``(m,)``, in (-1, 1); None for white ``u_t``.
        mean: shape ``(m,)``; None for zero.

    Raises:
        ValueError: if shapes do not fit, loadings do not have their form, the factors are not stationary, or
            a scale is not positive.
    """

    loadings: Float[Array, "m k"] = parameter("lower_trapezoidal")
    factor_matrices: Float[Array, "p k k"] = parameter("stationary_vector")
    noise_scale: Float[Array, " m"] = parameter("positive")
    idiosyncratic_ar: Float[Array, " m"] | None = parameter(
        "correlation", converter=optional_array, default=None
    )
    mean: Float[Array, " m"] | None = parameter(converter=optional_array, default=None)

    def __check_init__(self) -> None:
        if self.loadings.ndim != 2 or self.loadings.shape[0] < self.loadings.shape[1]:
            raise ValueError(
                "`loadings` must have shape (m, k) with as many series as factors or more, got "
                f"{self.loadings.shape}."
            )
        m, k = self.loadings.shape
        if self.factor_matrices.ndim != 3 or self.factor_matrices.shape[1:] != (k, k):
            raise ValueError(
                f"`factor_matrices` must have shape (p, {k}, {k}) to go with loadings of shape "
                f"{self.loadings.shape}, got {self.factor_matrices.shape}."
            )
        require_support(
            "loadings",
            self.loadings,
            is_lower_with_positive_diagonal,
            "be zero above the diagonal and positive on it, which identifies the factors",
        )
        require_finite("factor_matrices", self.factor_matrices)
        if known(self.factor_matrices):
            radius = np.abs(np.linalg.eigvals(companion(self.factor_matrices))).max()
            if radius >= 1:
                raise ValueError(
                    f"`factor_matrices` must be those of a stationary autoregression, but the largest "
                    f"eigenvalue of their companion matrix has modulus {radius:.6g}; take differences of "
                    "the series."
                )
        require_shape("noise_scale", self.noise_scale, (m,))
        require_positive("noise_scale", self.noise_scale, zero=False)
        if self.idiosyncratic_ar is not None:
            require_shape("idiosyncratic_ar", self.idiosyncratic_ar, (m,))
            require_support(
                "idiosyncratic_ar",
                self.idiosyncratic_ar,
                lambda x: jnp.abs(x) < 1,
                "lie in (-1, 1)",
            )
        if self.mean is not None:
            require_shape("mean", self.mean, (m,))
            require_finite("mean", self.mean)

    @property
    def state_names(self) -> tuple[str, ...]:
        """Names of the states."""
        p, k, _ = self.factor_matrices.shape
        lags = ("" if j == 0 else f".lag{j}" for j in range(p))
        factors = tuple(f"factor{i}{lag}" for lag in lags for i in range(k))
        own = () if self.idiosyncratic_ar is None else range(len(self.idiosyncratic_ar))
        return factors + tuple(f"idiosyncratic{i}" for i in own)

    @property
    def initial(self) -> Gaussian:
        """The stationary law."""
        covariance = stationary_covariance(self.factor_matrices)
        if self.idiosyncratic_ar is not None:
            r = self.idiosyncratic_ar
            covariance = block_diag(covariance, jnp.diag(self.noise_scale**2 / ((1 - r) * (1 + r))))
        return Gaussian(jnp.zeros(len(covariance), covariance.dtype), covariance=covariance)

    @property
    def transition(self) -> AffineGaussian:
        """Law of the next state."""
        p, k, _ = self.factor_matrices.shape
        matrix = companion(self.factor_matrices)
        scale = jnp.eye(p * k, k, dtype=matrix.dtype)
        if self.idiosyncratic_ar is not None:
            matrix = block_diag(matrix, jnp.diag(self.idiosyncratic_ar))
            scale = block_diag(scale, jnp.diag(self.noise_scale))
        return AffineGaussian(matrix, None, scale)

    @property
    def observation(self) -> AffineGaussian:
        """Law of the observation."""
        m, k = self.loadings.shape
        lags = jnp.zeros((m, (len(self.factor_matrices) - 1) * k), self.loadings.dtype)
        matrix = jnp.concatenate([self.loadings, lags], axis=1)
        if self.idiosyncratic_ar is None:
            return AffineGaussian(matrix, self.mean, self.noise_scale)
        matrix = jnp.concatenate([matrix, jnp.eye(m, dtype=matrix.dtype)], axis=1)
        return AffineGaussian(matrix, self.mean, jnp.zeros_like(self.noise_scale))

    @classmethod
    def from_principal_components(
        cls,
        y: Float[Any, "T m"],
        factors: int,
        *,
        order: int = 1,
        idiosyncratic_ar: bool = False,
    ) -> DynamicFactor:
        """Starting values from data: principal components, turned to the identified form.

        Missing entries count as the mean of their series.

        Args:
            y: observations, shape ``(T, m)``, NaN where missing.
            factors: number of factors k, at most m.
            order: lags p of the factors' autoregression.
            idiosyncratic_ar: whether each series has an autoregressive part of its own.

        Raises:
            ValueError: if there are too few series or moments, or the data span fewer dimensions.
        """
        y = np.asarray(y, dtype=jnp.zeros(()).dtype)
        if (
            y.ndim != 2
            or order < 1
            or not 1 <= factors <= min(y.shape[1], len(y) - order * (factors + 1))
        ):
            raise ValueError(
                "`from_principal_components` needs `y` of shape (T, m), order >= 1, 1 <= factors <= m and "
                f"more moments than coefficients, got shape {y.shape}, factors={factors}, order={order}."
            )
        loadings, states, rest, mean = principal_components(y, factors)
        phi, noise = least_squares_autoregression(states, order)
        root = np.linalg.cholesky(noise)
        phi = np.linalg.inv(root) @ phi @ root
        loadings = loadings @ root
        # Turn the factors so that the first k series have triangular loadings with positive diagonal.
        turn, triangle = np.linalg.qr(loadings[:factors].T)
        turn = turn * np.where(np.diagonal(triangle) < 0, -1.0, 1.0)
        turned = np.tril(loadings @ turn)
        floor = 0.01 * np.sqrt(np.mean(turned**2))
        for i in range(factors):
            turned[i, i] = max(turned[i, i], floor)
        ar = _lag_one_correlation(rest) if idiosyncratic_ar else None
        spread = rest.std(axis=0)
        scale = np.maximum(spread, 0.05 * np.nanstd(y, axis=0) + 1e-6)
        return cls(
            loadings=turned,
            factor_matrices=turn.T @ phi @ turn,
            noise_scale=scale if ar is None else scale * np.sqrt(1 - ar**2),
            idiosyncratic_ar=ar,
            mean=mean,
        )


def _lag_one_correlation(rest: np.ndarray) -> np.ndarray:
    power = np.maximum((rest**2).sum(axis=0), 1e-300)
    return np.clip((rest[1:] * rest[:-1]).sum(axis=0) / power, -0.9, 0.9)
