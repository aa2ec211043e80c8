"""Particle marginal Metropolis–Hastings against the exact posterior on a grid."""

import jax
import numpy as np
import pytest
from linear_problem import FREE, PRIORS, model, on_a_grid, recordings

import statespace as ss
from statespace.learners.filter_noise import Correlated
from statespace.learners.problem import Problem, vector


@pytest.fixture(scope="module")
def drawn():
    learner = ss.ParticleMarginalMetropolis(warmup=300, samples=1000, chains=4)
    method = ss.ParticleFilter(particles=150)
    data, key = recordings(), jax.random.key(0)
    return ss.fit(model(), data, learner=learner, priors=PRIORS, key=key, method=method)


@pytest.mark.slow
def test_moments_are_those_of_the_grid(drawn):
    """Means within 5 Monte Carlo errors, standard deviations within a quarter."""
    mean, sd = on_a_grid(recordings())
    for i, name in enumerate(FREE):
        draws, effective = drawn.draws[name], float(drawn.effective[name].squeeze())
        assert effective > 200
        assert abs(draws.mean() - mean[i]) < 5 * sd[i] / effective**0.5
        np.testing.assert_allclose(draws.std(), sd[i], rtol=0.25)


@pytest.mark.slow
def test_what_is_reported(drawn):
    assert 0.1 < drawn.statistics["accepted"].mean() < 0.35  # tuned to 0.2
    assert 0.1 < drawn.log_likelihood_variance < 4
    exact = ss.log_likelihood(drawn.model, recordings())
    error = np.sqrt(drawn.log_likelihood_variance / 32)
    assert abs(drawn.log_likelihood - exact) < 5 * error
    assert "one estimate: ±" in drawn.summary()
    assert drawn.free == list(FREE)


def test_too_few_particles_are_warned_of():
    learner = ss.ParticleMarginalMetropolis(warmup=0, samples=4, chains=1)
    sharp = ss.replace(model(), {"observation_scale": np.array([0.02])})
    method, key = ss.ParticleFilter(particles=5), jax.random.key(0)
    with pytest.warns(ss.ConvergenceWarning):
        fitted = ss.fit(
            sharp, recordings()[1], learner=learner, priors=PRIORS, key=key, method=method
        )
    assert fitted.log_likelihood_variance > 10


@pytest.fixture(scope="module")
def problem():
    data = ss.series.as_data(recordings()).drop_labels()
    return Problem(model(), data, PRIORS, ss.ParticleFilter(20))


def test_the_correlated_estimate_is_unbiased_and_its_noise_keeps_its_law(problem):
    """Means of the likelihood over its exact value are one, before and after steps, within 4.5 errors.

    Estimates one step apart are near each other: their difference varies by less than a fifth of what that of
    independent ones does.
    """
    noise, z = Correlated(40, 0.99), vector(problem)

    @jax.jit
    @jax.vmap
    def pair(key):
        first, second = jax.random.split(key)
        begun = noise.draw(problem, first)
        after = noise.move(begun, second)
        return tuple(noise.log_density(problem, z, u) for u in (begun, after))

    prior = problem.log_prior(z, volume=True)
    exact = ss.log_likelihood(problem.model, recordings())
    pairs = pair(jax.random.split(jax.random.key(2), 1000))
    each = np.stack([np.asarray(p - prior - exact) for p in pairs])
    ratio = np.exp(each)
    assert np.all(np.abs(ratio.mean(axis=1) - 1) < 4.5 * ratio.std(axis=1) / 1000**0.5)
    assert (each[0] - each[1]).var() < 2 * each[0].var() / 5


@pytest.mark.slow
def test_the_correlated_version_has_the_same_posterior():
    """Correlated enough to matter, and not so much that the filter's noise itself moves too slowly."""
    learner = ss.ParticleMarginalMetropolis(warmup=300, samples=1000, chains=4, correlation=0.8)
    fitted = ss.fit(
        model(),
        recordings(),
        learner=learner,
        priors=PRIORS,
        key=jax.random.key(0),
        method=ss.ParticleFilter(particles=80),
    )
    mean, sd = on_a_grid(recordings())
    for i, name in enumerate(FREE):
        draws, effective = fitted.draws[name], float(fitted.effective[name].squeeze())
        assert effective > 80
        assert abs(draws.mean() - mean[i]) < 5 * sd[i] / effective**0.5
        np.testing.assert_allclose(draws.std(), sd[i], rtol=0.3)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"key": None}, ValueError, "give .*key"),
        ({"priors": None}, ValueError, "needs a prior for every free parameter"),
        ({"method": ss.Kalman()}, TypeError, "use NUTS"),
        ({"settings": {"samples": 2}}, ValueError, "`samples` must be at least 4"),
        ({"settings": {"correlation": 1.0}}, ValueError, "`correlation` must be in"),
        (
            {"settings": {"correlation": 0.9}, "method": ss.BackwardSampling(10)},
            TypeError,
            "is for the bootstrap filter",
        ),
        ({"settings": {"target_accept": 0.0}}, ValueError, "between 0 and 1"),
    ],
)
def test_refused(arguments, error, message):
    given = {"priors": PRIORS, "key": jax.random.key(0), "method": ss.ParticleFilter(10)}
    given |= arguments
    settings = given.pop("settings", {})
    with pytest.raises(error, match=message):
        ss.fit(model(), np.zeros(5), learner=ss.ParticleMarginalMetropolis(**settings), **given)
