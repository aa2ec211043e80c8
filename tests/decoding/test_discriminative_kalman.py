"""The discriminative Kalman filter: exact where regression is, and what happens where it is not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import multivariate_normal

import statespace as ss
from statespace.conditionals.stationary import discrete_lyapunov
from statespace.methods.discriminative_sites import by_rule, log_density, said_of

RULES = ["clip", "fallback", "shrink", "robust"]
A = np.array([[0.8, 0.3], [-0.3, 0.7]])
GAMMA = np.array([[0.5, 0.1], [0.1, 0.3]])
S = np.asarray(discrete_lyapunov(jnp.asarray(A), jnp.asarray(GAMMA)))
MEAN = np.array([1.0, -2.0])
H = np.array([[1.0, 0.5]])  # one channel: in one direction of the state an observation says nothing
R = np.array([[0.6]])
V = H @ S @ H.T + R
GAIN = S @ H.T / V
Q = S - GAIN @ V @ GAIN.T

INITIAL = ss.Gaussian(MEAN, covariance=S)
DYNAMICS = ss.AffineGaussian(A, MEAN - A @ MEAN, covariance=GAMMA)
LINEAR = ss.Model(INITIAL, DYNAMICS, ss.AffineGaussian(H, covariance=R))


def posterior_of_one(y):
    """What one observation of LINEAR says of its state."""
    return MEAN + GAIN @ (y - H @ MEAN), jnp.asarray(Q)


def wide(y):
    """In its first direction less sure than the marginal."""
    root = jnp.linalg.cholesky(jnp.asarray(S))
    return root @ jnp.array([y[0], 0.4]) + MEAN, root @ jnp.diag(jnp.array([1.7, 0.3])) @ root.T


def decoder(rule="clip", regression=posterior_of_one, transition=DYNAMICS):
    marginal = None if rule == "alone" else (MEAN, S)
    rule = "robust" if rule == "alone" else rule
    return ss.Model(INITIAL, transition, ss.Discriminative(regression, marginal, rule))


def recording(length=30):
    y = np.array(ss.simulate(LINEAR, length, key=jax.random.key(3)).y)
    y[[4, 11, 12]] = np.nan
    return y


Y = recording()
MARGINAL = multivariate_normal(H @ MEAN, V).logpdf(Y[~np.isnan(Y)])


def close(a, b, atol=1e-12):
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=0, atol=atol)


# linear regression and constant Q: the Kalman filter --------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "method"),
    [
        ("clip", None),
        ("fallback", ss.DiscriminativeKalman("sqrt")),
        ("shrink", ss.DiscriminativeKalman(parallel=True)),
    ],
)
def test_linear_regression_gives_the_kalman_filter_and_smoother(rule, method):
    exact, ours = ss.smooth(LINEAR, Y), ss.smooth(decoder(rule), Y, method=method)
    for name in ("mean", "covariance", "lag_one"):
        close(getattr(ours, name), getattr(exact, name))
    assert float(ours.log_likelihood) == pytest.approx(
        float(exact.log_likelihood) - MARGINAL.sum(), abs=1e-11
    )
    assert float(ours.flag_rate) == 0
    filtered = ss.filter(decoder(rule), Y, method=method)
    close(filtered.mean, ss.filter(LINEAR, Y).mean)


def test_pointwise_terms_are_relative_to_the_marginal_densities():
    ours, exact = ss.filter(decoder(), Y), ss.filter(LINEAR, Y)
    relative = np.array(exact.pointwise)
    relative[~np.isnan(Y[:, 0])] -= MARGINAL
    close(ours.pointwise, relative, atol=1e-11)
    close(ours.pointwise[4], 0)
    assert float(ss.log_likelihood(decoder(), Y)) == pytest.approx(relative.sum(), abs=1e-11)


def test_one_observation_at_a_time():
    exact = ss.filter(LINEAR, Y)
    online = ss.online(decoder())
    state = online.init()
    for t, y in enumerate(Y):
        state = online.update(state, None if t == 4 else y)
        close(state.mean, exact.mean[t])
        close(state.covariance, exact.covariance[t])
    assert float(state.log_likelihood) == pytest.approx(
        float(exact.log_likelihood) - MARGINAL.sum(), abs=1e-11
    )


def test_irregular_times_and_a_panel():
    """Recordings of two lengths, of a diffusion observed at random times."""
    drift = np.array([[-0.6, 0.4], [-0.2, -0.5]])
    diffusion = ss.LinearDiffusion(drift, np.array([0.9, 0.7]), -drift @ MEAN)
    linear = ss.Model(INITIAL, diffusion, LINEAR.observation)
    times = np.cumsum(np.random.default_rng(0).exponential(size=30))
    panel = [ss.Series(Y, times), ss.Series(Y[:17], times[:17])]
    exact = ss.smooth(linear, panel)
    ours = ss.smooth(decoder(transition=diffusion), panel)
    for i in range(2):
        close(ours[i].mean, exact[i].mean)
        close(ours[i].covariance, exact[i].covariance)
        assert len(ours[i].flagged) == len(panel[i])


def test_draws_have_the_smoothed_law():
    """4,000 draws; bounds are 5 standard errors."""
    exact = ss.smooth(LINEAR, Y)
    draws = np.asarray(ss.sample_states(decoder(), Y, key=jax.random.key(0), draws=4000))
    z = (draws.mean(axis=0) - exact.mean) / (exact.std / np.sqrt(4000))
    assert np.abs(z).max() < 5
    ahead = np.einsum(
        "sti,stj->tij", draws[:, :-1] - exact.mean[:-1], draws[:, 1:] - exact.mean[1:]
    )
    size = exact.std[:-1, :, None] * exact.std[1:, None, :]
    assert np.abs(ahead / 4000 - exact.lag_one).max() < 5 * np.max(size) * np.sqrt(2 / 4000)


# the rules --------------------------------------------------------------------------------------------


def published(rule, f, q, mean, covariance):
    """One update of the filter in the words of the paper and of its codes, with m = 0."""
    inv = np.linalg.inv
    flagged = np.linalg.eigvalsh(inv(q) - inv(S)).min() <= 0
    if rule == "clip" and flagged:
        # Q V = S V D with V' S V = I; Q <- S V min(D, 1) V' S
        root = np.linalg.cholesky(S)
        values, vectors = np.linalg.eigh(inv(root) @ q @ inv(root).T)
        v = inv(root).T @ vectors
        q = S @ v @ np.diag(np.minimum(values, 1)) @ v.T @ S
    if rule == "shrink" and flagged:
        q = inv(inv(q) + inv(S))
    dropped = rule == "robust" or (rule == "fallback" and flagged)
    precision = inv(q) + inv(covariance) - (0 if dropped else inv(S))
    return inv(precision) @ (inv(q) @ f + inv(covariance) @ mean), inv(precision)


@pytest.mark.parametrize("rule", RULES)
def test_each_rule_is_the_published_update(rule):
    model = decoder(rule, wide)
    ours = ss.filter(model, Y)
    mean, covariance = np.zeros(2), S
    for t, y in enumerate(Y):
        if t:
            mean, covariance = A @ mean, A @ covariance @ A.T + GAMMA
        if not np.isnan(y[0]):
            f, q = (np.asarray(part) for part in wide(y))
            mean, covariance = published(rule, f - MEAN, q, mean, covariance)
        close(ours.mean[t] - MEAN, mean)
        close(ours.covariance[t], covariance)
    assert float(ours.flag_rate) == 1
    assert not np.asarray(ours.flagged)[4]


@pytest.mark.parametrize("rule", RULES)
def test_a_potential_has_expectation_one_under_the_marginal(rule):
    """By Gauss–Hermite quadrature with the marginal as its weight."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    grid = np.stack(np.meshgrid(nodes, nodes, indexing="ij"), -1).reshape(-1, 2)
    weight = np.outer(weights, weights).ravel() / weights.sum() ** 2
    states = MEAN + grid @ np.linalg.cholesky(S).T
    observation = decoder(rule, wide).observation
    density = jax.vmap(lambda x: log_density(observation, x, jnp.array([0.3])))(jnp.asarray(states))
    assert np.exp(density) @ weight == pytest.approx(1, abs=1e-9)
    assert float(log_density(observation, MEAN, jnp.array([jnp.nan]))) == 0


