"""Published numbers and statsmodels, at fixed parameters, through the chain and the verbs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import Problem

import statespace as ss
from statespace.chains import gaussian

sm = pytest.importorskip("statsmodels.api")

METHODS = [
    ss.Kalman(form=form, parallel=parallel)
    for form in ("covariance", "sqrt")
    for parallel in (False, True)
]
NAMES = [f"{m.form}-{'parallel' if m.parallel else 'sequential'}" for m in METHODS]


# The Nile ---------------------------------------------------------------------------------------------


def local_level(initial):
    return ss.Model(
        initial,
        ss.AffineGaussian(jnp.ones((1, 1)), covariance=jnp.array([[1469.1]])),
        ss.AffineGaussian(jnp.ones((1, 1)), covariance=jnp.array([[15099.0]])),
    )


@pytest.mark.parametrize("method", METHODS, ids=NAMES)
def test_nile(method):
    """Durbin & Koopman (2012), chapter 2; KFAS for the diffuse likelihood."""
    nile = ss.datasets.load("nile")
    diffuse = local_level(ss.Gaussian(jnp.zeros(1), jnp.zeros(1), diffuse=jnp.array([True])))
    vague = local_level(ss.Gaussian(jnp.zeros(1), jnp.sqrt(jnp.array([1e7]))))
    value = float(ss.log_likelihood(diffuse, nile, method=method))
    assert value == pytest.approx(-632.545625, abs=1e-6)
    assert value - 0.5 * np.log(2 * np.pi) == pytest.approx(-633.464564, abs=1e-6)
    assert float(ss.log_likelihood(vague, nile, method=method)) == pytest.approx(
        -641.585578, abs=1e-6
    )


def test_nile_smoothed_level_is_that_of_statsmodels():
    nile = ss.datasets.load("nile")
    volume = sm.datasets.nile.load_pandas().data["volume"].to_numpy()
    peer = sm.tsa.UnobservedComponents(volume, "llevel", use_exact_diffuse=True)
    result = peer.smooth([15099.0, 1469.1])
    ours = ss.smooth(ss.LocalLevel(level_scale=np.sqrt(1469.1), noise_scale=np.sqrt(15099.0)), nile)
    np.testing.assert_allclose(ours.mean[:, 0], result.smoothed_state[0], rtol=1e-9)
    np.testing.assert_allclose(ours.covariance[:, 0, 0], result.smoothed_state_cov[0, 0], rtol=1e-9)
    # statsmodels counts the constant of the diffuse observation too
    assert float(ours.log_likelihood) == pytest.approx(
        result.llf + 0.5 * np.log(2 * np.pi), rel=1e-11
    )


# Chains with the very matrices of statsmodels -----------------------------------------------------------


def factor(covariance):
    """Of a positive semi-definite matrix."""
    values, vectors = np.linalg.eigh(covariance)
    return vectors * np.sqrt(np.maximum(values, 0))


def chain_of(result):
    """The arrays of a fitted or filtered statsmodels model; its transition t leads into moment t + 1."""
    r = result.filter_results
    T = r.nobs

    def over_time(name, count):
        value = np.moveaxis(np.asarray(getattr(r, name), float), -1, 0)
        return value if len(value) == 1 else value[:count]

    noise = over_time("selection", T - 1) @ over_time("state_cov", T - 1)
    noise = noise @ np.swapaxes(over_time("selection", T - 1), 1, 2)
    return Problem(
        m0=np.asarray(r.initial_state),
        L0=factor(np.asarray(r.initial_state_cov)),
        F=over_time("transition", T - 1),
        b=over_time("state_intercept", T - 1),
        L=np.array([factor(q) for q in noise]),
        H=over_time("design", T),
        d=over_time("obs_intercept", T),
        K=np.array([factor(q) for q in over_time("obs_cov", T)]),
        y=np.asarray(r.endog).T,
    )


def macrodata():
    """Quarterly growth of output, consumption and investment, and inflation, in per cent."""
    data = sm.datasets.macrodata.load_pandas().data
    levels = np.log(data[["realgdp", "realcons", "realinv"]].to_numpy())
    return 100 * np.diff(levels, axis=0), data["infl"].to_numpy()[1:]


def dynamic_factor():
    growth, _ = macrodata()
    growth = growth - growth.mean(0)
    growth[10:14, 1] = growth[50] = np.nan
    model = sm.tsa.DynamicFactor(growth, k_factors=1, factor_order=2, error_order=1)
    return model.smooth([0.8, 0.6, 2.5, 0.3, 0.3, 14.0, 0.4, 0.1, 0.1, -0.2, 0.3])


def vector_autoregression():
    growth, _ = macrodata()
    model = sm.tsa.VARMAX(growth[:, :2], order=(1, 1), trend="c")
    params = [0.4, 0.5, 0.2, 0.3, 0.1, 0.25, 0.1, -0.1, 0.05, 0.1, 0.75, 0.3, 0.5]
    return model.smooth(params)


def structural():
    _, inflation = macrodata()
    inflation = inflation.copy()
    inflation[100:110] = np.nan
    model = sm.tsa.UnobservedComponents(inflation, "lltrend", cycle=True, stochastic_cycle=True)
    model.initialize_approximate_diffuse(1e4)
    return model.smooth([2.0, 0.3, 0.01, 0.5, 0.4])


def seasonal_arima():
    _, inflation = macrodata()
    model = sm.tsa.SARIMAX(inflation, order=(2, 1, 1), seasonal_order=(1, 0, 1, 4), trend="t")
    model.initialize_approximate_diffuse(1e4)
    return model.smooth([0.001, 0.4, -0.2, -0.7, 0.5, -0.3, 4.0])


def arma():
    _, inflation = macrodata()
    inflation = inflation - inflation.mean()
    inflation[20:25] = np.nan
    return sm.tsa.SARIMAX(inflation, order=(3, 0, 2)).smooth([0.6, 0.2, -0.1, 0.3, 0.1, 5.0])


@pytest.mark.parametrize("form", ["covariance", "sqrt"])
@pytest.mark.parametrize(
    "peer", [dynamic_factor, vector_autoregression, structural, seasonal_arima, arma]
)
def test_the_chain_is_statsmodels_on_macrodata(peer, form):
    result = peer()
    r = result.filter_results
    problem = chain_of(result)
    chain = problem.chain(form)
    filtered, smoothed = jax.jit(lambda c: (gaussian.filter(c, form), gaussian.smooth(c, form)))(
        chain
    )
    want = r.llf_obs
    np.testing.assert_allclose(filtered.pointwise, want, rtol=2e-8, atol=1e-8)
    assert float(filtered.log_likelihood) == pytest.approx(want.sum(), rel=1e-9)
    close = lambda got, want: np.testing.assert_allclose(got, want, rtol=1e-7, atol=1e-7)
    close(smoothed.mean, r.smoothed_state.T)
    close(smoothed.covariance, np.moveaxis(r.smoothed_state_cov, -1, 0))
    seen = ~np.isnan(problem.y)
    predicted = np.asarray(filtered.observation_mean)
    np.testing.assert_allclose(predicted[seen], r.forecasts.T[seen], rtol=1e-7, atol=1e-7)
