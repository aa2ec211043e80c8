"""Moments to predict at: what was asked for, merged into the recording as moments without observations."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np

from statespace.labels import Labels
from statespace.reading import is_traced, read_inputs, to_jax
from statespace.series import Series, assemble


def query(series: Series, steps: int | None, times: Any, inputs: Any) -> Series:
    """The moments asked for, as a recording of nothing, labelled like the data.

    Raises:
        TypeError: if ``steps`` is no whole number.
        ValueError: unless exactly one of ``steps`` and ``times`` is given; if ``steps`` is not positive or
            the data's times are irregular; if inputs are missing, superfluous or of the wrong length.
    """
    if (steps is None) == (times is None):
        raise ValueError(
            "`forecast` needs either `steps`, how many moments after the data, or `times`."
        )
    labels = series.labels
    if steps is not None:
        if not isinstance(steps, (int, np.integer)):
            raise TypeError(f"`steps` must be a whole number, got {steps!r}.")
        if steps < 1:
            raise ValueError(f"`steps` must be positive, got {steps}.")
        if series.dt is None:
            raise ValueError(
                "`steps` needs regular times, these are irregular: give `times` instead."
            )
        when = float(series.times[-1]) + series.dt * np.arange(1, steps + 1)
    else:
        when = np.asarray(times, float) if labels is None else labels.times(times)
    if when.ndim != 1 or not len(when) or not np.all(np.isfinite(when)):
        raise ValueError(f"`times` must be finite, of shape (h,), got {times!r}.")
    if np.any(np.diff(when) <= 0):
        raise ValueError("`times` must increase strictly.")
    if (inputs is None) != (series.inputs is None):
        state = "has none" if series.inputs is None else f"has {series.inputs.shape[1]} a moment"
        raise ValueError(
            f"`inputs` of the forecast must go with the recording, which {state}: "
            f"{'leave them out' if series.inputs is None else f'give shape ({len(when)}, k)'}."
        )
    index = None if labels is None else labels.moments(when)
    given, _ = read_inputs(inputs, index, len(when))
    if given is not None and given.shape[1] != series.inputs.shape[1]:
        raise ValueError(
            f"`inputs` of the forecast have {given.shape[1]} columns, those of the recording "
            f"{series.inputs.shape[1]}."
        )
    new = Series.unobserved(
        when, given, channels=series.channels.shape[1], dtype=series.y.dtype, dt=series.dt
    )
    return assemble(
        Series,
        **{f.name: getattr(new, f.name) for f in dataclasses.fields(new) if f.name != "labels"},
        labels=None
        if labels is None
        else Labels(index, labels.channels, labels.inputs, labels.unit, labels.frequency),
    )


def merge(series: Series, wanted: Series) -> tuple[Series, np.ndarray]:
    """One recording with both, and the rows of the moments asked for.

    A moment that both have (to rounding) is not doubled.
    """
    old, new = np.asarray(series.times, float), np.asarray(wanted.times, float)
    every = np.concatenate([old, new])
    span = max(every.max() - every.min(), np.abs(every).max(), 1.0)
    tolerance = 4 * float(jnp.finfo(series.times.dtype).eps) * span
    near = np.clip(np.searchsorted(old, new), 0, len(old) - 1)
    before = np.clip(near - 1, 0, None)
    near = np.where(np.abs(old[before] - new) < np.abs(old[near] - new), before, near)
    same = np.abs(old[near] - new) <= tolerance
    extra = np.flatnonzero(~same)
    order = np.argsort(np.concatenate([old, new[extra]]), kind="stable")
    place = np.empty(len(order), int)
    place[order] = np.arange(len(order))
    rows = np.where(same, place[near], 0)
    rows[extra] = place[len(old) :]

    def both(a: Any, b: Any) -> Any:
        if a is None:
            return None
        xp = jnp if is_traced(a) or is_traced(b) else np  # of which nothing is compiled
        return to_jax(xp.concatenate([xp.asarray(a), xp.asarray(b)[extra]])[order])

    times = both(series.times, wanted.times)
    unknown = None
    if series.state_weights is not None:
        states = series.state_weights.shape[1]
        unknown = np.full((len(new), states), np.nan, series.state_weights.dtype)
    exact = np.concatenate([old, new[extra]])[order]
    gaps = np.diff(exact)
    first = gaps[:1] if len(gaps) else np.ones(1)
    regular = series.dt is not None and np.allclose(gaps, series.dt, rtol=0, atol=tolerance)
    intervals = to_jax(np.concatenate([first, gaps]), series.times.dtype)
    kept = assemble(
        Series,
        y=both(series.channels, wanted.y),
        times=times,
        inputs=both(series.inputs, wanted.inputs),
        intervals=intervals,
        state_weights=both(series.state_weights, unknown),
        complete=series.complete if not len(extra) else False,
        dt=series.dt if regular else None,
        labels=None,
    )
    return kept, rows
