"""Catalogue models for particle methods: their laws against closed forms, sums over states and quadrature."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import statespace as ss

STEP = ss.Step(1, 1.0, 1.0)


def later(dt, time=3.0):
    return ss.Step(1, time, dt)


VOLATILITY = {"mean": -1.0, "persistence": 0.9, "scale": 0.4}
MODELS = {
    "volatility": ss.StochasticVolatility(**VOLATILITY),
    "leverage": ss.StochasticVolatility(**VOLATILITY, leverage=-0.6),
    "heavy": ss.StochasticVolatility(**VOLATILITY, degrees=5.0),
    "growth": ss.NonlinearGrowth(),
    "bearings": ss.BearingsOnly(0.1, 0.02, [1.0, 2, 0, 0], np.ones(4), [[0.0, 9.0], [9.0, 0.0]]),
    "spikes": ss.SpikeCounts(0.95, 0.3, mean=0.2, bias=[-1.0, 0.5], gain=[1.0, 2.0], trials=50),
    "theta": ss.ThetaLogistic(0.5, 200.0, 0.7, 0.1, noise_scale=0.2),
    "lotka": ss.LotkaVolterra(noise_scale=[5.0, 8.0]),
    "epidemic": ss.SIR(50, 1.2, 0.4, 0.6, initial_fraction=0.1),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_can_be_simulated_and_its_parameters_move(name, key):
    """States have a density under the transition, observations under the observation law."""
    model = MODELS[name]
    states, y = ss.simulate(model, 4, key=key)
    assert states.shape == (4, len(getattr(model, "state_names", ("x",))))
    assert y.shape == (4, getattr(model.observation, "channels", None) or y.shape[1])
    step = STEP._replace(history=y[:1].astype(float))
    assert np.isfinite(model.transition(states[0], step).log_prob(states[1]))
    assert np.isfinite(model.observation(states[1], step).log_prob(y[1])).all()
    free = ss.unconstrain(model)
    moved = ss.constrain(model, {k: v + 0.1 for k, v in free.items()})
    assert all(not np.allclose(ss.parameters(moved)[k], ss.parameters(model)[k]) for k in free)
    first = next(iter(free))
    assert first not in ss.unconstrain(ss.freeze(model, first))


@pytest.mark.parametrize("name", ["volatility", "leverage", "spikes"])
def test_the_hidden_process_composes_over_intervals(name):
    """Two steps of dt are one of 2 dt, and the stationary law stays: an Ornstein–Uhlenbeck process."""
    model = MODELS[name]
    kernel = model.transition
    plain = getattr(kernel, "plain", kernel)
    one, two = plain.at(later(0.7)), plain.at(later(1.4))
    matrix, scale = float(one.matrix[0, 0]), float(one.scale[0])
    np.testing.assert_allclose(two.matrix[0, 0], matrix**2, rtol=1e-12)
    np.testing.assert_allclose(two.offset, one.offset * (1 + matrix), rtol=1e-12)
    np.testing.assert_allclose(two.scale[0] ** 2, scale**2 * (1 + matrix**2), rtol=1e-12)
    np.testing.assert_allclose(plain.at(STEP).matrix[0, 0], model.persistence)
    np.testing.assert_allclose(plain.at(STEP).scale[0], model.scale)
    law = model.initial
    np.testing.assert_allclose(matrix * law.mean + one.offset, law.mean, rtol=1e-12)
    variance = float(law.scale[0]) ** 2
    np.testing.assert_allclose(matrix**2 * variance + scale**2, variance, rtol=1e-12)


def test_leverage_is_the_correlation_of_return_and_move():
    """The joint law of return and next state is that of two correlated normal shocks."""
    model = MODELS["leverage"]
    x, y, after = jnp.array([-0.7]), 0.9, jnp.array([-0.2])
    shock = y / np.exp(-0.35)
    joint = scipy.stats.multivariate_normal([0, 0], [[1, -0.6], [-0.6, 1]])
    move = (-0.2 - (-1.0 + 0.9 * 0.3)) / 0.4
    want = joint.logpdf([shock, move]) - np.log(np.exp(-0.35) * 0.4)
    step = STEP._replace(history=jnp.array([[y]]))
    seen = model.observation(x, STEP).log_prob(jnp.array([y]))
    got = seen + model.transition(x, step).log_prob(after)
    np.testing.assert_allclose(got, want, rtol=1e-12)
    # a missing return says nothing of the move
    missing = STEP._replace(history=jnp.array([[jnp.nan]]))
    plain = MODELS["volatility"].transition(x, STEP).log_prob(after)
    np.testing.assert_allclose(model.transition(x, missing).log_prob(after), plain, rtol=1e-12)


def test_simulated_leverage(key):
    """Shocks recovered from a long simulation have the model's correlation, and unit variances."""
    x, y = ss.simulate(MODELS["leverage"], 20_000, key=key)
    shock = (y / np.exp(x / 2))[:-1, 0]
    move = ((x[1:] + 1 - 0.9 * (x[:-1] + 1)) / 0.4)[:, 0]
    got = np.corrcoef(shock, move)[0, 1]
    assert abs(got + 0.6) < 5 * (1 - 0.36) / np.sqrt(20_000)
    assert abs(np.std(shock) - 1) < 5 / np.sqrt(40_000)
    assert abs(np.std(move) - 1) < 5 / np.sqrt(40_000)


