"""Derivatives of the particle filter's likelihood: exactly by enumeration, and against finite differences."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import particle_enumeration as enumeration
import pytest
from particle_enumeration import PROPOSAL, START, vectors

import statespace as ss
from statespace.chains import finite, particle
from statespace.chains.particle import Soft, StopGradient, Transport

STEPS, COUNT = 2, 2


def model_of(theta):
    """A finite chain all of whose parts depend on theta ``(3,)``."""
    one, two, three = jax.nn.sigmoid(theta)
    initial = jnp.stack([one, 1 - one])
    transition = jnp.stack([jnp.stack([two, 1 - two]), jnp.stack([one * two, 1 - one * two])])
    potentials = jnp.asarray(enumeration.POTENTIALS) * jnp.stack([1 + three, 2 * three])
    return initial, transition, potentials


THETA = jnp.array([0.4, 0.9, -0.3])


def estimate(theta, states, ancestors):
    """The likelihood by :class:`StopGradient` at given random choices."""
    initial, transition, _ = model = model_of(theta)
    chain = enumeration.chain(STEPS, model=model)
    start = lambda x, at: (jnp.log(initial) + at["potentials"])[x]
    later = lambda before, x, at: jnp.log(transition)[before, x] + at["potentials"][x]
    run = particle.run(
        particle.fisher(chain, start, later),
        particle.Random(states, ancestors),
        COUNT,
        resample=enumeration.Given(),
        threshold=1.0,
        observer=particle.history,
        gradient=StopGradient(),
    )
    return jnp.exp(run.log_likelihood), run.out[0].log_weights


@pytest.mark.parametrize("name", ["systematic", "multinomial"])
def test_derivative_of_the_likelihood_is_unbiased(name):
    """``E[dZ] = d p(y)``, exactly (Ścibior & Wood 2021, th. 1)."""
    states = vectors(STEPS * COUNT, 2).reshape(-1, STEPS, COUNT)
    lists = np.array([[[0] * COUNT, a] for a in vectors(COUNT)])
    at = np.array(list(np.ndindex(len(states), len(lists))))
    states, ancestors = states[at[:, 0]], lists[at[:, 1]]
    each = jax.jit(jax.vmap(jax.value_and_grad(estimate, has_aux=True), in_axes=(None, 0, 0)))
    (values, log_weights), slopes = each(THETA, states, ancestors)
    weights = np.exp(np.asarray(log_weights)[:, 0])
    table = enumeration.law(name, weights / weights.sum(axis=1, keepdims=True))
    code = ancestors[:, 1] @ COUNT ** np.arange(COUNT)[::-1]
    before = np.take_along_axis(states[:, 0], ancestors[:, 1], axis=1)
    chance = START[states[:, 0]].prod(axis=1) * PROPOSAL[before, states[:, 1]].prod(axis=1)
    chance = chance * table[np.arange(len(code)), code]

    def likelihood(theta):
        initial, transition, potentials = model_of(theta)
        chain = finite.Chain(initial, transition[None], potentials[:STEPS])
        return jnp.exp(finite.log_likelihood(chain))

    value, slope = jax.value_and_grad(likelihood)(THETA)
    assert chance @ values == pytest.approx(float(value), rel=1e-12)
    np.testing.assert_allclose(chance @ np.asarray(slopes), slope, rtol=1e-11)


# A Gaussian chain whose draws are smooth functions of its parameters

Y = np.random.default_rng(3).normal(size=8)


def gaussian(theta):
    """An autoregression seen with noise: persistence, log scale, log noise."""
    rho, scale, noise = jnp.tanh(theta[0]), jnp.exp(theta[1]), jnp.exp(theta[2])
    seen = lambda x, at: -0.5 * ((at - x) / noise) ** 2 - theta[2] - 0.5 * math.log(2 * math.pi)
    return particle.Chain(
        jnp.asarray(Y),
        lambda random, n, at: scale * jax.random.normal(random, (n,)),
        seen,
        lambda random, x, at: rho * x + scale * jax.random.normal(random, x.shape),
        lambda before, x, at: seen(x, at),
    )


SMOOTH = {"soft": Soft(0.6), "transport": Transport(0.5, 60)}
AT = jnp.array([0.8, -0.5, -0.3])


def log_likelihood(theta, gradient, threshold=1.0):
    return particle.run(
        gaussian(theta),
        particle.keys(jax.random.key(2), len(Y)),
        20,
        threshold=threshold,
        gradient=gradient,
    ).log_likelihood


@pytest.mark.parametrize("name", SMOOTH)
def test_derivative_at_given_random_numbers(name):
    """Against central differences, within their rounding."""
    value = jax.jit(lambda theta: log_likelihood(theta, SMOOTH[name]))
    slope = jax.jit(jax.grad(lambda theta: log_likelihood(theta, SMOOTH[name])))(AT)
    step = 1e-5
    differences = [(value(AT + step * e) - value(AT - step * e)) / (2 * step) for e in np.eye(3)]
    np.testing.assert_allclose(slope, differences, rtol=1e-6, atol=1e-7)


def test_transport_is_smooth_where_drawing_ancestors_jumps():
    grid = AT + jnp.linspace(0, 0.2, 200)[:, None] * jnp.array([1.0, 1.0, 0.0])
    steps = {}
    for gradient in (SMOOTH["transport"], None):
        values = jax.jit(jax.vmap(lambda theta, g=gradient: log_likelihood(theta, g)))(grid)
        steps[gradient] = np.abs(np.diff(values, n=2)).max()
    assert steps[SMOOTH["transport"]] < 1e-3
    assert steps[None] > 1e-2


def test_score_does_not_change_the_value():
    plain, score = (log_likelihood(AT, g, 0.5) for g in (None, StopGradient()))
    assert plain == pytest.approx(float(score), rel=1e-12)


def test_soft_likelihood_is_unbiased():
    """Over 4,000 runs, within 4.5 standard errors of the Kalman filter's."""
    keys = jax.random.split(jax.random.key(0), 4000)
    one = lambda key: (
        particle.run(
            gaussian(AT), particle.keys(key, len(Y)), 20, threshold=1.0, gradient=Soft(0.5)
        ).log_likelihood
    )
    rho, scale, noise = jnp.tanh(AT[0]), jnp.exp(AT[1]), jnp.exp(AT[2])
    exact = ss.log_likelihood(linear(rho, scale, noise), Y[:, None])
    ratio = np.exp(np.asarray(jax.jit(jax.vmap(one))(keys)) - float(exact))
    assert abs(ratio.mean() - 1) < 4.5 * ratio.std() / np.sqrt(len(ratio))


