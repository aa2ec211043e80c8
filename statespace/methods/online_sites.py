"""Assumed-density filtering one observation at a time, in constant memory."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array

from statespace.chains.gaussian.algebra import matmul_t
from statespace.chains.gaussian.covariances import full_carry, predict
from statespace.chains.gaussian.step import move
from statespace.methods.feeding import Fed, next_step
from statespace.methods.gaussian_lowering import initial_law, noise
from statespace.methods.linearised import make_affine, proper
from statespace.methods.online_linearised import LinearisedState
from statespace.methods.site_filter import update
from statespace.model import Step


class OnlineSites(Fed, eqx.Module):
    """An assumed-density filter that is fed one observation at a time: see :func:`statespace.online`."""

    model: Any
    method: Any
    dt: float = eqx.field(static=True)

    def __check_init__(self) -> None:
        if getattr(self.model.observation, "lags", 0):
            raise TypeError(
                f"{type(self.method).__name__} online keeps no observations for a later one to depend on: "
                "use `filter`, or `online` with ParticleFilter()."
            )
        self._law()

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
        form, method = self.form, self.method
        step, first = next_step(state, self.dt, inputs, time)
        law = (state.mean, state.spread)
        kernel = self.model.transition
        moves = make_affine(kernel, step, method.linearisation, *law, form, "transition")
        mean = move(state.mean[:, None], moves.matrix, moves.offset)[:, 0]
        mean = jnp.where(first, state.mean, mean)
        spread = predict(state.spread, moves.matrix, moves.noise, form)
        spread = jnp.where(first, state.spread, spread)
        how = (method.rule, method.settings, self.model.observation)
        new = update(*how, step, y, mean, spread, form)
        return LinearisedState(
            mean=new.mean,
            covariance=new.spread if form == "covariance" else matmul_t(new.spread, new.spread),
            log_likelihood=state.log_likelihood + new.log_density,
            index=step.index,
            time=step.time,
            spread=new.spread,
        )
