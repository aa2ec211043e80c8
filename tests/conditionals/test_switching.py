"""Switching between conditionals: the laws of regime and state against their parts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import statespace as ss

STEP = ss.Step(1, 1.0, 1.0)
CALM = ss.AffineGaussian([[0.9]], scale=[0.1])
WILD = ss.AffineGaussian([[0.5]], [1.0], [2.0])
MOVES = ss.Switching(ss.FiniteKernel([[0.9, 0.1], [0.4, 0.6]]), [CALM, WILD])
START = ss.Switching(ss.Categorical([0.3, 0.7]), [ss.Gaussian([0.0], [1.0])])
SEEN = ss.Switching(None, [CALM, WILD])


def test_density_is_that_of_the_regime_times_that_of_the_state():
    before = ss.RegimeState(jnp.array(1), jnp.array([0.8]))
    law = MOVES(before, STEP)
    for regime, prob, mean, scale in ((0, 0.4, 0.72, 0.1), (1, 0.6, 1.4, 2.0)):
        want = np.log(prob) + scipy.stats.norm(mean, scale).logpdf(0.9)
        after = ss.RegimeState(jnp.array(regime), jnp.array([0.9]))
        np.testing.assert_allclose(law.log_prob(after), want, rtol=1e-12)
    first = START(STEP).log_prob(ss.RegimeState(jnp.array(1), jnp.array([0.5])))
    np.testing.assert_allclose(first, np.log(0.7) + scipy.stats.norm.logpdf(0.5), rtol=1e-12)
    seen = SEEN(before, STEP).log_prob(jnp.array([0.9]))
    np.testing.assert_allclose(seen, scipy.stats.norm(1.4, 2.0).logpdf(0.9), rtol=1e-12)


def test_draws_have_the_law(key):
    """20,000 draws: share of the regimes and moments of the state, within five standard errors."""
    law = MOVES(ss.RegimeState(jnp.array(1), jnp.array([0.8])), STEP)
    drawn = jax.vmap(law.sample)(jax.random.split(key, 20_000))
    assert abs(np.mean(drawn.regime) - 0.6) < 5 * np.sqrt(0.24 / 20_000)
    for regime, mean, scale in ((0, 0.72, 0.1), (1, 1.4, 2.0)):
        x = np.asarray(drawn.state[:, 0])[np.asarray(drawn.regime) == regime]
        assert abs(x.mean() - mean) < 5 * scale / np.sqrt(len(x))
        assert abs(x.std() - scale) < 5 * scale / np.sqrt(2 * len(x))


def test_impossible_regimes_weigh_nothing():
    law = ss.Switching(ss.Categorical([1.0, 0.0]), [ss.Gaussian([0.0], [1.0])])(STEP)
    assert law.log_prob(ss.RegimeState(jnp.array(1), jnp.zeros(1))) == -np.inf


def test_simulation_gives_regimes_and_states(key):
    """The regime stays 1 - 0.9 and 1 - 0.6 of the time: its transitions are counted."""
    states, y = ss.simulate(ss.Model(START, MOVES, SEEN), 5000, key=key)
    assert states.state.shape == (5000, 1)
    assert y.shape == (5000, 1)
    regime = np.asarray(states.regime)
    for k, stays in ((0, 0.9), (1, 0.6)):
        here = regime[:-1] == k
        share = np.mean(regime[1:][here] == k)
        assert abs(share - stays) < 5 * np.sqrt(stays * (1 - stays) / here.sum())


def test_simulation_begins_where_it_is_told(key):
    begin = ss.RegimeState(1, [7.0])
    states, _ = ss.simulate(ss.Model(START, MOVES, SEEN), 5, key=key, initial_state=begin)
    assert states.regime[0] == 1
    assert states.state[0, 0] == 7.0


def test_what_does_not_go_together_is_named():
    with pytest.raises(TypeError, match="`kernel` of Switching must be a transition"):
        ss.Switching([[0.9, 0.1], [0.1, 0.9]], [CALM, WILD])
    with pytest.raises(ValueError, match=r"one for each of the 2 regimes.*got 3"):
        ss.Switching(ss.FiniteKernel(jnp.eye(2)), [CALM, WILD, CALM])
    with pytest.raises(TypeError, match="the one of regime 1 is no conditional"):
        ss.Switching(None, [CALM, 3.0])
    two = ss.AffineGaussian([[0.9], [0.1]], scale=jnp.eye(2))
    mixed = ss.Switching(None, [CALM, two])
    with pytest.raises(TypeError, match="distributions of one family and shape"):
        mixed(ss.RegimeState(jnp.array(0), jnp.zeros(1)), STEP)
