"""Rate matrices against scipy's exponential, quadrature, and textbook processes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from scipy.integrate import quad_vec

import statespace as ss
from statespace.conditionals.generators import (
    JumpStatistics,
    expected_statistics,
    generator_of,
    path_log_likelihood,
    transition_probabilities,
)

every = jax.jit(jax.vmap(transition_probabilities, (None, 0)))
INTERVALS = np.array([0.0, 1e-9, 0.03, 0.7, 4.0, 60.0, 2e4])


def random_generator(seed, states=4, sparse=False):
    rng = np.random.default_rng(seed)
    rates = rng.gamma(1.0, 2.0, (states, states))
    if sparse:
        rates *= rng.random((states, states)) < 0.5
    return np.array(generator_of(jnp.asarray(rates)))


# Two eigenvalues that coincide without as many eigenvectors; one absorbing state; two separate classes.
DEFECTIVE = np.array([[-1.0, 1.0, 0.0, 0.0], [0.0, -1.0, 1.0, 0.0], [0, 0, -1, 1], [0, 0, 0, 0]])
SEPARATE = np.array([[-1.0, 1.0, 0.0, 0.0], [2.0, -2.0, 0.0, 0.0], [0, 0, -3, 3], [0, 0, 1, -1]])
GENERATORS = {
    "dense": random_generator(0),
    "sparse": random_generator(1, sparse=True),
    "defective": DEFECTIVE,
    "separate": SEPARATE,
    "still": np.zeros((4, 4)),
}


@pytest.mark.parametrize("name", GENERATORS)
def test_probabilities_are_the_exponential(name):
    q = GENERATORS[name]
    probs = np.asarray(every(q, INTERVALS))
    expected = np.stack([scipy.linalg.expm(q * dt) for dt in INTERVALS])
    np.testing.assert_allclose(probs, expected, atol=2e-13)
    assert np.all(probs >= 0)
    np.testing.assert_allclose(probs.sum(axis=2), 1, rtol=3e-16 * 4)
    np.testing.assert_array_equal(probs[0], np.eye(4))


def test_rare_jumps_and_the_distant_future_keep_their_digits():
    """Two groups of states that are left once in 1e10: closed forms of two states, to relative accuracy."""
    a, b = 1e-10, 3e-10
    q = jnp.asarray([[-a, a], [b, -b]])
    for dt in (1.0, 1e9, 1e14):
        moved = a / (a + b) * -np.expm1(-(a + b) * dt)
        np.testing.assert_allclose(transition_probabilities(q, jnp.asarray(dt))[0, 1], moved, 1e-13)
    stiff = jnp.asarray([[-1.0 - a, 1.0, a], [1.0, -1.0, 0.0], [0.0, 0.0, 0.0]])
    left = transition_probabilities(stiff, jnp.asarray(1e8))[0, 2]
    np.testing.assert_allclose(left, -np.expm1(1e8 * -a / 2), rtol=1e-6)
    assert np.all(np.isfinite(transition_probabilities(q * 1e300, jnp.asarray(1e300))))


def test_states_in_a_row_reach_the_last():
    """60 jumps in a row within a short interval: (dt)^60 / 60! to first order, not zero."""
    q = generator_of(jnp.diag(jnp.ones(60), 1))
    reached = transition_probabilities(q, jnp.asarray(0.01))[0, 60]
    log_expected = 60 * np.log(0.01) - scipy.special.gammaln(61) - 0.01
    np.testing.assert_allclose(np.log(reached), log_expected, rtol=1e-4)


@pytest.mark.parametrize("name", ["dense", "defective", "still"])
def test_derivatives_are_those_of_the_exponential(name):
    """In every entry of the generator and in the interval; also where eigenvalues coincide, and at dt = 0."""
    q = jnp.asarray(GENERATORS[name])
    weights = np.sin(np.arange(16.0)).reshape(4, 4)
    f = jax.jit(jax.grad(lambda q, dt: jnp.sum(weights * transition_probabilities(q, dt)), (0, 1)))
    for dt in INTERVALS[:-1]:
        by_q, by_dt = f(q, dt)
        expected = scipy.linalg.expm_frechet(q.T * dt, weights * dt, compute_expm=False)
        np.testing.assert_allclose(by_q, expected, atol=3e-14 * max(1, np.abs(expected).max()))
        slope = np.sum(weights * (q @ scipy.linalg.expm(q * dt)))
        np.testing.assert_allclose(by_dt, slope, atol=1e-12)


def test_derivatives_in_both_modes_and_through_vmap():
    q, direction = jnp.asarray(GENERATORS["dense"]), jnp.asarray(GENERATORS["sparse"])
    dts = jnp.asarray([0.1, 30.0])
    f = lambda q: jnp.sum(every(q, dts) ** 2)
    forward = jax.jvp(f, (q,), (direction,))[1]
    np.testing.assert_allclose(forward, jnp.sum(jax.grad(f)(q) * direction), rtol=1e-11)
    step = 1e-4
    second = jax.jvp(jax.grad(f), (q,), (direction,))[1]
    numeric = (jax.grad(f)(q + step * direction) - jax.grad(f)(q - step * direction)) / (2 * step)
    np.testing.assert_allclose(second, numeric, rtol=1e-6, atol=1e-6)
    both = jax.jit(jax.vmap(jax.grad(f)))(jnp.stack([q, 2 * q]))
    np.testing.assert_allclose(both[1], jax.grad(f)(2 * q), rtol=1e-9, atol=1e-12)


def test_float32():
    q = jnp.asarray(GENERATORS["dense"], jnp.float32)
    probs = every(q, jnp.asarray(INTERVALS, jnp.float32))
    assert probs.dtype == jnp.float32
    rates = np.array(generator_of(q.astype(float)))  # the diagonal of q itself is rounded
    exact = np.stack([scipy.linalg.expm(rates * np.float32(dt)) for dt in INTERVALS])
    np.testing.assert_allclose(probs, exact, atol=1e-6)
    np.testing.assert_allclose(probs.sum(axis=2), 1, rtol=5e-7)


def test_expected_statistics_by_quadrature():
    """Each ``int P_ai(s) P_jb(dt - s) ds`` numerically, for each pair of ends."""
    q, dt = GENERATORS["dense"], 0.8
    end = scipy.linalg.expm(q * dt)
    both = lambda s: np.einsum(
        "ai,jb->abij", scipy.linalg.expm(q * s), scipy.linalg.expm(q * (dt - s))
    )
    integrals = quad_vec(both, 0, dt, epsabs=1e-12)[0] / end[:, :, None, None]
    rng = np.random.default_rng(3)
    pairs = rng.dirichlet(np.ones(16), 3).reshape(3, 4, 4)
    pairs[2] = 0
    found = expected_statistics(jnp.asarray(q), jnp.array([dt, dt, 5.0]), jnp.asarray(pairs))
    expected = np.einsum("abij,nab->ij", integrals, pairs)
    np.testing.assert_allclose(found.dwell, np.diagonal(expected), rtol=1e-10)
    off = ~np.eye(4, dtype=bool)
    np.testing.assert_allclose(found.jumps[off], (q * expected)[off], rtol=1e-10)
    np.testing.assert_array_equal(np.diagonal(found.jumps), 0)
    np.testing.assert_allclose(found.dwell.sum(), 2 * dt, rtol=1e-12)


def test_path_likelihood_written_out():
    """0 for 0.3, then 2 for 1.1, then 1 for 0.2 and beyond: prod q e^{-q tau}."""
    q = random_generator(5, 3)
    jumps = np.zeros((3, 3))
    jumps[0, 2] = jumps[2, 1] = 1
    statistics = JumpStatistics(jnp.array([0.3, 0.2, 1.1]), jnp.asarray(jumps))
    expected = np.log(q[0, 2]) + np.log(q[2, 1]) + 0.3 * q[0, 0] + 1.1 * q[2, 2] + 0.2 * q[1, 1]
    np.testing.assert_allclose(
        path_log_likelihood(jnp.asarray(q), statistics), expected, rtol=1e-13
    )
    q[2, 1] = 0
    assert path_log_likelihood(jnp.asarray(q), statistics) == -np.inf


def test_rates_learned_from_paths_maximise_their_density():
    from numpyro.distributions import Gamma

    kernel = ss.RateMatrix(GENERATORS["sparse"])
    pairs = jnp.asarray(np.random.default_rng(4).dirichlet(np.ones(16), 3).reshape(3, 4, 4))
    known = kernel.statistics(pairs, jnp.array([0.2, 0.5, 1.0]))
    for prior in (None, Gamma(2.0, 3.0)):

        def density(rates, prior=prior):
            value = path_log_likelihood(kernel.with_rates(rates).generator, known)
            return value if prior is None else value + jnp.sum(prior.log_prob(rates))

        best = kernel.learned_from(known, prior).rates
        np.testing.assert_allclose(jax.grad(density)(best), 0, atol=1e-11)
    still = kernel.learned_from(JumpStatistics(jnp.zeros(4), jnp.zeros((4, 4))))
    np.testing.assert_array_equal(still.rates, kernel.rates)


def test_m_step_ascends_to_the_rates_that_the_transitions_come_from():
    """Of expected transitions under known rates these are the maximum; masked intervals do not count."""
    kernel = ss.RateMatrix(GENERATORS["sparse"])
    true = kernel.with_rates(
        kernel.rates * jnp.array([0.5, 2.0, 1.0, 3.0, 0.7])[: len(kernel.rates)]
    )
    dt = jnp.array([[0.1, 0.3, 0.6], [0.2, 0.5, 0.9]])
    mask = jnp.array([[True] * 3, [True, False, False]])
    within = every(true.generator, dt.ravel()).reshape(2, 3, 4, 4)
    pairs = jnp.where(mask[..., None, None], 50 * within, 7.0)
    move = jax.jit(lambda k: k.m_step(pairs, ss.Step(0, 0.0, dt), mask))
    values, here = [], kernel
    for _ in range(40):
        logs = jnp.log(jnp.maximum(every(here.generator, dt.ravel()), 1e-300)).reshape(2, 3, 4, 4)
        values.append(
            float(jnp.sum(jnp.where(mask[..., None, None] & (within > 0), pairs * logs, 0)))
        )
        here = move(here)
    assert np.all(np.diff(values) > -1e-9)
    np.testing.assert_allclose(here.rates, true.rates, rtol=0.01)
    one = jax.jit(lambda k: k.m_step(pairs[:1, :1], ss.Step(0, 0.0, dt[:1, :1])))
    here = kernel
    for _ in range(5):
        here = one(here)
    np.testing.assert_allclose(here.rates, true.rates, rtol=0.01)


def test_parameters():
    """Of a matrix with zeros the positive rates are free, and the diagonal follows."""
    q = ss.RateMatrix([[9.0, 2.0, 0.0], [0.0, 9.0, 1.0], [0.5, 0.0, 9.0]])
    assert q.edges == ((0, 1), (1, 2), (2, 0))
    np.testing.assert_array_equal(
        q.generator, [[-2.0, 2.0, 0.0], [0.0, -1.0, 1.0], [0.5, 0.0, -0.5]]
    )
    free = ss.unconstrain(q)
    np.testing.assert_allclose(free["rates"], np.log([2.0, 1.0, 0.5]))
    moved = ss.constrain(q, {"rates": free["rates"] + 1})
    np.testing.assert_allclose(moved.generator, np.e * q.generator, rtol=1e-14)
    traced = jax.jit(lambda r: ss.RateMatrix(r, edges=q.edges).generator)(q.generator)
    np.testing.assert_array_equal(traced, q.generator)
    single = ss.RateMatrix([[0.0]])
    np.testing.assert_array_equal(single.matrix(ss.Step(0, 0.0, 1.0)), [[1.0]])


def test_called_it_is_a_distribution():
    q = ss.RateMatrix(GENERATORS["dense"])
    law = q(jnp.array(2), ss.Step(1, 0.5, 0.5))
    np.testing.assert_allclose(law.probs, scipy.linalg.expm(GENERATORS["dense"] / 2)[2], rtol=1e-12)


class TestReports:
    def test_birth_and_death(self):
        """Rates up 2, down 3 among 4 states: geometric stationary law, no entropy, known passage times."""
        up, down = 2.0, 3.0
        q = ss.RateMatrix(np.diag([up] * 3, 1) + np.diag([down] * 3, -1))
        law = (up / down) ** np.arange(4)
        np.testing.assert_allclose(q.stationary_law(), law / law.sum(), rtol=1e-14)
        np.testing.assert_allclose(q.entropy_production(), 0, atol=1e-14)
        np.testing.assert_allclose(q.holding_times(), [1 / 2, 1 / 5, 1 / 5, 1 / 3], rtol=1e-14)
        steps = [1 / up]  # from i to i + 1: t_i = 1/up + down/up t_{i-1}
        for _ in range(2):
            steps.append(1 / up + down / up * steps[-1])
        passage = q.mean_first_passage_times()
        np.testing.assert_allclose(passage[:, 3], [sum(steps[i:]) for i in range(4)], rtol=1e-13)
        np.testing.assert_allclose(q.mean_first_passage_time([0, 3])[jnp.array([0, 3])], 0)
        ratio = (down / up) ** np.arange(3)  # gambler's ruin
        np.testing.assert_allclose(
            q.committor(0, 3), np.r_[0, np.cumsum(ratio)] / ratio.sum(), rtol=1e-13
        )

    def test_against_linear_algebra(self):
        value = random_generator(7, 5)
        q = ss.RateMatrix(value)
        law = np.asarray(q.stationary_law())
        np.testing.assert_allclose(law @ value, 0, atol=1e-14)
        np.testing.assert_allclose(law.sum(), 1, rtol=1e-14)
        passage = np.asarray(q.mean_first_passage_times())
        off = ~np.eye(5, dtype=bool)
        np.testing.assert_allclose((value @ passage)[off], -1, rtol=1e-11)
        times = 1 / np.sort(-np.linalg.eigvals(value).real)[1:]
        np.testing.assert_allclose(q.relaxation_times(), times, rtol=1e-10)
        chain = np.asarray(q.embedded_chain())
        np.testing.assert_allclose(chain.sum(axis=1), 1, rtol=1e-14)
        np.testing.assert_allclose(chain[off], (value / -np.diag(value)[:, None])[off], rtol=1e-14)

    def test_a_ring_produces_entropy(self):
        """Three states round, a forwards and b backwards: (a - b) log(a / b) per unit of time."""
        a, b = 3.0, 0.5
        ring = np.roll(np.eye(3), 1, axis=1)
        q = ss.RateMatrix(a * ring + b * ring.T)
        np.testing.assert_allclose(q.entropy_production(), (a - b) * np.log(a / b), rtol=1e-13)
        assert ss.RateMatrix(ring).entropy_production() == np.inf
        np.testing.assert_allclose(q.flows()[0], [0, a / 3, b / 3], rtol=1e-14)

    def test_what_is_never_left(self):
        """0 → 1 → {2, 3} absorbing: infinite passage times, and not NaN."""
        q = ss.RateMatrix([[0, 1.0, 0, 0], [0, 0, 1.0, 3.0], [0, 0, 0, 0], [0, 0, 0, 0]])
        passage = np.asarray(q.mean_first_passage_times())
        inf = np.inf
        expected = [[0, 1, inf, inf], [inf, 0, inf, inf], [inf, inf, 0, inf], [inf, inf, inf, 0]]
        np.testing.assert_allclose(passage, expected)
        np.testing.assert_allclose(q.mean_first_passage_time([2, 3]), [1.25, 0.25, 0, 0])
        np.testing.assert_allclose(q.committor(2, 3), [0.75, 0.75, 0, 1])
        np.testing.assert_allclose(q.holding_times(), [1, 0.25, inf, inf])
        np.testing.assert_allclose(q.embedded_chain()[2:], np.eye(4)[2:])
        np.testing.assert_array_equal(q.relaxation_times(), [inf, 1, 0.25])
        with pytest.raises(ValueError, match=r"\[2\], \[3\], which are never left"):
            q.stationary_law()

    @pytest.mark.parametrize("order", [(0, 1, 2, 3), (3, 2, 1, 0), (2, 0, 3, 1)])
    def test_transient_states_in_any_order(self, order):
        """Only two of four states can be in for long, wherever they stand."""
        rates = np.array([[0, 1.0, 0, 0], [0, 0, 1.0, 0], [0, 0, 0, 2.0], [0, 0, 1.0, 0]])
        law = ss.RateMatrix(rates[np.ix_(order, order)]).stationary_law()
        np.testing.assert_allclose(law, np.array([0, 0, 1 / 3, 2 / 3])[list(order)], atol=1e-100)

    def test_rare_states_have_all_digits(self):
        """A chain in which the last state has probability 1e-36."""
        q = ss.RateMatrix(np.diag([1e-6] * 6, 1) + np.diag([1.0] * 6, -1))
        law = 1e-6 ** np.arange(7)
        np.testing.assert_allclose(q.stationary_law(), law / law.sum(), rtol=1e-13)
        back = q.mean_first_passage_times()[0, 6]
        np.testing.assert_allclose(back, 1e36, rtol=1e-4)

    def test_over_draws_and_differentiated(self):
        q = ss.RateMatrix(GENERATORS["dense"])
        draws = q.rates * jnp.array([[0.5], [1.0], [2.0]])
        laws = jax.vmap(lambda r: q.with_rates(r).stationary_law())(draws)
        np.testing.assert_allclose(laws - laws[0], 0, atol=1e-15)
        f = lambda r: q.with_rates(r).mean_first_passage_times()[0, 2]
        numeric = (f(q.rates.at[1].add(1e-5)) - f(q.rates.at[1].add(-1e-5))) / 2e-5
        np.testing.assert_allclose(jax.grad(f)(q.rates)[1], numeric, rtol=1e-6)
        g = lambda r: q.with_rates(r).entropy_production()
        numeric = (g(q.rates.at[1].add(1e-5)) - g(q.rates.at[1].add(-1e-5))) / 2e-5
        np.testing.assert_allclose(jax.grad(g)(q.rates)[1], numeric, rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ss.RateMatrix([[0, -1.0], [1, 0]]), r"from state 0 to state 1 \(row 0\) is -1"),
        (
            lambda: ss.RateMatrix([[0, 1.0], [np.nan, 0]]),
            r"from state 1 to state 0 \(row 1\) is nan",
        ),
        (lambda: ss.RateMatrix([1.0, 2.0]), r"`rates` must have shape \(K, K\), got \(2,\)"),
        (
            lambda: ss.RateMatrix.from_generator([[-1.0, 1.0], [2.0, -1.5]]),
            "row 1 sums to 0.5: its diagonal entry is -1.5, and minus the sum of its rates is -2",
        ),
        (
            lambda: ss.RateMatrix(np.ones((2, 2)), edges=[(0, 0)]),
            r"two of the states 0 to 1, got \(0, 0\)",
        ),
        (lambda: ss.RateMatrix(np.ones((2, 2)), edges=[(0, 1), (0, 1)]), "a jump twice"),
        (lambda: ss.RateMatrix(np.ones((2, 2))).mean_first_passage_time(2), "states from 0 to 1"),
        (lambda: ss.RateMatrix(np.ones((3, 3))).committor(0, [0, 1]), "must not share states"),
    ],
)
def test_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
