"""Maximum likelihood against statsmodels, scipy and published numbers."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from compilations import compilations
from scipy import optimize, stats

import statespace as ss

sm = pytest.importorskip("statsmodels.api")

POOR_STARTS = [(1, 1), (1e3, 1), (1, 1e3), (1e4, 1e4), (1e-2, 1e-2), (1e-3, 100), (100, 1e-3)]


@pytest.fixture(scope="module")
def nile():
    return sm.datasets.nile.load_pandas().data["volume"].to_numpy()


@pytest.fixture(scope="module")
def uc(nile):
    """Durbin & Koopman's local level in statsmodels, which counts -log(2 pi) / 2 for the diffuse state."""
    return sm.tsa.UnobservedComponents(nile, "llevel", use_exact_diffuse=True)


def local_level(level=40.0, noise=120.0):
    return ss.LocalLevel(level_scale=level, noise_scale=noise)


def hessian_errors(model, params):
    """Standard errors from statsmodels' numerical Hessian at given parameters."""
    hessian = model.hessian(params, method="approx", approx_complex_step=True, transformed=True)
    return np.sqrt(np.diag(np.linalg.inv(-hessian * model.nobs)))


@pytest.mark.parametrize(("level", "noise"), POOR_STARTS)
def test_nile_from_poor_starts(nile, level, noise):
    """Durbin & Koopman (2012), section 2.10.2: variances 15099 and 1469.1, log likelihood -632.5456."""
    fitted = ss.fit(local_level(level, noise), nile)
    assert fitted.converged, fitted.reason
    np.testing.assert_allclose(fitted.log_likelihood, -632.545625, atol=1e-6)
    variances = {k: v**2 for k, v in fitted.parameters.items()}
    np.testing.assert_allclose(variances["noise_scale"], 15098.52, atol=0.05)
    np.testing.assert_allclose(variances["level_scale"], 1469.18, atol=0.05)


def test_nile_against_statsmodels(nile, uc):
    fitted = ss.fit(local_level(), nile)
    p, se = fitted.parameters, fitted.standard_errors
    at = np.array([p["noise_scale"] ** 2, p["level_scale"] ** 2])
    theirs = uc.loglike(at)
    np.testing.assert_allclose(fitted.log_likelihood - np.log(2 * np.pi) / 2, theirs, rtol=1e-9)
    score = uc.score(at, approx_complex_step=True) * at  # by the logarithms of the variances
    np.testing.assert_allclose(score, 0, atol=1e-6)
    # The delta method: the standard error of a variance is 2 sd times that of the standard deviation.
    ours = 2 * np.array(
        [p["noise_scale"] * se["noise_scale"], p["level_scale"] * se["level_scale"]]
    )
    np.testing.assert_allclose(ours, hessian_errors(uc, at), rtol=1e-4)
    result = uc.smooth(at)
    shift = np.log(2 * np.pi)
    np.testing.assert_allclose(fitted.aic, result.aic - shift, rtol=1e-9)
    np.testing.assert_allclose(fitted.bic, result.bic - shift, rtol=1e-9)


def test_arma_against_statsmodels():
    x = sm.datasets.sunspots.load_pandas().data["SUNACTIVITY"].to_numpy()[-150:]
    x = x - x.mean()
    fitted = ss.fit(ss.ARMA(ar=jnp.array([0.5, 0.0]), ma=jnp.array([0.1]), scale=20.0), x)
    assert fitted.converged
    theirs = sm.tsa.SARIMAX(x, order=(2, 0, 1))
    p, se = fitted.parameters, fitted.standard_errors
    at = np.concatenate([p["ar"], p["ma"], [p["scale"] ** 2]])
    np.testing.assert_allclose(fitted.log_likelihood, theirs.loglike(at), rtol=1e-10)
    assert fitted.log_likelihood >= theirs.fit(disp=0).llf - 1e-9
    errors = hessian_errors(theirs, at)
    ours = np.concatenate([se["ar"], se["ma"], [2 * p["scale"] * se["scale"]]])
    np.testing.assert_allclose(ours, errors, rtol=1e-4)


def test_missing_values_and_frozen_scale(nile):
    y = nile.copy()
    y[20:40] = np.nan
    y[60:80] = np.nan
    fitted = ss.fit(ss.freeze(local_level(noise=100.0), "noise_scale"), y)
    theirs = sm.tsa.UnobservedComponents(y, "llevel", use_exact_diffuse=True)

    def loss(log_sd):
        return -theirs.loglike([1e4, np.exp(2 * log_sd)])

    best = optimize.minimize_scalar(loss, bracket=(2.0, 5.0), options={"xtol": 1e-10})
    assert fitted.parameters["noise_scale"] == 100.0
    assert list(fitted.standard_errors) == ["level_scale"]
    np.testing.assert_allclose(fitted.parameters["level_scale"], np.exp(best.x), rtol=1e-5)
    np.testing.assert_allclose(fitted.log_likelihood, -best.fun + np.log(2 * np.pi) / 2, rtol=1e-10)


