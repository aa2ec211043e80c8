"""Hidden semi-Markov models against the sum over all segmentations, with their durations' probabilities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.special import logsumexp

import statespace as ss
from statespace.conditionals.finite import check_probabilities
from statespace.parameters import constrain, parameters, supports, unconstrain

FIRST = np.array([0.5, 0.3, 0.2])
MOVES = np.array([[0, 0.7, 0.3], [0.4, 0, 0.6], [0.9, 0.1, 0]])
MEAN, SCALE = np.array([-1.0, 0.5, 2.0]), np.array([0.8, 1.2, 0.9])
T = 7
D = np.arange(1, T + 1)

RAGGED = np.array([[0.1, 0.5, 0.4, 0, 0], [0.3, 0, 0.3, 0.2, 0.2], [1.0, 0, 0, 0, 0]])
LAWS = {
    "any probabilities": (
        ss.durations.Probabilities(RAGGED),
        lambda k, d: np.append(RAGGED[k], [0] * 9)[d - 1],
    ),
    "geometric": (
        ss.durations.Geometric([0.2, 0.5, 0.9]),
        lambda k, d: stats.geom.pmf(d, [0.2, 0.5, 0.9][k]),
    ),
    "Pascal": (
        ss.durations.Pascal([0.6, 0.8, 0.5], stages=(1, 2, 3)),
        lambda k, d: stats.nbinom.pmf(d - k - 1, k + 1, [0.6, 0.8, 0.5][k]),
    ),
    "shifted Poisson": (
        ss.durations.Poisson([1.5, 3.0, 0.4], maximum=T),
        lambda k, d: stats.poisson.pmf(d - 1, [1.5, 3.0, 0.4][k]),
    ),
    "shifted negative binomial": (
        ss.durations.NegativeBinomial([1.5, 3.0, 0.4], [0.7, 2.0, 5.0], maximum=T),
        lambda k, d: stats.nbinom.pmf(d - 1, n := [0.7, 2.0, 5.0][k], n / (n + [1.5, 3.0, 0.4][k])),
    ),
}


def model(law):
    emission = ss.emissions.Gaussian(MEAN, SCALE)
    return ss.HiddenSemiMarkov(FIRST, MOVES, law, emission, state_names=["low", "middle", "high"])


def data(weights=None):
    y = np.random.default_rng(1).normal(0.5, 1.5, size=T)
    y[4] = np.nan
    return ss.Series(y, state_weights=weights)


WEIGHTS = np.where(np.arange(T)[:, None] % 3 == 1, [1.0, 0.2, 3.0], np.nan)


def segmentations(pmf, series):
    """All sequences of stays that fill the recording, the last one cut, and their log weights."""
    y = np.asarray(series.y)
    logs = np.where(np.isnan(y)[:, None], 0, stats.norm(MEAN, SCALE).logpdf(y[:, None]))
    if series.state_weights is not None:
        known = ~np.isnan(series.state_weights)
        logs = logs + np.where(known, np.log(np.where(known, series.state_weights, 1)), 0)
    paths, weights = [], []
    chances = [pmf(k, D) for k in range(3)]

    def go(path, weight, state):
        left = T - len(path)
        for d in range(1, left + 1):
            whole = path + [state] * d
            if d == left:  # the stay may go on after the end
                chance = 1 - chances[state][: d - 1].sum()
                if chance > 1e-14:
                    paths.append(whole)
                    weights.append(weight + np.log(chance) + logs[np.arange(T), whole].sum())
            elif (chance := chances[state][d - 1]) > 0:
                for after in range(3):
                    if MOVES[state, after] > 0:
                        go(whole, weight + np.log(chance * MOVES[state, after]), after)

    for k in range(3):
        go([], np.log(FIRST[k]), k)
    return np.array(paths), np.array(weights)


@pytest.mark.parametrize(
    ("name", "weights"),
    [("any probabilities", WEIGHTS), *((name, None) for name in LAWS)],
    ids=["soft labels", *LAWS],
)
def test_against_all_segmentations(name, weights):
    law, pmf = LAWS[name]
    series = data(weights)
    paths, logs = segmentations(pmf, series)
    total = logsumexp(logs)
    weight = np.exp(logs - total)
    posterior = ss.smooth(model(law), series)
    np.testing.assert_allclose(posterior.log_likelihood, total, rtol=1e-11)
    np.testing.assert_allclose(ss.log_likelihood(model(law), series), total, rtol=1e-11)
    probs = np.stack([weight @ (paths == k) for k in range(3)], axis=1)
    np.testing.assert_allclose(posterior.probs, probs, atol=1e-11)
    pairs = np.einsum(
        "n,ntj,ntk->tjk", weight, *(np.eye(3)[paths[:, s]] for s in (slice(-1), slice(1, None)))
    )
    np.testing.assert_allclose(posterior.pairs, pairs, atol=1e-11)
    if name != "Pascal":  # there a path has several ways through the stages
        np.testing.assert_array_equal(posterior.most_likely, paths[np.argmax(logs)])
    assert posterior.names == ("low", "middle", "high")
    np.testing.assert_allclose(posterior.filtered[-1], probs[-1], atol=1e-11)


def test_one_substate_each_is_the_hidden_markov_model():
    leave = np.array([0.2, 0.5, 0.9])
    plain = np.diag(1 - leave) + leave[:, None] * MOVES
    markov = ss.Model(
        ss.Categorical(FIRST), ss.FiniteKernel(plain), ss.emissions.Gaussian(MEAN, SCALE)
    )
    semi = model(ss.durations.Geometric(leave))
    assert semi.transition.aggregate == (0, 1, 2)
    np.testing.assert_allclose(
        ss.log_likelihood(semi, data()), ss.log_likelihood(markov, data()), rtol=1e-13
    )
    # concentration 1 is geometric, so the tail beyond the maximum is exact
    law = ss.durations.NegativeBinomial(1 / leave - 1, np.ones(3), maximum=(1, 2, 4))
    np.testing.assert_allclose(
        ss.log_likelihood(model(law), data()), ss.log_likelihood(markov, data()), rtol=1e-12
    )


@pytest.mark.parametrize("maximum", [3, 60, (5, 200)])
def test_hazards_far_in_the_tail(maximum):
    """Against SciPy's log survival function, where one minus the distribution has no digits left."""
    further, size = np.array([4.0, 12.0]), np.array([3.0, 0.6])
    law = ss.durations.NegativeBinomial(further, size, maximum)
    leave, stay = law.log_hazards()
    for k, end in enumerate(law.parts):
        n = np.arange(end)
        exact = stats.nbinom(size[k], size[k] / (size[k] + further[k]))
        want = exact.logpmf(n) - exact.logsf(n - 1)
        np.testing.assert_allclose(leave[k, :end], want, atol=1e-8)
        np.testing.assert_allclose(jnp.exp(leave) + jnp.exp(stay), 1, rtol=1e-12)
    poisson = ss.durations.Poisson([4.0, 30.0], maximum)
    for k, end in enumerate(poisson.parts):
        n = np.arange(end)
        exact = stats.poisson([4.0, 30.0][k])
        want = exact.logpmf(n) - exact.logsf(n - 1)
        np.testing.assert_allclose(poisson.log_hazards()[0][k, :end], want, atol=1e-8)


