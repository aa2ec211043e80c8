"""The Rao–Blackwellised filter one observation at a time, in constant memory."""

from __future__ import annotations

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from statespace.chains.particle import switching
from statespace.methods.feeding import Fed, next_step, recent
from statespace.methods.rao_blackwellised import RaoBlackwellised
from statespace.model import Step
from statespace.series import Series


class SwitchingOnlineState(NamedTuple):
    """All that the past says of the present.

    Attributes:
        mean: ``E[x_t | y_{0:t}]``, shape ``(n,)``.
        covariance: shape ``(n, n)``.
        probs: of the regimes, shape ``(K,)``.
        log_likelihood: log of an unbiased estimate of ``p(y_{0:t})``.
        index: the moment t; -1 before the first.
        time: its time.
        paths: the particles.
    """

    mean: Float[Array, " n"]
    covariance: Float[Array, "n n"]
    probs: Float[Array, " K"]
    log_likelihood: Float[Array, ""]
    index: Int[Array, ""]  # type: ignore[assignment]  # not the method of tuples
    time: Float[Array, ""]
    paths: switching.Paths


class SwitchingOnline(Fed, eqx.Module):
    """A filter that is fed one observation at a time: see :func:`statespace.online`."""

    model: Any
    method: RaoBlackwellised
    dt: float = eqx.field(static=True)
    predicts = True

    def __check_init__(self) -> None:
        self.method.check(self.model, self._moment(None, None, 0.0, self.dt))
        self.method._keys()

    def init(self) -> SwitchingOnlineState:
        """The state before the first observation."""
        chain, _ = self.method.lower(self.model, self._moment(None, None, 0.0, self.dt))
        n, count = chain.mean.shape[1], len(chain.log_probs)
        size, dtype = self.method.particles, chain.mean.dtype
        none = switching.Paths(
            jnp.zeros(size, int),
            jnp.zeros((size, n), dtype),
            jnp.zeros((size, n, n), dtype),
            jnp.full(size, -jnp.inf, dtype),
        )
        zero = jnp.zeros((), dtype)
        return SwitchingOnlineState(
            jnp.zeros(n, dtype),
            jnp.full((n, n), jnp.nan, dtype),
            jnp.zeros(count, dtype),
            zero,
            jnp.asarray(-1),
            jnp.asarray(-self.dt, dtype),
            none,
        )

    def advance(
        self, state: SwitchingOnlineState, y: Array | None, inputs: Array | None, time: Array | None
    ) -> SwitchingOnlineState:
        """The state after one more observation, traced."""
        step, first = next_step(state, self.dt, inputs, time)
        method = self.method
        chain, form = method.lower(self.model, self._moment(y, inputs, step.time, step.dt))
        key = jax.random.fold_in(method._keys()[0], step.index)
        regimes, value = chain.at(0)
        later = switching.successors(state.paths, regimes, value, form)
        fresh = switching.beginnings(chain, form)
        # before the first moment no path has a weight, and its successors none
        candidates = jax.tree.map(
            lambda new, old: jnp.concatenate([new.astype(old.dtype), old]), fresh, later
        )
        count = len(chain.log_probs)
        masked = jnp.where(jnp.arange(len(candidates.log_weights)) < count, first, ~first)
        log_weights = jnp.where(masked, candidates.log_weights, -jnp.inf)
        candidates = candidates._replace(log_weights=log_weights)
        u = jax.random.uniform(key, (), value.dtype)
        paths, (_, probs, mean, covariance, _, total) = switching.narrow(
            candidates, u, method.particles, count, form
        )
        return SwitchingOnlineState(
            mean,
            covariance,
            probs,
            state.log_likelihood + total,
            step.index,
            step.time,
            paths,
        )

    def _moment(self, y: Any, inputs: Any, time: Any, dt: Any) -> Series:
        """A recording of one moment."""
        m = self.model.observation.of(0).at(Step(0, time, dt, inputs)).matrix.shape[0]
        value = jnp.full(m, jnp.nan) if y is None else y
        step = Step(0, jnp.asarray(time, value.dtype), jnp.asarray(dt, value.dtype), inputs)
        return recent(None, value, step)[0]
