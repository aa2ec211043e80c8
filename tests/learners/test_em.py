"""EM against the dense expected log likelihood, and its fixed points against maximum likelihood."""

import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from compilations import compilations
from dense_expectations import expected_log_likelihood

import statespace as ss
from statespace.parameters import replace


def model(full=False, inputs=0):
    """Two states, three channels, everything different from zero."""
    rng = np.random.default_rng(3)
    lower = lambda d: np.tril(0.2 * rng.normal(size=(d, d)), -1) + np.diag(rng.uniform(0.4, 0.8, d))
    made = ss.LinearGaussian(
        transition_matrix=[[0.8, 0.3], [-0.2, 0.7]],
        transition_scale=lower(2),
        observation_matrix=rng.normal(size=(3, 2)),
        observation_scale=lower(3) if full else rng.uniform(0.4, 0.8, 3),
        initial_mean=[0.5, -0.3],
        initial_scale=lower(2),
        transition_offset=[0.2, -0.1],
        observation_offset=[1.0, 0.0, -1.0],
        transition_input_matrix=rng.normal(size=(2, inputs)) if inputs else None,
        observation_input_matrix=rng.normal(size=(3, inputs)) if inputs else None,
    )
    return made


def recording(T, missing=0.0, seed=0, inputs=0):
    rng = np.random.default_rng(seed)
    x, y = np.zeros(2), []
    u = rng.normal(size=(T, inputs)) if inputs else None
    H = rng.normal(size=(3, 2))
    for t in range(T):
        x = np.array([[0.9, 0.2], [-0.3, 0.7]]) @ x + 0.5 * rng.normal(size=2)
        x = x + (0.5 * u[t].sum() if inputs else 0.0)
        y.append(H @ x + 0.4 * rng.normal(size=3) + [0.5, 0, 1])
    y = np.array(y)
    if missing:
        y[rng.random(y.shape) < missing] = np.nan
        y[T // 2] = np.nan
        y[-1, 0] = np.nan
    return y, u


def one_iteration(start, data):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ss.ConvergenceWarning)
        return ss.fit(start, data, learner=ss.EM(iterations=1))


def check_m_step(start, recordings):
    """Free parameters are at a maximum of the dense expected log likelihood, frozen ones where they were."""
    data = [ss.Series(y, inputs=u) for y, u in recordings]
    fitted = one_iteration(start, data if len(data) > 1 else data[0])
    old, new = ss.parameters(start), ss.parameters(fitted.model)
    free = ss.parameters(start, frozen=False)

    def objective(values):
        here = new | values
        return sum(expected_log_likelihood(here, old, y, u) for y, u in recordings)

    slopes = jax.grad(objective)({k: new[k] for k in free})
    for name, slope in slopes.items():
        slope = np.tril(slope) if name.endswith("scale") and slope.ndim == 2 else slope
        np.testing.assert_allclose(slope, 0, atol=1e-8, err_msg=name)
    for name in set(old) - set(free):
        np.testing.assert_array_equal(new[name], old[name])
    assert objective({}) > sum(expected_log_likelihood(old, old, y, u) for y, u in recordings)
    return fitted


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("missing", [0.0, 0.3])
@pytest.mark.parametrize("inputs", [0, 2])
def test_m_step(full, missing, inputs):
    check_m_step(model(full, inputs), [recording(12, missing, inputs=inputs)])


@pytest.mark.parametrize(
    "frozen",
    [
        ["transition_matrix"],
        ["transition_scale", "observation_scale"],
        ["observation_matrix", "transition_offset"],
        ["observation_input_matrix", "initial_mean"],
        ["transition_input_matrix", "observation_offset", "initial_scale"],
        ["transition_matrix", "transition_offset", "transition_input_matrix"],
    ],
)
def test_m_step_with_frozen_parameters(frozen):
    start = ss.freeze(model(True, 2), *frozen)
    check_m_step(start, [recording(10, 0.3, inputs=2)])


@pytest.mark.parametrize("inputs", [0, 1])
def test_m_step_of_a_panel(inputs):
    """Recordings of unequal length, complete and incomplete ones: E-steps apart, one M-step."""
    parts = [(9, 0.0, 1), (12, 0.3, 2), (5, 0.0, 3)]
    check_m_step(model(True, inputs), [recording(T, f, s, inputs) for T, f, s in parts])


