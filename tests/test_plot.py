"""Pictures: what is drawn is what the results say, where the labels say it is."""

import sys

import arviz
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from scipy import stats

import statespace as ss
from statespace.posteriors.gaussian import Forecast, GaussianPosterior

plt = pytest.importorskip("matplotlib.pyplot")
from matplotlib.collections import PolyCollection  # noqa: E402
from matplotlib.dates import ConciseDateFormatter, date2num  # noqa: E402

T = 24


@pytest.fixture(autouse=True)
def _close():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def data():
    y = np.sin(np.arange(T) / 3) + 5
    y[8:12] = np.nan
    y[20] = np.nan
    return pd.Series(y, pd.period_range("2000-01", periods=T, freq="M"), name="flow (m³/s)")


@pytest.fixture(scope="module")
def posterior(data):
    return ss.smooth(ss.LocalLevel(level_scale=0.5, noise_scale=0.3), data)


@pytest.fixture(scope="module")
def forecast(data):
    return ss.forecast(ss.LocalLevel(level_scale=0.5, noise_scale=0.3), data, steps=6)


def line(ax, label):
    (found,) = [x for x in ax.lines if x.get_label() == label]
    return found


def bands(ax):
    return [c for c in ax.collections if isinstance(c, PolyCollection)]


def limits(band, n):
    """Lower and upper bound of a fill between n abscissae."""
    vertices = band.get_paths()[0].vertices
    return vertices[1 : n + 1, 1], vertices[n + 2 : 2 * n + 2, 1][::-1]


def texts(ax):
    return [t.get_text() for t in ax.get_legend().get_texts()]


def test_smoothed_draws_the_signal_over_the_data(posterior, data):
    ax = ss.plot.smoothed(posterior, level=(0.5, 0.9))
    np.testing.assert_allclose(line(ax, "smoothed").get_ydata(), posterior.signal.mean[:, 0])
    np.testing.assert_array_equal(line(ax, "observed").get_ydata(), data)
    wide, narrow = bands(ax)
    for band, level in ((wide, 0.9), (narrow, 0.5)):
        low, high = posterior.signal.interval(level)
        np.testing.assert_allclose(limits(band, T), [low[:, 0], high[:, 0]])
    assert texts(ax) == ["missing", "observed", "90%", "50%", "smoothed"]
    assert ax.get_ylabel() == "flow (m³/s)"


def test_dates_are_on_the_axis(posterior):
    ax = ss.plot.smoothed(posterior)
    assert isinstance(ax.xaxis.get_major_formatter(), ConciseDateFormatter)
    first = date2num(np.datetime64("2000-01-01"))
    assert date2num(line(ax, "smoothed").get_xdata()[0]) == first


def test_missing_stretches_are_shaded_half_an_interval_beyond(posterior, data):
    ax = ss.plot.smoothed(posterior)
    spans = sorted((p.get_x(), p.get_x() + p.get_width()) for p in ax.patches)
    at = date2num(data.index.to_timestamp().to_numpy())
    middle = (at[1:] + at[:-1]) / 2
    expected = [(middle[7], middle[11]), (middle[19], middle[20])]
    np.testing.assert_allclose(spans, expected)


def test_states_by_name_and_given_axes(data):
    model = ss.LocalLinearTrend(level_scale=0.3, slope_scale=0.1, noise_scale=0.2)
    p = ss.smooth(model, data)
    both = ss.plot.smoothed(p, states=True)
    assert [ax.get_ylabel() for ax in both] == ["level", "slope"]
    _, mine = plt.subplots()
    ax = ss.plot.smoothed(p, states=["slope"], axes=mine)
    assert ax is mine
    np.testing.assert_allclose(line(ax, "smoothed").get_ydata(), p.mean[:, 1])
    with pytest.raises(
        ValueError, match=r"no state is called 'season'; there are \['level', 'slope'\]"
    ):
        ss.plot.smoothed(p, states=["season"])
    with pytest.raises(ValueError, match="`axes` must be 2 Axes, one for each panel, got 1"):
        ss.plot.smoothed(p, states=True, axes=mine)


def test_filtered_leaves_out_what_is_diffuse(data):
    model = ss.LocalLinearTrend(level_scale=0.3, slope_scale=0.1, noise_scale=0.2)
    p = ss.filter(model, data)
    ax = ss.plot.filtered(p, states=["slope"])
    np.testing.assert_allclose(line(ax, "filtered").get_ydata(), p.mean[:, 1])
    (band,) = bands(ax)
    assert np.isfinite(band.get_paths()[0].vertices).all()
    ax.figure.canvas.draw()


def test_channels_have_a_panel_each():
    y = pd.DataFrame(np.random.default_rng(0).normal(size=(15, 2)), columns=["left", "right"])
    model = ss.Model(
        ss.Gaussian(jnp.zeros(1), jnp.ones(1)),
        ss.AffineGaussian(jnp.array([[0.9]]), scale=jnp.ones(1)),
        ss.AffineGaussian(jnp.array([[1.0], [-1.0]]), scale=jnp.ones(2)),
    )
    p = ss.smooth(model, y)
    axes = ss.plot.smoothed(p)
    assert [ax.get_ylabel() for ax in axes] == ["left", "right"]
    assert [ax.get_xlabel() for ax in axes] == ["", "time"]
    np.testing.assert_allclose(line(axes[1], "smoothed").get_ydata(), -p.mean[:, 0])
    assert ss.plot.diagnostics(p).shape == (2, 4)