def test_heavy_tails_keep_the_variance():
    law = MODELS["heavy"].observation(jnp.array([0.8]), STEP)
    want = scipy.stats.t(5.0, scale=np.exp(0.4) * np.sqrt(3 / 5))
    np.testing.assert_allclose(law.log_prob(jnp.array([2.0])), want.logpdf(2.0), rtol=1e-12)
    assert want.var() == pytest.approx(np.exp(0.8))


def test_nonlinear_growth_step():
    model = MODELS["growth"]
    law = model.transition(jnp.array([2.0]), later(1.0, time=4.0))
    want = 0.5 * 2 + 25 * 2 / 5 + 8 * np.cos(4.8)
    np.testing.assert_allclose(law.mean, [want])
    np.testing.assert_allclose(law.variance, [10.0])
    np.testing.assert_allclose(model.observation(jnp.array([4.0]), STEP).mean, [16 / 20])


def test_bearings():
    """Angles are those of the plane, they wrap, and moving sensors are read from the inputs."""
    model = MODELS["bearings"]
    law = model.observation(jnp.array([9.0, 9.0, 0, 0]), STEP)
    angles = jnp.array([0.0, np.pi / 2])
    np.testing.assert_allclose(law.base_dist.loc, angles, atol=1e-15)
    behind = ss.BearingsOnly(0.1, 0.02, np.zeros(4), np.ones(4), [[0.0, 0.0]])
    opposite = behind.observation(jnp.array([-5.0, 0, 0, 0]), STEP)
    sides = [opposite.log_prob(jnp.array([s * (np.pi - 0.01)])) for s in (1, -1)]
    np.testing.assert_allclose(*sides, rtol=1e-9)
    # small noise is normal noise, of which the standard deviation is the scale
    normal = scipy.stats.norm(0, 0.02).logpdf([0.01, 0.0]).sum()
    np.testing.assert_allclose(law.log_prob(angles + jnp.array([0.01, 0.0])), normal, rtol=1e-3)
    moving = ss.BearingsOnly(0.1, [0.02, 0.02], [1.0, 2, 0, 0], np.ones(4))
    step = STEP._replace(inputs=jnp.array([0.0, 9.0, 9.0, 0.0]))
    same = moving.observation(jnp.array([9.0, 9.0, 0, 0]), step)
    np.testing.assert_allclose(same.base_dist.loc, angles, atol=1e-15)


