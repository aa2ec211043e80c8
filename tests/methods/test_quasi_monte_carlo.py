"""Sequential quasi-Monte Carlo: its points, its curve, its draws, and what it gains."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import statespace as ss
from statespace.chains.particle.quasi import curve_order, hilbert_index, scrambled, sobol
from statespace.conditionals.switching import RegimeLaw
from statespace.methods.quantiles import from_uniforms, uniforms
from statespace.series import as_series

KEY = jax.random.key(3)


@pytest.mark.parametrize(("n", "bits"), [(2, 3), (3, 2)])
def test_the_curve_visits_every_cell_and_steps_to_neighbours(n, bits):
    cells = np.array(list(itertools.product(range(2**bits), repeat=n)), np.uint32)
    high, low = hilbert_index(jnp.asarray(cells), bits)
    place = np.asarray(high).astype(np.uint64) * 2**32 + np.asarray(low)
    assert len(set(place.tolist())) == len(cells)
    walk = cells[np.argsort(place)].astype(int)
    assert np.all(np.abs(np.diff(walk, axis=0)).sum(axis=1) == 1)


def test_one_coordinate_is_put_in_order_of_size():
    x = jax.random.normal(KEY, (50, 1))
    assert np.all(np.diff(x[curve_order(x)][:, 0]) > 0)


def test_scrambled_points_stay_even_and_are_uniform():
    """Every coordinate has one point in each of N intervals; over 500 scrambles a point is uniform."""
    points = scrambled(KEY, sobol(64, 3), jnp.float64)
    intervals = np.sort(np.floor(np.asarray(points) * 64), axis=0)
    np.testing.assert_array_equal(intervals, np.arange(64)[:, None] * np.ones(3))
    first = jax.vmap(lambda k: scrambled(k, sobol(64, 3), jnp.float64)[5])(
        jax.random.split(KEY, 500)
    )
    assert np.all(np.abs(first.mean(axis=0) - 0.5) < 5 * np.sqrt(1 / 12 / 500))
    assert np.all(np.abs(first.var(axis=0) - 1 / 12) < 5 * np.sqrt(1 / 180 / 500))
    single = scrambled(KEY, sobol(64, 3), jnp.float32)
    assert single.dtype == jnp.float32
    assert np.all((single > 0) & (single < 1))


def test_draws_from_uniform_numbers():
    u = jnp.array([0.2, 0.7])
    for law in (dist.Normal(jnp.array([1.0, 2.0]), 3.0).to_event(1), dist.Exponential(2.0)):
        base = getattr(law, "base_dist", law)
        here = u[: uniforms(law)]
        np.testing.assert_allclose(
            base.cdf(from_uniforms(law, here)), here.reshape(here.shape), rtol=1e-9
        )
    factor = jnp.array([[2.0, 0], [1.0, 0.5]])
    law = dist.MultivariateNormal(jnp.array([1.0, -1.0]), scale_tril=factor)
    white = jnp.linalg.solve(factor, from_uniforms(law, u) - law.loc)
    np.testing.assert_allclose(dist.Normal().cdf(white), u, rtol=1e-9)
    grid = (jnp.arange(100) + 0.5) / 100
    chosen = jax.vmap(
        lambda v: from_uniforms(dist.Categorical(jnp.array([0.2, 0.5, 0.3])), v[None])
    )
    np.testing.assert_array_equal(np.bincount(chosen(grid).ravel()), [20, 50, 30])
    both = RegimeLaw(jnp.array([0.25, 0.75]), (dist.Normal(0.0, 1.0), dist.Normal(5.0, 1.0)))
    assert uniforms(both) == 2
    drawn = from_uniforms(both, jnp.array([0.3, 0.5]))
    assert (int(drawn.regime), float(drawn.state[0] if drawn.state.ndim else drawn.state)) == (
        1,
        5.0,
    )
    with pytest.raises(TypeError, match="VonMises has no inverse distribution function"):
        from_uniforms(dist.VonMises(0.0, 1.0), jnp.array([0.3]))


def test_the_likelihood_varies_less_and_stays_unbiased():
    """200 replicates of 128 particles: a tenth of the plain filter's variance at most, mean within 5 s.e."""
    model = ss.LinearGaussian([[0.9]], [0.5], [[1.0]], [0.7], [0.0], [1.0])
    y = np.array(ss.simulate(model, 20, key=KEY).y)
    y[7] = np.nan
    series = as_series(y)
    exact = float(ss.log_likelihood(model, series))
    keys = jax.random.split(KEY, 200)

    def replicates(method):
        one = lambda k: method.with_key(k).log_likelihood(model, series)
        return np.asarray(jax.jit(jax.vmap(one))(keys))

    quasi = replicates(ss.SequentialQuasiMonteCarlo(particles=128))
    plain = replicates(ss.ParticleFilter(particles=128))
    assert quasi.var() < 0.1 * plain.var()
    ratio = np.exp(quasi - exact)
    assert abs(ratio.mean() - 1) < 5 * ratio.std() / np.sqrt(200)


@pytest.mark.slow
def test_two_coordinates_and_smoothing():
    """Along the Hilbert curve in two coordinates; paths drawn backward have Kalman's means."""
    turn = np.array([[0.9, 0.2], [-0.2, 0.8]])
    model = ss.LinearGaussian(turn, [0.5, 0.5], np.eye(2), [0.7, 0.7], [0.0, 0], [1.0, 1.0])
    series = as_series(np.asarray(ss.simulate(model, 20, key=KEY).y))
    keys = jax.random.split(KEY, 200)

    def replicates(method):
        one = lambda k: method.with_key(k).log_likelihood(model, series)
        return np.asarray(jax.jit(jax.vmap(one))(keys))

    quasi = replicates(ss.SequentialQuasiMonteCarlo(particles=128))
    plain = replicates(ss.ParticleFilter(particles=128))
    assert quasi.var() < 0.5 * plain.var()
    exact = ss.smooth(model, series)
    method = ss.SequentialQuasiMonteCarlo(particles=512)
    got = ss.smooth(model, series, method=method, key=KEY)
    error = np.asarray(exact.std) / np.sqrt(512)
    # paths share their ends and their filter, whose own error adds to that of independent draws
    assert np.all(np.abs(got.mean - exact.mean) < 8 * error)


def test_what_it_does_not_do_is_said():
    with pytest.raises(ValueError, match="SequentialQuasiMonteCarlo has no `proposal`"):
        ss.SequentialQuasiMonteCarlo(proposal="linearised")
    with pytest.raises(ValueError, match="SequentialQuasiMonteCarlo has no `resampling`"):
        ss.SequentialQuasiMonteCarlo(resampling="multinomial")
    with pytest.raises(TypeError, match="runs over whole recordings"):
        ss.online(ss.NonlinearGrowth(), ss.SequentialQuasiMonteCarlo(key=KEY))
    model = ss.SIR(20, 1.0, 0.5, 0.5)
    with pytest.raises(TypeError, match="SplitLaw has no inverse distribution function"):
        ss.log_likelihood(
            model, np.array([1.0, 2, 0]), method=ss.SequentialQuasiMonteCarlo(64), key=KEY
        )
