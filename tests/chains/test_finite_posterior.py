"""Filter, smoother, counts, likelihood and online steps of the finite chain against enumeration."""

from functools import cache, partial

import enumeration
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from statespace.chains import finite

CASES = enumeration.cases()
FORMS = pytest.mark.parametrize("parallel", [False, True], ids=["sequential", "parallel"])
EVERY = pytest.mark.parametrize("case", CASES)
EPS = float(jnp.finfo(jnp.float64).eps)


def chain_of(arrays, dtype=float):
    return finite.Chain(*(jnp.asarray(x, dtype) for x in arrays))


@cache
def oracle(case):
    return enumeration.Paths(*CASES[case])


@partial(jax.jit, static_argnums=1)
def everything(chain, parallel):
    mask = jnp.asarray([True] * 4 + [False] * 2)
    smoothed = finite.smooth(chain, parallel)
    return {
        "smoothed": smoothed,
        "filtered": finite.filter(chain, parallel),
        "pairs": finite.pairs(chain, smoothed),
        "counts": finite.expected_counts(chain, parallel=parallel),
        "masked": finite.expected_counts(chain, mask, parallel),
        "pointwise": finite.pointwise(chain, parallel),
        "log_likelihood": finite.log_likelihood(chain, parallel),
    }


def close(got, expected, tolerance=1e-12):
    np.testing.assert_allclose(np.asarray(got), np.asarray(expected, float), tolerance, tolerance)


@EVERY
@FORMS
def test_against_all_paths(case, parallel):
    got, paths = everything(chain_of(CASES[case]), parallel), oracle(case)
    filtered, pointwise = paths.filtered()
    marginals, pairs = paths.marginals(), paths.pairs()
    close(got["log_likelihood"], paths.log_likelihood)
    close(got["pointwise"], pointwise)
    for f in (got["filtered"], got["smoothed"].filtered):
        close(f.probs, filtered)
        close(f.predicted, paths.predicted())
        close(f.pointwise, pointwise)
        close(f.log_likelihood, paths.log_likelihood)
    close(got["smoothed"].probs, marginals)
    close(got["pairs"], pairs)
    counts = got["counts"]
    close(counts.initial, marginals[0])
    close(counts.transitions, pairs.sum(0))
    close(counts.occupancy, marginals)
    close(counts.log_likelihood, paths.log_likelihood)
    masked = got["masked"]
    close(masked.initial, marginals[0])
    close(masked.transitions, pairs[:3].sum(0))
    close(masked.occupancy, np.where(np.arange(6)[:, None] < 4, marginals, 0))


@EVERY
@FORMS
def test_ratios_are_of_the_smoothed_to_the_predicted_law(case, parallel):
    ratios = everything(chain_of(CASES[case]), parallel)["smoothed"].ratios
    assert np.isfinite(ratios).all()
    assert (ratios >= 0).all()
    predicted, marginals = oracle(case).predicted(), oracle(case).marginals()
    some = predicted > 1e-280
    close(np.asarray(ratios)[some], (marginals[some] / predicted[some]))


def statistics(chain):
    return finite.smooth(chain), finite.expected_counts(chain), finite.log_likelihood(chain)


alone = jax.jit(statistics)


