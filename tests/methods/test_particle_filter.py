"""Particle filters against Kalman and forward–backward."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import particle_models as models
import pytest

import statespace as ss
from statespace.methods import proposals


def replicates(model, data, method):
    """Log likelihoods of 1,000 independent filters, in one call."""
    return jax.vmap(lambda key: ss.log_likelihood(model, data, method=method, key=key))(models.keys)


CASES = {
    "bootstrap": (models.linear, models.y, "bootstrap", {}),
    "functions": (models.written, models.y, "bootstrap", {"resampling": "stratified"}),
    "linearised": (models.linear, models.y, "linearised", {}),
    "linearised functions": (models.mixed, models.y, proposals.Linearised(degrees=5.0), {}),
    "auxiliary": (models.linear, models.y, proposals.Auxiliary("linearised"), {}),
    "given": (models.linear, models.y, models.nearer, {"threshold": 1.0}),
    "irregular": (models.diffusion, ss.Series(models.y, models.times), "linearised", {}),
    "finite": (models.weather, models.signs, "bootstrap", {}),
    "finite auxiliary": (models.weather, models.signs, "auxiliary", {"threshold": 1.0}),
}


@pytest.mark.parametrize("case", CASES)
def test_likelihood_is_unbiased(case):
    """The mean of exp(log Z - log p(y)) over 1,000 filters is 1 within five standard errors."""
    model, data, proposal, settings = CASES[case]
    exact = ss.log_likelihood(models.linear if "functions" in case else model, data)
    found = replicates(model, data, ss.ParticleFilter(16, proposal, **settings))
    ratio = np.exp(np.asarray(found) - float(exact))
    error = ratio.std() / np.sqrt(len(ratio))
    assert 0 < error < 0.1
    assert abs(ratio.mean() - 1) < 5 * error


def test_functions_and_structures_are_the_same_filter():
    """What is drawn and weighed is the same whether the model says its structure or not."""
    method = ss.ParticleFilter(50)
    key = jax.random.key(1)
    one, two, three = (
        ss.filter(model, models.y, method=method, key=key)
        for model in (models.linear, models.written, models.mixed)
    )
    np.testing.assert_allclose(one.log_likelihood, two.log_likelihood, rtol=1e-10)
    np.testing.assert_allclose(one.particles, two.particles, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(one.log_weights, three.log_weights, rtol=1e-8)


def test_moments_against_kalman():
    """Filtered means and deviations of 100 filters agree with Kalman's within five standard errors."""
    exact = ss.filter(models.linear, models.y)
    method = ss.ParticleFilter(400)

    def one(key):
        posterior = ss.filter(models.linear, models.y, method=method, key=key)
        return posterior.mean, posterior.std, posterior.quantile(0.9)

    found = jax.vmap(one)(models.keys[:100])
    for values, truth in zip(found, (exact.mean, exact.std, exact.quantile(0.9))):
        error = np.std(values, axis=0) / 10
        # of self-normalised weights there is a bias of order 1/N besides, of the size of the posterior
        assert np.all(np.abs(np.mean(values, axis=0) - truth) < 5 * error + 3 / 400)


def test_finite_probabilities_against_forward_backward():
    """Filtered probabilities agree, and draws are states."""
    exact = ss.filter(models.weather, models.signs)
    method = ss.ParticleFilter(400)
    one = lambda key: ss.filter(models.weather, models.signs, method=method, key=key).probs
    found = jax.vmap(one)(models.keys[:100])
    error = np.std(found, axis=0) / 10
    assert np.all(np.abs(np.mean(found, axis=0) - exact.probs) < 5 * error + 2 / 400)
    posterior = ss.filter(models.weather, models.signs, method=method, key=models.keys[0])
    assert set(np.unique(posterior.sample(jax.random.key(1), 20))) <= {0, 1}
    np.testing.assert_allclose(posterior.to_pandas().sum(axis=1), 1)


def test_semi_markov_states_are_the_models_own():
    """Where a chain has parts of states, results are of the states."""
    stays = ss.durations.Poisson([2.0, 3.0], maximum=6)
    swap = [[0.0, 1.0], [1.0, 0.0]]
    model = ss.HiddenSemiMarkov([0.6, 0.4], swap, stays, models.weather.observation)
    exact = ss.filter(model, models.signs)
    method = ss.ParticleFilter(400)
    one = lambda key: ss.filter(model, models.signs, method=method, key=key).probs
    found = jax.vmap(one)(models.keys[:100])
    error = np.std(found, axis=0) / 10
    assert np.all(np.abs(np.mean(found, axis=0) - exact.probs) < 5 * error + 2 / 400)


