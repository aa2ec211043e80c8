"""GLM-HMMs: the sum over all paths, EM that ascends and finds what made the data, and what is refused."""

import itertools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats as st
import statsmodels.api as sm
from scipy.special import expit, logsumexp

import statespace as ss
from statespace.parameters import replace

WEIGHTS = np.array([[[3.0, 0.0]], [[-0.5, 2.0]]])
BIAS = np.array([[0.5], [-0.5]])
STAY = np.array([[0.97, 0.03], [0.05, 0.95]])


def switching(lengths=(400, 700, 500)):
    """Sessions of a subject that weighs its two inputs by its state."""
    model = ss.GLMHMM(2, inputs=2, transition=STAY)
    model = replace(model, {"emission.weights": WEIGHTS, "emission.bias": BIAS})
    sessions, states = [], []
    for i, length in enumerate(lengths):
        u = np.random.default_rng(i).normal(size=(length, 2))
        drawn = ss.simulate(
            model, ss.Series.unobserved(np.arange(length), u), key=jax.random.key(i)
        )
        sessions.append(ss.Series(drawn.y, inputs=u))
        states.append(np.asarray(drawn.states))
    return model, sessions, states


def em(model, data, **how):
    how = {"tolerance": 1e-3, "iterations": 200} | how
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ss.ConvergenceWarning)
        return ss.fit(model, data, learner=ss.EM(**how))


def check_ascent(fitted):
    trace = np.asarray(fitted.trace)
    assert np.all(np.diff(trace) >= -1e-7 * np.abs(trace[-1]))


def test_em_finds_the_weights_from_sessions_of_unequal_length():
    truth, sessions, states = switching()
    fitted = em(ss.GLMHMM(2, inputs=2), sessions)
    check_ascent(fitted)
    model = fitted.model
    swap = model.weights[0, 0, 0] < model.weights[1, 0, 0]
    order = np.array([1, 0]) if swap else np.array([0, 1])
    np.testing.assert_allclose(np.asarray(model.weights)[order], WEIGHTS, atol=0.7)
    np.testing.assert_allclose(np.asarray(model.bias)[order], BIAS, atol=0.4)
    kept = np.asarray(model.transition_matrix)[np.ix_(order, order)]
    np.testing.assert_allclose(kept, STAY, atol=0.03)
    assert fitted.log_likelihood > ss.log_likelihood(truth, sessions)
    right = [
        np.asarray(ss.smooth(model, y).probs)[:, order].argmax(1) == z
        for y, z in zip(sessions, states)
    ]
    assert np.concatenate(right).mean() > 0.85


def test_one_state_is_logistic_regression():
    _, sessions, _ = switching((120, 80))
    fitted = em(ss.GLMHMM(1, inputs=2), sessions)
    y = np.concatenate([s.channels[:, 0] for s in sessions])
    u = np.concatenate([s.inputs for s in sessions])
    peer = sm.GLM(y, sm.add_constant(u), family=sm.families.Binomial()).fit(tol=1e-12)
    np.testing.assert_allclose(
        [fitted.model.bias[0, 0], *fitted.model.weights[0, 0]], peer.params, atol=1e-6
    )
    assert fitted.log_likelihood == pytest.approx(peer.llf, abs=1e-8)


def test_log_likelihood_is_the_sum_over_all_paths_with_history_inputs_and_gaps():
    basis = ss.emissions.Exponential(lags=3, decays=(1.0, 2.0))
    model = ss.GLMHMM(
        2, family="poisson", link="softplus", inputs=(1,), channels=2, history=basis, exposure=0.7
    )
    rng = np.random.default_rng(0)
    y, u = rng.poisson(1.0, (7, 2)).astype(float), rng.normal(size=(7, 2))
    y[2, 0] = y[4] = np.nan
    past = np.zeros((7, 2, 2))
    for t in range(7):
        for k in range(1, min(t, 3) + 1):
            past[t] += np.nan_to_num(y[t - k])[:, None] * basis.functions[k - 1]
    eta = np.einsum("td,kid->tki", u[:, 1:], model.weights) + np.asarray(model.bias)
    eta = eta + np.einsum("tjb,kijb->tki", past, model.coupling)
    each = st.poisson.logpmf(np.nan_to_num(y)[:, None], 0.7 * np.log1p(np.exp(eta)))
    each = np.where(np.isnan(y)[:, None], 0, each).sum(-1)
    move = np.log(np.asarray(model.transition_matrix))
    total = [
        np.log(0.5) + each[range(7), path].sum() + move[path[:-1], path[1:]].sum()
        for path in map(list, itertools.product(range(2), repeat=7))
    ]
    got = ss.log_likelihood(model, ss.Series(y, inputs=u))
    assert got == pytest.approx(logsumexp(total), abs=1e-10)


def test_spikes_are_drawn_from_their_own_past():
    """A channel that repeats, one bin later, what the other did; the other fires by itself."""
    model = ss.GLMHMM(1, channels=2, history=ss.emissions.Exponential(lags=1), transition=[[1.0]])
    coupling = np.zeros((1, 2, 2, 1))
    coupling[0, 1, 0] = 60
    values = {"emission.coupling": coupling, "emission.bias": np.array([[0.0, -30.0]])}
    y = np.asarray(ss.simulate(replace(model, values), 200, key=jax.random.key(1)).y)
    assert 60 < y[:, 0].sum() < 140
    np.testing.assert_array_equal(y[1:, 1], y[:-1, 0])


