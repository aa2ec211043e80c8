"""Iterated filtering against the exact maximum of the Kalman likelihood."""

import jax
import numpy as np
import pytest
from linear_problem import FREE, PRIORS, assert_near, model, recordings

import statespace as ss


@pytest.fixture(scope="module")
def found():
    """From a start far away, on a panel, with priors."""
    learner = ss.IteratedFiltering(particles=500, iterations=32, swarms=6)
    data, key = recordings(), jax.random.key(3)
    start = model(0.2, 1.5)
    return ss.fit(start, data, learner=learner, priors=PRIORS, key=key, method=ss.Kalman())


@pytest.fixture(scope="module")
def exact():
    return ss.fit(model(), recordings(), priors=PRIORS)


def test_the_maximum_a_posteriori_is_found(found, exact):
    """To half a standard error: 3 Monte Carlo errors, since single swarms end about as far apart."""
    assert_near(found, exact, 0.5)
    assert exact.log_likelihood + exact.log_prior - found.log_likelihood - found.log_prior < 0.25
    assert found.converged
    assert found.log_likelihood_variance is None  # the method given is exact
    assert found.trace[-5:].mean() > found.trace[:2].mean()


def test_frozen_parameters_stay(found):
    assert found.free == list(FREE)
    assert found.parameters["observation_scale"] == 0.5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"iterations": 2}, "`iterations` must be at least 4, got 2"),
        ({"cooling": 0.0}, "`cooling` must be above 0"),
        ({"perturbation": -1.0}, "`perturbation` must be positive, got -1.0; freeze"),
        ({"perturbation": {"transition_scale": 0.1}}, "no value for \\['transition_matrix'\\]"),
        ({"initial_only": ("initial_mean",)}, "`initial_only` .* names \\['initial_mean'\\]"),
    ],
)
def test_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ss.fit(
            model(), np.zeros(5), learner=ss.IteratedFiltering(**settings), key=jax.random.key(0)
        )


def test_a_key_is_asked_for():
    with pytest.raises(ValueError, match="IteratedFiltering is random: give `fit` a `key`"):
        ss.fit(model(), np.zeros(5), learner=ss.IteratedFiltering())


def test_too_few_iterations_are_warned_of(key):
    learner = ss.IteratedFiltering(
        particles=100, iterations=8, perturbation=0.2, cooling=1.0, swarms=2
    )
    with pytest.warns(ss.ConvergenceWarning, match="still rose"):
        ss.fit(
            model(-0.9, 3.0),
            recordings(),
            learner=learner,
            priors=PRIORS,
            key=key,
            method=ss.Kalman(),
        )
