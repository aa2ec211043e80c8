"""Gaussian sums for switching models: against sums over all paths of regimes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.special
import scipy.stats
from switching_paths import ARRAYS, EXACT, MODEL, K, N, T, Y, mixture, of, summed

import statespace as ss
from statespace.chains.gaussian.mixtures import Components, collapse, mixture_moments, similar
from statespace.learners.likelihood import standardised_errors
from statespace.series import as_series

ALL = ss.GaussianSum(K**T)
merge = jax.jit(similar, static_argnums=(1, 2))
FILTERED = ss.filter(MODEL, Y, method=ALL)
SMOOTHED = ss.smooth(MODEL, Y, method=ALL)


def check(posterior, want, t=slice(None)):
    total, probs, mean, covariance = want
    np.testing.assert_allclose(posterior.log_likelihood, total, rtol=1e-12)
    np.testing.assert_allclose(posterior.probs[t], probs[t], atol=1e-9)
    np.testing.assert_allclose(posterior.mean[t], mean[t], atol=1e-9)
    np.testing.assert_allclose(posterior.covariance[t], covariance[t], atol=1e-9)


def test_filter_is_exact_while_no_components_are_merged():
    check(FILTERED, EXACT, -1)
    until = summed(np.where(np.arange(T) < 4, Y, np.nan))
    np.testing.assert_allclose(FILTERED.pointwise[:4].sum(), until[0], rtol=1e-12)
    np.testing.assert_allclose(FILTERED.mean[3], until[2][3], atol=1e-9)
    assert (np.isfinite(FILTERED.log_weights).sum(axis=1) == K ** np.arange(1, T + 1)).all()


def test_smoother_is_exact_while_no_components_are_merged():
    check(SMOOTHED, EXACT)


def test_likelihood_until_the_first_merging_is_exact():
    """With one component a regime the first two moments are."""
    merged = ss.filter(MODEL, Y, method=ss.GaussianSum(K)).pointwise
    np.testing.assert_allclose(merged[:2], FILTERED.pointwise[:2], rtol=1e-12)


def test_more_components_are_closer():
    sizes = (2, 4, 8)
    values = [ss.log_likelihood(MODEL, Y, method=ss.GaussianSum(size)) for size in sizes]
    errors = np.abs(np.array(values) - EXACT[0])
    assert (np.diff(errors) < 0).all()
    assert errors[0] < 0.05
    assert errors[2] < 5e-4
    smoothed = ss.smooth(MODEL, Y, method=ss.GaussianSum(8))
    np.testing.assert_allclose(smoothed.mean, EXACT[2], atol=5e-3)
    np.testing.assert_allclose(smoothed.probs, EXACT[1], atol=5e-3)


def test_one_component_a_regime_is_the_filter_of_kim():
    """Kim's (1994) recursion written down with loops."""
    mean = [of("initial_mean", k) for k in range(K)]
    law = [np.diag(of("initial_scale", k) ** 2) for k in range(K)]
    weight = np.array(ARRAYS["initial_probs"])
    moves = np.array(ARRAYS["transition"])
    total = 0.0
    for t, y in enumerate(Y):
        pairs = []
        for i in range(K):
            for k in range(K):
                if t == 0:
                    if i != k:
                        continue
                    m, p, w = mean[k], law[k], weight[k]
                else:
                    f = of("matrix", k)
                    m = f @ mean[i] + of("offset", k)
                    p = f @ law[i] @ f.T + np.diag(of("scale", k) ** 2)
                    w = weight[i] * moves[i, k]
                if not np.isnan(y):
                    h = of("observation_matrix", k)
                    s = h @ p @ h.T + np.diag(of("observation_scale", k) ** 2)
                    e = y - h @ m - of("observation_offset", k)
                    w = w * scipy.stats.norm(0, np.sqrt(s[0, 0])).pdf(e[0])
                    gain = p @ h.T / s
                    m, p = m + gain @ e, p - gain @ h @ p
                pairs.append((k, w, m, p))
        evidence = sum(w for _, w, _, _ in pairs)
        total += np.log(evidence)
        for k in range(K):
            own = [(w / evidence, m, p) for r, w, m, p in pairs if r == k]
            weight[k] = sum(w for w, _, _ in own)
            mean[k] = sum(w * m for w, m, _ in own) / weight[k]
            spread = sum(w * (p + np.outer(m - mean[k], m - mean[k])) for w, m, p in own)
            law[k] = spread / weight[k]
    got = ss.filter(MODEL, Y, method=ss.GaussianSum(K))
    np.testing.assert_allclose(got.log_likelihood, total, rtol=1e-12)
    np.testing.assert_allclose(got.probs[-1], weight, atol=1e-12)
    np.testing.assert_allclose(got.means[-1], mean, atol=1e-12)
    np.testing.assert_allclose(got.covariances[-1], law, atol=1e-12)


