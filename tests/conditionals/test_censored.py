"""Interval-censored observations: probabilities by quadrature, derivatives in tails, a filter on a grid."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
import scipy.special
import scipy.stats as st

import statespace as ss

LAWS = {
    "normal": (dist.Normal(0.3, 1.3), st.norm(0.3, 1.3)),
    "logistic": (dist.Logistic(0.3, 1.3), st.logistic(0.3, 1.3)),
    "cauchy": (dist.Cauchy(0.3, 1.3), st.cauchy(0.3, 1.3)),
    "lognormal": (dist.LogNormal(0.3, 0.7), st.lognorm(0.7, scale=np.exp(0.3))),
    "exponential": (dist.Exponential(0.8), st.expon(scale=1 / 0.8)),
    "weibull": (dist.Weibull(1.5, 0.6), st.weibull_min(0.6, scale=1.5)),
}
INTERVALS = [(0.2, 1.0), (1.0, 1.001), (5.0, 5.1), (20.0, 25.0), (3.0, 3.0 + 1e-9), (1e-3, 30.0)]
REAL = [(-5.0, 6.0), (-1e-8, 1e-8), (-30.0, -20.0), (-9.1, -9.0), (-0.1, 0.4)]
POSITIVE = ("lognormal", "exponential", "weibull")


def log_quadrature(law, a, b):
    """Log of the integral of a density, by quadrature in pieces."""
    peak = float(np.clip(law.median(), a, b))
    cuts = np.r_[0, np.logspace(-9, 0, 37)]
    points = np.unique(np.clip([x + s * (b - a) * cuts for x in (a, peak) for s in (-1, 1)], a, b))
    u, w = np.polynomial.legendre.leggauss(40)
    half = np.diff(points)[:, None] / 2
    log = law.logpdf(points[:-1, None] + half * (u + 1)) + np.log(half * w)
    return scipy.special.logsumexp(log)


@pytest.mark.parametrize("name", LAWS)
def test_probabilities_are_integrals_of_the_density(name):
    """Near and far, wide and narrow, in both tails."""
    base, law = LAWS[name]
    cases = INTERVALS + ([] if name in POSITIVE else REAL)
    got = ss.IntervalCensored(base).log_prob(jnp.array(cases))
    want = [log_quadrature(law, a, b) for a, b in cases]
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", LAWS)
def test_one_sided_bounds_exact_values_and_none(name):
    """NaN and infinity are no bound; equal bounds are a value; bounds in the wrong order are impossible."""
    base, law = LAWS[name]
    nan, inf = np.nan, np.inf
    x = np.array([0.4, 2.0, 9.0])
    f = lambda lower, upper: ss.IntervalCensored(base).log_prob(
        jnp.stack(jnp.broadcast_arrays(lower, upper), axis=-1)
    )
    np.testing.assert_allclose(f(nan, x), law.logcdf(x), rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(f(-inf, x), law.logcdf(x), rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(f(x, nan), law.logsf(x), rtol=1e-9)
    np.testing.assert_allclose(f(x, inf), law.logsf(x), rtol=1e-9)
    np.testing.assert_allclose(f(x, x), law.logpdf(x), rtol=1e-10)
    np.testing.assert_allclose(f(jnp.array(nan), jnp.array(nan)), 0.0)
    assert np.all(np.isneginf(f(x, x - 1)))
    if name in POSITIVE:
        np.testing.assert_allclose(f(0.0, x), law.logcdf(x), rtol=1e-10, atol=1e-14)
        np.testing.assert_allclose(f(-1.0, x), law.logcdf(x), rtol=1e-10, atol=1e-14)
        assert np.isneginf(f(jnp.array(-2.0), jnp.array(-1.0)))
    narrow = f(x, x + 1e-7)
    np.testing.assert_allclose(narrow - np.log(1e-7), law.logpdf(x), atol=1e-6)


def test_derivatives_are_those_of_a_truncated_normal_law():
    """``d/dm log P = E[x - m | a < x < b]``, and the second derivative its variance less one."""
    m = np.repeat([-300.0, -30.0, 0.0, 30.0, 300.0], 5)
    upper = np.tile([1e-6, 1e-3, 0.1, 1.0, 5.0], 5)

    def log_probability(m, b):
        return ss.IntervalCensored(dist.Normal(m, 1.0)).log_prob(jnp.stack([jnp.zeros(()), b]))

    slope, bend = jax.jit(
        jax.vmap(
            lambda m, b: jax.jvp(
                lambda m: jax.grad(log_probability)(m, b), (m,), (jnp.ones_like(m),)
            )
        )
    )(jnp.asarray(m), jnp.asarray(upper))
    # the density over the interval, scaled by its largest value
    u, w = np.polynomial.legendre.leggauss(2000)
    x = 0.5 * (u + 1) * upper[:, None] - m[:, None]
    log = -0.5 * x**2
    p = w * np.exp(log - log.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    mean = (p * x).sum(1)
    variance = (p * (x - mean[:, None]) ** 2).sum(1)
    np.testing.assert_allclose(slope, mean, rtol=1e-9)
    np.testing.assert_allclose(bend, variance - 1, atol=1e-5)


def test_scales_learn_from_intervals():
    """Derivatives in every parameter are finite where all kinds of intervals meet."""
    bounds = jnp.array([[0.5, 0.5], [jnp.nan, 1.0], [2.0, jnp.nan], [1.0, 1.5], [jnp.nan, jnp.nan]])
    for make in (dist.Normal, dist.LogNormal, dist.Weibull, dist.Logistic, dist.Cauchy):
        total = lambda p, make=make: ss.IntervalCensored(make(p[0], p[1])).log_prob(bounds).sum()
        p = jnp.array([0.7, 1.2])
        shift = 1e-6 * np.eye(2)
        by_hand = [(total(p + e) - total(p - e)) / 2e-6 for e in shift]
        np.testing.assert_allclose(jax.jit(jax.grad(total))(p), by_hand, rtol=1e-6, atol=1e-8)


PHI, NOISE = 0.9, 0.5


def censored_model():
    return ss.Model(
        ss.Gaussian(jnp.array([0.0]), jnp.array([1.0])),
        ss.AffineGaussian(jnp.array([[PHI]]), None, jnp.array([0.4])),
        ss.GeneralisedLinear(
            jnp.array([[1.0], [-0.5]]),
            jnp.array([0.0, 1.0]),
            lambda eta: ss.IntervalCensored(dist.Normal(eta, NOISE)),
        ),
    )


NAN = np.nan
ROWS = np.array(
    [
        [0.0, 1.0, 1.0, 1.5],
        [0.4, NAN, 0.3, 0.3],
        [NAN, NAN, NAN, 0.8],
        [-1.0, -0.5, NAN, NAN],
        [NAN, NAN, NAN, NAN],
        [-0.2, -0.1, 1.0, NAN],
    ]
)


def grid_log_likelihood():
    """The filter by sums over a fine grid."""
    x = np.linspace(-6, 6, 1201)
    step = x[1] - x[0]
    move = st.norm(PHI * x[None], 0.4).pdf(x[:, None]) * step
    alpha, total = st.norm(0, 1).pdf(x) * step, 0.0
    for t, row in enumerate(ROWS):
        if t:
            alpha = move @ alpha
        for c, (matrix, offset) in enumerate(((1.0, 0.0), (-0.5, 1.0))):
            law = st.norm(matrix * x + offset, NOISE)
            a, b = np.nan_to_num(row[2 * c], nan=-np.inf), np.nan_to_num(row[2 * c + 1], nan=np.inf)
            alpha = alpha * (law.pdf(a) if a == b else law.cdf(b) - law.cdf(a))
        total += np.log(alpha.sum())
        alpha /= alpha.sum()
    return total


def test_particles_agree_with_a_grid(key):
    """Intervals, one-sided bounds, exact values and missing pairs in one recording."""
    method = ss.ParticleFilter(particles=40_000)
    found = ss.log_likelihood(censored_model(), ROWS, method=method, key=key)
    np.testing.assert_allclose(found, grid_log_likelihood(), atol=0.05)


def test_sites_agree_with_a_grid():
    """Expectation propagation, by one-dimensional integrals for each pair of bounds."""
    posterior = ss.smooth(censored_model(), ROWS, method=ss.ExpectationPropagation())
    assert posterior.convergence.converged
    np.testing.assert_allclose(posterior.log_likelihood, grid_log_likelihood(), atol=2e-3)
    # what is predicted of a pair is the value, twice
    assert posterior.predicted_mean.shape == (6, 4)
    np.testing.assert_allclose(posterior.predicted_mean[0], [0, 0, 1, 1], atol=1e-12)
    spread = np.array([[1.0], [-0.5]])
    want = np.kron(spread @ spread.T + NOISE**2 * np.eye(2), np.ones((2, 2)))
    np.testing.assert_allclose(posterior.predicted_covariance[0], want, atol=1e-10)


def test_single_precision_stays():
    """The law is computed in the precision of its arguments."""
    single = jnp.float32
    base = dist.Normal(jnp.zeros(2, single), jnp.ones((), single))
    rows = jnp.asarray(ROWS[0].reshape(2, 2), single)
    assert ss.IntervalCensored(base).log_prob(rows).dtype == single


def test_a_draw_is_a_value_twice(key):
    """Simulation knows no censoring; the values are those of the base."""
    model = censored_model()
    simulation = ss.simulate(model, 400, key=key)
    y = np.asarray(simulation.y).reshape(400, 2, 2)
    np.testing.assert_array_equal(y[..., 0], y[..., 1])
    eta = np.asarray(simulation.states) * [1.0, -0.5] + [0.0, 1.0]
    assert abs(np.std(y[..., 0] - eta) - NOISE) < 0.05
    law = model.observation(simulation.states[0], ss.Step(0, 0.0, 1.0))
    np.testing.assert_allclose(law.mean, np.repeat(eta[:1], 2, axis=0).T)


def test_what_is_refused(key):
    """Bases without stable tails, bounds in the wrong order, rows of another width."""
    with pytest.raises(TypeError, match=r"`base` of IntervalCensored .* Normal.* got Poisson"):
        ss.IntervalCensored(dist.Poisson(1.0))
    with pytest.raises(TypeError, match=r"got Independent; apply `to_event` outside"):
        ss.IntervalCensored(dist.Normal(jnp.zeros(2)).to_event(1))
    method = ss.ParticleFilter(particles=50)
    bad = ROWS.copy()
    bad[3, :2] = [1.0, -1.0]
    with pytest.raises(ValueError, match=r"columns 0 and 1 of row 3 are 1 and -1"):
        ss.log_likelihood(censored_model(), bad, method=method, key=key)
    with pytest.raises(ValueError, match=r"data have 2 channels.*values of shape \(2, 2\)"):
        ss.log_likelihood(censored_model(), ROWS[:, :2], method=method, key=key)
