"""Jump processes: the discretely observed chain against all paths, exact paths against their laws."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from scipy import stats

import statespace as ss
import statespace.emissions
from statespace.conditionals.generators import generator_of

RATES = np.array([[0.0, 1.5, 0.0], [0.4, 0.0, 0.8], [2.0, 0.3, 0.0]])
Q = np.array(generator_of(jnp.asarray(RATES)))
TIMES = np.array([0.0, 0.1, 1.3, 1.31, 4.0])
CONFUSION = np.array([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.0, 0.05, 0.95]])


def noisy(rates=RATES, **kwargs):
    return ss.MarkovJumpProcess(rates, ss.emissions.Categorical(CONFUSION), **kwargs)


def enumerated(first, densities):
    """log p(y), and the laws of the states at each moment, by a sum over all paths."""
    steps = [scipy.linalg.expm(Q * dt) for dt in np.diff(TIMES)]
    total, law = 0.0, np.zeros(densities.shape)
    for path in itertools.product(range(3), repeat=len(TIMES)):
        weight = first[path[0]] * np.prod([densities[t, k] for t, k in enumerate(path)])
        weight *= np.prod([p[i, j] for p, i, j in zip(steps, path[:-1], path[1:])])
        total += weight
        for t, k in enumerate(path):
            law[t, k] += weight
    return np.log(total), law / total


def test_irregular_moments_and_gaps_against_all_paths():
    y = np.array([0.0, 2.0, np.nan, 1.0, 2.0])
    seen = np.where(np.isnan(y)[:, None], 1.0, CONFUSION.T[np.nan_to_num(y).astype(int)])
    series = ss.Series(y, times=TIMES)
    stationary = scipy.linalg.null_space(Q.T)[:, 0]
    laws = {
        "uniform": np.full(3, 1 / 3),
        "stationary": stationary / stationary.sum(),
        (0.5, 0.5, 0.0): np.array([0.5, 0.5, 0.0]),
    }
    for initial, first in laws.items():
        value, law = enumerated(first, seen)
        model = noisy(initial_probs=initial)
        np.testing.assert_allclose(ss.log_likelihood(model, series), value, rtol=1e-12)
        np.testing.assert_allclose(ss.smooth(model, series).probs, law, rtol=1e-10)


def test_gaussian_levels():
    y = np.array([0.2, 1.7, np.nan, 2.2, -0.4])
    level = np.array([0.0, 1.0, 2.0])
    emission = ss.emissions.Gaussian(mean=level, scale=np.full(3, 0.5))
    seen = np.where(np.isnan(y)[:, None], 1.0, stats.norm.pdf(y[:, None], level, 0.5))
    value, _ = enumerated(np.full(3, 1 / 3), seen)
    model = ss.MarkovJumpProcess(RATES, emission)
    np.testing.assert_allclose(
        ss.log_likelihood(model, ss.Series(y, times=TIMES)), value, rtol=1e-12
    )


def test_states_themselves_observed():
    """Without an emission the likelihood is the product of entries of exponentials."""
    z = [0, 1, 1, 2, 0]
    expected = np.log(1 / 3)
    for dt, i, j in zip(np.diff(TIMES), z[:-1], z[1:]):
        expected += np.log(scipy.linalg.expm(Q * dt)[i, j])
    model = ss.MarkovJumpProcess(RATES)
    value = ss.log_likelihood(model, ss.Series(np.array(z, float), times=TIMES))
    np.testing.assert_allclose(value, expected, rtol=1e-12)
    assert list(ss.unconstrain(model)) == ["transition.rates", "emission.probs"]
    assert ss.unconstrain(model)["emission.probs"].size == 0
    with pytest.raises(ValueError, match="labels 0 … 2"):
        ss.log_likelihood(model, [0.0, 3.0])


def test_verbs_follow_the_clock():
    """Simulated on a fine or a coarse clock, forecast far: the same process."""
    model = noisy(initial_probs="stationary")
    run = ss.simulate(model, 4000, times=0.5 * np.arange(4000), key=jax.random.key(0))
    pairs = np.zeros((3, 3))
    np.add.at(pairs, (run.states[:-1], run.states[1:]), 1)
    expected = scipy.linalg.expm(Q * 0.5)
    error = np.sqrt(expected * (1 - expected) / pairs.sum(1, keepdims=True))
    assert np.all(np.abs(pairs / pairs.sum(1, keepdims=True) - expected) < 4.5 * error + 1e-12)
    ahead = ss.forecast(model, ss.Series([0.0, 1.0], times=[0.0, 0.2]), times=[1e6])
    np.testing.assert_allclose(ahead.probs[0], model.transition.stationary_law(), rtol=1e-9)


def test_parametric_rates():
    """A model of the user's whose rates follow from one number: its derivative is that of the likelihood."""
    import equinox as eqx

    class Ring(eqx.Module):
        speed: jax.Array = ss.parameter("positive")

        @property
        def transition(self):
            return ss.RateMatrix(self.speed * jnp.roll(jnp.eye(3), 1, axis=1))

        initial = ss.Categorical([1.0, 0.0, 0.0])
        observation = ss.emissions.Categorical(np.eye(3))

    series = ss.Series([0.0, 0.0, 1.0, 2.0], times=[0.0, 0.3, 1.0, 1.2])
    fit = ss.fit(Ring(1.0), series)
    assert fit.converged
    f = lambda v: ss.log_likelihood(Ring(v), series)
    best = fit.parameters["speed"]
    assert f(best) > max(f(best * 1.01), f(best * 0.99))


