"""Blocked Gibbs sampling against the posterior on a grid of the marginal likelihood."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy import stats

import statespace as ss
from statespace.chains import finite
from statespace.learners.gibbs import joint_density

MATRIX = np.array([[0.9, 0.1], [0.2, 0.8]])
PRIORS = {"emission.rate": dist.Gamma(2.0, 0.5)}


def model(rate=(2.0, 9.0)):
    chain = ss.HMM([0.5, 0.5], MATRIX, ss.emissions.Poisson(jnp.asarray(rate)))
    return ss.freeze(chain, "initial_probs", "transition")


@pytest.fixture(scope="module")
def sessions():
    """Two recordings of unequal length, with gaps."""
    y = np.asarray(ss.simulate(model(), 40, key=jax.random.key(1)).y)[:, 0].astype(float)
    y[5:8] = np.nan
    return [y, y[10:25] + 1]


@pytest.mark.slow
def test_moments_are_those_of_the_grid(sessions):
    """Means within 5 Monte Carlo errors, standard deviations within 20 percent."""
    low, high = np.linspace(0.3, 5, 80), np.linspace(4, 18, 100)
    grid = jnp.asarray(np.stack(np.meshgrid(low, high, indexing="ij"), axis=-1).reshape(-1, 2))
    value = jax.jit(jax.vmap(lambda r: ss.log_likelihood(model(r), sessions)))(grid)
    value = np.asarray(value) + stats.gamma(2, scale=2).logpdf(grid).sum(axis=1)
    weights = np.exp(value - value.max())
    weights /= weights.sum()
    mean = weights @ grid
    sd = np.sqrt(weights @ (grid - mean) ** 2)
    learner = ss.Gibbs(warmup=300, samples=2500, chains=2)
    fitted = ss.fit(model(), sessions, learner=learner, priors=PRIORS, key=jax.random.key(0))
    name = next(iter(fitted.draws))
    draws = fitted.draws[name].reshape(-1, 2)
    error = sd / np.sqrt(fitted.effective[name])
    assert np.all(fitted.effective[name] > 400)
    assert np.all(np.abs(draws.mean(axis=0) - mean) < 5 * error)
    np.testing.assert_allclose(draws.std(axis=0), sd, rtol=0.2)
    assert fitted.converged
    assert not fitted.statistics["diverging"].any()
    assert 0.6 < fitted.statistics["acceptance_rate"].mean() < 0.98


def test_the_joint_density_sums_to_the_likelihood(sessions):
    """Over all paths of a short recording, of which the last moments are padding."""
    y = np.array([1.0, 7.0, np.nan, 3.0])
    chain = ss.ForwardBackward().lower(model(), ss.Series(y))
    paths = jnp.asarray(list(itertools.product(range(2), repeat=4)))
    every = jax.vmap(lambda p: joint_density(chain, p, jnp.ones(4, bool)))(paths)
    expected = finite.log_likelihood(chain)
    np.testing.assert_allclose(jax.nn.logsumexp(every), expected, rtol=1e-12)
    short = ss.log_likelihood(model(), y[:2])
    within = jnp.array([True, True, False, False])
    first = jax.vmap(lambda p: joint_density(chain, p, within))(paths[::4])
    np.testing.assert_allclose(jax.nn.logsumexp(first), short, rtol=1e-12)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"key": None, "priors": PRIORS}, ValueError, "give `fit` a `key`"),
        ({"priors": {}}, ValueError, "prior"),
        ({"learner": lambda: ss.Gibbs(samples=2)}, ValueError, "`samples` must be at least 4"),
        ({"learner": lambda: ss.Gibbs(target_accept=1.0)}, ValueError, "between 0 and 1"),
    ],
)
def test_refused(sessions, arguments, error, message):
    settings = {"learner": ss.Gibbs, "priors": PRIORS, "key": jax.random.key(0)} | arguments
    with pytest.raises(error, match=message):
        ss.fit(model(), sessions, **settings | {"learner": settings["learner"]()})


def test_a_state_that_is_not_finite_is_refused(key):
    with pytest.raises(TypeError, match="Gibbs draws the states of a finite-state model"):
        ss.fit(ss.LocalLevel(1.0, 1.0), np.arange(5.0), learner=ss.Gibbs(), key=key)