@pytest.mark.parametrize("form", ["covariance", "sqrt"])
def test_merging_keeps_moments_and_chooses_the_most_alike(form):
    """The one pair to go is that of the least bound, by trying all."""
    rng = np.random.default_rng(1)
    m, n = 7, 2
    weights = rng.dirichlet(np.ones(m))
    means = rng.normal(size=(m, n)) * 3
    roots = rng.normal(size=(m, n, n))
    laws = roots @ roots.swapaxes(1, 2) + 0.1 * np.eye(n)
    regime = np.array([0, 0, 1, 1, 0, 1, 0])
    log_det = lambda p: np.linalg.slogdet(p)[1]
    bound = {}
    for i in range(m):
        for j in range(i):
            if regime[i] == regime[j]:
                w = weights[[i, j]]
                _, both = mixture_moments(w / w.sum(), means[[i, j]], laws[[i, j]])
                own = w @ [log_det(laws[i]), log_det(laws[j])]
                bound[i, j] = w.sum() * log_det(both) - own
    spread = laws if form == "covariance" else np.linalg.cholesky(laws)
    given = Components(*map(jnp.asarray, (regime, means, spread, np.log(weights))))
    group = np.asarray(merge(given, m - 1, form))
    i, j = min(bound, key=bound.get)
    assert group[i] == group[j]
    assert len(set(group.tolist())) == m - 1
    for count in (4, 2):
        group = merge(given, count, form)
        made = collapse(given, group, count, form)
        law = made.spread if form == "covariance" else made.spread @ made.spread.swapaxes(1, 2)
        np.testing.assert_allclose(
            mixture_moments(jnp.exp(made.log_weights), made.mean, law)[1],
            mixture_moments(weights, means, laws)[1],
            atol=1e-12,
        )
        assert all(len(set(regime[np.asarray(group) == g])) == 1 for g in range(count))
    np.testing.assert_allclose(np.exp(made.log_weights).sum(), 1, rtol=1e-12)


def test_what_weighs_nothing_is_merged_first():
    weights = jnp.log(jnp.array([0.5, 0.0, 0.3, 0.2, 0.0]))
    means = jnp.array([[0.0], [9.0], [1e-3], [0.0], [0.0]])
    given = Components(jnp.array([0, 1, 0, 0, 1]), means, jnp.ones((5, 1, 1)), weights)
    group = np.asarray(merge(given, 3, "covariance"))
    assert len({group[0], group[2], group[3]}) == 3


def test_draws_are_joint_and_from_their_law(key):
    """20,000 draws: how often each of the 64 paths of regimes, and the states along them."""
    draws = 20_000
    regime, state = map(np.asarray, ss.sample_states(MODEL, Y, key=key, draws=draws, method=ALL))
    assert regime.shape == (draws, T)
    assert state.shape == (draws, T, N)
    _, logs, means, covariances = mixture(Y)
    want = scipy.special.softmax(logs)
    numbers = regime @ 2 ** np.arange(T)[::-1]
    share = np.bincount(numbers, minlength=64) / draws
    assert np.all(np.abs(share - want) < 5 * np.sqrt(want * (1 - want) / draws) + 1e-12)
    best = want.argmax()
    own = state[numbers == best] - means[best]
    deviation = np.sqrt(np.diagonal(covariances[best], axis1=1, axis2=2))
    assert np.all(np.abs(own.mean(axis=0)) < 5 * deviation / np.sqrt(len(own)))
    np.testing.assert_allclose(own.std(axis=0), deviation, rtol=0.1)
    # of a filtered law draws are independent from moment to moment
    each = FILTERED.sample(key, 4000)
    error = np.asarray(each.state).mean(axis=0) - FILTERED.mean
    assert np.all(np.abs(error) < 5 * np.asarray(FILTERED.std) / np.sqrt(4000))


