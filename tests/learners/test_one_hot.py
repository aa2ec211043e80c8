"""The one-hot prior: beliefs against quadrature and enumeration, and what is found of a known population."""

import itertools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad
from scipy.special import gammaln
from scipy.stats import norm

import statespace as ss
from statespace.learners import edges
from statespace.parameters import replace

CONCENTRATION = np.array([0.2, 1.6, 0.2])
NAMES = ("probs", "mean", "square")


def integrals(linear, information, scale, power):
    """Of ``w^power`` times likelihood times the half-normal law, below and above zero, by quadrature."""
    top = linear / (information + scale**-2)
    value = lambda w: w**power * np.exp(linear * w - information * w**2 / 2)
    law = lambda w: value(w) * 2 * norm.pdf(w, 0, scale)
    below = quad(law, -9, 0, points=[min(0, top)], limit=300)[0]
    return below, quad(law, 0, 9, points=[max(0, top)], limit=300)[0]


@pytest.mark.parametrize(
    ("linear", "information", "scale"),
    [(1.0, 2.0, 0.7), (-8.0, 20.0, 1.0), (0.0, 0.0, 0.5), (60.0, 100.0, 0.9), (0.3, 50.0, 2.0)],
)
def test_sign_and_strength_are_integrated_exactly(linear, information, scale):
    prior = np.array([0.2, 0.5, 0.3])
    got = edges.sign_and_strength(
        jnp.array(linear), jnp.array(information), jnp.log(prior), jnp.array(scale)
    )
    moments = [integrals(linear, information, scale, power) for power in range(3)]
    joint = np.array([0.2 * moments[0][0], 0.5, 0.3 * moments[0][1]])
    np.testing.assert_allclose(got[0], joint / joint.sum(), rtol=1e-8)
    for power in (1, 2):
        want = (0.2 * moments[power][0] + 0.3 * moments[power][1]) / joint.sum()
        np.testing.assert_allclose(got[power], want, rtol=1e-7)


def test_far_out_nothing_overflows_and_gradients_are_finite():
    prior = jnp.log(jnp.array([0.1, 0.8, 0.1]))
    for linear in (-1e4, 1e4):
        got = edges.sign_and_strength(jnp.array(linear), jnp.array(1e4), prior, jnp.array(1.0))
        assert got[0][0 if linear < 0 else 2] == 1
        np.testing.assert_allclose(got[1], np.sign(linear), rtol=1e-3)


def kinds(edge, shared=None, precision=None):
    count = len(edge)
    return edges.Kinds(
        jnp.array(edge),
        jnp.array(shared or [False] * count),
        jnp.array(precision or [0.0] * count),
    )


refine = jax.jit(edges.refine, static_argnames="sweeps")


def test_edges_that_do_not_touch_have_their_exact_posterior():
    """One state: the shared probabilities integrate to their mean, and a diagonal likelihood factorises."""
    information = np.array([3.0, 30.0, 8.0])
    linear = np.array([0.5, -20.0, 6.0])
    site = edges.Site(jnp.asarray(linear)[None, None], jnp.diag(information)[None, None])
    begin = edges.start(jnp.zeros((1, 1, 3)), jnp.asarray(CONCENTRATION))
    got = refine(begin, site, kinds([True] * 3), CONCENTRATION, 0.8, sweeps=1)
    weights = np.array([integrals(h, f, 0.8, 0) for h, f in zip(linear, information)])
    joint = np.stack([weights[:, 0], np.ones(3), weights[:, 1]], axis=1) * CONCENTRATION / 2
    np.testing.assert_allclose(got.probs[0, 0], joint / joint.sum(1, keepdims=True), rtol=1e-7)


