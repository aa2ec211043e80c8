"""Particle smoothers against the Kalman smoother and forward–backward.

Means over replicates differ from exact values by their Monte Carlo error, and by a bias of order 1 / N of
single runs; particle Gibbs has none. Bounds are 5 standard errors, with the bias allowed for where stated.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import statespace as ss

LAG_ONE = ss.Additive(
    later=lambda previous, state, step, y: {"products": previous[0] * state[0], "count": 1.0},
    first=lambda state, step, y: {"products": state[0] * 0.0, "count": 1.0},
)
REPLICATES = 60


def linear(dtype=float):
    return ss.Model(
        initial=ss.Gaussian(jnp.zeros(1, dtype), jnp.ones(1, dtype)),
        transition=ss.AffineGaussian(jnp.full((1, 1), 0.9, dtype), scale=jnp.full(1, 0.6, dtype)),
        observation=ss.AffineGaussian(jnp.full((1, 1), 1.0, dtype), scale=jnp.full(1, 0.7, dtype)),
    )


def series(dtype=float):
    y = np.array([0.3, 1.1, np.nan, 0.2, -0.9, -1.4, -0.3, 0.8, 0.5, 1.2], dtype)
    return ss.Series(y)


@pytest.fixture(scope="module")
def kalman():
    return ss.smooth(linear(), series())


@pytest.fixture(scope="module")
def products(kalman):
    """``sum_t E[x_{t-1} x_t | y]``."""
    mean = kalman.mean[:, 0]
    return float(jnp.sum(mean[1:] * mean[:-1]) + jnp.sum(kalman.lag_one))


def replicates(function, key, count=REPLICATES):
    return jax.tree.map(np.asarray, jax.jit(jax.vmap(function))(jax.random.split(key, count)))


def agrees(values, exact, bias=0.0):
    error = np.std(values, axis=0, ddof=1) / np.sqrt(len(values))
    gap = np.abs(np.mean(values, axis=0) - exact)
    assert np.all(gap < 5 * error + bias), (gap / error).max()


def name_of(method):
    return f"{type(method).__name__}-{getattr(method, 'backward', '')}"


SLOW = pytest.mark.slow
SMOOTHERS = [
    ss.BackwardSampling(particles=150, backward="exact"),
    pytest.param(ss.BackwardSampling(particles=150, backward="rejection"), marks=SLOW),
    pytest.param(ss.BackwardSampling(150, backward="metropolis", paths=100), marks=SLOW),
    ss.PaRIS(particles=150),
    ss.FixedLag(particles=300, lag=9),
    pytest.param(ss.TwoFilter(particles=100), marks=SLOW),
    pytest.param(ss.ParticleGibbs(15, sweeps=40, burn_in=5, chains=2), marks=SLOW),
    pytest.param(ss.ParisianParticleGibbs(15, sweeps=40, burn_in=5, chains=2), marks=SLOW),
]


@pytest.mark.parametrize("method", SMOOTHERS, ids=name_of)
def test_smoothed_moments_are_those_of_kalman(method, kalman, key):
    """Single runs: bias below 0.02, a twentieth of the states' standard deviation."""

    def run(key):
        posterior = method.with_key(key).posterior(linear(), series(), "smoothed")
        return posterior.mean[:, 0], posterior.variance[:, 0]

    mean, variance = replicates(run, key)
    agrees(mean, kalman.mean[:, 0], bias=0.02)
    agrees(variance, kalman.covariance[:, 0, 0], bias=0.02)


def test_a_lag_of_nothing_is_the_filter(kalman, key):
    method = ss.FixedLag(particles=300, lag=0)
    run = lambda key: method.with_key(key).posterior(linear(), series(), "smoothed").mean[:, 0]
    agrees(replicates(run, key), ss.filter(linear(), series()).mean[:, 0], bias=0.02)


EXPECTING = [
    pytest.param(ss.PaRIS(particles=150), marks=SLOW),
    ss.PaRIS(particles=150, backward="rejection", draws=3),
    pytest.param(ss.PaRIS(150, backward="metropolis", threshold=1.0), marks=SLOW),
    pytest.param(ss.BackwardSampling(particles=150), marks=SLOW),
    pytest.param(
        ss.ParticleGibbs(15, sweeps=40, burn_in=5, chains=2, selection="ancestor"), marks=SLOW
    ),
    ss.ParisianParticleGibbs(particles=8, sweeps=12, burn_in=6, chains=2),
]


