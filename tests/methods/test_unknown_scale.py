"""An unknown factor of all covariances: against one multivariate Student t law of all observations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.optimize
import scipy.special
import scipy.stats
from oracle import Dense

import statespace as ss
from statespace import student
from statespace.series import as_series

A, B = 1.7, 2.3
METHOD = ss.ConjugateScale(A, B)
T = 7
F = np.array([[0.9, 0.3], [-0.2, 0.7]])
Q = np.array([[0.5, 0.1], [0.1, 0.3]])
H = np.array([[1.0, 0.4], [0.3, -1.0]])
R = np.array([[0.3, 0.05], [0.05, 0.2]])
P0 = np.array([[1.0, 0.2], [0.2, 0.8]])
M0, OFFSET, LEVEL = np.array([0.5, -0.2]), np.array([0.1, 0.2]), np.array([-0.3, 0.4])
MODEL = ss.Model(
    ss.Gaussian(M0, covariance=P0),
    ss.AffineGaussian(F, OFFSET, covariance=Q),
    ss.AffineGaussian(H, LEVEL, covariance=R),
)
Y = np.random.default_rng(0).normal(size=(T, 2)) * 2
Y[2, 1] = Y[4] = np.nan


def dense(y, h=H, d=LEVEL, r=R, first=P0, flat=None):
    return Dense(M0, first, F[None], OFFSET[None], Q[None], h[None], d[None], r[None], y, A=flat)


def joint(y):
    """Mean and covariance of the observed entries given that the factor is 1."""
    law = dense(y)
    mean, covariance, _ = law.prior()
    c, d, r, values = law.observed(len(y))
    s = c @ covariance @ c.T + r
    return (np.asarray(x, float) for x in (c @ mean + d, s, values))


def student_log_density(y):
    mean, s, values = joint(y)
    return scipy.stats.multivariate_t(mean, s * B / A, 2 * A).logpdf(values)


def after(y):
    """Shape and rate of the factor's law given the data."""
    mean, s, values = joint(y)
    error = values - mean
    return A + len(error) / 2, B + error @ np.linalg.solve(s, error) / 2


def until(t):
    return np.where(np.arange(T)[:, None] < t, Y, np.nan)


def test_likelihood_is_one_student_t_density():
    want = student_log_density(Y)
    np.testing.assert_allclose(ss.log_likelihood(MODEL, Y, method=METHOD), want, rtol=1e-12)
    root = ss.ConjugateScale(A, B, form="sqrt")
    np.testing.assert_allclose(ss.log_likelihood(MODEL, Y, method=root), want, rtol=1e-10)
    whole = [student_log_density(until(t)) if t else 0.0 for t in range(T + 1)]
    got = METHOD.pointwise(MODEL, as_series(Y))
    np.testing.assert_allclose(got, np.diff(whole), atol=1e-10)
    # recordings of a panel have each a factor of their own
    both = ss.log_likelihood(MODEL, [Y, Y[:4]], method=METHOD)
    np.testing.assert_allclose(both, want + student_log_density(Y[:4]), rtol=1e-12)


def test_likelihood_of_irregular_times():
    model = ss.OrnsteinUhlenbeck(rate=0.4, scale=1.3, noise_scale=0.5)
    times = np.array([0.0, 0.3, 1.7, 2.0, 5.1])
    y = np.array([0.2, 1.4, -0.8, 0.1, 2.2])
    lags = np.abs(times[:, None] - times)
    plain = ss.filter(model, ss.Series(y, times))
    variance = float(plain.predicted_covariance[0, 0, 0]) - 0.25
    s = variance * np.exp(-0.4 * lags) + 0.25 * np.eye(5)
    want = scipy.stats.multivariate_t(np.zeros(5), s * B / A, 2 * A).logpdf(y)
    got = ss.log_likelihood(model, ss.Series(y, times), method=METHOD)
    np.testing.assert_allclose(got, want, rtol=1e-10)


