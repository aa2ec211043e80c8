"""Stochastic ascent by scores from particles against the exact maximum of the Kalman likelihood."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linear_problem import FREE, PRIORS, assert_near, model, recordings

import statespace as ss
from statespace.learners import complete_data
from statespace.learners.likelihood import recordings as padded
from statespace.learners.problem import Problem, vector
from statespace.learners.state_paths import complete, first_paths
from statespace.methods.functional_lowering import over_path

LEARNERS = {
    "ascent": ss.ScoreAscent(iterations=160, particles=15, chains=2),
    "climbing": ss.ScoreClimbing(iterations=240, particles=15, chains=4),
}


@pytest.fixture(scope="module")
def problem():
    data = ss.series.as_data(recordings()).drop_labels()
    return Problem(model(0.6, 0.9), data, PRIORS, ss.Kalman())


@pytest.mark.parametrize("name", ["ascent", pytest.param("climbing", marks=pytest.mark.slow)])
def test_the_gradient_is_that_of_the_exact_likelihood(problem, name):
    """The mean over 200 chains after four sweeps, within 4.5 standard errors."""
    learner = LEARNERS[name]

    @jax.jit
    @jax.vmap
    def once(key):
        z = vector(problem)
        key, first = jax.random.split(key)
        paths = first_paths(problem, z, first, learner._drawing)
        sweep = lambda paths, k: learner.gradient(problem, z, paths, k)[::-1]
        return jax.lax.scan(sweep, paths, jax.random.split(key, 4))[1][-1]

    z = vector(problem)
    exact = jax.grad(lambda z: problem.log_density(z) - problem.log_prior(z))(z)
    each = np.asarray(once(jax.random.split(jax.random.key(1), 200)))
    score = (each.mean(axis=0) - exact) / (each.std(axis=0, ddof=1) / 200**0.5)
    assert np.all(np.abs(score) < 4.5), score


def test_the_score_of_a_path_is_the_gradient_of_its_density(problem):
    """Summed along one path, padding left out."""
    z = vector(problem)
    series, within = padded(problem.data)
    paths = jax.random.normal(jax.random.key(2), (*within.shape, 1))
    total = jnp.zeros(len(z))
    for i, length in enumerate(within.sum(axis=1)):
        one = jax.tree.map(lambda a, i=i: a[i], series)
        score = complete_data.score(problem.place, z, length)
        steps, y = complete_data.moments(problem.model, one)
        total = total + over_path(score, paths[i], steps, y)
    exact = jax.grad(lambda z: complete(problem, z, paths))(z)
    np.testing.assert_allclose(total, exact, rtol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("name", LEARNERS)
def test_the_maximum_a_posteriori_is_found(name):
    """To a quarter of a standard error."""
    exact = ss.fit(model(), recordings(), priors=PRIORS)
    fitted = ss.fit(
        model(0.3, 1.2),
        recordings(),
        learner=LEARNERS[name],
        priors=PRIORS,
        key=jax.random.key(4),
        method=ss.Kalman(),
    )
    assert_near(fitted, exact, 0.25)
    assert fitted.converged
    assert fitted.free == list(FREE)
    assert fitted.parameters["observation_scale"] == 0.5


@pytest.mark.slow
def test_too_few_iterations_are_warned_of(key):
    learner = ss.ScoreClimbing(iterations=12, learning_rate=0.02, particles=5, chains=1)
    start, data = model(-0.9, 3.0), recordings()
    with pytest.warns(ss.ConvergenceWarning, match="still rose"):
        ss.fit(start, data, learner=learner, priors=PRIORS, key=key, method=ss.Kalman())


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"iterations": 2}, ValueError, "`iterations` must be at least 8"),
        ({"learning_rate": 0.0}, ValueError, "`learning_rate` must be positive"),
        ({"optimiser": "adam"}, TypeError, "`optimiser` must be an optax transformation"),
        ({"draws": 0}, ValueError, "`draws` must be at least 1"),
        ({"particles": 1}, ValueError, "`particles` of ScoreAscent must be at least 2"),
    ],
)
def test_refused(settings, error, message):
    with pytest.raises(error, match=message):
        ss.ScoreAscent(**settings)
