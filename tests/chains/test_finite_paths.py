"""The most probable path and sampled paths of the finite chain, against enumeration and hmmlearn."""

from functools import cache

import enumeration
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from statespace.chains import finite

CASES = enumeration.cases()
FORMS = pytest.mark.parametrize("parallel", [False, True], ids=["sequential", "parallel"])
EVERY = pytest.mark.parametrize("case", CASES)
viterbi = jax.jit(finite.viterbi, static_argnums=1)
paths = jax.jit(finite.paths, static_argnums=2)


def chain_of(arrays, dtype=float):
    return finite.Chain(*(jnp.asarray(x, dtype) for x in arrays))


@cache
def oracle(case):
    return enumeration.Paths(*CASES[case])


@EVERY
@FORMS
def test_most_probable_path(case, parallel):
    path, log_prob = viterbi(chain_of(CASES[case]), parallel)
    expected, value = oracle(case).best()
    np.testing.assert_array_equal(path, expected)
    assert float(log_prob) == pytest.approx(float(value), rel=1e-13)


@FORMS
def test_of_equally_probable_paths_the_lowest(parallel):
    even = finite.Chain(jnp.full(3, 1 / 3), jnp.full((1, 3, 3), 1 / 3), jnp.zeros((6, 3)))
    path, log_prob = viterbi(even, parallel)
    np.testing.assert_array_equal(path, np.zeros(6))
    assert float(log_prob) == pytest.approx(-6 * np.log(3), rel=1e-14)


@FORMS
@pytest.mark.parametrize("name", enumeration.IMPOSSIBLE)
def test_impossible_data_have_no_best_path(name, parallel):
    path, log_prob = viterbi(chain_of(enumeration.IMPOSSIBLE[name]), parallel)
    assert log_prob == -np.inf
    assert ((path >= 0) & (path < 3)).all()


def test_joint_log_prob_of_every_path():
    for case in ("varying", "structural zeros", "impossible states"):
        all_paths = jnp.asarray(oracle(case).paths)
        of = jax.jit(jax.vmap(finite.joint_log_prob, in_axes=(None, 0)))
        got = of(chain_of(CASES[case]), all_paths)
        np.testing.assert_allclose(got, oracle(case).log_probs.astype(float), rtol=1e-13)


@EVERY
@FORMS
def test_sampled_paths_given_their_random_numbers(case, parallel):
    uniforms = np.random.default_rng(0).uniform(size=(40, 6))
    got = paths(chain_of(CASES[case]), jnp.asarray(uniforms), parallel)
    expected = [oracle(case).draw(u) for u in uniforms]
    np.testing.assert_array_equal(got, expected)


@FORMS
@pytest.mark.parametrize("u", [0.0, 1 - 2.0**-24])
def test_a_path_of_probability_zero_is_never_drawn(parallel, u):
    """Not at the ends of what a uniform number in float32 can be either."""
    for case in ("structural zeros", "zeros and impossible states", "varying zeros"):
        low = [np.asarray(x, np.float32) for x in CASES[case]]
        ends = jnp.full((1, 6), u, jnp.float32)
        got = np.asarray(paths(chain_of(low, jnp.float32), ends, parallel))[0]
        drawn = (oracle(case).paths == got).all(axis=1)
        assert oracle(case).weights[drawn] > 0


def test_frequencies_of_sampled_paths():
    draws = 40_000
    sample = jax.jit(finite.sample, static_argnums=2)
    got = sample(chain_of(CASES["structural zeros"]), jax.random.key(1), draws)
    code = np.asarray(got) @ 3 ** np.arange(5, -1, -1)
    expected = oracle("structural zeros").weights.astype(float)
    found = np.bincount(code, minlength=3**6)
    likely = expected * draws > 5
    deviation = (found - draws * expected)[likely] / np.sqrt(draws * expected[likely])
    # Pearson's statistic, about normal with mean n and variance 2 n
    n = likely.sum()
    assert abs((deviation**2).sum() - n) < 4 * np.sqrt(2 * n)
    assert (found[expected == 0] == 0).all()


def test_draws_are_reproducible_and_differ():
    chain = chain_of(CASES["plain"])
    sample = jax.jit(finite.sample, static_argnums=2)
    one, two, three = (np.asarray(sample(chain, jax.random.key(k), 20)) for k in (0, 0, 1))
    np.testing.assert_array_equal(one, two)
    assert (one != three).any()
    assert len(np.unique(one, axis=0)) > 1


def test_a_batch_of_paths_is_its_members():
    chains = [chain_of(c) for c in CASES.values() if len(c[1]) == 1][:6]
    batch = jax.tree.map(lambda *x: jnp.stack(x), *chains)
    u = jnp.asarray(np.random.default_rng(3).uniform(size=(6, 4, 6)))
    best, value = jax.jit(jax.vmap(finite.viterbi))(batch)
    drawn = jax.jit(jax.vmap(finite.paths))(batch, u)
    for i, chain in enumerate(chains):
        path, log_prob = viterbi(chain, False)
        np.testing.assert_array_equal(best[i], path)
        assert float(value[i]) == pytest.approx(float(log_prob), rel=1e-14)
        np.testing.assert_array_equal(drawn[i], paths(chain, u[i], False))


@FORMS
@pytest.mark.parametrize("states", [4, 11])
def test_hmmlearn_on_a_long_recording(states, parallel):
    """Likelihood, state posteriors and best path of another program."""
    hmm = pytest.importorskip("hmmlearn.hmm")
    r = np.random.default_rng(states)
    initial, a, _ = enumeration.random_chain(states, states, 2)
    a = 0.8 * np.eye(states) + 0.2 * a[0]
    y = r.normal(size=(2_000, 2)) + 2 * np.sin(np.arange(2_000) / 9)[:, None]
    peer = hmm.GaussianHMM(states, "diag", algorithm="viterbi")
    peer.startprob_, peer.transmat_ = initial, a
    peer.means_, peer.covars_ = r.normal(size=(states, 2)), r.uniform(0.3, 1, size=(states, 2))
    residual = (y[:, None] - peer.means_) ** 2 / peer._covars_
    w = -0.5 * (residual + np.log(2 * np.pi * peer._covars_)).sum(-1)
    chain = chain_of((initial, a[None], w))
    value, probs = peer.score_samples(y)
    smoothed = jax.jit(finite.smooth, static_argnums=1)(chain, parallel)
    assert float(smoothed.filtered.log_likelihood) == pytest.approx(value, rel=1e-12)
    np.testing.assert_allclose(smoothed.probs, probs, atol=1e-10)
    value, path = peer.decode(y)
    got, log_prob = viterbi(chain, parallel)
    assert float(log_prob) == pytest.approx(value, rel=1e-12)
    np.testing.assert_array_equal(got, path)
