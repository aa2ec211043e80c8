"""Decoders learned from known states: regressions against closed forms, and what they recover."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import statespace as ss
from statespace import decoding

RNG = np.random.default_rng(0)
A = np.array([[0.9, 0.2], [-0.2, 0.9]])
H = RNG.normal(size=(3, 2))
MODEL = ss.Model(
    ss.Gaussian(np.zeros(2), covariance=np.eye(2)),
    ss.AffineGaussian(A, covariance=np.eye(2) - A @ A.T),
    ss.AffineGaussian(H, covariance=0.5 * np.eye(3)),
)
STATES, Y = map(np.asarray, ss.simulate(MODEL, 4000, key=jax.random.key(0)))
TRAIN, TEST = slice(0, 3000), slice(3000, 4000)


def close(a, b, atol=1e-9):
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=0, atol=atol)


# regressions ------------------------------------------------------------------------------------------


def test_ridge_is_the_posterior_mean_of_its_prior():
    y, x = Y[:50], STATES[:50]
    fitted = decoding.Ridge(penalty=3.0).fit(y, x)
    centred, target = y - y.mean(axis=0), x - x.mean(axis=0)
    gram = centred.T @ centred + 3.0 * np.diag(y.var(axis=0))
    weights = np.linalg.solve(gram, centred.T @ target)
    close(fitted(Y[60]), x.mean(axis=0) + (Y[60] - y.mean(axis=0)) @ weights)


@pytest.mark.parametrize("prior", [0.0, 0.7])
@pytest.mark.parametrize("kernel", ["product", "sum"])
def test_kernel_regression_is_a_weighted_mean(kernel, prior):
    y, x, h = Y[:40], STATES[:40], 0.8
    fitted = decoding.NadarayaWatson(h, kernel, prior).fit(y, x[:, :, None] * x[:, None, :])
    at = Y[100]
    each = np.exp(-0.5 * ((y - at) / h) ** 2)
    weights = each.prod(axis=1) if kernel == "product" else each.mean(axis=1)
    outer = x[:, :, None] * x[:, None, :]
    total = np.tensordot(weights, outer, 1) + prior * outer.mean(axis=0)
    close(fitted(at), total / (weights.sum() + prior), atol=1e-12)


@pytest.mark.parametrize(
    ("offset", "h"), [(0.0, 0.02), (1e6, 0.3), (np.array([1e4, 0.0, 0.0]), 0.05)]
)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_kernel_regression_does_not_cancel(dtype, offset, h):
    """Channels far from zero, points hundreds of bandwidths apart: as with differences in long arithmetic."""
    y = (np.asarray(Y[:200], dtype) + offset).astype(dtype)
    prior, x, at = 1e-3, STATES[:200].astype(dtype), y[50] + dtype(0.5 * h)
    fitted = dataclasses.replace(
        decoding.NadarayaWatson(jnp.asarray(h, dtype), prior=prior),
        points=jnp.asarray(y),
        responses=jnp.asarray(x),
        average=jnp.asarray(x.mean(axis=0)),
    )
    apart = (y.astype(np.longdouble) - at.astype(np.longdouble)) / h
    weights = np.exp(-0.5 * (apart**2).sum(axis=1))
    mean = (weights @ x + prior * x.mean(axis=0)) / (weights.sum() + prior)
    got = fitted(jnp.asarray(at))
    assert got.dtype == dtype
    close(got, mean.astype(float), atol=1e-9 if dtype is np.float64 else 2e-5)


def test_kernel_regression_far_from_every_example():
    y, x = Y[:40], STATES[:40]
    far = 1e3 * np.ones(3)
    nearest = np.argmin(((y - far) ** 2).sum(axis=1))
    close(decoding.NadarayaWatson(0.5).fit(y, x)(far), x[nearest])
    close(decoding.NadarayaWatson(0.5, prior=1.0).fit(y, x)(far), x.mean(axis=0))


def test_a_broken_channel_does_not_silence_the_sum_kernel():
    """With the product of kernels only the example nearest in the broken channel is left."""
    y, x = Y[TRAIN][:600], STATES[TRAIN][:600]
    broken = Y[TEST][:200].copy()
    broken[:, 0] = 50.0
    errors = {}
    for kernel in ("product", "sum"):
        fitted = decoding.NadarayaWatson(0.7, kernel).fit(y, x)
        errors[kernel] = decoding.normalised_rmse(
            STATES[TEST][:200], jax.vmap(fitted)(jnp.asarray(broken))
        )
    assert errors["sum"] < 1 < errors["product"]


def test_the_bandwidth_has_the_least_error_on_examples_left_out():
    y, x = Y[:300], STATES[:300]
    best = decoding.NadarayaWatson().fit(y, x).bandwidth

    def left_out(h):
        weights = np.exp(-0.5 * ((y[:, None] - y[None]) ** 2).sum(axis=2) / h**2)
        np.fill_diagonal(weights, 0)
        return np.mean((weights @ x / weights.sum(axis=1)[:, None] - x) ** 2)

    grid = np.exp(np.linspace(-1.5, 2, 200))
    lowest = min(left_out(h) for h in grid)
    assert left_out(float(best)) < lowest * 1.0005


def test_a_gaussian_process_is_its_dense_posterior():
    y, x = Y[:80], STATES[:80]
    fitted = decoding.GaussianProcess(tuned_on=80).fit(y, x)
    at = Y[200]
    for i in range(2):
        amplitude, length, noise = np.exp(np.asarray(fitted.hyper[i]))
        kernel = amplitude**2 * np.exp(-0.5 * squares(y, y) / length**2)
        inverse = np.linalg.inv(kernel + noise**2 * np.eye(80))
        cross = amplitude**2 * np.exp(-0.5 * squares(y, at[None])[:, 0] / length**2)
        mean = x[:, i].mean()
        close(fitted(at)[i], mean + cross @ inverse @ (x[:, i] - mean))
        variance = amplitude**2 - cross @ inverse @ cross + noise**2
        close(fitted.covariance(at)[i, i], variance)
        # at a maximum of the marginal likelihood
        h = np.asarray(fitted.hyper[i])
        highest = evidence(x[:, i] - mean, h, y)
        for j in range(3):
            for step in (-0.05, 0.05):
                assert evidence(x[:, i] - mean, h + step * np.eye(3)[j], y) < highest


def squares(a, b):
    return ((a[:, None] - b[None]) ** 2).sum(axis=2)


def evidence(values, hyper, y):
    from scipy.stats import multivariate_normal

    amplitude, length, noise = np.exp(hyper)
    covariance = amplitude**2 * np.exp(-0.5 * squares(y, y) / length**2) + noise**2 * np.eye(len(y))
    return multivariate_normal(np.zeros(len(y)), covariance).logpdf(values)


def test_a_network_learns_what_is_not_linear():
    """y² from y, of which a line explains nothing."""
    y = RNG.normal(size=(800, 1))
    x = y**2 + 0.1 * RNG.normal(size=(800, 1))
    fitted = decoding.NeuralNetwork(iterations=1500).fit(y[:600], x[:600])
    error = np.asarray(jax.vmap(fitted)(jnp.asarray(y[600:]))) - x[600:]
    assert np.mean(error**2) < 0.05 * np.var(x)


def test_a_bounded_covariance_is_below_the_marginal_and_starts_at_the_mean():
    marginal = np.array([[2.0, 0.3], [0.3, 1.0]])
    wanted = np.array([[1.0, -0.1], [-0.1, 0.4]])
    residuals = RNG.multivariate_normal(np.zeros(2), wanted, 500)
    outer = residuals[:, :, None] * residuals[:, None, :]
    fitted = decoding.BoundedCovariance(marginal=jnp.asarray(marginal)).fit(Y[:500], outer)
    close(fitted(Y[0]), outer.mean(axis=0), atol=1e-9)
    moved = jax.tree.map(lambda a: a + 3.0 if isinstance(a, jax.Array) else a, fitted.network)
    moved = dataclasses.replace(fitted, network=moved)
    for covariance in (moved(Y[0]), moved(Y[1])):
        assert np.linalg.eigvalsh(marginal - covariance).min() > -1e-12
        assert np.linalg.eigvalsh(covariance).min() > 0


# whole decoders ---------------------------------------------------------------------------------------


def test_a_linear_decoder_comes_near_the_exact_filter():
    """Learned from 3,000 moments; the exact filter has the least possible error."""
    model = ss.learn_decoder(
        STATES[TRAIN], Y[TRAIN], regression=decoding.Ridge(), covariance=decoding.Average()
    )
    close(model.transition.matrix, A, atol=0.05)
    exact = ss.filter(MODEL, Y[TEST]).mean
    ours = ss.filter(model, Y[TEST]).mean
    best = decoding.normalised_rmse(STATES[TEST], exact)
    assert best < decoding.normalised_rmse(STATES[TEST], ours) < 1.01 * best
    assert decoding.angular_error(STATES[TEST], ours) < 1.02 * decoding.angular_error(
        STATES[TEST], exact
    )


def test_regressors_of_scikit_learn():
    linear_model = pytest.importorskip("sklearn.linear_model")
    learn = lambda regression: ss.learn_decoder(
        STATES[:800], Y[:800], regression=regression, covariance=decoding.Average()
    )
    theirs = learn(linear_model.LinearRegression())
    ours = learn(decoding.Ridge(penalty=0.0))
    panel = [Y[800:900], Y[900:950]]
    a, b = ss.filter(theirs, panel), ss.filter(ours, panel)
    for i in range(2):
        close(a[i].mean, b[i].mean)
    online = ss.online(theirs)
    close(online.update(online.init(), Y[800]).mean, a[0].mean[0])
    unfitted = decoding.Moments(linear_model.LinearRegression(), np.eye(2))
    model = ss.Model(theirs.initial, theirs.transition, ss.Discriminative(unfitted))
    with pytest.raises(ValueError, match=r"`predict` of LinearRegression .* not fitted"):
        ss.filter(model, Y[800:900])


def test_recordings_are_not_joined():
    """Two recordings that jump between them: joined, the dynamics would be others."""
    parts = [slice(0, 1000), slice(2000, 3000)]
    states, y = [STATES[p] for p in parts], [Y[p] for p in parts]
    settings = {"regression": decoding.Ridge(), "covariance": decoding.Average()}
    model = ss.learn_decoder(states, y, **settings)
    mean = np.concatenate(states).mean(axis=0)
    before = np.concatenate([x[:-1] for x in states]) - mean
    after = np.concatenate([x[1:] for x in states]) - mean
    close(model.transition.matrix, np.linalg.lstsq(before, after, rcond=None)[0].T)
    missing = Y[:1000].copy()
    missing[17] = np.nan
    assert np.isfinite(
        ss.learn_decoder(STATES[:1000], missing, **settings).observation.marginal.mean
    ).all()


@pytest.mark.slow
def test_training_through_the_filter_raises_its_score():
    """With Q bounded by construction, on moments that were not trained on."""
    model = ss.learn_decoder(
        STATES[:1000],
        Y[:1000],
        regression=decoding.Ridge(penalty=2000.0),
        covariance=decoding.BoundedCovariance(),
    )
    trained = decoding.train(model, STATES[:1000], Y[:1000], iterations=200)

    def score(model):
        from scipy.stats import multivariate_normal

        law = ss.filter(model, Y[TEST])
        each = zip(STATES[TEST], np.asarray(law.mean), np.asarray(law.covariance))
        return np.mean([multivariate_normal(m, c).logpdf(x) for x, m, c in each])

    before, after, best = score(model), score(trained), score(MODEL)
    assert after - before > 0.5 * (best - before)
    assert float(ss.filter(trained, Y[TEST]).flag_rate) == 0


# scores and refusals ----------------------------------------------------------------------------------


def test_scores_by_hand():
    states = np.array([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
    decoded = np.array([[0.0, 3.0], [0.0, 1.0], [0.0, 0.0]])
    assert decoding.normalised_rmse(states, decoded) == pytest.approx(np.sqrt(13 / 7))
    assert decoding.angular_error(states, decoded) == pytest.approx(np.pi / 4)
    with pytest.raises(ValueError, match=r"one shape \(T, n\)"):
        decoding.angular_error(states, decoded[:2])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: decoding.Ridge()(Y[0]), ValueError, "Ridge is not fitted"),
        (lambda: decoding.Ridge(-1.0), ValueError, "must not be negative"),
        (lambda: decoding.NadarayaWatson(0.0), ValueError, "`bandwidth`"),
        (lambda: decoding.NadarayaWatson(kernel="box"), ValueError, '"product" or "sum"'),
        (lambda: decoding.GaussianProcess(points=1), ValueError, "at least 2"),
        (lambda: decoding.NeuralNetwork(width=0), ValueError, "positive `width`"),
        (lambda: decoding.Predictor(3), TypeError, "method `predict`"),
        (
            lambda: decoding.Moments(3, np.eye(2)),
            TypeError,
            "a function of one observation or a reg",
        ),
        (
            lambda: decoding.Moments(len, np.ones(2)),
            ValueError,
            r"array \(n, n\), got shape \(2,\)",
        ),
        (lambda: ss.learn_decoder(STATES[:9], Y[:8]), ValueError, "one row"),
        (lambda: ss.learn_decoder(STATES, Y, regression=3), TypeError, "a regressor with `fit`"),
        (lambda: ss.learn_decoder(STATES, Y, held_out=1.0), ValueError, "`held_out`"),
        (lambda: ss.learn_decoder(0 * STATES, Y), ValueError, "coordinate 0 of `states`"),
        (
            lambda: ss.learn_decoder(
                STATES[:99], Y[:99], regression=decoding.Ridge(), covariance="own"
            ),
            ValueError,
            '"own" with a regression that has one',
        ),
        (lambda: decoding.train(MODEL, STATES, Y), TypeError, "Discriminative"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_an_unfitted_regression_in_a_model():
    observation = ss.Discriminative(decoding.Moments(decoding.Ridge(), np.eye(2)))
    model = ss.Model(MODEL.initial, MODEL.transition, observation)
    with pytest.raises(ValueError, match="Ridge is not fitted"):
        ss.filter(model, Y)