def test_states_are_student_t():
    smoothed = ss.smooth(MODEL, Y, method=METHOD)
    shape, rate = after(Y)
    np.testing.assert_allclose(smoothed.shape, np.full(T, shape), rtol=1e-12)
    np.testing.assert_allclose(smoothed.rate, np.full(T, rate), rtol=1e-12)
    mean, covariance = dense(Y).smoothed()
    np.testing.assert_allclose(smoothed.mean, mean.astype(float), atol=1e-12)
    want = covariance.astype(float) * rate / (shape - 1)
    np.testing.assert_allclose(smoothed.covariance, want, atol=1e-12)
    lag_one = dense(Y).lag_one().astype(float) * rate / (shape - 1)
    np.testing.assert_allclose(smoothed.lag_one, lag_one, atol=1e-12)
    scale = np.sqrt(np.diagonal(covariance.astype(float), axis1=1, axis2=2) * rate / shape)
    law = scipy.stats.t(2 * shape, mean.astype(float), scale)
    np.testing.assert_allclose(smoothed.quantile(0.93), law.ppf(0.93), rtol=1e-9)
    np.testing.assert_allclose(smoothed.interval(0.5)[0], law.ppf(0.25), rtol=1e-9)
    np.testing.assert_allclose(smoothed.scale.mean, np.full(T, rate / (shape - 1)), rtol=1e-12)

    filtered = ss.filter(MODEL, Y, method=METHOD)
    laws = np.array([after(until(t + 1)) for t in range(T)])
    np.testing.assert_allclose(filtered.shape, laws[:, 0], rtol=1e-12)
    np.testing.assert_allclose(filtered.rate, laws[:, 1], rtol=1e-12)
    mean, covariance = (x.astype(float) for x in dense(Y).filtered())
    np.testing.assert_allclose(filtered.mean, mean, atol=1e-12)
    want = covariance * (laws[:, 1] / (laws[:, 0] - 1))[:, None, None]
    np.testing.assert_allclose(filtered.covariance, want, atol=1e-12)
    before = np.array([(A, B), *laws[:-1]])
    _, predicted = (x.astype(float) for x in dense(Y).predicted_observations())
    want = predicted * (before[:, 1] / (before[:, 0] - 1))[:, None, None]
    np.testing.assert_allclose(filtered.predicted_covariance, want, atol=1e-12)

    # what the states say of the channels
    signal = smoothed.signal
    unit = H @ np.asarray(smoothed.unit_covariance) @ H.T
    scale = np.sqrt(np.diagonal(unit, axis1=1, axis2=2) * rate / shape)
    want = scipy.stats.t(2 * shape, np.asarray(smoothed.mean) @ H.T + LEVEL, scale).ppf(0.8)
    np.testing.assert_allclose(signal.quantile(0.8), want, rtol=1e-9)


def test_errors_are_normal_deviates_of_their_student_laws():
    """The first moment in closed form: the second channel is predicted given the first."""
    errors = ss.filter(MODEL, Y, method=METHOD).innovations
    s, e = H @ P0 @ H.T + R, Y[0] - H @ M0 - LEVEL
    first = scipy.stats.t(2 * A, scale=np.sqrt(s[0, 0] * B / A)).cdf(e[0])
    rest = s[1, 1] - s[0, 1] ** 2 / s[0, 0]
    shape, rate = A + 0.5, B + e[0] ** 2 / s[0, 0] / 2
    error = e[1] - s[0, 1] / s[0, 0] * e[0]
    second = scipy.stats.t(2 * shape, scale=np.sqrt(rest * rate / shape)).cdf(error)
    np.testing.assert_allclose(errors[0], scipy.stats.norm.ppf([first, second]), atol=1e-10)
    np.testing.assert_array_equal(np.isnan(errors), np.isnan(Y))
    np.testing.assert_allclose(METHOD.standardised_errors(MODEL, as_series(Y)), errors)