@pytest.mark.parametrize("method", EXPECTING, ids=name_of)
def test_expectations_of_a_quadratic_functional(method, products, key):
    """Without replicates' bias for the Gibbs samplers; else below 1 % of the value's scale."""
    run = lambda key: method.with_key(key).expect(linear(), series(), LAG_ONE)
    found = replicates(run, key)
    agrees(found.value["products"], products, bias=0.1 if found.sweeps is None else 0.0)
    np.testing.assert_allclose(found.value["count"], 10, rtol=1e-6)
    if found.sweeps is not None:
        assert found.sweeps["products"].shape == (REPLICATES, 2, method.sweeps)
        assert found.update_rates.shape == (REPLICATES, 10)
        assert np.all((found.update_rates >= 0) & (found.update_rates <= 1))
        assert np.all(np.mean(found.update_rates, axis=0) > 0.5)
        kept = found.sweeps["products"][:, :, method.burn_in :].mean(axis=(1, 2))
        np.testing.assert_allclose(found.value["products"], kept)
        # the error between two chains, over many replicates
        claimed = np.sqrt(np.mean(found.standard_error["products"] ** 2))
        assert 0.5 < claimed / np.std(found.value["products"]) < 2


def test_exact_paths_stand_for_kalman(products, key):
    found = ss.expect(linear(), series(), LAG_ONE, key=key, draws=2000)
    assert abs(found.value["products"] - products) < 5 * found.standard_error["products"]
    with pytest.raises(
        ValueError, match=r"Kalman knows the law of the states but not of a functional"
    ):
        ss.expect(linear(), series(), LAG_ONE)


@pytest.mark.slow
def test_two_draws_keep_the_statistics_apart_and_one_does_not(key):
    """Variance with one draw is several times that with two (core.md B2: 5.9² against 2.1²)."""
    with pytest.warns(ss.DegenerateStatisticsWarning, match=r"`draws` of PaRIS is 1.*linear"):
        one = ss.PaRIS(particles=50, draws=1)
    y = ss.simulate(linear(), 60, key=key).y
    spread = []
    for method in (one, ss.PaRIS(particles=50)):
        run = lambda key, m=method: (
            m.with_key(key).expect(linear(), ss.Series(y), LAG_ONE).value["products"]
        )
        spread.append(np.var(replicates(run, key)))
    assert spread[0] > 2 * spread[1]


def test_online_paris_is_paris(kalman, products, key):
    """The last value is the expectation; every value is that of the recording so far."""
    method = ss.PaRIS(particles=2000, functional=LAG_ONE)
    smoother = ss.online(linear(), method, key=key)
    state = smoother.init()
    assert state.value is None
    size = sum(x.size for x in jax.tree.leaves(smoother.update(state, 0.3)))
    for y in series().y:
        state = smoother.update(state, y)
    assert sum(x.size for x in jax.tree.leaves(state)) == size
    assert abs(state.value["products"] - products) < 0.5
    np.testing.assert_allclose(state.value["count"], 10)
    np.testing.assert_allclose(state.mean, kalman.mean[-1], atol=0.1)
    assert abs(state.log_likelihood - kalman.log_likelihood) < 0.3
    plain = ss.online(linear(), ss.PaRIS(particles=100), key=key)
    assert isinstance(plain, ss.ParticleOnline)


def finite():
    return ss.HMM(
        jnp.array([0.4, 0.6]),
        jnp.array([[0.8, 0.2], [0.3, 0.7]]),
        ss.emissions.Gaussian(jnp.array([[-1.0], [1.0]]), jnp.array([[1.0], [1.5]])),
    )


PAIR = ss.Additive(
    lambda previous, state, step, y: ((previous == 0) & (state == 1)) * (1.0 + step.index),
    lambda state, step, y: (state == 1) * 1.0,
)


