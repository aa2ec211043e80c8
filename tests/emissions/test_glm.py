"""GLM emissions: SciPy's densities, statsmodels' coefficients, gradients that vanish, and what is refused."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats as st
import statsmodels.api as sm
from scipy.special import expit, softmax

import statespace as ss
from statespace.emissions.families import FAMILIES, fisher, log_expm1_exp, log_softplus
from statespace.model import Step

K, M, D, T, S = 2, 2, 3, 60, 2
BASIS = ss.emissions.Exponential(lags=4, decays=(1.0, 3.0))
LINKS = [(family, link) for family, parts in FAMILIES.items() for link in parts.links]
MEANS = {
    "identity": lambda e: e,
    "exp": np.exp,
    "softplus": lambda e: np.log1p(np.exp(e)),
    "sigmoid": expit,
}


def steps(inputs):
    """Steps of one recording, or of several with a leading axis."""
    shape = inputs.shape[:-1]
    index = jnp.broadcast_to(jnp.arange(shape[-1]), shape)
    return Step(index, index * 1.0, jnp.ones(shape), jnp.asarray(inputs))


def emission(family, link=None, *, seed=0, size=0.5, coupling=True, shared=False, **settings):
    """Two states, two channels, three inputs, and coupling where the family has it."""
    rng = np.random.default_rng(seed)
    rest = (M, 2) if family == "categorical" else (M,)
    coupled = coupling and family != "categorical"
    return ss.emissions.GLM(
        bias=0.3 * rng.normal(size=(1 if shared else K, *rest)),
        weights=size * rng.normal(size=(K, *rest, D)),
        coupling=0.2 * rng.normal(size=(K, M, M, 2)) if coupled else None,
        scale=rng.uniform(0.5, 1.5, (K, M)) if family == "gaussian" else None,
        family=family,
        link=link,
        basis=BASIS if coupled else None,
        **settings,
    )


def recordings(family, missing=True):
    """Observations that the family can make, with gaps; inputs; weights of the states, zero in a padding."""
    rng = np.random.default_rng(7)
    shape = (S, T, M)
    y = {
        "bernoulli": rng.integers(0, 2, shape),
        "categorical": rng.integers(0, 3, shape),
        "gaussian": rng.normal(size=shape),
        "poisson": rng.poisson(0.6, shape),
    }[family].astype(float)
    if missing:
        y[rng.random(shape) < 0.1] = np.nan
        y[0, 5] = np.nan
    weights = rng.dirichlet(np.ones(K), size=(S, T))
    weights[1, 50:] = 0
    return jnp.asarray(y), jnp.asarray(rng.normal(size=(S, T, D))), jnp.asarray(weights)


def features(y):
    """What each channel's past says through each function, by a double loop."""
    out = np.zeros((len(y), M, BASIS.count))
    for t in range(len(y)):
        for k in range(1, min(t, BASIS.lags) + 1):
            out[t] += np.nan_to_num(y[t - k])[:, None] * BASIS.functions[k - 1]
    return out


def predictors(glm, y, u):
    """Linear predictors from the definition, (T, K, m) or (T, K, m, C-1)."""
    eta = np.einsum("td,k...d->tk...", u, np.asarray(glm.weights)) + np.asarray(glm.bias)
    if glm.coupling is not None:
        eta = eta + np.einsum("tjb,kijb->tki", features(y), np.asarray(glm.coupling))
    return eta


@eqx.filter_jit
def objective(glm, y, u, weights):
    """What the M-step raises."""
    each = jax.vmap(glm.log_probs)(y, steps(u))
    return jnp.sum(weights * each) + glm.log_prior()


m_step = eqx.filter_jit(lambda glm, y, u, w, **how: glm.m_step(y, steps(u), w, **how))
gradient = eqx.filter_jit(eqx.filter_grad(objective))
log_probs = eqx.filter_jit(lambda glm, y, u: glm.log_probs(y, steps(u)))
density = eqx.filter_jit(lambda glm, step, y: [glm(k, step).log_prob(y) for k in range(K)])


def slopes(glm, y, u, weights):
    """Derivatives of the objective by the parameters."""
    return ss.parameters(gradient(glm, y, u, weights)).values()


