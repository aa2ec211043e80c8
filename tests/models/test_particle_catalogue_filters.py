"""Catalogue models through the particle filter: likelihoods against quadrature and sums over all states."""

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
import scipy.stats

import statespace as ss
from statespace.series import as_series

KEYS = jax.random.split(jax.random.key(0), 400)


def agrees(model, y, exact, particles):
    """The mean of 400 likelihood estimates is the likelihood, within five standard errors."""
    series = as_series(y)
    method = ss.ParticleFilter(particles=particles)
    one = lambda key: method.with_key(key).log_likelihood(model, series)
    ratio = np.exp(np.asarray(jax.jit(jax.vmap(one))(KEYS)) - exact)
    error = ratio.std() / np.sqrt(len(KEYS))
    assert 1e-4 < error < 0.05
    assert abs(ratio.mean() - 1) < 5 * error


def test_leverage_by_quadrature():
    """The move depends on the return before; one return is missing."""
    y = np.array([0.5, -1.4, np.nan, 0.2, 1.1])
    model = ss.StochasticVolatility(-1.0, 0.9, 0.4, leverage=-0.6)
    grid, width = np.linspace(-7, 5, 601, retstep=True)
    law, total = scipy.stats.norm(-1, 0.4 / np.sqrt(1 - 0.81)).pdf(grid) * width, 0.0
    for t, value in enumerate(y):
        if t:
            before = y[t - 1]
            missing = np.isnan(before)
            push = 0 if missing else -0.6 * 0.4 * before * np.exp(-grid / 2)
            scale = 0.4 * (1 if missing else 0.8)
            move = scipy.stats.norm(-1 + 0.9 * (grid + 1) + push, scale)
            law = move.pdf(grid[:, None]) @ law * width
        if not np.isnan(value):
            law = law * scipy.stats.norm(0, np.exp(grid / 2)).pdf(value)
        total += np.log(law.sum())
        law /= law.sum()
    agrees(model, y, total, 100)


def test_epidemic_by_sums_over_all_states():
    """Eight individuals: 165 reachable (S, I) pairs with their new cases, as a finite chain in NumPy."""
    model = ss.SIR(8, 1.2, 0.4, 0.6, initial_fraction=0.3)
    y = np.array([2.0, 1.0, np.nan, 1.0])
    states = [(s, i, c) for s in range(9) for i in range(9 - s) for c in range(9 - s)]

    def move(before):
        s, i, _ = before
        infected, recovered = 1 - np.exp(-1.2 * i / 8), 1 - np.exp(-0.4)
        return [
            scipy.stats.binom(s, infected).pmf(c) * scipy.stats.binom(i, recovered).pmf(i + c - j)
            if k == s - c
            else 0.0
            for k, j, c in states
        ]

    kernel = np.array([move(state) for state in states])
    law = np.array(
        [scipy.stats.binom(8, 0.3).pmf(c) * (s == 8 - c and i == c) for s, i, c in states]
    )
    total = 0.0
    for t, value in enumerate(y):
        law = law @ kernel if t else law
        if not np.isnan(value):
            law = law * np.array([scipy.stats.binom(c, 0.6).pmf(value) for *_, c in states])
        total += np.log(law.sum())
        law = law / law.sum()
    agrees(model, y, total, 100)


def test_plain_filter_on_regimes():
    """A switching model is a model like any other; the exact value is a sum over all paths of regimes."""
    model = ss.SwitchingLinearGaussian(
        [0.6, 0.4], [[0.8, 0.2], [0.3, 0.7]], [[[0.9]], [[0.3]]], [[0.3], [1.0]], [[[1.0]]], [[0.5]]
    )
    y = np.array([0.4, -1.2, 0.9, 2.1])
    method = ss.RaoBlackwellised(16)
    exact = ss.log_likelihood(model, y, method=method, key=jax.random.key(0))
    agrees(model, y, float(exact), 200)
    assert jnp.isfinite(exact)
