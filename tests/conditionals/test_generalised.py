"""Generalised linear observations: laws against scipy, derivatives against closed forms, what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats as st

import statespace as ss

STEP = ss.Step(1, 1.0, 1.0)
C = jnp.array([[0.5, -1.0], [2.0, 0.3], [-0.7, 0.4]])
D = jnp.array([0.1, -0.2, 0.3])
X = jnp.array([0.4, -0.6])
ETA = np.asarray(C @ X + D)
EXPIT = scipy.special.expit(ETA)
EXTRA = {
    "poisson": {"exposure": 0.5},
    "negative_binomial": {"concentration": jnp.array([2.0, 3.0, 0.5])},
    "bernoulli": {},
    "binomial": {"trials": jnp.array([4, 5, 9])},
    "gaussian": {"scale": 0.7},
    "student_t": {"df": 4.0, "scale": jnp.array([0.5, 1.0, 2.0])},
}
R = np.array([2.0, 3.0, 0.5])
SCIPY = {
    "poisson": st.poisson(0.5 * np.exp(ETA)),
    "negative_binomial": st.nbinom(R, R / (R + np.exp(ETA))),
    "bernoulli": st.bernoulli(EXPIT),
    "binomial": st.binom([4, 5, 9], EXPIT),
    "gaussian": st.norm(ETA, 0.7),
    "student_t": st.t(4.0, ETA, [0.5, 1.0, 2.0]),
}
Y = {name: np.array([1.0, 0.0, 1.0]) for name in EXTRA} | {"student_t": np.array([-1.3, 0.2, 8.0])}


def observation(name, **kwargs):
    return ss.GeneralisedLinear(C, D, name, **EXTRA[name], **kwargs)


def density(law, y):
    return law.log_pdf(y) if hasattr(law, "log_pdf") else getattr(law, LOG[law.dist.name])(y)


LOG = dict.fromkeys(["norm", "t"], "logpdf") | dict.fromkeys(
    ["poisson", "nbinom", "bernoulli", "binom"], "logpmf"
)


@pytest.mark.parametrize("name", EXTRA)
def test_a_family_is_scipys(name, key):
    """Log density, mean and draws of every family."""
    law, want = observation(name)(X, STEP), SCIPY[name]
    np.testing.assert_allclose(law.log_prob(Y[name]), density(want, Y[name]).sum(), rtol=1e-10)
    np.testing.assert_allclose(law.mean, want.mean(), rtol=1e-10)
    draws = np.asarray(law.sample(key, (20_000,)))
    error = (draws.mean(0) - want.mean()) / (want.std() / np.sqrt(20_000))
    assert np.abs(error).max() < 4
    matrix, offset = observation(name).predictor(STEP)
    again = observation(name).law_of(matrix @ X + offset, STEP)
    np.testing.assert_allclose(again.log_prob(Y[name]), law.log_prob(Y[name]))


@pytest.mark.parametrize("name", ["poisson", "bernoulli", "binomial", "negative_binomial"])
@pytest.mark.parametrize("at", [0.0, -800.0, 30.0])
def test_derivatives_of_counts_are_right_everywhere(name, at):
    """Slope and curvature in the predictor, also at a logit of zero and where rates underflow."""
    y = jnp.array([0.0, 1.0, 1.0])
    eta = jnp.full(3, at)
    f = lambda eta: observation(name).law_of(eta, STEP).log_prob(y)
    n = {"binomial": np.array([4, 5, 9]), "bernoulli": 1}.get(name)
    if n is not None:
        p = scipy.special.expit(np.full(3, at))
        slope, bend = y - n * p, -n * p * (1 - p)
    elif name == "poisson":
        slope, bend = y - 0.5 * np.exp(eta), -0.5 * np.exp(eta)
    else:
        p = scipy.special.expit(at - np.log(R))
        slope, bend = y - (y + R) * p, -(y + R) * p * (1 - p)
    np.testing.assert_allclose(jax.grad(f)(eta), slope, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(jnp.diag(jax.hessian(f)(eta)), bend, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", ["poisson", "bernoulli", "binomial"])
def test_distribution_functions_of_counts(name):
    """Probabilities of at most y."""
    law = observation(name)(X, STEP).base_dist
    for y in (-1.0, 0.0, 1.0, 3.0, 20.0):
        np.testing.assert_allclose(law.cdf(jnp.full(3, y)), SCIPY[name].cdf(y), rtol=1e-10)


@pytest.mark.parametrize(
    ("name", "link", "mean"),
    [
        ("poisson", "softplus", lambda e: 0.5 * np.log1p(np.exp(e))),
        ("negative_binomial", "sigmoid", scipy.special.expit),
        ("bernoulli", "exp", lambda e: -np.expm1(-np.exp(e))),
        ("gaussian", "softplus", lambda e: np.log1p(np.exp(e))),
    ],
)
def test_links(name, link, mean):
    """The mean as a function of the predictor."""
    np.testing.assert_allclose(observation(name, link=link)(X, STEP).mean, mean(ETA), rtol=1e-10)


def test_a_function_is_a_family():
    """An elementwise law of the predictor with parameters of its own, which learners can move."""
    import equinox as eqx
    import numpyro.distributions as dist

    class Heavy(eqx.Module):
        width: jax.Array = ss.parameter("positive")

        def __call__(self, eta):
            return dist.Laplace(eta, self.width)

    seen = ss.GeneralisedLinear(C, D, Heavy(0.5))
    np.testing.assert_allclose(
        seen(X, STEP).log_prob(Y["student_t"]), st.laplace(ETA, 0.5).logpdf(Y["student_t"]).sum()
    )
    assert set(ss.parameters(seen)) == {"matrix", "offset", "custom.width"}
    joint = ss.GeneralisedLinear(C, D, lambda eta: dist.Normal(eta, 1.0).to_event(1))
    with pytest.raises(ValueError, match=r"without `to_event`"):
        joint(X, STEP)


def test_parameters_and_their_supports():
    """Loadings and offset are real, dispersions positive; trials and exposure are not learned."""
    from numpyro.distributions import constraints

    seen = observation("student_t")
    assert set(ss.parameters(seen)) == {"matrix", "offset", "df", "scale"}
    kinds = ss.supports(seen)
    assert kinds["matrix"] == constraints.real
    assert kinds["df"] == constraints.positive
    assert kinds["scale"] == constraints.positive
    assert set(ss.parameters(observation("poisson"))) == {"matrix", "offset"}
    assert set(ss.parameters(observation("binomial"))) == {"matrix", "offset"}


def model(seen):
    return ss.Model(
        ss.Gaussian(jnp.zeros(2), jnp.ones(2)),
        ss.AffineGaussian(0.9 * jnp.eye(2), None, 0.4 * jnp.ones(2)),
        seen,
    )


def test_particles_agree_with_the_kalman_filter_where_the_family_is_gaussian(key):
    """Simulation, a missing entry, a wholly missing moment: the exact likelihood within Monte Carlo error."""
    linear = model(ss.AffineGaussian(C, D, 0.7 * jnp.ones(3)))
    _, y = ss.simulate(linear, 12, key=key)
    y = jnp.asarray(y).at[3, 1].set(jnp.nan).at[7].set(jnp.nan)
    exact = ss.log_likelihood(linear, y)
    found = ss.log_likelihood(
        model(observation("gaussian")),
        y,
        method=ss.ParticleFilter(particles=4000, proposal="linearised"),
        key=key,
    )
    np.testing.assert_allclose(found, exact, atol=0.15)


def test_offsets_may_follow_inputs_and_loadings_the_step(key):
    """Functions of the step, as elsewhere."""
    seen = ss.GeneralisedLinear(lambda s: C * s.dt, lambda s: D + s.inputs[0], "poisson")
    step = STEP._replace(dt=2.0, inputs=jnp.array([0.5]))
    want = st.poisson(np.exp(2 * C @ X + D + 0.5)).logpmf([1, 2, 0]).sum()
    np.testing.assert_allclose(seen(X, step).log_prob(jnp.array([1.0, 2, 0])), want)
    moments = ss.Series(jnp.zeros((6, 3)), inputs=jnp.ones((6, 1)))
    _, y = ss.simulate(model(seen), moments, key=key)
    assert y.shape == (6, 3)
    assert (np.asarray(y) == np.round(y)).all()


def test_single_precision_stays():
    """The law is computed in the precision of the loadings."""
    single = lambda x: jnp.asarray(x, jnp.float32)
    for name, extra in EXTRA.items():
        extra = {k: v if k == "trials" else single(v) for k, v in extra.items()}
        seen = ss.GeneralisedLinear(single(C), single(D), name, **extra)
        assert seen(single(X), STEP).log_prob(single(Y[name])).dtype == jnp.float32, name


@pytest.mark.parametrize(
    ("args", "kwargs", "error", "message"),
    [
        ((C, D, "gamma"), {}, ValueError, r"`family` .* one of 'poisson'.*got 'gamma'"),
        ((C, D, "ordinal"), {}, ValueError, r"OrderedLogistic for ordinal .*CategoricalLogits"),
        ((C, D, 3), {}, TypeError, r"`family` .* name or a function .* got 3"),
        ((C, D, "poisson"), {"link": "log"}, ValueError, r"`link` .* 'exp', .* got 'log'"),
        ((C, D, "binomial"), {}, ValueError, r"'binomial' needs `trials`"),
        ((C, D, "binomial"), {"trials": 2.5}, ValueError, r"`trials` .* whole numbers, got 2.5"),
        ((C, D, "poisson"), {"scale": 1.0}, ValueError, r"`scale` does not belong .*'poisson'"),
        ((D, D), {}, ValueError, r"`matrix` .* \(m, n\), got \(3,\)"),
        ((C, D[:2]), {}, ValueError, r"`offset` .* \(3,\).* got \(2,\)"),
        ((C, D), {"exposure": jnp.ones(2)}, ValueError, r"`exposure` .*got \(2,\)"),
        ((C, D), {"exposure": 0.0}, ValueError, r"`exposure` .* positive"),
    ],
)
def test_what_is_refused(args, kwargs, error, message):
    """By the name of the argument, before anything is traced."""
    with pytest.raises(error, match=message):
        ss.GeneralisedLinear(*args, **kwargs)


@pytest.mark.parametrize(
    ("name", "y", "message"),
    [
        ("poisson", [[0, 1, 0.5]], r"'poisson' must be counts .* y\[0, 2\] is 0.5"),
        ("bernoulli", [[0, 2, 1]], r"must be 0 or 1 .* y\[0, 1\] is 2"),
        ("binomial", [[4, 6, 9]], r"number of trials .* y\[0, 1\] is 6"),
        ("gaussian", [[4.0, 6.0]], r"data have 2 channels.*`matrix` of 3 rows"),
    ],
)
def test_observations_that_cannot_be_are_refused(name, y, message, key):
    """Naming the entry."""
    with pytest.raises(ValueError, match=message):
        ss.log_likelihood(
            model(observation(name)), jnp.array(y, float), method=ss.ParticleFilter(), key=key
        )
