"""EM with paths drawn by particles against the exact maximum of the Kalman likelihood."""

import jax
import numpy as np
import numpyro.distributions as dist
import pytest
from linear_problem import FREE, PRIORS, assert_near, model, recordings

import statespace as ss


def test_the_maximum_is_found_in_closed_form():
    """To a quarter of a standard error, by averaged statistics of a few paths."""
    exact = ss.fit(model(), recordings())
    learner = ss.ParticleEM(iterations=120, paths=4, particles=15)
    key = jax.random.key(1)
    fitted = ss.fit(model(0.3, 1.2), recordings(), learner=learner, key=key, method=ss.Kalman())
    assert_near(fitted, exact, 0.25)
    assert fitted.converged
    assert fitted.free == list(FREE)
    assert fitted.parameters["observation_scale"] == 0.5


class Written(ss.Model):
    """The same model in functions, of which no closed form is known."""

    def __init__(self, matrix, scale):
        self.initial = dist.Normal(np.zeros(1), np.ones(1)).to_event(1)
        self.transition = _Transition(matrix, scale)
        self.observation = lambda x, step: dist.Normal(x, 0.5).to_event(1)


class _Transition(ss.model.eqx.Module):
    matrix: jax.Array = ss.parameter()
    scale: jax.Array = ss.parameter("positive")

    def __call__(self, x, step):
        return dist.Normal(self.matrix * x, self.scale).to_event(1)


@pytest.mark.slow
@pytest.mark.parametrize("averaged", [True, False])
def test_the_maximum_a_posteriori_is_climbed_to(averaged):
    """Of a model without a closed form, to a third of a standard error."""
    exact = ss.fit(model(), recordings(), priors=PRIORS)
    priors = {"transition.matrix": PRIORS[FREE[0]], "transition.scale": PRIORS[FREE[1]]}
    learner = ss.ParticleEM(
        iterations=160, paths=6, particles=15, stochastic_approximation=averaged
    )
    fitted = ss.fit(
        Written(0.3, 1.2),
        recordings(),
        learner=learner,
        priors=priors,
        key=jax.random.key(2),
        method=ss.ParticleFilter(particles=100),
    )
    for name, known in zip(priors, FREE):
        error = abs(float(fitted.parameters[name]) - exact.parameters[known].item())
        assert error < exact.standard_errors[known].item() / 3
    assert fitted.log_likelihood_variance > 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"iterations": 2}, "`iterations` must be at least 8"),
        ({"paths": 0}, "`paths` must be at least 1"),
        ({"particles": 1}, "`particles` of ParticleEM must be at least 2"),
    ],
)
def test_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ss.ParticleEM(**settings)


def test_a_key_is_asked_for():
    with pytest.raises(ValueError, match="ParticleEM is random: give `fit` a `key`"):
        ss.fit(model(), np.zeros(5), learner=ss.ParticleEM())
