"""float32: no NaN, errors of its rounding's size, finite gradients at singular and vague covariances."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import problems
import pytest
from oracle import kalman

from statespace.chains import gaussian

SQRT_ONLY = {"vague initial state"}  # what a covariance of 1e7 leaves of a variance of 1 in float32
CASES = {
    name: problem
    for name, problem in problems.cases().items()
    if name
    in {
        "missing entries and rows",
        "singular Q",
        "no process noise",
        "known initial state",
        "vague initial state",
        "exact observations",
    }
}


def rounded(problem):
    """The problem as float32 sees it."""
    arrays = {k: v.astype(np.float32).astype(float) for k, v in problem.arrays.items()}
    return problem.but(**arrays)


def run(chain, form):
    value = lambda c: gaussian.log_likelihood(c, form, False)
    arrays, mask = (
        chain._replace(potentials=chain.potentials._replace(mask=None)),
        chain.potentials.mask,
    )

    def masked(arrays):
        return value(arrays._replace(potentials=arrays.potentials._replace(mask=mask)))

    return (
        jax.value_and_grad(masked)(arrays),
        gaussian.filter(chain, form, False),
        gaussian.smooth(chain, form, False),
    )


run = jax.jit(run, static_argnums=1)


@pytest.mark.parametrize("form", ["covariance", "sqrt"])
@pytest.mark.parametrize("case", CASES)
def test_small_chains(case, form):
    problem = rounded(CASES[case])
    (value, grad), filtered, smoothed = run(problem.chain(form, jnp.float32), form)
    for leaf in jax.tree.leaves((value, grad, filtered, smoothed)):
        assert leaf.dtype == jnp.float32
        assert np.isfinite(leaf).all()
    if form == "covariance" and case in SQRT_ONLY:
        return
    assert float(value) == pytest.approx(float(problem.dense.log_likelihood()), rel=2e-6)
    for got, (mean, cov) in (
        (filtered, problem.dense.filtered()),
        (smoothed, problem.dense.smoothed()),
    ):
        variance = np.einsum("tii->ti", cov).astype(float)
        error = np.abs(np.asarray(got.mean, float) - mean.astype(float))
        assert (error <= 1e-3 * np.sqrt(variance) + 1e-5).all()
        error = np.abs(np.einsum("tii->ti", np.asarray(got.covariance, float)) - variance)
        assert (error <= 1e-3 * variance + 1e-7).all()
        assert (np.einsum("tii->ti", np.asarray(got.covariance)) >= -1e-6).all()


def trend(P0, level, slope, T=1000):
    """A local linear trend; the same series for each prior."""
    r = np.random.default_rng(5)
    x, y = np.zeros(2), np.empty((T, 1))
    for t in range(T):
        y[t] = x[0] + r.normal()
        x = np.array([x[0] + x[1], x[1]]) + np.array([0.3, 0.01]) * r.normal(size=2)
    return problems.Problem(
        np.zeros(2), np.sqrt(P0) * np.eye(2), np.array([[[1.0, 1.0], [0.0, 1.0]]]),
        np.zeros((1, 2)), np.diag([level, slope])[None], np.array([[[1.0, 0.0]]]),
        np.zeros((1, 1)), np.ones((1, 1, 1)), y,
    )  # fmt: skip


TRENDS = {
    "regular": trend(1.0, 0.3, 0.01),
    "P0 = 0": trend(0.0, 0.3, 0.01),
    "P0 = 1e7": trend(1e7, 0.3, 0.01),
    "singular Q": trend(1.0, 0.0, 0.01),
}


@partial(jax.jit, static_argnums=1)
def gradient(chain, parallel):
    return jax.value_and_grad(lambda c: gaussian.log_likelihood(c, "sqrt", parallel))(chain)


@pytest.mark.parametrize("parallel", [False, True], ids=["sequential", "parallel"])
@pytest.mark.parametrize("case", TRENDS)
def test_a_trend_of_a_thousand_moments(case, parallel):
    """The likelihood to 1e-2 where it is some thousands, and its gradient to 1 %, in square roots."""
    problem = rounded(TRENDS[case])
    want = float(kalman(problem.dense)[0])
    value, grad = gradient(problem.chain("sqrt", jnp.float32), parallel)
    assert value.dtype == jnp.float32
    assert float(value) == pytest.approx(want, abs=1e-2)
    _, exact = gradient(problem.chain("sqrt", jnp.float64), parallel)
    for leaf in jax.tree.leaves(grad):
        assert np.isfinite(leaf).all()
    for part in ("transitions", "potentials"):
        for name in ("matrix", "offset", "noise"):
            if (part, name, case) == ("potentials", "matrix", "P0 = 1e7"):
                continue  # its unobserved column takes the first state from m + P r, P being 1e7
            a, b = (getattr(getattr(g, part), name) for g in (grad, exact))
            # sums over a thousand moments of terms of order one
            np.testing.assert_allclose(a, b, rtol=1e-2, atol=1e-2 * float(jnp.abs(b).max()) + 1e-4)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64], ids=["float32", "float64"])
def test_smoothing_under_a_vague_prior(dtype):
    """Neither the variances nor the means of the first moments drown in the prior's 1e7."""
    problem = rounded(TRENDS["P0 = 1e7"])
    problem = problem.but(y=problem.y[:40])
    _, _, _, mean, cov = kalman(problem.dense)
    sd = np.sqrt(np.einsum("tii->ti", cov).astype(float))
    for form in ("sqrt",) if dtype == jnp.float32 else ("sqrt", "covariance"):
        got = jax.jit(gaussian.smooth, static_argnums=1)(problem.chain(form, dtype), form)
        bound = 2e-3 if dtype == jnp.float32 else 1e-7
        assert (np.abs(np.asarray(got.mean, float) - mean.astype(float)) <= bound * sd).all()
        ratio = np.einsum("tii->ti", np.asarray(got.covariance, float)) / sd**2
        np.testing.assert_allclose(ratio, 1, rtol=bound)
