"""Verbs on models of a finite state, against the sum over all paths."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy import stats
from scipy.special import logsumexp

import statespace as ss

K, T = 3, 5
LEVEL = np.array([[-1.0, 0.5], [0.0, 1.0], [2.0, -1.0]])
LOGITS = np.array([[1.0, 0.2, -1.0], [0.0, 0.5, 0.3], [-0.4, 0.1, 0.8]])
DRIVE = np.array([[0.5, -1.0, 0.0], [0.2, 0.0, 0.7], [-0.3, 0.4, 0.1]])[..., None]
FIRST = np.array([0.5, 0.3, 0.2])
INPUTS = np.array([0.1, -0.5, 1.2, 0.4, -0.8])
SCALE = 0.8


def driven_model():
    """Transitions by the input, a normal with independent channels in each state."""
    return ss.Model(
        initial=ss.Categorical(FIRST),
        transition=ss.SoftmaxKernel(LOGITS, DRIVE),
        observation=lambda z, step: dist.Normal(jnp.asarray(LEVEL)[z], SCALE).to_event(1),
    )


def data(weights=None):
    y = np.random.default_rng(0).normal(size=(T, 2))
    y[1, 0] = y[3] = np.nan
    return ss.Series(y, inputs=INPUTS, state_weights=weights)


WEIGHTS = np.array([[1, 2, 0.5], [np.nan] * 3, [0, 1, 0], [3, 3, 3], [0.2, 0, 1.0]])


def kernels():
    logits = LOGITS + DRIVE[..., 0] * INPUTS[:, None, None]
    return np.exp(logits - logsumexp(logits, axis=2, keepdims=True))


def densities(y):
    each = stats.norm(LEVEL, SCALE).logpdf(np.asarray(y)[:, None])
    return np.where(np.isnan(each), 0, each).sum(axis=2)


def paths(weights=None):
    """All paths, and the joint log density of each with the data."""
    log_b = densities(data().y)
    if weights is not None:
        with np.errstate(divide="ignore"):
            log_b = log_b + np.where(np.isnan(weights), 0, np.log(weights))
    every = np.array(list(itertools.product(range(K), repeat=T)))
    joint = np.log(FIRST)[every[:, 0]] + log_b[np.arange(T), every].sum(axis=1)
    moves = np.log(kernels())
    for t in range(1, T):
        joint += moves[t][every[:, t - 1], every[:, t]]
    return every, joint


@pytest.fixture(scope="module", params=[None, WEIGHTS], ids=["observations", "soft labels too"])
def enumerated(request):
    every, joint = paths(request.param)
    total = logsumexp(joint)
    return data(request.param), every, joint, total, np.exp(joint - total)


def test_likelihood_smoother_and_path(enumerated):
    series, every, joint, total, weight = enumerated
    m = driven_model()
    np.testing.assert_allclose(ss.log_likelihood(m, series), total, rtol=1e-12)
    posterior = ss.smooth(m, series)
    probs = np.stack([[weight[every[:, t] == k].sum() for k in range(K)] for t in range(T)])
    np.testing.assert_allclose(posterior.probs, probs, atol=1e-12)
    np.testing.assert_allclose(posterior.mean, probs, atol=1e-12)
    pairs = np.zeros((T - 1, K, K))
    for path, w in zip(every, weight, strict=True):
        pairs[np.arange(T - 1), path[:-1], path[1:]] += w
    np.testing.assert_allclose(posterior.pairs, pairs, atol=1e-12)
    np.testing.assert_array_equal(posterior.most_likely, every[np.argmax(joint)])
    np.testing.assert_allclose(posterior.pointwise.sum(), total, rtol=1e-12)
    cumulative = probs.cumsum(axis=1)
    np.testing.assert_array_equal(posterior.quantile(0.5), (cumulative < 0.5).sum(axis=1))


def test_parallel_gives_the_same(enumerated):
    series = enumerated[0]
    m, parallel = driven_model(), ss.ForwardBackward(parallel=True)
    one, other = ss.smooth(m, series), ss.smooth(m, series, method=parallel)
    np.testing.assert_allclose(other.probs, one.probs, atol=1e-12)
    np.testing.assert_allclose(other.pointwise, one.pointwise, atol=1e-12)


def test_filter_is_the_smoother_of_what_has_come():
    series, m = data(), driven_model()
    filtered = ss.filter(m, series)
    for t in range(1, T + 1):
        part = ss.Series(series.y[:t], inputs=INPUTS[:t])
        np.testing.assert_allclose(ss.smooth(m, part).probs[-1], filtered.probs[t - 1], atol=1e-12)
    with pytest.raises(ValueError, match="use `smooth`"):
        _ = filtered.pairs
    np.testing.assert_array_equal(filtered.most_likely, np.argmax(filtered.probs, axis=1))


def test_panel_of_unequal_length():
    series, m = data(WEIGHTS), driven_model()
    short = ss.Series(series.y[:3], inputs=INPUTS[:3])
    alone = [ss.smooth(m, s) for s in (series, short)]
    panel = ss.smooth(m, [series, short])
    for a, b in zip(alone, panel, strict=True):
        np.testing.assert_allclose(a.probs, b.probs, atol=1e-12)
        np.testing.assert_allclose(a.pairs, b.pairs, atol=1e-12)
        np.testing.assert_allclose(a.log_likelihood, b.log_likelihood, rtol=1e-12)
        np.testing.assert_array_equal(a.most_likely, b.most_likely)
    total = sum(float(a.log_likelihood) for a in alone)
    np.testing.assert_allclose(ss.log_likelihood(m, [series, short]), total, rtol=1e-12)


def test_drawn_paths_have_their_probabilities(enumerated, key):
    """20,000 paths: Pearson's test of their frequencies, rare ones taken together, at 0.1 percent."""
    series, every, _, _, weight = enumerated
    n = 20_000
    draws = np.asarray(ss.sample_states(driven_model(), series, key=key, draws=n))
    number = draws @ K ** np.arange(T - 1, -1, -1)
    order = every @ K ** np.arange(T - 1, -1, -1)
    seen = np.bincount(number, minlength=K**T)[order]
    assert not seen[weight < 1e-12].any()
    often = n * weight >= 5
    lumped = lambda x: np.append(x[often], x[~often].sum())
    assert stats.chisquare(lumped(seen), lumped(n * weight)).pvalue > 1e-3
    again = ss.smooth(driven_model(), series).sample(key, 2000)
    assert again.shape == (2000, T)


