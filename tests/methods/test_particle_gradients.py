"""Derivatives of the log likelihood by particles, and maximum likelihood with them."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import particle_models as models
import pytest

import statespace as ss


class Level(eqx.Module):
    """An autoregression seen in noise, of which the persistence and the noise are to be learned."""

    persistence: jax.Array = ss.parameter("unit_interval")
    noise: jax.Array = ss.parameter("positive")

    @property
    def initial(self):
        return ss.Gaussian(jnp.zeros(1), jnp.ones(1))

    @property
    def transition(self):
        return ss.AffineGaussian(self.persistence[None, None], scale=jnp.array([0.6]))

    @property
    def observation(self):
        return ss.AffineGaussian(jnp.ones((1, 1)), scale=self.noise[None])


start = Level(jnp.asarray(0.5), jnp.asarray(1.0))
true = Level(jnp.asarray(0.85), jnp.asarray(0.4))
y = np.array(ss.simulate(true, 20, key=jax.random.key(2)).y)


@pytest.mark.parametrize("proposal", ["bootstrap", "linearised"])
def test_score_against_kalman(proposal):
    """Weighted by their likelihoods, derivatives of 1,000 filters have the mean that Kalman's has.

    ``E[Z' ] = p'(y)``: the derivative of the estimate of the likelihood is unbiased.
    """
    exact = jax.grad(lambda m: ss.log_likelihood(m, y[:8]))(start)
    value = ss.log_likelihood(start, y[:8])
    method = ss.ParticleFilter(32, proposal, gradient="score")

    def one(key):
        likelihood = lambda m: jnp.exp(ss.log_likelihood(m, y[:8], method=method, key=key) - value)
        return jax.grad(likelihood)(start)

    found = jax.vmap(one)(models.keys)
    for name in ("persistence", "noise"):
        each = np.asarray(getattr(found, name))
        error = each.std() / np.sqrt(len(each))
        assert abs(each.mean() - getattr(exact, name)) < 5 * error


def test_gradient_changes_no_value():
    """The value of the log likelihood is that of the plain filter."""
    plain, score = (ss.ParticleFilter(50, gradient=g) for g in (None, "score"))
    key = models.keys[0]
    one = ss.log_likelihood(start, y, method=plain, key=key)
    two = ss.log_likelihood(start, y, method=score, key=key)
    np.testing.assert_allclose(one, two, rtol=1e-12)


def test_no_derivative_unless_asked_for():
    """A derivative that would leave out the resampling is refused, and unknown kinds are."""
    with pytest.raises(ValueError, match=r"drawing ancestors is no smooth function"):
        jax.grad(
            lambda m: ss.log_likelihood(m, y, method=ss.ParticleFilter(50), key=models.keys[0])
        )(start)
    with pytest.raises(ValueError, match="`gradient` must be None or one of"):
        ss.ParticleFilter(gradient="exact")


@pytest.mark.filterwarnings("ignore::statespace.ConvergenceWarning")
def test_maximum_likelihood_against_kalman():
    """With the same random numbers throughout, the maximum by particles is near the exact one."""
    exact = ss.fit(start, y)
    learner = ss.MaximumLikelihood(max_steps=30, standard_errors=False, progress=False)
    method = ss.ParticleFilter(300, "linearised")
    found = ss.fit(start, y, learner=learner, method=method, key=models.keys[0])
    loss = exact.log_likelihood - ss.log_likelihood(found.model, y)
    assert 0 <= loss < 0.1
