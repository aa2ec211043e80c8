"""Proposals: the optimal one where it is known, importance weights that integrate to one, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import particle_models as models
import pytest
import scipy.stats

import statespace as ss
from statespace.methods.lowering import at
from statespace.methods.particle_lowering import lower
from statespace.methods.proposals import Auxiliary, Linearised

COUNT = 40_000


def draws(model, y, proposal, previous):
    """Draws at the second moment from many copies of one state, their log weights, and the chain."""
    chain = lower(model, ss.Series(y), proposal)
    row = at(chain.moments, 1)

    @jax.jit
    def made(key):
        cloud = jnp.broadcast_to(previous, (COUNT, len(previous)))
        particles = chain.propose(key, cloud, row)
        return particles, chain.weigh(cloud, particles, row)

    return *made(jax.random.key(5)), chain


def test_linear_gaussian_proposal_is_the_optimal_one():
    """The weight is p(y | x) whatever was drawn, and draws have the mean of p(x' | x, y)."""
    previous, y = jnp.array([0.4, -0.2]), np.array([[0.0, 0.0], [1.0, 0.5]])
    particles, weights, chain = draws(models.linear, y, Auxiliary("linearised"), previous)
    mean = models.H @ models.F @ previous
    spread = models.H @ models.Q @ models.H.T + models.R
    exact = scipy.stats.multivariate_normal(mean, spread).logpdf(y[1])
    np.testing.assert_allclose(weights, exact, rtol=1e-9)
    ahead = chain.look_ahead(previous[None], at(chain.moments, 1))
    np.testing.assert_allclose(ahead, exact, rtol=1e-9)
    gain = models.Q @ models.H.T @ np.linalg.inv(spread)
    centre = models.F @ previous + gain @ (y[1] - mean)
    covariance = models.Q - gain @ models.H @ models.Q
    error = np.sqrt(np.diag(covariance) / COUNT)
    assert np.all(np.abs(particles.mean(axis=0) - centre) < 5 * error)
    np.testing.assert_allclose(np.cov(particles.T), covariance, atol=0.02)


counts = ss.Model(
    ss.Gaussian(jnp.zeros(2), jnp.ones(2)),
    ss.AffineGaussian(models.F, scale=jnp.array([[1.0], [0.4]])),
    lambda x, step: dist.Poisson(jnp.exp(x[0] - 0.5 * x[1])),
)
"""Counts, and noise of fewer dimensions than the state."""

tailed = ss.Model(
    ss.Gaussian(jnp.zeros(2), jnp.ones(2)),
    lambda x, step: dist.Normal(jnp.sin(x), jnp.array([0.5, 1.0])).to_event(1),
    lambda x, step: dist.Cauchy(x[0] + x[1], 0.5),
)
"""Far from the observation its log density is convex."""


@pytest.mark.parametrize("degrees", [None, 6.0])
def test_weights_of_an_expansion_are_without_bias(degrees):
    """The mean weight is the integral of p(y | x') p(x' | x), here by quadrature in the one noise."""
    model = ss.Model(
        counts.initial, ss.AffineGaussian(models.F, scale=jnp.array([1.0, 0.4])), counts.observation
    )
    previous, y = jnp.array([0.4, -0.2]), np.array([0.0, 6.0])
    _, weights, _ = draws(model, y, Linearised(degrees=degrees), previous)
    # of the rate only one combination of the noises counts
    mean, spread = np.asarray(models.F @ previous) @ [1, -0.5], np.hypot(1.0, 0.2)
    z, w = np.polynomial.hermite_e.hermegauss(80)
    exact = w @ scipy.stats.poisson(np.exp(mean + spread * z)).pmf(6) / np.sqrt(2 * np.pi)
    found = np.exp(np.asarray(weights))
    assert abs(found.mean() - exact) < 5 * found.std() / np.sqrt(COUNT)
    # far less spread than the bootstrap's weights have
    assert found.std() / found.mean() < 0.8


def test_curvature_of_either_sign():
    """Where the observation's log density is convex the proposal is as wide as the transition."""
    previous, y = jnp.array([0.3, 0.1]), np.array([0.0, 6.0])
    particles, weights, _ = draws(tailed, y, "linearised", previous)
    np.testing.assert_allclose(particles.std(axis=0), [0.5, 1.0], rtol=0.03)
    found = np.exp(np.asarray(weights))
    grid = np.linspace(-20, 20, 40_001)
    mean, spread = np.sin(previous).sum(), np.hypot(0.5, 1.0)
    density = scipy.stats.norm(mean, spread).pdf(grid) * scipy.stats.cauchy(6.0, 0.5).pdf(grid)
    exact = density.sum() * (grid[1] - grid[0])
    assert abs(found.mean() - exact) < 5 * found.std() / np.sqrt(COUNT)


def test_a_large_count_does_not_send_particles_off():
    """A Newton step that would overshoot is shortened."""
    previous, y = jnp.zeros(2), np.array([0.0, 400.0])
    particles, weights, _ = draws(counts, y, "linearised", previous)
    assert np.all(np.isfinite(weights))
    assert np.max(np.abs(particles)) < 12


def far(state, step, y):
    """Only positive states."""
    return dist.LogNormal(jnp.zeros(2), 1.0).to_event(1)


def flat(state, step, y):
    """One coordinate too few."""
    return dist.Normal(state[0], 1.0)


jumping = ss.Model(
    ss.Gaussian(jnp.zeros(1), jnp.ones(1)),
    lambda x, step: dist.Laplace(x, 1.0).to_event(1),
    lambda x, step: dist.Normal(x, 1.0).to_event(1),
)


@pytest.mark.parametrize(
    ("model", "proposal", "error", "message"),
    [
        (models.linear, far, ValueError, "the proposal far misses part of what `transition`"),
        (models.linear, flat, ValueError, "the proposal flat gives states of shape"),
        (jumping, "linearised", TypeError, "that of this model gives Laplace"),
        (models.weather, "linearised", TypeError, "is between finitely many states"),
        (counts, models.nearer, TypeError, "`transition` of the model has no density"),
    ],
)
def test_what_a_proposal_cannot_do(model, proposal, error, message):
    """Messages name the proposal or the conditional."""
    y = np.ones((3, 2)) if model is models.linear else np.ones(3)
    with pytest.raises(error, match=message):
        ss.log_likelihood(model, y, method=ss.ParticleFilter(10, proposal), key=models.keys[0])


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: ss.ParticleFilter(proposal="best"), ValueError, "must be one of"),
        (lambda: ss.ParticleFilter(proposal=3), TypeError, "must be one of"),
        (lambda: ss.proposals.Linearised(degrees=0.0), ValueError, "`degrees` of Linearised"),
        (lambda: ss.proposals.Linearised(iterations=0), ValueError, "`iterations` of Linearised"),
    ],
)
def test_settings_are_refused(make, error, message):
    """A wrong setting is refused when it is made."""
    with pytest.raises(error, match=message):
        make()
