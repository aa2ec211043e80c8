"""Linearising filters and smoothers against Kalman, quadrature and a generic optimiser."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
import scipy.optimize

import statespace as ss
from statespace.linearisation import Cubature, GaussHermite, Taylor, Unscented

DT = 0.1


def normal_moment(power):
    """``E[z^k]`` of a standard normal."""
    return 0.0 if power % 2 else float(np.prod(np.arange(1, power, 2)))


@pytest.mark.parametrize(
    ("rule", "degree"),
    [
        (Cubature(), 3),
        (Cubature(degree=5), 5),
        (Unscented(), 3),
        (Unscented(alpha=0.5, kappa=2.0), 3),
        (GaussHermite(order=3), 5),
        (GaussHermite(order=4), 7),
    ],
)
@pytest.mark.parametrize("n", [1, 3, 6])
def test_a_rule_is_exact_up_to_its_degree(rule, degree, n):
    points, weights, covariance = rule.points(n)
    for powers in itertools.product(range(degree + 1), repeat=min(n, 3)):
        if sum(powers) > degree:
            continue
        value = np.prod(points[:, : len(powers)] ** np.array(powers), axis=1)
        exact = np.prod([normal_moment(k) for k in powers])
        np.testing.assert_allclose(weights @ value, exact, atol=1e-10)
    np.testing.assert_allclose((points.T * covariance) @ points, np.eye(n), atol=1e-10)


def test_the_unscented_centre_weighs_by_beta_in_covariances():
    _, mean, covariance = Unscented(alpha=0.5, beta=2.0, kappa=0.0).points(3)
    np.testing.assert_allclose(covariance[0] - mean[0], 1 - 0.25 + 2)


def both_forms_of_a_linear_model():
    """The same model as affine conditionals, and as functions of which nothing is known."""
    rng = np.random.default_rng(0)
    n, m = 3, 2
    f, h = jnp.asarray(0.4 * rng.normal(size=(n, n))), jnp.asarray(rng.normal(size=(m, n)))
    q, r = jnp.array([0.5, 0.4, 0.3]), jnp.array([0.5, 0.7])
    initial = ss.Gaussian(jnp.ones(n), jnp.ones(n))
    known = ss.Model(
        initial,
        ss.AffineGaussian(f, jnp.full(n, 0.3), q),
        ss.AffineGaussian(h, jnp.ones(m), r),
    )
    unknown = ss.Model(
        initial,
        lambda x, step: dist.Normal(f @ x + 0.3, q).to_event(1),
        lambda x, step: dist.MultivariateNormal(h @ x + 1, scale_tril=jnp.diag(r)),
    )
    y = rng.normal(size=(12, m))
    y[3, 0], y[7] = np.nan, np.nan
    return known, unknown, y


@pytest.mark.parametrize(
    "method",
    [
        ss.ExtendedKalman(form="sqrt", order=2),
        ss.SigmaPointKalman(),
        ss.SigmaPointKalman(form="sqrt", rule=Unscented(alpha=0.5, beta=2.0)),
        ss.IteratedSmoother(linearisation=GaussHermite(2)),
    ],
)
def test_linear_models_get_the_exact_answer(method):
    known, unknown, y = both_forms_of_a_linear_model()
    exact, got = ss.smooth(known, y), ss.smooth(unknown, y, method=method)
    np.testing.assert_allclose(got.mean, exact.mean, atol=1e-11)
    np.testing.assert_allclose(got.covariance, exact.covariance, atol=1e-11)
    np.testing.assert_allclose(got.lag_one, exact.lag_one, atol=1e-11)
    np.testing.assert_allclose(got.pointwise, exact.pointwise, atol=1e-11)


def test_the_log_likelihood_is_that_of_the_filter_and_online_gives_the_same():
    _, model, y = both_forms_of_a_linear_model()
    method = ss.SigmaPointKalman()
    filtered = ss.filter(model, y, method=method)
    np.testing.assert_allclose(
        ss.log_likelihood(model, y, method=method), filtered.log_likelihood, atol=1e-11
    )
    decoder = ss.online(model, method)
    state = decoder.init()
    for row in y:
        state = decoder.update(state, row)
    np.testing.assert_allclose(state.mean, filtered.mean[-1], atol=1e-12)
    np.testing.assert_allclose(state.covariance, filtered.covariance[-1], atol=1e-12)
    np.testing.assert_allclose(state.log_likelihood, filtered.log_likelihood, atol=1e-11)


def test_moments_through_a_curved_function_against_quadrature():
    mean, variance = jnp.array([0.4]), jnp.array([[0.3]])
    moments = lambda x: (jnp.exp(x), jnp.diag(0.1 * x**2))
    got = GaussHermite(order=12)(moments, mean, variance)
    z, w = np.polynomial.hermite_e.hermegauss(60)
    w, x = w / w.sum(), 0.4 + np.sqrt(0.3) * z
    slope = w @ ((np.exp(x) - w @ np.exp(x)) * (x - 0.4)) / 0.3
    spread = w @ (np.exp(x) - w @ np.exp(x)) ** 2 - slope**2 * 0.3 + w @ (0.1 * x**2)
    np.testing.assert_allclose(got.matrix, [[slope]], rtol=1e-9)
    np.testing.assert_allclose(got.matrix @ mean + got.offset, [w @ np.exp(x)], rtol=1e-9)
    np.testing.assert_allclose(got.noise, [[spread]], rtol=1e-8)
    factor = GaussHermite(order=12)(
        lambda x: (jnp.exp(x), jnp.diag(jnp.sqrt(0.1) * x)), mean, jnp.sqrt(variance), "sqrt"
    ).noise
    np.testing.assert_allclose(factor @ factor.T, got.noise, rtol=1e-9)


@pytest.mark.parametrize(
    "rule",
    [Taylor(), Taylor(2), Cubature(), Cubature(5), Unscented(0.5, 2.0, 0.3), GaussHermite(3)],
    ids=["first order", "second order", "cubature", "degree 5", "unscented", "Gauss-Hermite"],
)
@pytest.mark.parametrize("varies", [False, True])
def test_joint_moments_are_those_of_the_affine_stand_in(rule, varies):
    mean, covariance = jnp.array([0.5, -1.0]), jnp.array([[0.4, 0.1], [0.1, 0.3]])
    root = jnp.linalg.cholesky(covariance)
    curved = lambda x: jnp.array([jnp.sin(x[0]) * x[1], jnp.exp(0.3 * x[1])])
    scale = lambda x: jnp.diag(0.2 + 0.1 * x**2 * varies)
    matrix, offset, noise = rule(lambda x: (curved(x), scale(x) ** 2), mean, covariance)
    joint = rule.joint(lambda x: (curved(x), scale(x) ** 2), mean, covariance)
    np.testing.assert_allclose(joint.mean, matrix @ mean + offset, rtol=1e-12)
    np.testing.assert_allclose(joint.cross, matrix @ covariance, atol=1e-13)
    np.testing.assert_allclose(joint.own, matrix @ covariance @ matrix.T + noise, atol=1e-13)
    factor = rule.joint(lambda x: (curved(x), scale(x)), mean, root, "sqrt")
    np.testing.assert_allclose(factor.mean, joint.mean, rtol=1e-12)
    np.testing.assert_allclose(factor.cross @ root.T, joint.cross, atol=1e-13)
    columns = jnp.concatenate([factor.cross, factor.own], axis=1)
    np.testing.assert_allclose(columns @ columns.T, joint.own, atol=1e-13)


def test_the_second_order_expansion_is_exact_for_a_quadratic():
    mean, covariance = jnp.array([0.5, -1.0]), jnp.array([[0.4, 0.1], [0.1, 0.3]])
    bend = jnp.array([[1.0, 0.3], [0.3, -0.5]])
    moments = lambda x: ((x @ bend @ x)[None], jnp.full((1, 1), 0.2))
    got = Taylor(order=2)(moments, mean, covariance)
    expected = mean @ bend @ mean + jnp.trace(bend @ covariance)
    np.testing.assert_allclose(got.matrix @ mean + got.offset, [expected], rtol=1e-12)
    rest = 0.2 + 2 * jnp.trace(bend @ covariance @ bend @ covariance)
    np.testing.assert_allclose(got.noise, [[rest]], rtol=1e-12)


def pendulum(scale=0.1):
    move = lambda x: jnp.array([x[0] + DT * x[1], x[1] - 9.8 * DT * jnp.sin(x[0])])
    return ss.Model(
        ss.Gaussian(jnp.array([1.5, 0.0]), jnp.array([0.3, 0.3])),
        lambda x, step: dist.Normal(move(x), jnp.array([0.05, 1.0]) * scale).to_event(1),
        lambda x, step: dist.Normal(jnp.sin(x[:1]), 0.3),
    )


@pytest.fixture(scope="module")
def swing():
    y = np.array(ss.simulate(pendulum(), 20, key=jax.random.key(1)).y)
    y[5] = np.nan
    return y


def minus_log_joint(x, y):
    """Written out, without the constants."""
    move = jnp.stack([x[:-1, 0] + DT * x[:-1, 1], x[:-1, 1] - 9.8 * DT * jnp.sin(x[:-1, 0])], 1)
    start = ((x[0] - jnp.array([1.5, 0.0])) / 0.3) ** 2
    errors = (x[1:] - move) / jnp.array([0.005, 0.1])
    seen = jnp.where(jnp.isnan(y), 0, (jnp.sin(x[:, :1]) - jnp.nan_to_num(y)) / 0.3)
    return 0.5 * (jnp.sum(start) + jnp.sum(errors**2) + jnp.sum(seen**2))


@pytest.mark.parametrize("damping", [None, "levenberg-marquardt", "line-search"])
def test_the_iterated_smoother_finds_the_posterior_mode(swing, damping):
    posterior = ss.smooth(pendulum(), swing, method=ss.IteratedSmoother(damping=damping))
    assert bool(posterior.convergence.converged)
    flat = lambda z: minus_log_joint(z.reshape(-1, 2), swing)
    start = np.concatenate([np.linspace(1.2, -1, 20)[:, None], np.zeros((20, 1))], 1).ravel()
    best = scipy.optimize.minimize(
        jax.jit(flat), start, jac=jax.jit(jax.grad(flat)), hess=jax.jit(jax.hessian(flat)),
        method="trust-exact", options={"gtol": 1e-10, "maxiter": 2000},
    )  # fmt: skip
    np.testing.assert_allclose(posterior.mean, best.x.reshape(-1, 2), atol=1e-6)


def test_gradients_of_the_fixed_point(swing):
    value = lambda scale: ss.log_likelihood(
        pendulum(scale), swing, method=ss.IteratedSmoother(tolerance=1e-12)
    )
    step = 1e-5
    numeric = (value(0.1 + step) - value(0.1 - step)) / (2 * step)
    np.testing.assert_allclose(jax.grad(value)(0.1), numeric, rtol=1e-6)


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match=r"`rule` of SigmaPointKalman must be a rule: .cubature.,"):
        ss.SigmaPointKalman(rule="simplex")
    with pytest.raises(ValueError, match="`order` of Taylor must be 1 or 2, got 3"):
        ss.ExtendedKalman(order=3)
    with pytest.raises(ValueError, match="needs a cost that each step lowers"):
        ss.IteratedSmoother(linearisation=Cubature(), damping="line-search")
    with pytest.raises(ValueError, match="use Cubature\\(\\) or Unscented\\(\\)"):
        GaussHermite(order=10).points(8)
    diffuse = ss.LocalLevel(level_scale=1.0, noise_scale=1.0)
    with pytest.raises(ValueError, match="`initial` of the model is diffuse"):
        ss.filter(diffuse, np.zeros(4), method=ss.ExtendedKalman())
    with pytest.raises(ValueError, match="`observation` of the model gives values of shape"):
        ss.filter(pendulum(), np.zeros((4, 2)), method=ss.ExtendedKalman())
    categorical = ss.Model(
        ss.Gaussian(jnp.zeros(2), jnp.ones(2)),
        lambda x, step: dist.Dirichlet(jnp.exp(x)),
        lambda x, step: dist.Normal(x[:1], 1.0),
    )
    with pytest.raises(TypeError, match="`transition` of the model gives Dirichlet"):
        ss.filter(categorical, np.zeros((4, 1)), method=ss.ExtendedKalman())
    with pytest.raises(TypeError, match="needs the whole recording"):
        ss.online(pendulum(), ss.IteratedSmoother())
