"""Recursive maximum likelihood against the exact maximum of the Kalman likelihood."""

import jax
import numpy as np
import pytest
from linear_problem import PRIORS, assert_near, model, recordings

import statespace as ss
from statespace.learners.online_maximum_likelihood import _pass
from statespace.learners.problem import Problem, vector


def test_the_scores_of_a_pass_add_up_to_the_exact_gradient():
    """With steps too small to matter: the mean over 60 runs, within 4.5 standard errors."""
    import optax

    data = ss.series.as_data(recordings()).drop_labels()
    problem = Problem(model(0.6, 0.9), data, PRIORS, ss.Kalman())
    z, size = vector(problem), 1e-9
    learner = ss.OnlineMaximumLikelihood(optimiser=optax.sgd(size), particles=60)
    run = jax.jit(jax.vmap(lambda k: _pass(learner, problem, z, None, k)[0]))
    each = (np.asarray(run(jax.random.split(jax.random.key(0), 60))) - z) / size
    exact = jax.grad(problem.log_density)(z)
    score = (each.mean(axis=0) - exact) / (each.std(axis=0, ddof=1) / 60**0.5)
    assert np.all(np.abs(score) < 4.5), score


@pytest.mark.slow
def test_several_passes_reach_the_maximum_a_posteriori():
    """To a third of a standard error."""
    exact = ss.fit(model(), recordings(), priors=PRIORS)
    learner = ss.OnlineMaximumLikelihood(passes=40, particles=60)
    fitted = ss.fit(
        model(0.3, 1.2),
        recordings(),
        learner=learner,
        priors=PRIORS,
        key=jax.random.key(2),
        method=ss.Kalman(),
    )
    assert_near(fitted, exact, 1 / 3)
    assert fitted.iterations == 40 * 95
    assert fitted.parameters["observation_scale"] == 0.5


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"passes": 0}, ValueError, "`passes` must be at least 1"),
        ({"backward": "quick"}, ValueError, "`backward` must be .* got 'quick'"),
        ({"learning_rate": -1.0}, ValueError, "`learning_rate` must be positive"),
        ({"optimiser": 3}, TypeError, "`optimiser` must be an optax transformation"),
        ({"particles": 1}, ValueError, "`particles` of OnlineMaximumLikelihood"),
    ],
)
def test_refused(settings, error, message):
    with pytest.raises(error, match=message):
        ss.OnlineMaximumLikelihood(**settings)
