"""Conditionals of a finite state: the structure that makes exact sums over states possible."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from statespace.model import Step
from statespace.parameters import as_array, parameter

if TYPE_CHECKING:
    from numpyro.distributions import Distribution


def pattern(probs: Array) -> Any:
    """Where probabilities are not exactly zero, as nested tuples; everywhere where they are traced."""
    if isinstance(probs, jax.core.Tracer):
        mask = np.ones(probs.shape, bool)
    else:
        mask = np.asarray(probs) != 0
    return _tuples(mask.tolist())


def _tuples(nested: Any) -> Any:
    """Lists in lists as tuples in tuples."""
    return tuple(map(_tuples, nested)) if isinstance(nested, list) else nested


def sparse_simplex(owner: Any) -> Any:
    """The support of the probabilities of a module that says which of them are possible."""
    from statespace.constraints.sparse_simplex import SparseSimplex

    return SparseSimplex(owner.possible)


class Categorical(eqx.Module):
    """An initial law over K states.

    Args:
        probs: shape ``(K,)``, summing to one. An entry that is exactly zero stays zero when it is learned.

    Raises:
        ValueError: if the probabilities are negative, do not sum to one, or have another shape.
    """

    possible: Any = eqx.field(static=True)
    probs: Float[Array, " K"] = parameter(sparse_simplex, of_owner=True)

    def __init__(self, probs: Any):
        self.probs = as_array(probs)
        if self.probs.ndim != 1:
            raise ValueError(
                f"`probs` of Categorical must have shape (K,), got {self.probs.shape}."
            )
        check_probabilities("probs", self.probs)
        self.possible = pattern(self.probs)

    def __call__(self, step: Step) -> Distribution:
        """The distribution of the first state."""
        return categorical(self.probs)


class FiniteTransition(eqx.Module):
    """What all transitions between finitely many states are: a matrix of probabilities at each step.

    Subclass it with a method ``matrix`` to make a kernel of your own.
    """

    @property
    def aggregate(self) -> tuple[int, ...] | None:
        """Of which state of the model each state of the chain is a part; None where they are the same.

        Observations, soft labels and results are of the model's states.
        """
        return None

    @property
    def factors(self) -> tuple[int, ...] | None:
        """How many states each of several independent chains has; None for a single chain."""
        return None

    def redundant(self, free: Collection[str]) -> int:
        """In how many directions the free parameters of these names can move and change no probability."""
        return 0

    def matrix(self, step: Step) -> Float[Array, "K K"]:
        """Probabilities of the next state (columns) given the previous one (rows)."""
        raise NotImplementedError

    def __call__(self, state: Int[Array, ""], step: Step) -> Distribution:
        """The distribution of the next state."""
        return categorical(self.matrix(step)[state])


class FiniteKernel(FiniteTransition):
    """A transition matrix.

    Args:
        probs: shape ``(K, K)``, row = from, column = to, rows summing to one; or a function
            ``step -> (K, K)``. An entry that is exactly zero stays zero when the matrix is learned.

    Raises:
        ValueError: if the matrix is not square, or a row is no probability distribution.
    """

    possible: Any = eqx.field(static=True)
    probs: Float[Array, "K K"] | Callable[[Step], Array] = parameter(
        sparse_simplex, of_owner=True, converter=None
    )

    def __init__(self, probs: Any):
        self.probs = probs if callable(probs) else as_array(probs)
        self.possible = None
        if not callable(self.probs):
            check_square("probs", self.probs)
            check_probabilities("probs", self.probs)
            self.possible = pattern(self.probs)

    def matrix(self, step: Step) -> Float[Array, "K K"]:
        """Probabilities of the next state (columns) given the previous one (rows)."""
        return jnp.asarray(self.probs(step)) if callable(self.probs) else self.probs


class SoftmaxKernel(FiniteTransition):
    """Transitions driven by inputs: ``P(k | j, u) ∝ exp(logits[j, k] + weights[j, k] · u)``.

    Args:
        logits: shape ``(K, K)``; ``-inf`` for a transition that cannot happen.
        weights: shape ``(K, K, k)``, one for each of the driving inputs.
        columns: which columns of the recording's inputs drive the transitions; None for all. The
            observations may be driven by others.

    Raises:
        ValueError: if shapes do not fit.

    References:
        Bengio & Frasconi (1995), An input output HMM architecture.
    """

    logits: Float[Array, "K K"] = parameter()
    weights: Float[Array, "K K k"] = parameter()
    columns: tuple[int, ...] | None = eqx.field(
        static=True,
        default=None,
        converter=lambda c: None if c is None else tuple(int(i) for i in np.atleast_1d(c)),
    )

    def __check_init__(self) -> None:
        check_square("logits", self.logits)
        states = len(self.logits)
        if self.weights.ndim != 3 or self.weights.shape[:2] != (states, states):
            raise ValueError(
                f"`weights` of SoftmaxKernel must have shape ({states}, {states}, k), got "
                f"{self.weights.shape}."
            )
        if self.columns is not None and len(self.columns) != self.weights.shape[2]:
            raise ValueError(
                f"`columns` of SoftmaxKernel names {len(self.columns)} inputs, but `weights` has "
                f"{self.weights.shape[2]}."
            )

    def redundant(self, free: Collection[str]) -> int:
        """A constant added to the logits of a row, or to the weights of an input in it, cancels."""
        inputs = self.weights.shape[2] if "weights" in free else 0
        return len(self.logits) * (("logits" in free) + inputs)

    def drive(self, inputs: Float[Array, "*T d"]) -> Float[Array, "*T k"]:
        """Of all inputs, those that drive the transitions."""
        return inputs if self.columns is None else inputs[..., jnp.asarray(self.columns)]

    def log_matrix(self, inputs: Float[Array, " d"]) -> Float[Array, "K K"]:
        """Log probabilities at these inputs."""
        return jax.nn.log_softmax(self.logits + self.weights @ self.drive(inputs), axis=-1)

    def matrix(self, step: Step) -> Float[Array, "K K"]:
        """Probabilities of the next state (columns) given the previous one (rows)."""
        if step.inputs is None:
            raise ValueError(
                "SoftmaxKernel needs inputs, and the recording has none: `Series(y, inputs=...)`."
            )
        return jnp.exp(self.log_matrix(step.inputs))


def categorical(probs: Float[Array, " K"]) -> Distribution:
    """NumPyro's categorical distribution of one state, whose zeros may be exact."""
    from numpyro.distributions import CategoricalProbs

    return CategoricalProbs(probs, validate_args=False)


