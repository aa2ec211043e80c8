"""The filter and the fixed-lag smoother, one moment at a time in constant memory."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from statespace.chains.finite import algebra, logs


class Window(NamedTuple):
    """All that the past says of the last ``lag + 1`` states.

    Attributes:
        probs: ``p(z_t | y_{0:t})``.
        predicted: ``p(z_t | y_{0:t-1})``.
        pointwise: ``log p(y_t | y_{0:t-1})``.
        log_likelihood: ``log p(y_{0:t})``.
        index: the moment t, from 0.
        filtered: log of the filtered laws of the last moments, the newest last.
        weights: log of what each moment's potential says of its state.
        matrices: log of the transition probabilities between the last moments.
    """

    probs: Float[Array, " K"]
    predicted: Float[Array, " K"]
    pointwise: Float[Array, ""]
    log_likelihood: Float[Array, ""]
    index: Int[Array, ""]  # type: ignore[assignment]  # not the method of tuples
    filtered: Float[Array, "lag+1 K"]
    weights: Float[Array, "lag+1 K"]
    matrices: Float[Array, "lag K K"]


def start(initial: Float[Array, " K"], potential: Float[Array, " K"], lag: int = 0) -> Window:
    """The window after the first moment.

    Args:
        initial: probabilities of the first state.
        potential: log weights of the first moment.
        lag: how many moments back :func:`fixed_lag` shall see.
    """
    size = initial.shape[0]
    dtype = jnp.result_type(initial, potential)
    empty = jnp.zeros((lag + 1, size), dtype)
    blank = Window(
        probs=jnp.zeros(size, dtype),
        predicted=jnp.zeros(size, dtype),
        pointwise=jnp.zeros((), dtype),
        log_likelihood=jnp.zeros((), dtype),
        index=jnp.asarray(-1),
        filtered=empty,
        weights=empty,
        matrices=jnp.zeros((lag, size, size), dtype),
    )
    nowhere = jnp.zeros((size, size), dtype)
    return _append(blank, nowhere, algebra.log(initial), potential)


def step(window: Window, transition: Float[Array, "K K"], potential: Float[Array, " K"]) -> Window:
    """The window one moment later, given the probabilities of the transition and the new log weights."""
    matrix = algebra.log(transition)
    return _append(window, matrix, logs.move(window.filtered[-1], matrix), potential)


def _append(window: Window, matrix: Array, predicted: Array, potential: Array) -> Window:
    filtered, weights, evidence = logs.absorb(predicted, potential)

    def shift(past: Array, new: Array) -> Array:
        return jnp.concatenate([past, new[None]])[1:]

    return Window(
        probs=jnp.exp(filtered),
        predicted=jnp.exp(predicted),
        pointwise=evidence,
        log_likelihood=window.log_likelihood + evidence,
        index=window.index + 1,
        filtered=shift(window.filtered, filtered),
        weights=shift(window.weights, weights),
        matrices=shift(window.matrices, matrix),
    )


def fixed_lag(window: Window) -> Float[Array, "lag+1 K"]:
    """``p(z_s | y_{0:t})`` for s from ``t - lag`` to t; NaN before the first moment."""

    def back(after: Array, at: tuple[Array, Array]) -> tuple[Array, Array]:
        matrix, weight = at
        before = logs.recall(matrix, weight + after)
        return before, before

    last = jnp.zeros_like(window.weights[-1])
    _, before = jax.lax.scan(back, last, (window.matrices, window.weights[1:]), reverse=True)
    after = jnp.concatenate([before, last[None]])
    probs = jax.nn.softmax(window.filtered + after, axis=1)
    lag = window.matrices.shape[0]
    exists = jnp.arange(-lag, 1) + window.index >= 0
    return jnp.where(exists[:, None], probs, jnp.nan)
