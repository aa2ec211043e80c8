"""Probabilities, some of which are exactly zero and stay so, as a constraint."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpyro.distributions import biject_to, constraints
from numpyro.distributions.transforms import Transform


class SparseSimplex(constraints.Constraint):
    """Rows that sum to one, positive but for the given zeros.

    Args:
        possible: nested tuples of booleans, of the shape of the value: where an entry is not zero.
    """

    def __init__(self, possible: Any):
        self.possible = possible

    @property
    def event_dim(self) -> int:
        """Axes of one value: 1 for a vector, 2 for a matrix."""
        return np.ndim(self.possible)

    def __call__(self, x: Any) -> Array:
        """Whether rows sum to one and vanish where they must, and only there."""
        x = jnp.asarray(x)
        inside = jnp.where(np.asarray(self.possible), x > 0, x == 0)
        axes = tuple(range(-self.event_dim, 0))
        whole = jnp.abs(x.sum(axis=-1, keepdims=True) - 1) < 1e-5
        return jnp.all(inside & whole, axis=axes)

    def __repr__(self) -> str:
        return f"SparseSimplex(zeros={int((~np.asarray(self.possible)).sum())})"

    def feasible_like(self, prototype: Any) -> Array:
        """Equal probabilities where there are any."""
        mask = np.asarray(self.possible, float)
        return jnp.broadcast_to(mask / mask.sum(axis=-1, keepdims=True), prototype.shape)

    def tree_flatten(self) -> Any:
        """No leaves; the pattern decides shapes."""
        return (), ((), {"possible": self.possible})

    def eq(self, other: object, static: bool = False) -> bool:
        """Whether the other is the same."""
        return isinstance(other, SparseSimplex) and other.possible == self.possible


class SparseSoftmax(Transform):
    """Unconstrained vector to :class:`SparseSimplex`: log odds against each row's last possible entry."""

    domain = constraints.real_vector

    def __init__(self, possible: Any):
        self.possible = possible

    @property
    def codomain(self) -> SparseSimplex:
        """The rows that are reached."""
        return SparseSimplex(self.possible)

    def __call__(self, x: Float[Array, "*b free"]) -> Float[Array, "..."]:
        """The probabilities."""
        mask, free, _ = self._entries()
        logits = jnp.broadcast_to(
            jnp.where(mask, 0.0, -jnp.inf).astype(x.dtype), (*x.shape[:-1], *mask.shape)
        )
        return jax.nn.softmax(logits.at[(..., *np.nonzero(free))].set(x), axis=-1)

    def _inverse(self, y: Float[Array, "..."]) -> Float[Array, "*b free"]:
        _, free, reference = self._entries()
        entries = np.nonzero(free)
        # a probability that learning has brought to zero is at the end of the line, not beyond it
        y = jnp.maximum(y, jnp.finfo(y.dtype).tiny)
        against = y[(..., *entries[:-1], reference[entries[:-1]])]
        return jnp.log(y[(..., *entries)]) - jnp.log(against)

    def log_abs_det_jacobian(self, x: Array, y: Array, intermediates: Any = None) -> Array:
        """Sum of the logarithms of the possible entries: the volume of softmax with a reference."""
        mask, _, _ = self._entries()
        return jnp.sum(jnp.log(jnp.where(mask, y, 1.0)), axis=tuple(range(-mask.ndim, 0)))

    def forward_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the probabilities."""
        return (*shape[:-1], *np.shape(self.possible))

    def inverse_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the vector of free entries."""
        return (*shape[: len(shape) - np.ndim(self.possible)], int(self._entries()[1].sum()))

    def tree_flatten(self) -> Any:
        """No leaves; the pattern decides shapes."""
        return (), ((), {"possible": self.possible})

    def eq(self, other: object, static: bool = False) -> bool:
        """Whether the other is the same."""
        return isinstance(other, SparseSoftmax) and other.possible == self.possible

    def _entries(self) -> tuple[np.ndarray, np.ndarray, Any]:
        """Where entries are possible, where they are free, and each row's reference."""
        mask = np.asarray(self.possible, bool)
        reference = mask.shape[-1] - 1 - np.argmax(mask[..., ::-1], axis=-1)
        free = mask & (np.arange(mask.shape[-1]) != reference[..., None])
        return mask, free, reference


biject_to.register(SparseSimplex)(lambda c: SparseSoftmax(c.possible))