def check_square(name: str, value: Array) -> None:
    """Refuse what is no K x K matrix."""
    if value.ndim != 2 or value.shape[0] != value.shape[1]:
        raise ValueError(f"`{name}` must have shape (K, K), got {value.shape}.")


def check_probabilities(name: str, value: Any) -> None:
    """Refuse what does not sum to one over its last axis; traced values pass.

    Raises:
        ValueError: naming the row.
    """
    if isinstance(value, jax.core.Tracer):
        return
    array = np.asarray(value, float)
    where = "" if array.ndim == 1 else " in row {}"
    negative = ~np.all(array >= 0, axis=-1)
    if np.any(negative):
        row = tuple(np.argwhere(negative)[0].tolist())
        raise ValueError(
            f"`{name}` has a negative or undefined probability{where.format(*row)}: {array[row]}."
        )
    total = array.sum(axis=-1)
    tolerance = 1e-9 if np.asarray(value).dtype == np.float64 else 1e-5
    wrong = np.abs(total - 1) > max(tolerance, 1e-7 * array.shape[-1])
    if np.any(wrong):
        row = tuple(np.argwhere(wrong)[0].tolist())
        raise ValueError(
            f"`{name}` must sum to one{where.format(*row)}, but sums to {total[row]:.10g}: divide by "
            "the sum."
        )
