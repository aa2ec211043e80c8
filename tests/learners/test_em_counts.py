"""EM for counts: the bound it raises, and its M-step against scipy's optimiser on closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
import scipy.optimize

import statespace as ss
from statespace.learners import em_counts
from statespace.learners.problem import Problem

N, M, T = 2, 4, 30
RNG = np.random.default_rng(2)
LOADINGS = RNG.normal(size=(M, N)) * 0.7
INPUTS = RNG.normal(size=(T, 1))


def model(**kwargs):
    return ss.PoissonLinearDynamics(
        0.9 * np.eye(N), 0.4 * np.ones(N), LOADINGS, np.linspace(0.0, 1.0, M), np.zeros(N), np.ones(N),
        observation_input_matrix=np.zeros((M, 1)), **kwargs,
    )  # fmt: skip


def counts():
    y = RNG.poisson(np.exp(1 + 0.5 * RNG.normal(size=(T, 1)) + 0.3 * INPUTS), size=(T, M)) * 1.0
    y[3, 1] = y[10] = np.nan
    return y


Y = counts()
PANEL = [ss.Series(Y[:18], inputs=INPUTS[:18]), ss.Series(Y[18:], inputs=INPUTS[18:])]


def states():
    """A law of states at every moment, correlated and of different widths."""
    rng = np.random.default_rng(4)
    factor = rng.normal(size=(T, N, N)) * 0.3
    steps = ss.Step(np.arange(T), np.arange(T) * 1.0, np.ones(T), jnp.asarray(INPUTS))
    return em_counts.States(
        jnp.asarray(rng.normal(size=(T, N))),
        jnp.asarray(factor @ factor.transpose(0, 2, 1)),
        jnp.asarray(Y),
        jax.tree.map(jnp.asarray, steps),
    )


def expected_poisson(coefficients, law, y):
    """``E[y η - exp η]`` in closed form, summed over what was observed of one channel."""
    h, d, w = coefficients[:N], coefficients[N], coefficients[N + 1]
    mean = np.asarray(law.mean) @ h + d + INPUTS[:, 0] * w
    variance = np.einsum("i,tij,j->t", h, np.asarray(law.covariance), h)
    return np.nansum(y * mean - np.exp(mean + variance / 2) * np.isfinite(y))


def test_loadings_are_at_the_maximum_of_the_expected_log_density():
    """Every channel's, against scipy's optimiser on the closed form of Poisson counts."""
    law = states()
    names = ["observation_matrix", "observation_offset", "observation_input_matrix"]
    got = jax.jit(lambda m: em_counts._coefficients(m, law, names))(model())
    got = np.column_stack([np.asarray(got[name]).reshape(M, -1) for name in names])
    for channel in range(M):
        y = Y[:, channel]
        want = scipy.optimize.minimize(
            lambda c, y=y: -expected_poisson(c, law, y), np.zeros(N + 2), method="BFGS",
            options={"gtol": 1e-7},
        )  # fmt: skip
        np.testing.assert_allclose(got[channel], want.x, atol=1e-5)
    # what is held stays, and the rest is at the maximum given it
    some = em_counts._coefficients(model(), law, names[1:])
    assert set(some) == set(names[1:])
    held = lambda c: expected_poisson(np.r_[LOADINGS[0], c], law, Y[:, 0])
    want = scipy.optimize.minimize(lambda c: -held(c), np.zeros(2), method="BFGS")
    np.testing.assert_allclose([some[n].ravel()[0] for n in names[1:]], want.x, atol=1e-5)


def test_em_raises_the_bound_of_a_panel():
    """It starts at the bound that the method gives, never falls, and leaves alone what is frozen."""
    method = ss.ConjugateVI()
    frozen = ss.freeze(model(), "initial_scale")
    result = ss.fit(frozen, PANEL, method=method, learner=ss.EM(iterations=60, tolerance=0.02))
    want = ss.log_likelihood(model(), PANEL, method=method)
    np.testing.assert_allclose(result.trace[0], want, rtol=1e-8)
    assert np.diff(result.trace).min() > -1e-6
    assert result.trace[-1] > result.trace[0] + 5
    np.testing.assert_array_equal(ss.parameters(result.model)["initial_scale"], 1.0)
    weight = np.asarray(ss.parameters(result.model)["observation_input_matrix"])
    assert abs(weight.mean() - 0.3) < 0.15


def test_a_prior_and_the_dispersion_are_climbed():
    """A narrow prior holds its parameter; the concentration moves to where the objective is flat."""
    wide = model(concentration=3 * np.ones(M), family="negative_binomial")
    law = states()
    narrow = {"observation_offset": dist.Normal(0.7, 1e-3)}
    problem = Problem(wide, None, narrow, ss.ConjugateVI())
    moved = jax.jit(lambda m: em_counts._observation(m, problem, law))(wide)
    np.testing.assert_allclose(moved["observation_offset"], 0.7, atol=0.01)
    problem = Problem(wide, None, {}, ss.ConjugateVI())
    moved = jax.jit(lambda m: em_counts._observation(m, problem, law))(wide)
    here = ss.replace(wide, moved)

    def total(r):
        at = ss.replace(here, {"concentration": r})
        return em_counts._expected(at, law, em_counts._matrix(at)).value.sum()

    r = moved["concentration"]
    slope = jax.jit(jax.grad(total))(r) * r
    before = jax.grad(total)(3 * jnp.ones(M)) * 3
    assert np.abs(slope).max() < 0.02 * np.abs(before).max() + 0.02
    assert total(r) > total(3 * jnp.ones(M))


def test_a_method_without_a_bound_is_refused():
    """By its name, with the one that has a bound."""
    with pytest.raises(TypeError, match=r"`method=ss.ConjugateVI\(\)`, got Laplace"):
        ss.fit(model(), PANEL, method=ss.Laplace(), learner=ss.EM())
