"""The variance of a particle filter from one run: unbiased by enumeration, and against many runs."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import particle_enumeration as enumeration
import pytest
from particle_enumeration import PROPOSAL, START, vectors

from statespace.chains import particle
from statespace.chains.particle.variance import eves, filter_variance, relative_variance


@pytest.mark.parametrize(("steps", "count"), [(3, 2), (2, 3)])
def test_variance_of_the_likelihood_is_unbiased(steps, count):
    """``E[Z^2 V] = E[Z^2] - E[Z]^2`` exactly, resampled multinomially (Lee & Whiteley 2018, th. 1)."""
    states = vectors(steps * count, 2).reshape(-1, steps, count)
    first = np.zeros((1, count), int)
    lists = [[*first, *a] for a in itertools.product(*[vectors(count)] * (steps - 1))]
    at = np.array(list(np.ndindex(len(states), len(lists))))
    states, ancestors = states[at[:, 0]], np.array(lists)[at[:, 1]]

    def one(states, ancestors):
        go = lambda observer: particle.run(
            enumeration.chain(steps),
            particle.Random(states, ancestors),
            count,
            resample=enumeration.Given(),
            threshold=1.0,
            observer=observer,
        )
        run = go(eves)
        return jnp.exp(run.log_likelihood), relative_variance(run)[-1], go(particle.history).out

    values, variances, (clouds, _) = jax.tree.map(
        np.asarray, jax.jit(jax.vmap(one))(states, ancestors)
    )
    chance = START[states[:, 0]].prod(axis=1)
    for t in range(1, steps):
        a = ancestors[:, t]
        before = np.take_along_axis(states[:, t - 1], a, axis=1)
        drawn = np.take_along_axis(np.exp(clouds.log_weights[:, t - 1]), a, axis=1)
        chance = chance * PROPOSAL[before, states[:, t]].prod(axis=1) * drawn.prod(axis=1)
    mean, square = chance @ values, chance @ values**2
    assert chance @ (values**2 * variances) == pytest.approx(square - mean**2, rel=1e-11)


Y = np.random.default_rng(5).normal(size=25)


def gaussian():
    seen = lambda x, at: -0.5 * (at - x) ** 2 - 0.5 * math.log(2 * math.pi)
    return particle.Chain(
        jnp.asarray(Y),
        lambda random, n, at: jax.random.normal(random, (n,)),
        seen,
        lambda random, x, at: 0.8 * x + 0.6 * jax.random.normal(random, x.shape),
        lambda before, x, at: seen(x, at),
    )


def runs(observer, report, replicates=1500, **options):
    def one(key):
        run = particle.run(
            gaussian(), particle.keys(key, len(Y)), 200, observer=observer, **options
        )
        return report(run)

    return jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), replicates))


@pytest.mark.parametrize("threshold", [1.0, 0.5])
def test_variance_of_log_likelihood_against_many_runs(threshold):
    """Their variance has a relative standard error of sqrt(2 / 1500), 0.037; within 5 of both errors."""
    values, variances = runs(
        eves,
        lambda run: (run.log_likelihood, relative_variance(run)[-1]),
        resample="multinomial",
        threshold=threshold,
    )
    truth, mean = float(np.var(values)), float(np.mean(variances))
    error = math.hypot(truth * math.sqrt(2 / 1500), float(np.std(variances)) / math.sqrt(1500))
    # the variance of log Z is that of Z / p(y) up to terms of its square
    assert abs(mean - truth) < 5 * error + truth**2


def test_variance_of_a_filtered_mean_against_many_runs():
    """At the last moment, within 5 standard errors and the little that a lag of 8 leaves out."""
    means, variances = runs(
        filter_variance(lambda x, at: x, 8),
        lambda run: jax.tree.map(lambda x: x[-1], run.out),
        resample="multinomial",
        threshold=1.0,
    )
    truth, mean = float(np.var(means)), float(np.mean(variances))
    error = math.hypot(truth * math.sqrt(2 / 1500), float(np.std(variances)) / math.sqrt(1500))
    assert abs(mean - truth) < 5 * error + 0.05 * truth


def test_a_negative_lag_is_refused():
    with pytest.raises(ValueError, match="lag must be at least 0 moments; got -1"):
        filter_variance(lambda x, at: x, -1)
