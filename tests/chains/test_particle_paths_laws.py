"""PaRIS, particle Gibbs and its Parisian form, exactly: by going through all of their random choices.

Two particles, the second of which is free where a path is kept; resampling is multinomial at every moment.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import particle_enumeration as enumeration
import pytest
from enumeration import Paths
from particle_enumeration import INITIAL, POTENTIALS, PROPOSAL, START, TRANSITION

from statespace.chains import particle
from statespace.chains.particle.backward import Backward, Exact, Metropolis
from statespace.chains.particle.paris import (
    Sums,
    estimate,
    pair_weights,
    paris,
    recorder,
    smoothing_weights,
)
from statespace.chains.particle.parisian import Settings, conditional_move, parisian_sweep

ALMOST_ONE = 1 - 1e-12
LATER = jnp.array([[1.0, -2.0], [0.5, 3.0]])
FIRST = jnp.array([0.7, -0.4])
SUMS = Sums(lambda before, now, moment: LATER[before, now], lambda now, moment: FIRST[now])


class GivenNumbers(Backward):
    """The kernel whose draws are its random input."""

    def draw(self, u, chain, moment, cloud, states, ancestors):
        return u(0).astype(jnp.int32)


def settings(kernel):
    return Settings(2, enumeration.Given(), 1.0, kernel)


def grid(*sizes):
    """Every combination of choices, one array for each kind, with these shapes of zeros and ones."""
    total = sum(int(np.prod(s)) for s in sizes)
    flat = np.array(list(itertools.product((0, 1), repeat=total)))
    ends = np.cumsum([int(np.prod(s)) for s in sizes])
    return [x.reshape(-1, *s) for x, s in zip(np.split(flat, ends[:-1], axis=1), sizes)]


class Clouds:
    """What the filter's choices lead to, in NumPy: states and ancestors ``(M, T, 2)``."""

    def __init__(self, states, ancestors, kept):
        self.states, self.ancestors = states, ancestors
        rows, potentials = np.arange(len(states))[:, None], np.exp(POTENTIALS)
        free = slice(1 if kept else 0, 2)
        raw = INITIAL[states[:, 0]] / START[states[:, 0]] * potentials[0][states[:, 0]]
        self.probability = START[states[:, 0]][:, free].prod(axis=1)
        self.likelihood = raw.mean(axis=1)
        self.weights = [raw / raw.sum(axis=1, keepdims=True)]
        self.backward = []
        for t in range(1, states.shape[1]):
            a, now = ancestors[:, t], states[:, t]
            before = states[rows, t - 1, a]
            law = self.weights[-1][rows, a] * PROPOSAL[before, now]
            self.probability = self.probability * law[:, free].prod(axis=1)
            joint = (
                self.weights[-1][:, None, :] * TRANSITION[states[:, t - 1, None], now[..., None]]
            )
            self.backward.append(joint / joint.sum(axis=2, keepdims=True))
            raw = TRANSITION[before, now] / PROPOSAL[before, now] * potentials[t][now]
            self.likelihood = self.likelihood * raw.mean(axis=1)
            self.weights.append(raw / raw.sum(axis=1, keepdims=True))

    def drawn(self, numbers):
        """Probability of backward draws ``(M, T - 1, draws, 2)`` for both particles."""
        total = 1.0
        for t, law in enumerate(self.backward):
            for j, i in np.ndindex(numbers.shape[2:]):
                total = total * law[np.arange(len(law)), i, numbers[:, t, j, i]]
        return total

    def expectation(self):
        """Of the functional given the clouds, by sums over all pairs (forward-only FFBSm)."""
        statistics = np.asarray(FIRST)[self.states[:, 0]]
        for t, law in enumerate(self.backward):
            added = np.asarray(LATER)[self.states[:, t, None], self.states[:, t + 1, :, None]]
            statistics = np.sum(law * (statistics[:, None] + added), axis=2)
        return np.sum(self.weights[-1] * statistics, axis=1)


def exact(steps):
    paths = Paths(INITIAL, TRANSITION[None], POTENTIALS[:steps])
    h = np.asarray(FIRST)[paths.paths[:, 0]]
    h = h + sum(
        np.asarray(LATER)[paths.paths[:, t - 1], paths.paths[:, t]] for t in range(1, steps)
    )
    weights = paths.weights.astype(float)
    return paths, weights, float(weights @ h)


def padded(numbers):
    """Choices for moments 1, 2 … with an unused row for the first."""
    return np.concatenate([np.zeros_like(numbers[:, :1]), numbers], axis=1)