def test_expectations_of_finite_states_are_exact():
    """By the probabilities of pairs."""
    exact = ss.expect(finite(), series(), PAIR)
    posterior = ss.smooth(finite(), series())
    weights = 1.0 + jnp.arange(1, 10)
    expected = jnp.sum(weights * posterior.pairs[:, 0, 1]) + posterior.probs[0, 1]
    np.testing.assert_allclose(exact.value, expected, rtol=1e-12)
    assert exact.standard_error == 0


@pytest.mark.slow
def test_paris_of_finite_states(key):
    exact = ss.expect(finite(), series(), PAIR).value
    method = ss.PaRIS(particles=200, backward="rejection")
    run = lambda key: method.with_key(key).expect(finite(), series(), PAIR).value
    agrees(replicates(run, key, 40), exact, bias=0.1)


@pytest.mark.slow
def test_the_score_is_the_gradient_of_the_likelihood(key):
    """Fisher's identity, against the derivative of the exact likelihood."""
    model = linear()
    free = ss.unconstrain(model)
    exact = jax.grad(lambda free: ss.log_likelihood(ss.constrain(model, free), series()))(free)
    method = ss.ParisianParticleGibbs(particles=10, sweeps=12, burn_in=6, chains=1)
    functional = ss.functionals.score(model)
    run = lambda key: method.with_key(key).expect(model, series(), functional).value
    found = replicates(run, key, 100)
    assert set(found) == set(exact)
    for name, values in found.items():
        agrees(values, exact[name])
    some = ss.functionals.score(model, ["transition"])
    value = ss.expect(model, series(), some, key=key, draws=10).value
    assert set(value) == {"transition.matrix", "transition.scale"}


def test_score_of_finite_states_is_exact():
    model = finite()
    free = ss.unconstrain(model)
    exact = jax.grad(lambda free: ss.log_likelihood(ss.constrain(model, free), series()))(free)
    found = ss.expect(model, series(), ss.functionals.score(model)).value
    for name, value in found.items():
        np.testing.assert_allclose(value, exact[name], atol=1e-10)


def test_precision_follows_the_data(dtype, key):
    found = ss.expect(linear(dtype), series(dtype), LAG_ONE, method=ss.PaRIS(particles=20), key=key)
    assert found.value["products"].dtype == dtype


def test_a_panel_is_the_sum_of_its_recordings(products, key):
    found = ss.expect(linear(), [series(), series()], LAG_ONE, key=key, draws=2000)
    assert abs(found.value["products"] - 2 * products) < 5 * found.standard_error["products"]


def test_paths_of_particle_gibbs(key):
    """Shapes alone: what the paths are is tested above."""
    method = ss.ParticleGibbs(particles=10, sweeps=6, burn_in=2, chains=3)
    run = lambda key: method.with_key(key).posterior(linear(), series(), "smoothed")
    posterior = jax.eval_shape(run, key)
    assert isinstance(posterior, ss.PathPosterior)
    assert posterior.particles.shape == (10, 12, 1)
    assert posterior.chains == 3
    assert posterior.update_rates.shape == (10,)
    draw = lambda key: method.sample_states(linear(), series(), key, 5)
    assert jax.eval_shape(draw, key).shape == (5, 10, 1)
    rates = posterior.update_rates
    assert jax.eval_shape(lambda p: p.cut(4), posterior).update_rates.dtype == rates.dtype


def singular():
    """A constant speed with noise on the speed alone."""
    return dataclasses.replace(
        linear(),
        initial=ss.Gaussian(jnp.zeros(2), jnp.ones(2)),
        transition=ss.AffineGaussian(
            jnp.array([[1.0, 1.0], [0.0, 1.0]]), scale=jnp.array([[0.0], [0.3]])
        ),
        observation=ss.AffineGaussian(jnp.array([[1.0, 0.0]]), scale=jnp.ones(1)),
    )


@pytest.mark.parametrize(
    "method",
    [
        ss.BackwardSampling(),
        ss.PaRIS(),
        ss.TwoFilter(),
        ss.ParticleGibbs(),
        ss.ParisianParticleGibbs(),
    ],
    ids=lambda m: type(m).__name__,
)
def test_a_transition_without_a_density_is_named(method, key):
    name = type(method).__name__
    with pytest.raises(
        TypeError, match=rf"{name} needs the density.*`transition` of the model \(AffineGaussian\)"
    ):
        ss.smooth(singular(), series(), method=method, key=key)