def ahead():
    """Weights, means and variances of the observation at the two moments after the data, path by path."""
    longer = np.concatenate([Y, [np.nan, np.nan]])
    paths, logs, means, covariances = mixture(longer)
    h = np.array([of("observation_matrix", k)[0] for k in range(K)])[paths[:, T:]]
    d = np.array([of("observation_offset", k)[0] for k in range(K)])[paths[:, T:]]
    r = np.array([of("observation_scale", k)[0] for k in range(K)])[paths[:, T:]]
    mean = np.einsum("ptn,ptn->pt", h, means[:, T:]) + d
    variance = np.einsum("pti,ptij,ptj->pt", h, covariances[:, T:], h) + r**2
    return scipy.special.softmax(logs), mean, variance


@pytest.mark.slow
def test_forecast_is_the_mixture_over_paths(key):
    method = ss.GaussianSum(K ** (T + 2))
    got = ss.forecast(MODEL, Y, 2, method=method)
    low, high = got.interval(0.8)
    table = got.to_pandas(0.8)
    assert list(table["y"].columns) == ["mean", "std", "lower", "upper"]
    np.testing.assert_array_equal(table["y"], np.hstack([got.mean, got.std, low, high]))
    paths = got.to_arviz(key, 3)["predictions"]["y"]
    np.testing.assert_array_equal(paths[0], got.sample(key, 3))
    w, mean, variance = ahead()
    centre = w @ mean
    np.testing.assert_allclose(got.mean[:, 0], centre, atol=1e-9)
    np.testing.assert_allclose(got.std[:, 0] ** 2, w @ (variance + (mean - centre) ** 2), atol=1e-9)
    for q in (0.05, 0.6):
        x = got.quantile(q)[:, 0]
        reached = w @ scipy.stats.norm(mean, np.sqrt(variance)).cdf(np.asarray(x))
        np.testing.assert_allclose(reached, q, atol=1e-9)
    came = np.array([[0.7], [-0.4]])
    density = w @ scipy.stats.norm(mean, np.sqrt(variance)).pdf(came[:, 0])
    np.testing.assert_allclose(got.log_scores(came), np.log(density), atol=1e-9)
    draws = np.asarray(got.sample(key, 20_000))[..., 0]
    assert np.all(np.abs(draws.mean(axis=0) - centre) < 5 * np.asarray(got.std[:, 0]) / 141)


def test_errors_are_normal_deviates_of_the_mixtures():
    errors = np.asarray(standardised_errors(MODEL, as_series(Y), ALL))[:, 0]
    for t in (0, 1, 4):
        before = np.where(np.arange(t + 1) < t, Y[: t + 1], np.nan)
        if t == 0:
            w = np.array(ARRAYS["initial_probs"])
            means = np.array([of("initial_mean", k) for k in range(K)])
            laws = np.array([np.diag(of("initial_scale", k) ** 2) for k in range(K)])
            last = np.arange(K)
        else:
            paths, logs, means, laws = mixture(before)
            w, last = scipy.special.softmax(logs), paths[:, -1]
            means, laws = means[:, -1], laws[:, -1]
        h = np.array([of("observation_matrix", k)[0] for k in range(K)])[last]
        centre = np.einsum("pn,pn->p", h, means)
        centre += np.array([of("observation_offset", k)[0] for k in range(K)])[last]
        variance = np.einsum("pi,pij,pj->p", h, laws, h)
        variance += np.array([of("observation_scale", k)[0] ** 2 for k in range(K)])[last]
        below = w @ scipy.stats.norm(centre, np.sqrt(variance)).cdf(Y[t])
        np.testing.assert_allclose(errors[t], scipy.stats.norm.ppf(below), atol=1e-9)
    assert np.isnan(errors[2])


def with_noise(scale):
    return ss.SwitchingLinearGaussian(**ARRAYS | {"observation_scale": [[scale], [0.5]]})