def test_mean_durations():
    np.testing.assert_allclose(ss.durations.Geometric([0.2, 0.5]).mean, [5, 2], rtol=1e-12)
    np.testing.assert_allclose(ss.durations.Pascal([0.2, 0.5], (3, 4)).mean, [15, 8], rtol=1e-12)
    np.testing.assert_allclose(ss.durations.Poisson([3.0, 7.0], 80).mean, [4, 8], rtol=1e-9)
    law = ss.durations.NegativeBinomial([3.0, 7.0], [0.8, 4.0], (90, 120))
    np.testing.assert_allclose(law.mean, [4, 8], rtol=0.01)
    np.testing.assert_allclose(
        ss.durations.Probabilities(RAGGED).mean, RAGGED @ [1, 2, 3, 4, 5], rtol=1e-12
    )


def test_gradients_and_supports():
    law = ss.durations.NegativeBinomial([1.5, 3.0, 0.4], [0.7, 2.0, 5.0], maximum=(3, T, 1))
    m, series = model(law), data()
    names = {
        "initial_probs",
        "transition.probs",
        "transition.durations.further",
        "transition.durations.concentration",
        "emission.mean",
        "emission.scale",
    }
    assert set(parameters(m)) == names == set(supports(m))
    free = unconstrain(m)
    f = jax.jit(lambda z: ss.log_likelihood(constrain(m, z), series))
    gradient = jax.grad(f)(free)
    for name, value in free.items():
        for i in np.ndindex(value.shape):
            e = jnp.zeros(value.shape).at[i].set(1e-5)
            ahead, behind = (f(free | {name: value + s * e}) for s in (1, -1))
            np.testing.assert_allclose(gradient[name][i], (ahead - behind) / 2e-5, atol=1e-7)
    again = constrain(m, jax.tree.map(lambda x: x + 0.1, free))
    check_probabilities("again", again.transition.matrix(None))
    assert np.all(np.diagonal(again.transition.probs) == 0)


