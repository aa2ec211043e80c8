"""What verbs give by Gaussian sites: exactness, the past alone, forecasts, convergence, errors."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy import stats
from scipy.special import expit, gammaln

import statespace as ss
from statespace.methods.site_filter import observation_moments
from statespace.model import Step

COUNTS = np.array([3.0, 0.0, 2.0, 5.0])


def walk(observation, scale=0.9):
    return ss.Model(
        ss.Gaussian(jnp.array([0.2]), jnp.array([scale])),
        ss.AffineGaussian(jnp.array([[0.8]]), jnp.array([0.1]), jnp.array([0.5])),
        observation,
    )


POISSON = walk(ss.GeneralisedLinear([[1.0]], [0.3], "poisson"))


def linear_model(observation):
    return ss.Model(
        ss.Gaussian(jnp.array([1.0, -1.0]), jnp.array([1.0, 2.0])),
        ss.LinearDiffusion(
            jnp.array([[-0.3, 0.2], [0.0, -0.5]]), diffusion=jnp.array([[0.4, 0.0], [0.1, 0.5]])
        ),
        observation,
    )


LOADINGS, OFFSET, SCALE = [[1.0, 0.5], [0.2, 1.0]], [0.3, -0.2], [0.4, 0.6]


@pytest.mark.parametrize(
    "method",
    [
        ss.ExpectationPropagation(form="sqrt"),
        pytest.param(ss.ConjugateVI(parallel=True), marks=pytest.mark.slow),
    ],
)
def test_gaussian_channels_get_the_exact_answer(method):
    y = np.array(np.random.default_rng(0).normal(size=(6, 2)))
    y[1, 0], y[3] = np.nan, np.nan
    data = ss.Series(y, times=np.array([0.0, 0.5, 0.7, 2.0, 2.2, 4.0]))
    known = linear_model(ss.AffineGaussian(LOADINGS, OFFSET, SCALE))
    model = linear_model(ss.GeneralisedLinear(LOADINGS, OFFSET, "gaussian", scale=SCALE))
    exact, got = ss.smooth(known, data), ss.smooth(model, data, method=method)
    np.testing.assert_allclose(got.mean, exact.mean, atol=1e-9)
    np.testing.assert_allclose(got.covariance, exact.covariance, atol=1e-9)
    np.testing.assert_allclose(got.log_likelihood, exact.log_likelihood, atol=1e-9)
    np.testing.assert_allclose(got.innovations, exact.innovations, atol=1e-9)


def test_linear_models_are_left_to_kalman():
    known = linear_model(ss.AffineGaussian(LOADINGS, OFFSET, SCALE))
    y = np.ones((6, 2))
    exact = ss.log_likelihood(known, y)
    for method in (ss.Laplace(), ss.ConjugateVI(), ss.ExpectationPropagation()):
        np.testing.assert_allclose(ss.log_likelihood(known, y, method=method), exact, rtol=1e-12)


def bound(mean, variance, y, prior):
    """The evidence lower bound of one count whose logarithmic rate has a normal prior."""
    expected = y * mean - np.exp(mean + variance / 2) - gammaln(y + 1)
    divergence = 0.5 * ((variance + mean**2) / prior - 1 - np.log(variance / prior))
    return expected - divergence


def test_undamped_steps_that_oscillate_are_reported_and_the_best_returned():
    model = ss.Model(
        ss.Gaussian(jnp.zeros(1), jnp.array([3.0])),
        ss.AffineGaussian(jnp.eye(1), scale=jnp.ones(1)),
        ss.GeneralisedLinear([[1.0]], None, "poisson"),
    )
    y = np.zeros(1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        good = ss.smooth(model, y, method=ss.ConjugateVI())
    with pytest.warns(
        ss.ConvergenceWarning, match="did not converge in 30 iterations.*back and fo"
    ):
        bad = ss.smooth(model, y, method=ss.ConjugateVI(damping=0.0, iterations=30))
    assert bool(good.convergence.converged)
    assert bool(bad.convergence.oscillates)
    for got in (good, bad):
        value = bound(float(got.mean[0, 0]), float(got.covariance[0, 0, 0]), 0.0, 9.0)
        np.testing.assert_allclose(got.log_likelihood, value, rtol=1e-6)
    means, variances = np.arange(-3, -1, 0.02), np.arange(1, 7, 0.05)
    grid = [bound(m, v, 0.0, 9.0) for m in means for v in variances]
    np.testing.assert_allclose(good.log_likelihood, max(grid), atol=1e-3)
    assert max(grid) - 1 < float(bad.log_likelihood) < float(good.log_likelihood)


def test_the_filter_knows_the_past_alone_and_online_gives_the_same():
    method = ss.ExpectationPropagation()
    one = ss.filter(POISSON, COUNTS, method=method)
    other = ss.filter(POISSON, np.array([3.0, 0.0, 9.0, np.nan]), method=method)
    np.testing.assert_allclose(one.mean[:2], other.mean[:2], rtol=1e-12)
    assert abs(one.mean[2, 0] - other.mean[2, 0]) > 0.1
    np.testing.assert_allclose(other.pointwise[3], 0, atol=1e-12)
    decoder = ss.online(POISSON, method)
    state = decoder.init()
    for y in COUNTS:
        state = decoder.update(state, y)
    np.testing.assert_allclose(state.mean, one.mean[-1], atol=1e-10)
    np.testing.assert_allclose(state.log_likelihood, one.log_likelihood, atol=1e-9)


@pytest.mark.slow
def test_panels_and_single_precision():
    method = ss.Laplace()
    both = ss.smooth(POISSON, [COUNTS, COUNTS[:2]], method=method)
    alone = ss.smooth(POISSON, COUNTS, method=method)
    np.testing.assert_allclose(both[0].mean, alone.mean, atol=1e-9)
    np.testing.assert_allclose(both[0].log_likelihood, alone.log_likelihood, atol=1e-9)
    assert both[1].mean.shape == (2, 1)
    small = jax.tree.map(lambda x: x.astype(jnp.float32), POISSON)
    got = ss.smooth(small, COUNTS.astype(np.float32), method=method)
    assert got.mean.dtype == jnp.float32
    assert bool(got.convergence.converged)
    np.testing.assert_allclose(got.mean, alone.mean, atol=1e-4)


def test_moments_of_counts_to_come_are_those_of_lognormal_rates():
    loadings, offset = np.array([[1.0, 0.5], [-0.4, 0.8], [0.3, -0.9]]), np.array([0.3, 0.1, 0.5])
    mean, covariance = np.array([0.2, -0.1]), np.array([[0.4, 0.1], [0.1, 0.3]])
    observation = ss.GeneralisedLinear(loadings, offset, "poisson")
    step = Step(0, 0.0, 1.0)
    got = observation_moments(
        observation, step, jnp.array(mean), jnp.array(covariance), "covariance"
    )
    s = loadings @ covariance @ loadings.T
    rate = np.exp(loadings @ mean + offset + np.diag(s) / 2)
    np.testing.assert_allclose(got[0], rate, rtol=1e-10)
    expected = np.outer(rate, rate) * np.expm1(s) + np.diag(rate)
    np.testing.assert_allclose(got[1], expected, rtol=1e-8)


@pytest.mark.slow
def test_forecasts_of_counts():
    made = ss.forecast(POISSON, COUNTS, 1, method=ss.ExpectationPropagation())
    m, v = float(made.posterior.mean[-1, 0]) + 0.3, float(made.posterior.covariance[-1, 0, 0])
    rate = np.exp(m + v / 2)
    np.testing.assert_allclose(made.mean, [[rate]], rtol=1e-9)
    np.testing.assert_allclose(made.covariance, [[[rate + rate**2 * np.expm1(v)]]], rtol=1e-8)
    draws = made.sample(jax.random.key(0), 4000)
    assert draws.shape == (4000, 1, 1)
    np.testing.assert_allclose(draws.mean(), rate, rtol=0.1)
    np.testing.assert_array_equal(made.quantile(0.5), np.round(made.quantile(0.5)))
    x, w = np.polynomial.hermite_e.hermegauss(60)
    eta = m + np.sqrt(v) * x
    density = w @ np.exp(2 * eta - np.exp(eta) - gammaln(3)) / w.sum()
    np.testing.assert_allclose(made.log_scores(jnp.array([[2.0]])), [np.log(density)], atol=1e-3)


def test_forecasts_of_ordered_grades():
    """A grid over the state; the moments are of the grade's number."""
    grades = lambda eta: dist.OrderedLogistic(eta, jnp.array([-1.0, 1.0]))
    model = walk(ss.GeneralisedLinear([[1.0]], [0.3], grades))
    y = np.array([0.0, 1.0, 2.0, 2.0])
    x = np.linspace(-7, 7, 1401)
    below = expit(np.array([-1.0, 1.0])[:, None] - (x + 0.3))
    chances = np.diff(below, axis=0, prepend=0.0, append=1.0)  # (3, x)
    moved = stats.norm(0.8 * x + 0.1, 0.5).pdf(x[:, None]) * (x[1] - x[0])
    density = stats.norm(0.2, 0.9).pdf(x)
    for grade in y.astype(int):
        density = moved @ (chances[grade] * density)
        density /= density.sum()
    p = chances @ density
    made = ss.forecast(model, y, 1, method=ss.ExpectationPropagation())
    mean = p @ np.arange(3)
    np.testing.assert_allclose(made.mean, [[mean]], atol=2e-3)
    np.testing.assert_allclose(made.std, [[np.sqrt(p @ (np.arange(3) - mean) ** 2)]], atol=2e-3)
    scores = [made.log_scores(jnp.full((1, 1), float(k)))[0] for k in range(3)]
    np.testing.assert_allclose(scores, np.log(p), atol=5e-3)
    draws = np.asarray(made.sample(jax.random.key(0), 4000)).ravel().astype(int)
    np.testing.assert_allclose(np.bincount(draws) / 4000, p, atol=0.03)
    table = made.to_pandas()["y"]
    assert table.index.tolist() == [4.0]
    assert table[["lower", "upper"]].to_numpy().tolist() == [[0.0, 2.0]]
    np.testing.assert_allclose(table[["mean", "std"]], np.hstack([made.mean, made.std]))


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: ss.Laplace(iterations=0), ValueError, "`iterations` of Laplace must be a whole"),
        (lambda: ss.Laplace(tolerance=-1.0), ValueError, "`tolerance` of Laplace must not be neg"),
        (lambda: ss.ConjugateVI(damping=1.0), ValueError, "`damping` of ConjugateVI must be at le"),
        (lambda: ss.ConjugateVI(points=20), TypeError, "`points` of ConjugateVI must be a rule"),
        (
            lambda: ss.Laplace(linearisation="simplex"),
            ValueError,
            "`linearisation` of Laplace must",
        ),
        (
            lambda: ss.ExpectationPropagation(power=0.0),
            ValueError,
            r"`power` of ExpectationPropagation must be above 0.*ConjugateVI\(\)",
        ),
        (lambda: ss.Laplace(form="qr"), ValueError, "`form` of Laplace must be"),
    ],
)
def test_settings_out_of_range_are_refused(make, error, match):
    with pytest.raises(error, match=match):
        make()