def test_coupled_population_is_found_and_em_ascends_with_its_priors():
    basis = ss.emissions.Exponential(lags=4)
    rng = np.random.default_rng(2)
    coupling = 1.5 * rng.choice([-1, 0, 1], (2, 3, 3, 1))
    settings = {"family": "poisson", "link": "sigmoid", "channels": 3, "history": basis}
    start = ss.GLMHMM(2, shared_bias=True, pooling=1.0, ridge=0.1, **settings)
    truth = replace(start, {"emission.coupling": coupling})
    sessions = [
        ss.Series(ss.simulate(truth, n, key=jax.random.key(i)).y) for i, n in enumerate((900, 600))
    ]
    fitted = em(start, sessions, iterations=60)
    check_ascent(fitted)
    found = np.asarray(fitted.model.coupling)
    assert fitted.model.bias.shape == (1, 3)
    error = [np.abs(found[list(o)] - coupling).mean() for o in ((0, 1), (1, 0))]
    assert min(error) < 0.3
    response = fitted.model.filters
    assert response.shape == (2, 3, 3, 4)
    np.testing.assert_allclose(response[1, 2, 0], found[1, 2, 0, 0] * basis.functions[:, 0])


def test_inputs_of_the_transitions_are_others_than_those_of_the_observation():
    """A cue decides where the state goes; it says nothing of the choice."""
    kernel = ss.SoftmaxKernel(
        logits=jnp.zeros((2, 2)), weights=jnp.zeros((2, 2, 1)).at[:, 1, 0].set(1.0), columns=1
    )
    rng = np.random.default_rng(0)
    u = rng.normal(size=(800, 2))
    u[:, 1] = np.repeat(rng.choice([-1.0, 1.0], 80), 10)
    z = (u[:, 1] > 0).astype(int)
    y = (rng.random(800) < expit(np.where(z == 0, 2.5, -2.5) * u[:, 0])).astype(float)
    start = replace(
        ss.GLMHMM(2, inputs=(0,), transition=kernel),
        {"emission.weights": np.array([[[1.0]], [[-1.0]]])},
    )
    fitted = em(start, ss.Series(y, inputs=u), iterations=30)
    check_ascent(fitted)
    np.testing.assert_allclose(np.asarray(fitted.model.weights)[:, 0, 0], [2.5, -2.5], atol=0.7)
    states = np.asarray(ss.smooth(fitted.model, ss.Series(y, inputs=u)).probs).argmax(1)
    assert (states == z).mean() > 0.9
    with pytest.raises(ValueError, match="transitions of this GLMHMM depend on the step"):
        print(fitted.model.transition_matrix)


def test_starting_weights_differ_by_key_and_by_state():
    one, two = (ss.GLMHMM(3, inputs=4, key=jax.random.key(i)) for i in (1, 2))
    assert np.abs(one.weights - two.weights).min() > 0
    assert np.abs(one.weights[0] - one.weights[1]).min() > 0
    np.testing.assert_array_equal(
        one.weights, ss.GLMHMM(3, inputs=4, key=jax.random.key(1)).weights
    )
    assert np.ptp(ss.GLMHMM(3).bias) > 0  # without regressors the states differ in their bias
    np.testing.assert_allclose(one.transition_matrix.sum(axis=1), 1)
    np.testing.assert_allclose(jnp.diagonal(one.transition_matrix), 0.95)


@pytest.mark.parametrize("family", ["categorical", "gaussian"])
def test_other_families_fit(family):
    rng = np.random.default_rng(3)
    u = rng.normal(size=(300, 1))
    z = np.repeat([0, 1, 0], 100)
    if family == "categorical":
        draw = rng.random(300)
        y = np.where(
            u[:, 0] * np.where(z == 0, 3, -3) + rng.logistic(size=300) > 0, 2.0, draw < 0.5
        )
        model = ss.GLMHMM(2, family=family, categories=3, inputs=1)
    else:
        y = np.where(z == 0, 2.0, -2.0) * u[:, 0] + 0.3 * rng.normal(size=300)
        model = ss.GLMHMM(2, family=family, inputs=1)
    fitted = em(model, ss.Series(y, inputs=u))
    check_ascent(fitted)
    found = np.asarray(ss.smooth(fitted.model, ss.Series(y, inputs=u)).probs)[:, 0] > 0.5
    right = (found == (z == 0)).mean()
    assert max(right, 1 - right) > 0.9


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"states": 0}, "`states` of GLMHMM must be at least 1, got 0"),
        ({"states": 2, "channels": 0}, "`channels` of GLMHMM must be at least 1, got 0"),
        ({"states": 2, "inputs": -1}, "`inputs` of GLMHMM must not be negative, got -1"),
        ({"states": 2, "family": "categorical"}, "`categories` of GLMHMM .* got None"),
        ({"states": 2, "categories": 3}, "`categories` of GLMHMM .* got 3 for 'bernoulli'"),
        ({"states": 2, "family": "gamma"}, "`family` of GLM must be one of"),
        ({"states": 2, "transition": np.eye(3)}, "states"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        ss.GLMHMM(**arguments)


def test_a_number_is_no_key():
    with pytest.raises(TypeError, match="`key` must be a PRNG key"):
        ss.GLMHMM(2, key=0)


def test_counts_that_are_none_are_refused_before_anything_is_compiled():
    with pytest.raises(ValueError, match="0 or 1"):
        ss.log_likelihood(ss.GLMHMM(2), np.array([0.0, 1.0, 2.0]))
