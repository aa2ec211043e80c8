"""Gibbs sampling of a jump process against conjugate laws, exact expectations and grids."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from compilations import compilations
from numpyro.diagnostics import effective_sample_size
from scipy import stats
from scipy.special import gammaln

import statespace as ss
import statespace.emissions
from statespace.chains.finite.jumps import sample_between
from statespace.conditionals.generators import expected_statistics, generator_of
from statespace.learners.rate_priors import Rates, numbered_pairs

RATES = np.array([[0.0, 1.5, 0.2], [0.4, 0.0, 0.8], [2.0, 0.3, 0.0]])
Q = generator_of(jnp.asarray(RATES))
NAME = "transition.rates"


def test_paths_between_given_ends():
    """Mean times and jumps of many draws against the exact expectations, for each interval by itself."""
    cases = [(0.5, 0, 2), (3.0, 1, 1), (0.05, 2, 1), (0.0, 1, 1)]
    many = jax.jit(
        jax.vmap(
            lambda q, dt, a, b, k: sample_between(q, dt, a, b, k, 40), (None, None, None, None, 0)
        )
    )
    for i, (dt, a, b) in enumerate(cases):
        keys = jax.random.split(jax.random.key(i), 4000)
        found = many(Q, jnp.array([dt]), jnp.array([a]), jnp.array([b]), keys)
        assert float(found.missed.max()) < 1e-9
        pairs = jnp.zeros((1, 3, 3)).at[0, a, b].set(1)
        exact = expected_statistics(Q, jnp.array([dt]), pairs)
        for draws, mean in zip(found.statistics, exact):
            error = np.asarray(draws).std(axis=0) / np.sqrt(4000)
            assert np.all(np.abs(np.asarray(draws).mean(axis=0) - mean) <= 4.5 * error + 1e-3)
        np.testing.assert_allclose(found.statistics.dwell.sum(axis=1), dt, atol=1e-12)
        into = found.statistics.jumps.sum(axis=1) - found.statistics.jumps.sum(axis=2)
        np.testing.assert_array_equal(into, np.broadcast_to(np.eye(3)[b] - np.eye(3)[a], (4000, 3)))


def test_too_little_room_is_noticed():
    q = generator_of(jnp.asarray([[0.0, 50.0], [50.0, 0.0]]))
    args = jnp.array([1.0]), jnp.array([0]), jnp.array([1]), jax.random.key(0)
    assert sample_between(q, *args, 30).missed > 0.5
    assert sample_between(q, *args, 150).missed < 1e-9


def test_conjugate_where_nothing_is_hidden():
    """States seen so often that the path is known: the posterior is Gamma(a + jumps, b + time)."""
    model = ss.MarkovJumpProcess(RATES)
    path = model.sample_paths(10.0, key=jax.random.key(0))
    times = np.linspace(0, 10, 2001)
    series = ss.Series(np.asarray(path.at(times))[0].astype(float), times=times)
    dwell, jumps = (np.asarray(v)[0] for v in path.statistics())
    learner = ss.JumpGibbs(warmup=20, samples=400, chains=2)
    prior = {NAME: dist.Gamma(1.5, 2.0)}
    fit = ss.fit(model, series, learner=learner, priors=prior, key=jax.random.key(1))
    assert fit.converged, fit.reason
    for e, (i, j) in enumerate(model.transition.edges):
        exact = stats.gamma(1.5 + jumps[i, j], scale=1 / (2.0 + dwell[i]))
        draws = fit.draws[NAME][..., e]
        # what happens within 0.005 is not seen: less than a percent of the jumps
        assert abs(draws.mean() - exact.mean()) < 4 * exact.std() / np.sqrt(draws.size) + 0.01
        np.testing.assert_allclose(draws.std(), exact.std(), rtol=0.15)


@pytest.fixture(scope="module")
def flipping():
    """A process of two states, seen with noise at irregular moments; posterior weights on a grid."""
    model = ss.MarkovJumpProcess(
        [[0.0, 1.0], [1.0, 0.0]], ss.emissions.Gaussian([0.0, 1.0], [0.25, 0.25])
    )
    model = ss.freeze(model, "emission")
    times = np.sort(np.random.default_rng(0).uniform(0, 30, 80))
    truth = ss.replace(model, {NAME: jnp.array([0.8, 1.6])})
    runs = [ss.simulate(truth, 80, times=times, key=jax.random.key(k)).y for k in range(2)]
    data = [ss.Series(runs[0], times=times), ss.Series(runs[1][:50], times=times[:50])]
    grid = np.exp(np.linspace(np.log(0.05), np.log(20), 45))
    a, b = (v.ravel() for v in np.meshgrid(grid, grid, indexing="ij"))
    value = lambda a, b: ss.log_likelihood(ss.replace(model, {NAME: jnp.stack([a, b])}), data)
    logs = np.array(jax.jit(jax.vmap(value))(jnp.asarray(a), jnp.asarray(b)))
    logs += sum(stats.gamma(2.0).logpdf(v) + np.log(v) for v in (a, b))
    weights = np.exp(logs - logs.max())
    return model, data, np.stack([a, b], axis=1), weights / weights.sum()


@pytest.mark.filterwarnings("ignore::statespace.learners.result.ConvergenceWarning")
def test_gibbs_and_nuts_have_the_posterior_of_the_grid(flipping):
    model, data, points, weights = flipping
    mean = weights @ points
    sd = np.sqrt(weights @ (points - mean) ** 2)
    priors = {NAME: dist.Gamma(2.0, 1.0)}
    for learner in (
        ss.JumpGibbs(warmup=100, samples=600, chains=2),
        ss.NUTS(warmup=150, samples=250, chains=2),
    ):
        fit = ss.fit(model, data, learner=learner, priors=priors, key=jax.random.key(2))
        draws = fit.draws[NAME]
        error = sd / np.sqrt(fit.effective[NAME])
        assert np.all(np.abs(draws.mean(axis=(0, 1)) - mean) < 4 * error)
        np.testing.assert_allclose(draws.std(axis=(0, 1)), sd, rtol=0.2)
        assert np.all(fit.r_hat[NAME] < 1.03)


def test_result(flipping):
    model, data, _, _ = flipping
    learner = ss.JumpGibbs(warmup=10, samples=60, chains=2)
    call = {"learner": learner, "priors": {NAME: dist.Gamma(2.0, 1.0)}, "key": jax.random.key(3)}
    with pytest.warns(ss.ConvergenceWarning):
        fit = ss.fit(model, data, **call)
    with compilations() as events, pytest.warns(ss.ConvergenceWarning):
        again = ss.fit(model, data, **call)
    assert events == []
    np.testing.assert_array_equal(again.draws[NAME], fit.draws[NAME])
    np.testing.assert_allclose(fit.parameters[NAME], fit.draws[NAME].mean(axis=(0, 1)), rtol=1e-12)
    rates = jnp.asarray(fit.draws[NAME][1, 7])
    value = ss.log_likelihood(ss.replace(model, {NAME: rates}), data)
    expected = float(value) + stats.gamma(2.0).logpdf(rates).sum()
    np.testing.assert_allclose(fit.statistics["lp"][1, 7], expected, rtol=1e-9)
    np.testing.assert_allclose(fit.pointwise()[1, 7].sum(), value, rtol=1e-9)
    tree = fit.to_arviz()
    assert tree["posterior"][NAME].shape == (2, 60, 2)
    assert "2 chains × 60 draws" in fit.summary()


@pytest.mark.parametrize("sparse", [True, False])
def test_hierarchical_prior_given_paths(sparse):
    """Rates, links and law of the rates against their posterior on a grid of the law, at known jumps."""
    edges = ((0, 1), (1, 0), (0, 2), (2, 0), (1, 2), (2, 1))
    jumps = jnp.array([3.0, 0.0, 0.0, 0.0, 7.0, 1.0])
    dwell = jnp.array([2.0, 1.5, 2.0, 4.0, 1.5, 4.0])
    prior = ss.HierarchicalGamma(sparse=sparse, mean=1.0, mean_spread=1.0).centred(dwell)
    pairs = numbered_pairs(edges)

    @jax.jit
    def run(key):
        step = lambda r, k: (lambda new: (new, new))(prior.update(r, jumps, dwell, pairs, k))
        return jax.lax.scan(step, prior.begin(jnp.ones(6)), jax.random.split(key, 40_000))[1]

    draws: Rates = run(jax.random.key(0))
    kept = np.asarray(draws.values)[500:]

    la, lm = (g[..., None] for g in np.meshgrid(np.linspace(-4, 4, 81), np.linspace(-4, 4, 81)))
    a, b = np.exp(la), np.exp(la - lm)
    n, r = np.asarray(jumps), np.asarray(dwell)
    each = gammaln(a + n) - gammaln(a) + a * np.log(b) - (a + n) * np.log(b + r)
    log_law = -0.5 * (la**2 + lm**2)[..., 0]
    if sparse:
        total, mean = 0.0, 0.0
        for link in np.linspace(0.005, 0.995, 100):
            weight, inside = np.exp(log_law), []
            for p in range(3):
                both = link * np.exp(each[..., pairs == p].sum(-1))
                none = (1 - link) * (n[pairs == p].sum() == 0)
                weight, inside = weight * (both + none), [*inside, both / (both + none)]
            expected = np.stack(inside, -1)[..., pairs] * (a + n) / (b + r)
            total, mean = total + weight.sum(), mean + np.einsum("ij,ije->e", weight, expected)
        mean = mean / total
        assert np.all((kept[:, 2] == 0) == (kept[:, 3] == 0))
        assert np.all(kept[:, [0, 1, 4, 5]] > 0)
    else:
        weight = np.exp(log_law + each.sum(-1))
        mean = np.einsum("ij,ije->e", weight, (a + n) / (b + r)) / weight.sum()
    error = kept.std(axis=0) / np.sqrt(len(kept) / 20)  # successive draws are alike
    assert np.all(np.abs(kept.mean(axis=0) - mean) < 4 * error)


@pytest.mark.slow
def test_where_nothing_is_seen_the_prior_is_drawn():
    """Observations that are the same in all states: links, rates and their law have their prior."""
    model = ss.MarkovJumpProcess(np.ones((3, 3)), ss.emissions.Gaussian(np.zeros(3), np.ones(3)))
    series = ss.Series(np.zeros(6), times=[0.0, 0.3, 0.5, 1.2, 1.3, 2.0])
    prior = ss.HierarchicalGamma(shape=2.0, shape_spread=0.4, mean=1.0, mean_spread=0.5)
    fit = ss.fit(
        ss.freeze(model, "emission"),
        series,
        learner=ss.JumpGibbs(warmup=100, samples=1500, chains=4),
        priors={NAME: prior},
        key=jax.random.key(5),
    )
    drawn = {k: np.asarray(v) for k, v in fit.statistics.items()}
    rates = fit.draws[NAME]
    for values, mean in (
        (np.log(drawn["rate_shape"]), np.log(2.0)),
        (np.log(drawn["rate_mean"]), 0.0),
        (np.log(drawn["rate_shape"]) ** 2, np.log(2.0) ** 2 + 0.4**2),
        (np.log(drawn["rate_mean"]) ** 2, 0.5**2),
        (drawn["linked"], 0.5),
        (drawn["linked"] ** 2, 0.5 * (1 / 9 + 4 / 9 + 1) / 2),  # 0 … 3 links, equally likely
        (rates.mean(axis=-1), 0.5 * np.exp(0.5**2 / 2)),
    ):
        error = values.std() / np.sqrt(effective_sample_size(values))
        assert abs(values.mean() - mean) < 4 * error


@pytest.mark.filterwarnings("ignore::statespace.learners.result.ConvergenceWarning")
def test_sparse_prior_finds_the_links():
    """A ring of four states among all twelve jumps: the rates across are put to zero."""
    ring = np.roll(np.eye(4), 1, axis=1)
    truth = ss.MarkovJumpProcess(2 * ring + ring.T)
    times = np.linspace(0, 60, 1201)
    y = np.asarray(truth.sample_paths(60.0, key=jax.random.key(0)).at(times))[0]
    start = ss.MarkovJumpProcess(np.ones((4, 4)))
    learner = ss.JumpGibbs(warmup=50, samples=200, chains=2)
    prior = {NAME: ss.HierarchicalGamma()}
    fit = ss.fit(
        start,
        ss.Series(y.astype(float), times=times),
        learner=learner,
        priors=prior,
        key=jax.random.key(1),
    )
    linked = (fit.draws[NAME] > 0).mean(axis=(0, 1))
    for (i, j), share in zip(start.transition.edges, linked):
        assert share > 0.99 if (i - j) % 2 else share < 0.3
    assert set(fit.statistics) == {"lp", "rate_shape", "rate_mean", "linked", "diverging"}
    assert np.isfinite(fit.log_likelihood)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"key": None}, ValueError, "give `fit` a `key`"),
        ({"priors": None}, ValueError, "needs a prior for 'transition.rates'"),
        ({"priors": {NAME: dist.LogNormal(0.0, 1.0)}}, TypeError, "NumPyro Gamma .* got LogNormal"),
        (
            {"model": ss.MarkovJumpProcess(RATES, initial_probs=np.ones(3) / 3)},
            ValueError,
            r"\['initial_probs'\] are free",
        ),
        (
            {
                "model": ss.HMM(
                    np.ones(3) / 3, np.ones((3, 3)) / 3, ss.emissions.Categorical(np.eye(3))
                )
            },
            TypeError,
            "the `transition` of the model, got FiniteKernel",
        ),
        ({"model": ss.freeze(ss.MarkovJumpProcess(RATES), NAME)}, ValueError, "is frozen"),
    ],
)
def test_refused(change, error, message):
    call = {"model": ss.MarkovJumpProcess(RATES), "priors": {NAME: dist.Gamma(1.0, 1.0)}} | change
    call = {"key": jax.random.key(0)} | call
    with pytest.raises(error, match=message):
        ss.fit(call.pop("model"), [0.0, 1.0, 1.0], learner=ss.JumpGibbs(), **call)


@pytest.mark.parametrize(
    "setting", [{"chains": 0}, {"samples": 1}, {"spread": -1.0}, {"warmup": -1}]
)
def test_settings(setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        ss.JumpGibbs(**setting)


@pytest.mark.parametrize("setting", [{"shape": 0.0}, {"mean": -1.0}, {"mean_spread": 0.0}])
def test_settings_of_the_prior(setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        ss.HierarchicalGamma(**setting)
