"""Discriminative observations where the dynamics are not affine, and as weights of particles."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy.stats import norm

import statespace as ss
from statespace.linearisation import Taylor

A = np.array([[0.8, 0.3], [-0.3, 0.7]])
GAMMA = np.array([[0.5, 0.1], [0.1, 0.3]])
S = np.linalg.solve(np.eye(4) - np.kron(A, A), GAMMA.ravel()).reshape(2, 2)  # S = A S A' + GAMMA
H = np.array([[1.0, 0.5]])
R = np.array([[0.6]])
GAIN = S @ H.T / (H @ S @ H.T + R)
Q = S - GAIN @ H @ S

INITIAL = ss.Gaussian(np.zeros(2), covariance=S)
DYNAMICS = ss.AffineGaussian(A, covariance=GAMMA)
LINEAR = ss.Model(INITIAL, DYNAMICS, ss.AffineGaussian(H, covariance=R))
SEEN = ss.Discriminative(lambda y: (GAIN @ y, jnp.asarray(Q)), (np.zeros(2), S))
EXACT = ss.Model(INITIAL, DYNAMICS, SEEN)
WRITTEN = ss.Model(
    INITIAL, lambda x, step: dist.MultivariateNormal(A @ x, covariance_matrix=GAMMA), SEEN
)


def recording():
    y = np.array(ss.simulate(LINEAR, 25, key=jax.random.key(3)).y)
    y[[4, 11, 12]] = np.nan
    return y


Y = recording()


def close(a, b, atol=1e-9):
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=0, atol=atol)


# a linear transition that does not say so -------------------------------------------------------------


@pytest.mark.parametrize(
    "method",
    [
        ss.DiscriminativeKalman(linearisation=Taylor()),
        ss.DiscriminativeKalman("sqrt"),
    ],
)
def test_a_linear_function_gives_the_kalman_smoother(method):
    exact, ours = ss.smooth(LINEAR, Y), ss.smooth(WRITTEN, Y, method=method)
    for name in ("mean", "covariance", "lag_one"):
        close(getattr(ours, name), getattr(exact, name))
    marginal = norm(0, np.sqrt(H @ S @ H.T + R)[0, 0]).logpdf(Y[~np.isnan(Y)]).sum()
    close(ours.log_likelihood, exact.log_likelihood - marginal)
    state = (decoder := ss.online(WRITTEN, method)).init()
    for y in Y:
        state = decoder.update(state, y)
    close(state.mean, exact.mean[-1])
    close(state.log_likelihood, ours.log_likelihood)


# curved, in one dimension, against quadrature ---------------------------------------------------------

NOISE = 0.3


def curve(x):
    return 0.1 * x + 0.8 * np.sin(1.5 * x)


def regression(y):
    """Another mean and another spread than any linear observation would give."""
    return jnp.tanh(y), (0.05 + 0.02 * jnp.abs(y[0])) * jnp.eye(1)


CURVED = ss.Model(
    ss.Gaussian(np.zeros(1), np.ones(1)),
    lambda x, step: dist.Normal(0.1 * x + 0.8 * jnp.sin(1.5 * x), NOISE).to_event(1),
    ss.Discriminative(regression, (np.zeros(1), np.eye(1))),
)
FEW = np.array([[0.3], [0.6], [np.nan], [1.0], [1.2], [0.7], [0.4], [0.1]])


def quadrature():
    """Filtered and smoothed means, and the log of the expected product of the quotients."""
    grid = np.linspace(-6, 6, 1201)
    width = grid[1] - grid[0]
    move = norm.pdf(grid[:, None], curve(grid)[None], NOISE) * width  # [next, before]
    quotients = []
    for y in FEW[:, 0]:
        q = 0.05 + 0.02 * abs(y)
        said = norm.pdf(grid, np.tanh(y), np.sqrt(q)) / norm.pdf(grid)
        # so that its expectation under the marginal is one
        quotients.append(
            np.ones_like(grid) if np.isnan(y) else said / np.sum(said * norm.pdf(grid) * width)
        )
    forward: list = []
    total = 0.0
    for t, said in enumerate(quotients):
        ahead = norm.pdf(grid) * width if t == 0 else move @ forward[-1]
        total += np.log(np.sum(ahead * said))
        forward.append(ahead * said / np.sum(ahead * said))
    back, smoothed = np.ones_like(grid), []
    for t in reversed(range(len(FEW))):
        law = forward[t] * back
        smoothed.append(grid @ law / law.sum())
        back = move.T @ (quotients[t] * back)
        back /= back.max()
    return np.array([grid @ f for f in forward]), np.array(smoothed[::-1]), total


FILTERED, SMOOTHED, EVIDENCE = quadrature()


@pytest.mark.parametrize(
    ("rule", "near"), [(None, 0.025), (Taylor(), 0.05)], ids=["sigma points", "Taylor"]
)
def test_curved_dynamics_are_nearly_right(rule, near):
    """The state's standard deviation is about 0.2: what remains is the error of linearisation."""
    method = None if rule is None else ss.DiscriminativeKalman(linearisation=rule)
    ours = ss.filter(CURVED, FEW, method=method)
    assert np.abs(ours.mean[:, 0] - FILTERED).max() < near
    assert np.abs(ss.smooth(CURVED, FEW, method=method).mean[:, 0] - SMOOTHED).max() < near
    assert float(ours.log_likelihood) == pytest.approx(EVIDENCE, abs=4 * near)
    state = (decoder := ss.online(CURVED, method)).init()
    for y in FEW:
        state = decoder.update(state, y)
    close(state.mean, ours.mean[-1])


