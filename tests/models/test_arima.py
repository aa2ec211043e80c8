"""AR, ARMA, ARIMA: autocovariances, likelihoods and parameters, against statsmodels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from written_out import covariance, dense, per_direction

import statespace as ss
from statespace.parameters import constrain, supports, unconstrain

sm = pytest.importorskip("statsmodels.api")
arma_acovf = pytest.importorskip("statsmodels.tsa.arima_process").arma_acovf

AR2 = np.array([0.6, -0.3])
MA3 = np.array([0.4, 0.2, -0.5])


def autocovariances(model, lags):
    """Cov(y_t, y_{t-k}) as the state-space model has it."""
    f, h = np.asarray(model.transition.matrix), np.asarray(model.observation.matrix)[0]
    out, power = [], covariance(model.initial)
    for _ in range(lags):
        out.append(h @ power @ h)
        power = f @ power
    return np.array(out)


@pytest.mark.parametrize(
    ("ar", "ma"), [(AR2, None), (None, MA3), (AR2, MA3), (AR2, MA3[:1]), ([0.999], None)]
)
def test_autocovariances(ar, ma):
    model = ss.ARMA(ar, ma, scale=1.7)
    full_ar, full_ma = (
        np.r_[1, -np.array([] if ar is None else ar)],
        np.r_[1, [] if ma is None else ma],
    )
    want = arma_acovf(full_ar, full_ma, nobs=8, sigma2=1.7**2)
    np.testing.assert_allclose(autocovariances(model, 8), want, rtol=1e-9, atol=1e-12)


def test_ar_is_the_arma_without_moving_average():
    want = arma_acovf(np.r_[1, -AR2], [1.0], nobs=6, sigma2=4.0)
    np.testing.assert_allclose(autocovariances(ss.AR(AR2, 2.0), 6), want, rtol=1e-9)


def test_seasonal_arma_autocovariances():
    model = ss.ARIMA(
        (1, 0, 1), (1, 0, 1, 4), ar=[0.5], ma=[0.3], seasonal_ar=[0.7], seasonal_ma=[-0.2], scale=2
    )
    ar = np.convolve([1, -0.5], np.r_[1, np.zeros(3), -0.7])
    ma = np.convolve([1, 0.3], np.r_[1, np.zeros(3), -0.2])
    want = arma_acovf(ar, ma, nobs=12, sigma2=4.0)
    np.testing.assert_allclose(autocovariances(model, 12), want, rtol=1e-9)


CASES = {
    "ARMA(1, 1) with a mean": {"order": (1, 0, 1), "ar": [0.7], "ma": [0.4], "mean": 1.5},
    "ARIMA(1, 1, 1)": {"order": (1, 1, 1), "ar": [0.3], "ma": [0.4]},
    "ARIMA(2, 2, 1)": {"order": (2, 2, 1), "ar": [0.3, -0.2], "ma": [-0.4]},
    "with drift": {"order": (1, 1, 0), "ar": [0.3], "mean": 0.8},
    "airline of quarters": {
        "order": (0, 1, 1),
        "seasonal_order": (0, 1, 1, 4),
        "ma": [-0.4],
        "seasonal_ma": [-0.6],
    },
    "seasonal": {
        "order": (1, 0, 0),
        "seasonal_order": (1, 1, 0, 4),
        "ar": [0.5],
        "seasonal_ar": [-0.3],
        "mean": 0.4,
    },
}


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_likelihood_agrees_with_statsmodels(name, missing):
    settings = CASES[name]
    y = np.random.default_rng(0).normal(size=24).cumsum() + 0.3 * np.arange(24)
    if missing:
        y[[9, 10, 17]] = np.nan
    model = ss.ARIMA(**settings, scale=1.3)
    peer = sm.tsa.SARIMAX(
        y,
        order=settings["order"],
        seasonal_order=settings.get("seasonal_order", (0, 0, 0, 0)),
        trend="c" if "mean" in settings else "n",
        use_exact_diffuse=True,
    )
    ar = np.r_[settings.get("ar", []), settings.get("seasonal_ar", [])]
    ma = np.r_[settings.get("ma", []), settings.get("seasonal_ma", [])]
    # statsmodels has an intercept of the autoregression, here it is the mean of what it describes.
    intercept = []
    if "mean" in settings:
        gain = (1 - np.sum(settings.get("ar", []))) * (1 - np.sum(settings.get("seasonal_ar", [])))
        intercept = [settings["mean"] * gain]
    want = per_direction(peer.loglike(np.r_[intercept, ar, ma, 1.3**2]), model)
    np.testing.assert_allclose(float(dense(model, y).log_likelihood()), want, rtol=1e-9)


def test_likelihood_is_that_of_the_differenced_series():
    """No state-space model in sight: the multivariate normal density of (1 - L)(1 - L^4) y."""
    y = np.random.default_rng(1).normal(size=24).cumsum()
    w = np.diff(y[4:] - y[:-4])
    gamma = arma_acovf([1.0], np.convolve([1, -0.4], [1, 0, 0, 0, -0.6]), nobs=len(w), sigma2=2.25)
    lags = np.abs(np.subtract.outer(np.arange(len(w)), np.arange(len(w))))
    want = scipy.stats.multivariate_normal(np.full(len(w), 0.2), gamma[lags]).logpdf(w)
    model = ss.ARIMA((0, 1, 1), (0, 1, 1, 4), ma=[-0.4], seasonal_ma=[-0.6], scale=1.5, mean=0.2)
    np.testing.assert_allclose(float(dense(model, y).log_likelihood()), want, rtol=1e-9)


def test_regressors_are_added():
    y = np.random.default_rng(2).normal(size=25).cumsum()
    u = np.random.default_rng(3).normal(size=(25, 2))
    model = ss.ARIMA((1, 1, 0), ar=[0.4], scale=1.2) + ss.Regression(2)
    peer = sm.tsa.SARIMAX(y, exog=u, order=(1, 1, 0), mle_regression=False, use_exact_diffuse=True)
    want = per_direction(peer.loglike([0.4, 1.44]), model)
    np.testing.assert_allclose(float(dense(model, y, inputs=u).log_likelihood()), want, rtol=1e-9)


def test_parameters_stay_in_their_regions_when_learned():
    model = ss.ARIMA((2, 0, 1), (1, 0, 1, 4), ar=[0.5, 0.2], ma=[0.3], mean=1.0)
    names = ["ar", "ma", "seasonal_ar", "seasonal_ma", "scale", "mean"]
    assert list(ss.parameters(model)) == names
    moved = constrain(model, {k: v + 3.0 for k, v in unconstrain(model).items()})
    for name, value in ss.parameters(moved).items():
        assert bool(jnp.all(supports(moved)[name](value))), name
    same = constrain(model, unconstrain(model))
    for name, value in ss.parameters(same).items():
        np.testing.assert_allclose(value, ss.parameters(model)[name], rtol=1e-9, atol=1e-12)


def test_coefficients_left_out_start_at_zero_and_have_a_gradient():
    model = ss.ARIMA((1, 0, 2))

    def variance(free):
        return constrain(model, free).initial.covariance[0, 0]

    gradient = jax.grad(variance)(unconstrain(model))
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradient))


def test_under_jit_and_vmap():
    def first_variance(phi, scale):
        return ss.AR(phi, scale).initial.covariance[0, 0]

    phi = jnp.array([[0.5, 0.1], [0.2, -0.4]])
    got = jax.jit(jax.vmap(first_variance))(phi, jnp.array([1.0, 2.0]))
    want = [
        arma_acovf(np.r_[1, -p], [1.0], nobs=1, sigma2=s**2)[0] for p, s in zip(phi, (1.0, 2.0))
    ]
    np.testing.assert_allclose(got, want, rtol=1e-9)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ss.AR([0.5, 0.5], 1.0), r"`coefficients` must be stationary.*modulus 1"),
        (lambda: ss.AR([[0.5]], 1.0), r"`coefficients` must have shape \(p,\), got \(1, 1\)"),
        (lambda: ss.AR([0.5], 0.0), r"`scale` must be positive, got 0"),
        (lambda: ss.AR([np.nan], 1.0), r"`coefficients` must be finite"),
        (lambda: ss.ARMA(ma=[2.0]), r"`ma` must be invertible.*modulus 2"),
        (lambda: ss.ARMA([0.5], mean=[1.0, 2.0]), r"`mean` must have shape \(\), got \(2,\)"),
        (lambda: ss.ARIMA((1, 1)), r"`order` must be \(p, d, q\).*got \(1, 1\)"),
        (lambda: ss.ARIMA((1, -1, 0)), r"`order` must be \(p, d, q\), whole numbers from 0"),
        (lambda: ss.ARIMA((0, 0, 0), (1, 0, 0, 1)), r"season s .* at least 2 steps, got 1"),
        (lambda: ss.ARIMA((2, 0, 0), ar=[0.1]), r"`ar` must have 2 coefficients.*got 1"),
        (
            lambda: ss.ARIMA((0, 1, 0)) + ss.LocalLevel(1.0),
            r"'arima' and 'level' both start diffuse in a level",
        ),
    ],
)
def test_bad_parameters(make, message):
    with pytest.raises(ValueError, match=message):
        make()
