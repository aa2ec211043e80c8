"""Posteriors and forecasts against the dense oracle, scipy's laws and numerical integrals."""

import arviz
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from oracle import Dense
from scipy import integrate, stats

import statespace as ss
from statespace.posteriors.gaussian import Forecast, GaussianPosterior
from statespace.scores import gaussian_crps, log_density, whiten

T, H = 9, 4
INDEX = pd.period_range("2000Q1", periods=T, freq="Q", name="quarter")


@pytest.fixture(scope="module")
def arrays():
    """Two states, of which the second one has no noise of its own; three channels, some missing."""
    rng = np.random.default_rng(3)
    y = rng.normal(size=(T, 3))
    y[2] = np.nan
    y[4, 0] = np.nan
    y[7, 1:] = np.nan
    return {
        "m0": np.array([0.5, -1.0]),
        "P0": np.array([[1.0, 0.2], [0.2, 0.7]]),
        "F": np.array([[0.8, 0.3], [-0.2, 0.9]]),
        "b": np.array([0.1, 0.0]),
        "Q": np.diag([0.4, 0.0]),
        "H": rng.normal(size=(3, 2)),
        "d": np.array([0.3, 0.0, -0.2]),
        "R": np.array([[0.5, 0.1, 0.0], [0.1, 0.4, 0.05], [0.0, 0.05, 0.3]]),
        "y": y,
    }


@pytest.fixture(scope="module")
def model(arrays):
    a = arrays
    return ss.Model(
        ss.Gaussian(a["m0"], covariance=a["P0"]),
        ss.AffineGaussian(a["F"], a["b"], covariance=a["Q"]),
        ss.AffineGaussian(a["H"], a["d"], covariance=a["R"]),
    )


@pytest.fixture(scope="module")
def data(arrays):
    return pd.DataFrame(arrays["y"], INDEX, ["a", "b", "c"])


def dense(a, extra=0):
    """The oracle; ``extra`` moments without observation at the end."""
    y = np.vstack([a["y"], np.full((extra, 3), np.nan)])
    constant = {k: a[k][None] for k in ("F", "b", "Q", "H", "d", "R")}
    return Dense(a["m0"], a["P0"], y=y, **constant)


@pytest.fixture(scope="module", params=[None, "sqrt"])
def smoothed(request, model, data):
    return ss.smooth(model, data, method=ss.Kalman(form=request.param))


@pytest.fixture(scope="module")
def filtered(model, data):
    return ss.filter(model, data)


@pytest.fixture(scope="module")
def forecast(model, data):
    return ss.forecast(model, data, steps=H)


def close(actual, expected, tolerance=1e-10):
    expected = np.asarray(expected, float)
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


def assert_draws(draws, mean, covariance):
    """Mean and covariance of N draws within 5 standard errors of the law's, entry by entry."""
    count, d = len(draws), mean.size
    draws, mean = np.asarray(draws).reshape(count, d), np.asarray(mean, float).reshape(d)
    covariance = np.asarray(covariance, float).reshape(d, d)
    variance = np.diag(covariance)
    assert (np.abs(draws.mean(0) - mean) <= 5 * np.sqrt(variance / count) + 1e-9).all()
    found = np.cov(draws.T, bias=True)
    error = np.sqrt((covariance**2 + np.outer(variance, variance)) / count)
    assert (np.abs(found - covariance) <= 5 * error + 1e-9).all()


# ---- moments and quantiles ----------------------------------------------------------------------


def test_std_quantiles_and_intervals(smoothed, arrays):
    mean, covariance = dense(arrays).smoothed()
    std = np.sqrt(np.diagonal(np.asarray(covariance, float), axis1=1, axis2=2))
    close(smoothed.mean, mean)
    close(smoothed.std, std)
    q = np.array([0.05, 0.5, 0.975])
    expected = stats.norm.ppf(q[:, None, None], np.asarray(mean, float), std)
    close(smoothed.quantile(q), expected)
    close(smoothed.quantile(0.05), expected[0])
    low, high = smoothed.interval(0.8)
    close(high, stats.norm.ppf(0.9, np.asarray(mean, float), std))
    close(low + high, 2 * mean)


def test_quantiles_of_a_diffuse_state():
    p = ss.filter(
        ss.LocalLinearTrend(level_scale=1.0, slope_scale=0.1, noise_scale=1.0), np.ones(4)
    )
    assert np.isinf(p.std[0, 1])
    assert np.isfinite(p.quantile(0.5)).all()
    assert p.quantile(0.9)[0, 1] == np.inf
    draws = p.sample(jax.random.key(0), 3)
    assert np.isnan(draws[:, 0, 1]).all()
    assert np.isfinite(draws[:, 1:]).all()


