"""Smoothers of switching mixtures undo the merging: Bayes' rule, and errors that used to grow backward."""

import dataclasses
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from switching_paths import MODEL, K, T, Y

import statespace as ss
from statespace.chains.gaussian.mixtures import Components, collapse, mixture_moments, parted

part = jax.jit(parted)


def components(weights, means, laws, regime=None):
    regime = np.zeros(len(weights), int) if regime is None else regime
    return Components(*map(jnp.asarray, (regime, means, laws, np.log(weights))))


def test_members_are_conditioned_on_what_was_learned_of_their_group():
    """Bayes' rule, member by member, with the observation that made the smoothed law of the merged one."""
    rng = np.random.default_rng(0)
    weights, n = np.array([0.3, 0.25, 0.45]), 2
    law = np.array([[0.5, 0.2], [0.2, 0.4]])
    means = 2 * rng.normal(size=(3, n))
    group = np.array([0, 0, 1])  # the last is alone in its group
    given = components(weights, means, np.stack([law] * 3))
    merged = collapse(given, jnp.asarray(group), 2, "covariance")
    design, noise, value = np.array([[1.0, 0.5]]), np.array([[0.3]]), np.array([1.2])

    def bayes(mean, law):
        s = design @ law @ design.T + noise
        gain = law @ design.T / s
        expected = scipy.stats.multivariate_normal(design @ mean, s).logpdf(value)
        return mean + gain @ (value - design @ mean), law - gain @ design @ law, expected

    after = [bayes(np.asarray(m), np.asarray(p)) for m, p in zip(merged.mean, merged.spread)]
    weight = np.array([0.9, 0.1])
    smoothed = components(weight, [a[0] for a in after], [a[1] for a in after])
    got = part(given, jnp.asarray(group), merged, smoothed)
    want = [bayes(mean, law) for mean in means]
    share = weights[:2] * np.exp([w[2] for w in want[:2]])
    np.testing.assert_allclose(np.exp(got.log_weights), [*0.9 * share / share.sum(), 0.1])
    np.testing.assert_allclose(got.mean, [w[0] for w in want], atol=1e-9)
    np.testing.assert_allclose(got.spread, [w[1] for w in want], atol=1e-9)
    pair = np.exp(got.log_weights[:2])
    mean, covariance = mixture_moments(pair / 0.9, got.mean[:2], got.spread[:2])
    both = components(share / share.sum(), np.array(got.mean[:2]), np.array(got.spread[:2]))
    again = collapse(both, jnp.zeros(2, int), 1, "covariance")
    np.testing.assert_allclose(mean, again.mean[0], atol=1e-12)
    np.testing.assert_allclose(covariance, again.spread[0], atol=1e-12)


def test_a_wide_member_is_not_moved_beyond_reason():
    """Of 1/1000 of the weight and 30 times as wide, where the group moved by 3 deviations and got wider."""
    weights = np.array([0.999, 0.001])
    given = components(weights, np.zeros((2, 1)), np.array([[[1.0]], [[900.0]]]))
    merged = collapse(given, jnp.zeros(2, int), 1, "covariance")
    deviation = float(np.sqrt(merged.spread[0, 0, 0]))
    smoothed = merged._replace(mean=merged.mean + 3 * deviation, spread=2 * merged.spread)
    got = part(given, jnp.zeros(2, int), merged, smoothed)
    # a likelihood that is credible at 3 deviations lies at 3 + 9 / 3 of them
    assert 3 * deviation < got.mean[1, 0] < 6.1 * deviation
    assert 0 < got.mean[0, 0] < 3 * deviation
    np.testing.assert_allclose(np.exp(got.log_weights).sum(), 1, rtol=1e-12)
    nowhere = part(given, jnp.zeros(2, int), merged, merged)
    np.testing.assert_allclose(nowhere.mean, given.mean, atol=1e-12)
    np.testing.assert_allclose(nowhere.spread, given.spread, rtol=1e-12)
    np.testing.assert_allclose(nowhere.log_weights, given.log_weights, rtol=1e-9)


def test_degenerate_directions_stay_as_they_are():
    law = np.array([[1.0, 0.0], [0.0, 0.0]])
    given = components([0.5, 0.5], np.array([[1.0, 2.0], [-1.0, 2.0]]), np.stack([law, law]))
    merged = collapse(given, jnp.zeros(2, int), 1, "covariance")
    smoothed = merged._replace(mean=merged.mean + np.array([0.5, 0.0]), spread=merged.spread / 2)
    got = part(given, jnp.zeros(2, int), merged, smoothed)
    # variance 2 became 1: precision 1/2, at 0.5 + 0.5
    np.testing.assert_allclose(got.mean, [[1.0, 2.0], [-1 / 3, 2.0]], atol=1e-9)
    np.testing.assert_allclose(got.spread, np.stack([law, law]) * 2 / 3, atol=1e-9)