def test_gradient_and_fit():
    """The score against the exact likelihood's differences, and the maximum against a search over it."""
    score = jax.jit(
        jax.grad(lambda s: ss.log_likelihood(with_noise(s), jnp.asarray(Y), method=ALL))
    )
    exact = lambda s: summed(Y, ARRAYS | {"observation_scale": [[s], [0.5]]})[0]
    slope = (exact(0.3 + 1e-5) - exact(0.3 - 1e-5)) / 2e-5
    np.testing.assert_allclose(score(0.3), slope, rtol=1e-6)
    merged = ss.GaussianSum(4)
    value = lambda s: ss.log_likelihood(with_noise(s), jnp.asarray(Y), method=merged)
    found, slope = jax.jit(jax.value_and_grad(value))(0.3)
    ends = jax.jit(jax.vmap(value))(jnp.array([0.3 + 1e-5, 0.3 - 1e-5]))
    np.testing.assert_allclose(slope, (ends[0] - ends[1]) / 2e-5, rtol=1e-6)
    assert abs(found - EXACT[0]) < 0.01


@pytest.mark.slow
def test_fit_climbs_the_exact_likelihood():
    names = ["initial_probs.probs", "kernel.probs", "matrix", "scale", "observation_matrix"]
    names += ["initial_mean", "initial_scale", "offset"]
    y = Y[:4]
    learner = ss.MaximumLikelihood(standard_errors=False)
    fitted = ss.fit(ss.freeze(MODEL, *names), y, learner=learner, method=ss.GaussianSum(K**4))

    def objective(values):
        s, d = np.exp(values[:2]), values[2:]
        arrays = {
            "observation_scale": s[:, None].tolist(),
            "observation_offset": d[:, None].tolist(),
        }
        return -summed(y, ARRAYS | arrays)[0]

    best = scipy.optimize.minimize(objective, [np.log(0.3), np.log(0.5), 0.1, -0.2])
    assert fitted.log_likelihood > -best.fun - 1e-3


def test_functions_that_are_linear_are_as_good_as_arrays():
    import numpyro.distributions as dist

    def seen(k):
        h, d = (jnp.asarray(of(name, k)) for name in ("observation_matrix", "observation_offset"))
        scale = jnp.asarray(of("observation_scale", k))
        return lambda x, step: dist.Normal(h @ x + d, scale).to_event(1)

    curved = ss.Model(MODEL.initial, MODEL.transition, ss.Switching(None, [seen(0), seen(1)]))
    want = ss.smooth(MODEL, Y, method=ss.GaussianSum(4))
    rule = ss.linearisation.Cubature()
    got = ss.smooth(curved, Y, method=ss.GaussianSum(4, linearisation=rule))
    np.testing.assert_allclose(got.log_likelihood, want.log_likelihood, rtol=1e-9)
    np.testing.assert_allclose(got.mean, want.mean, atol=1e-9)


def test_single_precision_and_panel():
    single = jax.tree.map(lambda x: x.astype(jnp.float32), MODEL)
    y = Y.astype(np.float32)
    posterior = ss.smooth(single, [y, y[:4]], method=ss.GaussianSum(K**T))
    assert posterior[0].mean.dtype == posterior[0].log_likelihood.dtype == jnp.float32
    np.testing.assert_allclose(posterior[0].log_likelihood, EXACT[0], rtol=1e-5)
    np.testing.assert_allclose(posterior[0].mean, EXACT[2], atol=1e-4)
    short = summed(Y[:4])
    np.testing.assert_allclose(posterior[1].log_likelihood, short[0], rtol=1e-5)
    np.testing.assert_allclose(posterior[1].mean, short[2], atol=1e-4)
    assert posterior[1].sample(jax.random.key(0), 3).state.shape == (3, 4, N)


def test_fed_one_by_one():
    online = ss.online(MODEL, ss.GaussianSum(8))
    want = ss.filter(MODEL, Y, method=ss.GaussianSum(8))
    state = online.init()
    np.testing.assert_allclose(state.probs, ARRAYS["initial_probs"], rtol=1e-12)
    for y in Y:
        state = online.update(state, y)
    np.testing.assert_allclose(state.log_likelihood, want.log_likelihood, rtol=1e-12)
    np.testing.assert_allclose(state.probs, want.probs[-1], atol=1e-12)
    np.testing.assert_allclose(state.covariance, want.covariance[-1], atol=1e-12)
    with pytest.raises(ValueError, match="`time` must be after"):
        online.update(state, 0.0, time=1.0)


