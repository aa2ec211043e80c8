"""LinearGaussian: its kernels, its constructors, its errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro.distributions import constraints
from written_out import covariance, dense

import statespace as ss
from statespace.parameters import constrain, supports, unconstrain


def matrices(n=2, m=3, k=2, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "transition_matrix": 0.5 * rng.normal(size=(n, n)),
        "transition_scale": np.tril(rng.normal(size=(n, n)), -1) + np.eye(n),
        "observation_matrix": rng.normal(size=(m, n)),
        "observation_scale": np.full(m, 0.3),
        "initial_mean": rng.normal(size=n),
        "initial_scale": 2.0 * np.eye(n),
        "transition_offset": rng.normal(size=n),
        "observation_offset": rng.normal(size=m),
        "transition_input_matrix": rng.normal(size=(n, k)),
        "observation_input_matrix": rng.normal(size=(m, k)),
    }


def test_kernels_say_what_the_equations_say():
    parts = matrices()
    model = ss.LinearGaussian(**parts)
    u = np.array([0.7, -1.2])
    step = ss.Step(1, 1.0, 1.0, jnp.asarray(u))
    move, look = model.transition.at(step), model.observation.at(step)
    np.testing.assert_allclose(move.matrix, parts["transition_matrix"])
    np.testing.assert_allclose(
        move.offset, parts["transition_offset"] + parts["transition_input_matrix"] @ u
    )
    factor = parts["transition_scale"]
    np.testing.assert_allclose(covariance(move), factor @ factor.T)
    np.testing.assert_allclose(
        look.offset, parts["observation_offset"] + parts["observation_input_matrix"] @ u
    )
    np.testing.assert_allclose(covariance(look), 0.09 * np.eye(3))
    np.testing.assert_allclose(covariance(model.initial), 4.0 * np.eye(2))


def test_constant_parts_are_arrays_and_only_offsets_follow_inputs():
    model = ss.LinearGaussian(**matrices())
    assert callable(model.transition.offset)
    assert callable(model.observation.offset)
    plain = {k: v for k, v in matrices().items() if "input" not in k}
    model = ss.LinearGaussian(**plain)
    for part in (model.transition.offset, model.observation.offset, model.transition.matrix):
        assert isinstance(part, jax.Array)


def test_likelihood_with_inputs_and_gaps_agrees_with_the_dense_oracle():
    model = ss.LinearGaussian(**matrices())
    rng = np.random.default_rng(1)
    y, u = rng.normal(size=(12, 3)), rng.normal(size=(12, 2))
    y[3, 1], y[7] = np.nan, np.nan
    want = float(dense(model, y, inputs=u).log_likelihood())
    got = ss.log_likelihood(model, ss.Series(y, inputs=u))
    np.testing.assert_allclose(got, want, rtol=1e-9)


def test_supports_follow_the_shape_of_the_scale():
    model = ss.LinearGaussian(**matrices())
    assert supports(model)["transition_scale"] is constraints.lower_cholesky
    assert supports(model)["observation_scale"] is constraints.positive
    again = constrain(model, unconstrain(model))
    for name, value in ss.parameters(again).items():
        np.testing.assert_allclose(value, ss.parameters(model)[name], rtol=1e-9, atol=1e-12)
    moved = constrain(model, {k: v - 2.0 for k, v in unconstrain(model).items()})
    assert constraints.lower_cholesky(moved.transition_scale)
    assert np.all(np.asarray(moved.observation_scale) > 0)


@pytest.mark.parametrize(("n", "m"), [(1, 1), (2, 5), (4, 2)])
def test_random_model_is_stationary_with_unit_variance(n, m, key):
    model = ss.LinearGaussian.random(n, m, key=key, inputs=2, radius=0.9)
    f, q = np.asarray(model.transition_matrix), covariance(model.transition)
    np.testing.assert_allclose(np.abs(np.linalg.eigvals(f)), 0.9, rtol=1e-9)
    np.testing.assert_allclose(f @ f.T + q, np.eye(n), atol=1e-12)
    h = np.asarray(model.observation_matrix)
    gram = h.T @ h if m >= n else h @ h.T
    np.testing.assert_allclose(gram, np.eye(min(n, m)), atol=1e-12)


def test_principal_components_find_the_space_of_the_states(key):
    """With little noise, the loadings span what the true observation matrix spans."""
    truth = ss.LinearGaussian.random(2, 6, key=key)
    truth = ss.LinearGaussian(**{**ss.parameters(truth), "observation_scale": 0.01 * np.ones(6)})
    y = np.array(ss.simulate(truth, 400, key=key).y)
    start = ss.LinearGaussian.from_principal_components(y, 2)
    h, found = np.asarray(truth.observation_matrix), np.asarray(start.observation_matrix)
    inside = h @ np.linalg.lstsq(h, found, rcond=None)[0]
    np.testing.assert_allclose(inside, found, atol=0.01 * np.abs(found).max())
    np.testing.assert_allclose(start.observation_offset, y.mean(axis=0))
    assert np.abs(np.linalg.eigvals(np.asarray(start.transition_matrix))).max() < 1
    y[5, 2], y[9] = np.nan, np.nan
    gaps = ss.LinearGaussian.from_principal_components(y, 2, inputs=1)
    assert all(np.isfinite(v).all() for v in ss.parameters(gaps).values())
    assert gaps.transition_input_matrix.shape == (2, 1)


def change(**parts):
    return lambda: ss.LinearGaussian(**{**matrices(), **parts})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            change(transition_matrix=np.ones((2, 3))),
            r"`transition_matrix` must have shape \(2, 2\)",
        ),
        (change(transition_matrix=np.ones(2)), r"`transition_matrix` must have shape \(n, n\)"),
        (change(initial_mean=np.zeros(3)), r"`initial_mean` must have shape \(2,\), got \(3,\)"),
        (
            change(transition_scale=np.ones((2, 2))),
            r"(?s)lower triangular.*From a covariance.*cholesky\(covariance\)",
        ),
        (change(transition_scale=-np.eye(2)), r"`transition_scale` must be lower triangular"),
        (change(observation_scale=np.zeros(3)), r"`observation_scale` must be positive"),
        (
            change(observation_scale=np.ones(2)),
            r"`observation_scale` must have shape \(3,\).*\(2,\)",
        ),
        (change(transition_offset=np.zeros(1)), r"`transition_offset` must have shape \(2,\)"),
        (change(observation_offset=np.zeros(1)), r"`observation_offset` must have shape \(3,\)"),
        (
            change(transition_input_matrix=np.ones((3, 2))),
            r"`transition_input_matrix` must have shape \(2, k\), got \(3, 2\)",
        ),
        (
            change(observation_input_matrix=np.ones((3, 4))),
            r"must have as many columns, got \(2, 2\) and \(3, 4\)",
        ),
        (
            change(observation_matrix=np.full((3, 2), np.nan)),
            r"`observation_matrix` must be finite",
        ),
        (
            lambda: ss.log_likelihood(ss.LinearGaussian(**matrices()), np.ones((5, 3))),
            r"input matrices for 2 inputs, but the data carry none",
        ),
        (
            lambda: ss.log_likelihood(
                ss.LinearGaussian(**matrices()), ss.Series(np.ones((5, 3)), inputs=np.ones((5, 1)))
            ),
            r"input matrices for 2 inputs, got inputs of shape \(1,\)",
        ),
        (
            lambda: ss.LinearGaussian.random(0, 3, key=jax.random.key(0)),
            r"`state_dim` and `channels` must be at least 1",
        ),
        (
            lambda: ss.LinearGaussian.random(1, 3, key=jax.random.key(0), radius=1.0),
            r"`radius` must be in \(0, 1\), got 1",
        ),
        (
            lambda: ss.LinearGaussian.from_principal_components(np.ones((9, 2)), 3),
            r"`state_dim` from 1 to min\(m, T - 1\), got shape \(9, 2\) and state_dim=3",
        ),
        (
            lambda: ss.LinearGaussian.from_principal_components(
                np.outer(np.arange(9.0), [1, 2]), 2
            ),
            r"spans fewer than 2 dimensions",
        ),
        (
            lambda: ss.LinearGaussian.from_principal_components(
                np.c_[np.arange(9.0), np.full(9, np.nan)], 1
            ),
            r"channels \[1\] of `y` have no observation",
        ),
    ],
)
def test_bad_parameters(make, message):
    with pytest.raises(ValueError, match=message):
        make()