# ---- draws --------------------------------------------------------------------------------------


def test_smoothed_draws_are_joint_trajectories(smoothed, arrays, key):
    law = dense(arrays).posterior()
    assert_draws(smoothed.sample(key, 20_000), law.mean, law.covariance)


def test_filtered_draws_have_the_marginals(filtered, arrays, key):
    draws = filtered.sample(key, 20_000)
    mean, covariance = dense(arrays).filtered()
    for t in range(T):
        assert_draws(draws[:, t], mean[t], covariance[t])


def test_draws_of_a_singular_law_stay_on_its_support(key):
    """The second state of an AR(2) in companion form is the first one, a moment before."""
    model = ss.AR(coefficients=[0.5, -0.3], scale=1.0)
    p = ss.smooth(model, [0.3, np.nan, -1.0, np.nan, np.nan, 0.4])
    draws = np.asarray(p.sample(key, 200))
    # observed without noise: known exactly
    close(draws[:, [0, 2, 5], 0], np.tile([0.3, -1.0, 0.4], (200, 1)), 1e-6)
    law = np.asarray(p.covariance)
    spread = np.diagonal(law, axis1=1, axis2=2)
    assert (spread[[0, 2, 5], 0] < 1e-12).all()
    f = ss.filter(model, [0.3, np.nan, -1.0])
    close(f.sample(key, 50)[:, 2, 0], -np.ones(50), 1e-6)


def test_forecast_draws_are_joint_paths(forecast, arrays, key):
    a, law = arrays, dense(arrays, H).posterior()
    C = np.kron(np.eye(H), a["H"])
    mean = C @ np.asarray(law.mean[T:], float).ravel() + np.tile(a["d"], H)
    states = np.asarray(law.covariance[T:][:, :, T:], float).reshape(2 * H, 2 * H)
    covariance = C @ states @ C.T + np.kron(np.eye(H), a["R"])
    close(forecast.mean, mean.reshape(H, 3))
    for t in range(H):
        close(forecast.covariance[t], covariance[3 * t : 3 * t + 3, 3 * t : 3 * t + 3])
    assert_draws(forecast.sample(key, 20_000), mean, covariance)


# ---- innovations, signal, components ------------------------------------------------------------


def test_innovations_are_whitened_by_the_cholesky_factor(filtered, smoothed, arrays):
    mean, covariance = dense(arrays).predicted_observations()
    expected = np.full((T, 3), np.nan)
    for t, y in enumerate(arrays["y"]):
        seen = ~np.isnan(y)
        if seen.any():
            s = np.asarray(covariance[t], float)[np.ix_(seen, seen)]
            error = (y - np.asarray(mean[t], float))[seen]
            expected[t, seen] = np.linalg.solve(np.linalg.cholesky(s), error)
    close(filtered.innovations, expected)
    close(smoothed.innovations, expected)


def test_innovations_and_pointwise_are_one_thing(filtered, arrays):
    error = filtered.y - filtered.predicted_mean
    pointwise = log_density(error, filtered.predicted_covariance)
    close(pointwise, dense(arrays).pointwise())
    close(filtered.pointwise, dense(arrays).pointwise())
    close(filtered.log_likelihood, filtered.pointwise.sum())


def test_whitening_leaves_out_what_it_cannot_tell():
    """An infinite variance, and a channel that the ones before determine."""
    covariance = np.array([[[2.0, 2.0, 0.5], [2.0, 2.0, 0.5], [0.5, 0.5, 1.0]]])
    error = np.array([[1.0, 1.0, 0.7]])
    u, variance = whiten(error, covariance)
    factor = np.linalg.cholesky(covariance[0][np.ix_([0, 2], [0, 2])])
    close(u[0, [0, 2]], np.linalg.solve(factor, error[0, [0, 2]]))
    assert np.isnan(u[0, 1])
    assert variance[0, 1] == 1
    covariance[0, 0] = covariance[0, :, 0] = np.inf
    u, _ = whiten(error, covariance)
    assert np.isnan(u[0, 0])
    close(u[0, 1:], np.linalg.solve(np.linalg.cholesky(covariance[0, 1:, 1:]), error[0, 1:]))


def test_diffuse_predictions_have_no_innovation():
    nile = ss.datasets.load("nile")
    p = ss.filter(ss.LocalLevel(level_scale=38.0, noise_scale=123.0), nile)
    assert np.isnan(p.innovations[0, 0])
    assert np.isfinite(p.innovations[1:]).all()


