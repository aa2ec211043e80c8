"""Switching linear models: the Rao–Blackwellised methods against sums over all paths of regimes."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from switching_paths import ARRAYS, EXACT, MODEL, K, N, T, Y, along, of, summed

import statespace as ss
from statespace.chains.particle.switching import choose
from statespace.series import as_series

KEY = jax.random.key(0)
PATHS = list(itertools.product(range(K), repeat=T))


def test_filter_is_exact_while_all_paths_are_kept():
    """The last moments condition on everything; the others are exact likelihoods of what came before."""
    posterior = ss.filter(MODEL, Y, method=ss.RaoBlackwellised(64), key=KEY)
    total, probs, mean, covariance = EXACT
    np.testing.assert_allclose(posterior.log_likelihood, total, rtol=1e-12)
    np.testing.assert_allclose(posterior.probs[-1], probs[-1], atol=1e-12)
    np.testing.assert_allclose(posterior.mean[-1], mean[-1], atol=1e-12)
    np.testing.assert_allclose(posterior.covariance[-1], covariance[-1], atol=1e-12)
    early = np.where(np.arange(T) < 4, Y, np.nan)
    until = summed(early)
    np.testing.assert_allclose(posterior.pointwise[:4].sum(), until[0], rtol=1e-12)
    np.testing.assert_allclose(posterior.probs[3], until[1][3], atol=1e-12)
    np.testing.assert_allclose(posterior.mean[3], until[2][3], atol=1e-12)
    weighted = np.einsum("tn,tni->ti", posterior.weights, posterior.means)
    np.testing.assert_allclose(weighted, posterior.mean, atol=1e-12)


def test_filter_in_single_precision():
    single = jax.tree.map(lambda x: x.astype(jnp.float32), MODEL)
    posterior = ss.filter(single, Y.astype(np.float32), method=ss.RaoBlackwellised(64), key=KEY)
    assert posterior.mean.dtype == jnp.float32
    np.testing.assert_allclose(posterior.log_likelihood, EXACT[0], rtol=1e-5)
    np.testing.assert_allclose(posterior.mean[-1], EXACT[2][-1], atol=1e-5)


def test_likelihood_is_unbiased_with_few_particles():
    """2,000 replicates of 4 particles, which keep 4 of 64 paths: the mean within five standard errors."""
    series = as_series(Y)
    one = lambda k: ss.RaoBlackwellised(4, key=k).log_likelihood(MODEL, series)
    ratio = np.exp(jax.jit(jax.vmap(one))(jax.random.split(KEY, 2000)) - EXACT[0])
    error = ratio.std() / np.sqrt(2000)
    assert 0.001 < error < 0.02
    assert abs(ratio.mean() - 1) < 5 * error


def test_smoother_draws_paths_from_their_law():
    """With all paths in the filter the draws are exact: 3,000 of them, within five standard errors."""
    draws = 3000
    method = ss.RaoBlackwellised(64, draws=draws)
    posterior = ss.smooth(MODEL, Y, method=method, key=KEY)
    _, probs, mean, covariance = EXACT
    error = np.sqrt(probs * (1 - probs) / draws)
    assert np.all(np.abs(posterior.probs - probs) < 5 * error)
    spread = np.asarray(posterior.means).std(axis=1) / np.sqrt(draws)
    assert np.all(np.abs(posterior.mean - mean) < 5 * spread)
    np.testing.assert_allclose(posterior.covariance, covariance, atol=0.1)
    # whole paths: how often each of the 64 was drawn
    first, moves = np.log(ARRAYS["initial_probs"]), np.log(ARRAYS["transition"])
    logs = [
        first[p[0]] + sum(moves[a, b] for a, b in itertools.pairwise(p)) + along(p, Y)[0]
        for p in PATHS
    ]
    want = scipy.special.softmax(logs)
    numbers = np.asarray(posterior.regimes).T @ 2 ** np.arange(T)[::-1]
    share = np.bincount(numbers, minlength=64) / draws
    assert np.all(np.abs(share - want) < 5 * np.sqrt(want * (1 - want) / draws) + 1e-12)
    # the joint draws of the states belong to their paths
    sampled = posterior.sample(KEY, 10)
    assert sampled.regime.shape == (10, T)
    assert sampled.state.shape == (10, T, N)
    states = np.asarray(posterior.states)
    deviation = np.sqrt(np.diagonal(covariance, axis1=1, axis2=2))
    assert np.all(np.abs(states.mean(axis=1) - mean) < 5 * deviation / np.sqrt(draws))
    np.testing.assert_allclose(states.std(axis=1), deviation, rtol=0.1)
    # quantiles are those of the mixture
    np.testing.assert_allclose(posterior.quantile(0.9), np.quantile(states, 0.9, axis=1), atol=0.15)


@pytest.mark.parametrize("verb", [ss.filter, pytest.param(ss.smooth, marks=pytest.mark.slow)])
def test_one_regime_is_a_kalman_filter(verb):
    one = {name: np.asarray(value)[:1] for name, value in ARRAYS.items()}
    model = ss.SwitchingLinearGaussian(**one | {"initial_probs": [1.0], "transition": [[1.0]]})
    linear = ss.Model(model.initial.of(0), model.transition.of(0), model.observation.of(0))
    got = verb(model, Y, method=ss.RaoBlackwellised(2, draws=2), key=KEY)
    want = verb(linear, Y)
    np.testing.assert_allclose(got.log_likelihood, want.log_likelihood, rtol=1e-9)
    np.testing.assert_allclose(got.mean, want.mean, atol=1e-9)
    np.testing.assert_allclose(got.covariance, want.covariance, atol=1e-9)


def test_fed_one_by_one():
    online = ss.online(MODEL, ss.RaoBlackwellised(64, key=KEY))
    state = online.init()
    for y in Y:
        state = online.update(state, y)
    np.testing.assert_allclose(state.log_likelihood, EXACT[0], rtol=1e-12)
    np.testing.assert_allclose(state.probs, EXACT[1][-1], atol=1e-12)
    np.testing.assert_allclose(state.mean, EXACT[2][-1], atol=1e-12)
    with pytest.raises(ValueError, match="`time` must be after"):
        online.update(state, 0.0, time=1.0)


def test_choice_without_repeats_is_unbiased_and_keeps_the_heavy():
    """All outcomes of the one uniform number: the shares that it decides on are quarters."""
    weights = np.array([2, 8, 1, 4, 1, 0]) / 16
    with np.errstate(divide="ignore"):
        logs = jnp.log(weights)
    u = (np.arange(4) + 0.5) / 4
    numbers, new = jax.vmap(lambda u: choose(u, logs, 3))(jnp.asarray(u))
    assert np.all(np.any(numbers == 1, axis=1))
    assert all(len(set(row)) == 3 for row in np.asarray(numbers).tolist())
    np.testing.assert_allclose(np.exp(new).sum(axis=1), 1, rtol=1e-14)
    expected = np.zeros(6)
    np.add.at(expected, np.asarray(numbers).ravel(), np.exp(new).ravel() / 4)
    np.testing.assert_allclose(expected, weights, atol=1e-15)


def test_choice_keeps_all_where_they_are_few():
    logs = jnp.log(jnp.array([0.5, 0.3, 0.2]))
    numbers, new = choose(jnp.array(0.7), logs, 5)
    np.testing.assert_allclose(np.exp(new), [0.5, 0.3, 0.2, 0, 0], rtol=1e-14)
    np.testing.assert_array_equal(numbers[:3], [0, 1, 2])


@pytest.mark.slow
def test_forecast_is_the_mixture_over_paths():
    """Two moments ahead: from the exact law of regime and state at the end, within five standard errors."""
    draws = 4000
    method = ss.RaoBlackwellised(64, draws=draws)
    ahead = ss.forecast(MODEL, Y, 2, method=method, key=KEY)
    longer = np.concatenate([Y, [np.nan, np.nan]])
    paths = list(itertools.product(range(K), repeat=T))
    logs, values = [], []
    first, moves = np.log(ARRAYS["initial_probs"]), np.log(ARRAYS["transition"])
    for p in paths:
        density, means, _ = along(p, Y)
        start = first[p[0]] + sum(moves[a, b] for a, b in itertools.pairwise(p)) + density
        for more in itertools.product(range(K), repeat=2):
            m, log, out = means[-1], start, []
            for a, b in itertools.pairwise((p[-1], *more)):
                log += moves[a, b]
                m = of("matrix", b) @ m + of("offset", b)
                out.append(of("observation_matrix", b) @ m + of("observation_offset", b))
            logs.append(log)
            values.append(np.concatenate(out))
    want = scipy.special.softmax(logs) @ np.array(values)
    assert longer.shape == (T + 2,)
    error = np.asarray(ahead.std)[:, 0] / np.sqrt(draws)
    assert np.all(np.abs(np.asarray(ahead.mean)[:, 0] - want) < 5 * error)


def test_what_does_not_fit_is_named():
    linear = ss.LocalLevel(1.0, 1.0)
    with pytest.raises(TypeError, match="its `initial` is a Gaussian; the method needs Switching"):
        ss.filter(linear, Y, method=ss.RaoBlackwellised(4), key=KEY)
    curved = ss.Model(
        MODEL.initial,
        ss.Switching(MODEL.kernel, [lambda x, step: None]),
        MODEL.observation,
    )
    with pytest.raises(TypeError, match="in its `transition` the conditional of regime 0"):
        ss.filter(curved, Y, method=ss.RaoBlackwellised(4), key=KEY)
    with pytest.raises(ValueError, match="the data have 2 channels"):
        ss.filter(MODEL, np.zeros((3, 2)), method=ss.RaoBlackwellised(4), key=KEY)
    with pytest.raises(ValueError, match="`particles` of RaoBlackwellised must be at least 1"):
        ss.RaoBlackwellised(0)
    with pytest.raises(ValueError, match="give `key=`"):
        ss.filter(MODEL, Y, method=ss.RaoBlackwellised(4))
    loose = ss.Switching(MODEL.initial.kernel, [ss.Gaussian([0.0, 0], [1.0, 1], [True, False])])
    diffuse = ss.Model(loose, MODEL.transition, MODEL.observation)
    with pytest.raises(ValueError, match="needs a proper `initial`"):
        ss.filter(diffuse, Y, method=ss.RaoBlackwellised(4), key=KEY)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"matrix": np.eye(2)}, "`matrix` of SwitchingLinearGaussian must have a leading axis"),
        ({"scale": [[0.1, 0.1]] * 3}, r"`scale` must have shape \(2, 2\)"),
        ({"observation_scale": [[-0.1]]}, "`observation_scale` must be positive"),
        ({"offset": [0.0, 1.0]}, "`offset` must have shape"),
        ({"scale": [[[1.0, 1.0], [0.0, 1.0]]]}, "`scale` must be lower triangular"),
    ],
)
def test_bad_arrays_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        ss.SwitchingLinearGaussian(**ARRAYS | change)
