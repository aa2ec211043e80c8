"""Switching linear Gaussian models: several linear models, of which a hidden chain chooses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from statespace.checks import (
    is_lower_with_positive_diagonal,
    known,
    optional_array,
    require_finite,
    require_positive,
    require_shape,
)
from statespace.conditionals.affine import AffineGaussian, Gaussian
from statespace.conditionals.finite import Categorical, FiniteKernel, FiniteTransition
from statespace.conditionals.recurrent import RecurrentKernel
from statespace.conditionals.switching import Switching, regimes_of
from statespace.models.starting import least_squares_autoregression, principal_components
from statespace.parameters import as_array, parameter
from statespace.reading import on_host, to_jax


def _scales(value: Array) -> str:
    """Support of the regimes' noise scales: standard deviations, or triangular factors."""
    return "positive" if value.ndim == 2 else "lower_cholesky"


class SwitchingLinearGaussian(eqx.Module):
    """``x_t = F_k x_{t-1} + b_k + L_k e_t``, ``y_t = H_k x_t + d_k + M_k v_t`` in regime ``k = r_t``.

    The regime is a Markov chain with K states (Kim 1994; also: switching Kalman filter, switching linear
    dynamical system, jump Markov linear system). Every array has a leading axis of K, or of 1 where all
    regimes share it. Exact inference would sum over all ``K^T`` paths of regimes; use
    :class:`~statespace.GaussianSum`, :class:`~statespace.InteractingMultipleModel` or
    :class:`~statespace.RaoBlackwellised`, and :class:`~statespace.VariationalEM` to learn. For regimes that
    depend on the state see :class:`~statespace.RecurrentSwitchingLinearGaussian`.

    State: :class:`~statespace.RegimeState`, ``regime`` and ``state`` ``(n,)``.

    Args:
        initial_probs: of the first regime, shape ``(K,)``.
        transition: probabilities of the regimes, shape ``(K, K)``; or another transition of a finite state;
            or a :class:`~statespace.RecurrentKernel`.
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
    kernel: FiniteTransition | RecurrentKernel
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
        given = isinstance(transition, (FiniteTransition, RecurrentKernel))
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
        moving = regimes_of(self.kernel)
        if moving not in (None, self.regimes):
            raise ValueError(
                f"`transition` of SwitchingLinearGaussian is between {moving} regimes, but `initial_probs` "
                f"says that there are {self.regimes}."
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
        if isinstance(self.kernel, RecurrentKernel):
            require_shape("weights", self.kernel.weights, (self.regimes, n))

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

    @classmethod
    def from_principal_components(
        cls, y: Float[Any, "T m"], regimes: int, state_dim: int, *, staying: float = 0.95
    ) -> Self:
        """Starting values from data: principal components as states, and their autoregression in each regime.

        The components are scaled to unit variance; what they leave of each channel is its observation
        noise. Regimes share the law of the observation, and their dynamics are alike: learning by
        :class:`~statespace.VariationalEM` tells them apart. Missing entries count as the mean of their
        channel.

        Args:
            y: observations, shape ``(T, m)``, NaN where missing.
            regimes: number of regimes K.
            state_dim: number of states n, at most m.
            staying: probability to stay in a regime from one moment to the next.

        Raises:
            ValueError: if there are fewer channels or moments than states, or a channel is never observed;
                if there is no regime, or ``staying`` is not inside (0, 1).
        """
        y = np.asarray(y, dtype=jnp.zeros(()).dtype)
        if y.ndim != 2 or not 1 <= state_dim <= min(y.shape[1], y.shape[0] - 1):
            raise ValueError(
                "`from_principal_components` needs `y` of shape (T, m) and `state_dim` from 1 to "
                f"min(m, T - 1), got shape {y.shape} and state_dim={state_dim}."
            )
        if regimes < 1:
            raise ValueError(f"`regimes` must be at least 1, got {regimes}.")
        if not 0 < staying < 1:
            raise ValueError(f"`staying` must be inside (0, 1), got {staying}.")
        loadings, states, rest, mean = principal_components(y, state_dim)
        dynamics, noise = least_squares_autoregression(states, 1)
        of_each = lambda part: np.repeat(np.asarray(part)[None], regimes, axis=0)
        leaving = (1 - staying) / max(regimes - 1, 1)
        moves = np.full((regimes, regimes), leaving) + (staying - leaving) * np.eye(regimes)
        return cls(
            np.full(regimes, 1 / regimes),
            **cls._switching(moves / moves.sum(axis=1, keepdims=True), state_dim),
            matrix=of_each(dynamics[0]),
            offset=of_each(np.zeros(state_dim)),
            scale=of_each(np.linalg.cholesky(noise)),
            observation_matrix=loadings[None],
            observation_offset=mean[None],
            observation_scale=np.maximum(rest.std(0), 0.05 * np.nanstd(y, axis=0) + 1e-6)[None],
        )

    @classmethod
    def _switching(cls, probs: np.ndarray, state_dim: int) -> dict[str, Any]:
        """The arguments that say how regimes follow each other."""
        return {"transition": probs}

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
        row = lambda v: to_jax(on_host(v)[regime if len(v) > 1 else 0])
        return [None if v is None else row(v) for v in values]
