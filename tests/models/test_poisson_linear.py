"""Counts with linear dynamics: starting values in closed form, the likelihood on a grid."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats as st

import statespace as ss
from statespace.models import count_moments

ANGLE = 0.2
F = 0.97 * np.array([[np.cos(ANGLE), -np.sin(ANGLE)], [np.sin(ANGLE), np.cos(ANGLE)]])
Q = np.eye(2) - F @ F.T
H = np.random.default_rng(3).normal(size=(8, 2))
H /= 1.25 * np.linalg.norm(H, axis=1).max()
D = np.linspace(-1.0, 1.5, 8)


def model(family="poisson", **kwargs):
    return ss.PoissonLinearDynamics(
        F, np.linalg.cholesky(Q), H, D, np.zeros(2), np.ones(2), family=family, **kwargs
    )


def predictors(length, rng):
    x, noise = np.zeros((length, 2)), rng.normal(size=(length, 2)) @ np.linalg.cholesky(Q).T
    x[0] = rng.normal(size=2)
    for t in range(1, length):
        x[t] = F @ x[t - 1] + noise[t]
    return x @ H.T + D


def exact_covariances(over):
    """Means and lagged covariances of counts whose log means are normal."""
    lags = [H @ np.linalg.matrix_power(F, k) @ H.T for k in range(5)]
    mean = np.exp(D + np.diagonal(lags[0]) / 2)
    covariances = np.stack([np.outer(mean, mean) * np.expm1(s) for s in lags])
    covariances[0] += np.diag(mean + over * mean**2 * np.exp(np.diagonal(lags[0])))
    return mean, covariances


@pytest.mark.parametrize("over", [0.0, 0.5])
def test_the_moments_of_log_rates_are_inverted_exactly(over):
    """From the exact covariances of counts the model comes back, but for the coordinates of the states."""
    mean, covariances = exact_covariances(over)
    found = count_moments.log_linear_moments(mean, covariances, poisson=not over, states=2)
    tolerance = 1e-9 if not over else 1e-3  # of principal factoring, which iterates
    np.testing.assert_allclose(found.covariances[0], H @ H.T, atol=tolerance)
    np.testing.assert_allclose(found.mean, D, atol=tolerance)
    np.testing.assert_allclose(found.overdispersion, over, atol=3 * tolerance)
    start = count_moments.dynamics(found.covariances, 2)
    np.testing.assert_allclose(start.loadings @ start.loadings.T, H @ H.T, atol=tolerance)
    together = lambda values: np.sort_complex(np.linalg.eigvals(values))
    np.testing.assert_allclose(together(start.matrix), together(F), atol=tolerance)
    # what the states say of each other at any lag does not depend on their coordinates
    turned = start.loadings @ np.linalg.matrix_power(start.matrix, 3) @ start.loadings.T
    np.testing.assert_allclose(turned, H @ np.linalg.matrix_power(F, 3) @ H.T, atol=2 * tolerance)
    np.testing.assert_allclose(start.noise, np.eye(2) - start.matrix @ start.matrix.T, atol=1e-9)


@pytest.mark.parametrize(
    ("family", "within"),
    [("poisson", 0.15), ("negative_binomial", 0.25), ("bernoulli", 0.4), ("binomial", 0.4)],
)
def test_a_start_from_counts_is_near(family, within):
    """Of 20,000 moments with missing entries; log odds are inverted to first order only, and shrink."""
    rng = np.random.default_rng(5)
    eta = predictors(20_000, rng)
    extra = {"trials": 9} if family == "binomial" else {}
    if family == "poisson":
        y = rng.poisson(0.5 * np.exp(eta))
        extra = {"exposure": 0.5}
    elif family == "negative_binomial":
        y = rng.poisson(np.exp(eta) * rng.gamma(2.0, 0.5, size=eta.shape))
    else:
        y = rng.binomial(extra.get("trials", 1), scipy.special.expit(eta))
    y = np.where(rng.random(y.shape) < 0.1, np.nan, y)
    start = ss.PoissonLinearDynamics.from_counts(
        [y[:12_000], y[12_000:]], 2, family=family, **extra
    )
    loadings = np.asarray(start.observation_matrix)
    size = np.abs(H @ H.T).max()
    assert np.abs(loadings @ loadings.T - H @ H.T).max() < within * size
    radius = np.abs(np.linalg.eigvals(start.transition_matrix))
    np.testing.assert_allclose(radius, 0.97, atol=0.03)
    assert np.abs(np.asarray(start.observation_offset) - D).max() < within
    if family == "negative_binomial":
        assert abs(np.median(start.concentration) - 2) < 0.3


def test_few_counts_still_give_a_start():
    """Silent and constant neurons, as many states as channels, one channel."""
    rng = np.random.default_rng(0)
    y = rng.poisson(0.2, size=(40, 3)).astype(float)
    y[:, 1] = 0
    for family in ("poisson", "negative_binomial", "bernoulli"):
        values = np.minimum(y, 1) if family == "bernoulli" else y
        for part, n in ((values, 3), (values[:, :1], 1), (np.ones((10, 1)), 1)):
            start = ss.PoissonLinearDynamics.from_counts(part, n, family=family, inputs=2)
            assert all(np.isfinite(v).all() for v in ss.parameters(start).values())
            assert start.transition_input_matrix.shape == (n, 2)


def test_supports_of_the_parameters():
    """Matrices are real, scales triangular, dispersions positive; exposure and trials are not learned."""
    from numpyro.distributions import constraints

    wide = ss.PoissonLinearDynamics(
        F, Q.diagonal(), H, D, np.zeros(2), np.eye(2),
        np.zeros((2, 1)), np.zeros((8, 1)), np.ones(8), "negative_binomial", 0.1,
    )  # fmt: skip
    kinds = ss.supports(wide)
    assert set(kinds) == set(ss.parameters(wide))
    assert "exposure" not in kinds
    assert kinds["transition_scale"] == constraints.positive
    assert kinds["initial_scale"] == constraints.lower_cholesky
    assert kinds["concentration"] == constraints.positive
    assert kinds["observation_input_matrix"] == constraints.real
    back = ss.parameters(ss.constrain(wide, ss.unconstrain(wide)))
    for name, value in ss.parameters(wide).items():
        np.testing.assert_allclose(back[name], value, atol=1e-12)


def test_the_law_of_the_counts():
    """Poisson of the exposure times the exponential of the predictor, inputs included."""
    wide = model(
        exposure=0.1,
        transition_input_matrix=[[1.0], [0.0]],
        observation_input_matrix=np.ones((8, 1)),
    )
    step = ss.Step(1, 1.0, 1.0, jnp.array([0.3]))
    x = jnp.array([0.5, -0.2])
    y = jnp.arange(8.0)
    rates = 0.1 * np.exp(H @ x + D + 0.3)
    np.testing.assert_allclose(
        wide.observation(x, step).log_prob(y), st.poisson(rates).logpmf(np.arange(8)).sum()
    )
    np.testing.assert_allclose(wide.transition(x, step).mean, F @ x + np.array([0.3, 0.0]))


def test_the_likelihood_is_that_of_a_grid(key):
    """One state, three neurons, a missing count: particles against sums over a grid."""
    small = ss.PoissonLinearDynamics(
        [[0.9]], [0.4], [[1.0], [-0.5], [0.3]], [0.5, 0.0, 1.0], [0.0], [1.0]
    )
    y = np.array([[2.0, 1.0, 3.0], [4.0, np.nan, 2.0], [np.nan] * 3, [0.0, 2.0, 5.0]])
    x = np.linspace(-6, 6, 1201)
    move = st.norm(0.9 * x[None], 0.4).pdf(x[:, None]) * (x[1] - x[0])
    alpha, total = st.norm(0, 1).pdf(x) * (x[1] - x[0]), 0.0
    for t, row in enumerate(y):
        alpha = move @ alpha if t else alpha
        for count, matrix, offset in zip(row, (1.0, -0.5, 0.3), (0.5, 0.0, 1.0)):
            if np.isfinite(count):
                alpha = alpha * st.poisson(np.exp(matrix * x + offset)).pmf(count)
        total += np.log(alpha.sum())
        alpha /= alpha.sum()
    method = ss.ParticleFilter(particles=40_000)
    np.testing.assert_allclose(
        ss.log_likelihood(small, y, method=method, key=key), total, atol=0.05
    )


def test_simulated_counts_are_counts(key):
    """Of a family with a limit."""
    y = np.asarray(ss.simulate(model("binomial", trials=5), 30, key=key).y)
    assert y.shape == (30, 8)
    assert set(np.unique(y)) <= set(range(6))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: model("gamma"), r"`family` .*'poisson'.* got 'gamma'"),
        (lambda: model("negative_binomial"), r"needs `concentration`"),
        (lambda: model("poisson", concentration=np.ones(8)), r"`concentration` does not belong"),
        (lambda: model("binomial"), r"needs `trials`"),
        (lambda: model(exposure=-1.0), r"`exposure` .*positive"),
        (lambda: model(observation_input_matrix=np.ones((3, 1))), r"\(8, k\), got \(3, 1\)"),
        (
            lambda: ss.PoissonLinearDynamics(F, Q.diagonal(), H, D[:2], np.zeros(2), np.ones(2)),
            r"`observation_offset` must have shape \(8,\)",
        ),
        (lambda: ss.PoissonLinearDynamics.from_counts(np.ones((9, 2)), 3), r"`state_dim` from 1 to m"),
        (
            lambda: ss.PoissonLinearDynamics.from_counts(np.full((9, 2), np.nan), 1),
            r"channels \[0, 1\] of `counts` have no observation",
        ),
    ],
)  # fmt: skip
def test_what_is_refused(make, message):
    """By the name of the argument."""
    with pytest.raises(ValueError, match=message):
        make()


def test_a_model_can_be_traced():
    """Learners build it from traced parameters."""
    value = jax.jit(lambda m: m.observation(jnp.zeros(2), ss.Step(0, 0.0, 1.0)).log_prob(D * 0))
    np.testing.assert_allclose(value(model(exposure=0.1)), -0.1 * np.exp(D).sum())
