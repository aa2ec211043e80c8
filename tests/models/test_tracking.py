"""Tracking models: their laws at any interval against closed forms and the matrix exponential."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.linalg
from written_out import covariance, dense, diffuse_count

import statespace as ss
from statespace.parameters import constrain, unconstrain

MODELS = {
    "velocity": ss.ConstantVelocity(0.7, [0.2, 0.3]),
    "acceleration": ss.ConstantAcceleration([0.5, 0.1, 0.2], 0.4, dims=3),
    "attracted": ss.OrnsteinUhlenbeck(0.8, 1.5, 0.2, mean=[1.0, -2.0], dims=2),
    "persistent": ss.IntegratedOrnsteinUhlenbeck([0.5, 2.0], 1.2, 0.3),
}


@pytest.mark.parametrize("dt", [1e-3, 0.4, 7.0])
@pytest.mark.parametrize("name", MODELS)
def test_law_of_the_next_state(name, dt):
    """Integrate the moments' differential equations by SciPy."""
    model = MODELS[name]
    drift, n = np.asarray(model.transition.drift), len(model.state_names)
    diffusion = np.asarray(model.transition.diffusion)
    diffusion = np.diag(diffusion) if diffusion.ndim == 1 else diffusion

    def rate(s, q):
        flow = scipy.linalg.expm(drift * s) @ diffusion
        return (flow @ flow.T).ravel()

    want = scipy.integrate.solve_ivp(rate, (0, dt), np.zeros(n * n), rtol=1e-11, atol=1e-16)
    here = model.transition.at(ss.Step(1, dt, dt))
    np.testing.assert_allclose(here.matrix, scipy.linalg.expm(drift * dt), rtol=1e-9, atol=1e-14)
    got = covariance(here)
    np.testing.assert_allclose(got, want.y[:, -1].reshape(n, n), rtol=1e-8, atol=1e-15)


def test_constant_velocity_closed_form():
    """Bar-Shalom, Li & Kirubarajan (2001), equation (6.2.2-12)."""
    here = ss.ConstantVelocity(0.7, 0.2, dims=1).transition.at(ss.Step(1, 3.0, 3.0))
    np.testing.assert_allclose(here.matrix, [[1, 3], [0, 1]])
    np.testing.assert_allclose(covariance(here), 0.49 * np.array([[9, 4.5], [4.5, 3]]), rtol=1e-12)


def test_constant_acceleration_closed_form():
    """Bar-Shalom, Li & Kirubarajan (2001), equation (6.2.3-12)."""
    t = 2.0
    here = ss.ConstantAcceleration(0.5, 0.2, dims=1).transition.at(ss.Step(1, t, t))
    want = 0.25 * np.array(
        [
            [t**5 / 20, t**4 / 8, t**3 / 6],
            [t**4 / 8, t**3 / 3, t**2 / 2],
            [t**3 / 6, t**2 / 2, t],
        ]
    )
    np.testing.assert_allclose(covariance(here), want, rtol=1e-12)


def test_ornstein_uhlenbeck_closed_form():
    model = ss.OrnsteinUhlenbeck(0.8, 1.5, mean=2.0)
    here = model.transition.at(ss.Step(1, 0.6, 0.6))
    decay, variance = np.exp(-0.48), 1.5**2 / 1.6
    np.testing.assert_allclose(here.matrix, [[decay]])
    np.testing.assert_allclose(here.offset, [2.0 * (1 - decay)])
    np.testing.assert_allclose(covariance(here), [[variance * (1 - decay**2)]])
    np.testing.assert_allclose(model.initial.mean, [2.0])
    np.testing.assert_allclose(covariance(model.initial), [[variance]])


