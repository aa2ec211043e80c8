"""Gaussian sites for every family of observations, of several channels, states and recordings.

Inputs move the offsets, times are irregular, an entry is missing. The oracle is a sum over a grid of points
for the two states at both moments.
"""

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
import scipy.linalg
import scipy.special
import scipy.stats as st

import statespace as ss

A = np.array([[-0.3, 0.2], [0.0, -0.5]])
B = np.array([[0.4, 0.0], [0.1, 0.5]])
MEAN, SCALE = np.array([0.2, -0.1]), np.array([0.8, 0.6])
C = np.array([[0.5, -0.8], [0.9, 0.3], [-0.7, 0.4]])
D = np.array([0.1, -0.2, 0.3])
TIMES = np.array([0.0, 1.7])
INPUTS = np.array([[0.5], [-0.4]])
NUMBERS = np.array([2.0, 3.0, 0.5])

CASES = {
    "poisson": ({"exposure": 1.5}, [[1, 0, 2], [3, np.nan, 0]]),
    "negative_binomial": ({"concentration": NUMBERS}, [[1, 0, 4], [3, np.nan, 0]]),
    "bernoulli": ({}, [[1, 0, 1], [1, np.nan, 0]]),
    "binomial": ({"trials": [4, 5, 9]}, [[1, 0, 7], [4, np.nan, 3]]),
    "gaussian": ({"scale": NUMBERS}, [[0.3, -1.0, 0.7], [1.2, np.nan, 0.0]]),
    "student_t": ({"df": 4.0, "scale": NUMBERS}, [[0.3, -1.0, 0.7], [1.2, np.nan, 0.0]]),
    "logistic": ({}, [[0.3, -1.0, 0.7], [1.2, np.nan, 0.0]]),
}
LOG_DENSITIES = {
    "poisson": lambda y, e: st.poisson(1.5 * np.exp(e)).logpmf(y),
    "negative_binomial": lambda y, e: st.nbinom(NUMBERS, NUMBERS / (NUMBERS + np.exp(e))).logpmf(y),
    "bernoulli": lambda y, e: st.bernoulli(scipy.special.expit(e)).logpmf(y),
    "binomial": lambda y, e: st.binom([4, 5, 9], scipy.special.expit(e)).logpmf(y),
    "gaussian": lambda y, e: st.norm(e, NUMBERS).logpdf(y),
    "student_t": lambda y, e: st.t(4.0, e, NUMBERS).logpdf(y),
    "logistic": lambda y, e: st.logistic(e, 0.5).logpdf(y),
}


def model(name):
    family = (lambda eta: dist.Logistic(eta, 0.5)) if name == "logistic" else name
    offset = lambda step: jnp.asarray(D) + step.inputs[0] * jnp.array([1.0, 0.5, -1.0])
    return ss.Model(
        ss.Gaussian(jnp.asarray(MEAN), jnp.asarray(SCALE)),
        ss.LinearDiffusion(jnp.asarray(A), diffusion=jnp.asarray(B)),
        ss.GeneralisedLinear(jnp.asarray(C), offset, family, **CASES[name][0]),
    )


def recording(name):
    return ss.Series(np.asarray(CASES[name][1], float), times=TIMES, inputs=INPUTS)


def on_a_grid(name):
    """Evidence, mean and covariance of the first states, by Gauss–Hermite in all states of all moments."""
    block = scipy.linalg.expm(np.block([[A, B @ B.T], [np.zeros((2, 2)), -A.T]]) * TIMES[1])
    f = block[:2, :2]
    q = block[:2, 2:] @ f.T  # van Loan
    p = np.diag(SCALE**2)
    law = np.block([[p, p @ f.T], [f @ p, f @ p @ f.T + q]])
    mean = np.concatenate([MEAN, f @ MEAN])
    nodes, weights = np.polynomial.hermite_e.hermegauss(24)
    z = np.stack(np.meshgrid(*[nodes] * len(mean), indexing="ij"), axis=-1).reshape(-1, len(mean))
    w = weights / weights.sum()
    w = np.prod(np.stack(np.meshgrid(*[w] * len(mean), indexing="ij"), axis=-1), axis=-1).ravel()
    x = mean + z @ np.linalg.cholesky(law).T
    log = np.zeros(len(x))
    for t, y in enumerate(np.asarray(CASES[name][1], float)):
        eta = x[:, 2 * t : 2 * t + 2] @ C.T + D + INPUTS[t] * np.array([1.0, 0.5, -1.0])
        seen = np.nan_to_num(LOG_DENSITIES[name](np.nan_to_num(y), eta))
        log += np.where(np.isnan(y), 0, seen).sum(axis=1)
    total = w @ np.exp(log)
    p = w * np.exp(log) / total
    m = p @ x
    e = (x - m)[:, :2]
    return np.log(total), m[:2], (p[:, None] * e).T @ e


def check(method, got, want):
    evidence, mean, covariance = want
    error = float(got.log_likelihood) - evidence
    assert bool(got.convergence.converged)
    if isinstance(method, ss.ExpectationPropagation):
        assert abs(error) < 5e-3
        np.testing.assert_allclose(got.mean[0], mean, atol=5e-3)
        np.testing.assert_allclose(got.covariance[0], covariance, atol=5e-3)
    elif isinstance(method, ss.ConjugateVI):
        assert -0.1 < error < 1e-9
    else:
        assert abs(error) < 0.1


SLOW = [
    pytest.param(name, marks=() if name in ("poisson", "logistic") else pytest.mark.slow)
    for name in CASES
]


@pytest.mark.parametrize("name", SLOW)
def test_families_of_several_channels_with_inputs_against_a_grid(name):
    method = ss.ExpectationPropagation()
    got = ss.smooth(model(name), recording(name), method=method)
    check(method, got, on_a_grid(name))


@pytest.mark.slow
@pytest.mark.parametrize("method", [ss.Laplace(), ss.ConjugateVI()])
@pytest.mark.parametrize("name", ["poisson", "student_t"])
def test_other_methods_with_inputs_against_a_grid(name, method):
    got = ss.smooth(model(name), recording(name), method=method)
    check(method, got, on_a_grid(name))
