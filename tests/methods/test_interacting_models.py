"""The interacting multiple model filter: against its published recursion, and on targets that manoeuvre."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from switching_paths import ARRAYS, EXACT, MODEL, K, T, Y, of

import statespace as ss

METHOD = ss.InteractingMultipleModel()


def published(y):
    """Blom & Bar-Shalom's (1988) cycle written down with loops: mixing, filtering, probabilities, output."""
    mean = [of("initial_mean", k) for k in range(K)]
    law = [np.diag(of("initial_scale", k) ** 2) for k in range(K)]
    weight, moves = np.array(ARRAYS["initial_probs"]), np.array(ARRAYS["transition"])
    rows = []
    for t, value in enumerate(y):
        if t:
            reached = weight @ moves
            mixing = weight[:, None] * moves / reached
            mixed = [sum(mixing[i, k] * mean[i] for i in range(K)) for k in range(K)]
            blurred = []
            for k in range(K):
                apart = [mean[i] - mixed[k] for i in range(K)]
                blurred.append(
                    sum(mixing[i, k] * (law[i] + np.outer(apart[i], apart[i])) for i in range(K))
                )
            f = [of("matrix", k) for k in range(K)]
            mean = [f[k] @ mixed[k] + of("offset", k) for k in range(K)]
            law = [f[k] @ blurred[k] @ f[k].T + np.diag(of("scale", k) ** 2) for k in range(K)]
            weight = reached
        likelihood = np.ones(K)
        for k in range(K):
            if np.isnan(value):
                continue
            h = of("observation_matrix", k)
            s = h @ law[k] @ h.T + np.diag(of("observation_scale", k) ** 2)
            e = value - h @ mean[k] - of("observation_offset", k)
            likelihood[k] = scipy.stats.norm(0, np.sqrt(s[0, 0])).pdf(e[0])
            gain = law[k] @ h.T / s
            mean[k], law[k] = mean[k] + gain @ e, law[k] - gain @ h @ law[k]
        total = weight @ likelihood
        weight = weight * likelihood / total
        out = sum(weight[k] * mean[k] for k in range(K))
        spread = sum(
            weight[k] * (law[k] + np.outer(mean[k] - out, mean[k] - out)) for k in range(K)
        )
        rows.append((np.log(total), weight, out, spread))
    return [np.array(column) for column in zip(*rows)]


def test_filter_is_the_published_one():
    log_density, probs, mean, covariance = published(Y)
    got = ss.filter(MODEL, Y, method=METHOD)
    np.testing.assert_allclose(got.pointwise, log_density, atol=1e-12)
    np.testing.assert_allclose(got.log_likelihood, log_density.sum(), rtol=1e-12)
    np.testing.assert_allclose(got.probs, probs, atol=1e-12)
    np.testing.assert_allclose(got.mean, mean, atol=1e-12)
    np.testing.assert_allclose(got.covariance, covariance, atol=1e-12)
    online = ss.online(MODEL, METHOD)
    state = online.init()
    for y in Y:
        state = online.update(state, y)
    np.testing.assert_allclose(state.mean, mean[-1], atol=1e-12)
    np.testing.assert_allclose(state.log_likelihood, log_density.sum(), rtol=1e-12)


def alike(regimes):
    """The first regime's laws for all of them, which then change without effect."""
    one = {name: np.asarray(value)[:1] for name, value in ARRAYS.items()}
    law = {"initial_probs": [1.0], "transition": [[1.0]]}
    if regimes == 2:
        law = {name: ARRAYS[name] for name in law}
    return ss.SwitchingLinearGaussian(**one | law)


@pytest.mark.parametrize("regimes", [1, 2])
def test_exact_where_regimes_are_alike(regimes):
    model = alike(regimes)
    linear = ss.Model(model.initial.of(0), model.transition.of(0), model.observation.of(0))
    want = ss.smooth(linear, Y)
    got = ss.smooth(model, Y, method=METHOD)
    np.testing.assert_allclose(got.log_likelihood, want.log_likelihood, rtol=1e-9)
    np.testing.assert_allclose(got.mean, want.mean, atol=1e-9)
    np.testing.assert_allclose(got.covariance, want.covariance, atol=1e-9)
    if regimes == 2:
        rows = [np.array(ARRAYS["initial_probs"])]
        for _ in range(T - 1):
            rows.append(rows[-1] @ np.array(ARRAYS["transition"]))
        np.testing.assert_allclose(got.probs, rows, atol=1e-9)


