"""Laplace's method, variational inference and expectation propagation against quadrature and optimisers."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
import scipy.optimize
from scipy.special import gammaln, logsumexp

import statespace as ss

METHODS = [ss.Laplace(), ss.ConjugateVI(), ss.ExpectationPropagation()]
PERSISTENCE, NOISE, START = 0.8, 0.5, 0.9
COUNTS = np.array([3.0, 0.0, 2.0])


def walk(observation):
    """One coordinate that forgets."""
    return ss.Model(
        ss.Gaussian(jnp.array([0.2]), jnp.array([START])),
        ss.AffineGaussian(jnp.array([[PERSISTENCE]]), jnp.array([0.1]), jnp.array([NOISE])),
        observation,
    )


def poisson(y, x):
    return y * (x + 0.3) - np.exp(x + 0.3) - gammaln(y + 1)


def student(y, x):
    z = (y - x) / 0.3
    constant = gammaln(2.5) - gammaln(2.0) - 0.5 * np.log(4 * np.pi) - np.log(0.3)
    return constant - 2.5 * np.log1p(z**2 / 4)


PREDICTED = ss.GeneralisedLinear([[1.0]], [0.3], "poisson")


def on_a_grid(y, log_density, size=161, width=5.0):
    """Evidence, means and variances of three states by quadrature on a grid."""
    x = np.linspace(-width, width, size)
    h = x[1] - x[0]
    normal = lambda e, s: -0.5 * (e / s) ** 2 - np.log(s) - 0.5 * np.log(2 * np.pi)
    joint = normal(x - 0.2, START) + log_density(y[0], x)
    move = normal(x[None, :] - PERSISTENCE * x[:, None] - 0.1, NOISE)
    whole = (
        joint[:, None, None]
        + (move + log_density(y[1], x)[None, :])[:, :, None]
        + (move + log_density(y[2], x)[None, :])[None, :, :]
    )
    evidence = logsumexp(whole) + 3 * np.log(h)
    p = np.exp(whole - logsumexp(whole))
    marginals = [p.sum((1, 2)), p.sum((0, 2)), p.sum((0, 1))]
    mean = np.array([m @ x for m in marginals])
    return evidence, mean, np.array([m @ x**2 for m in marginals]) - mean**2


def test_a_chain_of_counts_against_a_grid():
    evidence, mean, variance = on_a_grid(COUNTS, poisson)
    model = walk(PREDICTED)
    for method in METHODS:
        got = ss.smooth(model, COUNTS, method=method)
        np.testing.assert_allclose(got.log_likelihood, got.pointwise.sum(), rtol=1e-12)
        assert bool(got.convergence.converged)
        error = float(got.log_likelihood) - evidence
        if isinstance(method, ss.ExpectationPropagation):
            assert abs(error) < 2e-3
            np.testing.assert_allclose(got.mean[:, 0], mean, atol=2e-3)
            np.testing.assert_allclose(got.covariance[:, 0, 0], variance, rtol=0.02)
        elif isinstance(method, ss.ConjugateVI):
            assert -0.05 < error < 0
            np.testing.assert_allclose(got.mean[:, 0], mean, atol=0.03)
        else:
            assert abs(error) < 0.05


def log_joint(x, y, log_density):
    move = x[1:] - PERSISTENCE * x[:-1] - 0.1
    return (
        -0.5 * ((x[0] - 0.2) / START) ** 2
        - 0.5 * np.sum((move / NOISE) ** 2)
        + np.sum(np.where(np.isnan(y), 0, log_density(np.nan_to_num(y), x)))
    )


@pytest.mark.parametrize(
    ("observation", "log_density", "guarded"),
    [
        (PREDICTED, poisson, 0),
        pytest.param(
            lambda x, step: dist.StudentT(4.0, x, 0.3).to_event(1),
            student,
            1,
            marks=pytest.mark.slow,
        ),
    ],
)
def test_laplace_finds_the_mode(observation, log_density, guarded):
    y = np.array([3.0, np.nan, 1.0, 0.0, 2.0, 6.0])
    got = ss.smooth(walk(observation), y, method=ss.Laplace(tolerance=1e-10))
    found = scipy.optimize.minimize(
        lambda x: -log_joint(x, y, log_density), got.mean[:, 0], options={"gtol": 1e-9}
    )
    np.testing.assert_allclose(got.mean[:, 0], found.x, atol=1e-6)
    assert bool(got.convergence.converged)
    assert (int(got.convergence.guarded) > 0) == bool(guarded)


def test_the_variational_fixed_point_maximises_the_bound():
    model = walk(PREDICTED)
    got = ss.smooth(model, COUNTS, method=ss.ConjugateVI(tolerance=1e-10))
    mean0 = np.array([0.2, PERSISTENCE * 0.2 + 0.1, PERSISTENCE * (PERSISTENCE * 0.2 + 0.1) + 0.1])
    unit = np.eye(3) - PERSISTENCE * np.eye(3, k=-1)
    precision = unit.T @ np.diag([START**-2, NOISE**-2, NOISE**-2]) @ unit

    def minus_bound(z):
        m, l = z[:3], jnp.zeros((3, 3)).at[np.tril_indices(3)].set(z[3:])
        s = l @ l.T
        rate = jnp.exp(m + 0.3 + jnp.diag(s) / 2)
        expected = jnp.sum(COUNTS * (m + 0.3) - rate - gammaln(COUNTS + 1))
        e = m - mean0
        divergence = (
            0.5 * (jnp.trace(precision @ s) + e @ precision @ e - 3)
            - 0.5 * jnp.linalg.slogdet(precision @ s)[1]
        )
        return divergence - expected

    start = np.concatenate([mean0, np.eye(3)[np.tril_indices(3)]])
    found = scipy.optimize.minimize(
        jax.jit(minus_bound), start, jac=jax.jit(jax.grad(minus_bound)), options={"gtol": 1e-9}
    )
    np.testing.assert_allclose(got.log_likelihood, -found.fun, atol=1e-9)
    np.testing.assert_allclose(got.mean[:, 0], found.x[:3], atol=1e-6)
    l = np.zeros((3, 3))
    l[np.tril_indices(3)] = found.x[3:]
    np.testing.assert_allclose(got.covariance[:, 0, 0], np.diag(l @ l.T), atol=1e-6)


def test_one_observation_with_heavy_tails_against_quadrature():
    model, y = walk(lambda x, step: dist.StudentT(4.0, x, 0.3).to_event(1)), np.array([0.6])
    x = np.linspace(-12, 12, 20001)
    logs = student(0.6, x) - 0.5 * ((x - 0.2) / START) ** 2 - np.log(START * np.sqrt(2 * np.pi))
    p = np.exp(logs)
    evidence = np.log(p.sum() * (x[1] - x[0]))
    p /= p.sum()
    rule = ss.linearisation.GaussHermite(120)
    got = ss.filter(model, y, method=ss.ExpectationPropagation(points=rule))
    np.testing.assert_allclose(got.log_likelihood, evidence, atol=1e-5)
    np.testing.assert_allclose(got.mean[0, 0], p @ x, atol=1e-5)
    np.testing.assert_allclose(got.covariance[0, 0, 0], p @ x**2 - (p @ x) ** 2, rtol=1e-4)
    bound = ss.filter(model, y, method=ss.ConjugateVI(points=rule)).log_likelihood
    assert evidence - 0.1 < float(bound) < evidence