def test_online_with_a_lag(enumerated):
    series, m = data(), driven_model()
    filter = ss.online(m, ss.ForwardBackward(lag=2))
    state = filter.init()
    for t in range(T):
        state = filter.update(state, series.y[t], inputs=INPUTS[t : t + 1])
        part = ss.smooth(m, ss.Series(series.y[: t + 1], inputs=INPUTS[: t + 1]))
        reach = min(t, 2) + 1
        np.testing.assert_allclose(state.smoothed[:reach], part.probs[::-1][:reach], atol=1e-12)
        np.testing.assert_allclose(state.log_likelihood, part.log_likelihood, rtol=1e-12)
    with pytest.raises(ValueError, match="must be after the previous"):
        filter.update(state, series.y[0], inputs=INPUTS[:1], time=0.0)


def test_forecast_is_the_mixture(key):
    """At moments after the data and between them; 4,000 paths for the quantiles."""
    y = np.random.default_rng(1).normal(size=20) + 1.0
    means, sd = np.array([-1.0, 2.0]), np.array([0.5, 1.0])
    a = np.array([[0.9, 0.1], [0.3, 0.7]])
    m = ss.Model(
        ss.Categorical([0.5, 0.5]),
        ss.FiniteKernel(a),
        lambda z, step: dist.Normal(jnp.asarray(means)[z], jnp.asarray(sd)[z]),
    )
    ahead = ss.forecast(m, y, 3)
    last = np.asarray(ss.filter(m, y).probs[-1])
    for h in range(3):
        p = last @ np.linalg.matrix_power(a, h + 1)
        mean = p @ means
        np.testing.assert_allclose(ahead.probs[h], p, rtol=1e-12)
        np.testing.assert_allclose(ahead.mean[h], mean, rtol=1e-12)
        np.testing.assert_allclose(ahead.std[h] ** 2, p @ (sd**2 + means**2) - mean**2, rtol=1e-10)
    came = np.array([0.3, np.nan, -1.2])
    score = ahead.score(came)
    p = np.asarray(ahead.probs)
    expected = np.log((p * stats.norm(means, sd).pdf(came[:, None])).sum(axis=1))
    np.testing.assert_allclose(score.pointwise[[0, 2]], expected[[0, 2]], rtol=1e-10)
    draws = np.asarray(ahead.sample(key, 4000))
    assert draws.shape == (4000, 3, 1)
    assert abs(draws[:, 0].mean() - ahead.mean[0, 0]) < 5 * ahead.std[0, 0] / np.sqrt(4000)
    low, high = ahead.interval(0.9)
    cdf = lambda x, h: p[h] @ stats.norm(means, sd).cdf(x)
    np.testing.assert_allclose(cdf(np.asarray(low)[0], 0), 0.05, atol=0.015)
    np.testing.assert_allclose(cdf(np.asarray(high)[0], 0), 0.95, atol=0.015)
    hole = y.copy()
    hole[7] = np.nan
    between = ss.forecast(m, hole, times=[7.0])
    np.testing.assert_allclose(between.probs[0], ss.smooth(m, hole).probs[7], rtol=1e-12)