def test_states_share_the_probabilities_of_the_signs():
    """Three states, one edge: against the sum over all 27 sign patterns, the probabilities integrated out."""
    information = np.full(3, 20.0)
    linear = np.array([14.0, 12.0, 5.0])
    likelihood = np.ones((3, 3))
    for s in range(3):
        below, above = integrals(linear[s], information[s], 0.8, 0)
        likelihood[s] = below, 1, above
    exact = np.zeros((3, 3))
    for signs in itertools.product(range(3), repeat=3):
        counts = np.bincount(signs, minlength=3)
        prior = np.exp(np.sum(gammaln(CONCENTRATION + counts) - gammaln(CONCENTRATION)))
        weight = prior * np.prod([likelihood[s, sign] for s, sign in enumerate(signs)])
        for s, sign in enumerate(signs):
            exact[s, sign] += weight
    exact /= exact.sum(axis=1, keepdims=True)
    site = edges.Site(
        jnp.asarray(linear)[:, None, None], jnp.asarray(information)[:, None, None, None]
    )
    begin = edges.start(jnp.zeros((3, 1, 1)), jnp.asarray(CONCENTRATION))
    got = refine(begin, site, kinds([True]), CONCENTRATION, 0.8, sweeps=50)
    np.testing.assert_allclose(got.probs[:, 0, 0], exact, atol=0.03)
    alone = likelihood[2] * CONCENTRATION
    assert exact[2, 2] > 2 * (alone / alone.sum())[2]  # the others do tell it something
    shared = edges.connectivity(got.probs, jnp.asarray(CONCENTRATION))
    counts = CONCENTRATION + np.asarray(got.probs).sum(axis=0)
    np.testing.assert_allclose(shared, counts / counts.sum(-1, keepdims=True))


def test_what_is_no_edge_goes_to_its_maximum():
    """Inputs with a ridge and a bias that two states share: the solution of one linear system."""
    rng = np.random.default_rng(0)
    roots = rng.normal(size=(2, 3, 9))
    information, linear = roots @ np.swapaxes(roots, 1, 2), rng.normal(size=(2, 3))
    site = edges.Site(jnp.asarray(linear)[:, None], jnp.asarray(information)[:, None])
    begin = edges.start(jnp.zeros((2, 1, 3)), jnp.asarray(CONCENTRATION))
    what = kinds([False] * 3, [False, False, True], [2.0, 2.0, 0.0])
    got = refine(begin, site, what, CONCENTRATION, 0.8, sweeps=300)
    system, right = (
        np.zeros((5, 5)),
        np.zeros(5),
    )  # two of the first state, two of the second, the shared one
    for s, own in enumerate(([0, 1, 4], [2, 3, 4])):
        system[np.ix_(own, own)] += information[s]
        right[own] += linear[s]
    system[range(4), range(4)] += 2.0
    want = np.linalg.solve(system, right)
    np.testing.assert_allclose(got.mean[:, 0], want[[[0, 1, 4], [2, 3, 4]]], atol=1e-8)


def test_the_scale_of_the_strengths_is_their_root_mean_square():
    rng = np.random.default_rng(0)
    strength = np.abs(rng.normal(size=4000)) * 0.6
    signs = rng.choice(3, size=4000, p=[0.2, 0.5, 0.3])
    probs = np.eye(3)[signs][None, None]
    w = ((signs - 1) * strength)[None, None]
    known = edges.Edges(jnp.asarray(probs), jnp.asarray(w), jnp.asarray(w**2))
    got = edges.strength_scale(known, kinds([True] * 4000), jnp.array(5.0))
    assert got == pytest.approx(0.6, rel=0.05)


NEURONS = 6
SETTINGS = {
    "family": "poisson",
    "link": "sigmoid",
    "channels": NEURONS,
    "history": ss.emissions.Exponential(lags=5),
    "shared_bias": True,
}


@pytest.fixture(scope="module")
def population():
    """Two states, six neurons; a third of the pairs are connected, in one state or both."""
    rng = np.random.default_rng(1)
    probs = rng.dirichlet(CONCENTRATION, size=(NEURONS, NEURONS))
    signs = np.array([[[rng.choice(3, p=p) - 1 for p in row] for row in probs] for _ in range(2)])
    coupling = signs * np.log1p(3 * rng.uniform(0.2, 1, signs.shape))
    truth = replace(
        ss.GLMHMM(2, transition=[[0.98, 0.02], [0.02, 0.98]], **SETTINGS),
        {"emission.coupling": coupling[..., None]},
    )
    sessions = [
        ss.Series(ss.simulate(truth, n, key=jax.random.key(i)).y)
        for i, n in enumerate((2000, 1500))
    ]
    return truth, coupling, sessions


@pytest.fixture(scope="module")
def fits(population):
    _, _, sessions = population
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ss.ConvergenceWarning)
        gaussian = ss.fit(
            ss.GLMHMM(2, pooling=9.0, **SETTINGS), sessions, learner=ss.EM(tolerance=0.1)
        )
    return gaussian, ss.fit(gaussian, sessions, learner=ss.OneHot())