def test_maximum_a_posteriori(nile, uc):
    """The mode of the density of the scales themselves; no Jacobian of their logarithm."""
    priors = {"level_scale": dist.HalfNormal(10.0), "noise_scale": dist.LogNormal(4.0, 0.2)}
    fitted = ss.fit(local_level(), nile, priors=priors)

    def loss(log_sd):
        level, noise = np.exp(log_sd)
        prior = stats.halfnorm(scale=10).logpdf(level)
        prior += stats.lognorm(0.2, scale=np.exp(4)).logpdf(noise)
        return -uc.loglike([noise**2, level**2]) - prior

    best = optimize.minimize(
        loss, np.log([30, 100]), method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-11}
    )
    estimates = [fitted.parameters[k] for k in ("level_scale", "noise_scale")]
    np.testing.assert_allclose(estimates, np.exp(best.x), rtol=1e-6)
    np.testing.assert_allclose(
        fitted.log_likelihood + fitted.log_prior, -best.fun + np.log(2 * np.pi) / 2, rtol=1e-9
    )
    assert "maximum a posteriori" in fitted.summary()


def test_panel_of_copies_halves_the_variance(nile):
    """Two equal recordings have the same maximum, and standard errors smaller by sqrt(2)."""
    one = ss.fit(local_level(), nile)
    two = ss.fit(local_level(), [nile, nile])
    np.testing.assert_allclose(two.log_likelihood, 2 * one.log_likelihood, rtol=1e-10)
    for name, error in one.standard_errors.items():
        np.testing.assert_allclose(two.parameters[name], one.parameters[name], rtol=1e-6)
        np.testing.assert_allclose(two.standard_errors[name], error / np.sqrt(2), rtol=1e-5)


def test_panel_of_unequal_lengths(nile):
    """The maximum of the sum of the recordings' log likelihoods (which overlap, against no rule)."""
    parts = [nile[:45], nile[20:]]
    fitted = ss.fit(local_level(), parts)
    models = [sm.tsa.UnobservedComponents(y, "llevel", use_exact_diffuse=True) for y in parts]

    def loss(log_sd):
        return -sum(m.loglike(np.exp(2 * log_sd)) for m in models)

    best = optimize.minimize(
        loss, np.log([120, 30]), method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-11}
    )
    estimates = [fitted.parameters[k] for k in ("noise_scale", "level_scale")]
    np.testing.assert_allclose(estimates, np.exp(best.x), rtol=1e-5)


def test_irregular_times():
    """An exactly observed Ornstein-Uhlenbeck process is a Markov chain of known transitions."""
    rng = np.random.default_rng(1)
    times = np.cumsum(rng.gamma(1.0, 0.7, 120))
    gaps = np.diff(times)
    x = [0.3]
    for gap in gaps:
        decay = np.exp(-0.5 * gap)
        x.append(decay * x[-1] + np.sqrt(1 - decay**2) * rng.normal())
    x = np.array(x)

    def loss(log_parameters):
        rate, scale = np.exp(log_parameters)
        variance = scale**2 / (2 * rate)
        decay = np.exp(-rate * gaps)
        moves = stats.norm(decay * x[:-1], np.sqrt(variance * (1 - decay**2))).logpdf(x[1:])
        return -moves.sum() - stats.norm(0, np.sqrt(variance)).logpdf(x[0])

    best = optimize.minimize(
        loss, np.zeros(2), method="Nelder-Mead", options={"xatol": 1e-10, "fatol": 1e-12}
    )
    fitted = ss.fit(ss.OrnsteinUhlenbeck(rate=2.0, scale=0.3), ss.Series(x, times=times))
    np.testing.assert_allclose(fitted.log_likelihood, -best.fun, rtol=1e-8)
    estimates = [fitted.parameters[k] for k in ("rate", "scale")]
    np.testing.assert_allclose(estimates, np.exp(best.x), rtol=1e-5)


def test_several_starts_find_the_better_maximum(key):
    """The likelihood of a period has a maximum near every harmonic; here the truth is 11.3."""
    rng = np.random.default_rng(2)
    y = 2 * np.sin(2 * np.pi * np.arange(120) / 11.3) + 0.7 * rng.normal(size=120)

    def model(period):
        cycle = ss.Cycle(period=period, damping=0.99, scale=0.1)
        return ss.freeze(cycle + ss.Irregular(1.0), "cycle.damping")

    one = ss.fit(model(5.0), y)
    many = ss.fit(model(5.0), y, learner=ss.MaximumLikelihood(starts=8), key=key)
    truth = ss.fit(model(11.0), y)
    assert many.log_likelihood > one.log_likelihood + 50
    np.testing.assert_allclose(many.log_likelihood, truth.log_likelihood, rtol=1e-9)
    np.testing.assert_allclose(many.parameters["cycle.period"], 11.3, rtol=0.01)