def test_smoother_is_nearer_the_truth_than_the_filter():
    filtered, smoothed = (verb(MODEL, Y, method=METHOD) for verb in (ss.filter, ss.smooth))
    for name, want in (("probs", EXACT[1]), ("mean", EXACT[2])):
        left = [np.abs(getattr(p, name) - want)[:-1].sum() for p in (smoothed, filtered)]
        assert left[0] < 0.5 * left[1]


def test_regimes_that_cannot_be_reached_do_no_harm():
    """From the second regime there is no way back to the first, and it starts there: one Kalman filter."""
    sure = {"initial_probs": [0.0, 1.0], "transition": [[0.5, 0.5], [0.0, 1.0]]}
    model = ss.SwitchingLinearGaussian(**ARRAYS | sure)
    linear = ss.Model(model.initial.of(1), model.transition.of(1), model.observation.of(1))
    want = ss.smooth(linear, Y)
    got = ss.smooth(model, Y, method=METHOD)
    np.testing.assert_allclose(got.log_likelihood, want.log_likelihood, rtol=1e-12)
    np.testing.assert_allclose(got.mean, want.mean, atol=1e-9)

    def value(offset):
        moved = ss.replace(model, {"offset": jnp.asarray(ARRAYS["offset"]) + offset})
        return ss.log_likelihood(moved, jnp.asarray(Y), method=METHOD)

    slope = jax.grad(value)(0.0)
    assert np.isfinite(slope)
    np.testing.assert_allclose(slope, (value(1e-5) - value(-1e-5)) / 2e-5, rtol=1e-6)


def test_single_precision():
    single = jax.tree.map(lambda x: x.astype(jnp.float32), MODEL)
    got = ss.smooth(single, Y.astype(np.float32), method=METHOD)
    want = ss.smooth(MODEL, Y, method=METHOD)
    assert got.mean.dtype == jnp.float32
    np.testing.assert_allclose(got.mean, want.mean, atol=1e-4)
    np.testing.assert_allclose(got.covariance, want.covariance, atol=1e-4)


QUIET, STRONG, NOISE = 0.02, 0.6, 2.0


def manoeuvring():
    """Constant velocity in the plane, with little or much acceleration noise."""
    f = np.eye(4) + np.diag(np.ones(2), 2)
    root = np.linalg.cholesky([[1 / 3, 1 / 2], [1 / 2, 1.0]])
    scale = lambda s: s * np.kron(root, np.eye(2))
    return ss.SwitchingLinearGaussian(
        initial_probs=[0.9, 0.1],
        transition=[[0.97, 0.03], [0.1, 0.9]],
        matrix=f[None],
        scale=np.stack([scale(QUIET), scale(STRONG)]),
        observation_matrix=np.eye(2, 4)[None],
        observation_scale=[[NOISE, NOISE]],
        initial_scale=[[50.0, 50.0, 3.0, 3.0]],
    )


def tracks(count, length, seed=0):
    """Straight flight with turns of 8 to 16 moments now and then, and what a radar sees of it."""
    rng = np.random.default_rng(seed)
    states = np.zeros((count, length, 4))
    for track in states:
        turn = np.zeros(length)
        for begin in rng.integers(10, length - 20, 2):
            turn[begin : begin + rng.integers(8, 17)] = rng.choice([-0.25, 0.25])
        heading = rng.uniform(0, 2 * np.pi) + np.cumsum(turn)
        velocity = 3.0 * np.stack([np.cos(heading), np.sin(heading)], axis=1)
        track[:, 2:] = velocity
        track[:, :2] = np.cumsum(velocity, axis=0)
    return states, states[..., :2] + NOISE * rng.normal(size=(count, length, 2))


def rmse(posteriors, states):
    error = [np.asarray(p.mean)[10:, :2] - s[10:, :2] for p, s in zip(posteriors, states)]
    return np.sqrt(np.mean(np.square(error)))


