"""What the verbs say when Gaussian inference breaks down: which moment, what failed, and the remedy."""

import dataclasses
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import statespace as ss
from statespace.methods.gaussian_checks import definite, report
from statespace.series import as_series

Y = np.linspace(0.0, -3.0, 6)[:, None]


def model(move=lambda x: x, see=lambda x: x, scale=0.1, noise=0.5):
    return ss.Model(
        ss.Gaussian(jnp.zeros(1), jnp.full(1, 0.2)),
        lambda x, step: dist.Normal(move(x), scale).to_event(1),
        lambda x, step: dist.Normal(see(x), noise).to_event(1),
    )


# the state starts at 0 and moves by -1 in each step: at moment 2 it is near -2
FALLING = {"move": lambda x: x - 1.0, "scale": 1e-3, "noise": 10.0}
LOG = model(see=lambda x: jnp.log(x + 1.5), **FALLING)
RECIPROCAL = model(move=lambda x: jnp.ones(1) / (x * 0))
ROOT = model(see=lambda x: jnp.sqrt(jnp.abs(x)))


def test_a_logarithm_of_a_negative_number_is_named():
    """The observation at moment 2, for a state near -2: by every verb that gives states."""
    message = (
        r"ExtendedKalman: `observation` of the model gives values that are not finite at moment 2 "
        r"\(time 2\), for the state \[-"
    )
    for call in (
        lambda m: ss.filter(LOG, Y, method=m),
        lambda m: ss.smooth(LOG, Y, method=m),
        lambda m: ss.forecast(LOG, Y, 1, method=m),
        lambda m: ss.sample_states(LOG, Y, key=jax.random.key(0), method=m),
    ):
        with pytest.raises(ValueError, match=message) as caught:
            call(ss.ExtendedKalman())
        assert "clip the argument of a logarithm" in str(caught.value)


def test_a_log_likelihood_that_is_not_a_number_is_a_warning():
    """It is still returned; and nothing is said while it is traced."""
    with pytest.warns(
        RuntimeWarning, match=r"log likelihood is nan.*`observation`.*moment 2"
    ) as seen:
        value = ss.log_likelihood(LOG, Y, method=ss.ExtendedKalman())
    assert np.isnan(value)
    assert seen[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run = lambda y: ss.log_likelihood(LOG, y, method=ss.ExtendedKalman())
        assert np.isnan(jax.jit(run)(Y))


def test_a_division_by_zero_is_that_of_the_transition():
    message = r"`transition` of the model gives values that are not finite at moment 1 .*state \["
    for method in (ss.ExtendedKalman(), ss.SigmaPointKalman(), ss.IteratedSmoother()):
        with pytest.raises(ValueError, match=f"{type(method).__name__}: {message}"):
            ss.filter(RECIPROCAL, Y, method=method)
    key = jax.random.key(0)
    with pytest.raises(ValueError, match=f"EnsembleKalman: {message}"):
        ss.filter(RECIPROCAL, Y, method=ss.EnsembleKalman(members=5), key=key)


def test_derivatives_are_told_from_values():
    """The root of |x| is finite at zero and its slope is not: sigma points do without."""
    message = r"gives derivatives that are not finite at moment 0 .*SigmaPointKalman\(\) needs no"
    with pytest.raises(ValueError, match=message):
        ss.filter(ROOT, Y, method=ss.ExtendedKalman())
    assert np.isfinite(ss.filter(ROOT, Y, method=ss.SigmaPointKalman()).mean).all()


def test_points_of_a_rule_are_told_from_its_centre():
    """At the mean the logarithm is finite, two standard deviations below it is not."""
    narrow = model(see=lambda x: jnp.log(x + 0.1))
    message = (
        r"`observation` of the model gives values that are not finite at moment 0 .* near the state"
    )
    with pytest.raises(ValueError, match=message):
        ss.filter(narrow, Y, method=ss.SigmaPointKalman())


def test_the_recording_of_a_panel_is_named():
    """The second recording is long enough to come to where the logarithm fails."""
    panel = [Y[:2], Y]
    with pytest.raises(ValueError, match=r"Recording 1: ExtendedKalman: `observation`.*moment 2"):
        ss.filter(LOG, panel, method=ss.ExtendedKalman())
    with pytest.warns(RuntimeWarning, match=r"log likelihood is nan. Recording 1: Ext.*moment 2"):
        ss.log_likelihood(LOG, panel, method=ss.ExtendedKalman())


def singular(dtype):
    """Very precise observations of an almost deterministic pair of nearly equal states, from afar."""
    number = lambda x: jnp.asarray(x, dtype)
    return ss.Model(
        ss.Gaussian(number([0.0, 0.0]), number([1e4, 1e4])),
        ss.AffineGaussian(number([[1.0, 1.0], [0.0, 1.0]]), None, number([1e-6, 1e-6])),
        lambda x, step: dist.Normal(jnp.stack([x[0] + 1e-3 * x[1], x[0]]), number(1e-5)).to_event(
            1
        ),
    )


def test_a_covariance_that_rounding_spoils_is_reported_with_the_square_root_as_remedy():
    """In float32 covariances turn indefinite; factors do not, and float64 does not."""
    y = np.zeros((30, 2), np.float32)
    message = (
        r"ExtendedKalman: from moment 0 .* no longer positive definite.*`form=\"sqrt\"`.*or float64"
    )
    with pytest.raises(ValueError, match=message):
        ss.filter(singular(jnp.float32), y, method=ss.ExtendedKalman(form="covariance"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = ss.smooth(singular(jnp.float32), y, method=ss.ExtendedKalman())
        assert np.isfinite(found.mean).all()
        ss.smooth(singular(jnp.float64), y.astype(float), method=ss.ExtendedKalman())


def test_definite_against_eigenvalues():
    """Rounding, exactly known states and unknown ones pass; an indefinite correlation does not."""
    one = np.array([[2.0, 0.3, 0.0], [0.3, 1.0, 0.0], [0.0, 0.0, 0.0]])
    assert definite(np.stack([one, 1e-30 * one]))
    assert definite(np.diag([np.inf, 1.0, 0.0])[None])
    assert definite(np.ones((1, 3, 3)) * 1e6)
    r = np.random.default_rng(0)
    for _ in range(50):
        a = r.normal(size=(4, 4))
        p = a @ a.T
        low = np.linalg.eigvalsh(p)[0]
        sd = np.sqrt(np.diag(p))
        bent = p - (low + 1e-3 * np.outer(sd, sd).max()) * np.eye(4)
        assert definite(p[None])
        assert not definite(bent[None])
    assert not definite(np.diag([1.0, -1e-3])[None])


def test_a_finite_result_with_a_bad_covariance_is_a_warning():
    """The result may still be of use: what is wrong with it is said, and it is returned."""
    good = ss.filter(ROOT, Y, method=ss.SigmaPointKalman())
    bent = dataclasses.replace(good, covariance=good.covariance.at[3].set(-1.0))
    message = r"SigmaPointKalman: smoothed covariances are not positive definite.*form=\"sqrt\""
    with pytest.warns(RuntimeWarning, match=message):
        report(ss.SigmaPointKalman(), ROOT, as_series(Y), bent)
