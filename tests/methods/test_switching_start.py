"""Both ends of recordings of switching models: starts from nothing known, and nothing observed any more."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

import statespace as ss
from statespace.chains import gaussian

Y = np.array([0.3, 1.1, np.nan, 4.0, 3.7, 6.2])
T, K = len(Y), 2
PROBS = np.array([0.7, 0.3])
MOVES = np.array([[0.9, 0.1], [0.3, 0.7]])
F = np.array([[1.0, 1.0], [0.0, 1.0]])
SCALES = np.array([[0.3, 0.1], [0.8, 0.5]])  # of level and slope in each regime
NOISE = np.array([0.2, 1.5])
WIDE = 1e4


def model(initial):
    """A local linear trend whose noises switch."""
    moves = [ss.AffineGaussian(F, scale=s) for s in SCALES]
    sees = [ss.AffineGaussian([[1.0, 0.0]], scale=[s]) for s in NOISE]
    return ss.Model(
        ss.Switching(ss.Categorical(PROBS), [initial]),
        ss.Switching(ss.FiniteKernel(MOVES), moves),
        ss.Switching(None, sees),
    )


@jax.jit
@jax.vmap
def diffuse(path):
    """Log likelihood along a path of regimes, under a flat prior on level and slope."""
    start = gaussian.Initial(jnp.zeros(2), jnp.eye(2), jnp.eye(2))
    noise = jax.vmap(jnp.diag)(jnp.asarray(SCALES)[path[1:]] ** 2)
    moves = gaussian.Transitions(jnp.asarray(F)[None], jnp.zeros((1, 2)), noise)
    mask = ~jnp.isnan(Y)
    sees = gaussian.Observed(
        jnp.array([[[1.0, 0.0]]]),
        jnp.zeros((1, 1)),
        jnp.asarray(NOISE)[path][:, None, None] ** 2,
        jnp.where(mask, Y, 0)[:, None],
        mask[:, None],
    )
    return gaussian.log_likelihood(gaussian.Chain(start, moves, sees), "covariance")


def test_wide_start_approaches_the_diffuse_one():
    """All 64 paths, each by the exactly diffuse filter; what is left falls with the square of the scale."""
    paths = np.array(list(itertools.product(range(K), repeat=T)))
    prior = np.log(PROBS[paths[:, 0]]) + np.log(MOVES[paths[:, :-1], paths[:, 1:]]).sum(axis=1)
    logs = prior + np.asarray(diffuse(jnp.asarray(paths)))
    wide = model(ss.Gaussian([0.0, 0.0], [WIDE, WIDE]))
    got = ss.smooth(wide, Y, method=ss.GaussianSum(K**T))
    density = -2 * np.log(WIDE) - np.log(2 * np.pi)  # of the wide law, where the flat one has 1
    np.testing.assert_allclose(
        got.log_likelihood - density, scipy.special.logsumexp(logs), atol=1e-5
    )
    weights = scipy.special.softmax(logs)
    np.testing.assert_allclose(got.probs[:, 1], weights @ (paths == 1), atol=1e-5)


@pytest.mark.parametrize("method", [ss.GaussianSum(4), ss.InteractingMultipleModel()])
def test_diffuse_start_is_refused_with_the_remedy(method):
    flat = model(ss.Gaussian([0.0, 0.0], [1.0, 1.0], [True, True]))
    name = type(method).__name__
    with pytest.raises(ValueError, match=f"{name} weighs .* a wide finite scale, `Gaussian"):
        ss.filter(flat, Y, method=method)
    with pytest.raises(
        ValueError, match=f"{name} weighs .* diffuse in some directions in regime 0"
    ):
        ss.online(flat, method=method).init()


@pytest.mark.parametrize("method", [ss.GaussianSum(3), ss.InteractingMultipleModel()])
def test_after_the_last_observation_the_smoother_is_the_filter(method):
    """There is nothing more to know, whatever was merged: forecasts are the filter's."""
    y = np.concatenate([Y[:4], [np.nan, np.nan]])
    proper = model(ss.Gaussian([0.0, 0.0], [3.0, 3.0]))
    smoothed, filtered = (verb(proper, y, method=method) for verb in (ss.smooth, ss.filter))
    for name in ("mean", "covariance", "probs", "means"):
        got, want = getattr(smoothed, name), getattr(filtered, name)
        np.testing.assert_allclose(got[3:], want[3:], atol=1e-12)
    assert np.abs(smoothed.mean[2] - filtered.mean[2]).max() > 0.01
