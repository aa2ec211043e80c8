"""Coordinated turns, pendulums and angles: against closed forms, fine steps of the equations, quadrature."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.linalg
import scipy.special
import scipy.stats

import statespace as ss
from statespace import angles

SENSORS = [[-1.5, 0.5], [1.0, 1.0]]


def turn(**changes):
    settings = {
        "acceleration_scale": 0.1,
        "noise_scale": 0.5,
        "initial_mean": [0.1, 0.2, 1.0, 0.0, 0.5],
        "initial_scale": np.full(5, 0.3),
        "sensors": SENSORS,
        "turn_scale": 0.3,
    }
    return ss.CoordinatedTurn(**settings | changes)


def after(dt):
    return ss.Step(1, dt, dt)


def linear_turn(omega):
    """The equation of a turn at a constant rate: drift and squared diffusion of (x, y, vx, vy)."""
    drift = np.zeros((4, 4))
    drift[:2, 2:] = np.eye(2)
    drift[2:, 2:] = omega * np.array([[0.0, -1.0], [1.0, 0.0]])
    return drift, np.diag([0, 0, 0.01, 0.01])


def van_loan(drift, squared, dt):
    n = len(drift)
    block = np.block([[-drift, squared], [np.zeros((n, n)), drift.T]])
    e = scipy.linalg.expm(block * dt)
    f = e[n:, n:].T
    return f, f @ e[:n, n:]


@pytest.mark.parametrize("omega", [0.0, 1e-9, 0.7, -0.7, 2.4, 3.1, -40.0])
def test_a_turn_is_that_of_the_matrix_exponential(omega):
    """Mean and covariance of the linear equation at this rate, on both sides of the series' end."""
    law = turn().transition(jnp.array([0.1, 0.2, 1.0, -0.4, omega]), after(0.4))
    f, q = van_loan(*linear_turn(omega), 0.4)
    np.testing.assert_allclose(law.mean[:4], f @ [0.1, 0.2, 1.0, -0.4], rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(law.covariance_matrix[:4, :4], q, rtol=1e-9, atol=1e-15)
    np.testing.assert_allclose(law.covariance_matrix[4], [0, 0, 0, 0, 0.09 * 0.4], rtol=1e-12)


def test_a_constant_rate_flies_a_circle():
    """After a whole turn the object is back; half way it is a diameter away, to the left."""
    around = lambda dt: turn().transition(jnp.array([0.1, 0.2, 1.0, 0.0, 0.5]), after(dt)).mean
    np.testing.assert_allclose(around(4 * np.pi), [0.1, 0.2, 1.0, 0.0, 0.5], atol=1e-13)
    np.testing.assert_allclose(around(2 * np.pi), [0.1, 0.2 + 4.0, -1.0, 0.0, 0.5], atol=1e-13)


def test_without_a_rate_it_is_constant_velocity():
    """Transition, and its slope and curvature in the rate, are smooth through zero."""
    straight = ss.BearingsOnly(0.1, 0.5, np.zeros(4), np.ones(4), SENSORS).transition.at(after(0.7))
    x = jnp.array([0.1, 0.2, 1.0, -0.4])
    law = turn().transition(jnp.append(x, 0.0), after(0.7))
    np.testing.assert_allclose(law.mean[:4], straight.matrix @ x, rtol=1e-13)
    np.testing.assert_allclose(law.covariance_matrix[:4, :4], straight.covariance, rtol=1e-12)

    def both(omega):
        law = turn().transition(jnp.append(x, omega), after(0.7))
        return jnp.concatenate([law.mean, law.covariance_matrix.ravel()])

    derivatives = jax.jit(lambda w: (jax.jacfwd(both)(w), jax.jacfwd(jax.jacrev(both))(w)))
    slope, bend = derivatives(0.0)
    h = 1e-3
    np.testing.assert_allclose(slope, (both(h) - both(-h)) / (2 * h), atol=1e-6)
    np.testing.assert_allclose(bend, (both(h) - 2 * both(0.0) + both(-h)) / h**2, atol=1e-6)
    assert np.abs(slope).max() > 0.1
    assert np.abs(bend).max() > 0.1


def test_moments_of_turns_against_fine_euler_steps(key):
    """20,000 paths of the equation in 200 steps: mean and covariance within 5 standard errors."""
    omega, dt, steps, paths = 1.3, 0.8, 200, 20_000
    h = dt / steps
    drift, _ = linear_turn(omega)
    advance = scipy.linalg.expm(drift * h)
    start = np.array([0.1, 0.2, 1.0, -0.4])
    noise = 0.1 * np.sqrt(h) * jax.random.normal(key, (steps, paths, 2))

    def euler(x, e):
        return x @ advance.T + jnp.pad(e, ((0, 0), (2, 0))), None

    x = jax.lax.scan(euler, jnp.tile(start, (paths, 1)), noise)[0]
    law = turn().transition(jnp.append(start, omega), after(dt))
    covariance = np.asarray(law.covariance_matrix)[:4, :4]
    sd = np.sqrt(np.diag(covariance))
    assert np.all(np.abs(x.mean(axis=0) - law.mean[:4]) < 5 * sd / np.sqrt(paths) + 1e-4)
    apart = (np.cov(x.T) - covariance) / np.outer(sd, sd)
    assert np.abs(apart).max() < 5 * np.sqrt(2 / paths) + 2 / steps


def test_the_variance_of_angles_is_that_of_wrapped_normal_noise():
    """The mean resultant length of the normal law is that of von Mises; NumPyro's is a circular variance."""
    for k in (0.5, 4.0, 400.0):
        length = scipy.special.ive(1, k) / scipy.special.ive(0, k)
        sd = np.sqrt(float(angles.variance(jnp.asarray(k))))
        cosine = scipy.integrate.quad(
            lambda a, sd=sd: np.cos(a) * scipy.stats.norm.pdf(a, 0, sd), -12 * sd, 12 * sd
        )[0]
        np.testing.assert_allclose(cosine, length, rtol=1e-9)
    np.testing.assert_allclose(angles.variance(jnp.asarray(1e4)), 1e-4, rtol=1e-4)


def linear_gaussian_twin(model, y, state):
    """One update round a state by textbook algebra, with the residual taken round the circle."""
    x = np.asarray(state, float)
    away = x[:2] - np.asarray(SENSORS)
    square = (away**2).sum(axis=1)
    slope = np.zeros((2, 5))
    slope[:, 0], slope[:, 1] = -away[:, 1] / square, away[:, 0] / square
    residual = np.asarray(y) - np.arctan2(away[:, 1], away[:, 0])
    residual = (residual + np.pi) % (2 * np.pi) - np.pi
    p = np.diag(np.asarray(model.initial_scale) ** 2)
    r = float(angles.variance(model.noise_scale**-2.0)) * np.eye(2)
    s = slope @ p @ slope.T + r
    gain = p @ slope.T @ np.linalg.inv(s)
    density = scipy.stats.multivariate_normal(np.zeros(2), s).logpdf(residual)
    return x + gain @ residual, p - gain @ s @ gain.T, density


def test_an_angle_is_corrected_round_the_circle():
    """Behind a sensor the observation may be on the other side of the cut: the update is the same."""
    model = turn(initial_mean=[-3.0, 0.45, 0.0, 0.0, 0.0], initial_scale=np.full(5, 0.1))
    for y in ([-3.1, 3.1], [3.1, -3.1]):
        found = ss.filter(model, np.array([y]), method=ss.ExtendedKalman())
        mean, covariance, density = linear_gaussian_twin(model, y, model.initial_mean)
        np.testing.assert_allclose(found.mean[0], mean, atol=1e-12)
        np.testing.assert_allclose(found.covariance[0], covariance, atol=1e-12)
        np.testing.assert_allclose(found.log_likelihood, density, rtol=1e-10)
        assert np.all(np.abs(found.innovations) < 3)


METHODS = {
    "cubature": ss.SigmaPointKalman(),
    "iterated": ss.IteratedSmoother(),
    "ensemble": ss.EnsembleKalman(members=300),
}


@pytest.mark.parametrize("name", METHODS)
def test_turned_round_the_origin_nothing_changes(name, key):
    """A scene turned until its bearings cross the cut is followed as before: no direction is special."""
    method, sensors = METHODS[name], np.array([[0.0, 0.0], [0.0, 1.0]])
    start = np.array([3.0, 0.0, -0.3, 0.8, 0.2])
    known = {"noise_scale": 0.02, "initial_scale": np.full(5, 0.05)}
    times = np.arange(6) * 1.2
    model = turn(initial_mean=start, sensors=sensors, **known)
    _, y = ss.simulate(model, 6, key=key, times=times, initial_state=start)
    run, results = (ss.smooth if name == "iterated" else ss.filter), []
    for by in (0.0, 2.4):
        c, s = np.cos(by), np.sin(by)
        rotation = np.array([[c, -s], [s, c]])
        mean = np.concatenate([rotation @ start[:2], rotation @ start[2:4], start[4:]])
        moved = turn(initial_mean=mean, sensors=sensors @ rotation.T, **known)
        seen = (np.asarray(y) + by + np.pi) % (2 * np.pi) - np.pi
        if by:
            assert np.abs(np.diff(seen, axis=0)).max() > 5
        found = run(moved, ss.Series(seen, times=times), method=method, key=key)
        results.append((float(found.log_likelihood), np.asarray(found.mean)[:, :2] @ rotation))
    # the axes of sigma points, and random members, are not turned with the scene
    loose = name in ("cubature", "ensemble")
    np.testing.assert_allclose(results[0][0], results[1][0], atol=1.0 if loose else 1e-5)
    np.testing.assert_allclose(results[0][1], results[1][1], atol=0.4 if loose else 1e-5)


def test_plain_noise_knows_no_turns():
    """``wrapped=False`` is atan2 plus normal noise, with the density that it has."""
    law = turn(wrapped=False).observation(jnp.array([0.0, 0.0, 1.0, 0.0, 0.0]), after(1.0))
    mean = np.arctan2([-0.5, -1.0], [1.5, -1.0])
    y = mean - 2 * np.pi
    want = scipy.stats.norm(mean, 0.5).logpdf(y).sum()
    np.testing.assert_allclose(law.log_prob(jnp.asarray(y)), want, rtol=1e-12)


def test_bearings_with_gaps_irregular_times_and_moving_sensors(key):
    """Inputs are read as the sensors' places, at whatever times; missing entries say nothing."""
    times = np.cumsum([0.0, 0.3, 1.1, 0.2, 0.7, 0.4])
    fixed = turn(noise_scale=[0.1, 0.2])
    moving = turn(noise_scale=[0.1, 0.2], sensors=None)
    _, y = ss.simulate(fixed, 6, key=key, times=times)
    y = np.asarray(y).copy()
    y[2], y[4, 0] = np.nan, np.nan
    places = np.tile(np.ravel(SENSORS), (6, 1))
    one = ss.smooth(fixed, ss.Series(y, times=times), method=ss.ExtendedKalman())
    two = ss.smooth(moving, ss.Series(y, times=times, inputs=places), method=ss.ExtendedKalman())
    np.testing.assert_allclose(one.mean, two.mean, rtol=1e-12)
    assert float(one.pointwise[2]) == 0.0
    with pytest.raises(ValueError, match="reads their positions from the inputs"):
        ss.simulate(moving, 3, key=key)


def test_energy_of_a_free_pendulum_is_kept():
    """Without friction and noise the mean keeps its energy for nine periods, to Runge–Kutta's order."""
    swing = ss.Pendulum(gravity=9.0, substeps=50).transition
    energy = lambda x: x[1] ** 2 / 2 - 9.0 * np.cos(x[0])
    x = jnp.array([2.5, 0.0])
    advance = jax.jit(lambda x: swing(x, after(1.0)).mean)
    before = energy(x)
    for _ in range(20):
        x = advance(x)
    assert abs(energy(x) - before) < 1e-5 * 9.0
    damped = ss.Pendulum(gravity=9.0, damping=0.3, substeps=50).transition
    assert energy(damped(jnp.array([2.5, 0.0]), after(5.0)).mean) < before - 5.0


def test_a_small_swing_is_the_harmonic_oscillator():
    """Near the bottom, mean and covariance are the damped oscillator's, by the matrix exponential."""
    drift = np.array([[0.0, 1.0], [-9.0, -0.4]])
    f, q = van_loan(drift, np.diag([0.0, 0.04]), 0.8)
    swing = ss.Pendulum(gravity=9.0, damping=0.4, scale=0.2, substeps=100).transition
    law = swing(jnp.array([1e-5, 2e-5]), after(0.8))
    np.testing.assert_allclose(law.mean, f @ [1e-5, 2e-5], rtol=1e-6)
    np.testing.assert_allclose(law.covariance_matrix, q, rtol=1e-6)


def test_moments_of_a_pendulum_against_fine_euler_steps(key):
    """10,000 noisy paths over half a period, in 500 steps: the law is theirs while the noise is small."""
    model = ss.Pendulum(gravity=9.0, scale=0.1, substeps=20)
    h, paths = 0.8 / 500, 10_000
    noise = 0.1 * np.sqrt(h) * jax.random.normal(key, (500, paths))

    def euler(x, e):
        pull = lambda a: -9.0 * jnp.sin(a)
        half = x[:, 1] + h / 2 * pull(x[:, 0])  # leapfrog: of second order without noise
        a = x[:, 0] + h * half
        return jnp.stack([a, half + h / 2 * pull(a) + e], axis=1), None

    x = jax.jit(lambda e: jax.lax.scan(euler, jnp.tile(jnp.array([2.0, 0.5]), (paths, 1)), e)[0])(
        noise
    )
    law = model.transition(jnp.array([2.0, 0.5]), after(0.8))
    covariance = np.asarray(law.covariance_matrix)
    sd = np.sqrt(np.diag(covariance))
    assert np.all(np.abs(x.mean(axis=0) - law.mean) < 5 * sd / np.sqrt(paths) + 2e-3)
    apart = (np.cov(x.T) - covariance) / np.outer(sd, sd)
    assert np.abs(apart).max() < 5 * np.sqrt(2 / paths) + 0.02


def test_gravity_is_learned(key):
    """The maximum of the filter's likelihood is where a particle filter's is: 10 s of horizontal position."""
    known = {"scale": 0.1, "noise_scale": 0.1, "initial_scale": [0.05, 0.05]}
    times = np.arange(100) * 0.1
    _, y = ss.simulate(ss.Pendulum(gravity=9.81, **known), 100, key=key, times=times)
    series = ss.Series(y, times=times)
    grid = jnp.linspace(9.5, 10.1, 7)

    def profile(method):
        value = lambda g: ss.log_likelihood(
            ss.Pendulum(gravity=g, **known), series, method=method, key=key
        )
        return np.asarray(jax.jit(lambda grid: jax.lax.map(value, grid))(grid))

    exact = profile(ss.ParticleFilter(particles=1000))
    for method in (ss.ExtendedKalman(), ss.SigmaPointKalman()):
        found = profile(method)
        assert np.abs(found - exact).max() < 1.5
        assert abs(np.argmax(found) - np.argmax(exact)) <= 1


def test_a_pendulum_in_the_plane_is_seen_twice():
    place = ss.Pendulum(seen="position").observation(jnp.array([0.5, 0.0]), after(1.0))
    np.testing.assert_allclose(place.mean, [np.sin(0.5), -np.cos(0.5)])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: turn(turn_scale=0.0), "`turn_scale` must be positive"),
        (lambda: turn(turn_scale=[0.1]), r"`turn_scale` must have shape \(\)"),
        (
            lambda: turn(initial_mean=np.zeros(4)),
            r"`initial_mean` must have shape \(5,\), got \(4,\). It is \(x, y, vx, vy, omega\)",
        ),
        (lambda: turn(sensors=[0.0, 1.0]), r"`sensors` must have shape \(s, 2\)"),
        (lambda: ss.Pendulum(gravity=-1.0), "`gravity` must be positive"),
        (lambda: ss.Pendulum(damping=-0.1), "`damping` must be positive"),
        (lambda: ss.Pendulum(seen="side"), '`seen` must be "sine" or "position", got \'side\''),
        (lambda: ss.Pendulum(substeps=0), "`substeps` must be at least 1"),
        (lambda: ss.Pendulum(initial_mean=[0.0]), r"`initial_mean` must have shape \(2,\)"),
        (lambda: ss.Pendulum(noise_scale=[0.1, 0.1]), r"`noise_scale` must have shape \(1,\)"),
    ],
)
def test_bad_turns_and_pendulums_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