def test_irregular_times_and_inputs():
    """Diffusions of two speeds, and an input that moves the observation: one moment at a time by hand."""
    times = np.array([0.0, 0.4, 2.0])
    inputs = np.array([[0.5], [-1.0], [0.2]])
    y = np.array([0.3, -0.2, 1.1])
    diffusion = lambda s: ss.LinearDiffusion([[-0.5]], [[s]])
    seen = ss.AffineGaussian([[1.0]], lambda step: step.inputs, [0.4])
    model = ss.Model(
        ss.Switching(ss.Categorical([0.5, 0.5]), [ss.Gaussian([0.0], [1.0])]),
        ss.Switching(ss.FiniteKernel([[0.9, 0.1], [0.2, 0.8]]), [diffusion(0.3), diffusion(2.0)]),
        ss.Switching(None, [seen]),
    )
    got = ss.log_likelihood(model, ss.Series(y, times, inputs), method=ss.GaussianSum(8))
    moves = np.array([[0.9, 0.1], [0.2, 0.8]])
    logs = []
    for a in range(2):
        for b in range(2):
            decay = np.exp(-0.5 * np.diff(times))
            noise = np.array([0.3, 2.0])[[a, b]] ** 2 * (1 - decay**2)
            v = np.zeros((3, 3))
            v[0, 0] = 1.0
            for t in (1, 2):
                v[t, :t] = v[:t, t] = decay[t - 1] * v[t - 1, :t]
                v[t, t] = decay[t - 1] ** 2 * v[t - 1, t - 1] + noise[t - 1]
            law = scipy.stats.multivariate_normal(inputs[:, 0], v + 0.16 * np.eye(3))
            weight = 0.5 * (moves[0, a] + moves[1, a]) * moves[a, b]
            logs.append(np.log(weight) + law.logpdf(y))
    np.testing.assert_allclose(got, scipy.special.logsumexp(logs), rtol=1e-10)


def test_one_moment():
    one = ss.smooth(MODEL, Y[:1], method=ss.GaussianSum(4))
    check(one, summed(Y[:1]))
    assert one.sample(jax.random.key(0), 2).regime.shape == (2, 1)


def test_plots_and_exports():
    pytest.importorskip("matplotlib")
    pytest.importorskip("arviz")
    import matplotlib

    matplotlib.use("Agg")
    assert len(ss.plot.smoothed(SMOOTHED)) == N
    assert SMOOTHED.to_arviz(draws=5)["posterior"]["states"].shape == (1, 5, T, N)
    assert SMOOTHED.to_pandas().shape == (T, 4 * N + K)


def test_what_does_not_fit_is_named():
    with pytest.raises(
        TypeError, match="GaussianSum does not fit this model: its `initial` is a Gaussian"
    ):
        ss.filter(ss.LocalLevel(1.0, 1.0), Y, method=ss.GaussianSum())
    recurrent = ss.Switching(
        ss.RecurrentKernel(jnp.zeros((2, 2)), jnp.zeros((2, 2))), MODEL.transition.conditionals
    )
    model = ss.Model(MODEL.initial, recurrent, MODEL.observation)
    with pytest.raises(TypeError, match="its regimes depend on the previous state"):
        ss.filter(model, Y, method=ss.GaussianSum())
    with pytest.raises(ValueError, match="at least the number of regimes, 2, got 1"):
        ss.filter(MODEL, Y, method=ss.GaussianSum(1))
    with pytest.raises(
        ValueError, match=r"`components` of GaussianSum must be a whole number.*1, got 0"
    ):
        ss.GaussianSum(0)
    with pytest.raises(TypeError, match="`linearisation` of GaussianSum must be a rule"):
        ss.GaussianSum(linearisation=20)
    with pytest.raises(ValueError, match="`form` of GaussianSum must be"):
        ss.GaussianSum(form="root")
    with pytest.raises(
        ValueError, match="gives 1 channels in regime 0, but the data have 2 channels"
    ):
        ss.filter(MODEL, np.zeros((3, 2)), method=ss.GaussianSum())
    loose = ss.Switching(MODEL.initial.kernel, [ss.Gaussian([0.0, 0], [1.0, 1], [True, False])])
    diffuse = ss.Model(loose, MODEL.transition, MODEL.observation)
    with pytest.raises(ValueError, match=r"GaussianSum weighs .* in regime 0: give it a wide"):
        ss.filter(diffuse, Y, method=ss.GaussianSum())
