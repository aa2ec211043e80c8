"""Labels: what a recording calls its moments and channels, and the way between dates and numbers.

Inference works on plain numbers. What the user called them (dates, periods, channel names) travels
beside the arrays in a :class:`Labels`, which is hashable with equality by content, so that it can be
static under ``jax.jit``, and comes back on every result.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

TIME_UNITS = {
    "ns": 1,
    "us": 10**3,
    "ms": 10**6,
    "s": 10**9,
    "min": 60 * 10**9,
    "h": 3600 * 10**9,
    "D": 86400 * 10**9,
    "W": 7 * 86400 * 10**9,
}
"""The units in which dates can be counted, in nanoseconds."""


class Labels:
    """Names of a recording's moments, channels and inputs. Immutable, hashable, equal by content.

    Attributes:
        index: the moments as the user named them, a pandas Index of length T; None when they have no
            other name than their times.
        channels: names of the channels, or None.
        inputs: names of the inputs, or None.
        unit: how the times count the index: ``"period"`` (one unit of time is one period of
            ``frequency``), a key of :data:`TIME_UNITS`, or None where the index is the times.
        frequency: pandas' name of the period where ``unit`` is ``"period"``, else None.
    """

    __slots__ = ("_digest", "channels", "frequency", "index", "inputs", "unit")

    index: pd.Index | None
    channels: tuple[str, ...] | None
    inputs: tuple[str, ...] | None
    unit: str | None
    frequency: str | None
    _digest: bytes

    def __init__(
        self,
        index: pd.Index | None = None,
        channels: tuple[str, ...] | None = None,
        inputs: tuple[str, ...] | None = None,
        unit: str | None = None,
        frequency: str | None = None,
    ):
        values = (index, channels, inputs, unit, frequency)
        for name, value in zip(("index", "channels", "inputs", "unit", "frequency"), values):
            object.__setattr__(self, name, value)
        object.__setattr__(self, "_digest", _digest(*values))

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"Labels are immutable; use `labels.replace({name}=...)`.")

    def __reduce__(self) -> tuple[Any, ...]:
        return Labels, (self.index, self.channels, self.inputs, self.unit, self.frequency)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Labels) and self._digest == other._digest

    def __hash__(self) -> int:
        return hash(self._digest)

    def __repr__(self) -> str:
        index = "None" if self.index is None else f"{type(self.index).__name__}[{len(self.index)}]"
        return (
            f"Labels(index={index}, channels={self.channels}, inputs={self.inputs}, "
            f"unit={self.unit!r}, frequency={self.frequency!r})"
        )

    def replace(self, **changes: Any) -> Labels:
        """The same labels with some fields changed."""
        fields = ("index", "channels", "inputs", "unit", "frequency")
        return Labels(
            **{name: changes.pop(name, getattr(self, name)) for name in fields}, **changes
        )

    def moments(self, times: Any) -> pd.Index:
        """The index at any times (in the recording's unit), inside or outside the recording.

        Args:
            times: shape ``(h,)``.

        Returns:
            Dates or periods where the recording has them, else the times themselves.
        """
        import pandas as pd

        times = np.asarray(times, float)
        if self.index is None or self.unit is None:
            name = None if self.index is None else self.index.name
            whole = self.index is not None and self.index.dtype.kind in "iu"
            whole = whole and np.array_equal(times, np.round(times))
            return pd.Index(times.astype(int) if whole else times, name=name)
        first = self.index[:1]
        if self.unit != "period":
            span = pd.to_timedelta(
                np.round(times * TIME_UNITS[self.unit]).astype("int64"), unit="ns"
            )
            return (first.repeat(len(times)) + span).rename(self.index.name)
        whole = np.round(times).astype(int)
        fraction = times - whole
        fraction[np.abs(fraction) < 1e-5] = 0.0
        if isinstance(self.index, pd.PeriodIndex):
            if fraction.any():
                return pd.Index(times, name=self.index.name)
            ordinals = self.index[0].ordinal + whole * self.index.freq.n
            return pd.PeriodIndex.from_ordinals(
                ordinals, freq=self.index.freq, name=self.index.name
            )
        low = np.floor(times + 1e-5).astype(int)
        part = np.clip(times - low, 0.0, 1.0)
        part[part < 1e-5] = 0.0
        grid = self._grid(int(low.min(initial=0)), int(low.max(initial=0)) + 1)
        start = low - int(low.min(initial=0))
        below, above = grid[start], grid[start + 1]
        return (below + (above - below) * part).rename(self.index.name)

    def times(self, index: Any) -> np.ndarray:
        """The times (in the recording's unit) of an index of dates, periods or numbers.

        Raises:
            TypeError: if dates are asked of a recording that has none.
        """
        import pandas as pd

        index = index if isinstance(index, pd.Index) else pd.Index(index)
        if index.inferred_type == "string":
            index = pd.to_datetime(index)
        if self.index is None or self.unit is None:
            if not pd.api.types.is_numeric_dtype(index):
                raise TypeError(
                    f"`times` are of type {index.dtype}, but the recording has no dates: give the "
                    "times as numbers, or index the recording by dates."
                )
            return np.asarray(index, float)
        if pd.api.types.is_numeric_dtype(index):
            return np.asarray(index, float)
        if isinstance(self.index, pd.PeriodIndex):
            if not isinstance(index, pd.PeriodIndex):
                index = pd.DatetimeIndex(index).to_period(self.index.freq)
            passed = index.asfreq(self.index.freq).asi8 - self.index[0].ordinal
            return passed / self.index.freq.n
        if isinstance(index, pd.PeriodIndex):
            index = index.to_timestamp()
        if self.unit != "period":
            return nanoseconds(index - self.index[0]) / TIME_UNITS[self.unit]
        steps = 1
        while len(index) and self._grid(0, steps)[-1] < index.max():
            steps *= 2
        back = 0
        while len(index) and self._grid(-back, 1)[0] > index.min():
            back = 2 * back + 1
        grid = self._grid(-back, steps)
        position = np.arange(-back, steps + 1.0)
        origin = self.index[0]
        return np.interp(nanoseconds(index - origin), nanoseconds(grid - origin), position)

    def _grid(self, low: int, high: int) -> Any:
        """The dates number ``low`` … ``high``, counted in periods from the first moment."""
        import pandas as pd

        offset = pd.tseries.frequencies.to_offset(self.frequency)
        first = self.index[0] + low * offset if low else self.index[0]
        make = pd.timedelta_range if isinstance(self.index, pd.TimedeltaIndex) else pd.date_range
        return make(first, periods=high - low + 1, freq=offset)


def nanoseconds(span: Any) -> np.ndarray:
    """A TimedeltaIndex as float nanoseconds, whatever its resolution."""
    values = span.to_numpy()
    unit, count = np.datetime_data(values.dtype)
    return values.astype("int64") * (float(TIME_UNITS[unit]) * count)


def count_moments(
    index: Any, time_unit: str | None, argument: str
) -> tuple[np.ndarray, str | None, str | None]:
    """Times of a pandas index as numbers, with the unit in which they count and the frequency.

    An index with a frequency, declared or inferable, counts in periods; other dates count in days
    unless ``time_unit`` says otherwise; numbers are their own times.

    Args:
        index: a pandas Index.
        time_unit: a key of :data:`TIME_UNITS`, or None.
        argument: what the index is called in error messages.

    Returns:
        ``(times, unit, frequency)`` as in :class:`Labels`; dates count from the first one.

    Raises:
        TypeError: if the index is neither dates, periods, time spans nor numbers.
        ValueError: if it contains missing values or ``time_unit`` is unknown.
    """
    import pandas as pd

    if time_unit is not None and time_unit not in TIME_UNITS:
        raise ValueError(f"`time_unit` must be one of {list(TIME_UNITS)}, got {time_unit!r}.")
    if isinstance(index, pd.MultiIndex):
        raise TypeError(
            f"{argument} is a MultiIndex with levels {list(index.names)}: one recording has one time "
            "axis. For a panel give a list of recordings, such as "
            "`[part.droplevel(0) for _, part in data.groupby(level=0)]`."
        )
    dates = isinstance(index, (pd.DatetimeIndex, pd.PeriodIndex, pd.TimedeltaIndex))
    if not dates and (not pd.api.types.is_numeric_dtype(index) or index.dtype == bool):
        raise TypeError(
            f"{argument} holds {index.inferred_type} labels, which are not times: convert dates with "
            "`pandas.to_datetime`, or drop the labels with `data.reset_index(drop=True)`."
        )
    missing = np.flatnonzero(np.asarray(index.isna()))
    if missing.size:
        raise ValueError(
            f"{argument} has no time at position {missing[0]} (NaN or NaT); drop the "
            f"{missing.size} rows without a time, or fill in their times."
        )
    if not dates:
        return np.asarray(index, float), None, None
    if isinstance(index, pd.PeriodIndex):
        if time_unit is None:
            return (index.asi8 - index.asi8[:1]) / index.freq.n, "period", index.freqstr
        index = index.to_timestamp()
    frequency = index.freqstr
    if frequency is None and len(index) >= 3 and index.is_monotonic_increasing and index.is_unique:
        # Not pandas.infer_freq, which is about to give another type and warns of it.
        frequency = type(index)(index, freq="infer").freqstr
    if frequency is not None and time_unit is None:
        return np.arange(len(index), dtype=float), "period", frequency
    unit = time_unit or "D"
    return nanoseconds(index - index[0]) / TIME_UNITS[unit], unit, None


def _digest(index: Any, *names: Any) -> bytes:
    code = hashlib.blake2b(repr(names).encode(), digest_size=16)
    if index is not None:
        values = np.asarray(index.asi8 if hasattr(index, "asi8") else index)
        code.update(f"{type(index).__name__} {index.dtype} {index.name}".encode())
        code.update(np.ascontiguousarray(values).tobytes())
    return code.digest()


def moments(times: Any, labels: Labels | None) -> Any:
    """The pandas index of moments: dates where there are any, else the times."""
    import pandas as pd

    if labels is not None and labels.index is not None:
        return labels.index
    return pd.Index(np.asarray(times), name="time")


def table(
    names: Sequence[str], parts: Mapping[str, Any], times: Any, labels: Labels | None
) -> pd.DataFrame:
    """A DataFrame over the moments, with columns (name, part).

    Args:
        names: of the d coordinates.
        parts: values ``(T, d)`` by what they are, such as mean and std.
        times: shape ``(T,)``.
        labels: names of the moments, or None.
    """
    import pandas as pd

    arrays = {part: np.asarray(values) for part, values in parts.items()}
    columns = {(name, part): x[:, i] for i, name in enumerate(names) for part, x in arrays.items()}
    return pd.DataFrame(columns, index=moments(times, labels))


def channel_names(labels: Labels | None, m: int) -> tuple[str, ...]:
    """Names of the channels; y0, y1 … (y for a single one) where the data has none."""
    if labels is not None and labels.channels is not None:
        return labels.channels
    return ("y",) if m == 1 else tuple(f"y{i}" for i in range(m))
