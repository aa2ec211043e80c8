"""Lower trapezoidal matrices as a constraint: loadings that identify their factors."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpyro.distributions import biject_to, constraints
from numpyro.distributions.transforms import Transform

from statespace.checks import is_lower_with_positive_diagonal


class LowerTrapezoidal(constraints.Constraint):
    """Matrices ``(m, k)``, m >= k, that are zero above the diagonal and positive on it."""

    event_dim = 2

    def __init__(self, columns: int):
        self.columns = columns

    def __call__(self, x: Any) -> Array:
        """Whether it has this form."""
        return is_lower_with_positive_diagonal(jnp.asarray(x))

    def __repr__(self) -> str:
        return f"LowerTrapezoidal(columns={self.columns})"

    def feasible_like(self, prototype: Any) -> Array:
        """A matrix of this form and of the prototype's shape."""
        return jnp.broadcast_to(jnp.eye(*prototype.shape[-2:]), prototype.shape)

    def tree_flatten(self) -> Any:
        """No leaves; the number of columns decides shapes."""
        return (), ((), {"columns": self.columns})

    def eq(self, other: object, static: bool = False) -> bool:
        """Whether the other is the same."""
        return isinstance(other, LowerTrapezoidal) and other.columns == self.columns


class LowerTrapezoidalTransform(Transform):
    """Unconstrained vector to a :class:`LowerTrapezoidal` matrix, with the exponential on the diagonal."""

    domain = constraints.real_vector

    def __init__(self, columns: int):
        self.columns = columns

    @property
    def codomain(self) -> LowerTrapezoidal:
        """The matrices that are reached."""
        return LowerTrapezoidal(self.columns)

    def __call__(self, x: Float[Array, "*b free"]) -> Float[Array, "*b m k"]:
        """The matrix: its free entries row by row, the diagonal as logarithms."""
        rows, columns = self._entries(self.forward_shape(x.shape)[-2])
        values = jnp.where(rows == columns, jnp.exp(x), x)
        return jnp.zeros(self.forward_shape(x.shape), x.dtype).at[..., rows, columns].set(values)

    def _inverse(self, y: Float[Array, "*b m k"]) -> Float[Array, "*b free"]:
        rows, columns = self._entries(y.shape[-2])
        values = y[..., rows, columns]
        return jnp.where(rows == columns, jnp.log(jnp.where(rows == columns, values, 1.0)), values)

    def log_abs_det_jacobian(self, x: Array, y: Array, intermediates: Any = None) -> Array:
        """Sum of the logarithms of the diagonal."""
        rows, columns = self._entries(y.shape[-2])
        return jnp.sum(jnp.where(rows == columns, x, 0.0), axis=-1)

    def forward_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the matrix."""
        k = self.columns
        return (*shape[:-1], (shape[-1] + k * (k - 1) // 2) // k, k)

    def inverse_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the vector of free entries."""
        m, k = shape[-2:]
        return (*shape[:-2], m * k - k * (k - 1) // 2)

    def tree_flatten(self) -> Any:
        """No leaves; the number of columns decides shapes."""
        return (), ((), {"columns": self.columns})

    def eq(self, other: object, static: bool = False) -> bool:
        """Whether the other is the same."""
        return isinstance(other, LowerTrapezoidalTransform) and other.columns == self.columns

    def _entries(self, m: int) -> tuple[np.ndarray, np.ndarray]:
        return np.tril_indices(m, 0, self.columns)


biject_to.register(LowerTrapezoidal)(lambda c: LowerTrapezoidalTransform(c.columns))
