"""Reading what users hold: arrays, lists, pandas and xarray objects become plain arrays and an index.

Everything is checked here, before any tracing, and in double precision. Traced arrays pass unchecked.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from statespace.labels import count_moments

_KINDS = (
    "an array, a list of numbers, a pandas Series or DataFrame, an xarray DataArray or Dataset, or a "
    "statespace Series"
)


class Clock(NamedTuple):
    """The times of a recording: numbers, their intervals, and the index they came from."""

    times: Any
    intervals: Any
    dt: float | None
    index: Any = None
    unit: str | None = None
    frequency: str | None = None


def is_traced(value: Any) -> bool:
    """Whether the value is known only to JAX, so that it cannot be looked at."""
    return isinstance(value, jax.core.Tracer)


def to_jax(value: Any, dtype: Any = None) -> Any:
    """``jnp.asarray`` without compilation: JAX 0.10 makes a program for each shape of a NumPy array.

    What is put on the device is a copy, since JAX may go on reading the memory that it is given.
    """
    numbers = isinstance(value, list | tuple) and all(
        type(x) in (bool, int, float) for x in jax.tree.leaves(value)
    )
    if numbers or (isinstance(value, np.ndarray | np.generic) and value.dtype.kind in "biuf"):
        return jax.device_put(np.array(value, dtype))
    return jnp.asarray(value, dtype)


def on_host(x: Array) -> Any:
    """The array for NumPy, whose slices compile nothing for each length; a traced one as it is."""
    return x if is_traced(x) else np.asarray(x)


def package_of(value: Any) -> str:
    """The package that the value's type comes from; looking does not import it."""
    return type(value).__module__.split(".")[0]


def is_labelled(value: Any) -> bool:
    """Whether the value carries an index of its own (pandas or xarray)."""
    return package_of(value) in ("pandas", "xarray")


def read_values(y: Any) -> tuple[Any, Any, tuple[str, ...] | None]:
    """Observations as an array ``(T,)`` or ``(T, m)`` of floats, their index and channel names.

    Raises:
        TypeError: if ``y`` is of another kind, or not numeric.
        ValueError: if it has another number of axes, or is empty.
    """
    index = names = None
    if package_of(y) == "xarray":
        y = _from_xarray(y)
    if package_of(y) == "pandas":
        index, names, values = _from_pandas(y, "y")
    elif is_traced(y):
        values = y if jnp.issubdtype(y.dtype, jnp.floating) else y.astype(float)
    else:
        values = to_floats(y, "y")
    if values.ndim not in (1, 2):
        remedies = {0: " (a single number): put it in a list", 3: ": for a panel give `list(y)`"}
        raise ValueError(
            f"`y` must have shape (T,) or (T, m), got {values.shape}{remedies.get(values.ndim, '')}."
        )
    if 0 in values.shape:
        what = "moments" if values.shape[0] == 0 else "channels"
        raise ValueError(f"`y` is empty: its shape {values.shape} has no {what}.")
    return values, index, names


def read_times(times: Any, index: Any, length: int, time_unit: str | None) -> Clock:
    """The clock of a recording from ``times``, else from the index of ``y``, else 0 … T-1.

    Raises:
        TypeError: if ``times`` are neither numbers nor dates.
        ValueError: if they are not of shape ``(T,)``, finite and strictly increasing.
    """
    argument = "the index of `y`" if times is None else "`times`"
    if times is None and index is None:
        return Clock(np.arange(length, dtype=float), np.ones(length), 1.0)
    if times is not None:
        index = None
        if is_traced(times):
            _check_length("times", times.shape, length)
            gaps = jnp.diff(times)
            start = gaps[:1] if length > 1 else jnp.ones(1)
            return Clock(times, jnp.concatenate([start, gaps]), None)
        times = _as_index_or_numbers(times)
        _check_length("times", times.shape, length)
        if package_of(times) == "pandas":
            index = times
    unit = frequency = None
    rounding = np.finfo(float).eps
    if index is not None:
        values, unit, frequency = count_moments(index, time_unit, argument)
    else:
        rounding = np.finfo(times.dtype).eps
        values = np.asarray(times, float)
    _check_increasing(values, index if index is not None else values, argument)
    dt = regular_interval(values, rounding)
    if dt is not None:
        return Clock(values, np.full(length, dt), dt, index, unit, frequency)
    between = np.diff(values)
    return Clock(values, np.append(between[0], between), None, index, unit, frequency)


