"""Autoregressive observations of each state."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from statespace.checks import optional_array, require_finite, require_shape
from statespace.emissions.base import (
    NONE,
    Emission,
    by_channel,
    lagged,
    pooled,
    require_channels,
)
from statespace.emissions.gaussian import (
    at_state,
    log_normal,
    normal,
    require_location,
    require_scales,
    scale_support,
)
from statespace.emissions.regression import regress
from statespace.model import Step
from statespace.parameters import parameter, replace

if TYPE_CHECKING:
    from numpyro.distributions import Distribution


class Autoregressive(Emission):
    """``y_t ~ N(offset_k + sum_l A_kl y_{t-l} + B_k u_t, L_k L_k^T)`` in state k.

    A moment whose past is not known, at the beginning of a recording or after a missing entry, says nothing
    of the state: its observation is what later moments are conditioned on. When simulating, a past that does
    not exist counts as zero.

    Args:
        coefficients: ``A``, shape ``(K, p, m, m)``: entry ``[k, l, i, j]`` is the effect of channel j at
            lag l + 1 on channel i; ``(K, p)`` for a single channel.
        offset: shape ``(K, m)``, or ``(K,)`` for a single channel.
        scale: as of :class:`Gaussian`; with a leading axis of 1 all states share it.
        input_matrix: ``B``, shape ``(K, m, k)``, or ``(K, k)`` for a single channel; None for no effect of
            the inputs.

    Raises:
        ValueError: if shapes do not fit, or a scale is not positive or no Cholesky factor.

    References:
        Hamilton (1989), A new approach to the economic analysis of nonstationary time series.
    """

    coefficients: Float[Array, "..."] = parameter()
    offset: Float[Array, "..."] = parameter()
    scale: Float[Array, "..."] = parameter(scale_support)
    input_matrix: Float[Array, "..."] | None = parameter(converter=optional_array, default=None)

    def __check_init__(self) -> None:
        require_location("offset", self.offset)
        states, m = by_channel(self.offset).shape
        shape = (states, m, m) if self.offset.ndim == 2 else (states,)
        given = self.coefficients.shape
        if len(given) != len(shape) + 1 or (given[0], *given[2:]) != shape or given[1] < 1:
            raise ValueError(
                f"`coefficients` must have shape ({', '.join(map(str, (states, 'p', *shape[1:])))}) with p "
                f"at least 1 to go with an offset of shape {self.offset.shape}, got {given}."
            )
        require_finite("coefficients", self.coefficients)
        require_scales("scale", self.scale, states, m)
        if self.input_matrix is not None:
            width = self.input_matrix.shape[-1:]
            require_shape("input_matrix", self.input_matrix, self.offset.shape + width)
            require_finite("input_matrix", self.input_matrix)

    @property
    def lags(self) -> int:
        """How many past observations the law depends on."""
        return self.coefficients.shape[1]

    def check(self, y: Any) -> None:
        """Refuse observations of another number of channels."""
        require_channels(self, y, by_channel(self.offset).shape[1])

    def __call__(self, state: Any, step: Step) -> Distribution:
        """The distribution of the observation in one state, given ``step.history``."""
        past = jnp.nan_to_num(step.history)
        if self.offset.ndim == 1:
            past = past.reshape(self.lags)
        mean = self.offset[state] + jnp.tensordot(
            self.coefficients[state], past, ((0,), (0,)) if past.ndim == 1 else ((0, 2), (0, 1))
        )
        if self.input_matrix is not None:
            mean = mean + self.input_matrix[state] @ self._inputs(step)
        return normal(mean, at_state(self.scale, state), channels=self.offset.ndim - 1)

    def log_probs(self, y: Float[Array, "T m"], steps: Step) -> Float[Array, "T K"]:
        """Log density of every observation in every state given those before it.

        Zero in every state where the past is not known; missing entries of the present are integrated out.
        """
        regressors, known = self._regressors(y, steps)
        matrix = jnp.concatenate(list(self._blocks().values()), axis=2)
        mean = jnp.einsum("td,kid->tki", regressors, matrix)
        return log_normal(jnp.where(known[:, None], y, jnp.nan), mean, by_channel(self.scale))

    def m_step(
        self,
        y: Float[Array, "S T m"],
        steps: Step,
        weights: Float[Array, "S T K"],
        *,
        floor: Any = 0.0,
        frozen: frozenset[str] = NONE,
    ) -> Autoregressive:
        """Weighted least squares, in each state; see :meth:`Emission.m_step`.

        Where some of coefficients, offset and input matrix are frozen, the others are regressed on what these
        leave.
        """
        regressors, known = jax.vmap(self._regressors)(y, steps)
        y, weights = pooled(jnp.where(known[..., None], y, jnp.nan), weights)
        blocks = self._blocks()
        matrix, scale = regress(
            y,
            regressors.reshape(len(y), -1),
            weights,
            jnp.concatenate(list(blocks.values()), axis=2),
            by_channel(self.scale),
            floor=floor,
            movable=np.concatenate(
                [np.full(b.shape[2], name not in frozen) for name, b in blocks.items()]
            ),
            learn_scale="scale" not in frozen,
        )
        return replace(self, self._fields(matrix) | {"scale": scale.reshape(self.scale.shape)})

    def _blocks(self) -> dict[str, Float[Array, "K m d"]]:
        """The coefficients of a constant, of the past and of the inputs, by name of the field."""
        states, m = by_channel(self.offset).shape
        past = self.coefficients.reshape(states, self.lags, m, m)
        blocks = {
            "offset": self.offset.reshape(states, m, 1),
            "coefficients": jnp.moveaxis(past, 1, 2).reshape(states, m, self.lags * m),
        }
        if self.input_matrix is not None:
            blocks["input_matrix"] = self.input_matrix.reshape(states, m, -1)
        return blocks

    def _fields(self, matrix: Float[Array, "K m d"]) -> dict[str, Array]:
        """From the coefficients of all regressors back to the fields."""
        states, m = matrix.shape[:2]
        end = 1 + self.lags * m
        past = matrix[:, :, 1:end].reshape(states, m, self.lags, m)
        fields = {
            "offset": matrix[:, :, 0].reshape(self.offset.shape),
            "coefficients": jnp.moveaxis(past, 2, 1).reshape(self.coefficients.shape),
        }
        if self.input_matrix is not None:
            fields["input_matrix"] = matrix[:, :, end:].reshape(self.input_matrix.shape)
        return fields

    def _regressors(
        self, y: Float[Array, "T m"], steps: Step
    ) -> tuple[Float[Array, "T d"], Bool[Array, " T"]]:
        """A constant, the past and the inputs at each moment; and whether all of it is known."""
        past = lagged(y, self.lags).reshape(len(y), -1)
        known = ~jnp.any(jnp.isnan(past), axis=1)
        blocks = [jnp.ones((len(y), 1), y.dtype), jnp.where(known[:, None], past, 0)]
        if self.input_matrix is not None:
            blocks.append(self._inputs(steps).astype(y.dtype))
        return jnp.concatenate(blocks, axis=1), known

    def _inputs(self, step: Step) -> Float[Array, "*T k"]:
        """The inputs of one step or of stacked ones.

        Raises:
            ValueError: if the data have none, or another number of them.
        """
        k = self.input_matrix.shape[-1]
        if step.inputs is None or step.inputs.shape[-1] != k:
            given = "none" if step.inputs is None else str(step.inputs.shape[-1])
            raise ValueError(
                f"the emission has an `input_matrix` for {k} inputs, but the data carry {given}: pass "
                f"`ss.Series(y, inputs=u)` with `u` of shape (T, {k})."
            )
        return step.inputs