def test_smoothed_by_ancestors():
    """The filter's lineages smooth a short recording as Kalman does."""
    exact = ss.smooth(models.linear, models.y)
    method = ss.ParticleFilter(400)
    one = lambda key: ss.smooth(models.linear, models.y, method=method, key=key).mean
    found = jax.vmap(one)(models.keys[:100])
    error = np.std(found, axis=0) / 10
    assert np.all(np.abs(np.mean(found, axis=0) - exact.mean) < 5 * error + 0.02)


def test_missing_moments_change_no_weight():
    """A moment without observations has predictive density 1 and leaves the weights as they were."""
    posterior = ss.filter(
        models.linear, models.y, method=ss.ParticleFilter(50, threshold=0.0), key=models.keys[0]
    )
    assert abs(posterior.pointwise[4]) < 1e-12
    np.testing.assert_allclose(posterior.log_weights[4], posterior.log_weights[3], atol=1e-12)
    assert not np.any(posterior.resampled)


def test_integer_and_pytree_states():
    """States may be pytrees of numbers and counts; moments are taken leaf by leaf."""

    class Pair(dist.Distribution):
        support = dist.constraints.real

        def __init__(self, place, count):
            self.place, self.count = place, count
            super().__init__(validate_args=False)

        def sample(self, key, sample_shape=()):
            one, two = jax.random.split(key)
            place = self.place + jax.random.normal(one, sample_shape)
            return {"place": place, "count": jax.random.poisson(two, self.count, sample_shape)}

    model = ss.Model(
        lambda step: Pair(0.0, 3.0),
        lambda x, step: Pair(0.5 * x["place"], 3.0),
        lambda x, step: dist.Normal(x["place"] + x["count"], 1.0),
    )
    posterior = ss.filter(
        model, np.array([3.0, 2.0, 5.0]), method=ss.ParticleFilter(100), key=models.keys[0]
    )
    assert posterior.particles["count"].dtype == jnp.int64
    assert posterior.mean["place"].shape == (3,)
    assert posterior.covariance.shape == (3, 2, 2)
    assert ss.sample_states(
        model, np.array([3.0, 2.0, 5.0]), key=models.keys[0], draws=4, method=ss.ParticleFilter(100)
    )["place"].shape == (4, 3)


@pytest.mark.parametrize("proposal", ["bootstrap", "linearised"])
def test_precision_follows_the_data(proposal):
    """float32 in, float32 out, also where the session has float64."""
    model = jax.tree.map(lambda x: x.astype(jnp.float32), models.linear)
    posterior = ss.filter(
        model,
        models.y.astype(np.float32),
        method=ss.ParticleFilter(200, proposal),
        key=models.keys[0],
    )
    assert posterior.particles.dtype == jnp.float32
    assert posterior.log_likelihood.dtype == jnp.float32
    exact = ss.log_likelihood(models.linear, models.y)
    assert abs(posterior.log_likelihood - exact) < 1.5


@pytest.mark.slow
@pytest.mark.parametrize(("first", "exact"), [(1.0, -3080.53885), (0.33, -3099.31616)])
def test_likelihood_of_spike_counts(first, exact):
    """3,000 counts of a neuron: the exact log likelihood, by quadrature, within five standard errors."""
    try:
        counts = ss.datasets.load("thalamus")
    except OSError:
        pytest.skip("the data cannot be had here")
    model = ss.Model(
        ss.Gaussian([0.0], [first]),
        ss.AffineGaussian([[0.9981]], scale=[0.33]),
        lambda x, step: dist.BinomialLogits(x[0], total_count=50),
    )
    method = ss.ParticleFilter(1600, "linearised")
    series = ss.Series(np.asarray(counts, float))
    one = lambda key: ss.log_likelihood(model, series, method=method, key=key)
    found = np.asarray(jax.vmap(one)(models.keys[:16]))
    # the estimate is about log-normal, its mean without bias: so is the mean plus half the variance
    variance = found.var(ddof=1)
    assert variance < 4
    error = np.sqrt(variance / 16 + variance**2 / (2 * 15))
    assert abs(found.mean() + variance / 2 - exact) < 5 * error