def test_undetermined_parameters_are_said_to_be():
    """Only the product of loading and noise scale is determined by the data."""
    rng = np.random.default_rng(0)
    y = np.cumsum(rng.normal(size=80)) * 0.5
    model = ss.LinearGaussian([[0.9]], [1.0], [[0.5]], [0.3], [0.0], [1.0])
    model = ss.freeze(model, "initial_mean", "initial_scale", "observation_scale")
    model = eqx.tree_at(lambda m: m.model.initial_scale, model, jnp.array([1e-6]))
    fitted = ss.fit(model, y)
    assert np.isnan(fitted.standard_errors["transition_scale"]).all()
    assert np.isnan(fitted.standard_errors["observation_matrix"]).all()
    assert np.isfinite(fitted.standard_errors["transition_matrix"]).all()
    assert "undetermined" in fitted.summary()


def test_says_when_it_did_not_converge(nile):
    learner = ss.MaximumLikelihood(max_steps=3, standard_errors=False)
    with pytest.warns(ss.ConvergenceWarning, match=r"did not converge: 3 evaluations.*max_steps"):
        fitted = ss.fit(local_level(1.0, 1.0), nile, learner=learner)
    assert not fitted.converged
    assert "NO (3 evaluations" in fitted.summary()
    assert fitted.standard_errors == {}
    with pytest.raises(ValueError, match="standard_errors=True"):
        fitted.interval()


def test_warm_start(nile):
    first = ss.fit(local_level(), nile)
    again = ss.fit(first, nile)
    assert again.iterations <= 1
    np.testing.assert_allclose(again.log_likelihood, first.log_likelihood, rtol=1e-12)


def test_second_fit_compiles_nothing(nile):
    pandas = pytest.importorskip("pandas")
    years = pandas.period_range("1871", periods=100, freq="Y")
    ss.fit(local_level(), pandas.Series(nile, years))
    with compilations() as events:
        ss.fit(local_level(30.0, 90.0), pandas.Series(nile[::-1].copy(), years + 7))
    assert events == []


def test_float32(x64_off):
    rng = np.random.default_rng(2)
    y = (np.cumsum(rng.normal(size=200)) + 2 * rng.normal(size=200)).astype(np.float32)
    fitted = ss.fit(local_level(0.1, 0.1), y)
    assert fitted.model.level_scale.dtype == jnp.float32
    theirs = sm.tsa.UnobservedComponents(y.astype(float), "llevel", use_exact_diffuse=True)
    at = [fitted.parameters["noise_scale"] ** 2, fitted.parameters["level_scale"] ** 2]
    score = theirs.score(at, approx_complex_step=True) * at
    np.testing.assert_allclose(score, 0, atol=0.02)


def test_summary_and_intervals(nile):
    fitted = ss.fit(local_level(), nile)
    text = str(fitted)
    for part in ("LocalLevel", "-632.5456", "level_scale", "Ljung–Box", "100 moments", "1271.091"):
        assert part in text
    lower, upper = fitted.interval(0.95)["level_scale"]
    sd, error = fitted.parameters["level_scale"], fitted.standard_errors["level_scale"]
    ratio = np.exp(stats.norm.ppf(0.975) * error / sd)
    np.testing.assert_allclose([lower, upper], [sd / ratio, sd * ratio], rtol=1e-10)
    assert "converged" in repr(fitted)
    np.testing.assert_allclose(
        np.sqrt(np.diag(fitted.covariance)), list(fitted.standard_errors.values()), rtol=1e-12
    )


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"learner": ss.MaximumLikelihood}, TypeError, "call it to make one"),
        ({"learner": "EM"}, TypeError, "must be a learner"),
        ({"method": "kalman"}, TypeError, "must be a method"),
        ({"priors": {"level": dist.HalfNormal(1.0)}}, ValueError, "'level' is not a parameter"),
        ({"learner": ss.MaximumLikelihood(starts=3)}, ValueError, "give `fit` a `key`"),
        ({"data": np.full(10, np.nan)}, ValueError, "NaN throughout"),
        ({"model": ss.freeze(local_level(), "level_scale", "noise_scale")}, ValueError, "frozen"),
    ],
)
def test_refused(nile, change, error, message):
    call = {"model": local_level(), "data": nile} | change
    with pytest.raises(error, match=message):
        ss.fit(call.pop("model"), call.pop("data"), **call)


def test_impossible_start():
    """The first state is known to be 0 and seen exactly, but another was observed."""
    model = ss.LinearGaussian([[3.0]], [1e-200], [[1.0]], [1e-200], [0.0], [1e-200])
    with pytest.raises(ValueError, match=r"cannot start here.*Give starting values"):
        ss.fit(model, np.ones(5))


def test_start_on_the_boundary():
    class Outside(eqx.Module):
        scale: jax.Array = ss.parameter(dist.constraints.positive)

        def __getattr__(self, name):
            return getattr(local_level(1.0, 1.0), name)

    with pytest.raises(ValueError, match=r"cannot start at 'scale' = 0.0"):
        ss.fit(Outside(0.0), np.ones(5))


@pytest.mark.parametrize("setting", [{"starts": 0}, {"tolerance": 0.0}, {"max_steps": 0}])
def test_settings(setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        ss.MaximumLikelihood(**setting)
