"""Lag polynomials and the stationary and invertible regions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro.distributions import biject_to

from statespace.constraints import invertible, stationary
from statespace.models.polynomials import from_partial, lag_polynomial, multiply, to_partial

tsa = pytest.importorskip("statsmodels.tsa.api")


def inverse_roots(polynomial):
    return np.abs(np.roots(polynomial))


@pytest.mark.parametrize("p", range(1, 8))
def test_free_numbers_reach_the_region_and_come_back(p):
    x = np.random.default_rng(p).normal(size=p)
    phi = biject_to(stationary)(jnp.asarray(x))
    theta = biject_to(invertible)(jnp.asarray(x))
    assert inverse_roots(np.r_[1, -phi]).max() < 1
    assert inverse_roots(np.r_[1, theta]).max() < 1
    assert stationary(phi)
    assert invertible(theta)
    np.testing.assert_allclose(biject_to(stationary).inv(phi), x, rtol=1e-9)
    np.testing.assert_allclose(biject_to(invertible).inv(theta), x, rtol=1e-9)


@pytest.mark.parametrize("p", range(1, 8))
@pytest.mark.parametrize("support", [stationary, invertible])
def test_log_determinant_agrees_with_the_dense_jacobian(p, support):
    transform = biject_to(support)
    x = jnp.asarray(np.random.default_rng(p).normal(size=p))
    want = np.linalg.slogdet(jax.jacobian(transform)(x))[1]
    np.testing.assert_allclose(transform.log_abs_det_jacobian(x, transform(x)), want, rtol=1e-9)


def test_partial_autocorrelations_agree_with_statsmodels():
    ArmaProcess = pytest.importorskip("statsmodels.tsa.arima_process").ArmaProcess
    phi = np.array([0.5, -0.3, 0.2, 0.1])
    want = ArmaProcess(ar=np.r_[1, -phi]).pacf(5)[1:]
    np.testing.assert_allclose(to_partial(jnp.asarray(phi)), want, rtol=1e-9)
    np.testing.assert_allclose(from_partial(jnp.asarray(want)), phi, rtol=1e-9)


def test_boundary_of_the_region():
    for phi, inside in (([0.999], True), ([1.0], False), ([0.5, 0.5], False), ([1.2, -0.3], True)):
        assert bool(stationary(jnp.array(phi))) is inside
        assert bool(invertible(-jnp.array(phi))) is inside


def test_batches_and_extreme_numbers():
    x = jnp.array([[0.3, -2.0, 1.0], [30.0, 0.0, -30.0]])
    transform = biject_to(stationary)
    got = transform.log_abs_det_jacobian(x, transform(x))
    np.testing.assert_allclose(got[0], transform.log_abs_det_jacobian(x[0], None), rtol=1e-12)
    assert np.isfinite(got).all()


def test_seasonal_polynomials_multiply():
    got = multiply(
        lag_polynomial(jnp.array([0.4]), 1.0), lag_polynomial(jnp.array([0.6, 0.1]), 1.0, 3)
    )
    # (1 + 0.4 L) (1 + 0.6 L^3 + 0.1 L^6)
    np.testing.assert_allclose(got, [1, 0.4, 0, 0.6, 0.24, 0, 0.1, 0.04])
