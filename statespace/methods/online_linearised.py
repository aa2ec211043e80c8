"""Linearising filters one observation at a time, in constant memory."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from statespace.chains.gaussian.algebra import matmul_t
from statespace.chains.gaussian.covariances import full_carry
from statespace.methods.feeding import Fed, next_step
from statespace.methods.gaussian_lowering import initial_law, noise
from statespace.methods.linearised import proper
from statespace.methods.linearising_filters import joint_law, moved, update
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


class NormalOnline(Fed, eqx.Module):
    """What filters share that keep one normal law and are fed one observation at a time."""

    model: Any
    method: Any
    dt: float = eqx.field(static=True)

    def __check_init__(self) -> None:
        self._law()

    @abstractmethod
    def predicted(self, state: LinearisedState, step: Step) -> tuple[Array, Array]:
        """Mean and spread of the next state, given the present one."""

    @abstractmethod
    def conditioned(self, step: Step, y: Array, mean: Array, spread: Array) -> Any:
        """``mean``, ``spread`` and ``log_density`` after an observation, from the predicted law."""

    def _law(self) -> Any:
        law = initial_law(self.model, Step(0, 0.0, self.dt))
        return proper(law, type(self.method).__name__)

    @property
    def form(self) -> Any:
        """What the recursion carries: covariances, or factors of them."""
        single = self._law().mean.dtype == jnp.float32
        return self.method.form or ("sqrt" if single else "covariance")

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
        step, first = next_step(state, self.dt, inputs, time)
        mean, spread = self.predicted(state, step)
        mean = jnp.where(first, state.mean, mean)
        spread = jnp.where(first, state.spread, spread)
        new = self.conditioned(step, y, mean, spread)
        return LinearisedState(
            mean=new.mean,
            covariance=new.spread
            if self.form == "covariance"
            else matmul_t(new.spread, new.spread),
            log_likelihood=state.log_likelihood + new.log_density,
            index=step.index,
            time=step.time,
            spread=new.spread,
        )


class OnlineLinearised(NormalOnline):
    """A linearising filter that is fed one observation at a time: see :func:`statespace.online`."""

    def predicted(self, state: LinearisedState, step: Step) -> tuple[Array, Array]:
        """Of the transition's joint moments with the state those of the next state."""
        move = self._joint(self.model.transition, state.mean, step, "transition")
        return moved(move(step, state.mean, state.spread), self.form)

    def conditioned(self, step: Step, y: Array, mean: Array, spread: Array) -> Any:
        """A Kalman update by the joint moments of state and observation."""
        see = self._joint(self.model.observation, mean, step, "observation")
        mask = ~jnp.isnan(y)
        y = jnp.where(mask, y, 0)
        return update(see(step, mean, spread, y), mean, spread, y, mask, self.form)

    def _joint(self, conditional: Any, mean: Array, step: Step, name: str) -> Any:
        return joint_law(conditional, self.method.linearisation, mean, step, self.form, name)