def test_paris_is_ffbsm_given_the_cloud_and_unbiased():
    states, ancestors, numbers = grid((3, 2), (2, 2), (2, 1, 2))
    clouds = Clouds(states, padded(ancestors), kept=False)
    chain = enumeration.chain(3)

    def one(states, ancestors, numbers, observer):
        random = particle.Random(states, ancestors, numbers[:, None].astype(float))
        return particle.run(
            chain, random, 2, resample=enumeration.Given(), threshold=1.0, observer=observer
        )

    @jax.jit
    @jax.vmap
    def both(states, ancestors, numbers):
        run = one(states, ancestors, numbers, paris(chain, SUMS, GivenNumbers(), 1))
        kept = one(states, ancestors, numbers, recorder(chain, GivenNumbers(), 1))
        return run, (smoothing_weights(kept.out), pair_weights(kept.out), kept.out.numbers)

    run, (weights, pairs, drawn) = both(states, padded(ancestors), padded(numbers))
    value = np.asarray(estimate_all(run))
    probability = clouds.drawn(numbers)

    # given the cloud
    outcomes = len(grid((2, 1, 2))[0])
    mean = (probability * value).reshape(-1, outcomes).sum(axis=1)
    np.testing.assert_allclose(mean, clouds.expectation()[::outcomes], atol=1e-12)
    np.testing.assert_allclose(probability.reshape(-1, outcomes).sum(axis=1), 1, atol=1e-12)

    # times the likelihood, over everything
    paths, _, expected = exact(3)
    evidence = np.exp(float(paths.log_likelihood))
    total = np.sum(clouds.probability * probability * clouds.likelihood * value)
    np.testing.assert_allclose(total, evidence * expected, rtol=1e-12)

    # the offline form says the same of single states and of pairs
    np.testing.assert_allclose(weights.sum(axis=2), 1, atol=1e-12)
    offline = np.sum(weights[:, 0] * np.asarray(FIRST)[states[:, 0]], axis=1)
    rows = np.arange(len(states))[:, None]
    for t in (1, 2):
        before = states[rows, t - 1, drawn[:, t, :, 0]]
        offline = offline + np.sum(
            pairs[:, t - 1, :, 0] * np.asarray(LATER)[before, states[:, t]], axis=1
        )
    np.testing.assert_allclose(offline, value, atol=1e-12)


def estimate_all(run):
    return jax.vmap(estimate)(run.last, run.state)


class Kept:
    """Every outcome of a filter that keeps a path, but for what is drawn after it."""

    def __init__(self, steps, *others):
        sizes = [(steps,), (steps,), (steps - 1,), (1,), *others]
        self.path, free, ancestors, self.last, *self.others = grid(*sizes)
        self.states = np.stack([self.path, free], axis=2)
        self.ancestors = padded(np.stack([np.zeros_like(ancestors), ancestors], axis=2))

    def settle(self, ancestors=None):
        self.clouds = Clouds(
            self.states, self.ancestors if ancestors is None else ancestors, kept=True
        )
        rows = np.arange(len(self.path))
        self.probability = self.clouds.probability * self.clouds.weights[-1][rows, self.last[:, 0]]
        return self.clouds

    def check(self, new, probability):
        """``pi P = pi``, of which this is every entry."""
        steps = self.path.shape[1]
        paths, weights, _ = exact(steps)
        code = lambda x: np.asarray(x) @ 2 ** np.arange(steps)[::-1]
        kernel = np.zeros((2**steps, 2**steps))
        np.add.at(kernel, (code(self.path), code(new)), probability)
        np.testing.assert_allclose(kernel.sum(axis=1), 1, atol=1e-12)
        law = np.zeros(2**steps)
        law[code(paths.paths)] = weights
        np.testing.assert_allclose(law @ kernel, law, atol=1e-13)
        return kernel


def uniforms_of_last(last):
    """The first or the second of two particles, whatever their weights."""
    return np.where(last == 1, ALMOST_ONE, 0.0)


def test_parisian_particle_gibbs_keeps_the_law_and_its_estimate_is_unbiased_under_it():
    outcomes = Kept(3, (2, 2, 2))
    clouds = outcomes.settle()
    (numbers,) = outcomes.others
    chain = enumeration.chain(3)

    @jax.jit
    @jax.vmap
    def sweep(path, states, ancestors, numbers, last):
        random = particle.Random(states, ancestors, numbers[:, None].astype(float))
        return parisian_sweep((random, last), chain, path, SUMS, settings(GivenNumbers()), 2)

    last = uniforms_of_last(outcomes.last)
    done = sweep(outcomes.path, outcomes.states, outcomes.ancestors, padded(numbers), last)
    probability = outcomes.probability * clouds.drawn(numbers)
    outcomes.check(done.path, probability)
    paths, weights, expected = exact(3)
    law = dict(zip(map(tuple, paths.paths), weights))
    under = np.array([law[tuple(p)] for p in outcomes.path])
    np.testing.assert_allclose(np.sum(under * probability * done.value), expected, rtol=1e-12)
    # from the kept path's slot the state is the same; from another it may be
    changed = np.asarray(done.path) != outcomes.path
    assert not np.any(changed & ~np.asarray(done.moved))


def moves(outcomes, selection, kernel, random):
    chain = enumeration.chain(outcomes.path.shape[1])

    @jax.jit
    @jax.vmap
    def move(path, random):
        return conditional_move(random, chain, path, settings(kernel), selection)

    return move(outcomes.path, random)


