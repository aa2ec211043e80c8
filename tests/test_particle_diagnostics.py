"""Diagnostics of particle runs: against replicates, known tails, and by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import statespace as ss

model = ss.Model(
    ss.Gaussian([0.0], [1.0]),
    ss.AffineGaussian([[0.9]], scale=[0.5]),
    ss.AffineGaussian([[1.0]], scale=[0.5]),
)
y = np.array([0.3, 1.0, 0.2, -0.5, 0.1])
method = ss.ParticleFilter(20, resampling="multinomial", threshold=1.0)
posterior = ss.filter(model, y, method=method, key=jax.random.key(0))


def test_variance_from_one_run_against_replicates():
    """``E[Z^2 V] = Var[Z]``: its mean over 2,000 runs is the variance between them (Lee & Whiteley 2018)."""
    run = lambda key: ss.filter(model, y, method=method, key=key)
    many = jax.vmap(run)(jax.random.split(jax.random.key(1), 2000))
    ratio = np.exp(np.asarray(many.log_likelihood) - float(ss.log_likelihood(model, y)))
    host = jax.tree.map(np.asarray, many)
    each = [
        ss.diagnostics.variance_of_log_likelihood(jax.tree.map(lambda x, i=i: x[i], host))
        for i in range(2000)
    ]
    # the mean of Z is known, 1: both sides by the same replicates
    difference = ratio**2 * np.asarray(each) - (ratio - 1) ** 2
    assert abs(difference.mean()) < 5 * difference.std() / np.sqrt(2000)
    assert 0.5 < np.mean(each) / ratio.var() < 2


def test_lineages_by_hand():
    """Ancestors of ancestors, one moment after the other."""
    found = ss.diagnostics.lineages(posterior)
    ancestors = np.asarray(posterior.ancestors)
    line = 7
    for t in range(4, 0, -1):
        assert found[t, 7] == line
        line = ancestors[t, line]
    assert found[0, 7] == line
    unique = ss.diagnostics.unique_ancestors(posterior)
    assert unique[-1] == 20
    assert np.all(np.diff(unique) >= 0)


@pytest.mark.parametrize("shape", [0.2, 0.5, 0.9])
def test_pareto_k_of_known_tails(shape):
    """The shape of 20,000 draws of a generalised Pareto law, within what 425 of them tell."""
    draws = scipy.stats.genpareto(shape).rvs(size=(20, 20_000), random_state=1)
    found = ss.diagnostics.pareto_k(np.log(draws))
    # the standard error of a shape from n exceedances is (1 + k) / sqrt(n)
    error = (1 + shape) / np.sqrt(425 * 20)
    assert abs(found.mean() - shape) < 5 * error + 0.01


def test_pareto_k_without_a_tail():
    """Equal weights have none, and of few nothing is said."""
    assert ss.diagnostics.pareto_k(np.zeros(100)) == -np.inf
    assert np.isnan(ss.diagnostics.pareto_k(np.zeros(20)))


def test_report():
    """It says what was found, and how many particles Metropolis moves want."""
    report = ss.diagnostics.particle_report(posterior)
    assert report.particles == 20
    assert report.resampled == 0.8
    text = str(report)
    assert "variance of the log likelihood" in text
    few = ss.ParticleFilter(12, resampling="multinomial", threshold=1.0)
    narrow = ss.Model(model.initial, model.transition, ss.AffineGaussian([[1.0]], scale=[0.02]))
    bad = ss.filter(narrow, y, method=few, key=jax.random.key(0))
    assert "Few first ancestors are left" in str(ss.diagnostics.particle_report(bad))


def test_bad_input():
    """Messages say what is looked at."""
    with pytest.raises(TypeError, match="got GaussianPosterior"):
        ss.diagnostics.particle_report(ss.filter(model, y))
    paths = ss.smooth(model, y, method=method, key=jax.random.key(0))
    with pytest.raises(ValueError, match="holds no ancestors"):
        ss.diagnostics.lineages(paths)


def test_pictures():
    """Each panel shows its numbers."""
    pytest.importorskip("matplotlib")
    made = ss.plot.particles(posterior)
    np.testing.assert_allclose(made[0].lines[0].get_ydata(), posterior.ess)
    assert made[1].lines[0].get_ydata()[-1] == 20
    (ax,) = np.atleast_1d(ss.plot.filtered(posterior))
    np.testing.assert_allclose(ax.lines[0].get_ydata(), posterior.mean[:, 0])
    rates = np.linspace(0.2, 1, 5)
    np.testing.assert_allclose(ss.plot.update_rates(rates).lines[0].get_ydata(), rates)
    with pytest.raises(ValueError, match="no update rates"):
        ss.plot.update_rates(None)
    made = ss.forecast(model, y, 3, method=method, key=jax.random.key(0))
    assert ss.plot.forecast(made, y) is not None
    assert jnp.all(made.std > 0)