def oracle(family, link, y, eta, scale):
    """SciPy's log density of every channel, 0 where nothing was observed."""
    seen, y = ~np.isnan(y), np.nan_to_num(y)[:, None]
    if family == "categorical":
        probs = softmax(np.concatenate([np.zeros_like(eta[..., :1]), eta], axis=-1), axis=-1)
        index = np.broadcast_to(y[..., None].astype(int), (*eta.shape[:-1], 1))
        each = np.log(np.take_along_axis(probs, index, axis=-1))[..., 0]
    else:
        mean = MEANS[link](eta)
        if family == "bernoulli" and link != "sigmoid":
            mean = -np.expm1(-mean)
        law = {"bernoulli": st.bernoulli.logpmf, "poisson": st.poisson.logpmf}
        each = st.norm.logpdf(y, mean, scale) if family == "gaussian" else law[family](y, mean)
    return np.where(seen[:, None], each, 0).sum(-1)


@pytest.mark.parametrize(("family", "link"), LINKS)
def test_log_probs_are_scipys(family, link):
    glm = emission(family, link)
    y, u, _ = recordings(family)
    want = oracle(family, link, np.asarray(y[0]), predictors(glm, y[0], u[0]), glm.scale)
    got = log_probs(glm, y[0], u[0])
    np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-12)
    assert np.all(got[5] == 0)


@pytest.mark.parametrize(("family", "link"), LINKS)
def test_conditional_is_the_law_whose_density_log_probs_gives(family, link):
    glm = emission(family, link)
    y, u, _ = recordings(family, missing=False)
    want = log_probs(glm, y[0], u[0])
    for t in (0, 2, 30):
        past = np.full((BASIS.lags, M), np.nan)
        past[: min(t, BASIS.lags)] = y[0, max(t - BASIS.lags, 0) : t][::-1]
        step = Step(
            jnp.asarray(t), jnp.asarray(1.0 * t), jnp.asarray(1.0), u[0, t], jnp.asarray(past)
        )
        value = y[0, t].astype(int) if family == "categorical" else y[0, t]
        got = density(glm, step, value)
        np.testing.assert_allclose(got, want[t], rtol=1e-10)


@pytest.mark.parametrize(("family", "link"), LINKS)
def test_m_step_ends_where_the_gradient_vanishes(family, link):
    glm = emission(family, link, shared=True, ridge=0.3)
    y, u, weights = recordings(family)
    values = [objective(glm, y, u, weights)]
    for _ in range(100):
        glm = m_step(glm, y, u, weights)
        values.append(objective(glm, y, u, weights))
    assert np.all(np.diff(values) >= -1e-9)
    for part in slopes(glm, y, u, weights):
        np.testing.assert_allclose(part, 0, atol=1e-4)


def test_one_m_step_is_enough_where_the_objective_is_concave():
    glm = emission("poisson", "exp")
    y, u, weights = recordings("poisson")
    new = m_step(glm, y, u, weights)
    for part in slopes(new, y, u, weights):
        np.testing.assert_allclose(part, 0, atol=1e-6)


def test_pooling_pulls_the_coupling_to_its_mean_over_the_states():
    y, u, weights = recordings("poisson")
    spreads = []
    for pooling in (0.0, 5.0, 1e6):
        glm = emission("poisson", "softplus", pooling=pooling)
        for _ in range(20):
            glm = m_step(glm, y, u, weights)
        for part in slopes(glm, y, u, weights):
            np.testing.assert_allclose(part, 0, atol=1e-4)
        spreads.append(np.ptp(np.asarray(glm.coupling), axis=0).max())
    assert spreads[0] > spreads[1] > spreads[2]
    assert spreads[2] < 1e-4


STATSMODELS = {
    "bernoulli": sm.families.Binomial(),
    "poisson": sm.families.Poisson(),
    "gaussian": sm.families.Gaussian(),
}


@pytest.mark.parametrize("family", STATSMODELS)
def test_one_state_is_statsmodels_glm(family):
    y, u, weights = recordings(family)
    y, u, w = (np.asarray(a[0]) for a in (y, u, weights[..., :1]))
    start = ss.emissions.GLM(
        np.zeros((1, M)),
        np.zeros((1, M, D)),
        scale=np.ones((1, M)) if family == "gaussian" else None,
        family=family,
    )
    glm = m_step(start, *(jnp.asarray(a)[None] for a in (y, u, w)))
    for channel in range(M):
        seen = ~np.isnan(y[:, channel])
        peer = sm.GLM(
            y[seen, channel],
            sm.add_constant(u[seen]),
            family=STATSMODELS[family],
            freq_weights=w[seen, 0],
        ).fit(tol=1e-12)
        ours = [glm.bias[0, channel], *glm.weights[0, channel]]
        np.testing.assert_allclose(ours, peer.params, atol=1e-6)
        if family == "gaussian":
            residuals = y[seen, channel] - peer.fittedvalues
            variance = np.average(residuals**2, weights=w[seen, 0])
            np.testing.assert_allclose(glm.scale[0, channel], np.sqrt(variance), rtol=1e-9)