def test_models_that_do_not_fit_are_refused():
    flat = ss.Model(
        ss.Gaussian(jnp.zeros(1), jnp.zeros(1), diffuse=(True,)),
        POISSON.transition,
        POISSON.observation,
    )
    with pytest.raises(ValueError, match=r"Laplace needs a state .*give it a finite scale"):
        ss.smooth(flat, COUNTS, method=ss.Laplace())
    with pytest.raises(ValueError, match="2 channels"):
        ss.smooth(POISSON, np.ones((4, 2)), method=ss.Laplace())
    with pytest.raises(ValueError, match="counts 0, 1, 2"):
        ss.smooth(POISSON, -COUNTS, method=ss.Laplace())
    wide = ss.Model(
        POISSON.initial,
        lambda x, step: dist.Normal(jnp.zeros(2), 1.0).to_event(1),
        POISSON.observation,
    )
    with pytest.raises(ValueError, match="`transition` of the model gives values of shape"):
        ss.smooth(wide, COUNTS, method=ss.Laplace())


@pytest.mark.slow
def test_plots_show_the_states_and_forecasts_the_observations():
    method = ss.Laplace()
    posterior = ss.smooth(POISSON, COUNTS, method=method)
    ax = ss.plot.smoothed(posterior)
    low, high = posterior.interval(0.9)
    bottom, top = ax.get_ylim()
    assert bottom < float(low.min())
    assert top > float(high.max())
    made = ss.forecast(POISSON, COUNTS, 1, method=method)
    assert ss.plot.forecast(made, COUNTS).get_ylim()[1] > COUNTS.max()