def linear(rho, scale, noise):
    one = lambda x: jnp.reshape(x, (1, 1))
    return ss.LinearGaussian(
        transition_matrix=one(rho),
        transition_scale=one(scale),
        transition_offset=jnp.zeros(1),
        observation_matrix=jnp.ones((1, 1)),
        observation_scale=one(noise),
        observation_offset=jnp.zeros(1),
        initial_mean=jnp.zeros(1),
        initial_scale=one(scale),
    )


def test_plan_of_the_transport():
    """Its sums are the weights and 1 / N; with little entropy it is the monotone map of the real line."""
    points = jnp.asarray([[-1.0], [0.2], [0.9], [2.0]])
    weights = jnp.asarray([0.5, 0.25, 0.0, 0.25])
    plan = jax.jit(Transport(0.5, 200).plan)(points, jnp.log(weights))
    np.testing.assert_allclose(plan.sum(axis=0), 0.25, rtol=1e-12)
    np.testing.assert_allclose(plan.sum(axis=1), weights, atol=1e-10)
    plan = jax.jit(Transport(0.02, 500).plan)(points, jnp.log(weights))
    monotone = np.zeros((4, 4))
    monotone[0, :2] = monotone[1, 2] = monotone[3, 3] = 0.25
    np.testing.assert_allclose(plan, monotone, atol=2e-3)


def test_score_of_a_model_against_the_kalman_filter():
    """``E[Z d log Z] / E[Z]`` over 2,000 runs, each within 5 standard errors."""
    given = (0.7, 0.6, 0.8)

    def exact(values):
        return ss.log_likelihood(linear(*values), Y[:, None])

    def estimated(values, key):
        method = ss.ParticleFilter(particles=30, gradient="score", key=key)
        return method.log_likelihood(linear(*values), ss.Series(Y[:, None]))

    truth = np.asarray(jax.grad(exact)(jnp.array(given)))
    keys = jax.random.split(jax.random.key(1), 2000)
    each = jax.jit(jax.vmap(jax.value_and_grad(estimated), in_axes=(None, 0)))
    values, slopes = map(np.asarray, each(jnp.array(given), keys))
    weights = np.exp(values - values.max())
    weights = weights / weights.mean()
    mean = (weights[:, None] * slopes).mean(axis=0)
    error = (weights[:, None] * (slopes - mean)).std(axis=0) / np.sqrt(len(values))
    assert (error < 0.2).all()
    assert (np.abs(mean - truth) < 5 * error).all()


def test_bad_input():
    with pytest.raises(ValueError, match=r"`share` of Soft must be inside \[0, 1\], got 2"):
        Soft(2)
    with pytest.raises(ValueError, match=r"`regularisation` of Transport must be positive, got 0"):
        Transport(0)
    with pytest.raises(
        ValueError, match=r"`gradient` must be None or one of \['score', .*got 'reinforce'"
    ):
        ss.ParticleFilter(gradient="reinforce")
    with pytest.raises(TypeError, match="whose states must be real; got int"):
        Transport().move(jnp.arange(3), jnp.log(jnp.ones(3) / 3))
    with pytest.raises(ValueError, match="optimal transport moves a path away"):
        particle.run(
            gaussian(AT),
            particle.keys(jax.random.key(0), len(Y)),
            9,
            path=jnp.zeros(len(Y)),
            gradient=Transport(),
        )