def test_forecast_of_categories_has_the_moments_of_their_numbers():
    """Two categorical channels: probabilities of state and category written out."""
    start, a = np.array([0.2, 0.8]), np.array([[0.9, 0.1], [0.3, 0.7]])
    chances = np.array([[[0.5, 0.3, 0.2], [1.0, 0.0, 0.0]], [[0.1, 0.1, 0.8], [0.2, 0.2, 0.6]]])
    m = ss.Model(
        ss.Categorical(start),
        ss.FiniteKernel(a),
        lambda z, step: dist.Categorical(jnp.asarray(chances)[z]).to_event(1),
    )
    made = ss.forecast(m, np.array([[2.0, 0.0]]), 1)
    now = start * chances[:, 0, 2] * chances[:, 1, 0]
    p = np.einsum("k,kmc->mc", now / now.sum() @ a, chances)
    mean = p @ np.arange(3)
    np.testing.assert_allclose(made.mean[0], mean, rtol=1e-10)
    np.testing.assert_allclose(made.std[0] ** 2, p @ np.arange(3) ** 2 - mean**2, rtol=1e-10)


def test_pseudo_residuals_are_standard_normal(key):
    """Of the true model: 2,000 residuals by Kolmogorov-Smirnov, and without correlation."""
    from statespace.learners.likelihood import standardised_errors

    m = ss.Model(
        ss.Categorical([0.5, 0.5]),
        ss.FiniteKernel([[0.95, 0.05], [0.1, 0.9]]),
        lambda z, step: dist.Normal(jnp.array([-2.0, 2.0])[z], jnp.array([1.0, 0.3])[z]),
    )
    y = ss.simulate(m, 2000, key=key).y
    series = ss.Series(np.asarray(y))
    u = np.asarray(standardised_errors(m, series, ss.ForwardBackward()))[:, 0]
    assert stats.kstest(u, "norm").pvalue > 0.01
    assert abs(np.corrcoef(u[1:], u[:-1])[0, 1]) < 4 / np.sqrt(2000)


def test_simulation_follows_the_kernel(key):
    """5,000 moves: their frequencies within 5 standard errors; observations those of their states."""
    a = np.array([[0.9, 0.1, 0.0], [0.2, 0.5, 0.3], [0.0, 0.4, 0.6]])
    m = ss.Model(
        ss.Categorical([0, 0, 1.0]), ss.FiniteKernel(a), lambda z, step: dist.Delta(2.0 * z)
    )
    states, y = ss.simulate(m, 5000, key=key)
    states = np.asarray(states)
    assert states[0] == 2
    np.testing.assert_array_equal(np.asarray(y)[:, 0], 2 * states)
    for j in range(3):
        to = states[1:][states[:-1] == j]
        share = np.bincount(to, minlength=3) / len(to)
        assert np.all(np.abs(share - a[j]) <= 5 * np.sqrt(a[j] * (1 - a[j]) / len(to)))


def test_multivariate_normal_with_gaps():
    covariance = np.array([[1.0, 0.6, 0.2], [0.6, 2.0, -0.3], [0.2, -0.3, 0.5]])
    means = np.array([[0.0, 1.0, 2.0], [1.0, -1.0, 0.0]])
    m = ss.Model(
        ss.Categorical([0.4, 0.6]),
        ss.FiniteKernel([[0.7, 0.3], [0.2, 0.8]]),
        lambda z, step: dist.MultivariateNormal(jnp.asarray(means)[z], jnp.asarray(covariance)),
    )
    y = np.array([[0.3, np.nan, 1.0], [np.nan] * 3, [0.1, -0.2, 0.5]])
    chain = ss.ForwardBackward().lower(m, ss.Series(y))
    seen = [0, 2]
    part = covariance[np.ix_(seen, seen)]
    for k in range(2):
        np.testing.assert_allclose(
            chain.potentials[:, k],
            [
                stats.multivariate_normal(means[k][seen], part).logpdf(y[0, seen]),
                0.0,
                stats.multivariate_normal(means[k], covariance).logpdf(y[2]),
            ],
            atol=1e-12,
        )


