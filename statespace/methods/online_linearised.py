"""Linearising filters one observation at a time, in constant memory."""

from __future__ import annotations

from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from statespace.chains.gaussian.algebra import matmul_t
from statespace.chains.gaussian.covariances import full_carry
from statespace.methods.feeding import Fed, next_step
from statespace.methods.gaussian_lowering import initial_law, noise
from statespace.methods.linearised import proper
from statespace.methods.linearising_filters import Linearised, joint_law, moved, update
from statespace.model import Step


class LinearisedState(NamedTuple):
    """All that the past says of the present.

    Attributes:
        mean: ``E[x_t | y_{0:t}]``, shape ``(n,)``.
        covariance: shape ``(n, n)``.
        log_likelihood: ``log p(y_{0:t})``.
        index: the moment t; -1 before the first.
        time: its time.
        spread: the covariance, or the factor of it that the recursion carries.
    """

    mean: Float[Array, " n"]
    covariance: Float[Array, "n n"]
    log_likelihood: Float[Array, ""]
    index: Int[Array, ""]  # type: ignore[assignment]  # not the method of tuples
    time: Float[Array, ""]
    spread: Float[Array, "n n"]


class OnlineLinearised(Fed, eqx.Module):
    """A linearising filter that is fed one observation at a time: see :func:`statespace.online`."""

    model: Any
    method: Linearised
    dt: float = eqx.field(static=True)

    def __check_init__(self) -> None:
        self._law()

    def _law(self) -> Any:
        law = initial_law(self.model, Step(0, 0.0, self.dt))
        return proper(law, type(self.method).__name__)

    @property
    def form(self) -> Any:
        """What the recursion carries: covariances, or factors of them."""
        return self.method.form or (
            "sqrt" if self._law().mean.dtype == jnp.float32 else "covariance"
        )

    def init(self) -> LinearisedState:
        """The state before the first observation: its mean and covariance are those of ``initial``."""
        law, form = self._law(), self.form
        spread = full_carry(noise(law, form), form, (), law.mean.dtype)
        zero = jnp.zeros((), law.mean.dtype)
        covariance = spread if form == "covariance" else matmul_t(spread, spread)
        return LinearisedState(law.mean, covariance, zero, jnp.asarray(-1), zero - self.dt, spread)

    def advance(
        self, state: LinearisedState, y: Array, inputs: Array | None, time: Array | None
    ) -> LinearisedState:
        """The state after one more observation, traced."""
        model, rule, form = self.model, self.method.linearisation, self.form
        step, first = next_step(state, self.dt, inputs, time)
        move = joint_law(model.transition, rule, state.mean, step, form, "transition")
        see = joint_law(model.observation, rule, state.mean, step, form, "observation")
        mean, spread = moved(move(step, state.mean, state.spread), form)
        mean = jnp.where(first, state.mean, mean)
        spread = jnp.where(first, state.spread, spread)
        mask = ~jnp.isnan(y)
        y = jnp.where(mask, y, 0)
        seen = update(see(step, mean, spread, y), mean, spread, y, mask, form)
        return LinearisedState(
            mean=seen.mean,
            covariance=seen.spread if form == "covariance" else matmul_t(seen.spread, seen.spread),
            log_likelihood=state.log_likelihood + seen.log_density,
            index=step.index,
            time=step.time,
            spread=seen.spread,
        )