def test_persistent_walk_closed_form():
    """Variance of the displacement: Johnson et al. (2008), equation (6)."""
    b, s, t = 0.5, 1.2, 3.0
    model = ss.IntegratedOrnsteinUhlenbeck(b, s, 0.3, dims=1)
    q = covariance(model.transition.at(ss.Step(1, t, t)))
    want = (s / b) ** 2 * (t - 2 * (1 - np.exp(-b * t)) / b + (1 - np.exp(-2 * b * t)) / (2 * b))
    np.testing.assert_allclose(q[0, 0], want, rtol=1e-10)
    np.testing.assert_allclose(covariance(model.initial)[1, 1], s**2 / (2 * b))


@pytest.mark.parametrize("name", MODELS)
def test_splitting_an_interval_changes_nothing(name):
    """A moment at which nothing is seen is no moment: the law composes over irregular times."""
    model = MODELS[name]
    rng = np.random.default_rng(0)
    times = np.array([0.0, 0.3, 2.0, 2.1, 5.0])
    y = rng.normal(size=(5, model.dims))
    inserted = np.insert(y, 2, np.nan, axis=0)
    # The first interval is that of the first moment too, where a diffusion does not use it.
    want = dense(model, y, times).log_likelihood()
    got = dense(model, inserted, np.insert(times, 2, 1.1)).log_likelihood()
    np.testing.assert_allclose(float(got), float(want), rtol=1e-9)


def test_starts():
    assert diffuse_count(MODELS["velocity"]) == 4
    assert diffuse_count(MODELS["acceleration"]) == 9
    assert diffuse_count(MODELS["attracted"]) == 0
    assert diffuse_count(MODELS["persistent"]) == 2
    law = ss.Gaussian(np.zeros(4), np.ones(4))
    model = ss.ConstantVelocity(0.7, 0.2, initial_law=law)
    assert diffuse_count(model) == 0
    assert set(ss.parameters(model)) == {"acceleration_scale", "noise_scale"}


def test_positions_are_what_is_seen():
    model = MODELS["acceleration"]
    np.testing.assert_array_equal(model.observation.matrix, np.eye(3, 9))
    np.testing.assert_allclose(covariance(model.observation), 0.16 * np.eye(3))
    assert model.state_names == ("x", "y", "z", "vx", "vy", "vz", "ax", "ay", "az")
    exact = ss.OrnsteinUhlenbeck(0.8, 1.5)
    np.testing.assert_array_equal(covariance(exact.observation), [[0.0]])


@pytest.mark.parametrize("name", MODELS)
def test_gradients_reach_every_parameter(name):
    model = MODELS[name]

    def total(free):
        m = constrain(model, free)
        here = m.transition.at(ss.Step(1, 0.7, 0.7))
        parts = (here.matrix, here.offset, here.covariance, m.observation.scale, m.initial.mean)
        return sum(jnp.sum(p * p) for p in parts)

    gradient = jax.jit(jax.grad(total))(unconstrain(model))
    assert all(np.isfinite(g).all() and np.all(g != 0) for g in gradient.values())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ss.ConstantVelocity(-1.0, 1.0), r"`acceleration_scale` must be positive, got -1"),
        (lambda: ss.ConstantVelocity(1.0, -1.0), r"`noise_scale` must be positive"),
        (
            lambda: ss.ConstantVelocity(1.0, [1.0, 2.0, 3.0]),
            r"shape \(2,\), got \(3,\); set `dims`",
        ),
        (lambda: ss.ConstantAcceleration(1.0, 1.0, dims=4), r"`dims` .* must be 1, 2 or 3, got 4"),
        (lambda: ss.OrnsteinUhlenbeck(0.0, 1.0), r"`rate` must be positive, got 0"),
        (lambda: ss.OrnsteinUhlenbeck(1.0, 1.0, mean=np.inf), r"`mean` must be finite"),
        (
            lambda: ss.IntegratedOrnsteinUhlenbeck(
                1.0, 1.0, 1.0, initial_law=ss.Gaussian(np.zeros(2), np.ones(2))
            ),
            r"`initial_law` of IntegratedOrnsteinUhlenbeck must be for its 4 states",
        ),
    ],
)
def test_bad_parameters(make, message):
    with pytest.raises(ValueError, match=message):
        make()
