"""Derivatives of the evidence by Gaussian sites, and what is learned by them."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
import scipy.optimize

import statespace as ss

Y = np.array([3.0, np.nan, 1.0, 0.0, 2.0, 6.0])


def poisson(theta):
    return ss.GeneralisedLinear(theta[2] * jnp.ones((1, 1)), theta[3:4], "poisson")


def student(theta):
    """Heavy tails: the last observation is an outlier, whose site is guarded."""
    return ss.GeneralisedLinear(jnp.ones((1, 1)), theta[3:4], "student_t", df=4.0, scale=theta[2])


def log_likelihood(method, observation, y=Y):
    def function(theta):
        model = ss.Model(
            ss.Gaussian(jnp.array([0.2]), jnp.array([0.9])),
            ss.AffineGaussian(theta[0] * jnp.ones((1, 1)), jnp.array([0.1]), theta[1:2]),
            observation(theta),
        )
        return method.log_likelihood(model, ss.Series(y))

    return function


def central_differences(function, at, step):
    each = jax.jit(jax.vmap(function))
    moves = step * jnp.eye(len(at))
    values = np.asarray(each(jnp.concatenate([at + moves, at - moves])))
    return (values[: len(at)] - values[len(at) :]) / (2 * step)


THETA = jnp.array([0.8, 0.5, 0.9, 0.3])


@pytest.mark.parametrize(
    ("method", "observation"),
    [
        (ss.ConjugateVI, poisson),
        pytest.param(ss.Laplace, poisson, marks=pytest.mark.slow),
        pytest.param(ss.Laplace, student, marks=pytest.mark.slow),
        pytest.param(ss.ExpectationPropagation, student, marks=pytest.mark.slow),
    ],
)
def test_gradients_are_those_of_the_converged_evidence(method, observation):
    function = log_likelihood(method(tolerance=1e-12), observation)
    got = jax.jit(jax.grad(function))(THETA)
    np.testing.assert_allclose(got, central_differences(function, THETA, 1e-4), atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["smoothed mean", "predictions"])
def test_gradients_of_states_and_predictions_pass_through_the_sites(what):
    """There is nothing stationary about them, as there is about the evidence."""
    method = ss.ConjugateVI(tolerance=1e-12)

    def function(theta):
        model = ss.Model(
            ss.Gaussian(jnp.array([0.2]), jnp.array([0.9])),
            ss.AffineGaussian(theta[0] * jnp.ones((1, 1)), jnp.array([0.1]), theta[1:2]),
            poisson(theta),
        )
        series = ss.Series(Y[2:5])
        if what == "predictions":
            return jnp.sum(method.pointwise(model, series))
        return jnp.sum(method.posterior(model, series, "smoothed").mean ** 2)

    got = jax.jit(jax.grad(function))(THETA)
    np.testing.assert_allclose(got, central_differences(function, THETA, 1e-4), atol=1e-6)


@pytest.mark.slow
def test_the_hessian_is_that_of_the_converged_bound():
    function = log_likelihood(ss.ConjugateVI(tolerance=1e-12), poisson, Y[2:5])
    gradient = jax.grad(function)
    along = jnp.array([1.0, 0.0, 0.0, 0.0])
    got = jax.jit(lambda theta: jax.jvp(gradient, (theta,), (along,))[1])(THETA)
    once = jax.jit(gradient)
    moved = (once(THETA + 1e-4 * along) - once(THETA - 1e-4 * along)) / 2e-4
    np.testing.assert_allclose(got, moved, atol=1e-5)


@pytest.mark.slow
def test_a_curved_transition_is_linearised_with_the_sites():
    """Laplace's method with Taylor's rule ends at the mode of the joint density (Gauss–Newton)."""
    y = np.array([2.0, 4.0, 1.0, 0.0])
    bend = lambda x: x + 0.4 * jnp.sin(2 * x)
    model = ss.Model(
        ss.Gaussian(jnp.array([0.2]), jnp.array([0.9])),
        lambda x, step: dist.Normal(bend(x), 0.5).to_event(1),
        ss.GeneralisedLinear([[1.0]], [0.3], "poisson"),
    )
    got = ss.smooth(model, y, method=ss.Laplace(tolerance=1e-10))

    def cost(x):
        move = (x[1:] - bend(x[:-1])) / 0.5
        observed = y * (x + 0.3) - jnp.exp(x + 0.3)
        return 0.5 * ((x[0] - 0.2) / 0.9) ** 2 + 0.5 * jnp.sum(move**2) - jnp.sum(observed)

    found = scipy.optimize.minimize(
        cost, got.mean[:, 0], jac=jax.grad(cost), options={"gtol": 1e-10}
    )
    assert bool(got.convergence.converged)
    np.testing.assert_allclose(got.mean[:, 0], found.x, atol=1e-6)


@pytest.mark.slow
def test_rates_are_learned_by_the_bound():
    model = ss.SpikeCounts(0.9, 0.3, bias=[1.0])
    y = ss.simulate(model, 200, key=jax.random.key(0)).y
    start = ss.SpikeCounts(0.7, 0.5, bias=[0.0])
    fitted = ss.fit(start, y, method=ss.ConjugateVI())
    assert fitted.converged
    truth = ss.log_likelihood(model, y, method=ss.ConjugateVI())
    assert float(truth) < fitted.log_likelihood < float(truth) + 6
    assert abs(float(fitted.model.bias[0]) - 1.0) < 4 * float(
        np.ravel(fitted.standard_errors["bias"])[0]
    )
