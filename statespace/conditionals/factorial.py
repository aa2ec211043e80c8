"""Transitions of several independent chains at once."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import reduce
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from statespace.conditionals import aggregates
from statespace.conditionals.finite import FiniteKernel, FiniteTransition, SoftmaxKernel
from statespace.model import Step
from statespace.parameters import replace


class FactorialKernel(FiniteTransition):
    """Independent chains side by side: the matrix is the Kronecker product of theirs.

    A state is a tuple of one state of each chain; they are numbered with the last chain running fastest, as
    by ``np.ravel_multi_index``. Exact, at a cost that grows with the product of the numbers of states.

    Args:
        kernels: one for each chain: a matrix ``(K_i, K_i)``, or any transition of a finite state.

    Raises:
        ValueError: if there is no kernel, or a matrix is no transition matrix.

    References:
        Ghahramani & Jordan (1997), Factorial hidden Markov models.
    """

    kernels: tuple[FiniteTransition, ...]
    sizes: tuple[int, ...] = eqx.field(static=True)

    def __init__(self, kernels: Sequence[Any]):
        self.kernels = tuple(
            k if isinstance(k, FiniteTransition) else FiniteKernel(k) for k in kernels
        )
        if not self.kernels:
            raise ValueError("`kernels` of FactorialKernel is empty: give one for each chain.")
        self.sizes = tuple(map(_size, self.kernels))

    @property
    def factors(self) -> tuple[int, ...]:
        """How many states each chain has."""
        return tuple(
            aggregates.count(k.aggregate, n) for k, n in zip(self.kernels, self.sizes, strict=True)
        )

    @property
    def aggregate(self) -> tuple[int, ...] | None:
        """Of which tuple of states each tuple of sub-states is a part, where a chain has sub-states."""
        if all(k.aggregate is None for k in self.kernels):
            return None
        parts = np.indices(self.sizes).reshape(len(self.sizes), -1)
        whole = [
            part if k.aggregate is None else np.asarray(k.aggregate)[part]
            for k, part in zip(self.kernels, parts, strict=True)
        ]
        return tuple(np.ravel_multi_index(whole, self.factors).tolist())

    def matrix(self, step: Step) -> Float[Array, "J J"]:
        """Probabilities of the next state (columns) given the previous one (rows)."""
        return product([k.matrix(step) for k in self.kernels])

    def redundant(self, free: Collection[str]) -> int:
        """Those of all chains together."""
        total = 0
        for i, kernel in enumerate(self.kernels):
            begin = f"kernels.{i}."
            own = {name.removeprefix(begin) for name in free if name.startswith(begin)}
            total += kernel.redundant(own)
        return total

    def m_step(self, pairs: Float[Array, "S T J J"], steps: Step) -> FactorialKernel:
        """The kernels that maximise, or raise, the expected log probability of transitions.

        Args:
            pairs: expected transitions between tuples of states into each moment.
            steps: the steps of those moments.
        """
        count = len(self.sizes)
        apart = pairs.reshape(*pairs.shape[:2], *self.sizes, *self.sizes)
        new = []
        for i, kernel in enumerate(self.kernels):
            others = [a for j in range(count) if j != i for a in (2 + j, 2 + count + j)]
            own = jnp.sum(apart, axis=tuple(others))
            new.append(_raised(kernel, own, steps))
        return eqx.tree_at(lambda k: k.kernels, self, tuple(new))


def product(factors: Sequence[Array]) -> Array:
    """The Kronecker product: of laws that of independent states, of matrices that of independent chains."""
    return reduce(jnp.kron, factors)


def _raised(
    kernel: FiniteTransition, pairs: Float[Array, "S T K K"], steps: Step
) -> FiniteTransition:
    if hasattr(kernel, "m_step"):
        return kernel.m_step(pairs, steps)
    if not isinstance(kernel, FiniteKernel) or callable(kernel.probs):
        raise TypeError(
            f"the {type(kernel).__name__} of one chain has no M-step: use MaximumLikelihood."
        )
    counts = jnp.sum(pairs, axis=(0, 1))
    total = jnp.sum(counts, axis=1, keepdims=True)
    probs = jnp.where(total > 0, counts / jnp.where(total > 0, total, 1), kernel.probs)
    return replace(kernel, {"probs": probs.astype(kernel.probs.dtype)})


def _size(kernel: FiniteTransition) -> int:
    if isinstance(kernel, SoftmaxKernel):  # whose matrix wants inputs
        return len(kernel.logits)
    return jax.eval_shape(lambda: kernel.matrix(Step(1, 1.0, 1.0))).shape[0]