def test_one_state_is_statsmodels_multinomial_logit():
    y, u, _ = recordings("categorical", missing=False)
    y, u = y[0, :, :1], u[0]
    start = ss.emissions.GLM(np.zeros((1, 1, 2)), np.zeros((1, 1, 2, D)), family="categorical")
    glm = m_step(start, y[None], u[None], jnp.ones((1, T, 1)))
    peer = sm.MNLogit(np.asarray(y[:, 0]), sm.add_constant(np.asarray(u))).fit(disp=0, tol=1e-12)
    np.testing.assert_allclose(glm.bias[0, 0], peer.params[0], atol=1e-6)
    np.testing.assert_allclose(glm.weights[0, 0], peer.params[1:].T, atol=1e-6)


@pytest.mark.parametrize(("family", "link"), LINKS)
def test_score_and_information_are_derivatives_and_variance(family, link):
    """Score = gradient of the log density; information = variance of the score over the observations."""
    parts, natural = FAMILIES[family], FAMILIES[family].links[link]
    q = 2 if family == "categorical" else 1
    eta = jnp.asarray(np.random.default_rng(0).normal(size=(5, q)))
    support = {"bernoulli": jnp.arange(2.0), "categorical": jnp.arange(3.0)}
    values = support.get(family, jnp.arange(80.0))
    if family == "gaussian":
        nodes, mass = np.polynomial.hermite_e.hermegauss(20)
        values = natural(eta)[:, 0] + nodes[:, None]
    else:
        values = values[:, None] * jnp.ones(5)
    of = lambda y, e: parts.log_prob(y, natural(e), 1.0)
    one = jax.vmap(lambda y: fisher(parts, natural, parts.statistic(y, q), eta))
    scores, information = jax.jit(one)(values)
    want = jax.jit(jax.vmap(lambda y: jax.vmap(jax.grad(of, 1))(y, eta)))(values)
    np.testing.assert_allclose(scores, want, atol=1e-9)
    weights = np.exp(of(values, eta))
    if family == "gaussian":
        weights = np.broadcast_to((mass / mass.sum())[:, None], values.shape)
    variance = np.einsum("yn,ynq,ynr->nqr", weights, scores, scores)
    np.testing.assert_allclose(information[0], variance, rtol=1e-8, atol=1e-10)


def test_links_far_out():
    x = jnp.array([-700.0, -30.0, -15.0, 0.0, 5.0])
    small = np.exp(np.asarray(x))
    np.testing.assert_allclose(log_softplus(x), np.where(x < -20, x, np.log(np.log1p(small))))
    # log(expm1(r)) = log r + r / 2 for small r
    want = np.where(x < -10, x + small / 2, np.log(np.expm1(np.minimum(small, 500))))
    np.testing.assert_allclose(log_expm1_exp(x), want, rtol=1e-12)
    for link in (log_softplus, log_expm1_exp):
        assert np.all(np.isfinite(jax.vmap(jax.grad(link))(x)))


@pytest.mark.parametrize(
    "basis", [BASIS, ss.emissions.RaisedCosine(lags=12, bumps=4)], ids=["exponential", "cosine"]
)
def test_features_are_sums_over_the_past(basis):
    y = np.asarray(recordings("poisson")[0][0])
    got = np.asarray(basis.features(jnp.asarray(y)))
    clean = np.nan_to_num(y)
    for t in (0, 1, 3, 20, T - 1):
        past = clean[max(t - basis.lags, 0) : t][::-1]
        want = past.T @ basis.functions[: len(past)]
        np.testing.assert_allclose(got[t], want, atol=1e-12)
        history = np.full((basis.lags + 2, M), np.nan)
        history[: len(past)] = past
        np.testing.assert_allclose(basis.newest(jnp.asarray(history)), want, atol=1e-12)
    np.testing.assert_allclose(basis.functions.sum(axis=0), 1)
    impulse = np.zeros((T, M))
    impulse[3, 1] = 1
    glm = emission("poisson")
    if basis is BASIS:
        response = basis.features(jnp.asarray(impulse)) @ jnp.swapaxes(glm.coupling, 2, 3)[0, 0]
        np.testing.assert_allclose(response[4 : 4 + basis.lags, 1, 1], glm.filters[0, 0, 1])