def test_spike_counts():
    model = MODELS["spikes"]
    x, y = 0.4, np.array([20.0, 35.0])
    p = 1 / (1 + np.exp(-(np.array([-1.0, 0.5]) + np.array([1.0, 2.0]) * x)))
    want = scipy.stats.binom(50, p).logpmf(y).sum()
    np.testing.assert_allclose(
        model.observation(jnp.array([x]), STEP).log_prob(jnp.asarray(y)), want, rtol=1e-9
    )
    poisson = ss.SpikeCounts(0.9, 0.3, bias=[1.0], exposure=0.5, input_weights=[2.0, -1.0])
    law = poisson.observation(jnp.array([x]), STEP)
    want = scipy.stats.poisson(0.5 * np.exp(1.4)).logpmf(3)
    np.testing.assert_allclose(law.log_prob(jnp.array([3])), want, rtol=1e-9)
    driven = poisson.transition(jnp.array([1.0]), STEP._replace(inputs=jnp.array([0.5, 0.2])))
    np.testing.assert_allclose(driven.mean, [0.9 + 1.0 - 0.2])


def test_theta_logistic():
    model = MODELS["theta"]
    law = model.transition(jnp.log(jnp.array([100.0])), later(0.5))
    want = np.log(100) + 0.5 * 0.5 * (1 - 0.5**0.7)
    np.testing.assert_allclose(law.mean, [want])
    np.testing.assert_allclose(law.variance, [0.01 * 0.5])
    counts = ss.ThetaLogistic(0.5, 200.0, 0.7, 0.1).observation(jnp.log(jnp.array([30.0])), STEP)
    np.testing.assert_allclose(
        counts.log_prob(jnp.array([25])), scipy.stats.poisson(30).logpmf(25), rtol=1e-9
    )


def test_lotka_volterra_moments():
    """Per unit of time the numbers' drift and covariance are those of the three reactions."""
    model = MODELS["lotka"]
    prey, predators = 80.0, 130.0
    rates = np.array([0.5 * prey, 0.0025 * prey * predators, 0.3 * predators])
    change = np.array([[1, -1, 0], [0, 1, -1]])
    drift, covariance = change @ rates, change * rates @ change.T
    inverse = 1 / np.array([prey, predators])
    law = model.transition(jnp.log(jnp.array([prey, predators])), later(0.2))
    logs = np.log([prey, predators])
    # Itô's formula for the logarithm
    want = logs + 0.2 * (drift * inverse - 0.5 * np.diag(covariance) * inverse**2)
    np.testing.assert_allclose(law.mean, want, rtol=1e-12)
    scaled = 0.2 * covariance * np.outer(inverse, inverse)
    np.testing.assert_allclose(law.covariance_matrix, scaled, rtol=1e-10)


def epidemic_states(population):
    """All (S, I, C) of a small population."""
    return [
        (s, i, c)
        for s in range(population + 1)
        for i in range(population + 1 - s)
        for c in range(population + 1 - s)
    ]


def test_epidemic_probabilities_sum_to_one_and_have_the_right_means():
    """Over all states of a population of four."""
    model = ss.SIR(4, 1.2, 0.4, 0.6, initial_fraction=0.3)
    states = jnp.array(epidemic_states(4), float)
    law = model.transition(jnp.array([2.0, 2.0, 0.0]), later(0.5))
    probs = np.exp(jax.vmap(law.log_prob)(states))
    np.testing.assert_allclose(probs.sum(), 1, rtol=1e-12)
    infected, recovered = 1 - np.exp(-1.2 * 2 / 4 * 0.5), 1 - np.exp(-0.4 * 0.5)
    np.testing.assert_allclose(probs @ states[:, 2], 2 * infected, rtol=1e-12)
    want = 2 + 2 * infected - 2 * recovered
    np.testing.assert_allclose(probs @ states[:, 1], want, rtol=1e-12)
    first = np.exp(jax.vmap(model.initial(STEP).log_prob)(states))
    np.testing.assert_allclose(first.sum(), 1, rtol=1e-12)
    np.testing.assert_allclose(first @ states[:, 1], 4 * 0.3, rtol=1e-12)


def test_epidemic_draws_follow_the_probabilities(key):
    """20,000 draws of one step: every state's frequency within five standard errors."""
    model = ss.SIR(4, 1.2, 0.4, 0.6)
    states = np.array(epidemic_states(4), float)
    law = model.transition(jnp.array([2.0, 2.0, 0.0]), later(0.5))
    draws = np.asarray(jax.vmap(law.sample)(jax.random.split(key, 20_000)))
    probs = np.exp(jax.vmap(law.log_prob)(jnp.asarray(states)))
    share = (draws[:, None] == states).all(axis=2).mean(axis=0)
    error = np.sqrt(probs * (1 - probs) / 20_000)
    assert np.all(np.abs(share - probs) <= 5 * error + 1e-12)


