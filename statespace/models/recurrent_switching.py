"""Recurrent switching linear models: where the state is decides which linear model moves it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from statespace.conditionals.recurrent import RecurrentKernel
from statespace.models.switching import SwitchingLinearGaussian


class RecurrentSwitchingLinearGaussian(SwitchingLinearGaussian):
    """A switching linear model whose regimes depend on the previous state.

    ``P(r_t = k | r_{t-1} = j, x_{t-1}) ∝ exp(logits[j, k] + weights[k] · x_{t-1})``, and then
    ``x_t = F_k x_{t-1} + b_k + L_k e_t``, ``y_t = H_k x_t + d_k + M_k v_t`` in regime ``k = r_t``: a
    nonlinear system, put together of linear ones in the cells of a partition of the state space (recurrent
    switching linear dynamical system, Linderman et al. 2017). Infer by
    :class:`~statespace.StructuredVariational` or by particles, learn by :class:`~statespace.VariationalEM`.

    State: :class:`~statespace.RegimeState`, ``regime`` and ``state`` ``(n,)``.

    Args:
        initial_probs: of the first regime, shape ``(K,)``.
        logits: shape ``(K, K)``, row = from, column = to; or ``(1, K)`` where the previous regime plays no
            part ("recurrent only").
        weights: of the previous state, shape ``(K, n)``.
        matrix: ``F``, shape ``(K, n, n)``.
        scale: ``L``, shape ``(K, n)`` standard deviations or ``(K, n, n)`` lower triangular.
        observation_matrix: ``H``, shape ``(K, m, n)``, or ``(1, m, n)`` where all regimes share it.
        observation_scale: ``M``, shape ``(K, m)`` or ``(K, m, m)``, or with a leading 1.
        initial_mean: shape ``(K, n)`` or ``(1, n)``; zeros unless given.
        initial_scale: shape ``(K, n)`` or ``(K, n, n)``, or with a leading 1; ones unless given.
        offset: ``b``, shape ``(K, n)``; None for none.
        observation_offset: ``d``, shape ``(K, m)`` or ``(1, m)``; None for none.
        input_weights: of the inputs in the law of the regimes, shape ``(K, k)``; None for none.
        state_names: names of the n states, or None.

    Raises:
        ValueError: if shapes do not fit, or a scale is neither positive nor a Cholesky factor.

    Example:
        >>> model = ss.RecurrentSwitchingLinearGaussian.from_principal_components(y, 4, 2)
        >>> fitted = ss.fit(model, y, learner=ss.VariationalEM(), key=key)

    References:
        Linderman, Johnson, Miller, Adams, Blei & Paninski (2017), Bayesian learning and inference in
        recurrent switching linear dynamical systems, AISTATS.
    """

    def __init__(
        self,
        initial_probs: Any,
        logits: Any,
        weights: Any,
        matrix: Any,
        scale: Any,
        observation_matrix: Any,
        observation_scale: Any,
        initial_mean: Any = None,
        initial_scale: Any = None,
        offset: Any = None,
        observation_offset: Any = None,
        input_weights: Any = None,
        state_names: Sequence[str] | None = None,
    ):
        super().__init__(
            initial_probs,
            RecurrentKernel(logits, weights, input_weights),
            matrix,
            scale,
            observation_matrix,
            observation_scale,
            initial_mean,
            initial_scale,
            offset,
            observation_offset,
            state_names,
        )

    @classmethod
    def _switching(cls, probs: np.ndarray, state_dim: int) -> dict[str, Any]:
        return {"logits": np.log(probs), "weights": np.zeros((len(probs), state_dim))}

    @classmethod
    def nascar(cls, channels: int = 10, *, key: PRNGKeyArray) -> Self:
        """The race track on which recurrent switching models are tried: two straights and two bends.

        Four regimes in the plane: the state is turned about (2, 0) where ``x > 2`` and about (-2, 0) where
        ``x < -2``, and between them driven to the right above the axis and to the left below it. The
        observations are ``channels`` random projections, with noise of standard deviation 0.1.

        Args:
            channels: number m of observations.
            key: draws the projections.

        References:
            Linderman et al. (2017), section 5.1; the numbers are those of the example of the authors'
            ``ssm`` package.
        """
        centres = np.array([[2.0, 0.0], [-2.0, 0.0]])
        turns = np.stack([_rotation(-np.pi / 24), _rotation(-np.pi / 48)])
        bends = centres - np.einsum("kij,kj->ki", turns, centres)
        return cls(
            initial_probs=np.full(4, 0.25),
            logits=[[-200.0, -200.0, 0.0, 0.0]],
            weights=[[100.0, 0.0], [-100.0, 0.0], [0.0, 10.0], [0.0, -10.0]],
            matrix=np.concatenate([turns, np.stack([np.eye(2)] * 2)]),
            offset=np.concatenate([bends, [[0.1, 0.0], [-0.25, 0.0]]]),
            scale=np.full((4, 2), 1e-2),
            observation_matrix=jax.random.normal(key, (1, channels, 2)),
            observation_scale=jnp.full((1, channels), 0.1),
            initial_mean=[[0.0, 1.0]],
            initial_scale=[[1e-2, 1e-2]],
        )


def _rotation(angle: float) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s], [s, c]])
