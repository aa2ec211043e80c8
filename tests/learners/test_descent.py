"""The optimiser against problems whose minima are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from statespace.optimisation import descent


def minimise(objective, x, tolerance=1e-12, limit=3000):
    tolerance = jnp.asarray(tolerance)

    @jax.jit
    def run(x):
        return descent.advance(objective, descent.start(x), tolerance, jnp.asarray(limit))

    return run(jnp.asarray(x))


def rosenbrock(x):
    return jnp.sum(100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2)


@pytest.mark.parametrize("p", [2, 20])
def test_rosenbrock(p):
    end = minimise(rosenbrock, jnp.full(p, -1.2))
    assert end.status == descent.CONVERGED
    np.testing.assert_allclose(end.x, 1.0, atol=1e-5)


def test_far_from_a_quadratic_minimum():
    """The step grows until the minimum, 10^4 away, is bracketed."""
    end = minimise(lambda x: 1e-3 * jnp.sum((x - 1e4) ** 2), jnp.zeros(3))
    np.testing.assert_allclose(end.x, 1e4, rtol=1e-8)
    assert end.evaluations < 20


def test_badly_scaled_logarithms():
    """sum w e^{2x} - x has its minimum at -log(2 w) / 2, over eight orders of magnitude of w."""
    weights = jnp.logspace(-4, 4, 6)
    end = minimise(lambda x: jnp.sum(weights * jnp.exp(2 * x) - x), jnp.full(6, 8.0))
    np.testing.assert_allclose(end.x, -jnp.log(2 * weights) / 2, atol=1e-5)


def test_steps_back_from_where_there_is_no_value():
    """The first step, of unit length, and the expansion both land where the objective is NaN."""

    def objective(x):
        return jnp.where(x[0] < 0.5, jnp.nan, x[0] - jnp.log(x[0] - 0.5) + x[1] ** 2)

    end = minimise(objective, jnp.array([0.6, 3.0]))
    assert end.status == descent.CONVERGED
    np.testing.assert_allclose(end.x, [1.5, 0.0], atol=1e-5)


def test_no_value_at_the_start_is_no_success():
    end = minimise(lambda x: jnp.sum(jnp.log(x)), -jnp.ones(2))
    assert end.status == descent.STALLED


def test_a_batch_is_its_searches():
    starts = jnp.linspace(-2, 2, 5)[:, None] * jnp.ones(2) + 0.1
    tolerance = jnp.asarray(1e-12)

    def run(x):
        return descent.advance(rosenbrock, descent.start(x), tolerance, jnp.asarray(500))

    batch = jax.jit(jax.vmap(run))(starts)
    alone = jax.jit(run)
    for i, x in enumerate(starts):
        one = alone(x)
        np.testing.assert_allclose(batch.x[i], one.x, atol=1e-6)
        assert batch.status[i] == descent.CONVERGED


def test_limit_of_evaluations_and_going_on():
    tolerance = jnp.asarray(1e-12)
    state = descent.start(jnp.full(4, -1.2))
    once = descent.advance(rosenbrock, state, tolerance, jnp.asarray(3000))
    state = descent.advance(rosenbrock, state, tolerance, jnp.asarray(7))
    assert state.evaluations == 7
    assert state.status == descent.RUNNING
    state = descent.advance(rosenbrock, state, tolerance, jnp.asarray(3000))
    np.testing.assert_array_equal(state.x, once.x)


def test_float32_converges_to_its_precision():
    x = jnp.full(3, -1.2, jnp.float32)
    end = minimise(lambda x: 1000 + rosenbrock(x), x, tolerance=np.float32(1e-8))
    assert end.status == descent.CONVERGED
    assert end.x.dtype == jnp.float32
    assert rosenbrock(end.x) < 1e-2