@pytest.mark.parametrize("proposal", ["bootstrap", "linearised", "auxiliary"])
def test_particles_are_weighed_by_the_regression(proposal):
    """Against quadrature. Over eight runs the errors' standard deviations were .003 and .017."""
    method = ss.ParticleFilter(particles=20_000, proposal=proposal)
    ours = ss.filter(CURVED, FEW, method=method, key=jax.random.key(0))
    assert np.abs(ours.mean[:, 0] - FILTERED).max() < 0.015
    assert float(ours.log_likelihood) == pytest.approx(EVIDENCE, abs=0.08)


def test_particles_smooth_and_go_online():
    smoother = ss.BackwardSampling(particles=4000)
    smoothed = ss.smooth(CURVED, FEW, method=smoother, key=jax.random.key(1))
    assert np.abs(smoothed.mean[:, 0] - SMOOTHED).max() < 0.04
    decoder = ss.online(CURVED, ss.ParticleFilter(particles=4000), key=jax.random.key(2))
    state = decoder.init()
    for y in FEW:
        state = decoder.update(state, y)
    assert float(state.mean[0]) == pytest.approx(FILTERED[-1], abs=0.04)


# what is refused --------------------------------------------------------------------------------------


def test_what_does_not_go_together():
    with pytest.raises(TypeError, match="`linearisation` of DiscriminativeKalman must be a rule"):
        ss.DiscriminativeKalman(linearisation=20)
    wide = ss.Model(INITIAL, lambda x, step: dist.Normal(jnp.ones(3), 1.0).to_event(1), SEEN)
    with pytest.raises(ValueError, match=r"`transition` .* shape \(3,\), but the state has 2"):
        ss.filter(wide, Y)
    flat = ss.Model(ss.Gaussian(np.zeros(2), np.ones(2), (True, False)), WRITTEN.transition, SEEN)
    with pytest.raises(ValueError, match="`initial` of the model is diffuse"):
        ss.filter(flat, Y)
    method = ss.ParticleFilter(particles=10)
    short = ss.Model(INITIAL, DYNAMICS, ss.Discriminative(lambda y: (y, jnp.eye(1)), rule="robust"))
    with pytest.raises(ValueError, match=r"must give a mean \(2,\)"):
        ss.filter(short, Y, method=method, key=jax.random.key(0))
    both = ss.Discriminative(lambda y: (y, 0.1 * jnp.eye(2)), rule="robust")
    part, seen = np.array([[1.0, np.nan], [1.0, 1.0]]), ss.Model(INITIAL, DYNAMICS, both)
    with pytest.raises(ValueError, match="row 0 is missing in part"):
        ss.filter(seen, part, method=method, key=jax.random.key(0))
