"""The dynamic factor model and the supports that identify it, against statsmodels and dense algebra."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from numpyro.distributions import biject_to
from written_out import covariance, dense

import statespace as ss
from statespace.constraints import stationary, stationary_vector
from statespace.constraints.trapezoidal import LowerTrapezoidal
from statespace.models.vector_autoregression import (
    companion,
    from_partial,
    stationary_covariance,
    to_partial,
)
from statespace.parameters import constrain, unconstrain

sm = pytest.importorskip("statsmodels.api")

LOADINGS = np.array([[1.0, 0.0], [0.4, 0.8], [-0.3, 0.5], [0.2, -0.6]])
PHI = np.array([[[0.5, 0.1], [-0.2, 0.3]], [[0.2, 0.0], [0.1, -0.1]]])
NOISE = np.array([0.4, 0.5, 0.6, 0.7])
OWN = np.array([0.5, -0.3, 0.2, 0.0])


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("k", [1, 2])
def test_likelihood_agrees_with_statsmodels(k, own):
    y = np.random.default_rng(0).normal(size=(12, 4))
    y[3, 1], y[7] = np.nan, np.nan
    loadings, phi = LOADINGS[:, :k], PHI[:, :k, :k]
    model = ss.DynamicFactor(loadings, phi, NOISE, idiosyncratic_ar=OWN if own else None)
    peer = sm.tsa.DynamicFactor(
        y, k_factors=k, factor_order=2, error_order=int(own), enforce_stationarity=False
    )
    matrices = np.concatenate(list(phi), axis=1)
    parameters = np.r_[loadings.ravel(), NOISE**2, matrices.ravel(), OWN if own else []]
    want = peer.loglike(parameters)
    np.testing.assert_allclose(float(dense(model, y).log_likelihood()), want, rtol=1e-9)
    np.testing.assert_allclose(ss.log_likelihood(model, y), want, rtol=1e-9)


def test_mean_is_added():
    y = np.random.default_rng(1).normal(size=(9, 4))
    mean = np.array([1.0, -2.0, 0.5, 3.0])
    plain = ss.DynamicFactor(LOADINGS, PHI, NOISE)
    shifted = ss.DynamicFactor(LOADINGS, PHI, NOISE, mean=mean)
    np.testing.assert_allclose(
        ss.log_likelihood(shifted, y + mean), ss.log_likelihood(plain, y), rtol=1e-9
    )


def test_start_is_stationary():
    model = ss.DynamicFactor(LOADINGS, PHI, NOISE, idiosyncratic_ar=OWN)
    p, f = covariance(model.initial), np.asarray(model.transition.matrix)
    np.testing.assert_allclose(p, f @ p @ f.T + covariance(model.transition), atol=1e-12)
    assert model.state_names[:4] == ("factor0", "factor1", "factor0.lag1", "factor1.lag1")
    assert model.state_names[4:] == tuple(f"idiosyncratic{i}" for i in range(4))


@pytest.mark.parametrize(("p", "k"), [(1, 1), (1, 3), (2, 2), (3, 1)])
def test_free_matrices_reach_the_stationary_region_and_come_back(p, k):
    a = jnp.asarray(np.random.default_rng(p).normal(size=(p, k, k)))
    transform = biject_to(stationary_vector)
    phi = transform(a)
    assert np.abs(np.linalg.eigvals(companion(phi))).max() < 1
    assert stationary_vector(phi)
    np.testing.assert_allclose(transform.inv(phi), a, rtol=1e-8, atol=1e-10)
    jacobian = jax.jacfwd(transform)(a).reshape(a.size, a.size)
    want = np.linalg.slogdet(jacobian)[1]
    np.testing.assert_allclose(transform.log_abs_det_jacobian(a, phi), want, rtol=1e-9)


def test_derivatives_of_the_transform():
    transform = biject_to(stationary_vector)
    a = jnp.asarray(np.random.default_rng(5).normal(size=(2, 1, 1)))
    check_grads(lambda a: transform.inv(transform(a) * 0.9), (a,), order=1, modes=["rev"])


def test_outside_the_stationary_region():
    assert not stationary_vector(jnp.asarray([[[1.01, 0.0], [0.0, 0.2]]]))
    batch = jnp.stack([jnp.asarray(PHI), 3 * jnp.asarray(PHI)])
    assert stationary_vector(batch).tolist() == [True, False]


def test_scalar_case_is_that_of_an_autoregression():
    r = jnp.array([0.4, -0.3, 0.6])
    phi = from_partial(r[:, None, None]).ravel()
    x = jnp.arctanh(r)
    np.testing.assert_allclose(phi, biject_to(stationary)(x), rtol=1e-12)
    np.testing.assert_allclose(to_partial(phi[:, None, None]).ravel(), r, rtol=1e-9)


def test_partial_autocorrelations_agree_with_statsmodels():
    tools = pytest.importorskip("statsmodels.tsa.statespace.tools")
    a = np.random.default_rng(3).normal(size=(2, 2, 2))
    free = list(a)
    want, _ = tools.constrain_stationary_multivariate(free, np.eye(2))
    np.testing.assert_allclose(
        biject_to(stationary_vector)(jnp.asarray(a)), np.asarray(want), rtol=1e-9
    )


def test_covariance_of_lags():
    """Gamma_0 and Gamma_1 from a long sum of impulse responses."""
    f = np.asarray(companion(jnp.asarray(PHI)))
    noise = np.diag([1.0, 1.0, 0.0, 0.0])
    want = sum(
        np.linalg.matrix_power(f, j) @ noise @ np.linalg.matrix_power(f, j).T for j in range(200)
    )
    np.testing.assert_allclose(stationary_covariance(jnp.asarray(PHI)), want, atol=1e-12)


@pytest.mark.parametrize(("m", "k"), [(1, 1), (4, 2), (3, 3), (5, 1)])
def test_trapezoidal_matrices(m, k):
    support = LowerTrapezoidal(k)
    transform = biject_to(support)
    (size,) = transform.inverse_shape((m, k))
    x = jnp.asarray(np.random.default_rng(m).normal(size=size))
    y = transform(x)
    assert y.shape == (m, k) == transform.forward_shape(x.shape)
    assert support(y)
    assert not support(-y)
    np.testing.assert_allclose(transform.inv(y), x, rtol=1e-12)
    rows, columns = np.tril_indices(m, 0, k)
    jacobian = jax.jacobian(lambda x: transform(x)[rows, columns])(x)
    want = np.linalg.slogdet(jacobian)[1]
    np.testing.assert_allclose(transform.log_abs_det_jacobian(x, y), want, rtol=1e-12)
    batch = transform(jnp.stack([x, 2 * x]))
    np.testing.assert_allclose(batch[0], y)


def test_learning_keeps_the_model_identified_and_stationary():
    model = ss.DynamicFactor(LOADINGS, PHI, NOISE, idiosyncratic_ar=OWN, mean=np.zeros(4))
    again = constrain(model, unconstrain(model))
    for name, value in ss.parameters(again).items():
        np.testing.assert_allclose(value, ss.parameters(model)[name], rtol=1e-9, atol=1e-9)
    moved = constrain(model, {k: v + 1.5 for k, v in unconstrain(model).items()})
    # A new model checks everything that it was given.
    ss.DynamicFactor(**ss.parameters(moved))


def test_starting_values_from_data(key):
    truth = ss.DynamicFactor(LOADINGS, PHI, 0.1 * NOISE, mean=np.full(4, 2.0))
    y = np.array(ss.simulate(truth, 500, key=key).y)
    y[4, 1] = np.nan
    start = ss.DynamicFactor.from_principal_components(y, 2, order=2, idiosyncratic_ar=True)
    assert np.abs(np.linalg.eigvals(companion(start.factor_matrices))).max() < 1
    h = LOADINGS
    found = np.asarray(start.loadings)
    inside = h @ np.linalg.lstsq(h, found, rcond=None)[0]
    np.testing.assert_allclose(inside, found, atol=0.05)
    # What the model says of the variance of each series is near what it is.
    total = np.diag(
        covariance(start.observation)
        + np.asarray(start.observation.matrix)
        @ covariance(start.initial)
        @ np.asarray(start.observation.matrix).T
    )
    np.testing.assert_allclose(total, np.nanvar(y, axis=0), rtol=0.35)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ss.DynamicFactor(np.ones((4, 2)), PHI, NOISE), r"zero above the diagonal"),
        (lambda: ss.DynamicFactor(-LOADINGS, PHI, NOISE), r"positive on it"),
        (lambda: ss.DynamicFactor(LOADINGS[:1], PHI, NOISE[:1]), r"as many series as factors"),
        (lambda: ss.DynamicFactor(LOADINGS, PHI[0], NOISE), r"`factor_matrices` .* \(p, 2, 2\)"),
        (
            lambda: ss.DynamicFactor(LOADINGS, 3 * PHI, NOISE),
            r"`factor_matrices`.*stationary.*modulus",
        ),
        (
            lambda: ss.DynamicFactor(LOADINGS, PHI, NOISE[:3]),
            r"`noise_scale` must have shape \(4,\)",
        ),
        (lambda: ss.DynamicFactor(LOADINGS, PHI, -NOISE), r"`noise_scale` must be positive"),
        (
            lambda: ss.DynamicFactor(LOADINGS, PHI, NOISE, idiosyncratic_ar=2 * np.ones(4)),
            r"`idiosyncratic_ar` must lie in \(-1, 1\)",
        ),
        (
            lambda: ss.DynamicFactor.from_principal_components(np.ones((9, 2)), 3),
            r"got shape \(9, 2\), factors=3, order=1",
        ),
    ],
)
def test_bad_parameters(make, message):
    with pytest.raises(ValueError, match=message):
        make()
