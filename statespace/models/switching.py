"""Switching linear Gaussian models: several linear models, of which a hidden chain chooses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from statespace.conditionals.affine import AffineGaussian, Gaussian
from statespace.conditionals.finite import Categorical, FiniteKernel, FiniteTransition
from statespace.conditionals.switching import Switching
from statespace.models.checks import (
    is_lower_with_positive_diagonal,
    known,
    optional_array,
    require_finite,
    require_positive,
    require_shape,
)
from statespace.parameters import as_array, parameter


def _scales(value: Array) -> str:
    """Support of the regimes' noise scales: standard deviations, or triangular factors."""
    return "positive" if value.ndim == 2 else "lower_cholesky"


class SwitchingLinearGaussian(eqx.Module):
    """``x_t = F_k x_{t-1} + b_k + L_k e_t``, ``y_t = H_k x_t + d_k + M_k v_t`` in regime ``k = r_t``.

    The regime is a Markov chain with K states (Kim 1994; also: switching Kalman filter, switching linear
    dynamical system, jump Markov linear system). Every array has a leading axis of K, or of 1 where all
    regimes share it. Exact inference would sum over all ``K^T`` paths of regimes; use
    :class:`~statespace.RaoBlackwellised`.

    State: :class:`~statespace.RegimeState`, ``regime`` and ``state`` ``(n,)``.

    Args:
        initial_probs: of the first regime, shape ``(K,)``.
        transition: probabilities of the regimes, shape ``(K, K)``, or another transition of a finite state.
        matrix: ``F``, shape ``(K, n, n)``.
        scale: ``L``, shape ``(K, n)`` standard deviations or ``(K, n, n)`` lower triangular.
        observation_matrix: ``H``, shape ``(K, m, n)``.
        observation_scale: ``M``, shape ``(K, m)`` or ``(K, m, m)``.
        initial_mean: shape ``(K, n)``; zeros unless given.
        initial_scale: shape ``(K, n)`` or ``(K, n, n)``; ones unless given.
        offset: ``b``, shape ``(K, n)``; None for none.
        observation_offset: ``d``, shape ``(K, m)``; None for none.
        state_names: names of the n states, or None.

    Raises:
        ValueError: if shapes do not fit, or a scale is neither positive nor a Cholesky factor.

    Example:
        >>> model = ss.SwitchingLinearGaussian(
        ...     initial_probs=[0.5, 0.5],
        ...     transition=[[0.95, 0.05], [0.1, 0.9]],
        ...     matrix=[[[0.99]], [[0.6]]],
        ...     scale=[[0.1], [1.0]],
        ...     observation_matrix=[[[1.0]]],
        ...     observation_scale=[[0.3]],
        ... )
    """

    initial_probs: Categorical
    kernel: FiniteTransition
    state_names: tuple[str, ...] | None = eqx.field(static=True)
    matrix: Float[Array, "K n n"] = parameter()
    scale: Float[Array, "K ..."] = parameter(_scales)
    observation_matrix: Float[Array, "K m n"] = parameter()
    observation_scale: Float[Array, "K ..."] = parameter(_scales)
    initial_mean: Float[Array, "K n"] = parameter()
    initial_scale: Float[Array, "K ..."] = parameter(_scales)
    offset: Float[Array, "K n"] | None = parameter(converter=optional_array)
    observation_offset: Float[Array, "K m"] | None = parameter(converter=optional_array)

    def __init__(
        self,
        initial_probs: Any,
        transition: Any,
        matrix: Any,
        scale: Any,
        observation_matrix: Any,
        observation_scale: Any,
        initial_mean: Any = None,
        initial_scale: Any = None,
        offset: Any = None,
        observation_offset: Any = None,
        state_names: Sequence[str] | None = None,
    ):
        given = isinstance(initial_probs, Categorical)
        self.initial_probs = initial_probs if given else Categorical(initial_probs)
        given = isinstance(transition, FiniteTransition)
        self.kernel = transition if given else FiniteKernel(transition)
        self.matrix = as_array(matrix)
        self.scale = as_array(scale)
        self.observation_matrix = as_array(observation_matrix)
        self.observation_scale = as_array(observation_scale)
        shape = (1, self.matrix.shape[-1] if self.matrix.ndim else 0)
        dtype = self.matrix.dtype
        self.initial_mean = jnp.zeros(shape, dtype) if initial_mean is None else initial_mean
        self.initial_scale = jnp.ones(shape, dtype) if initial_scale is None else initial_scale
        self.offset = offset
        self.observation_offset = observation_offset
        self.state_names = None if state_names is None else tuple(state_names)

    def __check_init__(self) -> None:
        for name in ("matrix", "observation_matrix"):
            if getattr(self, name).ndim != 3:
                raise ValueError(
                    f"`{name}` of SwitchingLinearGaussian must have a leading axis of regimes (of length 1 "
                    f"where all share it) and two of a matrix, got shape {getattr(self, name).shape}."
                )
        n, m = self.matrix.shape[2], self.observation_matrix.shape[1]
        self._check_matrix("matrix", (n, n))
        self._check_matrix("observation_matrix", (m, n))
        self._check_scale("scale", n)
        self._check_scale("observation_scale", m)
        self._check_scale("initial_scale", n)
        self._check_matrix("initial_mean", (n,))
        for name, size in (("offset", n), ("observation_offset", m)):
            if getattr(self, name) is not None:
                self._check_matrix(name, (size,))

    def _check_matrix(self, name: str, shape: tuple[int, ...]) -> None:
        value = getattr(self, name)
        lead = 1 if value.ndim and len(value) == 1 else self.regimes
        require_shape(name, value, (lead, *shape), "The first axis is of regimes, or 1 for all.")
        require_finite(name, value)

    def _check_scale(self, name: str, d: int) -> None:
        value = getattr(self, name)
        if value.ndim < 3:
            self._check_matrix(name, (d,))
            require_positive(name, value, zero=False)
            return
        self._check_matrix(name, (d, d))
        if known(value) and not np.all(is_lower_with_positive_diagonal(value)):
            raise ValueError(
                f"`{name}` must be lower triangular with a positive diagonal in every regime, got\n"
                f"{np.asarray(value)}\nFrom covariances use `jnp.linalg.cholesky`."
            )

    @property
    def regimes(self) -> int:
        """Number K of regimes."""
        return len(self.initial_probs.probs)

    @property
    def initial(self) -> Switching:
        """Law of the first regime and state."""
        laws = [Gaussian(*self._of(k, "initial_mean", "initial_scale")) for k in self._every]
        return Switching(self.initial_probs, laws)

    @property
    def transition(self) -> Switching:
        """Law of the next regime and state."""
        names = ("matrix", "offset", "scale")
        return Switching(self.kernel, [AffineGaussian(*self._of(k, *names)) for k in self._every])

    @property
    def observation(self) -> Switching:
        """Law of the observation."""
        names = ("observation_matrix", "observation_offset", "observation_scale")
        return Switching(None, [AffineGaussian(*self._of(k, *names)) for k in self._every])

    @property
    def _every(self) -> range:
        return range(self.regimes)

    def _of(self, regime: int, *names: str) -> list[Any]:
        """The arrays of one regime."""
        values = [getattr(self, name) for name in names]
        return [None if v is None else v[regime if len(v) > 1 else 0] for v in values]
