"""Regimes that change with the state: the law of the next regime depends on where the state is."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from statespace.checks import optional_array, require_finite, require_shape
from statespace.model import Step
from statespace.parameters import parameter


class RecurrentKernel(eqx.Module):
    """``P(r_t = k | r_{t-1} = j, x_{t-1}, u_t) ∝ exp(logits[j, k] + weights[k] · x_{t-1} + V[k] · u_t)``.

    The regime chooses how the state moves, and the state where the regime goes: the boundaries between
    regimes are hyperplanes of the state space. It is the kernel of a :class:`~statespace.Switching`
    transition; filters that integrate the state out given the regimes do not take it, because the regimes no
    longer form a chain by themselves.

    Args:
        logits: shape ``(K, K)``, row = from, column = to; or ``(1, K)`` where the previous regime plays no
            part ("recurrent only").
        weights: of the previous state, shape ``(K, n)``, one row for each next regime.
        input_weights: ``V``, of the inputs, shape ``(K, k)``; None where they play no part.

    Raises:
        ValueError: if shapes do not fit, or an entry is not finite.

    References:
        Linderman, Johnson, Miller, Adams, Blei & Paninski (2017), Bayesian learning and inference in
        recurrent switching linear dynamical systems, AISTATS, equation 3, with a softmax in place of the
        stick-breaking one; Barber (2006), Expectation correction for smoothed inference in switching linear
        dynamical systems.
    """

    logits: Float[Array, "J K"] = parameter()
    weights: Float[Array, "K n"] = parameter()
    input_weights: Float[Array, "K k"] | None = parameter(converter=optional_array, default=None)

    def __check_init__(self) -> None:
        if self.weights.ndim != 2:
            raise ValueError(
                f"`weights` of RecurrentKernel must have shape (K, n), got {self.weights.shape}."
            )
        regimes = len(self.weights)
        if self.logits.shape not in ((regimes, regimes), (1, regimes)):
            raise ValueError(
                f"`logits` of RecurrentKernel must have shape ({regimes}, {regimes}), or (1, {regimes}) "
                "where the previous regime plays no part, to go with weights of shape "
                f"{self.weights.shape}; got {self.logits.shape}."
            )
        require_finite("logits", self.logits)
        require_finite("weights", self.weights)
        if self.input_weights is not None:
            width = self.input_weights.shape[-1:]
            require_shape("input_weights", self.input_weights, (regimes, *width))
            require_finite("input_weights", self.input_weights)

    @property
    def regimes(self) -> int:
        """Number K of regimes."""
        return len(self.weights)

    def scores(self, step: Step) -> Float[Array, "J K"]:
        """What is added to ``weights x`` in the exponent, at the inputs of a step.

        Raises:
            ValueError: if the recording lacks the inputs that drive the regimes.
        """
        if self.input_weights is None:
            return self.logits
        width = self.input_weights.shape[1]
        if step.inputs is None or step.inputs.shape[-1] != width:
            given = "none" if step.inputs is None else str(step.inputs.shape[-1])
            raise ValueError(
                f"RecurrentKernel has weights for {width} inputs, but the data carry {given}: pass "
                f"`ss.Series(y, inputs=u)` with `u` of shape (T, {width})."
            )
        return self.logits + self.input_weights @ step.inputs

    def reordered(self, order: Int[Array, " K"]) -> RecurrentKernel:
        """The same law with the regimes in another order."""
        rows = self.logits[order] if len(self.logits) > 1 else self.logits
        driven = None if self.input_weights is None else self.input_weights[order]
        return RecurrentKernel(rows[:, order], self.weights[order], driven)

    def log_probs(
        self, regime: Int[Array, ""], state: Float[Array, " n"], step: Step
    ) -> Float[Array, " K"]:
        """Log probabilities of the next regime, given regime and state of the moment before."""
        row = self.scores(step)[regime if len(self.logits) > 1 else 0]
        return jax.nn.log_softmax(row + self.weights @ state)

    def probs(
        self, regime: Int[Array, ""], state: Float[Array, " n"], step: Step
    ) -> Float[Array, " K"]:
        """Probabilities of the next regime, given regime and state of the moment before."""
        return jnp.exp(self.log_probs(regime, state, step))
