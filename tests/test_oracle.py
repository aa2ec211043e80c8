"""The oracle against programs and numbers that do not come from this project."""

import numpy as np
import pytest
from oracle import REAL, Dense, derivative, kalman

sm = pytest.importorskip("statsmodels.api")


def nile(initial_variance=None):
    y = sm.datasets.nile.load_pandas().data["volume"].to_numpy(float)[:, None]
    one = np.ones((1, 1, 1))
    zero = np.zeros((1, 1))
    P0, A = ([[0.0]], np.eye(1)) if initial_variance is None else ([[initial_variance]], None)
    return Dense([0.0], P0, one, zero, 1469.1 * one, one, zero, 15099.0 * one, y, A=A)


def small(seed=0, T=6, n=3, m=2):
    r = np.random.default_rng(seed)
    spd = lambda k, size: (lambda L: L @ np.swapaxes(L, -1, -2) + np.eye(size))(
        r.normal(size=(k, size, size))
    )
    y = r.normal(size=(T, m))
    y[1, 0] = y[3] = np.nan
    return Dense(
        r.normal(size=n), spd(1, n)[0], 0.6 * r.normal(size=(T - 1, n, n)), r.normal(size=(T - 1, n)),
        spd(T - 1, n), r.normal(size=(T, m, n)), r.normal(size=(T, m)), spd(T, m), y,
    )  # fmt: skip


def test_the_published_likelihoods_of_the_nile():
    """Durbin & Koopman (2012), section 2.10, and KFAS; and with a vague proper prior."""
    assert nile().log_likelihood() == pytest.approx(-632.545625, abs=1e-6)
    assert nile(1e7).log_likelihood() == pytest.approx(-641.585578, abs=1e-6)


def test_flat_prior_is_the_limit_of_a_vague_one():
    variance = (
        1e11  # leaves 1120^2 / variance / 2 in the likelihood, 15099 / variance in the moments
    )
    vague = nile(variance)
    constant = 0.5 * np.log(2 * np.pi * variance)
    assert vague.log_likelihood() + constant == pytest.approx(nile().log_likelihood(), abs=1e-5)
    for a, b in zip(vague.smoothed(), nile().smoothed()):
        np.testing.assert_allclose(a.astype(float), b.astype(float), rtol=1e-6)
    assert np.isnan(nile().posterior(0).at(0)[0])  # nothing is known before an observation


def test_dense_algebra_is_the_textbook_recursion():
    chain = small()
    value, *moments = kalman(chain)
    assert float(value) == pytest.approx(float(chain.log_likelihood()), rel=1e-15)
    assert float(chain.pointwise().sum()) == pytest.approx(float(value), rel=1e-15)
    for a, b in zip(moments, (*chain.filtered(), *chain.smoothed())):
        np.testing.assert_allclose(a.astype(float), b.astype(float), rtol=1e-13, atol=1e-14)


def test_dense_algebra_is_statsmodels():
    from statsmodels.tsa.statespace.kalman_smoother import KalmanSmoother

    chain = small()
    _, n, m = chain.sizes
    model = KalmanSmoother(k_endog=m, k_states=n, k_posdef=n)
    model.bind(chain.y.astype(float).copy())
    # Moment t of statsmodels' transition leads into t + 1; the last one leads nowhere.
    pad = lambda a: np.moveaxis(np.concatenate([a, a[-1:]]).astype(float), 0, -1)
    model["transition"], model["state_intercept"] = pad(chain.F), pad(chain.b)
    model["state_cov"], model["selection"] = pad(chain.Q), np.eye(n)
    model["design"] = np.moveaxis(chain.H.astype(float), 0, -1)
    model["obs_intercept"] = chain.d.T.astype(float)
    model["obs_cov"] = np.moveaxis(chain.R.astype(float), 0, -1)
    model.initialize_known(chain.m0.astype(float), chain.P0.astype(float))
    result = model.smooth()
    np.testing.assert_allclose(
        chain.pointwise().astype(float), result.llf_obs, rtol=1e-10, atol=1e-12
    )
    mean, cov = chain.smoothed()
    np.testing.assert_allclose(mean.astype(float), result.smoothed_state.T, rtol=1e-9)
    np.testing.assert_allclose(
        cov.astype(float), np.moveaxis(result.smoothed_state_cov, -1, 0), rtol=1e-9, atol=1e-12
    )
    # statsmodels: Cov(x_{t+1}, x_t), of which the last leads out of the data.
    np.testing.assert_allclose(
        np.swapaxes(chain.lag_one(), 1, 2).astype(float),
        np.moveaxis(result.smoothed_state_autocov, -1, 0)[:-1],
        rtol=1e-9,
        atol=1e-12,
    )
    mean, cov = chain.predicted_observations()
    np.testing.assert_allclose(mean[2].astype(float), result.forecasts[:, 2], rtol=1e-10)
    np.testing.assert_allclose(cov[2].astype(float), result.forecasts_error_cov[..., 2], rtol=1e-10)


def test_an_observation_is_its_information_form():
    """Factors exp(-x'Jx/2 + h'x) of the observations, up to their constant."""
    chain = small()
    T, n, m = chain.sizes
    J, h, constant = np.zeros((T, n, n), REAL), np.zeros((T, n), REAL), REAL(0)
    for t in range(T):
        keep = ~np.isnan(chain.y[t])
        if keep.any():
            W = np.linalg.inv(chain.R[t][keep][:, keep].astype(float))
            H, e = chain.H[t][keep], (chain.y[t] - chain.d[t])[keep]
            J[t], h[t] = H.T @ W @ H, H.T @ W @ e
            constant += (np.linalg.slogdet(W / (2 * np.pi))[1] - e @ W @ e) / 2
    sites = Dense(**{**chain.__dict__, "y": np.full((T, m), np.nan), "J": J, "h": h})
    assert float(sites.log_likelihood() + constant) == pytest.approx(
        float(chain.log_likelihood()), rel=1e-13
    )
    for a, b in zip(sites.smoothed(), chain.smoothed()):
        np.testing.assert_allclose(a.astype(float), b.astype(float), rtol=1e-12, atol=1e-13)


def test_flat_direction_with_a_first_observation_without_noise():
    """The level is then the first observation itself, and the rest is a random walk from it."""
    one, zero = np.ones((1, 1, 1)), np.zeros((1, 1))
    y = np.array([[3.0], [4.0], [2.0]])
    chain = Dense([0.0], [[0.0]], one, zero, 4 * one, one, zero, 0 * one, y, A=np.eye(1))
    steps = np.diff(y[:, 0])
    expected = -0.5 * (2 * np.log(2 * np.pi * 4.0) + (steps**2).sum() / 4.0)
    assert float(chain.log_likelihood()) == pytest.approx(expected, rel=1e-15)


def test_derivative_is_good_to_twelve_digits():
    assert float(derivative(lambda h: np.exp(1 + h), 1e-3)) == pytest.approx(np.e, rel=1e-13)