EM_LAWS = {
    "Poisson": (ss.durations.Poisson([3.0, 5.0, 5.0], maximum=25), [6.0, 2.0, 10.0]),
    "probabilities": (ss.durations.Probabilities(np.full((3, 20), 1 / 20)), [6.0, 2.0, 10.0]),
}


@pytest.mark.filterwarnings("ignore:expectation maximisation did not converge")
@pytest.mark.parametrize("name", EM_LAWS)
def test_em_ascends_and_finds_the_mean_durations(name):
    law, means = EM_LAWS[name]
    truth = model(ss.durations.Poisson(np.array(means) - 1, maximum=25))
    apart = ss.emissions.Gaussian([-3.0, 0.0, 3.0], SCALE)
    truth = ss.HiddenSemiMarkov(FIRST, MOVES, truth.transition.durations, apart)
    y = ss.simulate(truth, 900, key=jax.random.key(3)).y
    start = ss.HiddenSemiMarkov(
        np.ones(3) / 3, [[0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]], law, apart
    )
    fitted = ss.fit(start, y, learner=ss.EM(iterations=12, tolerance=0.0))
    assert np.diff(fitted.trace).min() > -1e-8
    np.testing.assert_allclose(fitted.model.transition.durations.mean, means, rtol=0.15)
    np.testing.assert_allclose(fitted.model.transition.probs, MOVES, atol=0.2)


@pytest.mark.parametrize("name", ["any probabilities", "Pascal", "shifted negative binomial"])
def test_m_step_is_at_the_maximum(name):
    """No gradient is left of the expected log probability, in the unconstrained space."""
    law = LAWS[name][0]
    kernel = ss.SemiMarkovKernel(MOVES, law)
    parts = len(kernel.aggregate)
    possible = kernel.matrix(None) > 0
    counts = jnp.asarray(np.random.default_rng(0).gamma(2.0, size=(1, 1, parts, parts))) * possible
    new = kernel.m_step(counts, None)

    def expected(free):
        a = constrain(new, free).matrix(None)
        return jnp.sum(jnp.where(possible, counts[0, 0] * jnp.log(jnp.where(possible, a, 1)), 0))

    for slope in jax.jit(jax.grad(expected))(unconstrain(new)).values():
        np.testing.assert_allclose(slope, 0, atol=1e-3)


def test_simulated_stays_have_their_law():
    m = model(ss.durations.Probabilities(RAGGED))
    states = np.asarray(ss.simulate(m, 6000, key=jax.random.key(0)).states)
    change = np.flatnonzero(np.diff(states)) + 1
    lengths, which = np.diff(change), states[change[:-1]]
    for k in range(3):
        stays = lengths[which == k]
        share = np.bincount(stays, minlength=6)[1:] / len(stays)
        np.testing.assert_allclose(share, RAGGED[k], atol=4 * np.sqrt(0.25 / len(stays)))
    assert ss.simulate(m, 4, key=jax.random.key(0), initial_state=2).states[0] == 2


