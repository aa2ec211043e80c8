"""Mixture filters of switching models one observation at a time, in constant memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from statespace.chains import switching
from statespace.chains.gaussian.mixtures import Components, covariances, mixture_moments
from statespace.methods.feeding import Fed, next_step
from statespace.methods.rao_blackwellised import conditionals
from statespace.model import Step

if TYPE_CHECKING:
    from statespace.methods.gaussian_sums import MixtureFilter, SwitchingLaw


class MixtureOnlineState(NamedTuple):
    """All that the past says of the present.

    Attributes:
        mean: ``E[x_t | y_{0:t}]``, shape ``(n,)``.
        covariance: shape ``(n, n)``.
        probs: of the regimes, shape ``(K,)``.
        log_likelihood: ``log p(y_{0:t})``, as exact as the mixtures are.
        index: the moment t; -1 before the first.
        time: its time.
        components: the mixture.
    """

    mean: Float[Array, " n"]
    covariance: Float[Array, "n n"]
    probs: Float[Array, " K"]
    log_likelihood: Float[Array, ""]
    index: Int[Array, ""]  # type: ignore[assignment]  # not the method of tuples
    time: Float[Array, ""]
    components: Components


class MixtureOnline(Fed, eqx.Module):
    """A mixture filter that is fed one observation at a time: see :func:`statespace.online`."""

    model: Any
    method: MixtureFilter
    dt: float = eqx.field(static=True)

    def __check_init__(self) -> None:
        conditionals(self.model, type(self.method).__name__, linear=False)
        self.method.size(self.model)

    def init(self) -> MixtureOnlineState:
        """The state before the first observation: its components are those of ``initial``."""
        return _initial(self)

    def _begin(self) -> MixtureOnlineState:
        arrays = jax.tree.leaves(eqx.filter(self.model, eqx.is_inexact_array))
        dtype = jnp.result_type(float if not arrays else arrays[0].dtype, *arrays)
        law, size = self.method.law(self.model, dtype), self.method.size(self.model)
        step = Step(0, jnp.zeros((), dtype), jnp.asarray(self.dt, dtype))
        first = law.first(step)
        fill = jnp.minimum(jnp.arange(size), law.regimes - 1)
        components = jax.tree.map(lambda x: x[fill], first)
        there = jnp.arange(size) < law.regimes
        components = components._replace(
            log_weights=jnp.where(there, components.log_weights, -jnp.inf)
        )
        return _state(law, components, jnp.zeros((), dtype), jnp.asarray(-1), step.time - self.dt)

    def advance(
        self,
        state: MixtureOnlineState,
        y: Array,
        inputs: Array | None,
        time: Array | None,
    ) -> MixtureOnlineState:
        """The state after one more observation, traced."""
        step, first = next_step(state, self.dt, inputs, time)
        method, size = self.method, self.method.size(self.model)
        law = method.law(self.model, state.mean.dtype)
        begun = switching.start(law, step, size, method.mixed)
        entered = switching.enter(law, state.components, step, method.mixed)
        moved = switching.advance(law, entered, step)
        predicted = jax.tree.map(lambda a, b: jnp.where(first, a, b), begun, moved)
        now = switching.observe(law, predicted, step, y, size)
        total = state.log_likelihood + now.pointwise
        return _state(law, now.components, total, step.index, step.time)


@eqx.filter_jit
def _initial(online: MixtureOnline) -> MixtureOnlineState:
    return online._begin()


def _state(
    law: SwitchingLaw, components: Components, log_likelihood: Array, index: Any, time: Array
) -> MixtureOnlineState:
    weights = jnp.exp(components.log_weights)
    mean, covariance = mixture_moments(
        weights, components.mean, covariances(components.spread, law.form)
    )
    here = components.regime[:, None] == jnp.arange(law.regimes)
    return MixtureOnlineState(
        mean, covariance, weights @ here, log_likelihood, index, time, components
    )
