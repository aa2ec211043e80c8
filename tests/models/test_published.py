"""Whole analyses from the verbs down, against published numbers and statsmodels on real series."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from written_out import per_direction

import statespace as ss
from statespace.parameters import constrain, unconstrain

sm = pytest.importorskip("statsmodels.api")
Initialization = pytest.importorskip("statsmodels.tsa.statespace.initialization").Initialization

NILE = sm.datasets.nile.load_pandas().data["volume"].to_numpy()
MACRO = sm.datasets.macrodata.load_pandas().data
CO2 = sm.datasets.co2.load_pandas().data["co2"].resample("MS").mean()


def test_nile():
    """Durbin & Koopman (2012), section 2.2; three conventions of the first term."""
    scales = np.sqrt(1469.1), np.sqrt(15099.0)
    exact = ss.log_likelihood(ss.LocalLevel(*scales), NILE)
    np.testing.assert_allclose(exact, -632.545625, atol=1e-6)
    vague = ss.Gaussian(np.zeros(1), np.full(1, np.sqrt(1e7)))
    known = ss.log_likelihood(ss.LocalLevel(*scales, initial_law=vague), NILE)
    np.testing.assert_allclose(known, -641.585578, atol=1e-6)


def test_unemployment_as_trend_and_damped_cycle():
    """As statsmodels does it, but with the stationary law of the cycle at the start."""
    y = MACRO["unemp"].to_numpy()
    model = ss.LocalLevel(0.2) + ss.Cycle(30.0, 0.95, 0.3)
    peer = sm.tsa.UnobservedComponents(
        y,
        level="rwalk",
        cycle=True,
        damped_cycle=True,
        stochastic_cycle=True,
        use_exact_diffuse=True,
    )
    law = Initialization(peer.k_states)
    law.set((0, 1), "diffuse")
    law.set((1, 3), "stationary")
    peer.ssm.initialization = law
    parameters = [0.04, 0.09, 2 * np.pi / 30, 0.95]
    np.testing.assert_allclose(
        ss.log_likelihood(model, y), per_direction(peer.loglike(parameters), model), rtol=1e-9
    )
    result = peer.smooth(parameters)
    posterior = ss.smooth(model, y)
    np.testing.assert_allclose(posterior.mean, result.smoothed_state.T, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(
        posterior.components["cycle"].std, np.sqrt(result.smoothed_state_cov[1, 1]), rtol=1e-7
    )


@pytest.mark.parametrize("form", ["covariance", "sqrt"])
def test_carbon_dioxide_as_an_airline_model_with_gaps(form):
    y = np.log(CO2.to_numpy()[:120]) * 100
    assert np.isnan(y).sum() > 0
    model = ss.ARIMA((0, 1, 1), (0, 1, 1, 12), ma=[-0.4], seasonal_ma=[-0.8], scale=0.09)
    peer = sm.tsa.SARIMAX(y, order=(0, 1, 1), seasonal_order=(0, 1, 1, 12), use_exact_diffuse=True)
    want = per_direction(peer.loglike([-0.4, -0.8, 0.0081]), model)
    got = ss.log_likelihood(model, y, method=ss.Kalman(form))
    np.testing.assert_allclose(got, want, rtol=1e-9)


def test_carbon_dioxide_as_components_with_gaps():
    y = CO2.to_numpy()[:120]
    model = ss.LocalLinearTrend(0.2, 0.01, 0.15) + ss.Seasonal(12, 0.05)
    peer = sm.tsa.UnobservedComponents(y, level="lltrend", seasonal=12, use_exact_diffuse=True)
    parameters = [0.15**2, 0.2**2, 0.01**2, 0.05**2]
    np.testing.assert_allclose(
        ss.log_likelihood(model, y), per_direction(peer.loglike(parameters), model), rtol=1e-9
    )
    result = peer.smooth(parameters)
    posterior = ss.smooth(model, y)
    np.testing.assert_allclose(posterior.mean, result.smoothed_state.T, rtol=1e-7, atol=1e-7)
    forecast = ss.forecast(model, y, 12)
    peer_forecast = result.get_forecast(12)
    np.testing.assert_allclose(forecast.mean[:, 0], peer_forecast.predicted_mean, rtol=1e-9)
    np.testing.assert_allclose(forecast.std[:, 0], peer_forecast.se_mean, rtol=1e-7)


def test_consumption_with_dynamic_regression():
    """Seemingly simple: a level, an input, and missing values, exact against statsmodels."""
    y = 100 * np.log(MACRO["realcons"].to_numpy()[:80])
    u = MACRO[["tbilrate", "infl"]].to_numpy()[:80]
    y[[10, 11]] = np.nan
    model = ss.LocalLinearTrend(0.5, 0.1, 0.2) + ss.Regression(2, labels=("bills", "inflation"))
    peer = sm.tsa.UnobservedComponents(
        y, level="lltrend", exog=u, mle_regression=False, use_exact_diffuse=True
    )
    want = per_direction(peer.loglike([0.04, 0.25, 0.01]), model)
    data = ss.Series(y, inputs=u)
    np.testing.assert_allclose(ss.log_likelihood(model, data), want, rtol=1e-9)
    posterior = ss.smooth(model, data)
    assert list(posterior.components) == ["trend", "regression"]
    total = sum(part.mean for part in posterior.components.values())
    h = np.c_[np.ones(80), np.zeros(80), u]
    np.testing.assert_allclose(total, np.sum(h * np.asarray(posterior.mean), axis=1), rtol=1e-9)


SMALL = {
    "a cycle": lambda: ss.LocalLevel(0.5, 0.7) + ss.Cycle(9.0, 0.8, 0.6),
    "a seasonal": lambda: ss.LocalLinearTrend(0.4, 0.1, 0.5) + ss.Seasonal(4, 0.2),
    "ARIMA": lambda: ss.ARIMA((1, 1, 1), ar=[0.3], ma=[-0.2], mean=0.1),
    "a singular start": lambda: ss.ARIMA((1, 0, 1), mean=0.1),
    "OU": lambda: ss.OrnsteinUhlenbeck(0.3, 0.7, 0.4, mean=0.5),
    "persistent": lambda: ss.IntegratedOrnsteinUhlenbeck(0.3, 0.7, 0.4, dims=1),
}


@pytest.mark.parametrize(
    ("name", "form"),
    [(name, "covariance") for name in SMALL]
    + [(name, "sqrt") for name in ("a cycle", "a singular start", "persistent")],
)
def test_gradient_of_the_likelihood(name, form):
    """Against central differences, in every free parameter at once, along a random direction."""
    model = SMALL[name]()
    rng = np.random.default_rng(0)
    y = 0.5 * rng.normal(size=24).cumsum()
    y[[5, 6]] = np.nan
    data = ss.Series(y, times=np.cumsum(rng.uniform(0.5, 1.5, size=24)))
    free = unconstrain(model)
    direction = {k: jnp.asarray(rng.normal(size=v.shape)) for k, v in free.items()}

    @jax.jit
    def value(step):
        moved = {k: v + step * direction[k] for k, v in free.items()}
        return ss.log_likelihood(constrain(model, moved), data, method=ss.Kalman(form))

    h = 1e-4
    differences = [(value(k * h) - value(-k * h)) / (2 * k * h) for k in (1, 2)]
    want = (4 * differences[0] - differences[1]) / 3
    np.testing.assert_allclose(jax.grad(value)(0.0), want, rtol=1e-7, atol=1e-7)


def test_many_models_at_once():
    """vmap over parameters: the likelihoods are those of the models one by one."""
    y = jnp.asarray(MACRO["infl"].to_numpy()[:60])

    def value(scale, damping):
        return ss.log_likelihood(ss.LocalLevel(scale, 1.0) + ss.Cycle(12.0, damping, 0.5), y)

    scales, dampings = jnp.array([0.1, 0.5, 2.0]), jnp.array([0.5, 0.9, 0.99])
    together = jax.jit(jax.vmap(value))(scales, dampings)
    one_by_one = [value(s, d) for s, d in zip(scales, dampings)]
    np.testing.assert_allclose(together, one_by_one, rtol=1e-10)
