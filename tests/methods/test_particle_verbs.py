"""Particle methods through the verbs: keys, panels, forecasts, residuals, the filter that is fed, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import particle_models as models
import pytest

import statespace as ss
from statespace.learners.likelihood import standardised_errors

key = models.keys[0]
filter_of = ss.ParticleFilter(100)

volatility = ss.Model(
    lambda step: dist.Normal(jnp.zeros(1), 0.6).to_event(1),
    lambda x, step: dist.Normal(0.9 * x, 0.3).to_event(1),
    lambda x, step: dist.Normal(0.0, jnp.exp(x / 2)).to_event(1),
)
returns = np.array([0.3, -1.2, 0.4, 2.0, -0.1, 0.5])


def test_default_is_a_particle_method_and_asks_for_a_key():
    """Neither linear Gaussian nor finite: particles, and no result without a key."""
    for verb in (ss.filter, ss.smooth, ss.log_likelihood):
        with pytest.raises(
            ValueError, match=r"draws at random: give `key=`.*`transition` of this model"
        ):
            verb(volatility, returns)
    with pytest.raises(ValueError, match="BackwardSampling draws at random"):
        ss.smooth(volatility, returns)
    with pytest.raises(ValueError, match="give `key=`"):
        ss.online(volatility)
    with pytest.raises(ValueError, match="give `key=`"):
        ss.fit(volatility, returns)
    with pytest.raises(TypeError, match="`key` must be a PRNG key"):
        ss.filter(volatility, returns, key=0)
    found = ss.filter(volatility, returns, key=key)
    again = ss.filter(volatility, returns, key=key)
    assert isinstance(found, ss.ParticlePosterior)
    np.testing.assert_array_equal(found.mean, again.mean)
    assert ss.log_likelihood(volatility, returns, key=key) == found.log_likelihood


def test_exact_methods_do_not_change():
    """Linear and finite models have their exact methods, with or without a key."""
    assert ss.log_likelihood(models.linear, models.y, key=key) == ss.log_likelihood(
        models.linear, models.y
    )
    assert isinstance(ss.filter(models.weather, models.signs), ss.FinitePosterior)


def test_keys_of_a_panel():
    """Each recording has its own key, and a panel the sum of their log likelihoods."""
    parts = [models.y, models.y[:4]]
    both = ss.log_likelihood(models.linear, parts, method=filter_of, key=key)
    one, two = jax.random.split(key)
    # the key of a moment depends on the number of moments, and the second is padded to six
    padded = np.concatenate([parts[1], np.full((2, 2), np.nan)])
    apart = [
        ss.log_likelihood(models.linear, y, method=filter_of, key=k)
        for y, k in ((parts[0], one), (padded, two))
    ]
    np.testing.assert_allclose(both, sum(apart), rtol=1e-12)
    posteriors = ss.filter(models.linear, parts, method=filter_of, key=key)
    assert posteriors[1].mean.shape == (4, 2)
    np.testing.assert_allclose(posteriors[1].log_likelihood, apart[1], rtol=1e-12)


def test_forecast_against_kalman():
    """Observations to come, averaged over 100 filters, are Kalman's."""
    exact = ss.forecast(models.linear, models.y, 2)
    method = ss.ParticleFilter(200)
    found = [
        jax.vmap(
            lambda k: [
                getattr(ss.forecast(models.linear, models.y, 2, method=method, key=k), part)
                for part in ("mean", "std")
            ]
        )(models.keys[:100])
    ][0]
    for values, truth in zip(found, (exact.mean, exact.std)):
        error = np.std(values, axis=0) / 10
        assert np.all(np.abs(np.mean(values, axis=0) - truth) < 5 * error + 0.01)


def test_forecast_gives_paths_quantiles_and_scores():
    """The face of other forecasts."""
    method = ss.ParticleFilter(2000)
    exact = ss.forecast(models.linear, models.y, 2)
    made = ss.forecast(models.linear, models.y, 2, method=method, key=key)
    assert made.sample(key, 5).shape == (5, 2, 2)
    np.testing.assert_allclose(made.quantile(0.9), exact.quantile(0.9), atol=0.25)
    np.testing.assert_allclose(made.to_pandas(), exact.to_pandas(), atol=0.25)
    assert made.to_arviz(key, 3)["predictions"]["y"].shape == (1, 3, 2, 2)
    new = np.zeros((2, 2))
    found, truth = made.score(new), exact.score(new)
    np.testing.assert_allclose(found.pointwise.sum(), truth.pointwise.sum(), atol=0.3)


def test_residuals_against_kalman():
    """Of one channel the pseudo-residual is the standardised prediction error, up to Monte Carlo error."""
    model = ss.Model(
        ss.Gaussian([0.0], [1.0]),
        ss.AffineGaussian(jnp.array([[0.9]]), scale=jnp.array([0.7])),
        ss.AffineGaussian(jnp.array([[1.0]]), scale=jnp.array([0.5])),
    )
    series = ss.Series(models.signs)
    exact = standardised_errors(model, series, ss.Kalman())
    for proposal in ("bootstrap", "linearised"):
        method = ss.ParticleFilter(4000, proposal).with_key(key)
        found = standardised_errors(model, series, method)
        np.testing.assert_allclose(found, exact, atol=0.12)
    assert np.isnan(found[2, 0])


