"""Resampling schemes: their laws, by integrating over the uniform numbers, cell by cell."""

import jax
import jax.numpy as jnp
import numpy as np
import particle_enumeration as enumeration
import pytest

from statespace.chains import particle

EVERY = pytest.mark.parametrize("name", particle.SCHEMES)
WEIGHTS = {
    2: np.array([[0.3, 0.7], [0.9, 0.1], [0.5, 0.5]]),
    3: np.array([[0.2, 0.5, 0.3], [0.05, 0.15, 0.8], [0.7, 0.1, 0.2], [1 / 3, 1 / 3, 1 / 3]]),
}
COUNTS = pytest.mark.parametrize("count", WEIGHTS)


@EVERY
@COUNTS
def test_unbiased(name, count):
    table = enumeration.law(name, WEIGHTS[count])
    outcomes = enumeration.vectors(count)
    copies = (outcomes[:, :, None] == np.arange(count)).sum(axis=1)
    np.testing.assert_allclose(table.sum(axis=1), 1, atol=1e-13)
    np.testing.assert_allclose(table @ copies, count * WEIGHTS[count], atol=1e-12)


def turned(table, weights, name):
    """The law of the scheme when the order begins at a uniform particle and the slots are turned."""
    count = weights.shape[1]
    outcomes = enumeration.vectors(count)
    power = count ** np.arange(count)[::-1]
    total = np.zeros_like(table)
    for begin in range(count):
        rolled = enumeration.law(name, np.roll(weights, -begin, axis=1))
        own = (outcomes + begin) % count
        for turn in range(count):
            code = np.roll(own, turn, axis=1) @ power
            total[:, code] += rolled / count**2
    return total


@EVERY
@COUNTS
def test_conditional_law(name, count):
    weights = WEIGHTS[count]
    outcomes = enumeration.vectors(count)
    free = turned(enumeration.law(name, weights), weights, name)
    slot = (outcomes[:, 0, None] == np.arange(count)).astype(float)
    np.testing.assert_allclose(free @ slot, weights, atol=1e-12)  # any slot has ancestor j by W_j
    expected = free * slot[:, 0] / weights[:, :1]
    got = enumeration.law(name, weights, conditional=True)
    np.testing.assert_allclose(got, expected, atol=1e-12)


@EVERY
def test_many_particles(name):
    """Of weight zero none is drawn, nor at the ends of what a uniform number can be.

    Numbers of descendants are within what the scheme allows of their expectations.
    """
    scheme, count = particle.SCHEMES[name], 500
    rng = np.random.default_rng(0)
    weights = rng.gamma(0.3, size=count) * (np.arange(count) % 3 > 0)
    weights = (weights / weights.sum()).astype(np.float32)
    last = np.nextafter(np.float32(1), np.float32(0))
    uniforms = rng.uniform(size=(40, scheme.uniforms(count))).astype(np.float32)
    uniforms = np.minimum(uniforms, last)
    uniforms[0], uniforms[1] = 0, last
    drawn = np.asarray(jax.jit(jax.vmap(scheme, (0, None)))(uniforms, jnp.log(weights)))
    assert drawn.shape == (40, count)
    assert drawn.dtype == np.int32
    assert (weights[drawn] > 0).all()
    copies = (drawn[2:, :, None] == np.arange(count)).sum(axis=1)
    expected = count * weights.astype(float)
    furthest = np.abs(copies - expected).max()
    if name in ("systematic", "ssp"):
        assert furthest <= 1.01
    elif name == "stratified":
        assert furthest <= 2.01
    elif name == "residual":
        assert (copies >= np.floor(expected - 1e-2)).all()
    # Pearson's statistic where every count is expected to be 1 or more
    often = expected >= 1
    statistic = ((copies - expected)[:, often] ** 2 / expected[often]).mean(axis=0).sum()
    assert statistic < often.sum() + 5 * np.sqrt(2 * often.sum())


@EVERY
def test_conditional_draws_of_many_particles(name):
    scheme, count = particle.SCHEMES[name], 500
    weights = np.random.default_rng(0).gamma(0.3, size=count) * (np.arange(count) % 3 < 2)
    log_weights = jnp.log(jnp.asarray(weights / weights.sum(), jnp.float32))
    keys = jax.random.split(jax.random.key(0), 40)
    drawn = np.asarray(jax.jit(jax.vmap(scheme.conditional, (0, None)))(keys, log_weights))
    assert (drawn[:, 0] == 0).all()
    assert (weights[drawn] > 0).all()


def test_sorted_where_the_scheme_allows():
    outcomes = enumeration.vectors(3)
    unsorted = (np.diff(outcomes, axis=1) < 0).any(axis=1)
    for name in ("systematic", "stratified", "residual", "ssp"):
        assert (enumeration.law(name, WEIGHTS[3])[:, unsorted] == 0).all()


def test_by_name():
    assert particle.resampling_named("killing").name == "killing"
    own = lambda random, log_weights: jnp.zeros(len(log_weights), int)
    assert particle.resampling_named(own) is own
    with pytest.raises(ValueError, match="no resampling scheme 'sistematic'; there are systematic"):
        particle.resampling_named("sistematic")
    with pytest.raises(TypeError, match=r"name of a scheme .* or a function .*; got int"):
        particle.resampling_named(3)