def test_reports():
    law = ss.SIR(50, 1.2, 0.4, 0.6).observation(jnp.array([30.0, 5.0, 8.0]), STEP)
    want = scipy.stats.binom(8, 0.6).logpmf(5)
    np.testing.assert_allclose(law.log_prob(jnp.array([5])), want, rtol=1e-6)
    spread = ss.SIR(50, 1.2, 0.4, 0.6, concentration=3.0)
    law = spread.observation(jnp.array([30.0, 5.0, 8.0]), STEP)
    want = scipy.stats.nbinom(3.0, 3.0 / (3.0 + 4.8)).logpmf(5)
    np.testing.assert_allclose(law.log_prob(jnp.array([5])), want, rtol=1e-9)
    none = spread.observation(jnp.array([30.0, 5.0, 0.0]), STEP)
    np.testing.assert_allclose(none.log_prob(jnp.array([0])), 0, atol=1e-5)


def test_contact_rates_follow_the_inputs():
    model = ss.SIR(50, 1.2, 0.4, 0.6, input_weights=[0.5])
    state = jnp.array([30.0, 5.0, 0.0])
    law = model.transition(state, STEP._replace(inputs=jnp.array([2.0])))
    np.testing.assert_allclose(law.infection, 1 - np.exp(-1.2 * np.exp(1.0) * 5 / 50))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ss.StochasticVolatility(0.0, 1.0, 0.3), "`persistence` must lie between 0 and 1"),
        (
            lambda: ss.StochasticVolatility(0.0, 0.9, 0.3, leverage=-0.5, degrees=5.0),
            "takes `leverage` or `degrees`, not both",
        ),
        (lambda: ss.StochasticVolatility(0.0, 0.9, 0.3, leverage=1.0), "`leverage` must lie"),
        (lambda: ss.StochasticVolatility(0.0, 0.9, 0.3, degrees=2.0), "`degrees` must be above 2"),
        (lambda: ss.StochasticVolatility([0.0], 0.9, 0.3), r"`mean` must have shape \(\)"),
        (lambda: ss.NonlinearGrowth(noise_scale=0.0), "`noise_scale` must be positive"),
        (
            lambda: ss.BearingsOnly(0.1, 0.1, np.zeros(2), np.ones(4)),
            r"`initial_mean` must have shape \(4,\), got \(2,\). It is \(x, y, vx, vy\)",
        ),
        (
            lambda: ss.BearingsOnly(0.1, 0.1, np.zeros(4), np.ones(4), sensors=[0.0, 1.0]),
            r"`sensors` must have shape \(s, 2\)",
        ),
        (lambda: ss.SpikeCounts(0.9, 0.3, trials=0), "`trials` must be a positive number"),
        (
            lambda: ss.SpikeCounts(0.9, 0.3, bias=[0.0, 1.0], gain=[1.0]),
            r"`gain` must have shape \(2,\)",
        ),
        (lambda: ss.ThetaLogistic(0.5, -1.0, 1.0, 0.1), "`capacity` must be positive"),
        (lambda: ss.LotkaVolterra(noise_scale=np.ones(3)), "must be a scalar or have shape"),
        (lambda: ss.SIR(1, 1.0, 0.5, 0.5), "`population` must be a whole number of at least 2"),
        (lambda: ss.SIR(10, 1.0, 0.5, 1.5), "`reporting` must lie between 0 and 1"),
    ],
)
def test_bad_parameters_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_missing_inputs_are_named(key):
    moving = ss.BearingsOnly(0.1, 0.1, np.zeros(4), np.ones(4))
    with pytest.raises(ValueError, match="reads their positions from the inputs"):
        ss.simulate(moving, 3, key=key)
    with pytest.raises(ValueError, match="`input_weights` for 2 inputs, but the data carry none"):
        ss.simulate(ss.SpikeCounts(0.9, 0.3, input_weights=[1.0, 2.0]), 3, key=key)