class TestPaths:
    def test_laws(self):
        """Times and jumps against their expectations, states at moments against the exponential."""
        model = ss.MarkovJumpProcess(RATES, initial_probs=[0.2, 0.3, 0.5])
        paths = model.sample_paths(2.0, key=jax.random.key(1), paths=4000)
        assert bool(jnp.all(paths.complete))
        first = np.array([0.2, 0.3, 0.5])
        moments = np.array([0.0, 0.7, 2.0])
        for at, states in zip(moments, np.asarray(paths.at(moments)).T):
            law = first @ scipy.linalg.expm(Q * at)
            share = np.bincount(states, minlength=3) / 4000
            assert np.all(np.abs(share - law) < 4.5 * np.sqrt(law * (1 - law) / 4000))
        found = paths.statistics()
        np.testing.assert_allclose(found.dwell.sum(axis=1), 2.0, rtol=1e-12)
        grid = np.linspace(0, 2, 2001)
        law = np.stack([first @ scipy.linalg.expm(Q * t) for t in grid])
        dwell = np.trapezoid(law, grid, axis=0)
        error = np.asarray(found.dwell).std(axis=0) / np.sqrt(4000)
        assert np.all(np.abs(np.asarray(found.dwell).mean(axis=0) - dwell) < 4.5 * error)
        jumps = np.asarray(found.jumps)
        error = jumps.std(axis=0) / np.sqrt(4000)
        assert np.all(np.abs(jumps.mean(axis=0) - dwell[:, None] * RATES) <= 4.5 * error)
        np.testing.assert_array_equal(jumps.sum(axis=(1, 2)), paths.jumps)

    def test_one_path_read_off(self):
        paths = ss.JumpPaths(
            jnp.array([[0.0, 0.5, 1.25, jnp.inf]]),
            jnp.array([[2, 0, 1, 1]]),
            jnp.array(2.0),
            jnp.array([True]),
            3,
        )
        np.testing.assert_array_equal(paths.at([0.0, 0.4, 0.5, 1.3, 2.0]), [[2, 2, 0, 1, 1]])
        found = paths.statistics()
        np.testing.assert_allclose(found.dwell, [[0.75, 0.75, 0.5]])
        assert found.jumps[0, 2, 0] == found.jumps[0, 0, 1] == 1
        assert found.jumps.sum() == 2 == paths.jumps[0]
        with pytest.raises(ValueError, match="between 0 and the duration 2"):
            paths.at([2.5])

    def test_room_for_jumps(self):
        model = ss.MarkovJumpProcess(RATES)
        few = model.sample_paths(0.01, key=jax.random.key(0), max_jumps=30)
        assert few.jumps[0] == 0
        with pytest.raises(ValueError, match="more than `max_jumps` = 2 times within 50"):
            model.sample_paths(50.0, key=jax.random.key(0), max_jumps=2)
        traced = jax.jit(
            lambda r: ss.MarkovJumpProcess(r).sample_paths(50.0, key=jax.random.key(0), max_jumps=2)
        )
        assert not traced(RATES).complete[0]
        with pytest.raises(ValueError, match="give it `max_jumps`"):
            jax.jit(lambda r: ss.MarkovJumpProcess(r).sample_paths(1.0, key=jax.random.key(0)))(
                RATES
            )

    def test_a_state_that_is_never_left(self):
        model = ss.MarkovJumpProcess([[0.0, 1.0], [0.0, 0.0]])
        paths = model.sample_paths(1e3, key=jax.random.key(0), initial_state=0)
        assert paths.jumps[0] == 1
        np.testing.assert_array_equal(paths.at([0.0, 1e3])[0], [0, 1])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: noisy(initial_probs="flat"), "one of uniform, stationary or probabilities"),
        (
            lambda: noisy(initial_probs=[0.5, 0.5]),
            r"`initial_probs` must have shape \(3,\), got \(2,\)",
        ),
        (lambda: noisy(initial_probs=[0.5, 0.5, 0.5]), "must sum to one"),
        (lambda: noisy(np.eye(2)), "is of 3 states, but `rates` are of 2"),
        (lambda: noisy(state_names=["a"]), "must name the 3 states, got 1"),
        (lambda: noisy(np.zeros((3, 3)), initial_probs="stationary"), "no unique stationary law"),
        (lambda: noisy().sample_paths(0.0, key=jax.random.key(0)), "positive and finite"),
        (lambda: noisy().sample_paths(1.0, key=jax.random.key(0), initial_state=3), "from 0 to 2"),
        (
            lambda: noisy().sample_paths(1.0, key=jax.random.key(0), paths=0),
            "`paths` must be positive",
        ),
    ],
)
def test_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