def test_particle_gibbs_by_lineage_keeps_the_law():
    outcomes = Kept(3)
    outcomes.settle()
    random = particle.Random(outcomes.states, outcomes.ancestors)
    done = moves(outcomes, "lineage", Exact(), (random, uniforms_of_last(outcomes.last)))
    outcomes.check(done.path, outcomes.probability)


def test_particle_gibbs_with_backward_sampling_keeps_the_law():
    outcomes = Kept(3, (2, 1))
    clouds = outcomes.settle()
    (numbers,) = outcomes.others
    random = particle.Random(outcomes.states, outcomes.ancestors)
    given = numbers.astype(float)[:, :, None, None]
    done = moves(
        outcomes, "backward", GivenNumbers(), (random, (uniforms_of_last(outcomes.last), given))
    )
    rows, probability, at = np.arange(len(numbers)), outcomes.probability, outcomes.last[:, 0]
    for t in (1, 0):
        number = numbers[:, t, 0]
        probability = probability * clouds.backward[t][rows, at, number]
        at = number
    kernel = outcomes.check(done.path, probability)
    # it moves more than a lineage: no path is kept for sure
    assert np.max(np.diag(kernel)) < 0.9


def test_particle_gibbs_with_metropolis_draws_keeps_the_law_with_a_single_step():
    outcomes = Kept(3, (2, 2))
    clouds = outcomes.settle()
    candidates, refused = outcomes.others[0][:, :, 0], outcomes.others[0][:, :, 1]
    choice = np.where(candidates == 1, ALMOST_ONE, 0.0)
    given = np.stack([choice, np.where(refused == 1, ALMOST_ONE, 0.0)], axis=2)[..., None, None]
    random = particle.Random(outcomes.states, outcomes.ancestors)
    done = moves(
        outcomes, "backward", Metropolis(1), (random, (uniforms_of_last(outcomes.last), given))
    )
    rows, probability, at = np.arange(len(choice)), outcomes.probability, outcomes.last[:, 0]
    for t in (1, 0):
        state = outcomes.states[rows, t + 1, at]
        ancestor = outcomes.ancestors[rows, t + 1, at]
        density = TRANSITION[outcomes.states[:, t], state[:, None]]
        ratio = np.minimum(density[rows, candidates[:, t]] / density[rows, ancestor], 1)
        probability = probability * clouds.weights[t][rows, candidates[:, t]]
        probability = probability * np.where(refused[:, t] == 1, 1 - ratio, ratio)
        at = np.where((refused[:, t] == 0) | (ratio == 1), candidates[:, t], ancestor)
    outcomes.check(done.path, probability)


def test_particle_gibbs_with_ancestor_sampling_keeps_the_law():
    outcomes = Kept(3, (2,))
    (chosen,) = outcomes.others
    ancestors = outcomes.ancestors.copy()
    given = ancestors.copy()
    # the other slot's number is counted from the path's new ancestor
    ancestors[:, 1:, 0] = chosen
    ancestors[:, 1:, 1] = (given[:, 1:, 1] + chosen) % 2
    clouds = outcomes.settle(ancestors)
    rows, probability = np.arange(len(chosen)), outcomes.probability
    for t in (0, 1):
        probability = probability * clouds.backward[t][rows, 0, chosen[:, t]]
    pair = given, padded(np.where(chosen == 1, ALMOST_ONE, 0.0))
    random = particle.Random(outcomes.states, pair)
    done = moves(outcomes, "ancestor", Exact(), (random, uniforms_of_last(outcomes.last)))
    outcomes.check(done.path, probability)


@pytest.mark.parametrize("selection", ["backward", "ancestor", "lineage"])
def test_moves_with_a_key(selection, key):
    """With keys: from a draw of the law the next one has it too, within 5 standard errors."""
    paths, weights, _ = exact(3)
    chain = enumeration.chain(3)
    drawing = particle.Chain(
        chain.moments,
        start=lambda random, count, moment: jax.random.bernoulli(random, START[1], (count,)).astype(
            int
        ),
        weigh_start=chain.weigh_start,
        propose=lambda random, before, moment: jax.random.bernoulli(
            random, jnp.asarray(PROPOSAL)[before, 1]
        ).astype(int),
        weigh=chain.weigh,
        transition=chain.transition,
    )
    count = 4000
    own, rest = jax.random.split(key)
    given = jnp.asarray(paths.paths)[
        jax.random.choice(own, len(weights), (count,), p=jnp.asarray(weights))
    ]
    how = Settings(3, "systematic", 1.0, Exact())
    move = jax.jit(jax.vmap(lambda key, path: conditional_move(key, drawing, path, how, selection)))
    done = move(jax.random.split(rest, count), given)
    code = np.asarray(done.path) @ np.array([4, 2, 1])
    frequency = np.bincount(code, minlength=8) / count
    law = np.zeros(8)
    law[paths.paths @ np.array([4, 2, 1])] = weights
    assert np.all(np.abs(frequency - law) < 5 * np.sqrt(law * (1 - law) / count))