def test_plain_model_is_the_same():
    """`ss.Model` of the same arrays moves to the same place."""
    start, (y, _) = model(True), recording(15, 0.2)
    square = lambda scale: scale @ scale.T
    plain = ss.Model(
        ss.Gaussian(start.initial_mean, covariance=square(start.initial_scale)),
        ss.AffineGaussian(
            start.transition_matrix,
            start.transition_offset,
            covariance=square(start.transition_scale),
        ),
        ss.AffineGaussian(
            start.observation_matrix, start.observation_offset, start.observation_scale
        ),
    )
    ours, theirs = (ss.parameters(one_iteration(m, y).model) for m in (start, plain))
    pairs = {
        "transition_matrix": "transition.matrix",
        "observation_offset": "observation.offset",
        "observation_scale": "observation.scale",
        "initial_mean": "initial.mean",
    }
    for a, b in pairs.items():
        np.testing.assert_allclose(ours[a], theirs[b], rtol=1e-9, atol=1e-12)
    for a, b in (
        ("transition_scale", "transition.covariance"),
        ("initial_scale", "initial.covariance"),
    ):
        np.testing.assert_allclose(square(ours[a]), theirs[b], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("form", ["covariance", "sqrt"])
def test_likelihood_never_falls(form):
    y, u = recording(60, 0.2, inputs=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ss.ConvergenceWarning)
        fitted = ss.fit(
            model(True, 1),
            ss.Series(y, inputs=u),
            learner=ss.EM(iterations=120),
            method=ss.Kalman(form=form),
        )
    assert fitted.iterations == 120
    assert len(fitted.trace) == 121
    assert np.all(np.diff(fitted.trace) > 0)
    np.testing.assert_allclose(
        fitted.log_likelihood, ss.log_likelihood(fitted.model, ss.Series(y, inputs=u)), rtol=1e-12
    )


@pytest.fixture(scope="module")
def scalar():
    """An AR(1) plus noise of which three parameters are learned, and its data."""
    rng = np.random.default_rng(1)
    x = np.zeros(150)
    for t in range(1, 150):
        x[t] = 0.8 * x[t - 1] + rng.normal()
    y = x + 0.7 * rng.normal(size=150)
    y[40:45] = np.nan
    start = ss.LinearGaussian([[0.3]], [0.5], [[1.0]], [1.5], [0.0], [1.5])
    return ss.freeze(start, "observation_matrix", "initial_mean", "initial_scale"), y


def test_fixed_point_is_the_maximum(scalar):
    start, y = scalar
    fitted = ss.fit(start, y, learner=ss.EM(iterations=5000, tolerance=1e-12))
    assert fitted.converged
    best = ss.fit(start, y)
    np.testing.assert_allclose(fitted.log_likelihood, best.log_likelihood, rtol=1e-9)
    for name in fitted.free:
        np.testing.assert_allclose(
            fitted.parameters[name], best.parameters[name], rtol=1e-4, err_msg=name
        )


def test_fixed_point_with_priors_is_the_mode(scalar):
    """The mode on the parameters' own scale, where the slope of log likelihood plus log prior is zero."""
    start, y = scalar
    priors = {"transition_matrix": dist.Normal(0.2, 0.05), "observation_scale": dist.Gamma(20, 40)}
    fitted = ss.fit(start, y, learner=ss.EM(iterations=5000, tolerance=1e-12), priors=priors)
    assert fitted.converged
    assert np.all(np.diff(fitted.trace) > -1e-9)

    def posterior(values):
        total = ss.log_likelihood(replace(start, values), y)
        return total + sum(jnp.sum(priors[k].log_prob(values[k])) for k in priors)

    slopes = jax.grad(posterior)({k: ss.parameters(fitted.model)[k] for k in fitted.free})
    for name, slope in slopes.items():
        np.testing.assert_allclose(slope, 0, atol=2e-3, err_msg=name)
    best = ss.fit(start, y, priors=priors)
    np.testing.assert_allclose(fitted.log_likelihood, best.log_likelihood, rtol=1e-7)
    np.testing.assert_allclose(fitted.log_prior, best.log_prior, rtol=1e-5)


def test_maximum_likelihood_goes_on_from_em(scalar):
    start, y = scalar
    near = ss.fit(start, y, learner=ss.EM(tolerance=1e-3))
    best = ss.fit(near, y)
    assert best.converged
    assert 0 <= best.log_likelihood - near.log_likelihood < 0.2
    with_errors = ss.fit(best, y, learner=ss.EM(standard_errors=True))
    for name, error in best.standard_errors.items():
        np.testing.assert_allclose(with_errors.standard_errors[name], error, rtol=1e-3)


def test_second_fit_compiles_nothing():
    start, (y, _) = model(), recording(30)
    learner = ss.EM(iterations=10)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ss.ConvergenceWarning)
        ss.fit(start, y, learner=learner)
        with compilations() as events:
            longer = ss.EM(iterations=70, tolerance=1e-5, floor=1e-8)
            ss.fit(start, y[::-1].copy(), learner=longer)
    assert events == []


