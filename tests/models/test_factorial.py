"""Factorial models against the sum over all pairs of paths."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.special import logsumexp

import statespace as ss
from statespace.parameters import parameters

FIRST = np.array([0.7, 0.3]), np.array([0.5, 0.2, 0.3])
MOVES = (
    np.array([[0.9, 0.1], [0.4, 0.6]]),
    np.array([[0.6, 0.3, 0.1], [0, 0.5, 0.5], [0.2, 0.2, 0.6]]),
)
EFFECTS = np.array([[0.0, 1.0], [2.0, -1.0]]), np.array([[0.0, 0.0], [1.0, 3.0], [-2.0, 0.5]])
FACTOR = np.array([[0.8, 0], [0.3, 0.6]])
RATES = np.array([1.0, 6.0]), np.array([0.5, 2.0, 9.0])
T = 4
EVERY = np.array(list(itertools.product(range(2), repeat=T)))
OTHER = np.array(list(itertools.product(range(3), repeat=T)))


def gaussian(scale=FACTOR):
    return ss.FactorialHMM(FIRST, MOVES, ss.emissions.AdditiveGaussian(EFFECTS, scale))


def poisson():
    return ss.FactorialHMM(FIRST, MOVES, ss.emissions.AdditivePoisson(RATES))


def gaussian_data():
    y = np.random.default_rng(0).normal(size=(T, 2))
    y[1, 0] = y[2] = np.nan
    return y


COUNTS = np.array([3.0, np.nan, 11.0, 7.0])


def log_normal(y):
    """``(T, 2, 3)``, over what was observed."""
    out = np.zeros((T, 2, 3))
    for t, a, b in np.ndindex(out.shape):
        seen = ~np.isnan(y[t])
        if seen.any():
            mean, cov = (EFFECTS[0][a] + EFFECTS[1][b])[seen], (FACTOR @ FACTOR.T)[seen][:, seen]
            out[t, a, b] = stats.multivariate_normal(mean, cov).logpdf(y[t][seen])
    return out


def log_poisson(y):
    rate = RATES[0][:, None] + RATES[1]
    each = stats.poisson(rate).logpmf(np.nan_to_num(y)[:, None, None])
    return np.where(np.isnan(y)[:, None, None], 0, each)


def chain_log_probs(i, paths):
    with np.errstate(divide="ignore"):
        logs = np.log(FIRST[i])[paths[:, 0]]
        for t in range(1, T):
            logs = logs + np.log(MOVES[i])[paths[:, t - 1], paths[:, t]]
    return logs


CASES = {
    "Gaussian": (gaussian, gaussian_data, log_normal),
    "Poisson": (poisson, lambda: COUNTS, log_poisson),
}


@pytest.mark.parametrize("name", CASES)
def test_against_all_pairs_of_paths(name):
    model, data, densities = CASES[name]
    m, y = model(), data()
    logs = densities(y)
    joint = chain_log_probs(0, EVERY)[:, None] + chain_log_probs(1, OTHER)[None]
    for t in range(T):
        joint = joint + logs[t][EVERY[:, t]][:, OTHER[:, t]]
    total = logsumexp(joint)
    weight = np.exp(joint - total)
    posterior = ss.smooth(m, y)
    np.testing.assert_allclose(posterior.log_likelihood, total, rtol=1e-11)
    first = np.stack([(weight.sum(axis=1) @ (k == EVERY)) for k in range(2)], axis=1)
    second = np.stack([(weight.sum(axis=0) @ (k == OTHER)) for k in range(3)], axis=1)
    np.testing.assert_allclose(posterior.factor(0).probs, first, atol=1e-11)
    np.testing.assert_allclose(posterior.factor(1).probs, second, atol=1e-11)
    both = np.stack(
        [
            np.einsum("ij,i,j->", weight, EVERY[:, 2] == a, OTHER[:, 2] == b)
            for a in range(2)
            for b in range(3)
        ]
    )
    np.testing.assert_allclose(posterior.probs[2], both, atol=1e-11)
    pair = np.einsum("ij,ja,jb->ab", weight, np.eye(3)[OTHER[:, 1]], np.eye(3)[OTHER[:, 2]])
    np.testing.assert_allclose(posterior.factor(1).pairs[1], pair, atol=1e-11)
    i, j = np.unravel_index(np.argmax(joint), joint.shape)
    np.testing.assert_array_equal(posterior.factor(0).most_likely, EVERY[i])
    np.testing.assert_array_equal(posterior.factor(1).most_likely, OTHER[j])


@pytest.mark.parametrize(("channels", "scale"), [(2, [0.5, 1.5]), (1, 0.7), (1, [0.7])])
def test_the_emission_is_the_distribution_that_it_draws_from(channels, scale):
    effects = EFFECTS if channels == 2 else [e[:, 0] for e in EFFECTS]
    emission = ss.emissions.AdditiveGaussian(effects, scale)
    y = np.random.default_rng(1).normal(size=(3, channels))
    steps = ss.Step(jnp.arange(3), jnp.arange(3.0), jnp.ones(3))
    logs = emission.log_probs(jnp.asarray(y), steps)
    for t, k in np.ndindex(3, 6):
        law = emission(k, ss.Step(t, 0.0, 1.0))
        value = y[t] if channels == 2 else y[t, 0]
        np.testing.assert_allclose(logs[t, k], law.log_prob(value), rtol=1e-12)


def test_em_finds_the_chains():
    sticky = [[0.95, 0.05], [0.1, 0.9]]
    halves = [[0.5, 0.5], [0.5, 0.5]]
    truth = ss.FactorialHMM(
        halves, [sticky, sticky], ss.emissions.AdditiveGaussian([[0.0, 1.0], [0.0, 2.5]], 0.3)
    )
    drawn = ss.simulate(truth, 1500, key=jax.random.key(1))
    start = ss.FactorialHMM(
        halves,
        [[[0.8, 0.2], [0.2, 0.8]]] * 2,
        ss.emissions.AdditiveGaussian([[0.0, 0.7], [0.0, 1.5]], 1.0),
    )
    fitted = ss.fit(start, drawn.y, learner=ss.EM(iterations=60))
    assert np.diff(fitted.trace).min() > -1e-9
    found = parameters(fitted.model)
    for i, step in enumerate((1.0, 2.5)):
        np.testing.assert_allclose(np.diff(found[f"emission.effects.{i}"]), step, atol=0.1)
        np.testing.assert_allclose(found[f"transition.kernels.{i}.probs"], sticky, atol=0.04)
    posterior = ss.smooth(fitted.model, drawn.y)
    for i, states in enumerate(np.unravel_index(np.asarray(drawn.states), (2, 2))):
        assert np.mean(np.asarray(posterior.factor(i).probs).argmax(axis=1) == states) > 0.93


def m_step(emission, y, weights, **kwargs):
    steps = ss.Step(*(jnp.zeros((1, len(y))) for _ in range(3)))
    return emission.m_step(jnp.asarray(y)[None], steps, jnp.asarray(weights)[None], **kwargs)


def expected(emission, y, weights):
    steps = ss.Step(*(jnp.zeros(len(y)) for _ in range(3)))
    return float(jnp.sum(weights * emission.log_probs(jnp.asarray(y), steps)))


@pytest.mark.parametrize("scale", [FACTOR, np.array([0.5, 1.5])])
def test_gaussian_m_step_is_at_the_maximum(scale):
    rng = np.random.default_rng(2)
    y, weights = rng.normal(size=(30, 2)), rng.dirichlet(np.ones(6), size=30)
    new = m_step(ss.emissions.AdditiveGaussian(EFFECTS, scale), y, weights)

    steps = ss.Step(*(jnp.zeros(len(y)) for _ in range(3)))

    @jax.jit
    def value(p):
        logs = ss.replace(new, p).log_probs(jnp.asarray(y), steps)
        return jnp.sum(weights * logs)

    best = value({})
    for name, array in parameters(new).items():
        for i in np.ndindex(array.shape):
            if array.ndim == 2 and array.shape == (2, 2) and name == "scale" and i == (0, 1):
                continue
            for s in (-1e-4, 1e-4):
                assert value({name: array.at[i].add(s)}) < best + 1e-12


def test_frozen_effects_stay_and_the_others_are_at_their_maximum():
    rng = np.random.default_rng(3)
    y, weights = rng.normal(size=(30, 2)), rng.dirichlet(np.ones(6), size=30)
    old = ss.emissions.AdditiveGaussian(EFFECTS, [0.5, 1.5])
    new = m_step(old, y, weights, frozen=frozenset({"effects.0", "scale"}))
    np.testing.assert_array_equal(new.effects[0], EFFECTS[0])
    np.testing.assert_array_equal(new.scale, [0.5, 1.5])
    # with the first chain known, the second is a weighted mean of what it leaves
    left = y[:, None] - EFFECTS[0][np.arange(6) // 3]
    for b in range(3):
        w = weights[:, [b, 3 + b]]
        want = np.einsum("nk,nkm->m", w, left[:, [b, 3 + b]]) / w.sum()
        np.testing.assert_allclose(new.effects[1][b], want, rtol=1e-9)


def test_poisson_m_step_ascends_to_the_maximum():
    rng = np.random.default_rng(4)
    y, weights = rng.poisson(5, size=(40, 1)) * 1.0, rng.dirichlet(np.ones(6), size=40)
    y[3] = np.nan
    emission = ss.emissions.AdditivePoisson(RATES)
    values = [expected(emission, y, weights)]
    step = jax.jit(lambda e: m_step(e, y, weights))
    for _ in range(500):
        emission = step(emission)
        values.append(expected(emission, y, weights))
    assert np.diff(values).min() > -1e-9
    steps = ss.Step(*(jnp.zeros(len(y)) for _ in range(3)))
    total = lambda r: jnp.sum(
        weights * ss.emissions.AdditivePoisson(r).log_probs(jnp.asarray(y), steps)
    )
    for rate, slope in zip(emission.rates, jax.grad(total)(emission.rates), strict=True):
        assert np.all(np.abs(slope * rate) < 1e-3)
    held = m_step(emission, y, weights, frozen=frozenset({"rates"}))
    np.testing.assert_array_equal(held.rates[0], emission.rates[0])


def test_a_chain_with_durations_among_the_chains():
    """A kernel of tuples whose second chain has sub-states: the law of each chain by itself."""
    law = ss.durations.Probabilities([[0.2, 0.5, 0.3], [0.0, 1.0, 0.0]])
    semi = ss.SemiMarkovKernel([[0, 1.0], [1.0, 0]], law)
    kernel = ss.FactorialKernel([MOVES[0], semi])
    assert kernel.factors == (2, 2)
    assert kernel.sizes == (2, 5)
    first = np.kron([0.7, 0.3], [1.0, 0, 0, 0, 0])
    emission = ss.emissions.AdditivePoisson([[1.0, 6.0], [0.5, 4.0]])
    m = ss.Model(ss.Categorical(first), kernel, emission)
    alone = ss.Model(ss.Categorical([1.0, 0, 0, 0, 0]), semi, ss.emissions.Poisson([0.5, 4.0]))
    silent = ss.Series.unobserved(np.arange(6.0))
    joint = ss.smooth(m, silent)
    np.testing.assert_allclose(joint.factor(1).probs, ss.smooth(alone, silent).probs, atol=1e-12)
    marginal = np.array([0.7, 0.3]) @ np.linalg.matrix_power(MOVES[0], 5)
    np.testing.assert_allclose(joint.factor(0).probs[-1], marginal, atol=1e-12)


@pytest.mark.parametrize(
    ("message", "build"),
    {
        "`kernels` of FactorialKernel is empty": lambda: ss.FactorialKernel([]),
        "give one law for each chain": lambda: ss.FactorialHMM(FIRST[:1], MOVES, None),
        r"`emission` is of 4 states, but the chains have 2 x 3 = 6": lambda: ss.FactorialHMM(
            FIRST, MOVES, ss.emissions.Poisson([1.0, 2.0, 3.0, 4.0])
        ),
        "`effects` is empty": lambda: ss.emissions.AdditiveGaussian([], 1.0),
        r"`rates\[1\]` must have shape": lambda: ss.emissions.AdditivePoisson(
            [[1.0, 2.0], [[1.0, 2.0]]]
        ),
        r"`rates\[0\]` must be positive": lambda: ss.emissions.AdditivePoisson([[0.0, 2.0]]),
        "`scale` must": lambda: ss.emissions.AdditiveGaussian([[0.0, 1.0]], -1.0),
        "there is no chain 2": lambda: ss.smooth(poisson(), COUNTS).factor(2),
        "is a single one": lambda: ss.smooth(poisson(), COUNTS).factor(0).factor(0),
    }.items(),
)
def test_errors(message, build):
    with pytest.raises(ValueError, match=message):
        build()