def test_signal(smoothed, arrays):
    mean, covariance = dense(arrays).smoothed()
    close(smoothed.signal.mean, np.einsum("mn,tn->tm", arrays["H"], mean) + arrays["d"])
    expected = np.einsum("mi,tij,kj->tmk", arrays["H"], covariance, arrays["H"])
    close(smoothed.signal.covariance, expected)
    assert smoothed.signal.names == ("a", "b", "c")


def test_components_add_up_to_the_signal():
    trend = ss.LocalLinearTrend(level_scale=0.3, slope_scale=0.1, noise_scale=0.5)
    model = trend + ss.Seasonal(period=4, scale=0.2)
    y = np.random.default_rng(0).normal(size=24)
    p = ss.smooth(model, y)
    assert list(p.components) == ["trend", "seasonal"]
    close(sum(part.mean for part in p.components.values()), p.signal.mean[:, 0])


# ---- to pandas and ArviZ ------------------------------------------------------------------------


def test_to_pandas(smoothed, forecast):
    frame = smoothed.to_pandas(level=0.8)
    assert frame.index.equals(INDEX)
    assert list(frame.columns[:4]) == [("x0", part) for part in ("mean", "std", "lower", "upper")]
    close(frame["x1"]["upper"], smoothed.interval(0.8)[1][:, 1])
    ahead = forecast.to_pandas()
    assert list(ahead.index) == list(pd.period_range("2002Q2", periods=H, freq="Q"))
    close(ahead["b"]["mean"], forecast.mean[:, 1])
    plain = ss.smooth(ss.LocalLevel(level_scale=1.0, noise_scale=1.0), [1.0, 2.0]).to_pandas()
    assert plain.index.name == "time"
    assert plain.columns[0] == ("level", "mean")


def test_to_arviz(smoothed, forecast, arrays):
    out = smoothed.to_arviz(draws=7)
    posterior, observed = out["posterior"], out["observed_data"]
    assert posterior["states"].dims == ("chain", "draw", "time", "state")
    assert posterior["states"].shape == (1, 7, T, 2)
    assert list(posterior["state"].values) == ["x0", "x1"]
    assert posterior["time"].values[0] == np.datetime64("2000-01-01")
    assert observed["y"].dims == ("time", "channel")
    assert list(observed["channel"].values) == ["a", "b", "c"]
    np.testing.assert_array_equal(observed["y"], arrays["y"])
    assert out["log_likelihood"]["y"].dims == ("time",)
    close(out["log_likelihood"]["y"], dense(arrays).pointwise())
    old = int(arviz.__version__.split(".")[0]) < 1
    assert type(out).__name__ == ("InferenceData" if old else "DataTree")
    summary = arviz.summary(out, var_names=["states"])
    assert len(summary) == 2 * T

    ahead = forecast.to_arviz(draws=5)["predictions"]["y"]
    assert ahead.shape == (1, 5, H, 3)
    assert ahead["time"].values[0] == np.datetime64("2002-04-01")


def test_loo_of_draws_of_parameters():
    """The converter's groups are what ArviZ's leave-one-out takes."""
    from statespace.arviz import to_inference_data

    rng = np.random.default_rng(0)
    y = rng.normal(size=30)
    mu = rng.normal(y.mean(), 1 / np.sqrt(30), size=(2, 500))
    pointwise = stats.norm.logpdf(y, mu[..., None])
    out = to_inference_data(
        {
            "posterior": {"mu": (("chain", "draw"), mu)},
            "log_likelihood": {"y": (("chain", "draw", "time"), pointwise)},
        },
        {"time": pd.date_range("2000", periods=30)},
    )
    loo = arviz.loo(out)
    # exact leave-one-out of a normal mean under a flat prior
    rest = (y.sum() - y) / 29
    exact = stats.norm.logpdf(y, rest, np.sqrt(1 + 1 / 29)).sum()
    elpd = loo.elpd_loo if hasattr(loo, "elpd_loo") else loo.elpd
    assert float(elpd) == pytest.approx(exact, abs=0.1)


# ---- scores -------------------------------------------------------------------------------------


def test_log_score_is_the_joint_density(forecast):
    y = np.random.default_rng(1).normal(size=(H, 3))
    y[1, 2] = np.nan
    y[2] = np.nan
    score = forecast.score(y)
    expected = []
    for t in (0, 1, 3):
        seen = ~np.isnan(y[t])
        mean = np.asarray(forecast.mean)[t, seen]
        covariance = np.asarray(forecast.covariance)[t][np.ix_(seen, seen)]
        expected.append(stats.multivariate_normal.logpdf(y[t, seen], mean, covariance))
    close(score.pointwise[[0, 1, 3]], expected)
    assert score.pointwise[2] == 0
    assert score.log_score == pytest.approx(np.mean(expected))
    assert score.count == 8
    assert score.mae == pytest.approx(np.nanmean(np.abs(y - np.asarray(forecast.mean))))
    assert score.rmse == pytest.approx(np.sqrt(np.nanmean((y - np.asarray(forecast.mean)) ** 2)))
    std = np.asarray(forecast.std)
    inside = np.abs(y - np.asarray(forecast.mean)) < stats.norm.ppf(0.9) * std
    assert score.coverage[0.8] == pytest.approx(inside[~np.isnan(y)].mean())
    text = str(score)
    assert "log score per moment" in text
    assert "inside the 95% interval" in text