def read_inputs(inputs: Any, index: Any, length: int) -> tuple[Any, tuple[str, ...] | None]:
    """Inputs as an array ``(T, k)`` and their names; labelled ones are aligned to the index.

    Raises:
        TypeError: if they are not numeric.
        ValueError: if they do not cover the moments, or hold NaN or infinite values.
    """
    if inputs is None:
        return None, None
    names = None
    if package_of(inputs) == "xarray":
        inputs = _from_xarray(inputs)
    if package_of(inputs) == "pandas":
        if index is not None:
            inputs = _align(inputs, index)
        _, names, values = _from_pandas(inputs, "inputs")
    elif is_traced(inputs):
        values = inputs
    else:
        values = to_floats(inputs, "inputs")
    values = values[:, None] if values.ndim == 1 else values
    if values.ndim != 2 or values.shape[0] != length:
        raise ValueError(
            f"`inputs` must have shape ({length},) or ({length}, k), one row for each of the {length} "
            f"moments, got {np.shape(inputs)}."
        )
    if not is_traced(values):
        bad = np.argwhere(~np.isfinite(np.asarray(values)))
        if len(bad):
            t, k = bad[0]
            raise ValueError(
                f"`inputs` must be finite, but inputs[{t}, {k}] is {np.asarray(values)[t, k]} "
                f"({len(bad)} such entries): a covariate must be known at every moment; interpolate it, "
                "or model it as a channel of `y`, where NaN means missing."
            )
    return values, names


def to_floats(value: Any, argument: str) -> Any:
    """A floating-point array of what is numeric: masked entries and None become NaN.

    Raises:
        TypeError: if the value is not real numbers.
        ValueError: if it is a ragged list.
    """
    if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jnp.floating):
        return value if value.dtype.itemsize >= 4 else value.astype(jnp.float32)
    masked = isinstance(value, np.ma.MaskedArray)
    try:
        array: Any = value if masked else np.asarray(value)
    except ValueError:
        raise ValueError(
            f"`{argument}` is a list of lists of unequal lengths: one recording needs a rectangular array "
            "(T, m) with NaN for what is missing; for a panel of recordings give a list of arrays, "
            "`[np.asarray(part) for part in data]`."
        ) from None
    if array.dtype.kind == "O":
        try:
            array = array.astype(float)
        except (TypeError, ValueError):
            array = np.empty(0, "U1")
    if array.dtype.kind not in "fiub":
        raise TypeError(
            f"`{argument}` must be real numbers ({_KINDS}), got {type(value).__name__}"
            + (f" of {value.dtype}." if hasattr(value, "dtype") else ".")
        )
    dtype = array.dtype if array.dtype in (np.float32, np.float64) else np.dtype(np.float64)
    if array.dtype.kind == "f" and array.dtype.itemsize < 4:
        dtype = np.dtype(np.float32)
    array = array.astype(dtype)
    return array.filled(np.nan) if masked else array


def regular_interval(times: np.ndarray, rounding: float) -> float | None:
    """The interval of regular times, up to rounding; None when they are irregular."""
    if len(times) < 2:
        return 1.0
    dt = (times[-1] - times[0]) / (len(times) - 1)
    slack = 4 * rounding * np.abs(times).max() + 1e-9 * dt
    if np.abs(np.diff(times) - dt).max() > slack:
        return None
    # Twelve digits: recordings of unequal length at one rate get one interval, and one compiled program.
    return float(f"{dt:.12g}")


def _as_index_or_numbers(times: Any) -> Any:
    """Dates as a pandas index, numbers as a NumPy array."""
    if package_of(times) == "xarray":
        times = times.to_index() if times.ndim == 1 else times.to_numpy()
    if package_of(times) == "pandas":
        import pandas as pd

        return times if isinstance(times, pd.Index) else pd.Index(times)
    array = np.asarray(times)
    if array.dtype.kind in "fiu":
        return array if array.dtype.kind == "f" else array.astype(float)
    import pandas as pd

    return pd.Index(array.reshape(-1)) if array.ndim == 1 else array


def _check_length(argument: str, shape: tuple[int, ...], length: int) -> None:
    if shape != (length,):
        raise ValueError(
            f"`{argument}` must have shape ({length},), one for each of the {length} moments of `y`, got "
            f"{shape}."
        )