STEP, NOISE = 5.0, 0.1


def flights(count, seed):
    """At 0.12 km/s: straight, a turn of 1 degree a second, straight, one of 3 the other way; and a radar."""
    rates = np.radians(np.repeat([0.0, 1.0, 0.0, -3.0, 0.0], [12, 18, 12, 6, 11]))
    heading = np.pi + STEP * np.concatenate([[0], np.cumsum(rates)])
    fine = heading[:-1, None] + rates[:, None] * np.linspace(0, STEP, 50, endpoint=False)
    moves = 0.12 * STEP * np.stack([np.cos(fine), np.sin(fine)], axis=-1).mean(axis=1)
    track = np.concatenate([np.zeros((1, 2)), np.cumsum(moves, axis=0)])
    return track, track + NOISE * np.random.default_rng(seed).normal(size=(count, *track.shape))


def turning_model():
    """Straight flight, and turns at an unknown rate that stays as it is."""
    start = ss.Gaussian(np.zeros(5), [1.0, 1.0, 0.2, 0.2, 0.03])
    matrix = np.diag([1.0, 1, 1, 1, 0]) + np.diag([STEP, STEP, 0], 2)
    acceleration, guess = 4e-4, 0.03
    times = np.array([[STEP**3 / 3, STEP**2 / 2], [STEP**2 / 2, STEP]])
    noise = np.zeros((5, 5))
    noise[:4, :4], noise[4, 4] = acceleration**2 * np.kron(times, np.eye(2)), guess**2
    turn = ss.CoordinatedTurn(acceleration, NOISE, np.zeros(5), np.ones(5), turn_scale=1e-4)
    kernel = ss.FiniteKernel([[0.95, 0.05], [0.06, 0.94]])
    straight = ss.AffineGaussian(matrix, covariance=noise)
    return ss.Model(
        ss.Switching(ss.Categorical([0.9, 0.1]), [start]),
        ss.Switching(kernel, [straight, turn.transition]),
        ss.Switching(None, [ss.AffineGaussian(np.eye(2, 5), scale=np.full(2, NOISE))]),
    )


def test_errors_do_not_grow_backward_where_regimes_have_little_noise():
    """Turns at a constant rate: what is wrong at one moment is carried back undamped by their dynamics."""
    track, seen = flights(20, 0)
    model, method = turning_model(), ss.InteractingMultipleModel()
    times = STEP * np.arange(len(track))

    @jax.jit
    @jax.vmap
    def run(y):
        made = [method.posterior(model, ss.Series(y, times), k) for k in ("filtered", "smoothed")]
        return [(p.mean[:, :2], p.covariance[:, :2, :2]) for p in made]

    filtered, smoothed = run(seen)
    error = [np.asarray(p[0]) - track for p in (filtered, smoothed)]
    rmse = [np.sqrt(np.mean(np.sum(e[:, 5:] ** 2, axis=2))) for e in error]
    assert rmse[1] < 0.75 * rmse[0]
    assert rmse[1] < NOISE
    assert np.abs(error[1]).max() < 6 * NOISE
    # and the covariances know how large the errors are
    distance = np.einsum("fti,ftij,ftj->ft", error[1], np.linalg.inv(smoothed[1]), error[1])
    assert 0.4 < distance.mean() / 2 < 2.5
    # trajectories cannot be drawn so well, of which the verb tells
    with pytest.warns(RuntimeWarning, match="stray from the smoothed law"):
        ss.sample_states(
            model, ss.Series(seen[0], times), key=jax.random.key(0), draws=20, method=method
        )


def test_draws_that_stray_are_told_of():
    """Draws of the exact law do not; kernels that lead elsewhere do, most at the first moment."""
    posterior = ss.smooth(MODEL, Y, method=ss.GaussianSum(K**T))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        posterior.sample(jax.random.key(0), 5)
    kernels = posterior.kernels
    moved = kernels.mean.at[0].add(100 * posterior.std.max())
    astray = dataclasses.replace(posterior, kernels=kernels._replace(mean=moved))
    with pytest.warns(
        RuntimeWarning, match=r"stray from the smoothed law, farthest at moment 0: by"
    ):
        astray.sample(jax.random.key(0), 5)
