"""The particle filter and the conditional particle filter, exactly: by going through their random choices."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import particle_enumeration as enumeration
import pytest
from enumeration import Paths
from particle_enumeration import INITIAL, POTENTIALS, PROPOSAL, START, TRANSITION, vectors

from statespace.chains import particle

EVERY = pytest.mark.parametrize("name", particle.SCHEMES)
SIZES = pytest.mark.parametrize(("steps", "count"), [(3, 2), (2, 3)])


def chances(name, log_weights, ancestors, conditional=False):
    """Probability under a scheme of each of many vectors of ancestors, given their log weights."""
    weights, which = np.unique(np.exp(log_weights).round(13), axis=0, return_inverse=True)
    count = weights.shape[1]
    table = enumeration.law(name, weights / weights.sum(1, keepdims=True), conditional)
    return table[which.ravel(), ancestors @ count ** np.arange(count)[::-1]]


class Filter:
    """Every outcome of a particle filter, with its probability."""

    def __init__(self, steps, count, threshold=1.0, look_ahead=False):
        states = vectors(steps * count, 2).reshape(-1, steps, count)
        first = np.zeros((1, count), int)
        steps_of = [vectors(count)] * (steps - 1)
        lists = np.array([[*first, *a] for a in itertools.product(*steps_of)])
        at = np.array(list(np.ndindex(len(states), len(lists))))
        self.states, self.given = states[at[:, 0]], lists[at[:, 1]]
        run = enumeration.given(steps, count, threshold, look_ahead)
        self.run = jax.tree.map(np.asarray, run(self.states, self.given, None, None))
        self.clouds, self.ancestors = self.run.out
        self.look_ahead = look_ahead

    def probability(self, name):
        total = START[self.states[:, 0]].prod(axis=1)
        for t in range(1, self.states.shape[1]):
            a = self.ancestors[:, t]
            before = np.take_along_axis(self.states[:, t - 1], a, axis=1)
            total = total * PROPOSAL[before, self.states[:, t]].prod(axis=1)
            log_weights = self.clouds.log_weights[:, t - 1]
            if self.look_ahead:
                log_weights = log_weights + enumeration.AHEAD[t][self.states[:, t - 1]]
                log_weights = np.log(np.exp(log_weights) / np.exp(log_weights).sum(1)[:, None])
            drawn = chances(name, log_weights, self.given[:, t])
            same = (self.given[:, t] == np.arange(a.shape[1])).all(axis=1)  # one for all the unused
            total = total * np.where(self.run.resampled[:, t], drawn, same)
        return total


FILTERS = {}


def every(*args):
    if args not in FILTERS:
        FILTERS[args] = Filter(*args)
    return FILTERS[args]


def exact(steps):
    return Paths(INITIAL, TRANSITION[None], POTENTIALS[:steps])


@EVERY
@SIZES
@pytest.mark.parametrize("kind", ["always", "adaptive", "auxiliary"])
def test_likelihood_and_filter_are_unbiased(name, steps, count, kind):
    """``E[Z] = p(y)`` and ``E[Z sum_i W_i g(x_i)] = p(y) E[g(x_T) | y]`` (Del Moral 2004, th. 7.4.2)."""
    threshold = 0.8 if kind == "adaptive" else 1.0
    outcomes = every(steps, count, threshold, kind == "auxiliary")
    if kind == "adaptive":
        assert 0 < outcomes.run.resampled[:, 1:].mean() < 1
    chance = outcomes.probability(name)
    assert chance.sum() == pytest.approx(1, abs=1e-12)
    estimate = np.exp(outcomes.run.log_likelihood)
    oracle = exact(steps)
    likelihood = float(np.exp(oracle.log_likelihood))
    assert chance @ estimate == pytest.approx(likelihood, rel=1e-12)
    last = np.exp(outcomes.run.last.log_weights) * (outcomes.states[:, -1] == 1)
    expected = likelihood * float(oracle.marginals()[-1, 1])
    assert chance @ (estimate * last.sum(axis=1)) == pytest.approx(expected, rel=1e-12)


class Conditional:
    """Every outcome of a conditional particle filter from every path, with its probability."""

    def __init__(self, steps, count, threshold=1.0, ancestor=False):
        self.paths = vectors(steps, 2)
        states = vectors(steps * (count - 1), 2).reshape(-1, steps, count - 1)
        zero = np.zeros((1, count), int)
        others = np.array([[0, *a] for a in vectors(count - 1, count)])
        lists = np.array([[*zero, *a] for a in itertools.product(*[others] * (steps - 1))])
        chosen = vectors(steps - 1, count) if ancestor else np.zeros((1, steps - 1), int)
        chosen = np.pad(chosen, ((0, 0), (1, 0)))
        sizes = len(self.paths), len(states), len(lists), len(chosen)
        at = np.array(list(np.ndindex(*sizes)))
        self.start, free = at[:, 0], states[at[:, 1]]
        path = self.paths[self.start]
        self.states = np.concatenate([path[:, :, None], free], axis=2)
        self.given, self.chosen = lists[at[:, 2]], chosen[at[:, 3]]
        given = np.concatenate([np.zeros_like(path)[:, :, None], free], axis=2)  # slot 0 is put in
        run = enumeration.given(steps, count, threshold, ancestor=ancestor)
        self.run = jax.tree.map(np.asarray, run(given, self.given, path, self.chosen))
        self.clouds, self.ancestors = self.run.out
        np.testing.assert_array_equal(self.clouds.particles, self.states)
        self.ancestor, self.count = ancestor, count

    def probability(self, name):
        states, count = self.states, self.count
        total = START[states[:, 0, 1:]].prod(axis=1)
        for t in range(1, states.shape[1]):
            a = self.ancestors[:, t]
            before = np.take_along_axis(states[:, t - 1], a, axis=1)
            total = total * PROPOSAL[before, states[:, t]][:, 1:].prod(axis=1)
            log_weights, new = self.clouds.log_weights[:, t - 1], self.chosen[:, t]
            if self.ancestor:
                w = np.exp(log_weights) * TRANSITION[states[:, t - 1], states[:, t, :1]]
                w = w / w.sum(axis=1, keepdims=True)
                total = total * np.take_along_axis(w, new[:, None], axis=1)[:, 0]
            turned = (np.arange(count) + new[:, None]) % count
            turned = np.take_along_axis(log_weights, turned, axis=1)
            drawn = chances(name, turned, self.given[:, t], conditional=True)
            total = total * np.where(self.run.resampled[:, t], drawn, self._same(t))
        return total

    def _same(self, t):
        return (self.given[:, t, 1:] == np.arange(1, self.count)).all(axis=1)

    def kernel(self, name):
        """``P[i, j]``: from path i to path j, the last state drawn by its weight."""
        chance = self.probability(name)
        size, steps = self.paths.shape
        matrix = np.zeros((size, size))
        for k in range(self.count):
            path = np.empty((len(chance), steps), int)
            slot = np.full(len(chance), k)
            for t in reversed(range(steps)):
                path[:, t] = self.states[np.arange(len(slot)), t, slot]
                slot = self.ancestors[np.arange(len(slot)), t, slot]
            end = path @ 2 ** np.arange(steps)[::-1]
            moved = chance * np.exp(self.run.last.log_weights[:, k])
            np.add.at(matrix, (self.start, end), moved)
        return matrix


CONDITIONAL = {}


@EVERY
@SIZES
@pytest.mark.parametrize("threshold", [1.0, 0.8], ids=["always", "adaptive"])
@pytest.mark.parametrize("ancestor", [False, True], ids=["plain", "ancestor sampling"])
def test_conditional_filter_leaves_the_law_of_the_path_invariant(
    name, steps, count, threshold, ancestor
):
    """``pi P = pi`` (Andrieu, Doucet & Holenstein 2010, th. 5; Lindsten et al. 2014, th. 1)."""
    args = steps, count, threshold, ancestor
    if args not in CONDITIONAL:
        CONDITIONAL[args] = Conditional(*args)
    matrix = CONDITIONAL[args].kernel(name)
    np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-12)
    law = exact(steps).weights.astype(float)
    np.testing.assert_allclose(law @ matrix, law, atol=1e-12)
    assert (matrix > 0).all()


# Real randomness


def sv(y, dtype=float):
    """Stochastic volatility; NaN: not observed."""
    rho, sigma = 0.9, 0.4

    def weigh(before, x, at):
        seen = -0.5 * (x + at**2 * jnp.exp(-x) + math.log(2 * math.pi))
        return jnp.where(jnp.isnan(at), jnp.zeros_like(x), seen)

    return particle.Chain(
        jnp.asarray(y, dtype),
        start=lambda random, n, at: (
            sigma / math.sqrt(1 - rho**2) * jax.random.normal(random, (n,), dtype)
        ),
        weigh_start=lambda x, at: weigh(None, x, at),
        propose=lambda random, x, at: rho * x + sigma * jax.random.normal(random, x.shape, dtype),
        weigh=weigh,
    )


Y = np.random.default_rng(1).normal(size=12)


@pytest.mark.parametrize("name", ["systematic", "multinomial"])
def test_ancestors_are_those_of_the_scheme(name):
    """Given the weights before, and the same random numbers."""
    random = particle.keys(jax.random.key(0), 12)
    go = jax.jit(
        lambda r: particle.run(sv(Y), r, 9, resample=name, threshold=1.0, observer=particle.history)
    )
    run = go(random)
    clouds, ancestors = run.out
    draw = jax.jit(jax.vmap(particle.SCHEMES[name]))
    expected = draw(random.resample[1:], clouds.log_weights[:-1])
    np.testing.assert_array_equal(ancestors[1:], expected)
    np.testing.assert_array_equal(ancestors[0], np.arange(9))
    assert run.resampled.tolist() == [False] + [True] * 11


def simple(**options):
    return jax.jit(lambda y, key: particle.run(sv(y), particle.keys(key, len(y)), 50, **options))


RUN = simple(observer=particle.history)


def test_report():
    run = RUN(Y, jax.random.key(0))
    clouds, _ = run.out
    assert run.log_likelihood == pytest.approx(float(run.pointwise.sum()), rel=1e-14)
    weights = np.exp(clouds.log_weights)
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-13)
    np.testing.assert_allclose(run.ess, 1 / (weights**2).sum(axis=1), rtol=1e-12)
    np.testing.assert_array_equal(run.resampled[1:], run.ess[:-1] < 25)
    np.testing.assert_array_equal(run.last.particles, clouds.particles[-1])
    assert not run.impossible.any()


def test_what_is_not_observed_changes_no_weight():
    y = Y.copy()
    y[[4, 5, 9]] = np.nan
    run = RUN(y, jax.random.key(0))
    clouds, _ = run.out
    assert (run.pointwise[jnp.array([4, 5, 9])] == 0).all()
    for t in (4, 5, 9):
        if not run.resampled[t]:
            expected = clouds.log_weights[t - 1]
            np.testing.assert_allclose(clouds.log_weights[t], expected, rtol=1e-12)


def test_data_that_no_particle_can_produce():
    """The moment is reported and passed over."""

    def weigh(before, x, at):
        return jnp.where(at > 5, -jnp.inf, 0.0) - 0.5 * (x - at) ** 2

    y = Y.copy()
    y[[0, 6]] = 9.0
    good = sv(y)
    walls = particle.Chain(
        good.moments, good.start, lambda x, at: weigh(None, x, at), good.propose, weigh
    )
    run = jax.jit(
        lambda key: particle.run(walls, particle.keys(key, 12), 50, observer=particle.history)
    )(jax.random.key(0))
    clouds, _ = run.out
    assert run.log_likelihood == -np.inf
    assert np.flatnonzero(run.impossible).tolist() == [0, 6]
    assert np.flatnonzero(np.isneginf(run.pointwise)).tolist() == [0, 6]
    np.testing.assert_allclose(np.exp(clouds.log_weights).sum(axis=1), 1, rtol=1e-12)
    np.testing.assert_allclose(np.exp(clouds.log_weights[0]), 1 / 50, rtol=1e-12)
    assert np.isfinite(clouds.particles).all()


def test_a_weight_that_is_nan_is_not_passed_over():
    def chain(y):
        good = sv(y)
        bad = lambda before, x, at: good.weigh(before, x, at) + jnp.where(at > 90, jnp.nan, 0.0)
        return particle.Chain(good.moments, good.start, good.weigh_start, good.propose, bad)

    y = Y.copy()
    y[3] = 99.0
    run = jax.jit(lambda key: particle.run(chain(y), particle.keys(key, 12), 50))(jax.random.key(0))
    assert np.isnan(run.log_likelihood)
    assert np.flatnonzero(np.isnan(run.pointwise))[0] == 3
    assert not run.impossible.any()


def test_float32():
    """The precision is that of what was given, whatever the default."""
    y = Y.astype(np.float32)
    low = lambda key: particle.run(sv(y, jnp.float32), particle.keys(key, 12), 50)
    run = jax.jit(low)(jax.random.key(0))
    for x in (run.log_likelihood, run.pointwise, run.ess, *run.last):
        assert x.dtype == jnp.float32


def test_memory_does_not_grow_with_time_without_an_observer():
    def temporary(steps):
        y = jnp.zeros(steps)
        go = jax.jit(lambda key: particle.run(sv(y), particle.keys(key, steps), 2000))
        return go.lower(jax.random.key(0)).compile().memory_analysis().temp_size_in_bytes

    few, many = temporary(10), temporary(1000)
    assert many - few < 1000 * 200  # a few numbers for each moment; a cloud has 16,000 bytes


def test_pytrees_of_particles_move_together():
    def chain(y):
        one = sv(y)
        both = lambda x: {"x": x, "twice": (2 * x[:, None],)}
        return particle.Chain(
            one.moments,
            lambda random, n, at: both(one.start(random, n, at)),
            lambda x, at: one.weigh(None, x["x"], at),
            lambda random, x, at: both(one.propose(random, x["twice"][0][:, 0] / 2, at)),
            lambda before, x, at: one.weigh(None, x["x"], at),
        )

    got = jax.jit(lambda y, key: particle.run(chain(y), particle.keys(key, len(y)), 50))(
        Y, jax.random.key(0)
    )
    expected = RUN(Y, jax.random.key(0))
    assert got.log_likelihood == pytest.approx(float(expected.log_likelihood), rel=1e-12)
    np.testing.assert_allclose(got.last.particles["twice"][0][:, 0], 2 * expected.last.particles)


def test_one_moment():
    run = jax.jit(lambda key: particle.run(sv(Y[:1]), particle.keys(key, 1), 50))(jax.random.key(0))
    assert run.pointwise.shape == (1,)
    assert run.resampled.tolist() == [False]


BAD = {
    "particles must be at least 2; got 1": {"particles": 1},
    r"threshold must be within \[0, 1\], a share of the particles; got 50": {"threshold": 50},
    "path must have a leading axis of 12, .* got 7": {"path": np.zeros(7)},
    "random must have a leading axis of 12, .* got 5": {
        "random": particle.keys(jax.random.key(0), 5)
    },
    "ancestor draws the ancestors of a path": {"ancestor": lambda *args: 0},
    "needs a resampling scheme with a method `conditional`": {
        "path": np.zeros(12),
        "resample": lambda random, log_weights: jnp.zeros(len(log_weights), int),
    },
    "there is no resampling scheme 'best'": {"resample": "best"},
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input(message):
    given = {"random": particle.keys(jax.random.key(0), 12), "particles": 10} | BAD[message]
    with pytest.raises(ValueError, match=message):
        particle.run(sv(Y), given.pop("random"), given.pop("particles"), **given)
