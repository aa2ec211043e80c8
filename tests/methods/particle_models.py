"""Small models with exact answers, on which particle methods are tried."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

import statespace as ss

F = jnp.array([[0.9, 0.2], [0.0, 0.7]])
Q = jnp.array([[1.0, 0.3], [0.3, 0.5]])
H = jnp.array([[1.0, 0.0], [0.5, 1.0]])
R = jnp.array([[0.5, 0.1], [0.1, 0.3]])

linear = ss.Model(
    ss.Gaussian(jnp.zeros(2), jnp.ones(2)),
    ss.AffineGaussian(F, covariance=Q),
    ss.AffineGaussian(H, covariance=R),
)
written = ss.Model(
    lambda step: dist.MultivariateNormal(jnp.zeros(2), jnp.eye(2)),
    lambda x, step: dist.MultivariateNormal(F @ x, covariance_matrix=Q),
    lambda x, step: dist.MultivariateNormal(H @ x, covariance_matrix=R),
)
"""The same as functions, of which nothing is known but what they return."""

mixed = ss.Model(linear.initial, linear.transition, written.observation)

diffusion = ss.Model(
    ss.Gaussian(jnp.zeros(2), jnp.ones(2)),
    ss.LinearDiffusion(jnp.array([[0.0, 1.0], [-1.0, -0.5]]), jnp.array([[0.0], [1.0]])),
    ss.AffineGaussian(H, scale=jnp.array([0.7, 0.5])),
)

weather = ss.Model(
    ss.Categorical([0.6, 0.4]),
    ss.FiniteKernel([[0.9, 0.1], [0.2, 0.8]]),
    ss.emissions.Gaussian(mean=[0.0, 2.0], scale=[1.0, 0.7]),
)

y = np.array(ss.simulate(linear, 6, key=jax.random.key(3)).y)
y[2, 0] = np.nan
y[4] = np.nan
"""Missing in part and missing altogether."""

times = np.array([0.0, 0.5, 0.9, 2.0, 2.1, 3.5])
signs = np.array([0.3, 1.9, np.nan, 2.2, -0.4, 0.1])

keys = jax.random.split(jax.random.key(0), 1000)


def nearer(state, step, y):
    """A proposal between what the transition predicts and what was observed; wider than both."""
    seen = jnp.where(jnp.isnan(y), H @ (F @ state), y)
    mean = 0.7 * (F @ state) + 0.3 * jnp.linalg.solve(H, seen)
    return dist.MultivariateNormal(mean, covariance_matrix=1.3 * Q)
