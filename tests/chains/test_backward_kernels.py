"""Backward kernels: their laws, by going through all of their random choices."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from statespace.chains.particle import backward
from statespace.chains.particle.backward import Exact, Metropolis, Rejection
from statespace.chains.particle.types import Chain, Cloud

PREVIOUS = np.array([-0.7, 0.1, 1.2])
WEIGHTS = np.array([0.2, 0.5, 0.3])
STATE = 0.4
SCALES = 0.6 + 0.3 * PREVIOUS**2
"""The noise depends on the state, so that the bounds differ between particles."""


def log_density(previous, state, moment):
    scale = 0.6 + 0.3 * previous**2
    return -0.5 * ((state - 0.8 * previous) / scale) ** 2 - jnp.log(scale)


def log_bound(previous, moment):
    return -jnp.log(0.6 + 0.3 * previous**2)


def unused(*args):
    raise AssertionError


UNUSED = None, unused, unused, unused, unused
CHAIN = Chain(*UNUSED, transition=log_density, bound=log_bound)
DENSITY = np.exp(np.asarray(log_density(PREVIOUS, STATE, None)))
LAW = WEIGHTS * DENSITY / np.sum(WEIGHTS * DENSITY)


def cloud(dtype=float):
    return Cloud(jnp.asarray(PREVIOUS, dtype), jnp.log(jnp.asarray(WEIGHTS, dtype)))


def atoms(breaks):
    """Uniforms in the middle of the stretches between these points, and how long each is."""
    ends = np.unique(np.clip([0.0, 1.0, *breaks], 0, 1))
    return (ends[1:] + ends[:-1]) / 2, np.diff(ends)


def law_of(kernel, choices, ancestor):
    """The exact law of a draw: ``choices`` are atoms of each uniform."""
    grid = list(itertools.product(*[range(len(u)) for u, _ in choices]))
    u = np.array([[choices[k][0][i] for k, i in enumerate(row)] for row in grid])
    p = np.array([np.prod([choices[k][1][i] for k, i in enumerate(row)]) for row in grid])
    draw = lambda u: kernel(
        u[:, None, None],
        CHAIN,
        None,
        cloud(),
        jnp.array([STATE]),
        jnp.array([ancestor], jnp.int32),
    )[0, 0]
    found = np.asarray(jax.jit(jax.vmap(draw))(u))
    return np.bincount(found, p, minlength=3)


def test_exact_draws_have_the_backward_law():
    law = law_of(Exact(), [atoms(np.cumsum(LAW))], 0)
    np.testing.assert_allclose(law, LAW, atol=1e-14)


@pytest.mark.parametrize("trials", [0, 1, 2])
def test_rejection_has_the_backward_law_whatever_the_number_of_trials(trials):
    proposed = WEIGHTS / SCALES / np.sum(WEIGHTS / SCALES)
    candidate = atoms(np.cumsum(proposed))
    accepted = atoms(DENSITY * SCALES)
    choices = [candidate, accepted] * trials + [atoms(np.cumsum(LAW))]
    np.testing.assert_allclose(law_of(Rejection(trials), choices, 2), LAW, atol=1e-14)


@pytest.mark.parametrize("ancestor", [0, 1, 2])
def test_metropolis_steps_are_powers_of_a_kernel_that_keeps_the_backward_law(ancestor):
    ratios = np.minimum(DENSITY[None] / DENSITY[:, None], 1)
    moves = WEIGHTS[None] * ratios
    moves += np.diag(1 - moves.sum(axis=1))
    np.testing.assert_allclose(LAW @ moves, LAW, atol=1e-14)  # the oracle itself
    choices = [atoms(np.cumsum(WEIGHTS)), atoms(ratios.ravel())] * 2
    law = law_of(Metropolis(2), choices, ancestor)
    np.testing.assert_allclose(law, np.linalg.matrix_power(moves, 2)[ancestor], atol=1e-14)


@pytest.mark.parametrize(
    "kernel", [Exact(), Rejection(3), Metropolis(60)], ids=lambda k: type(k).__name__
)
def test_draws_with_a_key_have_the_backward_law(kernel, key, dtype):
    """Bounds of 5 standard errors; the Metropolis law is then within 1e-6 of its limit."""
    states, draws = 4000, 5
    found = jax.jit(
        lambda key: kernel(
            key,
            CHAIN,
            None,
            cloud(dtype),
            jnp.full(states, STATE, dtype),
            jnp.zeros(states, jnp.int32),
            draws,
        )
    )(key)
    assert found.shape == (states, draws)
    assert found.dtype == jnp.int32
    frequencies = np.bincount(np.asarray(found).ravel(), minlength=3) / found.size
    assert np.all(np.abs(frequencies - LAW) < 5 * np.sqrt(LAW * (1 - LAW) / found.size))
    # two draws of one state are independent
    both = np.mean((np.asarray(found)[:, 0] == 1) & (np.asarray(found)[:, 1] == 1))
    assert abs(both - LAW[1] ** 2) < 5 * np.sqrt(LAW[1] ** 2 / states)


def test_blocks_of_states_are_drawn_as_all_at_once(monkeypatch, key):
    """The last block is not full."""
    random = np.random.default_rng(0)
    here = Cloud(
        jnp.asarray(random.normal(size=50)), jax.nn.log_softmax(jnp.asarray(random.normal(size=50)))
    )
    states, ancestors = jnp.asarray(random.normal(size=37)), jnp.zeros(37, jnp.int32)
    draw = lambda key: Exact()(key, CHAIN, None, here, states, ancestors, 2)
    whole = jax.jit(draw)(key)
    monkeypatch.setitem(backward.AT_ONCE, "cpu", 500)
    np.testing.assert_array_equal(jax.jit(lambda key: draw(key))(key), whole)


@pytest.mark.parametrize("count", [2, 7, 100])
def test_inversion_through_blocks_finds_what_the_whole_sums_say(count):
    random = np.random.default_rng(count)
    weights = random.random(count) * (random.random(count) < 0.5)
    weights[0] = 1
    u = random.random(200)
    expected = np.searchsorted(np.cumsum(weights) / weights.sum(), u, side="right")
    np.testing.assert_array_equal(backward._pick(jnp.asarray(weights), jnp.asarray(u)), expected)
    np.testing.assert_array_equal(backward.inverse(jnp.asarray(weights))(jnp.asarray(u)), expected)


@pytest.mark.parametrize("u", [0.0, 1 - 2**-24])
def test_the_ends_of_the_unit_interval_find_no_particle_of_weight_zero(u):
    weights = jnp.array([0, 0.3, 0.7, 0], jnp.float32)
    u = jnp.array([u], jnp.float32)
    expected = 1 if u[0] == 0 else 2
    assert int(backward.inverse(weights)(u)[0]) == expected
    assert int(backward._pick(weights, u)[0]) == expected


@pytest.mark.parametrize(
    "kernel", [Exact(), Rejection(3), Metropolis(3)], ids=lambda k: type(k).__name__
)
def test_a_state_that_no_particle_can_have_led_to_keeps_its_ancestor(kernel, key):
    impossible = Chain(
        *UNUSED,
        transition=lambda previous, state, moment: jnp.full(previous.shape, -jnp.inf),
        bound=lambda previous, moment: jnp.zeros(previous.shape),
    )
    ancestors = jnp.array([2, 0, 1], jnp.int32)
    draw = jax.jit(lambda key: kernel(key, impossible, None, cloud(), jnp.zeros(3), ancestors, 2))
    found = draw(key)
    np.testing.assert_array_equal(found, np.repeat(ancestors[:, None], 2, axis=1))


def test_what_a_kernel_needs_of_a_chain(key):
    without = Chain(*UNUSED)
    at = (None, cloud(), jnp.zeros(1), jnp.zeros(1, jnp.int32))
    with pytest.raises(ValueError, match=r"`transition` of the chain, which has no density"):
        Exact()(key, without, *at)
    unbounded = Chain(*UNUSED, transition=log_density)
    with pytest.raises(ValueError, match=r"need `bound` of the chain.*Metropolis and Exact do not"):
        Rejection()(key, unbounded, *at)


def test_kernels_by_name():
    unbounded = Chain(*UNUSED, transition=log_density)
    named = backward.kernel_named
    assert isinstance(named("auto", unbounded, 1000), Metropolis)
    assert isinstance(named("auto", CHAIN, 1000), Rejection)
    assert isinstance(named("auto", CHAIN, 100), Exact)
    assert isinstance(named("exact", CHAIN, 1000), Exact)
    assert named(Metropolis(3), CHAIN, 10) == Metropolis(3)
    with pytest.raises(ValueError, match=r"no backward kernel 'best'; there are exact, rejection"):
        named("best", CHAIN, 10)
    with pytest.raises(TypeError, match=r"must be a name \(exact.* got 3"):
        named(3, CHAIN, 10)