def test_without_a_marginal_the_regression_is_a_noisy_observation_of_the_state():
    """log N(f_t; x_t, Q), which a Kalman filter on the pseudo-observations f_t has too."""
    ours = ss.smooth(decoder("alone"), Y)
    pseudo = np.where(np.isnan(Y), np.nan, MEAN + (Y - H @ MEAN) @ GAIN.T)
    same = ss.Model(INITIAL, DYNAMICS, ss.AffineGaussian(np.eye(2), covariance=Q))
    exact = ss.smooth(same, pseudo)
    close(ours.mean, exact.mean)
    close(ours.covariance, exact.covariance)
    assert float(ours.log_likelihood) == pytest.approx(float(exact.log_likelihood), abs=1e-11)


@pytest.mark.parametrize("rule", RULES)
def test_derivatives_of_the_rules_against_differences(rule):
    """In three dimensions, with a pair of equal eigenvalues and one above 1."""
    matrix = jnp.diag(jnp.array([0.4, 0.4, 1.6]))
    turn, _ = jnp.linalg.qr(jax.random.normal(jax.random.key(0), (3, 3)))
    matrix = turn @ matrix @ turn.T
    direction = jax.random.normal(jax.random.key(1), (3, 3))
    direction = direction + direction.T
    function = lambda t: by_rule((matrix + t * direction)[None], rule)
    out, slope = jax.jvp(function, (0.0,), (1.0,))
    h = 1e-5
    for s, up, down in zip(slope, function(h), function(-h)):
        close(s, (up - down) / (2 * h), atol=1e-7)
    close(out[2][0], 1.6)