def test_a_batch_is_its_members():
    """Some of them in need of logarithms, nested in two batch axes."""
    constant = [c for c in CASES.values() if len(c[1]) == 1]
    chains = [chain_of(c) for c in constant[:8]]
    batch = jax.tree.map(lambda *x: jnp.stack(x).reshape(2, 4, *x[0].shape), *chains)
    got = jax.jit(jax.vmap(jax.vmap(statistics)))(batch)
    for i, chain in enumerate(chains):
        mine = jax.tree.map(lambda x, i=i: x[i // 4, i % 4], got)
        jax.tree.map(partial(close, tolerance=1e-13), mine, alone(chain))


@pytest.mark.parametrize("states", [3, 11])
def test_a_batch_of_recordings_with_shared_parameters(states):
    chain = chain_of(enumeration.random_chain(9, states))
    recordings = jnp.asarray(np.random.default_rng(1).normal(size=(5, 6, states)))
    run = lambda w: statistics(chain._replace(potentials=w))
    got = jax.jit(jax.vmap(run))(recordings)
    for i, w in enumerate(recordings):
        mine = jax.tree.map(lambda x, i=i: x[i], got)
        jax.tree.map(partial(close, tolerance=1e-13), mine, alone(chain._replace(potentials=w)))


@FORMS
@pytest.mark.parametrize(("states", "moments"), [(1, 1), (1, 2), (3, 1), (11, 2)])
def test_one_state_and_one_moment(states, moments, parallel):
    arrays = enumeration.random_chain(0, states, moments)
    chain, paths = chain_of(arrays), enumeration.Paths(*arrays)
    if moments == 1:
        chain = chain._replace(transitions=jnp.zeros((0, states, states)))

    @jax.jit
    def run(chain):
        smoothed = finite.smooth(chain, parallel)
        return (
            smoothed.probs,
            finite.pairs(chain, smoothed),
            finite.expected_counts(chain, parallel=parallel).transitions,
            finite.viterbi(chain, parallel)[0],
            jax.value_and_grad(finite.log_likelihood)(chain, parallel),
            finite.sample(chain, jax.random.key(0), 3, parallel),
        )

    probs, pairs, counts, best, (value, slopes), drawn = run(chain)
    close(probs, paths.marginals())
    close(pairs, paths.pairs())
    close(counts, paths.pairs().sum(0))
    close(best, paths.best()[0])
    close(value, paths.log_likelihood)
    close(slopes.potentials, paths.marginals())
    close(slopes.initial, paths.marginals()[0] / arrays[0])
    close(jnp.sum(slopes.transitions, axis=0) * arrays[1][0], paths.pairs().sum(0))
    assert drawn.shape == (3, moments)


@pytest.mark.parametrize(("states", "moments"), [(4, 2), (4, 3), (4, 6), (4, 7), (2, 7), (5, 6)])
def test_the_evidence_alone_is_that_of_the_filter(states, moments):
    """It is found by a loop of its own, for few states by two moments at once."""
    chain = chain_of(enumeration.random_chain(10, states, moments, spread=5.0))
    chain = chain._replace(potentials=chain.potentials.at[1].set(-jnp.inf))
    filtered, alone = jax.jit(lambda c: (finite.filter(c).pointwise, finite.pointwise(c)))(chain)
    assert alone[1] == -np.inf
    close(alone, filtered, 1e-13)


@FORMS
@pytest.mark.parametrize("varying", [False, True])
def test_many_states_on_a_long_recording(varying, parallel):
    """Beyond the sizes that are written out, against the recursions in extended precision."""
    arrays = enumeration.random_chain(7, 11, 40, varying, spread=3.0)
    initial, a, w = (np.asarray(x, enumeration.REAL) for x in arrays)
    a = np.broadcast_to(a, (39, 11, 11))
    laws, values, law = [], [], initial
    for t in range(40):
        joint = law * np.exp(w[t])
        values.append(np.log(joint.sum()))
        laws.append(joint / joint.sum())
        law = laws[-1] @ a[t] if t < 39 else None
    after = [np.ones(11, enumeration.REAL)]
    for t in reversed(range(39)):
        after.insert(0, a[t] @ (np.exp(w[t + 1] - values[t + 1]) * after[0]))
    chain = chain_of(arrays)
    smoothed = jax.jit(finite.smooth, static_argnums=1)(chain, parallel)
    close(smoothed.filtered.pointwise, values)
    close(smoothed.filtered.log_likelihood, np.sum(values), 1e-14)
    close(smoothed.probs, np.array(laws) * np.array(after))


@FORMS
@pytest.mark.parametrize("name", enumeration.IMPOSSIBLE)
def test_impossible_data_have_no_likelihood_and_are_passed_over(name, parallel):
    initial, a, w = enumeration.IMPOSSIBLE[name]
    got = everything(chain_of((initial, a, w)), parallel)
    assert got["log_likelihood"] == -np.inf
    pointwise = np.asarray(got["pointwise"])
    moment = int(np.argmin(pointwise))
    assert pointwise[moment] == -np.inf
    # the same recording in which that moment says nothing
    blind = np.array(w, float)
    blind[moment] = 0
    paths = enumeration.Paths(initial, a, blind)
    close(got["smoothed"].probs, paths.marginals())
    close(got["filtered"].probs, paths.filtered()[0])
    close(got["pairs"], paths.pairs())
    close(got["counts"].transitions, paths.pairs().sum(0))
    assert np.isfinite(np.delete(pointwise, moment)).all()


@EVERY
@FORMS
def test_float32(case, parallel):
    """Its range is e^±87: more of the cases need logarithms, all come out right."""
    arrays = [np.asarray(x, np.float32) for x in CASES[case]]
    paths = enumeration.Paths(*arrays)  # of the numbers as rounded
    got = everything(chain_of(arrays, jnp.float32), parallel)
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(got))
    size = float(max(abs(paths.log_likelihood), np.abs(arrays[2][np.isfinite(arrays[2])]).max(), 1))
    close(got["log_likelihood"], paths.log_likelihood, 3e-7 * size)
    close(got["smoothed"].probs, paths.marginals(), 1e-6 * size)
    close(got["pairs"], paths.pairs(), 1e-6 * size)
    close(got["counts"].transitions, paths.pairs().sum(0), 1e-6 * size)


@FORMS
def test_float32_on_a_long_recording(parallel):
    """Rounding must not add up over 20,000 moments."""
    arrays = enumeration.random_chain(8, 3, 20_000)
    low = [np.asarray(x, np.float32) for x in arrays]
    low[1] = low[1] / low[1].sum(-1, keepdims=True)
    smooth = jax.jit(finite.smooth, static_argnums=1)
    got, exact = smooth(chain_of(low, jnp.float32), parallel), smooth(chain_of(low), False)
    close(got.probs, exact.probs, 2e-6)
    close(got.filtered.log_likelihood, exact.filtered.log_likelihood, 1e-6)


@pytest.mark.parametrize("case", ["varying", "impossible states", "the first moment misleads"])
def test_online_with_a_fixed_lag(case):
    initial, a, w = chain_of(CASES[case])
    filtered, pointwise = oracle(case).filtered()
    step = jax.jit(finite.step)
    window = finite.start(initial, w[0], lag=2)
    for t in range(6):
        if t > 0:
            window = step(window, a[min(t, len(a)) - 1], w[t])
        assert window.index == t
        close(window.probs, filtered[t])
        close(window.predicted, oracle(case).predicted()[t])
        close(window.pointwise, pointwise[t])
        close(window.log_likelihood, pointwise[: t + 1].sum())
        smoothed = finite.fixed_lag(window)
        assert smoothed.shape == (3, 3)
        expected = oracle(case).prefix(t).marginals()[-3:]
        close(smoothed[-len(expected) :], expected)
        assert np.isnan(smoothed[: -len(expected)]).all()


def test_online_passes_over_impossible_data():
    initial, a, w = chain_of(enumeration.IMPOSSIBLE["after a transition"])
    window = finite.start(initial, w[0], lag=1)
    for t in range(1, 6):
        window = finite.step(window, a[0], w[t])
    assert window.log_likelihood == -np.inf
    close(window.probs, finite.filter(finite.Chain(initial, a, w)).probs[-1])
    assert np.isfinite(finite.fixed_lag(window)).all()