def test_online_filter():
    """The filter that is fed is reproducible by its key and agrees with Kalman's."""
    method = ss.ParticleFilter(4000, "linearised")

    def run(key):
        fed = ss.online(models.linear, method, key=key)
        state = fed.init(channels=2)
        for y in models.y:
            state = fed.update(state, y)
        return state

    one, again, other = run(key), run(key), run(models.keys[1])
    np.testing.assert_array_equal(one.particles, again.particles)
    assert one.log_likelihood != other.log_likelihood
    exact = ss.filter(models.linear, models.y)
    np.testing.assert_allclose(one.mean, exact.mean[-1], atol=0.15)
    np.testing.assert_allclose(one.std, exact.std[-1], atol=0.1)
    assert abs(one.log_likelihood - exact.log_likelihood) < 0.3
    with pytest.raises(ValueError, match="`time` must be after"):
        ss.online(models.linear, method, key=key).update(one, models.y[0], time=0.0)


def test_posterior_goes_to_pandas_and_arviz():
    """Tables by coordinate, and draws by chain."""
    pytest.importorskip("arviz")
    posterior = ss.filter(models.linear, models.y, method=filter_of, key=key)
    table = posterior.to_pandas()
    assert table.shape == (6, 8)
    assert (table["x0"]["lower"] <= table["x0"]["upper"]).all()
    data = posterior.to_arviz(draws=10)
    assert data["posterior"]["states"].shape == (1, 10, 6, 2)
    assert posterior.sample(key, 3).shape == (3, 6, 2)


def test_expectation_of_functions_and_functionals():
    """Means of functions of a state, and additive functionals of the path, are those of the particles."""
    posterior = ss.smooth(models.linear, models.y, method=filter_of, key=key)
    np.testing.assert_allclose(posterior.expectation(lambda x: x), posterior.mean)
    functional = ss.Additive(
        lambda before, x, step, y: before[0] * x[1] + step.dt, lambda x, step, y: x[0]
    )
    weights, x = np.exp(posterior.log_weights[-1]), np.asarray(posterior.particles)
    direct = weights @ (x[0, :, 0] + (x[:-1, :, 0] * x[1:, :, 1]).sum(axis=0)) + 5.0
    np.testing.assert_allclose(posterior.expectation(functional), direct, rtol=1e-10)
    filtered = ss.filter(models.linear, models.y, method=filter_of, key=key)
    with pytest.raises(ValueError, match="needs paths of states"):
        filtered.expectation(functional)


def uniform(x, step):
    """Zero outside of an interval round the state."""
    return dist.Uniform(x[0] - 1, x[0] + 1)


diffuse = ss.LocalLevel(level_scale=1.0, noise_scale=1.0)
noiseless = ss.Model(
    models.linear.initial, models.linear.transition, ss.AffineGaussian(models.H, scale=jnp.zeros(2))
)
bounded = ss.Model(ss.Gaussian([0.0], [1.0]), ss.AffineGaussian([[1.0]], scale=[1.0]), uniform)
crooked = ss.Model(volatility.initial, lambda x, step: dist.Normal(jnp.zeros(2), 1.0), uniform)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: ss.ParticleFilter(1),
            ValueError,
            "`particles` of ParticleFilter must be at least 2",
        ),
        (lambda: ss.ParticleFilter(threshold=2.0), ValueError, "`threshold` of ParticleFilter"),
        (
            lambda: ss.filter(bounded, [0.0, 50.0, 0.0], key=key),
            ValueError,
            r"row 1 .time 1. has density zero given every particle.*`observation` of the model .uniform",
        ),
        (
            lambda: ss.filter(diffuse, np.ones(3), method=filter_of, key=key),
            ValueError,
            "`initial` is diffuse",
        ),
        (
            lambda: ss.filter(noiseless, models.y, method=filter_of, key=key),
            ValueError,
            "`observation` of the model has no density",
        ),
        (
            lambda: ss.filter(crooked, np.ones(3), key=key),
            ValueError,
            "`transition` of the model gives states of shape",
        ),
        (
            lambda: ss.filter(volatility, np.ones((3, 2)), key=key),
            ValueError,
            "the data have 2 channels, but `observation`",
        ),
        (
            lambda: ss.filter(
                volatility, ss.Series(np.ones(3), state_weights=np.ones((3, 2))), key=key
            ),
            ValueError,
            "`state_weights` of the data are what is known of finitely many states",
        ),
    ],
)
def test_bad_input(call, error, message):
    """Messages name the argument or the conditional."""
    with pytest.raises(error, match=message):
        call()


def test_hamiltonian_sampling_is_refused():
    """NUTS needs a likelihood that does not change from call to call."""
    with pytest.raises(TypeError, match=r"NUTS needs a log likelihood.*ParticleMarginalMetropolis"):
        ss.fit(models.linear, models.y, learner=ss.NUTS(), method=filter_of, key=key)


def test_impossible_moments_have_no_likelihood():
    """The log likelihood of what no particle explains is minus infinity."""
    assert ss.log_likelihood(bounded, [0.0, 50.0, 0.0], key=key) == -jnp.inf