def test_what_is_refused(key):
    with pytest.raises(ValueError, match=r"`particles` of PaRIS must be at least 2, got 1"):
        ss.PaRIS(particles=1)
    with pytest.raises(ValueError, match=r"`draws` of PaRIS must be positive, 2 as a rule, got 0"):
        ss.PaRIS(draws=0)
    with pytest.raises(ValueError, match=r"no backward kernel 'best'"):
        ss.PaRIS(backward="best")
    with pytest.raises(TypeError, match=r"`functional` of PaRIS must be an Additive, got function"):
        ss.PaRIS(functional=lambda x: x)
    with pytest.raises(
        ValueError, match=r"`burn_in` of ParticleGibbs .* less than .* \(5\), got 5"
    ):
        ss.ParticleGibbs(sweeps=5, burn_in=5)
    with pytest.raises(
        ValueError, match=r"`chains` of ParisianParticleGibbs must be positive, got 0"
    ):
        ss.ParisianParticleGibbs(chains=0)
    with pytest.raises(
        ValueError, match=r"`draws` of ParisianParticleGibbs must be positive, got 0"
    ):
        ss.ParisianParticleGibbs(draws=0)
    with pytest.raises(
        ValueError, match=r"`selection` of ParticleGibbs must be 'backward'.*got 'best'"
    ):
        ss.ParticleGibbs(selection="best")
    with pytest.raises(ValueError, match=r"`paths` of BackwardSampling must be positive, got 0"):
        ss.BackwardSampling(paths=0)
    with pytest.raises(ValueError, match=r"`lag` of FixedLag must not be negative, got -1"):
        ss.FixedLag(lag=-1)
    with pytest.raises(
        TypeError, match=r"FixedLag smooths each state by itself.*use BackwardSampling"
    ):
        ss.sample_states(linear(), series(), method=ss.FixedLag(particles=10), key=key)
    with pytest.raises(TypeError, match=r"`functional` must be an Additive.*got function"):
        ss.expect(linear(), series(), lambda x: x, key=key)
    with pytest.raises(
        TypeError, match=r"FixedLag gives no expectations of functionals: use PaRIS"
    ):
        ss.expect(linear(), series(), LAG_ONE, method=ss.FixedLag(), key=key)
    apart = ss.Additive(lambda previous, state, step, y: state, lambda state, step, y: 0.0)
    with pytest.raises(ValueError, match=r"`first` and `later`.* the same arrays.*\(\) and \(1,\)"):
        ss.expect(linear(), series(), apart, key=key)
    with pytest.raises(ValueError, match=r"PaRIS draws at random: give `key="):
        ss.expect(linear(), series(), LAG_ONE, method=ss.PaRIS())
    with pytest.raises(ValueError, match=r"`draws` must be positive, got 0"):
        ss.expect(linear(), series(), LAG_ONE, key=key, draws=0)
    with pytest.raises(ValueError, match=r"'speed' is not a free parameter of the model; it has"):
        ss.functionals.score(linear(), ["speed"])


def test_rejection_needs_a_density_that_is_bounded(key):
    """A mixture says nothing of its greatest value: refused by name, and drawn from without."""
    import numpyro.distributions as dist

    def jumping(state, step):
        parts = dist.Normal(jnp.stack([state, -state], axis=-1), 1.0)
        return dist.MixtureSameFamily(dist.Categorical(probs=jnp.array([0.5, 0.5])), parts)

    model = dataclasses.replace(linear(), transition=jumping)
    with pytest.raises(
        ValueError, match=r"rejection.*`transition` of the model \(function\).*'metropolis'"
    ):
        ss.smooth(model, series(), method=ss.BackwardSampling(50, backward="rejection"), key=key)


def test_two_filters_need_real_states(key):
    half = jnp.full(2, 0.5)
    model = ss.HMM(half, jnp.stack([half, half]), ss.emissions.Poisson(jnp.array([1.0, 2.0])))
    with pytest.raises(TypeError, match=r"TwoFilter needs states that are arrays"):
        ss.smooth(model, np.array([1.0, 2.0, 0.0]), method=ss.TwoFilter(particles=10), key=key)
