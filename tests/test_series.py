"""Series and panels: every way in, times and labels, and the messages when something is wrong."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import xarray as xr

from statespace.labels import Labels
from statespace.series import Panel, Series, as_data, as_series


def values(array):
    return np.asarray(array)


# ---- values -------------------------------------------------------------------------------------


def test_lists_and_arrays():
    s = Series([1, 2, None, 4.0])
    np.testing.assert_array_equal(s.y, [1, 2, np.nan, 4])
    np.testing.assert_array_equal(s.times, [0, 1, 2, 3])
    np.testing.assert_array_equal(s.intervals, [1, 1, 1, 1])
    np.testing.assert_array_equal(s.observed, [[True], [True], [False], [True]])
    assert s.channels.shape == (4, 1)
    assert (len(s), s.complete, s.dt, s.labels, s.inputs) == (4, False, 1.0, None, None)
    assert Series(np.ones((3, 2))).complete is True


def test_partly_missing_moments():
    s = Series([[1.0, np.nan], [np.nan, np.nan], [0.0, 2.0]])
    assert s.complete is False
    np.testing.assert_array_equal(s.observed, [[True, False], [False, False], [True, True]])


def test_one_moment():
    s = Series([3.0])
    assert (len(s), s.dt, s.complete) == (1, 1.0, True)
    np.testing.assert_array_equal(s.intervals, [1.0])
    assert Series([[3.0, 4.0]], times=[7.0]).times[0] == 7.0
    assert len(Series(pd.Series([1.0], index=pd.to_datetime(["2020-05-01"])))) == 1


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (np.float32, np.float32),
        (np.float64, np.float64),
        (np.int32, np.float64),
        (np.uint8, np.float64),
        (bool, np.float64),
        (np.float16, np.float32),
    ],
)
def test_precision_is_that_of_the_observations(given, expected):
    y = np.array([0, 1, 1]).astype(given)
    for s in (
        Series(y, times=[0.0, 1.0, 3.0], inputs=np.ones(3)),
        Series(jnp.asarray(y), inputs=jnp.ones(3)),
        Series(pd.Series(y), inputs=pd.Series(np.ones(3))),
    ):
        for part in (s.y, s.times, s.intervals, s.inputs):
            assert part.dtype == expected


def test_default_float_follows_jax(x64_off):
    assert Series([1, 2]).y.dtype == np.float32
    assert Series(np.ones(2)).times.dtype == np.float32


def test_masked_arrays_and_masked_integers():
    masked = np.ma.masked_array([1, 2, 3], mask=[False, True, False])
    np.testing.assert_array_equal(Series(masked).y, [1, np.nan, 3])
    frame = pd.DataFrame({"a": [1, None, 3], "b": [True, False, None]}).astype(
        {"a": "Int64", "b": "boolean"}
    )
    np.testing.assert_array_equal(Series(frame).y, [[1, 1], [np.nan, 0], [3, np.nan]])
    single = pd.Series([1.5, None], dtype="Float32")
    assert Series(single).y.dtype == np.float32


# ---- pandas and xarray --------------------------------------------------------------------------


def test_pandas_columns_and_index_come_back():
    index = pd.date_range("2001-01-31", periods=4, freq="ME", name="month")
    s = Series(pd.DataFrame({"a": [1.0, 2, 3, 4], "b": [0.0, 0, 0, 1]}, index=index))
    assert s.labels.channels == ("a", "b")
    assert s.labels.index.equals(index)
    assert s.dt == 1.0
    np.testing.assert_array_equal(s.times, [0, 1, 2, 3])
    assert Series(pd.Series([1.0, 2.0], name="flow")).labels.channels == ("flow",)


@pytest.mark.parametrize("frequency", ["ME", "MS", "QE", "YE", "W-SAT", "B", "h", "10ms"])
def test_inferable_frequency_counts_in_periods(frequency):
    index = pd.DatetimeIndex(pd.date_range("2000-01-03", periods=12, freq=frequency).to_numpy())
    assert index.freq is None
    s = Series(pd.Series(np.ones(12), index=index))
    assert s.dt == 1.0
    np.testing.assert_array_equal(s.times, np.arange(12))


def test_irregular_dates_count_in_days_or_as_told():
    index = pd.to_datetime(["2020-03-01 00:00", "2020-03-01 12:00", "2020-03-04 00:00"])
    data = pd.Series([1.0, 2.0, 3.0], index=index)
    s = Series(data)
    np.testing.assert_array_equal(s.times, [0, 0.5, 3])
    np.testing.assert_array_equal(s.intervals, [0.5, 0.5, 2.5])
    assert s.dt is None
    for unit, scale in {"s": 86400, "min": 1440, "h": 24, "D": 1, "W": 1 / 7}.items():
        np.testing.assert_allclose(Series(data, time_unit=unit).times, scale * s.times, rtol=1e-15)
    regular = pd.Series(np.ones(3), index=pd.date_range("2020", periods=3, freq="2h"))
    assert Series(regular).dt == 1.0
    assert Series(regular, time_unit="min").dt == 120.0


def test_time_zones_do_not_matter():
    plain = pd.to_datetime(["2020-03-28", "2020-03-29", "2020-03-31"])
    zoned = plain.tz_localize("UTC").tz_convert("Europe/Berlin")
    np.testing.assert_array_equal(
        Series(pd.Series(np.ones(3), zoned)).times, Series(pd.Series(np.ones(3), plain)).times
    )


def test_periods_count_gaps():
    index = pd.PeriodIndex(["2000Q1", "2000Q2", "2001Q1"], freq="Q")
    np.testing.assert_array_equal(Series(pd.Series(np.ones(3), index)).times, [0, 1, 4])
    pairs = pd.period_range("2000-01", periods=3, freq="2M")
    assert Series(pd.Series(np.ones(3), pairs)).dt == 1.0
    days = Series(pd.Series(np.ones(3), pairs), time_unit="D")
    np.testing.assert_array_equal(days.times, [0, 31 + 29, 31 + 29 + 31 + 30])


def test_numeric_index_is_the_times():
    s = Series(pd.Series([1.0, 2.0, 3.0], index=[1871, 1872, 1873]))
    np.testing.assert_array_equal(s.times, [1871, 1872, 1873])
    assert s.dt == 1.0
    spans = pd.to_timedelta([0, 90, 360], unit="min")
    np.testing.assert_array_equal(
        Series(pd.Series(np.ones(3), spans), time_unit="h").times, [0, 1.5, 6]
    )


def test_times_replace_the_index():
    data = pd.Series([1.0, 2.0], index=pd.date_range("2000", periods=2))
    s = Series(data.rename("a"), times=[0.0, 3.0])
    np.testing.assert_array_equal(s.times, [0, 3])
    assert s.labels.index is None
    assert Series(data, times=[0.0, 3.0]).labels is None
    dated = Series(
        [1.0, 2.0, 4.0], times=np.array(["2000-01-01", "2000-01-02", "2000-01-09"], "M8[D]")
    )
    np.testing.assert_array_equal(dated.times, [0, 1, 8])
    assert dated.labels.index[2] == pd.Timestamp("2000-01-09")


def test_xarray():
    time = pd.date_range("2000", periods=4, freq="h")
    array = xr.DataArray(
        np.arange(8.0).reshape(2, 4),
        dims=("sensor", "time"),
        coords={"time": time, "sensor": ["x", "y"]},
    )
    s = Series(array)
    np.testing.assert_array_equal(s.y, np.arange(8.0).reshape(2, 4).T)
    assert s.labels.channels == ("x", "y")
    assert s.labels.index.equals(time)
    # another name of the time dimension, found by its dates
    renamed = Series(array.rename(time="when"))
    np.testing.assert_array_equal(renamed.y, s.y)
    flat = Series(array.isel(sensor=1, drop=True).rename("current"))
    assert flat.y.shape == (4,)
    assert flat.labels.channels == ("current",)
    both = xr.Dataset({"u": array[0].drop_vars("sensor"), "v": array[1].drop_vars("sensor")})
    np.testing.assert_array_equal(Series(both).y, s.y)
    assert Series(both).labels.channels == ("u", "v")
    assert Series(both[["v"]]).y.shape == (4,)
    bare = Series(xr.DataArray(np.ones((3, 2)), dims=("t", "neuron")))
    assert bare.labels.channels == ("neuron0", "neuron1")
    np.testing.assert_array_equal(bare.times, [0, 1, 2])


def test_inputs_are_aligned_by_index():
    index = pd.period_range("2000Q1", periods=3, freq="Q")
    y = pd.Series([1.0, 2.0, 3.0], index)
    wide = pd.period_range("1999Q4", periods=6, freq="Q")
    inputs = pd.DataFrame({"price": np.arange(6.0), "rain": -np.arange(6.0)}, wide)[::-1]
    s = Series(y, inputs=inputs)
    np.testing.assert_array_equal(s.inputs, [[1, -1], [2, -2], [3, -3]])
    assert s.labels.inputs == ("price", "rain")
    dated = inputs.set_axis(inputs.index.to_timestamp())
    np.testing.assert_array_equal(Series(y, inputs=dated).inputs, s.inputs)
    column = xr.DataArray(
        np.arange(6.0), dims="time", coords={"time": pd.date_range("2000-01-01", periods=6)}
    )
    daily = pd.Series(np.ones(2), pd.date_range("2000-01-03", periods=2))
    np.testing.assert_array_equal(Series(daily, inputs=column).inputs, [[2], [3]])
    np.testing.assert_array_equal(Series(np.ones(2), inputs=[5, 6]).inputs, [[5], [6]])


# ---- times --------------------------------------------------------------------------------------


def test_regular_times_are_recognised_up_to_rounding():
    assert Series(np.ones(1001), times=np.linspace(0, 10, 1001)).dt == 0.01
    assert Series(
        np.ones(1001), times=np.linspace(0, 10, 1001, dtype=np.float32)
    ).dt == pytest.approx(0.01, rel=1e-6)
    assert Series(np.ones(500), times=0.1 * np.arange(500)).dt == 0.1
    assert Series(np.ones(3), times=[0, 1, 2.001]).dt is None


def test_intervals_survive_single_precision():
    """Milliseconds after an hour of seconds: float32 cannot hold the times, but holds the intervals."""
    times = 3600.0 + np.cumsum([0.0, 0.001, 0.002, 0.0001])
    s = Series(np.ones(4, np.float32), times=times)
    np.testing.assert_allclose(s.intervals[1:], [0.001, 0.002, 0.0001], rtol=1e-6)
    assert float(s.times[3] - s.times[2]) != pytest.approx(0.0001, rel=0.5)


def test_labels_go_from_times_to_dates_and_back():
    monthly = Series(
        pd.Series(np.ones(3), pd.date_range("2000-01-31", periods=3, freq="ME"))
    ).labels
    future = monthly.moments([3.0, 4.0, -1.0])
    assert list(future) == list(pd.to_datetime(["2000-04-30", "2000-05-31", "1999-12-31"]))
    np.testing.assert_array_equal(monthly.times(future), [3, 4, -1])
    half = monthly.moments([1.5])
    assert half[0] == pd.Timestamp("2000-03-15 12:00")
    np.testing.assert_allclose(monthly.times(half), [1.5])

    quarters = Series(pd.Series(np.ones(2), pd.period_range("2000Q1", periods=2, freq="Q"))).labels
    assert list(quarters.moments([2.0, 5.0])) == [pd.Period("2000Q3"), pd.Period("2001Q2")]
    np.testing.assert_array_equal(quarters.times(pd.PeriodIndex(["2001Q2"], freq="Q")), [5])

    uneven = pd.to_datetime(["2000-01-01", "2000-01-02", "2000-01-09"])
    days = Series(pd.Series(np.ones(3), uneven), time_unit="h").labels
    assert days.moments([36.0])[0] == pd.Timestamp("2000-01-02 12:00")
    np.testing.assert_array_equal(days.times(["2000-01-02 12:00"]), [36])

    years = Series(pd.Series(np.ones(2), pd.Index([1871, 1872], name="year"))).labels
    assert list(years.moments([1873.0])) == [1873]
    assert years.moments([1873.0]).name == "year"
    with pytest.raises(TypeError, match="the recording has no dates"):
        years.times(pd.to_datetime(["2000-01-01"]))


# ---- under JAX ----------------------------------------------------------------------------------


def test_only_arrays_are_leaves_and_jit_takes_it():
    index = pd.date_range("2000", periods=3)
    s = Series(pd.Series([1.0, np.nan, 2.0], index), inputs=pd.Series(np.ones(3), index))
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(s))
    assert jax.jit(lambda s: jnp.nansum(s.y * s.inputs[:, 0]))(s) == 3
    again = jax.jit(lambda s: s)(s)
    assert (again.labels, again.dt, again.complete) == (s.labels, 1.0, False)


def test_equal_labels_share_one_compiled_program():
    traced = []

    @jax.jit
    def total(s):
        traced.append(1)
        return jnp.sum(s.y)

    def daily(first, name="y"):
        return Series(pd.Series(np.arange(3.0), pd.date_range(first, periods=3), name=name))

    total(daily("2000-01-01"))
    total(daily("2000-01-01"))
    assert len(traced) == 1
    total(daily("2000-01-02"))
    assert len(traced) == 2
    total(daily("2000-01-02").drop_labels())
    total(daily("2000-01-03", "z").drop_labels())
    assert len(traced) == 3


def test_made_inside_jit():
    @jax.jit
    def inside(y, times, inputs):
        s = Series(y, times, inputs)
        assert s.complete is None
        assert s.dt is None
        assert s.labels is None
        return s

    s = inside(jnp.array([1.0, jnp.nan]), jnp.array([0.0, 0.5]), jnp.ones(2))
    np.testing.assert_array_equal(s.intervals, [0.5, 0.5])
    assert s.inputs.shape == (2, 1)
    regular = jax.jit(lambda y: Series(y))(jnp.array([1, 2]))
    assert (regular.dt, regular.y.dtype) == (1.0, np.float64)
    assert jax.vmap(lambda y: jnp.sum(Series(y).channels))(jnp.ones((4, 3))).shape == (4,)


def test_labels_are_immutable_and_survive_pickling():
    labels = Series(pd.Series(np.ones(3), pd.date_range("2000", periods=3), name="a")).labels
    again = pickle.loads(pickle.dumps(labels))
    assert again == labels
    assert hash(again) == hash(labels)
    assert labels != labels.replace(channels=("b",))
    assert labels != Labels()
    with pytest.raises(AttributeError, match="immutable"):
        labels.unit = "s"


def test_a_series_of_a_series():
    index = pd.to_datetime(["2000-01-01", "2000-01-02", "2000-01-09"])
    s = Series(pd.Series([1.0, np.nan, 2.0], index, name="a"), time_unit="h")
    assert as_series(s) is s
    more = as_series(s, inputs=np.ones(3))
    assert more.labels == s.labels
    np.testing.assert_array_equal(more.times, [0, 24, 192])
    assert as_series(s, times=[1.0, 2.0, 3.0]).dt == 1.0


def test_unobserved_moments():
    s = Series.unobserved([0.0, 0.5, 2.0], inputs=np.ones((3, 2)), channels=2)
    assert np.isnan(values(s.y)).all()
    assert (s.y.shape, s.complete, s.dt, s.inputs.shape) == ((3, 2), False, None, (3, 2))


# ---- panels -------------------------------------------------------------------------------------


def test_panel_of_unequal_lengths():
    parts = [np.arange(3.0), pd.Series(np.arange(5.0), pd.date_range("2000", periods=5))]
    p = as_data(parts, inputs=[np.ones(3), 2 * np.ones(5)])
    assert isinstance(p, Panel)
    assert (len(p), p.lengths, p.complete, p.dt) == (2, (3, 5), False, 1.0)
    np.testing.assert_array_equal(p.y[0, :, 0], [0, 1, 2, np.nan, np.nan])
    np.testing.assert_array_equal(p.times[0], [0, 1, 2, 3, 4])
    np.testing.assert_array_equal(p.inputs[0, :, 0], [1, 1, 1, 0, 0])
    assert values(p.intervals > 0).all()
    first, second = p.series
    np.testing.assert_array_equal(first.y, parts[0])
    assert (first.complete, first.dt, first.labels) == (True, 1.0, None)
    assert second.labels == as_series(parts[1]).labels
    assert as_data(p) is p


def test_panel_of_equal_lengths_can_be_complete():
    p = as_data((np.ones((4, 2)), np.zeros((4, 2))))
    assert p.complete is True
    assert p.series[0].y.shape == (4, 2)
    assert as_data([np.ones(3), np.ones((3, 1))]).series[0].y.shape == (3, 1)


def test_panel_keeps_each_recordings_regularity():
    p = as_data([np.ones(3), np.ones(3)], times=[[0.0, 0.1, 0.2], [0.0, 1.0, 5.0]])
    assert p.dt is None
    assert [s.dt for s in p.series] == [0.1, None]
    cut = jax.jit(lambda p: p.series[0].y)(p)
    assert cut.shape == (3,)


def test_lists_of_numbers_are_series_and_lists_of_arrays_panels():
    assert isinstance(as_data([1.0, 2.0]), Series)
    assert isinstance(as_data([np.float64(1.0), jnp.asarray(2.0)]), Series)
    assert as_data([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]).y.shape == (3, 2)
    assert isinstance(as_data([np.array([1.0, 2.0])]), Panel)
    assert isinstance(as_data((pd.Series([1.0]), Series([2.0]))), Panel)


# ---- messages -----------------------------------------------------------------------------------

day = pd.Timestamp("2000-01-01")


@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (ValueError, r"\(T,\) or \(T, m\), got \(2, 3, 4\): for a panel", (np.ones((2, 3, 4)),)),
        (ValueError, r"got \(\) \(a single number\): put it in a list", (3.0,)),
        (ValueError, r"`y` is empty: its shape \(0,\) has no moments", ([],)),
        (ValueError, r"`y` is empty: its shape \(3, 0\) has no channels", (np.ones((3, 0)),)),
        (ValueError, r"`y` is empty", (pd.DataFrame(index=[1, 2]),)),
        (ValueError, r"shape \(2,\) is NaN throughout", ([np.nan, np.nan],)),
        (ValueError, r"y\[1, 0\] is inf \(2 such entries\)", ([[1, 2], [np.inf, -np.inf]],)),
        (ValueError, r"\[np.asarray\(part\) for part in data\]", ([[1, 2], [3]],)),
        (TypeError, r"must be real numbers .*got str", ("abc",)),
        (TypeError, r"got ndarray of complex128", (np.ones(2) * 1j,)),
        (
            TypeError,
            r"column 'b' is of type (object|str)",
            (pd.DataFrame({"a": [1.0], "b": ["x"]}),),
        ),
        (TypeError, r"string labels.*to_datetime", (pd.Series([1.0, 2], ["2000-01", "2000-02"]),)),
        (
            TypeError,
            r"MultiIndex .*groupby\(level=0\)",
            (pd.Series([1.0, 2], pd.MultiIndex.from_tuples([("a", 1), ("a", 2)])),),
        ),
        (
            ValueError,
            r"index of `y` has no time at position 1 \(NaN or NaT\)",
            (pd.Series([1.0, 2], [day, pd.NaT]),),
        ),
        (
            ValueError,
            r"index of `y` must increase strictly, but 2000-01-01 .* at position 1 follows .*average",
            (pd.Series([1.0, 2], [day, day]),),
        ),
        (
            ValueError,
            r"but 1\.0 at position 2 follows 2\.0 \(1 such places\): sort",
            (np.ones(3), [0.0, 2.0, 1.0]),
        ),
        (
            ValueError,
            r"`times` must be finite, but at position 1 is nan",
            (np.ones(2), [0, np.nan]),
        ),
        (ValueError, r"`times` must have shape \(2,\), .* got \(3,\)", (np.ones(2), [0, 1, 2])),
        (ValueError, r"`times` must have shape \(2,\), .* got \(2, 1\)", (np.ones(2), [[0], [1]])),
        (ValueError, r"shape \(2,\) or \(2, k\), .* got \(3,\)", (np.ones(2), None, np.ones(3))),
        (
            ValueError,
            r"inputs\[1, 0\] is nan \(1 such entries\).*interpolate",
            (np.ones(2), None, [0, np.nan]),
        ),
        (
            ValueError,
            r"`inputs` have no row at 2000-01-02 .*\(1 of the 2 moments",
            (
                pd.Series([1.0, 2.0], pd.date_range(day, periods=2)),
                None,
                pd.Series([1.0], pd.date_range(day, periods=1)),
            ),
        ),
    ],
)
def test_messages(error, message, arguments):
    with pytest.raises(error, match=message):
        Series(*arguments)


def test_messages_of_names_and_units():
    with pytest.raises(ValueError, match=r"must name the 2 channels of `y`, got 1"):
        Series(np.ones((3, 2)), channels=["a"])
    with pytest.raises(ValueError, match=r"`time_unit` must be one of .*got 'month'"):
        Series(pd.Series(np.ones(2), pd.date_range("2000", periods=2)), time_unit="month")


def test_messages_of_panels():
    with pytest.raises(ValueError, match="recording 0 has 1 and recording 1 has 2"):
        as_data([np.ones(3), np.ones((3, 2))])
    with pytest.raises(
        ValueError, match="same inputs, but recording 0 has 1 and recording 1 has 0"
    ):
        as_data([Series([1.0], inputs=[1.0]), np.ones(3)])
    with pytest.raises(TypeError, match="entry 1 is a float"):
        as_data([np.ones(3), 2.0])
    with pytest.raises(ValueError, match=r"recording 1 of the panel: .*NaN throughout"):
        as_data([np.ones(3), np.full(3, np.nan)])
    with pytest.raises(
        ValueError, match=r"`times` of a panel .* each of the 2 recordings, got ndarray"
    ):
        as_data([np.ones(3), np.ones(3)], times=np.arange(3))
    with pytest.raises(ValueError, match="at least one recording"):
        Panel([])
    with pytest.raises(ValueError, match="is empty"):
        as_data([])
    with pytest.raises(TypeError, match=r"panel\.series\[i\]"):
        Series(as_data([np.ones(3)]))