def constant_data():
    """The level does not move and the noise is none: the likelihood grows without bound."""
    return np.full(40, 2.0)


def test_collapse_is_an_error_with_a_remedy():
    start = ss.LinearGaussian([[0.5]], [1.0], [[1.0]], [1.0], [0.0], [1.0])
    with pytest.raises(ValueError, match=r"collapsed to zero.*EM\(floor=.*observation_scale"):
        ss.fit(start, constant_data(), learner=ss.EM(iterations=20_000, tolerance=0.0))


def test_floor_keeps_covariances_up():
    start = ss.LinearGaussian([[0.5]], [1.0], [[1.0]], [1.0], [0.0], [1.0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ss.ConvergenceWarning)
        fitted = ss.fit(start, constant_data(), learner=ss.EM(iterations=300, floor=1e-4))
    for name in ("observation_scale", "transition_scale", "initial_scale"):
        assert fitted.parameters[name] ** 2 >= 1e-4 * (1 - 1e-12)
    assert np.all(np.diff(fitted.trace) > -1e-9)


def test_model_without_a_closed_form():
    with pytest.raises(TypeError, match=r"not for LocalLevel; use MaximumLikelihood"):
        ss.fit(ss.LocalLevel(level_scale=1.0, noise_scale=1.0), np.ones(5), learner=ss.EM())


def test_noise_of_lower_rank():
    eye = jnp.eye(2)
    start = ss.Model(
        ss.Gaussian(jnp.zeros(2), jnp.ones(2)),
        ss.AffineGaussian(0.5 * eye, scale=jnp.array([[1.0], [0.0]])),
        ss.AffineGaussian(eye, scale=jnp.ones(2)),
    )
    y = recording(20)[0][:, :2]
    with pytest.raises(ValueError, match=r"'transition.scale'.*shape \(2, 1\); freeze it"):
        ss.fit(start, y, learner=ss.EM())
    fitted = one_iteration(ss.freeze(start, "transition.scale"), y)
    np.testing.assert_array_equal(fitted.parameters["transition.scale"], [[1.0], [0.0]])
    assert fitted.trace[1] > fitted.trace[0]


def test_impossible_start():
    start = ss.LinearGaussian([[3.0]], [1e-200], [[1.0]], [1e-200], [0.0], [1e-200])
    with pytest.raises(ValueError, match="EM cannot start here"):
        ss.fit(start, np.ones(5), learner=ss.EM())


def test_everything_frozen():
    start = model()
    with pytest.raises(ValueError, match="EM: every parameter of the model is frozen"):
        ss.fit(ss.freeze(start, *ss.parameters(start)), recording(5)[0], learner=ss.EM())


def test_not_converged_is_said():
    with pytest.warns(ss.ConvergenceWarning, match="2 iterations were not enough"):
        fitted = ss.fit(model(), recording(20)[0], learner=ss.EM(iterations=2))
    assert not fitted.converged


def test_float32(x64_off):
    y, _ = recording(80, 0.1)
    start = jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), model(True))
    fitted = ss.fit(start, y.astype(np.float32), learner=ss.EM(iterations=400, tolerance=0.01))
    assert fitted.model.transition_matrix.dtype == jnp.float32
    assert fitted.converged, fitted.reason
    assert np.all(np.diff(fitted.trace) > -1e-3)


@pytest.mark.parametrize("setting", [{"iterations": 0}, {"tolerance": -1.0}, {"floor": -1.0}])
def test_settings(setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        ss.EM(**setting)


def test_an_initial_law_with_diffuse_states_is_left_alone():
    start = ss.Model(
        ss.Gaussian(jnp.zeros(1), jnp.ones(1), diffuse=np.array([True])),
        ss.AffineGaussian(jnp.array([[0.9]]), scale=jnp.array([0.5])),
        ss.AffineGaussian(jnp.array([[1.0]]), scale=jnp.array([1.0])),
    )
    fitted = one_iteration(start, recording(30)[0][:, 0])
    np.testing.assert_array_equal(fitted.model.initial.mean, start.initial.mean)
    assert fitted.trace[1] > fitted.trace[0]
    assert not eqx.tree_equal(fitted.model.transition, start.transition)