def test_draws_online_forecast_and_panel():
    m, series = model(LAWS["any probabilities"][0]), data()
    smoothed, filtered = ss.smooth(m, series), ss.filter(m, series)
    draws = np.asarray(ss.sample_states(m, series, key=jax.random.key(0), draws=4000))
    share = np.stack([(draws == k).mean(axis=0) for k in range(3)], axis=1)
    np.testing.assert_allclose(share, smoothed.probs, atol=0.04)
    online = ss.online(m, ss.ForwardBackward(lag=2))
    state = online.init()
    for y in np.asarray(series.y):
        state = online.update(state, y)
    np.testing.assert_allclose(state.probs, filtered.probs[-1], atol=1e-12)
    np.testing.assert_allclose(state.smoothed, smoothed.probs[::-1][:3], atol=1e-12)
    ahead = ss.forecast(m, series, steps=3)
    law = np.asarray(smoothed.parts.probs[-1])
    parts = np.asarray(m.transition.aggregate)
    for h in range(3):
        law = law @ np.asarray(m.transition.matrix(None))
        by_state = [law[parts == k].sum() for k in range(3)]
        np.testing.assert_allclose(ahead.probs[h], by_state, atol=1e-12)
        np.testing.assert_allclose(ahead.mean[h, 0], by_state @ MEAN, rtol=1e-10)
    assert ahead.sample(jax.random.key(1), 5).shape == (5, 3, 1)
    panel = ss.smooth(m, [series, ss.Series(series.y[:4])])
    np.testing.assert_allclose(panel[0].probs, smoothed.probs, atol=1e-12)
    np.testing.assert_allclose(panel[1].probs, ss.smooth(m, series.y[:4]).probs, atol=1e-12)
    np.testing.assert_array_equal(panel[1].most_likely, ss.smooth(m, series.y[:4]).most_likely)


def test_an_absorbing_state_is_never_left():
    moves = [[0, 1.0, 0], [0, 0, 1.0], [0, 0, 1.0]]
    m = ss.HiddenSemiMarkov(
        [1.0, 0, 0],
        moves,
        ss.durations.Probabilities(RAGGED),
        ss.emissions.Gaussian(MEAN, SCALE),
    )
    states = np.asarray(ss.simulate(m, 40, key=jax.random.key(1)).states)
    assert np.all(np.diff(states) >= 0)
    assert states[-1] == 2


@pytest.mark.parametrize(
    ("message", "build"),
    {
        "zeros on the diagonal": lambda: ss.SemiMarkovKernel(
            [[0.5, 0.5], [1, 0]], ss.durations.Geometric([0.5, 0.5])
        ),
        "are of 3 states, but `probs` is over 2": lambda: ss.SemiMarkovKernel(
            [[0, 1.0], [1.0, 0]], ss.durations.Geometric([0.5] * 3)
        ),
        "`durations` must be one of": lambda: ss.SemiMarkovKernel([[0, 1.0], [1.0, 0]], [3, 4]),
        r"`maximum` of durations .* each of the 2": lambda: ss.durations.Poisson(
            [1.0, 2.0], (3, 0)
        ),
        "`stages` of durations": lambda: ss.durations.Pascal([0.5, 0.5], 1.5),
        "`leave` must be strictly between": lambda: ss.durations.Geometric([0.5, 1.5]),
        "`rate` of durations must have shape": lambda: ss.durations.Poisson([[1.0]], 3),
        r"shape \(K, D\)": lambda: ss.durations.Probabilities([0.5, 0.5]),
        "`initial_probs` must have shape": lambda: ss.HiddenSemiMarkov(
            [1.0], MOVES, LAWS["geometric"][0], None
        ),
        "`emission` is of 2 states": lambda: ss.HiddenSemiMarkov(
            FIRST, MOVES, LAWS["geometric"][0], ss.emissions.Poisson([1.0, 2.0])
        ),
        "`state_names` must be 3": lambda: ss.HiddenSemiMarkov(
            FIRST, MOVES, LAWS["geometric"][0], ss.emissions.Poisson([1.0, 2.0, 3.0]), ["a"]
        ),
        "must give each of the 3 states": lambda: ss.smooth(
            model(LAWS["geometric"][0]), data()
        ).fold([0, 1]),
    }.items(),
)
def test_errors(message, build):
    with pytest.raises((ValueError, TypeError), match=message):
        build()