@pytest.mark.parametrize(("error", "std"), [(0.0, 1.0), (1.7, 0.6), (-4.0, 2.0)])
def test_crps_is_the_integral(error, std):
    """``int (F(z) - 1[z >= error])^2 dz``, cut at the error where the integrand jumps."""
    low = integrate.quad(lambda z: stats.norm.cdf(z / std) ** 2, -40, error)[0]
    high = integrate.quad(lambda z: stats.norm.sf(z / std) ** 2, error, 40)[0]
    assert float(gaussian_crps(jnp.asarray(error), jnp.asarray(std))) == pytest.approx(low + high)
    assert float(gaussian_crps(jnp.asarray(error), jnp.asarray(0.0))) == abs(error)


def test_coverage_of_the_true_model_is_the_level():
    """4000 values drawn from the forecast's own law: coverage within 4 standard errors."""
    rng = np.random.default_rng(0)
    mean, std = rng.normal(size=(4000, 1)), 1 + rng.random((4000, 1))
    law = Forecast(jnp.asarray(mean), jnp.asarray(std[..., None] ** 2), jnp.arange(4000.0))
    coverage = law.score(rng.normal(mean, std)).coverage
    for level, share in coverage.items():
        assert abs(share - level) < 4 * np.sqrt(level * (1 - level) / 4000)


def test_score_aligns_dates(forecast):
    y = np.random.default_rng(1).normal(size=(H, 3))
    dated = pd.DataFrame(y, pd.period_range("2002Q2", periods=H, freq="Q"), ["a", "b", "c"])
    more = pd.concat([dated, dated.iloc[:1].set_axis(pd.PeriodIndex(["2010Q1"], freq="Q"))])
    assert forecast.score(more[::-1]).log_score == pytest.approx(forecast.score(y).log_score)


# ---- panels and JAX -----------------------------------------------------------------------------


def test_a_panel_gives_a_list(model, arrays):
    parts = [arrays["y"], arrays["y"][:5]]
    posteriors = ss.smooth(model, parts)
    assert [len(p) for p in posteriors] == [T, 5]
    for p, y in zip(posteriors, parts):
        alone = dense({**arrays, "y": y})
        close(p.mean, alone.smoothed()[0])
        close(p.log_likelihood, alone.log_likelihood())
        assert p.sample(jax.random.key(0), 2).shape == (2, len(y), 2)


def test_goes_through_jit(smoothed):
    low = jax.jit(lambda p: p.quantile(0.1))(smoothed)
    close(low, smoothed.quantile(0.1))
    assert jax.jit(lambda p: p)(smoothed).labels == smoothed.labels


# ---- messages -----------------------------------------------------------------------------------


def test_messages(smoothed, forecast, key):
    with pytest.raises(ValueError, match=r"`q` must be probabilities inside \(0, 1\), got 1.5"):
        smoothed.quantile(1.5)
    with pytest.raises(ValueError, match=r"`level` must be"):
        smoothed.interval(0.0)
    bare = GaussianPosterior(smoothed.mean, smoothed.covariance, smoothed.times)
    with pytest.raises(ValueError, match=r"no chain to draw trajectories from.*sample_states"):
        bare.sample(key)
    with pytest.raises(ValueError, match="no one-step predictions"):
        _ = bare.innovations
    with pytest.raises(ValueError, match="no linear observations"):
        _ = bare.signal
    with pytest.raises(ValueError, match="no chain to draw paths from"):
        Forecast(forecast.mean, forecast.covariance, forecast.times).sample(key)
    with pytest.raises(ValueError, match=r"`y` must have shape \(4, 3\).* got \(4, 1\)"):
        forecast.score(np.ones(4))
    with pytest.raises(ValueError, match="`levels` must be probabilities"):
        forecast.score(np.ones((4, 3)), levels=[90])


def test_arviz_missing_is_said(smoothed, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "arviz", None)
    with pytest.raises(ImportError, match="`pip install arviz`"):
        smoothed.to_arviz(draws=2)