def _check_increasing(times: np.ndarray, shown: Any, argument: str) -> None:
    bad = np.flatnonzero(~np.isfinite(times))
    if bad.size:
        raise ValueError(
            f"{argument} must be finite, but at position {bad[0]} is {shown[bad[0]]}; drop the "
            f"{bad.size} rows without a time."
        )
    bad = np.flatnonzero(np.diff(times) <= 0) + 1
    if not bad.size:
        return
    i = bad[0]
    tie = times[i] == times[i - 1]
    remedy = (
        "average the observations made at one moment, or give simultaneous ones as channels"
        if tie
        else "sort the recording by time first"
    )
    raise ValueError(
        f"{argument} must increase strictly, but {shown[i]} at position {i} follows {shown[i - 1]} "
        f"({bad.size} such places): {remedy}."
    )


def _from_pandas(data: Any, argument: str) -> tuple[Any, tuple[str, ...] | None, np.ndarray]:
    """The index, column names and values of a pandas object."""
    import pandas as pd

    if isinstance(data, pd.DataFrame):
        columns = [data.iloc[:, i] for i in range(data.shape[1])]
        if not columns:
            return data.index, None, np.empty(data.shape)
        values = np.stack([_column(c, argument) for c in columns], axis=1)
        return data.index, tuple(str(c) for c in data.columns), values
    if isinstance(data, pd.Series):
        names = None if data.name is None else (str(data.name),)
        return data.index, names, _column(data, argument)
    raise TypeError(f"`{argument}` must be {_KINDS}, got a pandas {type(data).__name__}.")


def _column(column: Any, argument: str) -> np.ndarray:
    """One column as floats; masked entries of nullable types become NaN."""
    import pandas as pd

    kind = getattr(column.dtype, "numpy_dtype", column.dtype)
    if not pd.api.types.is_numeric_dtype(column) or getattr(kind, "kind", "O") not in "fiub":
        raise TypeError(
            f"`{argument}` must be real numbers, but column {column.name!r} is of type {column.dtype}: "
            "convert it with `pandas.to_numeric`, or leave it out."
        )
    single = kind.kind == "f" and kind.itemsize <= 4
    return column.to_numpy(dtype=np.float32 if single else np.float64, na_value=np.nan)


def _from_xarray(data: Any) -> Any:
    """A pandas Series or DataFrame with the time-like coordinate as its index."""
    import pandas as pd
    import xarray as xr

    name = None
    if isinstance(data, xr.Dataset):
        variables = list(data.data_vars)
        if not variables:
            raise ValueError("`y` is an xarray Dataset without variables.")
        if len(variables) > 1:
            data = data.to_array("channel")
        else:
            data = data[variables[0]]
    if not isinstance(data, xr.DataArray):
        raise TypeError(f"`y` must be {_KINDS}, got an xarray {type(data).__name__}.")
    if data.ndim not in (1, 2):
        return data.to_numpy()
    time = _time_dimension(data)
    data = data.transpose(time, ...)
    index = data.indexes.get(time)
    if index is not None and type(index).__name__ == "CFTimeIndex":
        index = index.to_datetimeindex()
    if data.ndim == 1:
        name = None if data.name is None else str(data.name)
        return pd.Series(data.to_numpy(), index=index, name=name)
    channel = data.dims[1]
    columns = data.indexes.get(channel)
    if columns is None:
        columns = [f"{channel}{i}" for i in range(data.shape[1])]
    return pd.DataFrame(data.to_numpy(), index=index, columns=[str(c) for c in columns])


def _time_dimension(data: Any) -> Any:
    """The dimension called time, else the one with dates, else the first."""
    if "time" in data.dims:
        return "time"
    dated = [d for d in data.dims if d in data.indexes and data.indexes[d].dtype.kind in "mM"]
    return dated[0] if dated else data.dims[0]


def _align(inputs: Any, index: Any) -> Any:
    """The rows of labelled inputs at the moments of the recording."""
    import pandas as pd

    if inputs.index.equals(index):
        return inputs
    own = inputs.index
    if isinstance(own, pd.DatetimeIndex) and isinstance(index, pd.PeriodIndex):
        inputs = inputs.set_axis(own.to_period(index.freq))
    elif isinstance(own, pd.PeriodIndex) and isinstance(index, pd.DatetimeIndex):
        inputs = inputs.set_axis(own.to_timestamp())
    if not inputs.index.is_unique:
        raise ValueError("the index of `inputs` has duplicates: keep one row for each moment.")
    missing = index.difference(inputs.index)
    if len(missing):
        raise ValueError(
            f"`inputs` have no row at {missing[0]} ({len(missing)} of the {len(index)} moments of `y`): "
            "index them as `y` is indexed, or give `inputs.to_numpy()` to align by position."
        )
    return inputs.loc[index]