def matched(population, fits):
    """Couplings and results with the states in the order of the truth."""
    _, coupling, _ = population
    found = [np.asarray(f.model.coupling)[..., 0] for f in fits]
    error = [np.abs(found[1][list(o)] - coupling).sum() for o in ((0, 1), (1, 0))]
    order = [0, 1] if error[0] < error[1] else [1, 0]
    return coupling, [f[order] for f in found], order


def test_signs_are_found_and_couplings_are_closer_than_with_a_gaussian_prior(population, fits):
    coupling, (gaussian, one_hot), order = matched(population, fits)
    result = fits[1]
    assert result.converged
    true = np.sign(coupling)
    assert (result.signs[order] == true).mean() > 0.9
    assert np.abs(one_hot - coupling).mean() < 0.7 * np.abs(gaussian - coupling).mean()
    chance = result.inclusion[order]
    assert chance[true != 0].mean() > 0.8
    assert chance[true == 0].mean() < 0.2
    z = np.abs((one_hot - coupling) / result.coupling_std[order])
    assert 0.3 < np.median(z[chance > 0.9]) < 1.5


def test_result_is_consistent_and_says_what_it_is(population, fits):
    _, _, sessions = population
    result = fits[1]
    assert result.sign_probs.shape == (2, NEURONS, NEURONS, 3)
    np.testing.assert_allclose(result.sign_probs.sum(axis=-1), 1)
    np.testing.assert_allclose(result.connectivity.sum(axis=-1), 1)
    assert result.log_likelihood == pytest.approx(
        float(ss.log_likelihood(result.model, sessions)), rel=1e-10
    )
    assert 0.3 < result.strength_scale < 2
    assert "one-hot" in result.summary()
    again = ss.fit(result, sessions, learner=ss.OneHot())
    np.testing.assert_allclose(again.model.coupling, result.model.coupling, atol=0.02)


@pytest.mark.parametrize("first", [None, ss.EM(tolerance=0.1)], ids=["cold", "warm"])
def test_a_model_is_a_start_with_or_without_em(population, fits, first):
    _, _, sessions = population
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ss.ConvergenceWarning)
        found = ss.fit(
            ss.GLMHMM(2, pooling=9.0, key=jax.random.key(5), **SETTINGS),
            sessions,
            learner=ss.OneHot(warm_start=first),
        )
    assert found.log_likelihood == pytest.approx(fits[1].log_likelihood, abs=1.0)
    w, other = (np.asarray(f.model.coupling) for f in (found, fits[1]))
    assert min(np.abs(w - other).mean(), np.abs(w[::-1] - other).mean()) < 0.01


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"concentration": (1.0, 1.0)}, "`concentration` of OneHot must be three positive"),
        ({"concentration": (1.0, 0.0, 1.0)}, "`concentration` of OneHot must be three positive"),
        ({"iterations": 0}, "`iterations` must be at least 1, got 0"),
        ({"tolerance": 0.0}, "`tolerance` must be positive"),
    ],
)
def test_settings_that_do_not_fit_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        ss.OneHot(**arguments)


Y = np.random.default_rng(0).integers(0, 2, (30, NEURONS)).astype(float)


def test_models_that_have_no_such_edges_are_refused():
    fit = lambda model, **how: ss.fit(model, Y, learner=ss.OneHot(), **how)
    with pytest.raises(TypeError, match=r"coupling of a GLMHMM .* got LocalLevel"):
        ss.fit(ss.LocalLevel(level_scale=1.0, noise_scale=1.0), Y[:, 0], learner=ss.OneHot())
    with pytest.raises(ValueError, match="needs a coupling to learn"):
        fit(ss.GLMHMM(2, channels=NEURONS))
    two = SETTINGS | {"history": ss.emissions.RaisedCosine(lags=5, bumps=2)}
    with pytest.raises(ValueError, match="the coupling has 2 basis functions"):
        fit(ss.GLMHMM(2, **two))
    with pytest.raises(ValueError, match=r"\['emission.bias'\] are frozen"):
        fit(ss.freeze(ss.GLMHMM(2, **SETTINGS), "emission.bias"))
    import numpyro.distributions as dist

    with pytest.raises(ValueError, match=r"brings the prior of the emission itself"):
        fit(ss.GLMHMM(2, **SETTINGS), priors={"emission.bias": dist.Normal(0.0, 1.0)})
