"""Filter, smoother and likelihood of the Gaussian chain against dense algebra, in each of its four forms."""

from functools import cache, partial

import jax
import numpy as np
import problems
import pytest
from oracle import Dense

from statespace.chains import gaussian

CASES = problems.cases() | {f"diffuse, {k}": v for k, v in problems.diffuse_cases().items()}
CASES |= {f"sites, {k}": v for k, v in problems.site_cases().items()}
# Associative scans take ten times longer to compile than to write: they are tried on these shapes.
PARALLEL = {
    *list(problems.cases())[:11],  # one shape
    "two moments",
    "twelve states",
    "diffuse, two coordinates",
    "diffuse, all, first entries missing",
    "sites, low rank, two empty",
    "sites, singular Q",
}


def combinations():
    for case in CASES:
        for form in ("covariance", "sqrt"):
            yield pytest.param(case, form, False, id=f"{case}-{form}-sequential")
            if case in PARALLEL:
                yield pytest.param(case, form, True, id=f"{case}-{form}-parallel")


every_form = pytest.mark.parametrize(("case", "form", "parallel"), list(combinations()))


@partial(jax.jit, static_argnums=(1, 2))
def filter_and_smooth(chain, form, parallel):
    return gaussian.filter(chain, form, parallel), gaussian.smooth(chain, form, parallel)


@cache
def results(case, form, parallel):
    return filter_and_smooth(CASES[case].chain(form), form, parallel)


@cache
def oracle(case) -> Dense:
    return CASES[case].dense


@cache
def expected(case):
    chain = oracle(case)
    return {
        "log_likelihood": chain.log_likelihood(),
        "pointwise": chain.pointwise(),
        "filtered": chain.filtered(),
        "predicted": chain.predicted(),
        "observation": chain.predicted_observations(),
        "smoothed": chain.smoothed(),
        "lag_one": chain.lag_one(),
    }


def tolerance(case, form):
    """1e-9, but where a covariance of 1e7 is reduced to 1 in one step its own rounding is 2e-9."""
    return 1e-8 if case == "vague initial state" and form == "covariance" else 1e-9


def close(got, want, rtol=1e-9):
    """Equal, moment by moment, relative to the largest entry of the moment; NaN there is infinite here."""
    got, want = np.asarray(got), np.asarray(want, float)
    assert got.shape == want.shape
    known = ~np.isnan(want)
    size = np.nanmax(np.abs(want), axis=tuple(range(1, want.ndim)), keepdims=True, initial=1e-3)
    error = np.abs(np.where(known, got, 0) - np.where(known, want, 0)) / size
    assert error.max(initial=0) <= rtol, f"relative error {error.max():.3g} at {np.argmax(error)}"


def open_directions_are_infinite(covariance, want):
    variance = np.diagonal(np.asarray(covariance), axis1=1, axis2=2)
    unknown = np.isnan(np.diagonal(np.asarray(want, float), axis1=1, axis2=2))
    assert (variance[unknown] == np.inf).all()
    assert np.isfinite(variance[~unknown]).all()


@every_form
def test_likelihood(case, form, parallel):
    filtered, smoothed = results(case, form, parallel)
    want = expected(case)
    total = float(want["log_likelihood"])
    assert float(filtered.log_likelihood) == pytest.approx(total, rel=1e-9)
    assert float(smoothed.log_likelihood) == pytest.approx(total, rel=1e-9)
    assert float(filtered.pointwise.sum()) == pytest.approx(total, rel=1e-9)
    close(filtered.pointwise, want["pointwise"])


@every_form
def test_filter(case, form, parallel):
    got, want = results(case, form, parallel)[0], expected(case)
    rtol = tolerance(case, form)
    close(got.mean, want["filtered"][0], rtol)
    close(got.covariance, want["filtered"][1], rtol)
    close(got.predicted_mean, want["predicted"][0], rtol)
    close(got.predicted_covariance, want["predicted"][1], rtol)
    open_directions_are_infinite(got.covariance, want["filtered"][1])
    open_directions_are_infinite(got.predicted_covariance, want["predicted"][1])
    if "sites" in case:
        assert got.observation_mean is None
        assert got.observation_covariance is None
    else:
        close(got.observation_mean, want["observation"][0], rtol)
        close(got.observation_covariance, want["observation"][1], rtol)


@every_form
def test_smoother(case, form, parallel):
    got, want = results(case, form, parallel)[1], expected(case)
    rtol = tolerance(case, form)
    close(got.mean, want["smoothed"][0], rtol)
    close(got.covariance, want["smoothed"][1], rtol)
    close(got.lag_one, want["lag_one"], rtol)
    symmetric = np.swapaxes(np.asarray(got.covariance), 1, 2)
    np.testing.assert_allclose(
        got.covariance, symmetric, rtol=0, atol=1e-12 * np.abs(symmetric).max()
    )


@pytest.mark.parametrize("form", ["covariance", "sqrt"])
def test_a_wide_factor_is_its_product(form):
    """Factors need not be square: (d, k) with k < d and k > d."""
    base = problems.random(31)
    r = np.random.default_rng(32)
    wide = base.but(
        L0=r.normal(size=(3, 5)), L=r.normal(size=(5, 3, 1)), K=r.normal(size=(6, 2, 4))
    )
    chain, want = wide.chain(form), wide.dense
    filtered, smoothed = filter_and_smooth(chain, form, False)
    assert float(filtered.log_likelihood) == pytest.approx(float(want.log_likelihood()), rel=1e-9)
    close(filtered.covariance, want.filtered()[1])
    close(smoothed.covariance, want.smoothed()[1])
    close(smoothed.mean, want.smoothed()[0])


@pytest.mark.parametrize("form", ["covariance", "sqrt"])
def test_a_forecast_is_the_chain_continued_without_data(form):
    problem = problems.random(33)
    end = problem.but(y=problems.without(problem.y, 4, 5))
    got, _ = filter_and_smooth(end.chain(form), form, False)
    want = end.dense.posterior(4)
    for t in (4, 5):
        mean, covariance = want.at(t)
        close(got.mean[t][None], mean[None])
        close(got.covariance[t][None], covariance[None])
        H, d, R = (end.dense.H[t], end.dense.d[t], end.dense.R[t])
        close(got.observation_mean[t][None], (H @ mean + d)[None])
        close(got.observation_covariance[t][None], (H @ covariance @ H.T + R)[None])


def test_constant_arrays_are_repeated_arrays():
    """A leading axis of one means the same array at every moment."""
    constant = problems.random(34, varying=False)
    repeated = constant.but(
        **{k: np.repeat(getattr(constant, k), 5, 0) for k in ("F", "b", "L")},
        **{k: np.repeat(getattr(constant, k), 6, 0) for k in ("H", "d", "K")},
    )
    for form in ("covariance", "sqrt"):
        a, b = (filter_and_smooth(p.chain(form), form, False) for p in (constant, repeated))
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)):
            np.testing.assert_allclose(x, y, rtol=1e-11, atol=1e-12)