def test_draws_are_joint(key):
    """20,000 trajectories: moments, and the heavier joint tail of one factor for all moments."""
    y = Y[:3]
    smoothed = ss.smooth(MODEL, y, method=ss.ConjugateScale(4.0, 4.0))
    count = 20_000
    for draws in (
        smoothed.sample(key, count),
        ss.sample_states(MODEL, y, key=key, draws=count, method=ss.ConjugateScale(4.0, 4.0)),
    ):
        deviation = np.asarray(smoothed.std)
        error = np.asarray(draws) - np.asarray(smoothed.mean)
        assert np.all(np.abs(error.mean(axis=0)) < 5 * deviation / np.sqrt(count))
        np.testing.assert_allclose(error.std(axis=0), deviation, rtol=0.05)
        lag = np.einsum("dti,dtj->tij", error[:, :-1], error[:, 1:]) / count
        np.testing.assert_allclose(lag, smoothed.lag_one, atol=0.08)
        # squares of the first and the last state go together only through the factor
        unit = error / np.sqrt(np.diagonal(smoothed.unit_covariance, axis1=1, axis2=2))
        shape, rate = float(smoothed.shape[0]), float(smoothed.rate[0])
        second = rate**2 / ((shape - 1) * (shape - 2))
        correlation = dense(y).posterior().covariance.astype(float)[0, 0, 2, 0] / np.sqrt(
            float(smoothed.unit_covariance[0, 0, 0] * smoothed.unit_covariance[2, 0, 0])
        )
        got = np.mean(unit[:, 0, 0] ** 2 * unit[:, 2, 0] ** 2)
        np.testing.assert_allclose(got, second * (1 + 2 * correlation**2), rtol=0.15)


def test_forecast_is_student_t(key):
    ahead = ss.forecast(MODEL, Y, 2, method=METHOD)
    shape, rate = after(Y)
    longer = np.concatenate([Y, np.full((2, 2), np.nan)])
    mean, covariance = (x.astype(float)[T:] for x in dense(longer).predicted_observations())
    np.testing.assert_allclose(ahead.mean, mean, atol=1e-12)
    np.testing.assert_allclose(ahead.covariance, covariance * rate / (shape - 1), atol=1e-12)
    scale = np.sqrt(np.diagonal(covariance, axis1=1, axis2=2) * rate / shape)
    laws = scipy.stats.t(2 * shape, mean, scale)
    np.testing.assert_allclose(ahead.quantile([0.1, 0.5])[0], laws.ppf(0.1), rtol=1e-9)
    np.testing.assert_allclose(ahead.state.quantile(0.5), ahead.state.mean, rtol=1e-12)
    came = np.array([[3.0, np.nan], [1.0, -2.0]])
    score = ahead.score(came)
    want = [
        laws.logpdf(np.where(np.isnan(came), mean, came))[0, 0],
        scipy.stats.multivariate_t(mean[1], covariance[1] * rate / shape, 2 * shape).logpdf(
            came[1]
        ),
    ]
    np.testing.assert_allclose(score.pointwise, want, rtol=1e-10)
    law = scipy.stats.t(2 * shape, mean[0, 0], scale[0, 0])
    pieces = [(-np.inf, 3.0, lambda x: law.cdf(x) ** 2), (3.0, np.inf, lambda x: law.sf(x) ** 2)]
    crps = sum(scipy.integrate.quad(f, a, b)[0] for a, b, f in pieces)
    np.testing.assert_allclose(score.crps_each[0, 0], crps, rtol=1e-6)
    assert np.isnan(score.crps_each[0, 1])
    draws = np.asarray(ahead.sample(key, 20_000))
    for q in (0.05, 0.9):
        share = np.mean(draws < laws.ppf(q), axis=0)
        assert np.all(np.abs(share - q) < 5 * np.sqrt(q * (1 - q) / 20_000))
    with pytest.raises(ValueError, match="`y` must have shape"):
        ahead.score(came[:1])


