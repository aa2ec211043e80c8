"""The Kalman filter one observation at a time, in constant memory."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from statespace.chains.gaussian import diffuse
from statespace.chains.gaussian.covariances import predict
from statespace.chains.gaussian.step import evidence, gains, move
from statespace.methods.feeding import Fed, next_step
from statespace.methods.gaussian_lowering import initial_law, linear, noise
from statespace.methods.gaussian_method import GaussianMethod
from statespace.model import Step


class OnlineState(NamedTuple):
    """All that the past says of the present.

    Attributes:
        mean: ``E[x_t | y_{0:t}]``, shape ``(n,)``.
        covariance: shape ``(n, n)``; infinite in directions that are still diffuse.
        predicted_mean: of ``y_t`` given ``y_{0:t-1}``, shape ``(m,)``; NaN while it is diffuse.
        log_likelihood: ``log p(y_{0:t})``.
        index: the moment t; -1 before the first.
        time: its time.
        columns: filtered mean with its diffuse columns, shape ``(n, 1 + q)``.
        spread: filtered covariance or factor, given the diffuse coefficients.
        gram: what the data say of the diffuse coefficients, shape ``(1 + q, 1 + q)``.
        constant: the part of the log likelihood that is free of them.
    """

    mean: Float[Array, " n"]
    covariance: Float[Array, "n n"]
    predicted_mean: Float[Array, " m"]
    log_likelihood: Float[Array, ""]
    index: Int[Array, ""]  # type: ignore[assignment]  # not the method of tuples
    time: Float[Array, ""]
    columns: Float[Array, "n c"]
    spread: Float[Array, "n n"]
    gram: Float[Array, "c c"]
    constant: Float[Array, ""]


class Update(NamedTuple):
    """What one observation makes of a predicted state: see :class:`OnlineState`.

    ``constant`` and ``gram`` are what it adds; ``predicted_mean`` is of the observation.
    """

    columns: Float[Array, "n c"]
    spread: Float[Array, "n n"]
    constant: Float[Array, ""]
    gram: Float[Array, "c c"]
    predicted_mean: Float[Array, " m"]


class Predicted(NamedTuple):
    """A state before its observation, and what is known of the diffuse coefficients."""

    columns: Float[Array, "n c"]
    spread: Float[Array, "n n"]
    known: diffuse.Partial


class GaussianOnline(Fed, eqx.Module):
    """A Gaussian filter that is fed one observation at a time; what an observation says is left open."""

    model: Any
    method: GaussianMethod
    dt: float = eqx.field(static=True)
    predicts = True

    def __check_init__(self) -> None:
        initial_law(self.model, _first_step(self.dt))

    def ahead(self, state: OnlineState, step: Step) -> tuple[Array, Array]:
        """Columns and spread of the state at a step, before its observation."""
        moves = self.model.transition.at(step)
        columns = move(state.columns, moves.matrix, moves.offset)
        return columns, predict(state.spread, moves.matrix, noise(moves, self.form), self.form)

    @abstractmethod
    def see(self, step: Step, predicted: Predicted, y: Array | None) -> Update:
        """Update a predicted state by one observation; None is none."""

    @property
    def form(self) -> str:
        """What the recursion carries: covariances, or factors of them."""
        dtype = initial_law(self.model, _first_step(self.dt)).mean.dtype
        return self.method.form or ("sqrt" if dtype == jnp.float32 else "covariance")

    def init(self) -> OnlineState:
        """The state before the first observation."""
        law = initial_law(self.model, _first_step(self.dt))
        n, dtype = law.mean.shape[0], law.mean.dtype
        q = 0 if law.diffuse is None else law.diffuse.shape[1]
        zero = jnp.zeros((), dtype)
        return OnlineState(
            mean=law.mean,
            covariance=jnp.full((n, n), jnp.nan, dtype),
            predicted_mean=jnp.zeros(0, dtype),
            log_likelihood=zero,
            index=jnp.asarray(-1),
            time=jnp.asarray(-self.dt, dtype),
            columns=jnp.zeros((n, 1 + q), dtype),
            spread=jnp.zeros((n, n), dtype),
            gram=jnp.zeros((1 + q, 1 + q), dtype),
            constant=zero,
        )

    def advance(
        self, state: OnlineState, y: Array | None, inputs: Array | None, time: Array | None
    ) -> OnlineState:
        """The state after one more observation, traced."""
        form, dtype = self.form, state.mean.dtype
        step, first = next_step(state, self.dt, inputs, time)
        law, (columns, spread) = initial_law(self.model, step), self.ahead(state, step)

        start = law.mean[:, None]
        if law.diffuse is not None:
            start = jnp.concatenate([start, law.diffuse.astype(dtype)], axis=1)
        p0 = noise(law, form)
        p0 = predict(jnp.zeros_like(state.spread), jnp.eye(len(p0), dtype=dtype), p0, form)
        columns, spread = jnp.where(first, start, columns), jnp.where(first, p0, spread)
        known = diffuse.integrate_identified(state.gram)
        new = self.see(step, Predicted(columns, spread, known), y)
        constant, gram = state.constant + new.constant, state.gram + new.gram
        after = diffuse.integrate_identified(gram)
        covariance = new.spread if form == "covariance" else new.spread @ new.spread.T
        mean, covariance = diffuse.moments(new.columns, covariance, after)
        return OnlineState(
            mean=mean,
            covariance=covariance,
            predicted_mean=new.predicted_mean,
            log_likelihood=constant + after.log_evidence,
            index=step.index,
            time=step.time,
            columns=new.columns,
            spread=new.spread,
            gram=gram,
            constant=constant,
        )


class Online(GaussianOnline):
    """The Kalman filter, fed one observation at a time: see :func:`statespace.online`."""

    def __check_init__(self) -> None:
        linear(self.model, "transition", type(self.method).__name__)
        linear(self.model, "observation")

    def see(self, step: Step, predicted: Predicted, y: Array | None) -> Update:
        """Update a predicted state by one observation; its missing entries are left out."""
        sees, form = self.model.observation.at(step), self.form
        columns, spread, known = predicted
        y = jnp.full(sees.matrix.shape[0], jnp.nan, columns.dtype) if y is None else y
        seen = gains(spread, sees.matrix, noise(sees, form), ~jnp.isnan(y), form)
        residual = jnp.where(jnp.isnan(y), 0, y - sees.offset)
        filtered, constant, gram = evidence(columns, residual, seen)
        state, _ = diffuse.moments(columns, jnp.zeros_like(spread), known)
        open_ = jnp.any(jnp.abs(sees.matrix @ columns[:, 1:] @ known.flat) > 0, axis=1)
        mean = jnp.where(open_, jnp.nan, sees.matrix @ state + sees.offset)
        return Update(filtered, seen.filtered, constant, gram, mean)


def _first_step(dt: float) -> Step:
    return Step(0, 0.0, dt)
