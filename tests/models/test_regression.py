"""Regression components against least squares and statsmodels."""

import jax
import numpy as np
import pytest
from written_out import covariance, dense, diffuse_count, per_direction

import statespace as ss

sm = pytest.importorskip("statsmodels.api")

RNG = np.random.default_rng(0)
U = RNG.normal(size=(20, 3))
Y = U[:, [0, 2]] @ [1.5, -0.7] + 0.5 * RNG.normal(size=20)


def test_static_coefficients_are_least_squares():
    """Flat prior and constant coefficients: the smoothed state is the least-squares estimate."""
    model = ss.Regression((0, 2)) + ss.Irregular(0.5)
    mean, cov = dense(model, Y, inputs=U).smoothed()
    x = U[:, [0, 2]]
    for t in (0, 10, 19):
        np.testing.assert_allclose(
            mean[t].astype(float), np.linalg.lstsq(x, Y, rcond=None)[0], rtol=1e-9
        )
        np.testing.assert_allclose(cov[t].astype(float), 0.25 * np.linalg.inv(x.T @ x), rtol=1e-9)


def test_proper_prior_is_ridge_regression():
    law = ss.Gaussian(np.array([0.2, 0.1]), np.array([0.5, 2.0]))
    model = ss.Regression((0, 2), initial_law=law) + ss.Irregular(0.5)
    x, precision = U[:, [0, 2]], np.diag([4.0, 0.25])
    want = np.linalg.solve(x.T @ x / 0.25 + precision, x.T @ Y / 0.25 + precision @ [0.2, 0.1])
    mean, _ = dense(model, Y, inputs=U).smoothed()
    np.testing.assert_allclose(mean[0].astype(float), want, rtol=1e-9)


def test_likelihood_with_a_level_agrees_with_statsmodels():
    model = ss.LocalLevel(0.3, 0.5) + ss.Regression(3)
    peer = sm.tsa.UnobservedComponents(
        Y, level="llevel", exog=U, mle_regression=False, use_exact_diffuse=True
    )
    want = per_direction(peer.loglike([0.25, 0.09]), model)
    np.testing.assert_allclose(float(dense(model, Y, inputs=U).log_likelihood()), want, rtol=1e-9)


def test_dynamic_coefficients():
    """Recursive least squares with a wandering coefficient, against the joint normal density."""
    law = ss.Gaussian(np.zeros(1), np.ones(1))
    model = ss.Regression(1, scale=0.2, initial_law=law) + ss.Irregular(0.5)
    t = np.arange(20)
    beta = 1.0 + 0.04 * np.minimum.outer(t, t)
    cov = U[:, :1] * beta * U[:, 0] + 0.25 * np.eye(20)
    want = -0.5 * (20 * np.log(2 * np.pi) + np.linalg.slogdet(cov)[1] + Y @ np.linalg.solve(cov, Y))
    np.testing.assert_allclose(float(dense(model, Y, inputs=U).log_likelihood()), want, rtol=1e-9)


def test_each_coefficient_may_have_its_own_scale():
    model = ss.Regression(2, scale=[0.1, 0.3], labels=("price", "rain"))
    np.testing.assert_allclose(covariance(model.transition), np.diag([0.01, 0.09]))
    assert model.state_names == ("price", "rain")
    assert (ss.LocalLevel(1.0) + model).state_names[1:] == ("regression.price", "regression.rain")
    assert diffuse_count(model) == 2


def test_only_the_observation_matrix_varies():
    model = ss.LocalLevel(0.3, 0.5) + ss.Regression(2)
    assert callable(model.observation.matrix)
    assert isinstance(model.observation.scale, jax.Array)
    assert isinstance(model.transition.matrix, jax.Array)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ss.Regression(0), r"`columns` of Regression must be a positive number"),
        (lambda: ss.Regression((0, 0)), r"distinct indices from 0, got \(0, 0\)"),
        (lambda: ss.Regression((-1,)), r"distinct indices from 0"),
        (lambda: ss.Regression(2, labels=("a",)), r"must name its 2 inputs, got 1"),
        (lambda: ss.Regression(2, scale=[1.0, 2.0, 3.0]), r"`scale` .* shape \(2,\), got \(3,\)"),
        (lambda: ss.Regression(2, scale=-1.0), r"`scale` must not be negative"),
        (
            lambda: dense(ss.Regression(2) + ss.Irregular(1.0), Y),
            r"column 1 of the inputs, but the data carry none",
        ),
        (
            lambda: dense(ss.Regression((5,)) + ss.Irregular(1.0), Y, inputs=U),
            r"column 5 of the inputs, but there are only 3",
        ),
    ],
)
def test_bad_parameters(make, message):
    with pytest.raises(ValueError, match=message):
        make()
