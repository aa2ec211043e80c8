"""The ensemble Kalman filter one observation at a time."""

from __future__ import annotations

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from statespace.methods.ensemble_kalman import EnsembleKalman
from statespace.methods.feeding import Fed, next_step, recent
from statespace.methods.lowering import at
from statespace.methods.particle_laws import InitialLaw
from statespace.methods.particle_lowering import initial_law, on_clouds
from statespace.model import Step


class EnsembleOnlineState(NamedTuple):
    """All that the past says of the present.

    Attributes:
        members: states, shape ``(N, n)``.
        log_likelihood: of the observations so far, by the ensemble's normal predictions.
        index: the moment t; -1 before the first.
        time: its time.
    """

    members: Float[Array, "N n"]
    log_likelihood: Float[Array, ""]
    index: Int[Array, ""]  # type: ignore[assignment]  # not the method of tuples
    time: Float[Array, ""]

    @property
    def mean(self) -> Float[Array, " n"]:
        """``E[x_t | y_{0:t}]``."""
        return jnp.mean(self.members, axis=0)

    @property
    def std(self) -> Float[Array, " n"]:
        """Standard deviation of each coordinate."""
        return jnp.std(self.members, axis=0, ddof=1)


class EnsembleOnline(Fed, eqx.Module):
    """An ensemble filter that is fed one observation at a time: see :func:`statespace.online`.

    What it draws at a moment depends on the key and the number of the moment alone, so that a run can be
    repeated.
    """

    model: Any
    method: EnsembleKalman
    dt: float = eqx.field(static=True)

    def init(self) -> EnsembleOnlineState:
        """The state before the first observation: members drawn from the initial law."""
        leaves = jax.tree.leaves(eqx.filter(self.model, eqx.is_inexact_array))
        dtype = jnp.result_type(*leaves) if leaves else jnp.result_type(float)
        step = Step(jnp.asarray(0), jnp.zeros((), dtype), jnp.asarray(self.dt, dtype))
        law = InitialLaw(initial_law(self.model, step), dtype)
        key = jax.random.split(jax.random.fold_in(self.method.key, 0))[0]
        zero = jnp.zeros((), dtype)
        members = law.draw(key, self.method.members)
        return EnsembleOnlineState(members, zero, jnp.asarray(-1), zero - self.dt)

    def advance(
        self, state: EnsembleOnlineState, y: Array, inputs: Array | None, time: Array | None
    ) -> EnsembleOnlineState:
        """The state after one more observation, traced."""
        model, method = self.model, self.method
        step, first = next_step(state, self.dt, inputs, time)
        clouds, moments = on_clouds(model, *recent(None, y, step))
        moment = at(moments, -1)
        key = jax.random.split(jax.random.fold_in(method.key, step.index))
        move = lambda: clouds.propose(key[0], state.members, moment)
        ahead = jax.lax.cond(first, lambda: state.members, move)
        _, run = method.corrected(model, ahead, moment, key[1])
        return EnsembleOnlineState(
            run.filtered, state.log_likelihood + run.pointwise, step.index, step.time
        )
