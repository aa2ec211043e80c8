"""Stationary laws: the Lyapunov equations, against SciPy and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg
from jax.test_util import check_grads

from statespace.conditionals.stationary import continuous_lyapunov, discrete_lyapunov


def stable(n, radius, seed):
    rng = np.random.default_rng(seed)
    matrix = rng.normal(size=(n, n))
    factor = rng.normal(size=(n, 2))
    return matrix * radius / np.abs(np.linalg.eigvals(matrix)).max(), factor


@pytest.mark.parametrize(("n", "radius"), [(1, 0.5), (4, 0.97), (12, 0.999)])
def test_discrete_agrees_with_scipy(n, radius):
    f, g = stable(n, radius, n)
    want = scipy.linalg.solve_discrete_lyapunov(f, g @ g.T)
    got = discrete_lyapunov(jnp.asarray(f), jnp.asarray(g @ g.T))
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-11 * np.abs(want).max())


def test_close_to_a_unit_root():
    rho = 1 - 2.0**-30
    got = discrete_lyapunov(jnp.full((1, 1), rho), jnp.ones((1, 1)))
    np.testing.assert_allclose(got, 1 / ((1 - rho) * (1 + rho)), rtol=1e-8)


def test_growth_before_decay():
    """Powers of a companion matrix can grow a long way before they decay."""
    f = np.array([[0.9, 1e2], [0.0, 0.9]])
    q = np.diag([0.0, 1.0])
    want = scipy.linalg.solve_discrete_lyapunov(f, q)
    got = discrete_lyapunov(jnp.asarray(f), jnp.asarray(q))
    np.testing.assert_allclose(got, want, rtol=1e-9)


def test_nilpotent_dynamics():
    """A moving average forgets after finitely many steps."""
    f, q = np.eye(3, k=1), np.diag([1.0, 2.0, 3.0])
    want = q + f @ q @ f.T + f @ f @ q @ f.T @ f.T
    np.testing.assert_allclose(discrete_lyapunov(jnp.asarray(f), jnp.asarray(q)), want)


def test_unstable_dynamics_are_not_finite():
    got = discrete_lyapunov(1.01 * jnp.eye(2), jnp.eye(2))
    assert not np.isfinite(np.diagonal(got)).any()


def test_derivatives_in_both_modes_and_of_second_order():
    f, g = stable(3, 0.8, 1)
    weights = np.random.default_rng(2).normal(size=(3, 3))

    def value(f, q):
        return jnp.sum(weights * discrete_lyapunov(f, q))

    check_grads(value, (jnp.asarray(f), jnp.asarray(g @ g.T)), order=2, modes=["fwd", "rev"])


def test_gradient_where_the_law_is_singular():
    """An AR(2) whose second coefficient is zero: the covariance of its two states is singular."""

    def variance(phi):
        f = jnp.array([[phi[0], 1.0], [phi[1], 0.0]])
        return discrete_lyapunov(f, jnp.diag(jnp.array([1.0, 0.0])))[0, 0]

    def closed(phi):
        return (1 - phi[1]) / ((1 + phi[1]) * ((1 - phi[1]) ** 2 - phi[0] ** 2))

    phi = jnp.array([0.6, 0.0])
    np.testing.assert_allclose(jax.grad(variance)(phi), jax.grad(closed)(phi), rtol=1e-12)


def test_under_vmap_each_problem_stops_by_itself():
    problems = [stable(3, r, 3) for r in (0.1, 0.5, 0.999)]
    f = jnp.stack([jnp.asarray(p[0]) for p in problems])
    q = jnp.stack([jnp.asarray(p[1] @ p[1].T) for p in problems])
    got = jax.jit(jax.vmap(discrete_lyapunov))(f, q)
    for i in range(3):
        want = scipy.linalg.solve_discrete_lyapunov(np.array(f[i]), np.array(q[i]))
        np.testing.assert_allclose(got[i], want, atol=1e-11 * np.abs(want).max())


@pytest.mark.parametrize("n", [1, 3, 6])
def test_continuous_agrees_with_scipy(n):
    f, g = stable(n, 1.0, n)
    drift = 3.0 * (f - 1.1 * np.eye(n))
    want = scipy.linalg.solve_continuous_lyapunov(drift, -g @ g.T)
    got = continuous_lyapunov(jnp.asarray(drift), jnp.asarray(g))
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-12 * np.abs(want).max())


def test_continuous_derivative():
    """An Ornstein–Uhlenbeck process has variance scale^2 / (2 rate)."""

    def variance(rate, scale):
        return continuous_lyapunov(-rate * jnp.eye(1), scale * jnp.ones(1))[0, 0]

    got = jax.grad(variance, (0, 1))(0.3, 2.0)
    np.testing.assert_allclose(got, (-4.0 / (2 * 0.09), 4.0 / 0.6), rtol=1e-12)


def test_single_precision_stays_single():
    f, g = stable(4, 0.9, 4)
    got = discrete_lyapunov(jnp.asarray(f, jnp.float32), jnp.asarray(g @ g.T, jnp.float32))
    assert got.dtype == jnp.float32
    want = scipy.linalg.solve_discrete_lyapunov(f, g @ g.T)
    np.testing.assert_allclose(got, want, atol=1e-4 * np.abs(want).max())
