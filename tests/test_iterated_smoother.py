"""Iterated smoothers: associative scans, damping, and what they report."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import statespace as ss
from statespace.linearisation import Cubature

STEPS = 20


def waves(scale=0.3):
    """One state, moved and seen along curves."""
    return ss.Model(
        ss.Gaussian(jnp.ones(1), jnp.ones(1)),
        lambda x, step: dist.Normal(0.9 * x + 0.2 * jnp.sin(2 * x), scale).to_event(1),
        lambda x, step: dist.Normal(x + 0.3 * jnp.sin(x), 0.3).to_event(1),
    )


@pytest.fixture(scope="module")
def series():
    y = np.array(ss.simulate(waves(), STEPS, key=jax.random.key(1)).y)
    y[5] = np.nan
    return ss.Series(y)


@pytest.mark.parametrize(
    "settings", [{"form": "covariance"}, {"form": "sqrt", "linearisation": Cubature()}]
)
def test_associative_scans_give_the_same_states(series, settings):
    run = lambda parallel: ss.smooth(
        waves(),
        series,
        method=ss.IteratedSmoother(parallel=parallel, tolerance=1e-11, **settings),
    )
    one, other = run(False), run(True)
    assert bool(one.convergence.converged)
    assert int(one.convergence.iterations) == int(other.convergence.iterations)
    for name in ("mean", "covariance", "lag_one", "log_likelihood"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), atol=1e-10)


@pytest.mark.slow
def test_gradients_through_associative_scans(series):
    method = ss.IteratedSmoother(parallel=True, tolerance=1e-12)
    value = jax.jit(lambda scale: ss.log_likelihood(waves(scale), series, method=method))
    step = 1e-4
    numeric = (value(0.3 + step) - value(0.3 - step)) / (2 * step)
    np.testing.assert_allclose(jax.jit(jax.grad(value))(0.3), numeric, rtol=1e-6)


def far_off():
    """An observation whose curvature makes full steps overshoot."""
    return ss.Model(
        ss.Gaussian(jnp.zeros(1), jnp.full(1, 3.0)),
        lambda x, step: dist.Normal(x, 0.1).to_event(1),
        lambda x, step: dist.Normal(5 * jnp.arctan(4 * x), 0.1).to_event(1),
    )


@pytest.mark.parametrize("damping", ["levenberg-marquardt", "line-search"])
def test_damping_lowers_the_cost_in_every_iteration(damping):
    y = 5 * np.arctan(4 * np.full((STEPS, 1), 1.5)) + 0.05
    costs = []
    for count in (1, 60):
        method = ss.IteratedSmoother(damping=damping, iterations=count)
        costs.append(float(ss.smooth(far_off(), y, method=method).convergence.cost))
    assert all(np.diff(costs) <= 1e-12), costs
    assert costs[-1] < costs[0] - 1


def test_a_step_to_no_number_is_reported_and_not_taken():
    model = ss.Model(
        ss.Gaussian(jnp.ones(1), jnp.ones(1)),
        lambda x, step: dist.Normal(x, 0.1).to_event(1),
        lambda x, step: dist.Normal(jnp.sqrt(x), 0.1).to_event(1),
    )
    method, series = ss.IteratedSmoother(), ss.Series(np.zeros((STEPS, 1)))
    convergence = method.posterior(model, series, "smoothed").convergence
    assert not bool(convergence.converged)
    assert np.isnan(convergence.change)
    assert int(convergence.iterations) < 50


def test_what_needs_more_iterations_says_so(series):
    posterior = ss.smooth(waves(), series, method=ss.IteratedSmoother(iterations=1))
    assert not bool(posterior.convergence.converged)
    assert int(posterior.convergence.iterations) == 1
    assert float(posterior.convergence.change) > 1e-8


def test_one_and_two_moments():
    for steps in (1, 2):
        y = np.full((steps, 1), 0.8)
        posterior = ss.smooth(waves(), y, method=ss.IteratedSmoother())
        x = np.asarray(posterior.mean)[:, 0]
        slope = (x[0] - 1) + (x[0] + 0.3 * np.sin(x[0]) - 0.8) * (1 + 0.3 * np.cos(x[0])) / 0.09
        if steps == 2:  # the mode: no slope of the joint density is left
            error = (x[1] - 0.9 * x[0] - 0.2 * np.sin(2 * x[0])) / 0.09
            slope -= error * (0.9 + 0.4 * np.cos(2 * x[0]))
            seen = (x[1] + 0.3 * np.sin(x[1]) - 0.8) * (1 + 0.3 * np.cos(x[1])) / 0.09
            np.testing.assert_allclose(error + seen, 0, atol=1e-6)
        np.testing.assert_allclose(slope, 0, atol=1e-6)


def test_associative_scans_on_panels_with_gaps_and_irregular_times():
    model = ss.Model(
        ss.Gaussian(jnp.ones(1), jnp.ones(1)),
        lambda x, step: dist.Normal(x - step.dt * jnp.sin(x), 0.3 * jnp.sqrt(step.dt)).to_event(1),
        lambda x, step: dist.Normal(x + 0.3 * jnp.sin(x), 0.3).to_event(1),
    )
    r = np.random.default_rng(0)
    recordings = []
    for steps in (22, 18):
        y = 1 + 0.5 * r.normal(size=(steps, 1))
        y[3], y[9:12] = np.nan, np.nan
        recordings.append(ss.Series(y, times=np.cumsum(r.uniform(0.1, 0.6, steps))))
    panel = ss.Panel(recordings)
    one, other = (
        ss.smooth(model, panel, method=ss.IteratedSmoother(parallel=parallel, tolerance=1e-11))
        for parallel in (False, True)
    )
    for a, b in zip(one, other, strict=True):
        assert bool(a.convergence.converged)
        for name in ("mean", "covariance", "log_likelihood"):
            np.testing.assert_allclose(getattr(a, name), getattr(b, name), atol=1e-9)
