"""Particle Gibbs with parameters: Geweke's joint test, and the posterior on a grid."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from linear_problem import FREE, PRIORS, model, on_a_grid, recordings

import statespace as ss
from statespace.learners.particle_gibbs import Sampler, Sweep, sweep
from statespace.learners.problem import Problem
from statespace.learners.state_paths import Drawing
from statespace.learners.tuned_moves import Settings, begin
from statespace.simulation import states_and_observations


def moments_of(z, x, y):
    """What the two simulators must agree on: moments of parameters, states and data."""
    one = jnp.array([z[0], z[1], x[0], x[-1], y[0], y[-1], x[-1] * x[-2], z[0] * y[-1] * y[-2]])
    return jnp.concatenate([one, one**2])


@pytest.mark.parametrize(
    "selection", ["backward", pytest.param("ancestor", marks=pytest.mark.slow)]
)
def test_geweke(selection):
    """Parameters, states and data drawn in turn have their joint law (Geweke 2004).

    A thousand chains begin in the joint law and make five rounds of: one sweep of the sampler, then new data
    given parameters and states. All moments stay those of independent draws, within 4.5 standard errors.
    """
    chains, rounds, moments = 1000, 5, 6
    bare = Problem(model(), ss.Series(np.zeros(moments)).drop_labels(), PRIORS, ss.Kalman())
    drawing = Drawing(5, "bootstrap", "systematic", selection)
    settings = Sampler(drawing, 1, Settings(0, 4, 0.8))

    def draw(key):
        k1, k2, k3 = jax.random.split(key, 3)
        values = [
            PRIORS[n].sample(k, (1, 1) if n == FREE[0] else (1,)) for n, k in zip(FREE, (k1, k2))
        ]
        z = vector_of(dict(zip(FREE, values)))
        x, y = states_and_observations(bare.place(z), bare.data, k3)
        return z, x, y

    def vector_of(values):
        maps = bare.bijections()
        return jnp.concatenate([maps[n].inv(values[n]).ravel() for n in FREE])

    def observe(key, z, x):
        law = lambda x: bare.place(z).observation(x, None)
        return jax.vmap(lambda x, k: law(x).sample(k))(x, jax.random.split(key, moments))

    @jax.jit
    @jax.vmap
    def run(key):
        key, first = jax.random.split(key)
        z, x, y = draw(first)
        before = moments_of(z, x[:, 0], y[:, 0])

        def once(carry, key):
            z, x, y = carry
            data = ss.series.assemble(
                ss.Series,
                **{f: getattr(bare.data, f) for f in ("times", "inputs", "intervals")},
                y=y,
                state_weights=None,
                complete=True,
                dt=bare.data.dt,
                labels=None,
            )
            problem = Problem(bare.model, data, PRIORS, bare.method)
            parameters = begin(z, settings.tuning)
            # an untuned sampler still has to keep the law
            tuning = parameters.tuning._replace(log_step_size_avg=jnp.log(0.2))
            state = Sweep(parameters._replace(tuning=tuning), x[None], jnp.zeros(()), key)
            state = sweep(problem, settings, state)
            z, x = state.parameters.z, state.paths[0]
            return (z, x, observe(jax.random.fold_in(state.key, 7), z, x)), state.update_rate

        (z, x, y), moved = jax.lax.scan(once, (z, x, y), jax.random.split(key, rounds))
        return before, moments_of(z, x[:, 0], y[:, 0]), moved.mean()

    before, after, moved = run(jax.random.split(jax.random.key(5), chains))
    change = np.asarray(after - before)
    score = change.mean(axis=0) / (change.std(axis=0, ddof=1) / chains**0.5)
    assert np.all(np.abs(score) < 4.5), score
    assert 0.3 < float(moved.mean()) < 1
    assert np.all(change.std(axis=0) > 0)


@pytest.mark.slow
def test_moments_are_those_of_the_grid():
    """Means within 5 Monte Carlo errors, standard deviations within a quarter."""
    learner = ss.ParticleGibbsLearner(warmup=200, samples=1500, chains=4, particles=15)
    fitted = ss.fit(
        model(),
        recordings(),
        learner=learner,
        priors=PRIORS,
        key=jax.random.key(0),
        method=ss.Kalman(),
    )
    mean, sd = on_a_grid(recordings())
    for i, name in enumerate(FREE):
        draws, effective = fitted.draws[name], float(fitted.effective[name].squeeze())
        assert effective > 200
        assert abs(draws.mean() - mean[i]) < 5 * sd[i] / effective**0.5
        np.testing.assert_allclose(draws.std(), sd[i], rtol=0.25)
    assert 0.5 < fitted.statistics["update_rate"].mean() < 1
    assert fitted.free == list(FREE)


@pytest.mark.slow
def test_what_is_kept():
    learner = ss.ParticleGibbsLearner(warmup=4, samples=4, chains=2, particles=5, keep_states=True)
    with pytest.warns(ss.ConvergenceWarning):
        fitted = ss.fit(
            model(),
            recordings(),
            learner=learner,
            priors=PRIORS,
            key=jax.random.key(0),
            method=ss.Kalman(),
        )
    assert fitted.states.shape == (2, 4, 2, 60, 1)
    assert not np.array_equal(fitted.states[:, 0], fitted.states[:, 1])
    assert fitted.statistics["update_rate"].shape == (2, 4)


@pytest.mark.parametrize(
    ("settings", "arguments", "error", "message"),
    [
        ({}, {"key": None}, ValueError, "give `fit` a `key`"),
        ({}, {"priors": None}, ValueError, "needs a prior for every free parameter"),
        (
            {"particles": 1},
            {},
            ValueError,
            "`particles` of ParticleGibbsLearner must be at least 2",
        ),
        ({"selection": "forward"}, {}, ValueError, "`selection` .* got 'forward'"),
        ({"moves": 0}, {}, ValueError, "`moves` must be at least 1"),
    ],
)
def test_refused(settings, arguments, error, message):
    given = {"priors": PRIORS, "key": jax.random.key(0)} | arguments
    with pytest.raises(error, match=message):
        ss.fit(model(), np.zeros(5), learner=ss.ParticleGibbsLearner(**settings), **given)


def test_states_without_a_density_are_refused(key):
    """Two states that one noise drives: the path cannot be moved given the parameters."""
    noise = jnp.array([[1.0], [0.5]])
    singular = ss.Model(
        initial=ss.Gaussian(jnp.zeros(2), jnp.ones(2)),
        transition=ss.AffineGaussian(0.5 * jnp.eye(2), scale=noise),
        observation=ss.AffineGaussian(jnp.ones((1, 2)), scale=jnp.ones(1)),
    )
    free = ss.freeze(singular, *[n for n in ss.parameters(singular) if n != "transition.matrix"])
    priors = {"transition.matrix": dist.Normal(0.0, 1.0)}
    with pytest.raises(TypeError, match="`transition` of the model has none"):
        ss.fit(free, np.zeros(5), learner=ss.ParticleGibbsLearner(), priors=priors, key=key)
