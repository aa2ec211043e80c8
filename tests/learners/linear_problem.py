"""A linear Gaussian model whose exact likelihood is the oracle of learners by particles."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

import statespace as ss
from statespace.learners.priors import log_prior

FREE = ("transition_matrix", "transition_scale")
PRIORS = {
    "transition_matrix": dist.Normal(0.5, 0.3, validate_args=False),
    "transition_scale": dist.HalfNormal(1.0, validate_args=False),
}


def model(matrix=0.8, scale=0.6):
    """One state, one channel; two parameters are free."""
    whole = ss.LinearGaussian([[matrix]], [scale], [[1.0]], [0.5], [0.0], [1.0])
    return ss.freeze(whole, *(name for name in ss.parameters(whole) if name not in FREE))


def recordings():
    """Two of unequal length, with missing entries."""
    y = np.array(ss.simulate(model(), 60, key=jax.random.key(1)).y)
    y[5:8] = np.nan
    return [y, np.array(ss.simulate(model(), 35, key=jax.random.key(2)).y)]


def assert_near(fitted, exact, within):
    """Parameters agree to a share of their standard errors."""
    for name in FREE:
        error = np.abs(fitted.parameters[name] - exact.parameters[name])
        assert np.all(error < within * exact.standard_errors[name]), (name, error)


def on_a_grid(data):
    """Exact posterior means and standard deviations of the two parameters."""
    grid = np.meshgrid(np.linspace(-0.4, 1.25, 60), np.linspace(0.05, 1.6, 60), indexing="ij")
    points = jnp.asarray(np.stack(grid, axis=-1).reshape(-1, 2))

    def density(point):
        at = model(point[0], point[1])
        return ss.log_likelihood(at, data, method=ss.Kalman()) + log_prior(at, PRIORS)

    value = np.asarray(jax.jit(lambda p: jax.lax.map(density, p, batch_size=100))(points))
    weights = np.exp(value - value.max())
    weights /= weights.sum()
    mean = weights @ points
    return mean, np.sqrt(weights @ (points - mean) ** 2)