def test_diffuse_directions_say_nothing_of_the_factor():
    """Of T observations T - 2 tell of it; the likelihood is that of the generalised least squares errors."""
    trend = ss.LocalLinearTrend(level_scale=0.6, slope_scale=0.2, noise_scale=0.8)
    y = np.array([1.0, 2.2, np.nan, 2.9, 5.0, 4.6])
    seen = ~np.isnan(y)
    noise = 0.64 * np.eye(6)
    for t in range(1, 6):  # shocks of level and slope that come into moment t
        late = (np.arange(6) >= t).astype(float)
        noise += 0.36 * np.outer(late, late)
        ramp = np.maximum(np.arange(6) - t, 0.0)
        noise += 0.04 * np.outer(ramp, ramp)
    v, x = noise[np.ix_(seen, seen)], np.stack([np.ones(6), np.arange(6.0)], axis=1)[seen]
    inverse = np.linalg.inv(v)
    information = x.T @ inverse @ x
    error = y[seen] - x @ np.linalg.solve(information, x.T @ inverse @ y[seen])
    square = error @ inverse @ error
    dof = seen.sum() - 2
    want = (
        scipy.special.gammaln(A + dof / 2)
        - scipy.special.gammaln(A)
        + A * np.log(B)
        - (A + dof / 2) * np.log(B + square / 2)
        - 0.5 * (dof * np.log(2 * np.pi) + np.linalg.slogdet(v)[1])
        - 0.5 * np.linalg.slogdet(information)[1]
    )
    # the flat law has density one in units that the factor scales
    got = ss.smooth(trend, y, method=METHOD)
    np.testing.assert_allclose(ss.log_likelihood(trend, y, method=METHOD), want, rtol=1e-10)
    np.testing.assert_allclose(got.log_likelihood, want, rtol=1e-10)
    np.testing.assert_allclose(got.shape[0], A + dof / 2, rtol=1e-12)
    np.testing.assert_allclose(got.rate[0], B + square / 2, rtol=1e-10)
    first = ss.filter(trend, y, method=METHOD)
    np.testing.assert_allclose(first.shape[:4], A + np.array([0, 0, 0, 0.5]), rtol=1e-12)
    assert np.isinf(first.std[0, 1])
    assert np.isfinite(first.std[3]).all()


def test_gradients_reach_the_model_and_the_prior():
    def value(logs):
        q, r, a, b = jnp.exp(logs)
        model = ss.LocalLevel(level_scale=q, noise_scale=r)
        return ss.log_likelihood(model, jnp.asarray(Y[:, 0]), method=ss.ConjugateScale(a, b))

    at = jnp.log(jnp.array([0.7, 0.9, A, B]))
    step = 1e-5
    gradient = np.asarray(jax.grad(value)(at))
    shifts = np.concatenate([np.eye(4), -np.eye(4)]) * step
    values = np.asarray(jax.jit(jax.vmap(value))(at + shifts))
    np.testing.assert_allclose(gradient, (values[:4] - values[4:]) / (2 * step), atol=1e-8)
    bent = np.asarray(jax.hessian(value)(at))
    slopes = np.asarray(jax.jit(jax.vmap(jax.grad(value)))(at + shifts))
    np.testing.assert_allclose(bent, (slopes[:4] - slopes[4:]) / (2 * step), atol=1e-7)


def test_fit_finds_the_ratio_of_the_scales_and_leaves_their_size_to_the_factor():
    """The maximum over the ratio of a local level, against a search over the dense density."""
    y = np.cumsum(np.random.default_rng(3).normal(size=30)) + np.random.default_rng(4).normal(
        size=30
    )
    model = ss.freeze(ss.LocalLevel(level_scale=1.0, noise_scale=1.0), "noise_scale")
    method = ss.ConjugateScale(2.0, 2.0)
    fitted = ss.fit(model, y, method=method)
    low = np.minimum(np.arange(30)[:, None], np.arange(30))

    def objective(log_ratio):
        v = np.eye(30) + np.exp(2 * log_ratio) * low
        inverse = np.linalg.inv(v)
        information = inverse.sum()
        error = y - (inverse @ y).sum() / information
        square = error @ inverse @ error
        return (2 + 14.5) * np.log(2 + square / 2) + 0.5 * (
            np.linalg.slogdet(v)[1] + np.log(information)
        )

    best = scipy.optimize.minimize_scalar(objective, (-1, 1), tol=1e-10).x
    np.testing.assert_allclose(fitted.model.level_scale, np.exp(best), rtol=1e-4)
    with pytest.raises(TypeError, match="not on those of ConjugateScale"):
        ss.fit(model, y, method=method, learner=ss.EM())