def test_to_pandas_and_arviz():
    import pandas as pd

    frame = pd.DataFrame(
        np.asarray(data().y), index=pd.date_range("2020-01-01", periods=T), columns=["a", "b"]
    )
    posterior = ss.smooth(driven_model(), ss.Series(frame, inputs=INPUTS))
    table = posterior.to_pandas()
    assert list(table.columns) == ["0", "1", "2", "most_likely"]
    assert (table.index == frame.index).all()
    groups = posterior.to_arviz(draws=7)
    assert groups["posterior"]["states"].shape == (1, 7, T)
    assert list(np.asarray(groups["observed_data"]["channel"])) == ["a", "b"]


def two_states(observation=None, initial=None, transition=None):
    return ss.Model(
        initial if initial is not None else ss.Categorical([0.5, 0.5]),
        transition if transition is not None else ss.FiniteKernel([[0.7, 0.3], [0.2, 0.8]]),
        observation or (lambda z, step: dist.Normal(1.0 * z, 1.0)),
    )


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ss.smooth(two_states(), np.ones((4, 2))), ValueError, "the data have 2 channels"),
        (
            lambda: ss.smooth(two_states(), ss.Series(np.ones(4), state_weights=np.ones((4, 3)))),
            ValueError,
            "over 3 states, but the model has 2",
        ),
        (
            lambda: ss.Series(np.ones(4), state_weights=np.ones((3, 2))),
            ValueError,
            r"shape \(4, K\), one row for each moment",
        ),
        (
            lambda: ss.Series(np.ones(2), state_weights=[[1, -1], [1, 1]]),
            ValueError,
            "row 0 of `state_weights`",
        ),
        (
            lambda: ss.Series(np.ones(2), state_weights=[[1, 1], [0, 0]]),
            ValueError,
            "row 1 of `state_weights`",
        ),
        (
            lambda: ss.smooth(two_states(initial=ss.Categorical([1.0])), np.ones(4)),
            ValueError,
            r"matrices of shape \(2, 2\), but `initial` is over 1",
        ),
        (
            lambda: ss.smooth(two_states(initial=ss.Gaussian([0.0], [1.0])), np.ones(4)),
            TypeError,
            "ForwardBackward does not fit this model: its `initial`",
        ),
        (
            lambda: ss.smooth(ss.LocalLevel(1.0, 1.0), np.ones(4), method=ss.ForwardBackward()),
            TypeError,
            "ForwardBackward does not fit this model: its `transition`",
        ),
        (
            lambda: ss.smooth(two_states(), np.ones(4), method=ss.Kalman()),
            TypeError,
            "Kalman does not fit this model",
        ),
        (
            lambda: ss.smooth(
                two_states(lambda z, step: dist.Dirichlet(jnp.ones(2))), [[np.nan, 0.5], [0.5, 0.5]]
            ),
            ValueError,
            "row 0 is missing in part, and Dirichlet",
        ),
        (
            lambda: ss.smooth(
                two_states(transition=ss.SoftmaxKernel(np.zeros((2, 2)), np.zeros((2, 2, 1)))),
                np.ones(4),
            ),
            ValueError,
            "SoftmaxKernel needs inputs",
        ),
        (lambda: ss.ForwardBackward(lag=-1), ValueError, "must not be negative"),
    ],
)
def test_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_one_state_and_one_moment():
    one = ss.Model(
        ss.Categorical([1.0]), ss.FiniteKernel([[1.0]]), lambda z, step: dist.Normal(0.0, 2.0)
    )
    y = np.array([0.5, np.nan, 1.0])
    expected = stats.norm(0, 2).logpdf(y[[0, 2]]).sum()
    np.testing.assert_allclose(ss.log_likelihood(one, y), expected, rtol=1e-12)
    posterior = ss.smooth(two_states(), np.array([0.7]))
    weight = stats.norm([0, 1], 1).pdf(0.7)
    np.testing.assert_allclose(posterior.probs[0], weight / weight.sum(), rtol=1e-12)


def test_impossible_data_are_impossible():
    """Minus infinity, and no NaN in the posterior or the gradient."""
    m = two_states(lambda z, step: dist.Poisson(jnp.array([0.0, 0.0])[z]))
    y = np.array([0.0, 3.0, 0.0])
    assert ss.log_likelihood(m, y) == -np.inf
    assert np.isfinite(ss.smooth(m, y).probs).all()
    driven = lambda a: two_states(m.observation, transition=ss.FiniteKernel(a))
    gradient = jax.grad(lambda a: ss.log_likelihood(driven(a), y))
    assert np.isfinite(gradient(jnp.array([[0.7, 0.3], [0.2, 0.8]]))).all()
