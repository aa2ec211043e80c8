"""Series and panels: what was recorded, and the ways in from arrays, pandas and xarray."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from statespace.labels import TIME_UNITS, Labels
from statespace.reading import (
    is_labelled,
    is_traced,
    on_host,
    read_inputs,
    read_times,
    read_values,
    to_jax,
)


class Series(eqx.Module):
    """One recording: observations, when they were made, and what was put in.

    ``NaN`` is a missing entry, of one channel or of all; the moment stays, and is predicted. Times may be
    irregular. The precision of the observations (float32 or float64; integers become the default float) is
    the precision of the whole series.

    Args:
        y: observations, shape ``(T,)`` or ``(T, m)``: an array, a list of numbers, a NumPy masked array
            (masked = missing), a pandas Series or DataFrame, an xarray DataArray or Dataset, or another
            Series. The index of pandas and the time coordinate of xarray become the times, and come
            back on every result.
        times: shape ``(T,)``, strictly increasing: numbers, or dates (a pandas Index or a datetime
            array). Default: the index of ``y``, else 0 … T-1. Dates with a declared or inferable frequency
            count in periods (``dt = 1``); others count in days from the first.
        inputs: covariates, shape ``(T,)`` or ``(T, k)``, without NaN; a pandas object is aligned to the
            index of ``y``, of which it may hold more than is needed.
        state_weights: what is known of a finite state besides ``y`` (soft labels): shape ``(T, K)``, the
            plausibility of each state at each moment, not negative, of any scale; a row of NaN where
            nothing is known. Every method and learner of a finite-state model multiplies them in.
        time_unit: the unit in which to count dates: "ns", "us", "ms", "s", "min", "h", "D" or "W".
        channels: names of the m channels; default: those of ``y``.

    Attributes:
        y: shape ``(T,)`` or ``(T, m)``.
        times: shape ``(T,)``.
        inputs: shape ``(T, k)``, or None.
        state_weights: shape ``(T, K)``, or None.
        intervals: shape ``(T,)``: the time since the previous moment, at the first moment the first
            interval; differences are taken in double precision before any rounding to float32.
        complete: True when nothing is missing, False when something is, None when unknown (traced).
        dt: the interval when the times are known to be regular, else None.
        labels: names of the moments, channels and inputs, or None.

    Raises:
        TypeError: if ``y``, ``times`` or ``inputs`` is of a kind that cannot be read.
        ValueError: if shapes do not fit; if the series is empty, entirely NaN, or has infinite values; if
            times are not finite and strictly increasing; if inputs hold NaN.

    Example:
        >>> ss.Series([1.2, np.nan, 0.7], times=[0.0, 0.5, 2.0])
    """

    y: Float[Array, " T"] | Float[Array, "T m"]
    times: Float[Array, " T"]
    inputs: Float[Array, "T k"] | None
    intervals: Float[Array, " T"]
    state_weights: Float[Array, "T K"] | None
    complete: bool | None = eqx.field(static=True)
    dt: float | None = eqx.field(static=True)
    labels: Labels | None = eqx.field(static=True)

    def __init__(
        self,
        y: Any,
        times: Any = None,
        inputs: Any = None,
        *,
        state_weights: Any = None,
        time_unit: str | None = None,
        channels: Sequence[str] | None = None,
    ):
        if isinstance(y, Panel):
            raise TypeError("`y` is a Panel: take one of its recordings, `panel.series[i]`.")
        if isinstance(y, Series):
            labels = y.labels or Labels()
            channels = labels.channels if channels is None else channels
            if times is None:
                times = y.times if labels.index is None else labels.index
                time_unit = labels.unit if labels.unit in TIME_UNITS else None
            if state_weights is None:
                state_weights = y.state_weights
            y, inputs = y.y, y.inputs if inputs is None else inputs
        values, index, names = read_values(y)
        self.complete = _check_values(values)
        names = names if channels is None else _channel_names(channels, values)
        clock = read_times(times, index, len(values), time_unit)
        given, input_names = read_inputs(inputs, clock.index, len(values))
        self.y = to_jax(values)
        self.times, self.intervals = (
            to_jax(part, self.y.dtype) for part in (clock.times, clock.intervals)
        )
        self.inputs = None if given is None else to_jax(given, self.y.dtype)
        self.state_weights = _read_weights(state_weights, self.y)
        self.dt = clock.dt
        known = (clock.index, names, input_names)
        self.labels = None
        if any(part is not None for part in known):
            self.labels = Labels(*known, clock.unit, clock.frequency)

    def __len__(self) -> int:
        return self.y.shape[0]

    @property
    def channels(self) -> Float[Array, "T m"]:
        """The observations with a channel axis, which a single channel may lack."""
        return self.y if self.y.ndim == 2 else self.y[:, None]

    @property
    def observed(self) -> Bool[Array, "T m"]:
        """True where an entry was observed, False where it is missing."""
        return ~jnp.isnan(self.channels)

    def drop_labels(self) -> Series:
        """The same recording without its labels, so that a program compiled for it serves any dates."""
        return _with(self, labels=None)

    @staticmethod
    def unobserved(
        times: Any,
        inputs: Any = None,
        *,
        channels: int = 1,
        dtype: Any = None,
        dt: float | None = None,
    ) -> Series:
        """Moments at which nothing was observed: points to predict at, or to simulate at.

        Args:
            times: shape ``(T,)``, strictly increasing numbers.
            inputs: shape ``(T, k)``, or None.
            channels: the number m of channels.
            dtype: of the series; default JAX's default float.
            dt: the interval, where the caller knows it and the times are traced.
        """
        clock = read_times(times, None, len(times), None)
        given, _ = read_inputs(inputs, None, len(times))
        dtype = jnp.result_type(float) if dtype is None else dtype
        return assemble(
            Series,
            y=to_jax(np.full((len(times), channels), np.nan), dtype),
            times=to_jax(clock.times, dtype),
            inputs=None if given is None else to_jax(given, dtype),
            intervals=to_jax(clock.intervals, dtype),
            state_weights=None,
            complete=False,
            dt=clock.dt if dt is None else dt,
            labels=None,
        )


class Panel(eqx.Module):
    """Independent recordings, of unequal length too, padded with NaN at the end.

    Args:
        series: the recordings: with the same channels, and all or none of them with inputs.

    Attributes:
        y: shape ``(S, T, m)``, T the length of the longest; NaN where missing and after the end.
        times: shape ``(S, T)``; after the end of a recording they go on by its last interval.
        inputs: shape ``(S, T, k)``, zero after the end; or None.
        intervals: shape ``(S, T)``, as in :class:`Series`.
        state_weights: shape ``(S, T, K)``, NaN where nothing is known and after the end; or None.
        lengths: how long each recording is.
        facts: ``(complete, dt)`` of each recording, as in :class:`Series`.
        labels: those of each recording, or None when none has any.
        flat: whether the recordings came as ``(T,)``, without a channel axis.

    Raises:
        ValueError: if there is no recording, or if they differ in channels or inputs.
    """

    y: Float[Array, "S T m"]
    times: Float[Array, "S T"]
    inputs: Float[Array, "S T k"] | None
    intervals: Float[Array, "S T"]
    state_weights: Float[Array, "S T K"] | None
    lengths: tuple[int, ...] = eqx.field(static=True)
    facts: tuple[tuple[bool | None, float | None], ...] = eqx.field(static=True)
    labels: tuple[Labels | None, ...] | None = eqx.field(static=True)
    flat: bool = eqx.field(static=True)

    def __init__(self, series: Sequence[Series]):
        series = [as_series(s) for s in series]
        _check_alike(series)
        self.lengths = tuple(len(s) for s in series)
        longest = max(self.lengths)
        dtype = jnp.result_type(*(s.y.dtype for s in series))
        known = [s.state_weights.shape[1] for s in series if s.state_weights is not None]
        # NumPy where it can be: of thousands of recordings JAX would compile one operation each
        xp = jnp if any(is_traced(leaf) for leaf in jax.tree.leaves(series)) else np
        parts = [_pad(s, longest, known[0] if known else None, xp) for s in series]
        self.y, self.times, self.intervals, self.inputs, self.state_weights = (
            None if column[0] is None else to_jax(xp.stack(column), dtype) for column in zip(*parts)
        )
        self.facts = tuple((s.complete, s.dt) for s in series)
        labels = tuple(s.labels for s in series)
        self.labels = labels if any(labels) else None
        self.flat = all(s.y.ndim == 1 for s in series)

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def complete(self) -> bool | None:
        """True when ``y`` has no NaN at all, that of the padding included; None when unknown."""
        known = {complete for complete, _ in self.facts}
        if len(set(self.lengths)) > 1 or False in known:
            return False
        return None if None in known else True

    @property
    def dt(self) -> float | None:
        """The interval when all recordings are regular with the same one, else None."""
        known = {dt for _, dt in self.facts}
        return known.pop() if len(known) == 1 else None

    @property
    def channels(self) -> Float[Array, "S T m"]:
        """The observations, padded."""
        return self.y

    @property
    def observed(self) -> Bool[Array, "S T m"]:
        """True where an entry was observed, False where it is missing or after the end."""
        return ~jnp.isnan(self.y)

    @property
    def series(self) -> list[Series]:
        """The recordings, each at its own length."""
        own = lambda x, *at: None if x is None else to_jax(on_host(x)[at])
        channels = (0,) if self.flat else ()
        return [
            assemble(
                Series,
                y=own(self.y, i, slice(n), *channels),
                times=own(self.times, i, slice(n)),
                inputs=own(self.inputs, i, slice(n)),
                intervals=own(self.intervals, i, slice(n)),
                state_weights=own(self.state_weights, i, slice(n)),
                complete=self.facts[i][0],
                dt=self.facts[i][1],
                labels=None if self.labels is None else self.labels[i],
            )
            for i, n in enumerate(self.lengths)
        ]

    def drop_labels(self) -> Panel:
        """The same panel without its labels, so that a program compiled for it serves any dates."""
        return _with(self, labels=None)


def as_series(data: Any, times: Any = None, inputs: Any = None, **kwargs: Any) -> Series:
    """One recording from whatever holds it: see :class:`Series`, which is returned as it is."""
    if isinstance(data, Series) and times is None and inputs is None and not kwargs:
        return data
    return Series(data, times, inputs, **kwargs)


def as_data(data: Any, times: Any = None, inputs: Any = None, **kwargs: Any) -> Series | Panel:
    """One recording, or a panel of independent ones.

    A list of numbers, or a rectangular list of lists of numbers, is one recording; a list (or tuple) of
    arrays, pandas or xarray objects or Series is a panel.

    Args:
        data: a recording as :class:`Series` takes it, a list of them, or a :class:`Panel`.
        times: as in :class:`Series`; for a panel a list with those of each recording.
        inputs: as in :class:`Series`; for a panel a list with those of each recording.
        **kwargs: the further arguments of :class:`Series`.

    Raises:
        TypeError: if the list mixes numbers and recordings, or as in :class:`Series`.
        ValueError: if the list is empty, the recordings do not go together, or as in :class:`Series`.
    """
    if isinstance(data, Panel):
        if times is None and inputs is None and not kwargs:
            return data
        data = data.series
    if not isinstance(data, (list, tuple)):
        return as_series(data, times, inputs, **kwargs)
    recordings = [_is_recording(part) for part in data]
    if not any(recordings):
        return as_series(data, times, inputs, **kwargs)
    if not all(recordings):
        i = recordings.index(False)
        raise TypeError(
            f"`data` is a list of recordings, but entry {i} is a {type(data[i]).__name__}: a panel is a "
            "list of arrays, pandas or xarray objects or Series."
        )
    each_times = _each(times, len(data), "times")
    each_inputs = _each(inputs, len(data), "inputs")
    series = []
    for i, part in enumerate(data):
        try:
            series.append(as_series(part, each_times[i], each_inputs[i], **kwargs))
        except (TypeError, ValueError) as error:
            raise type(error)(f"recording {i} of the panel: {error}") from None
    return Panel(series)


def _is_recording(part: Any) -> bool:
    """Whether an entry of a list is a recording of its own, and not a number or a row of numbers."""
    return isinstance(part, Series) or is_labelled(part) or getattr(part, "ndim", 0) > 0


def _each(values: Any, length: int, argument: str) -> Sequence[Any]:
    """One value for each recording of a panel."""
    if values is None:
        return [None] * length
    if not isinstance(values, (list, tuple)) or len(values) != length:
        got = (
            f"{len(values)} of them" if isinstance(values, (list, tuple)) else type(values).__name__
        )
        raise ValueError(
            f"`{argument}` of a panel must be a list with one entry for each of the {length} "
            f"recordings, got {got}."
        )
    return values


def _check_values(values: Any) -> bool | None:
    """Whether the observations are complete; None when they are traced."""
    if is_traced(values):
        return None
    values = np.asarray(values)
    infinite = np.argwhere(np.isinf(values))
    if len(infinite):
        where = ", ".join(str(i) for i in infinite[0])
        raise ValueError(
            f"`y` must be finite or NaN (missing), but y[{where}] is {values[tuple(infinite[0])]} "
            f"({len(infinite)} such entries): put NaN where the value is not known."
        )
    missing = np.isnan(values)
    if missing.all():
        raise ValueError(
            f"`y` of shape {values.shape} is NaN throughout: there is nothing to infer from. For moments "
            "to predict or simulate at use `Series.unobserved(times)`."
        )
    return not missing.any()


def _channel_names(channels: Sequence[str], values: Any) -> tuple[str, ...]:
    m = 1 if values.ndim == 1 else values.shape[1]
    names = (channels,) if isinstance(channels, str) else tuple(str(c) for c in channels)
    if len(names) != m:
        raise ValueError(
            f"`channels` must name the {m} channels of `y`, got {len(names)}: {names}."
        )
    return names


def _check_alike(series: Sequence[Series]) -> None:
    if not series:
        raise ValueError("a panel needs at least one recording, got an empty list.")
    width = series[0].channels.shape[1]
    inputs = _input_count(series[0])
    for i, s in enumerate(series):
        if s.channels.shape[1] != width:
            raise ValueError(
                f"the recordings of a panel must have the same channels, but recording 0 has {width} and "
                f"recording {i} has {s.channels.shape[1]}; fill in channels that were not recorded "
                "with NaN."
            )
        if _input_count(s) != inputs:
            raise ValueError(
                f"the recordings of a panel must have the same inputs, but recording 0 has {inputs} and "
                f"recording {i} has {_input_count(s)}."
            )
    _check_weights_alike(series)


def _check_weights_alike(series: Sequence[Series]) -> None:
    counts = {s.state_weights.shape[1] for s in series if s.state_weights is not None}
    if len(counts) > 1:
        raise ValueError(
            "`state_weights` of the recordings of a panel must be over the same states, but they are over "
            f"{sorted(counts)}."
        )


def _read_weights(weights: Any, y: Array) -> Array | None:
    """Plausibilities of states as an array.

    Raises:
        ValueError: if there is not one row for each moment, or a row is negative, infinite, zero
            throughout or known in part.
    """
    if weights is None:
        return None
    weights = weights if is_traced(weights) else np.asarray(weights, float)
    if weights.ndim != 2 or len(weights) != len(y):
        raise ValueError(
            f"`state_weights` must have shape ({len(y)}, K), one row for each moment of `y`, got "
            f"{weights.shape}."
        )
    if not is_traced(weights):
        unknown = np.isnan(weights).all(axis=1)
        fine = (np.isfinite(weights) & (weights >= 0)).all(axis=1) & (weights > 0).any(axis=1)
        wrong = np.flatnonzero(~(unknown | fine))
        if len(wrong):
            raise ValueError(
                f"row {wrong[0]} of `state_weights` is {weights[wrong[0]]}: plausibilities are finite, not "
                "negative and not all zero; a row of NaN says that nothing is known."
            )
    return to_jax(weights, y.dtype)


def _input_count(series: Series) -> int:
    return 0 if series.inputs is None else series.inputs.shape[1]


def _pad(series: Series, length: int, states: int | None, xp: Any) -> tuple[Any, ...]:
    """``y``, times, intervals, inputs and state weights of a recording, continued to the length."""
    extra = length - len(series)
    after = ((0, extra), (0, 0))
    y, clock, intervals = (xp.asarray(a) for a in (series.channels, series.times, series.intervals))
    last = intervals[-1]
    times = xp.concatenate([clock, clock[-1] + last * xp.arange(1, extra + 1)])
    intervals = xp.concatenate([intervals, xp.full(extra, last)])
    inputs = None if series.inputs is None else xp.pad(xp.asarray(series.inputs), after)
    padded = xp.pad(y, after, constant_values=np.nan)
    if states is None:
        return padded, times, intervals, inputs, None
    weights = series.state_weights
    if weights is None:
        weights = xp.full((len(series), states), np.nan, y.dtype)
    return padded, times, intervals, inputs, xp.pad(weights, after, constant_values=np.nan)


def assemble(cls: type, **fields: Any) -> Any:
    """A record from its fields, as a pytree is rebuilt: past ``__init__`` and its reading."""
    made: Any = object.__new__(cls)
    for name, value in fields.items():
        object.__setattr__(made, name, value)
    return made


def _with(record: Any, **changes: Any) -> Any:
    fields = {f.name: getattr(record, f.name) for f in dataclasses.fields(record)}
    return assemble(type(record), **(fields | changes))
