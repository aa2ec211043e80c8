"""Ensemble filters against the Kalman update of their own sample covariances, and on Lorenz' models."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import statespace as ss
from statespace.chains import ensemble
from statespace.localisation import gaspari_cohn

RNG = np.random.default_rng(0)


def members_and_observation(count, n=4, m=3):
    x = jnp.asarray(RNG.normal(size=(count, n)) @ RNG.normal(size=(n, n)))
    h = jnp.asarray(RNG.normal(size=(m, n)))
    root = jnp.asarray(np.diag([0.5, 1.0, 0.7]))
    return x, h, root @ root.T, jnp.asarray(RNG.normal(size=m))


def kalman(x, h, r, y):
    mean, p = jnp.mean(x, axis=0), jnp.cov(x.T)
    gain = p @ h.T @ jnp.linalg.inv(h @ p @ h.T + r)
    return mean + gain @ (y - h @ mean), p - gain @ h @ p


@pytest.mark.parametrize("count", [3, 12])
def test_the_transform_has_exactly_the_kalman_moments(count):
    x, h, r, y = members_and_observation(count)
    seen = x @ h.T
    after = ensemble.transform(x, seen, r, y - jnp.mean(seen, axis=0))
    mean, covariance = kalman(x, h, r, y)
    np.testing.assert_allclose(jnp.mean(after, axis=0), mean, atol=1e-10)
    np.testing.assert_allclose(jnp.cov(after.T), covariance, atol=1e-10)


def test_a_taper_of_ones_changes_nothing():
    x, h, r, y = members_and_observation(6)
    seen = x @ h.T
    error = y - jnp.mean(seen, axis=0)
    plain = ensemble.transform(x, seen, r, error)
    tapered = ensemble.transform(x, seen, r, error, jnp.ones((4, 3)))
    np.testing.assert_allclose(tapered, plain, atol=1e-12)
    ones = (jnp.ones((4, 3)), jnp.ones((3, 3)))
    noise = jnp.asarray(RNG.normal(size=(6, 3)))
    np.testing.assert_allclose(
        ensemble.stochastic(x, seen, r, error, noise, ones),
        ensemble.stochastic(x, seen, r, error, noise),
    )


def test_a_taper_of_zeros_leaves_a_coordinate_alone():
    x, h, r, y = members_and_observation(6)
    seen = x @ h.T
    taper = jnp.ones((4, 3)).at[2].set(0)
    after = ensemble.transform(x, seen, r, y - jnp.mean(seen, axis=0), taper)
    np.testing.assert_allclose(after[:, 2], x[:, 2], atol=1e-12)


def test_perturbed_observations_move_the_mean_by_the_kalman_gain():
    x, h, r, y = members_and_observation(12)
    seen = x @ h.T
    noise = jnp.asarray(RNG.normal(size=(12, 3)))
    after = ensemble.stochastic(x, seen, r, y - jnp.mean(seen, axis=0), noise)
    np.testing.assert_allclose(jnp.mean(after, axis=0), kalman(x, h, r, y)[0], atol=1e-10)


def test_the_smoother_of_two_moments_is_the_regression_on_both_observations():
    # x_1 = F x_0 without noise, and y seen at moment 1 only: smoothing is conditioning x_0 on y
    x, h, r, y = members_and_observation(12)
    f = jnp.asarray(RNG.normal(size=(4, 4)))
    ahead = x @ f.T
    seen = ahead @ h.T
    after = ensemble.transform(ahead, seen, r, y - jnp.mean(seen, axis=0))
    smoothed = ensemble.smooth(jnp.stack([x, after]), jnp.stack([x, ahead]))
    mean, covariance = kalman(x, h @ f, r, y)
    np.testing.assert_allclose(jnp.mean(smoothed[0], axis=0), mean, atol=1e-9)
    np.testing.assert_allclose(jnp.cov(smoothed[0].T), covariance, atol=1e-9)


@pytest.mark.parametrize("update", ["transform", "stochastic"])
def test_earlier_members_move_by_their_own_covariance_with_the_observation(update):
    # without a taper the stacked state of both moments is updated as one; with one a coordinate hears every
    # channel, at both moments, with noise larger by 1 / taper (transform) or covariance smaller (stochastic)
    x, h, r, y = members_and_observation(12)
    past = x @ jnp.asarray(RNG.normal(size=(4, 4))) + jnp.asarray(RNG.normal(size=x.shape))
    both, seen = jnp.stack([x, past], axis=-1), x @ h.T
    error, draws = y - jnp.mean(seen, axis=0), jnp.asarray(RNG.normal(size=(12, 3)))
    stacked = jnp.concatenate([x, past], axis=1)
    own, cross = np.cov(seen.T), np.cov(stacked.T, seen.T)[:8, 8:]
    taper = np.asarray(RNG.uniform(0.2, 1.0, size=(4, 3)))
    among = np.full((3, 3), 0.5) + 0.5 * np.eye(3)
    for reach in (None, taper):
        if update == "transform":
            after = ensemble.transform(both, seen, r, error, reach)
            noises = [
                r / np.sqrt(np.outer(w, w)) for w in (np.ones((4, 3)) if reach is None else reach)
            ]
            gains = [cross[i] @ np.linalg.inv(own + noises[i % 4]) for i in range(8)]
        else:
            tapers = None if reach is None else (jnp.asarray(reach), jnp.asarray(among))
            after = ensemble.stochastic(both, seen, r, error, draws, tapers)
            near = np.ones((4, 3)) if reach is None else reach
            solve = np.linalg.inv(own * (1 if reach is None else among) + r)
            gains = [(cross[i] * near[i % 4]) @ solve for i in range(8)]
        moved = np.asarray(stacked.mean(axis=0)) + np.stack(gains) @ np.asarray(error)
        mean = np.concatenate([after[..., 0].mean(axis=0), after[..., 1].mean(axis=0)])
        np.testing.assert_allclose(mean, moved, atol=1e-10)
    # the covariance of both moments is that of the update with the last coordinate's weights
    if update == "transform":
        i = 3
        of = np.stack([after[:, i, 0], after[:, i, 1]])
        before, rows = np.cov(stacked.T)[np.ix_([i, i + 4], [i, i + 4])], cross[[i, i + 4]]
        expected = before - rows @ np.linalg.inv(own + noises[i]) @ rows.T
        np.testing.assert_allclose(np.cov(of), expected, atol=1e-10)


def test_the_log_density_is_that_of_the_sample_prediction():
    x, h, r, y = members_and_observation(12)
    seen = x @ h.T
    mask = jnp.array([True, False, True])
    rows = np.array([0, 2])
    error = jnp.where(mask, y - jnp.mean(seen, axis=0), 0)
    noise = jnp.where(mask[:, None] & mask[None, :], r, jnp.eye(3))
    got = ensemble.log_density(jnp.where(mask, seen, 0), noise, error, mask)
    covariance = np.cov(np.asarray(seen)[:, rows].T) + np.asarray(r)[np.ix_(rows, rows)]
    e = np.asarray(error)[rows]
    size = np.log(np.linalg.det(2 * np.pi * covariance))
    np.testing.assert_allclose(got, -0.5 * (size + e @ np.linalg.solve(covariance, e)), rtol=1e-10)


def linear_model():
    return ss.Model(
        ss.Gaussian(jnp.ones(2), jnp.ones(2)),
        ss.AffineGaussian(jnp.array([[0.9, 0.2], [-0.1, 0.8]]), scale=jnp.array([0.5, 0.3])),
        ss.AffineGaussian(jnp.array([[1.0, 0.5]]), scale=jnp.array([0.4])),
    )


@pytest.mark.parametrize("update", ["transform", "stochastic"])
def test_many_members_come_to_the_exact_answer(update):
    model = linear_model()
    y = np.array(ss.simulate(model, 12, key=jax.random.key(0)).y)
    y[4] = np.nan
    method = ss.EnsembleKalman(members=2000, update=update)
    exact = ss.smooth(model, y)
    got = ss.smooth(model, y, method=method, key=jax.random.key(1))
    # errors of sample moments: about sd / sqrt(2000) = 0.013 each, and they add up over the gains
    np.testing.assert_allclose(got.mean, exact.mean, atol=0.08)
    np.testing.assert_allclose(got.std, exact.std, rtol=0.12)
    np.testing.assert_allclose(got.log_likelihood, exact.log_likelihood, atol=0.3)


@pytest.mark.parametrize("update", ["transform", "stochastic"])
def test_a_lag_comes_to_the_exact_answer_given_observations_so_far_ahead(update):
    model, lag = linear_model(), 2
    y = np.array(ss.simulate(model, 8, key=jax.random.key(0)).y)
    y[4] = np.nan
    everywhere = ss.Localisation(1e6, np.zeros(2), np.zeros(1))
    method = ss.EnsembleKalman(members=2000, update=update, localisation=everywhere, lag=lag)
    got = ss.smooth(model, y, method=method, key=jax.random.key(1))
    for t in range(8):
        later = np.where(np.arange(8)[:, None] <= t + lag, y, np.nan)
        exact = ss.smooth(model, later)
        np.testing.assert_allclose(got.mean[t], exact.mean[t], atol=0.08)
        np.testing.assert_allclose(got.std[t], exact.std[t], rtol=0.12)


def test_without_noise_of_the_states_a_long_lag_is_the_pass_back():
    # the members of all moments are then linear in the first ones: both are the same regression
    model = eqx.tree_at(lambda m: m.transition.scale, linear_model(), jnp.zeros(2))
    y = RNG.normal(size=(8, 1))
    back = ss.EnsembleKalman(members=5)
    lagged = ss.EnsembleKalman(members=5, lag=100)
    one, two = (ss.smooth(model, y, method=m, key=jax.random.key(3)) for m in (back, lagged))
    np.testing.assert_allclose(one.particles, two.particles, atol=1e-8)


def test_online_gives_what_the_filter_gives():
    model, key = linear_model(), jax.random.key(2)
    y = np.array(ss.simulate(model, 6, key=jax.random.key(0)).y)
    method = ss.EnsembleKalman(members=10)
    filtered = ss.filter(model, y, method=method, key=key)
    decoder = ss.online(model, method, key=key)
    state = decoder.init()
    for row in y:
        state = decoder.update(state, row)
    np.testing.assert_allclose(state.mean, filtered.mean[-1], atol=1e-12)
    np.testing.assert_allclose(state.log_likelihood, filtered.log_likelihood, atol=1e-10)


def test_the_taper_of_gaspari_and_cohn():
    np.testing.assert_allclose(
        gaspari_cohn(jnp.array([0.0, 2.0, 4.0, 5.0]), 2.0), [1, 5 / 24, 0, 0], atol=1e-12
    )
    ring = ss.Localisation(3.0, np.arange(20), np.arange(20), period=20.0)
    assert np.linalg.eigvalsh(np.asarray(ring.own)).min() > -1e-10
    np.testing.assert_allclose(ring.cross[0, 19], ring.cross[0, 1])


def test_lorenz_equations():
    x = jnp.asarray(RNG.normal(size=5))
    dx = ss.Lorenz96(size=5).velocity(x)
    i = 3
    np.testing.assert_allclose(dx[i], (x[4] - x[1]) * x[2] - x[3] + 8, rtol=1e-12)
    fixed = jnp.array([np.sqrt(72.0), np.sqrt(72.0), 27.0])
    np.testing.assert_allclose(ss.Lorenz63().velocity(fixed), 0, atol=1e-12)
    step = ss.Step(1, 0.1, 0.1)
    start = jnp.array([1.0, 2.0, 20.0])
    fine = ss.Lorenz63(scale=0.0, substeps=200).transition(start, step).mean
    finer = ss.Lorenz63(scale=0.0, substeps=400).transition(start, step).mean
    np.testing.assert_allclose(fine, finer, rtol=1e-9)


def weather(count, seed=2):
    model, times = ss.Lorenz96(scale=0.0), 0.05 * np.arange(count)
    truth = ss.simulate(model, count, key=jax.random.key(seed), times=times)
    return model, truth.states, ss.Series(truth.y, times=times)


RING = ss.Localisation(4.0, np.arange(40), np.arange(40), period=40.0)


@pytest.mark.slow
@pytest.mark.parametrize(("update", "members"), [("transform", 20), ("stochastic", 40)])
def test_smoothing_betters_the_analysis_of_a_localised_ensemble(update, members):
    model, truth, data = weather(120)
    method = ss.EnsembleKalman(members, update, inflation=1.06, localisation=RING)
    means = [
        verb(model, data, method=method, key=jax.random.key(3)).mean
        for verb in (ss.filter, ss.smooth)
    ]
    filtered, smoothed = (float(jnp.sqrt(jnp.mean((m - truth)[60:100] ** 2))) for m in means)
    assert filtered < 0.35
    assert smoothed < 0.8 * filtered
    np.testing.assert_allclose(means[1][-1], means[0][-1], atol=1e-12)


@pytest.mark.slow
def test_forty_variables_are_followed_by_twenty_members_only_with_localisation():
    model, truth, data = weather(300)

    def error(**settings):
        method = ss.EnsembleKalman(members=20, **settings)
        mean = ss.filter(model, data, method=method, key=jax.random.key(3)).mean
        return float(jnp.sqrt(jnp.mean((mean - truth)[100:] ** 2)))

    assert error(inflation=1.04, localisation=RING) < 0.25
    assert error(inflation=1.06, localisation=RING, update="stochastic") < 0.28
    assert error(inflation=1.04) > 1.0


def test_bad_settings_are_refused():
    with pytest.raises(
        ValueError, match=r"`members` of EnsembleKalman must be a whole number.*2, got 1"
    ):
        ss.EnsembleKalman(members=1)
    with pytest.raises(ValueError, match="`update` of EnsembleKalman must be"):
        ss.EnsembleKalman(update="serial")
    with pytest.raises(ValueError, match="`inflation` of EnsembleKalman must be at least 1"):
        ss.EnsembleKalman(inflation=0.9)
    for lag in (0, 2.5):
        with pytest.raises(ValueError, match="`lag` of EnsembleKalman must be at least 1 moment"):
            ss.EnsembleKalman(lag=lag)
    with pytest.raises(ValueError, match="`radius` of Localisation must be positive"):
        ss.Localisation(0.0, np.arange(3), np.arange(3))
    with pytest.raises(ValueError, match="positions in the same space"):
        ss.Localisation(1.0, np.zeros((3, 2)), np.arange(3))
    with pytest.raises(ValueError, match="give `key=`"):
        ss.filter(linear_model(), np.zeros(3), method=ss.EnsembleKalman())
    reach = ss.Localisation(1.0, np.arange(2), np.arange(2))
    with pytest.raises(ValueError, match="positions of 2 observations, but the data have 1"):
        ss.filter(
            linear_model(),
            np.zeros(3),
            method=ss.EnsembleKalman(localisation=reach),
            key=jax.random.key(0),
        )
    with pytest.raises(ValueError, match="`size` of Lorenz96 must be at least 4"):
        ss.Lorenz96(size=3)
