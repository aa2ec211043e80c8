"""The filter of a finite state one observation at a time, in constant memory, with fixed-lag smoothing."""

from __future__ import annotations

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from statespace.conditionals import aggregates
from statespace.methods.feeding import Fed, next_step, recent
from statespace.methods.forward_backward import ForwardBackward, initial_probs, transition
from statespace.methods.potentials import log_potentials
from statespace.model import Step


class FiniteOnlineState(NamedTuple):
    """All that the past says of the present.

    Attributes:
        probs: ``P(z_t = k | y_{0:t})``, shape ``(K,)``.
        predicted: ``P(z_t = k | y_{0:t-1})``, shape ``(K,)``.
        smoothed: ``P(z_{t-l} = k | y_{0:t})`` for l = 0 … lag, shape ``(lag + 1, K)``; NaN before
            the beginning.
        log_likelihood: ``log p(y_{0:t})``.
        index: the moment t; -1 before the first.
        time: its time.
        parts: the filtered law of the chain's own J states: K, or the parts that these are made of.
        past: the last such laws, newest first, shape ``(lag, J)``.
        forward: the last predictions of them, newest first, shape ``(lag, J)``.
        kernels: the last transition matrices, newest first, shape ``(lag, J, J)``.
        history: the last observations, newest first, where the model's observations depend on them.
    """

    probs: Float[Array, " K"]
    predicted: Float[Array, " K"]
    smoothed: Float[Array, "lag+1 K"]
    log_likelihood: Float[Array, ""]
    index: Int[Array, ""]  # type: ignore[assignment]  # not the method of tuples
    time: Float[Array, ""]
    parts: Float[Array, " J"]
    past: Float[Array, "lag J"]
    forward: Float[Array, "lag J"]
    kernels: Float[Array, "lag J J"]
    history: Float[Array, "p m"] | None


class FiniteOnline(Fed, eqx.Module):
    """A filter that is fed one observation at a time: see :func:`statespace.online`.

    ``ForwardBackward(lag=L)`` makes it revise the last L states with each observation.
    """

    model: Any
    method: ForwardBackward
    dt: float = eqx.field(static=True)

    def __check_init__(self) -> None:
        transition(self.model)
        initial_probs(self.model, Step(0, 0.0, self.dt))

    def init(self, channels: int = 1) -> FiniteOnlineState:
        """The state before the first observation.

        Args:
            channels: the number of observed channels, where observations depend on earlier ones.
        """
        probs = initial_probs(self.model, Step(0, 0.0, self.dt))
        probs = probs if jnp.issubdtype(probs.dtype, jnp.inexact) else probs.astype(float)
        parts, lag, dtype = len(probs), self.method.lag, probs.dtype
        aggregate = self.model.transition.aggregate
        shown = aggregates.fold(aggregate, probs)
        lags = getattr(self.model.observation, "lags", 0)
        nothing = jnp.full((lag, parts), jnp.nan, dtype)
        return FiniteOnlineState(
            probs=shown,
            predicted=shown,
            smoothed=jnp.full((lag + 1, len(shown)), jnp.nan, dtype),
            log_likelihood=jnp.zeros((), dtype),
            index=jnp.asarray(-1),
            time=jnp.asarray(-self.dt, dtype),
            parts=probs,
            past=nothing,
            forward=nothing,
            kernels=jnp.zeros((lag, parts, parts), dtype),
            history=jnp.full((lags, channels), jnp.nan, dtype) if lags else None,
        )

    def advance(
        self, state: FiniteOnlineState, y: Array, inputs: Array | None, time: Array | None
    ) -> FiniteOnlineState:
        """The state after one more observation, traced."""
        model, dtype = self.model, state.probs.dtype
        step, first = next_step(state, self.dt, inputs, time)
        kernel = model.transition.matrix(step).astype(dtype)
        predicted = jnp.where(first, initial_probs(model, step), state.parts @ kernel)

        aggregate = model.transition.aggregate
        fold = lambda p: aggregates.fold(aggregate, p)
        states = aggregates.count(aggregate, len(predicted))
        potential = _potential(model.observation, state.history, y, step, states)
        weights = jnp.log(predicted) + aggregates.expand(aggregate, potential[None])[0]
        evidence = jax.nn.logsumexp(weights)
        possible = jnp.isfinite(evidence)
        probs = jnp.where(
            possible, jnp.exp(weights - jnp.where(possible, evidence, 0.0)), predicted
        )

        def back(ratios: Array, at: tuple[Array, Array, Array]) -> tuple[Array, Array]:
            kernel, past, forward = at
            smoothed = past * (kernel @ ratios)
            return _ratio(smoothed, forward), smoothed

        lag = self.method.lag
        keep = lambda new, old: jnp.concatenate([new[None], old])[:lag]
        kernels = keep(kernel, state.kernels)
        _, revised = jax.lax.scan(
            back, _ratio(probs, predicted), (kernels, state.past, state.forward)
        )
        history = state.history
        if history is not None:
            history = jnp.concatenate([y[None], history[:-1]])
        return FiniteOnlineState(
            probs=fold(probs),
            predicted=fold(predicted),
            smoothed=fold(jnp.concatenate([probs[None], revised])),
            log_likelihood=state.log_likelihood + evidence,
            index=step.index,
            time=step.time,
            parts=probs,
            past=keep(probs, state.past),
            forward=keep(predicted, state.forward),
            kernels=kernels,
            history=history,
        )


def _ratio(smoothed: Array, predicted: Array) -> Array:
    """Smoothed over predicted probabilities; a state that was impossible stays so."""
    return jnp.where(predicted > 0, smoothed / jnp.where(predicted > 0, predicted, 1.0), 0.0)


def _potential(
    observation: Any, history: Array | None, y: Array, step: Step, states: int
) -> Float[Array, " K"]:
    """``log p(y | state k)`` of one observation after its history."""
    series, steps = recent(history, y, step)
    return log_potentials(observation, series, steps, states)[-1]
