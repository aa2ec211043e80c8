"""NUTS against the exact posterior on a grid."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from compilations import compilations
from scipy import stats

import statespace as ss

PRIORS = {"level_scale": dist.HalfNormal(2.0), "noise_scale": dist.LogNormal(0.0, 0.7)}


@pytest.fixture(scope="module")
def y():
    rng = np.random.default_rng(4)
    y = np.cumsum(rng.normal(size=60)) + 1.5 * rng.normal(size=60)
    y[20:25] = np.nan
    return y


def local_level(level=1.0, noise=1.0):
    return ss.LocalLevel(level_scale=level, noise_scale=noise)


@pytest.fixture(scope="module")
def result(y):
    learner = ss.NUTS(warmup=400, samples=1000, chains=4)
    return ss.fit(local_level(), y, learner=learner, priors=PRIORS, key=jax.random.key(0))


@pytest.fixture(scope="module")
def grid(y):
    """Posterior weights over a grid of the two scales."""
    level, noise = np.meshgrid(np.linspace(0.02, 4, 80), np.linspace(0.2, 4, 80), indexing="ij")
    each = jax.vmap(lambda a, b: ss.log_likelihood(local_level(a, b), y))
    density = np.asarray(each(jnp.asarray(level.ravel()), jnp.asarray(noise.ravel())))
    density = density + stats.halfnorm(scale=2).logpdf(level.ravel())
    density += stats.lognorm(0.7).logpdf(noise.ravel())
    weights = np.exp(density - density.max())
    return level.ravel(), noise.ravel(), weights / weights.sum()


def test_moments_are_those_of_the_grid(result, grid):
    """Within four Monte Carlo standard errors of the exact posterior mean; the spread within 10 %."""
    level, noise, weights = grid
    for name, points in (("level_scale", level), ("noise_scale", noise)):
        mean = weights @ points
        sd = np.sqrt(weights @ (points - mean) ** 2)
        error = sd / np.sqrt(result.effective[name])
        assert abs(result.draws[name].mean() - mean) < 4 * error
        np.testing.assert_allclose(result.standard_errors[name], sd, rtol=0.1)
        below = weights[points <= mean].sum()
        share = np.mean(result.draws[name] <= mean)
        assert abs(share - below) < 4 * 0.5 / np.sqrt(result.effective[name]) + 0.02  # grid step
    correlation = np.corrcoef(*(result.draws[k].ravel() for k in PRIORS))[0, 1]
    ma, mb = weights @ level, weights @ noise
    exact = weights @ ((level - ma) * (noise - mb))
    exact /= np.sqrt((weights @ (level - ma) ** 2) * (weights @ (noise - mb) ** 2))
    assert abs(correlation - exact) < 0.1


def test_diagnostics(result):
    assert result.converged, result.reason
    assert all(r < 1.01 for r in result.r_hat.values())
    assert result.draws["level_scale"].shape == (4, 1000)
    assert not result.statistics["diverging"].any()
    text = result.summary()
    assert "R-hat" in text
    assert "4 chains × 1000 draws" in text
    lower, upper = result.interval(0.9)["noise_scale"]
    assert np.mean(
        (result.draws["noise_scale"] > lower) & (result.draws["noise_scale"] < upper)
    ) == (pytest.approx(0.9, abs=0.01))


def test_arviz(result, y):
    data = result.to_arviz()
    assert data["posterior"]["level_scale"].shape == (4, 1000)
    assert data["log_likelihood"]["y"].shape == (4, 1000, 60)
    np.testing.assert_array_equal(np.asarray(data["observed_data"]["y"])[:, 0], y)
    assert "diverging" in data["sample_stats"]
    total = data["log_likelihood"]["y"].values[1, 7].sum()
    at = {k: float(v[1, 7]) for k, v in result.draws.items()}
    expected = ss.log_likelihood(local_level(at["level_scale"], at["noise_scale"]), y)
    np.testing.assert_allclose(total, expected, rtol=1e-9)


def test_the_sampled_density_counts_the_jacobian(result, y):
    """lp = log likelihood + log prior + log of the scales (d scale / d log scale)."""
    a, b = (result.draws[k][2, 5] for k in PRIORS)
    expected = ss.log_likelihood(local_level(a, b), y) + np.log(a) + np.log(b)
    expected += stats.halfnorm(scale=2).logpdf(a) + stats.lognorm(0.7).logpdf(b)
    np.testing.assert_allclose(result.statistics["lp"][2, 5], expected, rtol=1e-9)


def test_same_key_same_draws_and_nothing_compiled(result, y):
    learner = ss.NUTS(warmup=400, samples=60, chains=4)
    call = {"learner": learner, "priors": PRIORS, "key": jax.random.key(0)}
    with pytest.warns(ss.ConvergenceWarning):
        ss.fit(local_level(), y, **call)
    with compilations() as events, pytest.warns(ss.ConvergenceWarning):
        again = ss.fit(local_level(), y, **call)
    np.testing.assert_array_equal(again.draws["level_scale"], result.draws["level_scale"][:, :60])
    assert events == []


@pytest.mark.filterwarnings("ignore::statespace.learners.result.ConvergenceWarning")
def test_panel_freezing_and_warm_start(y):
    start = ss.freeze(local_level(1.0, 1.5), "noise_scale")
    best = ss.fit(start, [y[:20], y[25:]])
    prior = {"level_scale": dist.HalfNormal(2.0)}
    learner = ss.NUTS(warmup=200, samples=300, chains=2)
    drawn = ss.fit(best, [y[:20], y[25:]], learner=learner, priors=prior, key=jax.random.key(1))
    assert list(drawn.draws) == ["level_scale"]
    assert drawn.parameters["noise_scale"] == 1.5
    points = np.linspace(0.01, 6, 600)
    data = [ss.Series(y[:20]), ss.Series(y[25:])]
    each = jax.vmap(lambda a: sum(ss.log_likelihood(local_level(a, 1.5), s) for s in data))
    density = np.asarray(each(jnp.asarray(points))) + stats.halfnorm(scale=2).logpdf(points)
    weights = np.exp(density - density.max())
    mean = weights @ points / weights.sum()
    sd = np.sqrt(weights @ (points - mean) ** 2 / weights.sum())
    error = sd / np.sqrt(drawn.effective["level_scale"])
    assert abs(drawn.draws["level_scale"].mean() - mean) < 4 * error
    assert drawn.to_arviz()["log_likelihood"]["y"].shape == (2, 300, 2, 35)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"key": None}, "give `fit` a `key`"),
        ({"priors": None}, r"NUTS needs a prior .*\['level_scale', 'noise_scale'\] have none"),
        ({"priors": PRIORS | {"level_scale": dist.Normal(0, 1)}}, "reaches outside"),
    ],
)
def test_refused(y, change, message):
    call = {"learner": ss.NUTS(), "priors": PRIORS, "key": jax.random.key(0)} | change
    with pytest.raises(ValueError, match=message):
        ss.fit(local_level(), y, **call)


@pytest.mark.parametrize("setting", [{"chains": 0}, {"target_accept": 1.0}, {"samples": 1}])
def test_settings(setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        ss.NUTS(**setting)