def test_fed_one_by_one():
    online = ss.online(MODEL, METHOD)
    state = online.init()
    for y in Y:
        state = online.update(state, y)
    want = ss.filter(MODEL, Y, method=METHOD)
    np.testing.assert_allclose(state.log_likelihood, student_log_density(Y), rtol=1e-12)
    np.testing.assert_allclose((state.shape, state.rate), after(Y), rtol=1e-12)
    np.testing.assert_allclose(state.mean, want.mean[-1], atol=1e-12)
    np.testing.assert_allclose(state.covariance, want.covariance[-1], atol=1e-12)
    with pytest.raises(ValueError, match="`time` must be after"):
        online.update(state, Y[0], time=1.0)


def test_panel_and_single_precision():
    single = jax.tree.map(lambda x: x.astype(jnp.float32), MODEL)
    short = ss.smooth(single, [Y.astype(np.float32), Y[:4].astype(np.float32)], method=METHOD)
    assert short[1].mean.dtype == short[1].shape.dtype == jnp.float32
    np.testing.assert_allclose(short[0].log_likelihood, student_log_density(Y), rtol=1e-5)
    np.testing.assert_allclose(short[1].log_likelihood, student_log_density(Y[:4]), rtol=1e-5)
    np.testing.assert_allclose((short[1].shape[0], short[1].rate[0]), after(Y[:4]), rtol=1e-5)
    assert short[1].covariance.shape == (4, 2, 2)


def test_few_degrees_of_freedom_have_no_variance(key):
    blind = ss.Series.unobserved(np.arange(2.0), channels=2)
    few = ss.filter(MODEL, blind, method=ss.ConjugateScale(0.6, 1.0))
    assert np.isinf(few.std).all()
    low, high = few.interval(0.9)
    scale = np.sqrt(np.diagonal(P0) / 0.6)
    np.testing.assert_allclose((high - low)[0] / 2, scipy.stats.t(1.2).ppf(0.95) * scale, rtol=1e-9)
    assert np.isfinite(few.sample(key, 3)).all()


def test_quantiles_of_student_t():
    q, df = np.array([1e-9, 0.01, 0.3, 0.5, 0.77, 1 - 1e-6]), np.array([0.4, 1.0, 3.3, 60.0])
    got = student.quantile(jnp.asarray(q)[:, None], jnp.asarray(df))
    np.testing.assert_allclose(got, scipy.stats.t(df).ppf(q[:, None]), rtol=1e-9, atol=1e-12)


def test_plots_and_exports():
    pytest.importorskip("matplotlib")
    pytest.importorskip("arviz")
    import matplotlib

    matplotlib.use("Agg")
    posterior = ss.smooth(MODEL, Y, method=METHOD)
    assert len(ss.plot.smoothed(posterior, Y)) == 2
    ss.plot.forecast(ss.forecast(MODEL, Y, 2, method=METHOD), Y)
    assert posterior.to_arviz(draws=5)["posterior"]["states"].shape == (1, 5, T, 2)
    assert posterior.to_pandas().shape == (T, 8)


def test_what_does_not_fit_is_named():
    for shape, rate, name in (
        (0.0, 1.0, "shape"),
        (1.0, np.inf, "rate"),
        ([1.0, 2.0], 1.0, "shape"),
    ):
        with pytest.raises(
            ValueError, match=f"`{name}` of ConjugateScale must be a positive number"
        ):
            ss.ConjugateScale(shape, rate)
    curved = ss.Model(MODEL.initial, lambda x, step: None, MODEL.observation)
    with pytest.raises(TypeError, match="ConjugateScale does not fit this model: its `transition`"):
        ss.filter(curved, Y, method=METHOD)
    with pytest.raises(ValueError, match="`q` must be probabilities inside"):
        ss.filter(MODEL, Y, method=METHOD).quantile(1.0)