def test_forecast_is_a_fan_after_the_data(forecast, data):
    came = np.full(6, 5.5)
    ax = ss.plot.forecast(forecast, data, levels=(0.5, 0.9), actual=came, last=10)
    np.testing.assert_array_equal(line(ax, "observed").get_ydata(), data[-10:])
    np.testing.assert_allclose(line(ax, "forecast").get_ydata(), forecast.mean[:, 0])
    np.testing.assert_array_equal(line(ax, "held out").get_ydata(), came)
    low, high = forecast.interval(0.9)
    np.testing.assert_allclose(limits(bands(ax)[0], 6), [low[:, 0], high[:, 0]])
    assert line(ax, "forecast").get_xdata()[0] == np.datetime64("2002-01-01")
    assert texts(ax) == ["missing", "observed", "90%", "50%", "forecast", "held out"]
    assert len(ss.plot.forecast(forecast).lines) == 1


def test_components_have_a_panel_each(data):
    model = ss.LocalLevel(level_scale=0.3, noise_scale=0.2) + ss.Seasonal(period=4, scale=0.1)
    p = ss.smooth(model, data)
    axes = ss.plot.components(p)
    assert [ax.get_ylabel() for ax in axes] == list(p.components)
    part = p.components["seasonal"]
    (band,) = bands(axes[1])
    z = stats.norm.ppf(0.95)
    np.testing.assert_allclose(
        limits(band, T), [part.mean - z * part.std, part.mean + z * part.std], atol=1e-12
    )
    bare = GaussianPosterior(p.mean, p.covariance, p.times)
    with pytest.raises(ValueError, match="names no components"):
        ss.plot.components(bare)


def test_diagnostics_of_one_channel(posterior):
    axes = ss.plot.diagnostics(posterior, lags=7)
    assert axes.shape == (2, 2)
    over_time, histogram, quantiles, correlogram = axes.ravel()
    errors = np.asarray(posterior.innovations)[:, 0]
    np.testing.assert_array_equal(over_time.lines[-1].get_ydata(), errors)
    seen = errors[~np.isnan(errors)]
    area = sum(p.get_width() * p.get_height() for p in histogram.patches)
    assert area == pytest.approx(1)
    np.testing.assert_array_equal(quantiles.lines[-1].get_ydata(), np.sort(seen))
    (segments,) = [c for c in correlogram.collections if len(c.get_segments()) == 7]
    drawn = [s[1, 1] for s in segments.get_segments()]
    expected = ss.diagnostics.autocorrelation(errors[1:], 7)[1:]
    np.testing.assert_allclose(drawn, expected)
    (below,) = [ax for ax in axes[0, 0].figure.axes if ax.get_xlabel() == "lag"]
    p_values = [t.p_value for t in ss.diagnostics.ljung_box(errors[1:], 7)]
    np.testing.assert_allclose(below.lines[-1].get_ydata(), p_values)


def test_quantile_band_holds_normal_samples():
    """Of 2000 normal samples each order statistic lies in its 95 % interval 95 % of the time."""
    from statespace.canvas import order_statistics

    low, high = (stats.norm.ppf(p) for p in order_statistics(30, 0.95))
    samples = np.sort(np.random.default_rng(0).normal(size=(2000, 30)), axis=1)
    inside = ((samples > low) & (samples < high)).mean(axis=0)
    assert (np.abs(inside - 0.95) < 4 * np.sqrt(0.95 * 0.05 / 2000)).all()


def test_diagnostics_of_errors_themselves():
    axes = ss.plot.diagnostics(np.random.default_rng(0).normal(size=50))
    assert axes[0, 0].get_ylabel() == "standardised error"
    with pytest.raises(ValueError, match="2 prediction errors; a picture needs at least 3"):
        ss.plot.diagnostics([0.1, 0.2])


def test_diagnostics_of_finite_states():
    """Of a fit, whose model knows the law of the observations; one state has residuals in closed form."""
    y = np.random.default_rng(0).normal(2.0, 3.0, size=40)
    y[5] = np.nan
    model = ss.HMM([1.0], [[1.0]], ss.emissions.Gaussian([0.0], [1.0]))
    fitted = ss.fit(model, y, learner=ss.EM(progress=False))
    axes = ss.plot.diagnostics(fitted)
    expected = (y - np.nanmean(y)) / np.nanstd(y)
    np.testing.assert_allclose(axes[0, 0].lines[-1].get_ydata(), expected, atol=1e-7)
    with pytest.raises(TypeError, match="FinitePosterior holds the law of the states and not"):
        ss.plot.diagnostics(ss.smooth(fitted.model, y))


def test_one_moment_is_a_point():
    law = Forecast(jnp.ones((1, 1)), jnp.ones((1, 1, 1)), jnp.array([3.0]))
    ax = ss.plot.forecast(law)
    assert line(ax, "forecast").get_marker() == "o"


def test_draws_go_through_arviz():
    from statespace.arviz import to_inference_data

    draws = np.random.default_rng(0).normal(size=(2, 50))
    result = to_inference_data({"posterior": {"scale": (("chain", "draw"), draws)}})
    drawn = ss.plot.draws(result, names=["scale"])
    if int(arviz.__version__.split(".")[0]) < 1:
        assert drawn.shape == (1, 2)
    else:
        assert type(drawn).__name__ == "PlotCollection"


def test_without_matplotlib_the_remedy_is_named(posterior, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    for draw in (ss.plot.smoothed, ss.plot.diagnostics, ss.plot.draws):
        with pytest.raises(ImportError, match=r'pip install "statespace-jax\[plot\]"'):
            draw(posterior)