def test_exponential_basis_is_the_published_one():
    """Li et al. (2024): decay 1 over 5 lags."""
    want = [0.6364, 0.2341, 0.0861, 0.0317, 0.0117]
    np.testing.assert_allclose(ss.emissions.Exponential(5).functions[:, 0], want, atol=5e-5)


def test_raised_cosines_tile_the_log_of_the_lag():
    f = ss.emissions.RaisedCosine(lags=30, bumps=5).functions
    peaks = f.argmax(axis=0)
    assert peaks[0] == 0
    assert np.all(np.diff(peaks) > 0)
    assert np.all(np.diff(np.log(peaks[1:] + 2.0)) > 0.3)
    assert np.all(f >= 0)
    assert np.all(f.sum(axis=1)[:-3] > 0)


def test_columns_choose_the_inputs():
    glm = emission("bernoulli", coupling=False)
    y, u, weights = recordings("bernoulli")
    more = jnp.concatenate([jnp.ones_like(u[..., :2]), u[..., ::-1]], axis=-1)
    same = eqx.tree_at(
        lambda g: g.bias, emission("bernoulli", coupling=False, columns=(4, 3, 2)), glm.bias
    )
    np.testing.assert_array_equal(
        glm.log_probs(y[0], steps(u[0])), same.log_probs(y[0], steps(more[0]))
    )
    np.testing.assert_allclose(
        m_step(glm, y, u, weights).weights, m_step(same, y, more, weights).weights
    )


def test_frozen_fields_stay_and_the_others_are_at_their_maximum():
    glm = emission("gaussian")
    y, u, weights = recordings("gaussian")
    new = m_step(glm, y, u, weights, frozen=frozenset({"coupling", "scale"}))
    np.testing.assert_array_equal(new.coupling, glm.coupling)
    np.testing.assert_array_equal(new.scale, glm.scale)
    slope = gradient(new, y, u, weights)
    np.testing.assert_allclose(slope.weights, 0, atol=1e-8)
    np.testing.assert_allclose(slope.bias, 0, atol=1e-8)
    assert np.abs(slope.coupling).max() > 0.1


def test_a_state_that_was_never_visited_stays():
    y, u, weights = recordings("poisson")
    weights = jnp.stack([jnp.sum(weights, -1), 0 * weights[..., 0]], axis=-1)
    for glm in (emission("poisson"), emission("poisson", shared=True)):
        new = m_step(glm, y, u, weights)
        np.testing.assert_array_equal(new.weights[1], glm.weights[1])
        np.testing.assert_array_equal(new.coupling[1], glm.coupling[1])
        assert np.abs(new.weights[0] - glm.weights[0]).max() > 0.01


def test_separable_data_and_inputs_that_repeat_stay_finite():
    u = np.random.default_rng(0).normal(size=(1, T, D))
    u[..., 2] = u[..., 1]
    y = jnp.asarray((u[..., :1] > 0).astype(float))
    glm = ss.emissions.GLM(np.zeros((1, 1)), np.zeros((1, 1, D)))
    one = jnp.ones((1, T, 1))
    values = []
    for _ in range(5):
        glm = m_step(glm, y, jnp.asarray(u), one)
        values.append(float(objective(glm, y, jnp.asarray(u), one)))
    assert np.all(np.isfinite(np.asarray(glm.weights)))
    assert np.all(np.diff(values) >= 0)
    assert values[-1] > -1e-3


def test_variance_has_a_floor():
    u = jnp.asarray(np.random.default_rng(0).normal(size=(1, T, D)))
    y = u[..., :1]
    glm = ss.emissions.GLM(
        np.zeros((1, 1)), np.zeros((1, 1, D)), scale=np.ones((1, 1)), family="gaussian"
    )
    new = m_step(glm, y, u, jnp.ones((1, T, 1)), floor=0.04)
    np.testing.assert_allclose(new.scale, 0.2)