def test_gradients_of_the_likelihood():
    def value(scale):
        transition = ss.AffineGaussian(A * scale, MEAN - A @ MEAN, covariance=GAMMA)
        return ss.log_likelihood(decoder("clip", wide, transition), Y)

    h = 1e-5
    slope = float(jax.grad(value)(1.0))
    assert slope == pytest.approx(float((value(1 + h) - value(1 - h)) / (2 * h)), rel=1e-6)


def test_float32_follows_the_data():
    narrow = lambda part: jax.tree.map(lambda x: x.astype(jnp.float32), part)
    single = lambda y: narrow(wide(y))
    observation = ss.Discriminative(single, narrow(ss.Gaussian(MEAN, covariance=S)))
    model = ss.Model(narrow(INITIAL), narrow(DYNAMICS), observation)
    ours = ss.smooth(model, Y.astype(np.float32))
    assert ours.mean.dtype == jnp.float32
    assert ours.form == "sqrt"
    close(ours.mean, ss.smooth(decoder("clip", wide), Y).mean, atol=1e-5)


# what is refused --------------------------------------------------------------------------------------


def test_a_model_without_a_law_of_observations_says_which_methods_fit():
    with pytest.raises(TypeError, match=r"no p\(y \| x\).*DiscriminativeKalman"):
        ss.simulate(decoder(), 5, key=jax.random.key(0))
    with pytest.raises(TypeError, match="the method that fits is DiscriminativeKalman"):
        ss.filter(decoder(), Y, method=ss.Kalman())
    with pytest.raises(TypeError, match="`smooth` the data with a row of NaN"):
        ss.forecast(decoder(), Y, 3)
    with pytest.raises(TypeError, match="it needs Discriminative"):
        ss.filter(LINEAR, Y, method=ss.DiscriminativeKalman())


class Neighbours:
    """A regressor of another library, as scikit-learn makes them."""

    def get_params(self):
        return {}

    def predict(self, y):
        return self.points_

    def fit(self):
        self.points_ = np.zeros(2)
        return self


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((3.0,), TypeError, "must be a function of one observation"),
        (
            (Neighbours(),),
            TypeError,
            "is a Neighbours that is not fitted: fit it first, and wrap it",
        ),
        ((Neighbours().fit(),), TypeError, "got Neighbours; wrap it"),
        (
            (wide, (MEAN, S), "drop"),
            ValueError,
            "one of clip, fallback, shrink, robust, got 'drop'",
        ),
        ((wide, None, "clip"), ValueError, "which was not given"),
        ((wide, (MEAN, np.ones((2, 2)))), ValueError, "positive definite covariance"),
        ((wide, ss.Gaussian(MEAN, np.ones(2), (True, False))), ValueError, "is diffuse"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        ss.Discriminative(*arguments)


def test_regressions_that_do_not_fit():
    channels = lambda y: (jnp.ones((3, 2)).T @ y, jnp.eye(2))
    with pytest.raises(ValueError, match="cannot be evaluated on an observation of 1 channels"):
        ss.filter(decoder(regression=channels), Y)
    states = lambda y: (y, jnp.eye(1))
    with pytest.raises(ValueError, match=r"must give a mean \(2,\) and a covariance \(2, 2\)"):
        ss.filter(decoder(regression=states), Y)
    indefinite = lambda y: (jnp.zeros(2), jnp.diag(jnp.array([1.0, -0.1])))
    with pytest.raises(ValueError, match=r"at row 0 .* not positive definite"):
        ss.filter(decoder(regression=indefinite), Y)
    model = ss.Model(INITIAL, DYNAMICS, ss.Discriminative(wide, (np.zeros(3), np.eye(3))))
    with pytest.raises(ValueError, match="over 3 coordinates"):
        ss.filter(model, Y)


def test_a_moment_that_is_missing_in_part():
    y = np.ones((6, 2))
    y[3, 1] = np.nan
    both = lambda y: (y, jnp.eye(2) * 0.1)
    with pytest.raises(ValueError, match="row 3 is missing in part"):
        ss.filter(decoder(regression=both), y)


def test_learners_leave_the_regression_alone():
    assert not any(name.startswith("observation") for name in ss.parameters(decoder()))
    said = said_of(decoder().observation, jnp.asarray(Y))
    assert said.precision.shape == (30, 2, 2)


@pytest.mark.filterwarnings("ignore::statespace.ConvergenceWarning")
def test_the_table_of_a_fit_leaves_out_residuals():
    """There are no one-step predictions of observations."""
    learner = ss.MaximumLikelihood(max_steps=1, standard_errors=False)
    made = ss.fit(ss.freeze(decoder(), "initial"), Y, learner=learner)
    table = made.summary()
    assert "transition.offset[1]" in table
    assert "Ljung" not in table
    assert made.residual_tests() is None
    with pytest.raises(TypeError, match="has no standardised errors of the observations"):
        made.residuals()
