"""First passages against closed forms, enumeration and simulation."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import statespace as ss

WEAR = np.array([[0.90, 0.08, 0.02], [0, 0.85, 0.15], [0, 0, 1.0]])
Y = np.array([0.1, -0.4, 0.9, np.nan, 1.2])


def machine(matrix=WEAR, first=(1.0, 0, 0)):
    levels = ss.emissions.Gaussian(np.arange(len(matrix)) * 1.0, np.ones(len(matrix)))
    names = ("fresh", "worn", "failed")
    model = ss.HMM(first, matrix, levels, state_names=names if len(matrix) == 3 else None)
    return model


def test_from_one_state_it_is_geometric():
    model = machine(np.array([[0.9, 0.1], [0, 1.0]]), (1.0, 0))
    life = ss.first_passage(model, ss.Series.unobserved([0.0]), 1)
    n = np.arange(life.survival.shape[1])
    np.testing.assert_allclose(life.survival[0], 0.9**n, rtol=1e-12)
    np.testing.assert_allclose(life.mean, 10, rtol=1e-12)
    np.testing.assert_array_equal(
        life.quantile([0.05, 0.5, 0.95])[:, 0], stats.geom(0.1).ppf([0.05, 0.5, 0.95])
    )
    np.testing.assert_allclose(life.probs[0, 1:], stats.geom(0.1).pmf(n[1:]), atol=1e-12)


def test_against_all_continuations():
    """The definition: sum over the states now and over all states of the next moments."""
    model = machine()
    life = ss.first_passage(model, Y, "failed")
    law = np.asarray(ss.filter(model, Y).probs)
    assert len(life) == len(Y)
    for t, n in itertools.product(range(len(Y)), range(6)):
        total = 0.0
        for path in itertools.product(range(2), repeat=n + 1):  # never in state 2
            total += law[t, path[0]] * np.prod([WEAR[a, b] for a, b in itertools.pairwise(path)])
        np.testing.assert_allclose(life.survival[t, n], total, rtol=1e-12)
    np.testing.assert_allclose(life.mean, life.survival.sum(axis=1), rtol=1e-5)
    # of one state, by first-step analysis
    slow = 1 / (1 - 0.85)
    np.testing.assert_allclose(life.mean[0], 10 + 0.8 * slow, rtol=1e-12)


def test_against_simulation():
    model = machine()
    ahead = ss.first_passage(
        model, Y, crossing=lambda z: z == 2, of="states", horizon=300, draws=20_000
    )
    exact = ss.first_passage(model, Y, 2)
    there = 1 - exact.survival[-1, 0]  # a simulated passage is yet to come
    np.testing.assert_allclose(ahead.mean[0], exact.mean[-1] + there, rtol=0.03)
    np.testing.assert_allclose(ahead.survival[0, 1:40], exact.survival[-1, 1:40], atol=0.015)
    np.testing.assert_allclose(ahead.interval(0.8), np.array(exact.interval(0.8))[:, -1:], atol=1)


def test_several_states_end_it_and_a_horizon_cuts_it():
    model = machine()
    life = ss.first_passage(model, Y, ["worn", 2], horizon=4)
    law = np.asarray(ss.filter(model, Y).probs[:, 0])
    np.testing.assert_allclose(life.survival, law[:, None] * 0.9 ** np.arange(5), rtol=1e-12)
    np.testing.assert_allclose(life.mean, law * 10, rtol=1e-12)
    assert np.all(np.isinf(life.quantile(0.99)))


def test_what_may_never_come_takes_for_ever():
    matrix = np.array([[0.5, 0.2, 0.3], [0, 1.0, 0], [0, 0, 1.0]])
    life = ss.first_passage(machine(matrix), ss.Series.unobserved([0.0, 1.0]), "failed")
    assert np.all(np.isinf(life.mean))
    np.testing.assert_allclose(life.survival[0, -1], 0.2 / 0.5, atol=1e-5)
    assert life.quantile(0.5)[0] == 3  # 0.3 + 0.15 + 0.075
    assert life.quantile(0.7)[0] == np.inf


def test_with_explicit_durations_the_stay_so_far_counts():
    """Two stays of fixed length: the rest is known but for where the chain is."""
    law = ss.durations.Probabilities([[0, 0, 0, 1.0], [0, 0, 0.5, 0.5], [1.0, 0, 0, 0]])
    model = ss.HiddenSemiMarkov(
        [1.0, 0, 0],
        [[0, 1.0, 0], [0, 0, 1.0], [0, 0, 1.0]],
        law,
        ss.emissions.Gaussian([0.0, 1.0, 2.0], [1.0, 1.0, 1.0]),
    )
    life = ss.first_passage(model, ss.Series.unobserved(np.arange(9.0)), 2)
    np.testing.assert_allclose(life.mean, [7.5, 6.5, 5.5, 4.5, 3.5, 2.5, 1.5, 0.5, 0], atol=1e-12)
    np.testing.assert_array_equal(life.quantile(0.5), [7, 6, 5, 4, 3, 2, 1, 0, 0])
    np.testing.assert_array_equal(life.quantile(0.9), [8, 7, 6, 5, 4, 3, 2, 1, 0])


def test_an_observed_level_of_a_gaussian_model():
    """A random walk with drift and known start: the inverse Gaussian law, in the limit of small steps."""
    drift, noise, level, fine = 0.5, 1.0, 6.0, 25
    model = ss.LinearGaussian(
        transition_matrix=[[1.0]],
        transition_offset=[drift / fine],
        transition_scale=[noise / np.sqrt(fine)],
        observation_matrix=[[1.0]],
        observation_scale=[1e-6],
        initial_mean=[0.0],
        initial_scale=[1e-6],
    )
    above = lambda x: x[..., 0] > level
    kwargs = {"crossing": above, "horizon": 60 * fine, "draws": 2000}
    life = ss.first_passage(model, [0.0], **kwargs)
    exact = stats.invgauss(mu=(level / drift) / level**2, scale=level**2)
    # crossings between the moments are missed, which shifts the barrier by 0.583 of a step's deviation
    shifted = level + 0.5826 * noise / np.sqrt(fine)
    exact = stats.invgauss(mu=(shifted / drift) / shifted**2, scale=shifted**2)
    steps = np.array([5, 10, 20, 40]) * fine
    np.testing.assert_allclose(life.survival[0, steps], exact.sf(steps / fine), atol=0.03)
    hidden = ss.first_passage(model, [0.0], of="states", **kwargs)
    np.testing.assert_allclose(hidden.survival[0, steps], life.survival[0, steps], atol=0.04)


def test_an_observed_level_of_an_autoregression_in_each_state():
    """Deterministic growth: the passage is where arithmetic says."""
    emission = ss.emissions.Autoregressive([[1.0], [1.0]], [1.0, 2.0], [1e-9, 1e-9])
    model = ss.HMM([1.0, 0.0], [[1.0, 0], [0, 1.0]], emission)
    y = [0.0, 1.0, 2.0]
    life = ss.first_passage(model, y, crossing=lambda y: y[..., 0] > 6.5, horizon=9, draws=50)
    assert life.mean[0] == 5
    np.testing.assert_array_equal(life.survival[0], [1, 1, 1, 1, 1, 0, 0, 0, 0, 0])
    late = ss.first_passage(model, y, crossing=lambda y: y[..., 0] > 20, horizon=9, draws=50)
    assert np.isinf(late.mean[0])


def test_tables_and_panels():
    pd = pytest.importorskip("pandas")
    days = pd.Series(Y, pd.date_range("2024-03-01", periods=5, freq="D"))
    model = machine()
    life = ss.first_passage(model, days, "failed")
    table = life.to_pandas(0.8)
    assert list(table.index) == list(days.index)
    np.testing.assert_allclose(table["mean"], ss.first_passage(model, Y, "failed").mean)
    assert (table["low"] <= table["median"]).all()
    ahead = ss.first_passage(
        model, days, crossing=lambda z: z == 2, of="states", horizon=5, draws=10
    )
    assert list(ahead.to_pandas().index) == [days.index[-1]]
    both = ss.first_passage(model, [Y, Y[:2]], "failed")
    np.testing.assert_allclose(both[1].mean, life.mean[:2], rtol=1e-12)


ROTATING = ss.SoftmaxKernel(jnp.zeros((2, 2)), jnp.ones((2, 2, 1)))
GAUSSIAN = ss.LocalLevel(level_scale=1.0, noise_scale=1.0)


@pytest.mark.parametrize(
    ("message", "call"),
    {
        "needs either `states` or `crossing`": lambda: ss.first_passage(machine(), Y),
        "there is no state 'broken'": lambda: ss.first_passage(machine(), Y, "broken"),
        "there is no state 3": lambda: ss.first_passage(machine(), Y, [0, 3]),
        "`states` of first_passage is empty": lambda: ss.first_passage(machine(), Y, []),
        "those of a finite state": lambda: ss.first_passage(GAUSSIAN, Y, 0),
        "needs a `horizon`": lambda: ss.first_passage(machine(), Y, crossing=lambda y: y > 0),
        "`horizon` must be at least 1": lambda: ss.first_passage(machine(), Y, 2, horizon=0),
        r"must give shape \(10, 3\)": lambda: ss.first_passage(
            machine(), Y, crossing=lambda y: y > 0, horizon=3, draws=10
        ),
        "`of` must be": lambda: ss.first_passage(
            machine(), Y, crossing=lambda y: y[..., 0] > 0, of="x", horizon=3
        ),
        "vary from moment to moment": lambda: ss.first_passage(
            ss.HMM(None, ROTATING, ss.emissions.Poisson([1.0, 2.0])),
            ss.Series([1.0, 2.0, 0.0], inputs=[0.0, 1.0, 2.0]),
            1,
        ),
        "probabilities inside": lambda: ss.first_passage(machine(), Y, 2).quantile(1.0),
    }.items(),
)
def test_errors(message, call):
    with pytest.raises((ValueError, TypeError), match=message):
        call()