def test_many_starts_in_one_call_and_in_float32():
    y, u, weights = recordings("poisson")
    glms = [emission("poisson", "softplus", seed=s) for s in range(3)]
    stacked = jax.tree.map(lambda *a: jnp.stack(a), *glms)
    many = eqx.filter_jit(eqx.filter_vmap(lambda g: g.m_step(y, steps(u), weights)))(stacked)
    for i, glm in enumerate(glms):
        np.testing.assert_allclose(many.weights[i], m_step(glm, y, u, weights).weights, atol=1e-7)
    single = lambda tree: jax.tree.map(
        lambda a: a.astype(jnp.float32) if a.dtype == jnp.float64 else a, tree
    )
    low = m_step(single(glms[0]), *single((y, u, weights)))
    assert low.weights.dtype == low.coupling.dtype == jnp.float32
    np.testing.assert_allclose(low.weights, many.weights[0], atol=1e-2)


def bad(**changes):
    given = {"bias": np.zeros((K, M)), "weights": np.zeros((K, M, D)), "family": "poisson"}
    return given | changes


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (bad(family="binomial"), r"`family` .* 'bernoulli'.*got 'binomial'"),
        (bad(link="logit"), r"`link` of a poisson GLM must be one of 'exp', .*got 'logit'"),
        (bad(weights=np.zeros((K, M + 1, D))), r"`weights` of GLM must have shape \(2, 2, d\)"),
        (bad(bias=np.zeros(M)), r"`bias` of a poisson GLM must have shape \(K, m\)"),
        (bad(bias=np.zeros((3, M))), r"`weights` of GLM must have shape \(3, 2, d\)"),
        (bad(scale=np.ones((K, M))), r"`scale` is what a 'gaussian' GLM has"),
        (bad(family="gaussian"), r"`scale` is what a 'gaussian' GLM has"),
        (bad(basis=BASIS), r"`coupling` and `basis` of GLM go together"),
        (
            bad(basis=BASIS, coupling=np.zeros((K, M, M, 3))),
            r"3 weights for each pair of channels, but `basis` has 2 functions",
        ),
        (bad(columns=(0, 1)), r"`columns` of GLM names 2 inputs, but `weights` has 3"),
        (bad(ridge=-1.0), r"`ridge` of GLM must not be negative"),
        (bad(exposure=0.0), r"`exposure` of GLM must be positive"),
        (bad(exposure=2.0, family="bernoulli"), r"belongs to the family 'poisson'"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        ss.emissions.GLM(**arguments)


def test_inputs_that_are_missing_or_too_few_are_named():
    glm = emission("poisson")
    y, u, _ = recordings("poisson")
    with pytest.raises(ValueError, match=r"needs inputs of 3 columns, and the recording has none"):
        glm.log_probs(y[0], steps(u[0])._replace(inputs=None))
    with pytest.raises(ValueError, match=r"needs 3 columns of inputs, and the recording has 2"):
        glm.log_probs(y[0], steps(u[0, :, :2]))


@pytest.mark.parametrize(
    ("family", "value", "words"),
    [
        ("poisson", -1.0, "a poisson GLM must be a count 0, 1, 2"),
        ("bernoulli", 2.0, "a bernoulli GLM must be 0 or 1"),
        ("categorical", 3.0, "must be an integer from 0 to 2"),
    ],
)
def test_impossible_observations_are_named(family, value, words):
    glm = emission(family)
    y = np.zeros((T, M))
    y[4, 1] = value
    with pytest.raises(ValueError, match=words + r".*y\[4, 1\] is"):
        glm.check(y)
    with pytest.raises(ValueError, match="2 channels, but `y` has 3"):
        glm.check(np.zeros((T, 3)))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ss.emissions.Exponential(lags=0), "`lags` of Exponential must be at least 1"),
        (lambda: ss.emissions.Exponential(3, decays=(1.0, 0.0)), "`decays` .* must be positive"),
        (lambda: ss.emissions.RaisedCosine(3, bumps=4), "`bumps` .* between 1 and .* 3, got 4"),
        (lambda: ss.emissions.RaisedCosine(3, bumps=2, offset=0.0), "`offset` .* positive"),
    ],
)
def test_bases_that_are_none_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_filters_of_a_glm_without_coupling():
    glm = emission("poisson", coupling=False)
    with pytest.raises(ValueError, match="no filters"):
        print(glm.filters)
