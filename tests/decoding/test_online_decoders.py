"""Filters that are fed: one compiled program, in every way that JAX programs are used."""

import copy
import pickle

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import statespace as ss
from statespace.methods import feeding

S, Q = np.diag([2.0, 1.0]), np.diag([0.5, 0.3])


class Linear(eqx.Module):
    """A regression with weights."""

    weights: jax.Array

    def __call__(self, y):
        return self.weights @ y, jnp.asarray(Q)


def decoder(scale=1.0):
    weights = jnp.asarray(scale) * jnp.array([[0.5, 0.1, 0.0], [0.0, 0.2, 0.4]])
    transition = ss.AffineGaussian(0.9 * np.eye(2), covariance=0.19 * S)
    seen = ss.Discriminative(Linear(weights), (np.zeros(2), S))
    return ss.Model(ss.Gaussian(np.zeros(2), covariance=S), transition, seen)


Y = np.random.default_rng(0).normal(size=(6, 3))
Y[2] = np.nan


def fed(online, y=Y):
    state = online.init()
    for row in y:
        state = online.update(state, row)
    return state


EXACT = ss.filter(decoder(), Y)


def test_decoders_of_one_structure_share_a_program_and_not_their_numbers(monkeypatch):
    compiled, compile_ = [], feeding._compiled

    def noted(*args):
        known = len(feeding._COMPILED)
        made = compile_(*args)
        compiled.append(len(feeding._COMPILED) - known)
        return made

    monkeypatch.setattr(feeding, "_compiled", noted)
    feeding._COMPILED.clear()
    one, two = fed(ss.online(decoder())), fed(ss.online(decoder(2.0)))
    assert compiled == [1, 0]
    np.testing.assert_allclose(one.mean, EXACT.mean[-1], atol=1e-12)
    np.testing.assert_allclose(two.mean, ss.filter(decoder(2.0), Y).mean[-1], atol=1e-12)
    np.testing.assert_allclose(one.log_likelihood, EXACT.log_likelihood, atol=1e-12)


def test_inside_programs_of_the_user():
    """First used inside a trace, then outside of it: what is kept must not be of the trace."""
    online = ss.online(decoder())
    inside = jax.jit(
        lambda y: (
            jax.lax.scan(lambda s, row: (online.update(s, row), None), online.init(), y)[0].mean
        )
    )(Y)
    np.testing.assert_allclose(inside, EXACT.mean[-1], atol=1e-12)
    np.testing.assert_allclose(fed(online).mean, EXACT.mean[-1], atol=1e-12)
    many = jax.vmap(online.update, in_axes=(None, 0))(online.init(), Y[:2])
    np.testing.assert_allclose(many.mean[0], EXACT.mean[0], atol=1e-12)


def test_derivatives_reach_the_model():
    def last(scale):
        return fed(ss.online(decoder(scale)), Y[:2]).mean[0]

    slope, h = jax.grad(last)(1.0), 1e-5
    assert float(slope) == pytest.approx(float((last(1 + h) - last(1 - h)) / (2 * h)), rel=1e-8)


def test_a_decoder_can_be_copied_and_kept():
    online = ss.online(decoder())
    state = online.update(online.init(), Y[0])
    for other in (copy.deepcopy(online), pickle.loads(pickle.dumps(online))):
        np.testing.assert_array_equal(other.update(other.init(), Y[0]).mean, state.mean)


def test_times_inputs_and_lists():
    online = ss.online(decoder(), dt=0.5)
    state = online.update(online.init(), list(Y[0]), time=3.0)
    assert float(state.time) == 3.0
    assert float(online.update(state, jnp.asarray(Y[1])).time) == 3.5
    with pytest.raises(ValueError, match=r"`time` must be after the previous observation's, 3\.0"):
        online.update(state, Y[1], time=3.0)
    series = ss.Series(Y[:2], times=[3.0, 4.5])
    later = online.update(state, Y[1], time=4.5)
    np.testing.assert_allclose(later.mean, ss.filter(decoder(), series).mean[1], atol=1e-12)


def test_an_observation_that_is_none_is_refused_where_it_means_nothing():
    online = ss.online(decoder(), ss.ParticleFilter(particles=10), key=jax.random.key(0))
    with pytest.raises(TypeError, match=r"`y` of ParticleOnline\.update must be an observation"):
        online.update(online.init(), None)
    predicted = ss.online(decoder())
    state = predicted.update(predicted.init(), None)
    np.testing.assert_allclose(state.covariance, S, atol=1e-12)


def test_latency_is_measured_and_what_cannot_be_is_refused():
    y = np.random.default_rng(1).normal(size=(60, 3))
    found = ss.diagnostics.latency(ss.online(decoder()), y)
    assert 0 < found.median <= found.percentile_99 < 10
    assert found.updates == 40
    assert str(found).endswith("of 40 updates")
    with pytest.raises(TypeError, match="`decoder` of latency must be an online filter"):
        ss.diagnostics.latency(decoder(), y)
    with pytest.raises(ValueError, match="more than 20 observations"):
        ss.diagnostics.latency(ss.online(decoder()), y[:20])
    with pytest.raises(ValueError, match="`times` of latency must be as many as the 60"):
        ss.diagnostics.latency(ss.online(decoder()), y, times=np.arange(3.0))
