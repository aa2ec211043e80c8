"""The particle filter one observation at a time, in constant memory."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from statespace.chains.particle.recursion import Kernel
from statespace.chains.particle.resampling import resampling_named
from statespace.chains.particle.types import Chain, Cloud, Passage, Random
from statespace.methods.feeding import Fed, next_step, recent
from statespace.methods.lowering import at
from statespace.methods.particle_laws import InitialLaw
from statespace.methods.particle_lowering import initial_law, states_of
from statespace.model import Step


class ParticleOnlineState(NamedTuple):
    """All that the past says of the present.

    Attributes:
        particles: states, an array ``(N, ...)`` or a pytree of them.
        log_weights: shape ``(N,)``, normalised.
        ess: effective sample size of the weights.
        log_likelihood: log of an unbiased estimate of ``p(y_{0:t})``.
        impossible: whether no particle could produce the last observation, which was then passed over.
        index: the moment t; -1 before the first.
        time: its time.
        key: from which the randomness of all moments comes.
        parts: the particles of the method's own chain: states, or the parts that these are made of.
        history: the last observations, newest first, where the model's observations depend on them.
    """

    particles: Any
    log_weights: Float[Array, " N"]
    ess: Float[Array, ""]
    log_likelihood: Float[Array, ""]
    impossible: Bool[Array, ""]
    index: Int[Array, ""]  # type: ignore[assignment]  # not the method of tuples
    time: Float[Array, ""]
    key: PRNGKeyArray
    parts: Any
    history: Float[Array, "p m"] | None

    @property
    def mean(self) -> Any:
        """``E[x_t | y_{0:t}]``, shape ``(n,)``."""
        weights = jnp.exp(self.log_weights)
        return jax.tree.map(lambda x: jnp.tensordot(weights, x, axes=1), self.particles)

    @property
    def std(self) -> Any:
        """Standard deviation of each coordinate, shape ``(n,)``."""
        weights = jnp.exp(self.log_weights)
        squares = jax.tree.map(lambda x, m: (x - m) ** 2, self.particles, self.mean)
        return jax.tree.map(lambda x: jnp.sqrt(jnp.tensordot(weights, x, axes=1)), squares)


class ParticleOnline(Fed, eqx.Module):
    """A filter that is fed one observation at a time: see :func:`statespace.online`.

    What it draws at a moment depends on the key and the number of the moment alone, so that a run can be
    repeated.
    """

    model: Any
    method: Any
    dt: float = eqx.field(static=True)

    def init(self, channels: int = 1) -> ParticleOnlineState:
        """The state before the first observation: particles of the initial law.

        Args:
            channels: the number of observed channels.
        """
        model, method = self.model, self.method
        leaves = jax.tree.leaves(eqx.filter(model, eqx.is_inexact_array))
        dtype = jnp.result_type(*leaves) if leaves else jnp.result_type(float)
        step = Step(jnp.asarray(0), jnp.zeros((), dtype), jnp.asarray(self.dt, dtype))
        parts = InitialLaw(initial_law(model, step), dtype).draw(method.key, method.particles)
        lags = getattr(model.observation, "lags", 0)
        even = jnp.full(method.particles, -math.log(method.particles), dtype)
        return ParticleOnlineState(
            particles=states_of(model, parts),
            log_weights=even,
            ess=jnp.asarray(method.particles, dtype),
            log_likelihood=jnp.zeros((), dtype),
            impossible=jnp.zeros((), bool),
            index=jnp.asarray(-1),
            time=jnp.asarray(-self.dt, dtype),
            key=method.key,
            parts=parts,
            history=jnp.full((lags, channels), jnp.nan, dtype) if lags else None,
        )

    def advance(
        self, state: ParticleOnlineState, y: Array, inputs: Array | None, time: Array | None
    ) -> ParticleOnlineState:
        """The state after one more observation, traced."""
        return passed(self, state, y, inputs, time)[0]


def passed(
    online: ParticleOnline,
    state: ParticleOnlineState,
    y: Array,
    inputs: Array | None,
    time: Array | None,
) -> tuple[ParticleOnlineState, Chain, Passage]:
    """The state after one more observation, and how it came about (at the first: from itself)."""
    model, method = online.model, online.method
    step, first = next_step(state, online.dt, inputs, time)
    chain = method.lower(model, *recent(state.history, y, step))
    moment = at(chain.moments, -1)
    scheme = resampling_named(method.resampling)
    kernel = Kernel(chain, method.particles, scheme, method.threshold, None)
    random = Random(*jax.random.split(jax.random.fold_in(state.key, step.index)))

    before = Cloud(state.parts, state.log_weights)

    def start() -> tuple[Cloud, Array, Array, Array, Array]:
        cloud, (evidence, ess, impossible) = kernel.first(random, moment, None)
        return cloud, jnp.arange(method.particles, dtype=jnp.int32), evidence, ess, impossible

    def go_on() -> tuple[Cloud, Array, Array, Array, Array]:
        cloud, ancestors, (evidence, ess, _, impossible) = kernel.later(
            before, random, moment, None
        )
        return cloud, ancestors, evidence, ess, impossible

    cloud, ancestors, evidence, ess, impossible = jax.lax.cond(first, start, go_on)
    history = state.history
    if history is not None:
        history = jnp.concatenate([y[None], history[:-1]])
    after = ParticleOnlineState(
        particles=states_of(model, cloud.particles),
        log_weights=cloud.log_weights,
        ess=ess,
        log_likelihood=state.log_likelihood + evidence,
        impossible=impossible,
        index=step.index,
        time=step.time,
        key=state.key,
        parts=cloud.particles,
        history=history,
    )
    observe = jax.random.fold_in(random.propose, 1)
    return after, chain, Passage(observe, before, ancestors, cloud, moment)
