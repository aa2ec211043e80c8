"""SMC² against quadrature over a model of one parameter."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from linear_problem import PRIORS, model

import statespace as ss

ONE = "transition_matrix"
PRIOR = {ONE: PRIORS[ONE]}


def of_one_parameter(matrix=0.8):
    return ss.freeze(model(matrix), "transition_scale")


@pytest.fixture(scope="module")
def data():
    """Thirty moments, of which one is missing."""
    y = np.array(ss.simulate(model(), 30, key=jax.random.key(3)).y)
    y[7] = np.nan
    return y


@pytest.fixture(scope="module")
def exact(data):
    """Log evidence, posterior mean and standard deviation by quadrature on a fine grid."""
    grid = jnp.linspace(-1.5, 2.5, 2001)
    height = lambda a: ss.log_likelihood(of_one_parameter(a), data) + PRIOR[ONE].log_prob(a)
    value = np.asarray(jax.jit(jax.vmap(height))(grid))
    weights = np.exp(value - value.max())
    step = float(grid[1] - grid[0])
    mean = weights @ grid / weights.sum()
    sd = np.sqrt(weights @ (grid - mean) ** 2 / weights.sum())
    return value.max() + np.log(weights.sum() * step), mean, sd


def fitted(data, key, method, **settings):
    return ss.fit(
        of_one_parameter(0.0),
        data,
        learner=ss.SMC2(**settings),
        priors=PRIOR,
        key=key,
        method=method,
    )


def check(result, exact, runs):
    """The evidence to 0.25 nats (5 standard errors, about 0.05 for 400 vectors), moments likewise."""
    evidence, mean, sd = exact
    assert abs(result.log_evidence - evidence) < 0.25
    draws = result.draws[ONE].ravel()
    assert abs(draws.mean() - mean) < 5 * sd / np.sqrt(runs)
    np.testing.assert_allclose(draws.std(), sd, rtol=0.25)


def test_evidence_and_posterior_with_an_exact_likelihood(data, exact, key):
    result = fitted(data, key, ss.Kalman(), parameters=400)
    check(result, exact, 200)
    assert result.log_likelihood_variance is None
    assert "Log evidence" in result.summary()


@pytest.mark.slow
def test_evidence_and_posterior_with_filters_that_are_doubled(data, exact, key):
    """Four particles are too few, so they become more on the way."""
    settings = {"parameters": 400, "least_accepted": 0.3, "most_particles": 64}
    result = fitted(data, key, ss.ParticleFilter(particles=4), **settings)
    check(result, exact, 100)
    assert "filters of" in result.learner
    assert "filters of 4 particles" not in result.learner


@pytest.mark.slow
def test_filters_that_stick_are_warned_of(data, key):
    """Two particles at a noise so small that no proposal is accepted, and no more allowed."""
    sharp = ss.replace(of_one_parameter(), {"observation_scale": np.array([0.05])})
    learner = ss.SMC2(parameters=40, moves=1, most_particles=2)
    with pytest.warns(ss.ConvergenceWarning):
        ss.fit(
            sharp,
            data,
            learner=learner,
            priors=PRIOR,
            key=key,
            method=ss.ParticleFilter(particles=2),
        )


@pytest.mark.parametrize(
    ("settings", "priors", "message"),
    [
        ({"parameters": 2}, PRIOR, "`parameters` must be at least 8"),
        ({"threshold": 0.0}, PRIOR, "`threshold` must be above 0"),
        ({"least_accepted": 1.0}, PRIOR, "`least_accepted` must be in"),
        ({}, None, "SMC2 needs a prior for every free parameter"),
        (
            {},
            {ONE: dist.ImproperUniform(dist.constraints.real, (), (1, 1))},
            "SMC2 draws from the priors, and that of 'transition_matrix' is improper",
        ),
    ],
)
def test_refused(data, key, settings, priors, message):
    with pytest.raises(ValueError, match=message):
        ss.fit(of_one_parameter(), data, learner=ss.SMC2(**settings), priors=priors, key=key)