def test_targets_that_manoeuvre():
    """20 of them: better than either Kalman filter, and better still given the whole recording."""
    states, seen = tracks(20, 80)
    model, data = manoeuvring(), list(seen)
    parts = [
        ss.Model(model.initial.of(k), model.transition.of(k), model.observation.of(k))
        for k in range(2)
    ]
    alone = [rmse(ss.filter(part, data), states) for part in parts]
    filtered = ss.filter(model, data, method=METHOD)
    imm = rmse(filtered, states)
    assert imm < 0.95 * min(alone)
    assert rmse(ss.smooth(model, data, method=METHOD), states) < 0.85 * imm
    # the second regime is that of the turns
    turning = np.abs(np.diff(np.arctan2(states[..., 3], states[..., 2]), axis=1)) > 0.1
    strong = np.array([p.probs[1:, 1] for p in filtered])
    assert strong[turning].mean() > 2 * strong[~turning].mean()


@pytest.mark.slow
def test_targets_that_manoeuvre_by_particles():
    """Sums of 16 components, within five standard errors of 16 unbiased estimates by 300 particles."""
    states, seen = tracks(4, 80)
    model, keys = manoeuvring(), jax.random.split(jax.random.key(1), 16)

    @jax.jit
    def by_particles(y):
        method = ss.RaoBlackwellised(300)
        return jax.vmap(lambda key: ss.log_likelihood(model, y, method=method, key=key))(keys)

    for y in seen:
        logs = np.asarray(by_particles(y))
        ratio = np.exp(logs - logs.max())
        error = ratio.std(ddof=1) / ratio.mean() / np.sqrt(len(keys))
        got = ss.log_likelihood(model, y, method=ss.GaussianSum(16))
        want = logs.max() + np.log(ratio.mean())
        np.testing.assert_allclose(got, want, atol=5 * error)
    found = ss.filter(model, list(seen), method=ss.RaoBlackwellised(300), key=keys[0])
    imm = rmse(ss.filter(model, list(seen), method=METHOD), states)
    np.testing.assert_allclose(imm, rmse(found, states), rtol=0.06)


def test_directions_of_a_target_that_manoeuvres():
    """Range and direction of it: regimes made affine as extended and cubature filters do."""
    import numpyro.distributions as dist

    states, seen = tracks(1, 40, seed=1)
    at = np.array([-80.0, -60.0])

    def radar(x, step):
        away = x[:2] - at
        mean = jnp.stack([jnp.hypot(*away), jnp.arctan2(away[1], away[0])])
        return dist.Normal(mean, jnp.array([NOISE, 0.01])).to_event(1)

    away = states[..., :2] - at
    noise = np.random.default_rng(2).normal(size=seen.shape) * [NOISE, 0.01]
    y = np.stack([np.hypot(*np.moveaxis(away, -1, 0)), np.arctan2(away[..., 1], away[..., 0])], -1)
    linear = manoeuvring()
    model = ss.Model(linear.initial, linear.transition, ss.Switching(None, [radar]))
    made = [
        ss.filter(model, (y + noise)[0], method=ss.InteractingMultipleModel(linearisation=rule))
        for rule in (ss.linearisation.Taylor(), ss.linearisation.Cubature())
    ]
    for posterior in made:
        assert rmse([posterior], states) < 0.8 * NOISE
    apart = np.abs(made[0].mean - made[1].mean) / made[1].std
    assert apart[10:].max() < 0.3


def test_what_does_not_fit_is_named():
    with pytest.raises(TypeError, match="InteractingMultipleModel does not fit this model"):
        ss.filter(ss.LocalLevel(1.0, 1.0), Y, method=METHOD)
    with pytest.raises(TypeError, match="`linearisation` of InteractingMultipleModel must be"):
        ss.InteractingMultipleModel(linearisation=None)
    import numpyro.distributions as dist

    shares = ss.Switching(None, [lambda x, step: dist.Dirichlet(jnp.exp(x))])
    model = ss.Model(MODEL.initial, MODEL.transition, shares)
    with pytest.raises(TypeError, match="`observation` of the model gives Dirichlet"):
        ss.filter(model, Y, method=METHOD)
