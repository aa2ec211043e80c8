"""Priors that do not go with the model are refused with the remedy."""

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from numpyro.distributions import constraints
from scipy import stats

import statespace as ss
from statespace.learners.priors import checked_priors, log_prior


@pytest.fixture
def model():
    return ss.LocalLevel(level_scale=1.0, noise_scale=2.0)


@pytest.fixture
def matrices():
    eye = np.eye(2)
    return ss.LinearGaussian(0.5 * eye, eye, eye, np.ones(2), np.zeros(2), eye)


def test_density_is_that_of_scipy(matrices):
    priors = {
        "transition_matrix": dist.Normal(0.5, 2.0),
        "observation_scale": dist.HalfNormal(jnp.array([1.0, 3.0])),
    }
    expected = stats.norm(0.5, 2.0).logpdf(0.5 * np.eye(2)).sum()
    expected += stats.halfnorm(scale=[1.0, 3.0]).logpdf(1.0).sum()
    checked = checked_priors(matrices, priors)
    np.testing.assert_allclose(log_prior(matrices, checked), expected, rtol=1e-12)


@pytest.mark.parametrize(
    "prior",
    [
        dist.HalfNormal(1.0),
        dist.LogNormal(0.0, 1.0),
        dist.InverseGamma(2.0, 1.0),
        dist.Uniform(0.0, 3.0),
        dist.TruncatedNormal(1.0, 1.0, low=0.0),
        dist.ImproperUniform(constraints.positive, (), ()),
    ],
)
def test_priors_on_a_scale(model, prior):
    assert list(checked_priors(model, {"level_scale": prior})) == ["level_scale"]


@pytest.mark.parametrize(
    "prior",
    [
        dist.Normal(100.0, 1.0),
        dist.Uniform(-1.0, 1.0),
        dist.Cauchy(0.0, 1.0),
        dist.ImproperUniform(constraints.real, (), ()),
    ],
)
def test_prior_outside_the_support(model, prior):
    with pytest.raises(ValueError, match=r"'level_scale' reaches outside .*HalfNormal"):
        checked_priors(model, {"level_scale": prior})


def test_anything_goes_on_the_real_line(matrices):
    for prior in (dist.Normal(0, 1), dist.Uniform(0, 1), dist.Beta(2, 2)):
        checked_priors(matrices, {"transition_matrix": prior})


def test_cholesky_factors_take_their_own_laws(matrices):
    checked_priors(matrices, {"transition_scale": dist.LKJCholesky(2, 1.0)})
    with pytest.raises(ValueError, match="reaches outside"):
        checked_priors(matrices, {"transition_scale": dist.Normal(0, 1).expand([2, 2]).to_event(2)})


@pytest.mark.parametrize(
    ("priors", "error", "message"),
    [
        ({"levle_scale": dist.HalfNormal(1.0)}, ValueError, r"'levle_scale' is not .*level_scale"),
        ({"level_scale": 1.0}, TypeError, "NumPyro distribution, got float"),
        ({"level_scale": dist.Poisson(1.0)}, TypeError, "Poisson is discrete"),
        ({"level_scale": dist.HalfNormal(jnp.ones(2))}, ValueError, r"shape \(\).* \(2,\)"),
    ],
)
def test_refused(model, priors, error, message):
    with pytest.raises(error, match=message):
        checked_priors(model, priors)


def test_prior_of_a_frozen_parameter(model):
    frozen = ss.freeze(model, "level_scale")
    with pytest.raises(ValueError, match="'level_scale' is frozen"):
        checked_priors(frozen, {"level_scale": dist.HalfNormal(1.0)})


def test_every_parameter_needs_one(model):
    priors = {"level_scale": dist.HalfNormal(1.0)}
    with pytest.raises(ValueError, match=r"\['noise_scale'\] have none.*freeze"):
        checked_priors(model, priors, every="NUTS")
    checked_priors(ss.freeze(model, "noise_scale"), priors, every="NUTS")
