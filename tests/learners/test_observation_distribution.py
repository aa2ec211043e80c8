"""The law of the observations against one dense multivariate normal."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from dense_expectations import covariance, offsets
from numpyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO
from numpyro.infer.autoguide import AutoNormal
from scipy import stats

import statespace as ss

T = 7


def model(channels=2, inputs=0):
    rng = np.random.default_rng(1)
    return ss.LinearGaussian(
        transition_matrix=[[0.8, 0.3], [-0.2, 0.7]],
        transition_scale=[[0.5, 0.0], [0.1, 0.4]],
        observation_matrix=rng.normal(size=(channels, 2)),
        observation_scale=rng.uniform(0.3, 0.6, channels),
        initial_mean=[1.0, -2.0],
        initial_scale=[0.5, 1.0],
        transition_offset=[0.2, 0.0],
        observation_offset=rng.normal(size=channels),
        transition_input_matrix=rng.normal(size=(2, inputs)) if inputs else None,
    )


def dense(m, u=None):
    """Mean and covariance of all observations, flattened."""
    p = {k: np.asarray(v) for k, v in ss.parameters(m).items()}
    b, d = (np.asarray(v) for v in offsets(p, u, T))
    F, H = p["transition_matrix"], p["observation_matrix"]
    mean, cov = [p["initial_mean"]], [np.asarray(covariance(p["initial_scale"]))]
    for t in range(1, T):
        mean.append(F @ mean[-1] + b[t])
        cov.append(F @ cov[-1] @ F.T + np.asarray(covariance(p["transition_scale"])))
    k = len(H)
    whole = np.zeros((T, k, T, k))
    for s in range(T):
        for t in range(s, T):
            block = H @ np.linalg.matrix_power(F, t - s) @ cov[s] @ H.T
            whole[t, :, s, :], whole[s, :, t, :] = block, block.T
        whole[s, :, s, :] += np.diag(p["observation_scale"] ** 2)
    return (np.array(mean) @ H.T + d).ravel(), whole.reshape(T * k, T * k)


@pytest.mark.parametrize("channels", [1, 2])
def test_log_prob_and_moments(channels):
    m = model(channels)
    law = ss.ObservationDistribution(m, length=T)
    shape = (T,) if channels == 1 else (T, channels)
    assert law.event_shape == shape
    assert law.batch_shape == ()
    mean, cov = dense(m)
    rng = np.random.default_rng(0)
    value = mean + rng.normal(size=(3, 2, T * channels))
    expected = stats.multivariate_normal(mean, cov).logpdf(value)
    ours = law.log_prob(value.reshape(3, 2, *shape))
    np.testing.assert_allclose(ours, expected, rtol=1e-10)
    np.testing.assert_allclose(law.mean, mean.reshape(shape), rtol=1e-10)
    np.testing.assert_allclose(law.variance, np.diag(cov).reshape(shape), rtol=1e-10)


def test_missing_entries_are_integrated_out():
    m = model()
    mean, cov = dense(m)
    value = mean + np.random.default_rng(0).normal(size=2 * T)
    value[[1, 4, 5, 9]] = np.nan
    seen = ~np.isnan(value)
    expected = stats.multivariate_normal(mean[seen], cov[np.ix_(seen, seen)]).logpdf(value[seen])
    law = ss.ObservationDistribution(m, length=T, validate_args=True)
    y = value.reshape(T, 2)
    np.testing.assert_allclose(law.log_prob(y), expected, rtol=1e-10)
    np.testing.assert_allclose(jax.jit(law.log_prob)(y), expected, rtol=1e-10)
    assert np.all(law.support(y))
    assert not law.support(np.where(np.isnan(y), np.inf, y))


def test_inputs():
    u = np.random.default_rng(3).normal(size=(T, 2))
    m = model(inputs=2)
    mean, cov = dense(m, u)
    law = ss.ObservationDistribution(m, inputs=u)
    value = mean + 0.3
    expected = stats.multivariate_normal(mean, cov).logpdf(value)
    np.testing.assert_allclose(law.log_prob(value.reshape(T, 2)), expected, rtol=1e-10)


def test_irregular_times():
    """A stationary Ornstein-Uhlenbeck process with noise has covariance v exp(-rate |t - s|) + r."""
    times = np.array([0.0, 0.3, 1.7, 1.8, 4.0])
    process = ss.OrnsteinUhlenbeck(rate=0.7, scale=1.1, noise_scale=0.4)
    cov = 1.1**2 / 1.4 * np.exp(-0.7 * np.abs(times[:, None] - times)) + 0.16 * np.eye(5)
    value = np.array([0.2, -1.0, 0.5, 0.7, 0.1])
    expected = stats.multivariate_normal(np.zeros(5), cov).logpdf(value)
    law = ss.ObservationDistribution(process, times=times)
    np.testing.assert_allclose(law.log_prob(value), expected, rtol=1e-10)


@pytest.mark.parametrize("form", ["covariance", "sqrt"])
def test_samples_have_the_dense_moments(form, key):
    """20,000 draws: means within 4.5 standard errors, whitened covariance within 0.06 of the identity."""
    m = model()
    law = ss.ObservationDistribution(m, length=T, method=ss.Kalman(form=form))
    draws = np.asarray(law.sample(key, (4, 5000))).reshape(20_000, 2 * T)
    mean, cov = dense(m)
    assert np.all(np.abs(draws.mean(axis=0) - mean) < 4.5 * np.sqrt(np.diag(cov) / 20_000))
    white = np.linalg.solve(np.linalg.cholesky(cov), (draws - mean).T)
    np.testing.assert_allclose(np.cov(white), np.eye(2 * T), atol=0.06)


def test_of_a_finite_state(key):
    """log_prob is that of the verb, moments those of the mixtures, draws have those moments."""
    level = jnp.array([0.0, 3.0])
    chain = ss.Model(
        ss.Categorical([0.9, 0.1]),
        ss.FiniteKernel([[0.8, 0.2], [0.3, 0.7]]),
        lambda z, step: dist.Normal(level[z], 0.5),
    )
    law = ss.ObservationDistribution(chain, length=4)
    y = jnp.array([0.1, 2.5, jnp.nan, 0.3])
    np.testing.assert_allclose(law.log_prob(y), ss.log_likelihood(chain, y), rtol=1e-12)
    p = np.array([0.9, 0.1])
    for t in range(4):
        np.testing.assert_allclose(law.mean[t], 3 * p[1], rtol=1e-12)
        np.testing.assert_allclose(law.variance[t], 0.25 + 9 * p[0] * p[1], rtol=1e-12)
        p = p @ np.array([[0.8, 0.2], [0.3, 0.7]])
    draws = law.sample(key, (5000,))
    assert draws.shape == (5000, 4)
    error = np.sqrt(np.asarray(law.variance) / 5000)
    assert np.all(np.abs(draws.mean(axis=0) - law.mean) < 4.5 * error)


def test_is_a_pytree():
    law = ss.ObservationDistribution(model(), length=T)
    leaves, tree = jax.tree.flatten(law)
    again = jax.tree.unflatten(tree, leaves)
    value = jnp.ones((T, 2))
    through = jax.jit(lambda law, value: law.log_prob(value))(law, value)
    for other in (again.log_prob(value), through):
        np.testing.assert_allclose(other, law.log_prob(value), rtol=1e-12)
    assert again.event_shape == (T, 2)
    slope = jax.grad(lambda law: law.log_prob(value))(law)
    assert np.isfinite(slope.model.transition_matrix).all()


def program(y=None, length=40):
    level = numpyro.sample("level", dist.HalfNormal(2.0))
    trend = ss.LinearGaussian([[1.0]], level[None], [[1.0]], [1.0], [0.0], [1.0])
    numpyro.sample("y", ss.ObservationDistribution(trend, length=length), obs=y)


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(2)
    y = np.cumsum(0.8 * rng.normal(size=40)) + rng.normal(size=40)
    y[10:13] = np.nan
    points = np.linspace(0.01, 4, 400)
    made = lambda a: ss.LinearGaussian([[1.0]], a[None], [[1.0]], [1.0], [0.0], [1.0])
    density = jax.vmap(lambda a: ss.log_likelihood(made(a), y))(jnp.asarray(points))
    density = np.asarray(density) + stats.halfnorm(scale=2).logpdf(points)
    weights = np.exp(density - density.max())
    mean = weights @ points / weights.sum()
    return y, mean, np.sqrt(weights @ (points - mean) ** 2 / weights.sum())


def test_inside_a_program_under_nuts(data, key):
    y, mean, sd = data
    chain = MCMC(NUTS(program), num_warmup=200, num_samples=800, progress_bar=False)
    chain.run(key, y)
    draws = chain.get_samples()
    assert abs(draws["level"].mean() - mean) < 5 * sd / np.sqrt(150)  # at least 150 effective draws
    np.testing.assert_allclose(draws["level"].std(), sd, rtol=0.25)
    predicted = Predictive(program, {"level": draws["level"][:20]})(key, None)
    assert predicted["y"].shape == (20, 40)


def test_inside_a_program_under_svi(data, key):
    """A normal in the logarithm fits this posterior well enough to be within half its spread."""
    y, mean, sd = data
    guide = AutoNormal(program)
    run = SVI(program, guide, numpyro.optim.Adam(0.03), Trace_ELBO(10)).run(
        key, 500, y, progress_bar=False
    )
    draws = guide.sample_posterior(key, run.params, sample_shape=(4000,))["level"]
    assert abs(draws.mean() - mean) < sd / 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "needs the number of moments"),
        ({"length": 0}, "at least 1"),
        ({"length": 3, "times": np.arange(4.0)}, "`length` is 3, but `times` has 4"),
        ({"length": 3, "inputs": np.zeros((4, 1))}, "`length` is 3, but `inputs` has 4"),
        ({"times": np.array([0.0, 2.0, 1.0])}, "increas"),
    ],
)
def test_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ss.ObservationDistribution(model(), **arguments)


def test_values_of_another_shape():
    law = ss.ObservationDistribution(model(), length=T)
    with pytest.raises(ValueError, match=r"shape \(\.\.\., 7, 2\), got \(7,\)"):
        law.log_prob(np.zeros(T))


def test_a_diffuse_model_cannot_be_sampled(key):
    law = ss.ObservationDistribution(ss.LocalLevel(level_scale=1.0, noise_scale=1.0), length=5)
    with pytest.raises(ValueError, match=r"diffuse.*finite scale"):
        law.sample(key)
    assert np.isfinite(law.log_prob(np.arange(5.0)))
