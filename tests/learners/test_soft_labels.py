"""Partially hidden autoregressive models: soft labels from nothing known to everything known."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.special import logsumexp

import statespace as ss
from statespace.parameters import parameters

K, T = 3, 8
FIRST = np.array([0.6, 0.3, 0.1])
MOVES = np.array([[0.8, 0.15, 0.05], [0.1, 0.7, 0.2], [0.05, 0.15, 0.8]])
PHI, OFFSET, SCALE = (
    np.array([0.9, 0.4, -0.3]),
    np.array([0.0, 1.0, -1.0]),
    np.array([0.5, 0.8, 0.6]),
)


def model():
    return ss.HMM(FIRST, MOVES, ss.emissions.Autoregressive(PHI[:, None], OFFSET, SCALE))


def recording(length, seed):
    drawn = ss.simulate(model(), length, key=jax.random.key(seed))
    return np.asarray(drawn.y)[:, 0], np.asarray(drawn.states)


def uncertain(length, seed, share=0.6):
    rng = np.random.default_rng(seed)
    weights = rng.gamma(0.5, size=(length, K))
    weights[rng.random(length) > share] = np.nan
    return weights


def test_likelihood_and_states_by_enumeration():
    """The sum over all K^T paths, each multiplied by the plausibilities along it."""
    y, weights = recording(T, 0)[0], uncertain(T, 1)
    paths = np.array(list(itertools.product(range(K), repeat=T)))
    logs = np.log(FIRST)[paths[:, 0]]
    for t in range(T):
        z = paths[:, t]
        if t:
            logs = logs + np.log(MOVES)[paths[:, t - 1], z]
            logs = logs + stats.norm(OFFSET[z] + PHI[z] * y[t - 1], SCALE[z]).logpdf(y[t])
        if not np.isnan(weights[t, 0]):
            logs = logs + np.log(weights[t, z])
    total = logsumexp(logs)
    weight = np.exp(logs - total)
    posterior = ss.smooth(model(), ss.Series(y, state_weights=weights))
    np.testing.assert_allclose(posterior.log_likelihood, total, rtol=1e-12)
    probs = np.stack([weight @ (paths == k) for k in range(K)], axis=1)
    np.testing.assert_allclose(posterior.probs, probs, atol=1e-12)
    pairs = np.einsum("n,nj,nk->jk", weight, np.eye(K)[paths[:, 3]], np.eye(K)[paths[:, 4]])
    np.testing.assert_allclose(posterior.pairs[3], pairs, atol=1e-12)


@pytest.fixture(scope="module")
def panel():
    return [recording(n, seed) for seed, n in enumerate((60, 45, 60))]


EM = ss.EM(iterations=8, tolerance=0.0, progress=False)


@pytest.mark.filterwarnings("ignore:expectation maximisation did not converge")
def test_ones_are_no_labels(panel):
    ones = [ss.Series(y, state_weights=np.ones((len(y), K))) for y, _ in panel]
    scaled = [ss.Series(y, state_weights=np.full((len(y), K), 7.0)) for y, _ in panel]
    plain = ss.fit(model(), [y for y, _ in panel], learner=EM)
    for data in (ones, scaled):
        fitted = ss.fit(model(), data, learner=EM)
        for name, value in parameters(plain.model).items():
            np.testing.assert_allclose(parameters(fitted.model)[name], value, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(
        ss.log_likelihood(model(), scaled) - ss.log_likelihood(model(), ones),
        sum(len(y) for y, _ in panel) * np.log(7.0),
        rtol=1e-9,
    )


@pytest.mark.filterwarnings("ignore:expectation maximisation did not converge")
def test_certain_labels_are_supervised_maximum_likelihood(panel):
    """One step of EM: frequencies, and least squares on the moments of each state, by NumPy."""
    data = [ss.Series(y, state_weights=np.eye(K)[z]) for y, z in panel]
    fitted = ss.fit(model(), data, learner=ss.EM(iterations=2, tolerance=0.0, progress=False))
    found = parameters(fitted.model)
    first = np.mean([np.eye(K)[z[0]] for _, z in panel], axis=0)
    np.testing.assert_allclose(fitted.model.initial.probs, first, atol=1e-12)
    moves = sum(np.eye(K)[z[:-1]].T @ np.eye(K)[z[1:]] for _, z in panel)
    np.testing.assert_allclose(
        found["transition.probs"], moves / moves.sum(axis=1, keepdims=True), atol=1e-12
    )
    past, now, states = (
        np.concatenate(part) for part in zip(*((y[:-1], y[1:], z[1:]) for y, z in panel))
    )
    for k in range(K):
        here = states == k
        design = np.stack([np.ones(here.sum()), past[here]], axis=1)
        solution, *_ = np.linalg.lstsq(design, now[here], rcond=None)
        np.testing.assert_allclose(found["emission.offset"][k], solution[0], rtol=1e-8)
        np.testing.assert_allclose(found["emission.coefficients"][k, 0], solution[1], rtol=1e-8)
        residual = now[here] - design @ solution
        np.testing.assert_allclose(found["emission.scale"][k], residual.std(), rtol=1e-8)


@pytest.mark.filterwarnings("ignore:expectation maximisation did not converge")
def test_em_ascends_with_partial_labels(panel):
    data = [
        ss.Series(y, state_weights=uncertain(len(y), seed)) for seed, (y, _) in enumerate(panel)
    ]
    start = ss.replace(
        model(),
        {
            "emission.offset": jnp.array([0.5, 0.0, -0.5]),
            "emission.scale": jnp.ones(K),
        },
    )
    fitted = ss.fit(start, data, learner=ss.EM(iterations=40, progress=False))
    assert np.diff(fitted.trace).min() > -1e-9
    np.testing.assert_allclose(
        fitted.log_likelihood, ss.log_likelihood(fitted.model, data), rtol=1e-12
    )


def test_a_few_labels_name_the_states():
    """Two states that differ in noise only, started alike: without labels nothing tells them apart."""
    truth = ss.HMM(
        [0.5, 0.5],
        [[0.97, 0.03], [0.03, 0.97]],
        ss.emissions.Autoregressive([[0.5], [0.5]], [0.0, 0.0], [0.3, 1.5]),
    )
    drawn = ss.simulate(truth, 400, key=jax.random.key(0))
    states = np.asarray(drawn.states)
    weights = np.full((400, 2), np.nan)
    weights[::20] = np.where(np.eye(2)[states[::20]] > 0, 0.9, 0.1)
    alike = ss.replace(truth, {"emission.scale": jnp.full(2, 0.8)})
    em = ss.EM(iterations=60, progress=False)
    labelled = ss.fit(alike, ss.Series(drawn.y, state_weights=weights), learner=em)
    found = ss.smooth(labelled.model, drawn.y).probs.argmax(axis=1)
    assert np.mean(found == states) > 0.95
    blind = ss.fit(alike, drawn.y, learner=em)
    np.testing.assert_allclose(*parameters(blind.model)["emission.scale"], rtol=1e-9)


def test_labels_must_be_over_the_states():
    series = ss.Series(np.zeros(4), state_weights=np.ones((4, 2)))
    with pytest.raises(ValueError, match="over 2 states, but the model has 3"):
        ss.fit(model(), series, learner=EM)
