"""Gaussian sites: parameters drawn by their evidence, and steps that go back and forth."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
import scipy.stats as st

import statespace as ss

COUNTS = np.array([3.0, 1.0, np.nan, 4.0, 8.0, 5.0, 2.0, 0.0, 1.0, 2.0])


@pytest.mark.slow
def test_draws_of_a_rate_are_from_its_posterior_by_the_evidence(key):
    """NUTS by Laplace's evidence against that evidence on a grid, within four Monte Carlo errors."""
    method = ss.Laplace()
    model = ss.freeze(ss.SpikeCounts(0.8, 0.4, bias=[0.5]), "persistence", "scale")
    priors = {"bias": dist.Normal(jnp.zeros(1), 1.0)}
    learner = ss.NUTS(warmup=150, samples=450, chains=2, progress=False)
    drawn = ss.fit(model, COUNTS, learner=learner, priors=priors, method=method, key=key)
    grid = np.linspace(-1.5, 3.0, 61)
    one = lambda bias: method.log_likelihood(
        ss.SpikeCounts(0.8, 0.4, bias=bias[None]), ss.Series(COUNTS)
    )
    log = np.asarray(jax.jit(jax.vmap(one))(jnp.asarray(grid))) + st.norm(0, 1).logpdf(grid)
    weights = np.exp(log - log.max()) / np.exp(log - log.max()).sum()
    mean = weights @ grid
    deviation = np.sqrt(weights @ (grid - mean) ** 2)
    draws = np.asarray(drawn.draws["bias"]).reshape(-1)
    error = deviation / np.sqrt(float(np.ravel(drawn.effective["bias"])[0]))
    assert abs(draws.mean() - mean) < 4 * error
    np.testing.assert_allclose(draws.std(), deviation, rtol=0.2)


def test_undamped_expectation_propagation_that_oscillates_is_reported_and_mended_by_damping():
    """Two measurements with Cauchy noise that contradict each other: the posterior has two modes."""
    model = ss.Model(
        ss.Gaussian(jnp.zeros(1), jnp.ones(1)),
        ss.AffineGaussian(jnp.eye(1), scale=jnp.ones(1)),
        ss.GeneralisedLinear([[1.0], [1.0]], None, "student_t", scale=0.3, df=1.0),
    )
    y = np.array([[0.0, 2.0]])
    x, h = np.linspace(-40, 40, 200_001, retstep=True)
    seen = st.cauchy(x, 0.3)
    evidence = np.log(h * np.sum(st.norm(0, 1).pdf(x) * seen.pdf(0.0) * seen.pdf(2.0)))
    with pytest.warns(ss.ConvergenceWarning, match=r"did not converge in 60 iterations"):
        bad = ss.smooth(model, y, method=ss.ExpectationPropagation(damping=0.0, iterations=60))
    assert not bool(bad.convergence.converged)
    assert bool(bad.convergence.oscillates)
    assert np.isfinite(bad.mean).all()
    assert float(bad.covariance[0, 0, 0]) > 0
    for method in (ss.ExpectationPropagation(), ss.ExpectationPropagation(damping=0.7)):
        good = ss.smooth(model, y, method=method)
        assert bool(good.convergence.converged)
        assert abs(float(good.log_likelihood) - evidence) < 0.05
        assert abs(float(good.log_likelihood) - evidence) < abs(
            float(bad.log_likelihood) - evidence
        )
