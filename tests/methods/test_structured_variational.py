"""Structured variational inference: exact cases, and the bound against sums over all paths of regimes."""

import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

import statespace as ss
from statespace.chains import structured
from statespace.chains.switching_expectations import Regimes, expected_log_transitions

SV = ss.StructuredVariational(tolerance=1e-10)
F = np.array([[[0.9, 0.2], [-0.2, 0.9]], [[0.5, 0.0], [0.3, -0.6]]])
B = np.array([[0.3, -0.2], [-1.0, 0.5]])
L = np.array([[[0.4, 0.0], [0.1, 0.3]], [[0.3, 0.0], [-0.2, 0.5]]])
H = np.array([[[1.0, 0.2], [0.3, 1.0], [0.5, 0.5]]])
M = np.array([[[0.4, 0.0, 0.0], [0.1, 0.3, 0.0], [0.0, 0.1, 0.5]]])
PROBS = np.array([[0.8, 0.2], [0.3, 0.7]])


def switching(kernel=PROBS, initial=(0.4, 0.6), regimes=slice(None), **more):
    parts = {"matrix": F[regimes], "scale": L[regimes], "offset": B[regimes]} | more
    return ss.SwitchingLinearGaussian(
        initial,
        kernel,
        observation_matrix=H,
        observation_scale=M,
        observation_offset=[[0.1, 0.2, -0.3]],
        initial_mean=[[0.5, -0.5]],
        initial_scale=[[0.8, 0.6]],
        **parts,
    )


ALL = {"matrix": F, "scale": L, "offset": B}
UNUSED = np.zeros((2, 2))
"""Weights with which the regimes are a chain by themselves."""


def recurrent(weights=((0.0, 0.0), (0.7, -0.4)), logits=None, **more):
    logits = np.log(PROBS) if logits is None else logits
    return switching(ss.RecurrentKernel(logits, weights), **more)


@pytest.fixture(scope="module")
def y():
    """Seven moments with gaps."""
    y = np.array(ss.simulate(switching(), 7, key=jax.random.key(3)).y)
    y[2, 1] = np.nan
    y[4] = np.nan
    return y


def along(model, path, y):
    """Log density of the observations, mean and covariance of all states along a path of regimes: dense."""
    t, n = len(path), 2
    mean, spread = [np.array([0.5, -0.5])], np.diag([0.64, 0.36])
    big = np.zeros((t * n, t * n))
    big[:n, :n] = spread
    for i in range(1, t):
        k = path[i]
        here, before = slice(i * n, (i + 1) * n), slice((i - 1) * n, i * n)
        mean.append(model.matrix[k] @ mean[-1] + model.offset[k])
        big[here, : i * n] = model.matrix[k] @ big[before, : i * n]
        big[: i * n, here] = big[here, : i * n].T
        noise = model.scale[k] @ model.scale[k].T
        big[here, here] = model.matrix[k] @ big[before, before] @ model.matrix[k].T + noise
    m = np.concatenate(mean)
    h = np.kron(np.eye(t), H[0])
    seen = ~np.isnan(y.ravel())
    h, d = h[seen], np.tile([0.1, 0.2, -0.3], t)[seen]
    s = h @ big @ h.T + np.kron(np.eye(t), M[0] @ M[0].T)[np.ix_(seen, seen)]
    gain = np.linalg.solve(s, h @ big).T
    e = y.ravel()[seen] - h @ m - d
    log = scipy.stats.multivariate_normal(np.zeros(len(e)), s).logpdf(e)
    return log, (m + gain @ e).reshape(t, n), (big - gain @ h @ big)


def test_regimes_that_are_alike_are_the_kalman_smoother(y):
    """Whatever their number; the last two moments are missing."""
    y = np.concatenate([y[:5], np.full((2, 3), np.nan)])
    model = recurrent(UNUSED, **{k: v[[0, 0]] for k, v in ALL.items()})
    linear = ss.LinearGaussian(
        F[0], L[0], H[0], M[0], [0.5, -0.5], [0.8, 0.6], B[0], [0.1, 0.2, -0.3]
    )
    got, want = ss.smooth(model, y, method=SV), ss.smooth(linear, y)
    np.testing.assert_allclose(got.log_likelihood, want.log_likelihood, rtol=1e-11)
    for name in ("mean", "covariance", "lag_one"):
        np.testing.assert_allclose(getattr(got, name), getattr(want, name), atol=1e-11)
    assert bool(got.convergence.converged)


def test_regimes_that_are_known_give_the_kalman_smoother_along_them(y):
    """Each regime leads to the other for certain."""
    path = np.array([1, 0, 1, 0, 1, 0, 1])
    certain = np.where(np.eye(2) > 0, -1e4, 0.0)
    model = recurrent(UNUSED, logits=certain, initial=np.eye(2)[path[0]])
    log, mean, covariance = along(model, path, y)
    got = ss.smooth(model, y, method=SV)
    np.testing.assert_allclose(got.log_likelihood, log, rtol=1e-11)
    np.testing.assert_allclose(got.mean, mean, atol=1e-10)
    blocks = [covariance[2 * i : 2 * i + 2, 2 * i : 2 * i + 2] for i in range(7)]
    np.testing.assert_allclose(got.covariance, blocks, atol=1e-10)
    np.testing.assert_array_equal(got.most_likely, path)


@pytest.mark.slow
def test_regimes_may_be_driven_by_inputs(y):
    path = np.array([1, 0, 0, 1, 1, 0, 1])
    kernel = ss.FiniteKernel(lambda step: jnp.tile(step.inputs, (2, 1)))
    model = switching(kernel, np.eye(2)[path[0]])
    log, mean, _ = along(model, path, y)
    got = ss.smooth(model, ss.Series(y, inputs=np.eye(2)[path]), method=SV)
    np.testing.assert_allclose(got.log_likelihood, log, rtol=1e-11)
    np.testing.assert_allclose(got.mean, mean, atol=1e-10)
    np.testing.assert_array_equal(got.most_likely, path)


def exact(model, y):
    """Log evidence and the regimes' probabilities, over all 2^T paths."""
    logs = np.log(PROBS)
    paths = list(itertools.product(range(2), repeat=len(y)))
    prior = [
        np.log([0.4, 0.6][p[0]]) + sum(logs[a, b] for a, b in itertools.pairwise(p)) for p in paths
    ]
    each = np.array([along(model, p, y)[0] for p in paths]) + prior
    weights = np.exp(each - each.max())
    probs = np.einsum("p,ptk->tk", weights / weights.sum(), np.eye(2)[np.array(paths)])
    return each.max() + np.log(weights.sum()), probs


def test_bound_is_below_the_evidence_and_near_it_where_regimes_are_obvious(y):
    model = recurrent(UNUSED)
    evidence, _ = exact(model, y)
    bound = ss.smooth(model, y, method=SV).log_likelihood
    assert bound < evidence - 0.01
    clear = {"offset": np.array([[40.0, 0.0], [-40.0, 0.0]])}
    drawn = ss.simulate(switching(**clear), 7, key=jax.random.key(5)).y
    y = np.where(np.isnan(y), np.nan, drawn)
    y[4] = drawn[4]
    clear = recurrent(UNUSED, **clear)
    evidence, probs = exact(clear, y)
    got = ss.smooth(clear, y, method=SV)
    assert evidence - 1e-6 < got.log_likelihood <= evidence + 1e-9
    np.testing.assert_allclose(got.probs, probs, atol=1e-6)


def particle_evidence(y, weights, count=50_000):
    """Log of an unbiased estimate of the evidence: the bootstrap filter, written out."""
    rng = np.random.default_rng(0)
    regime = rng.choice(2, count, p=[0.4, 0.6])
    x = [0.5, -0.5] + rng.normal(size=(count, 2)) * [0.8, 0.6]
    total = 0.0
    for t, row in enumerate(y):
        if t:
            scores = np.log(PROBS)[regime] + x @ np.array(weights).T
            ahead = 1 / (1 + np.exp(scores[:, 0] - scores[:, 1]))
            regime = (rng.random(count) < ahead).astype(int)
            x = np.einsum("tij,tj->ti", F[regime], x) + B[regime]
            x = x + np.einsum("tij,tj->ti", L[regime], rng.normal(size=(count, 2)))
        seen = ~np.isnan(row)
        if np.any(seen):
            noise = (M[0] @ M[0].T)[np.ix_(seen, seen)]
            law = scipy.stats.multivariate_normal(np.zeros(seen.sum()), noise)
            logs = law.logpdf(row[seen] - (x @ H[0].T + [0.1, 0.2, -0.3])[:, seen])
            mass = np.exp(logs - logs.max())
            total += logs.max() + np.log(mass.mean())
            kept = rng.choice(count, count, p=mass / mass.sum())
            x, regime = x[kept], regime[kept]
    return total


def test_bound_of_a_recurrent_model_is_below_the_evidence(y):
    """By a particle filter, whose estimate has a standard error of about .02; it is right for a chain."""
    evidence = particle_evidence(y, UNUSED)
    np.testing.assert_allclose(evidence, exact(switching(), y)[0], atol=0.1)
    evidence = particle_evidence(y, [[0.0, 0.0], [0.7, -0.4]])
    bound = ss.smooth(recurrent(), y, method=SV).log_likelihood
    assert evidence - 3 < bound < evidence - 0.1


def test_tilted_bound_is_above_the_expected_log_sum_exp():
    """By Gauss–Hermite quadrature over two dimensions, and close to it for a narrow law."""
    weights, mean = np.array([[2.0, -1.0], [0.0, 0.5], [-1.5, 1.0]]), np.array([0.3, -0.2])
    nodes, mass = np.polynomial.hermite_e.hermegauss(60)
    grid = np.stack(np.meshgrid(nodes, nodes), -1).reshape(-1, 2)
    mass = np.outer(mass, mass).ravel() / (2 * np.pi)
    scores = np.array([[0.1, 0.4, -0.6]])
    for spread, close in ((0.01, 1e-4), (1.0, 0.3)):
        covariance = spread * np.array([[1.0, 0.3], [0.3, 0.5]])
        x = mean + grid @ np.linalg.cholesky(covariance).T
        want = np.sum(mass[:, None] * jax.nn.log_softmax(scores + x @ weights.T, axis=1), axis=0)
        regimes = Regimes(jnp.ones(3) / 3, jnp.asarray(scores)[None], jnp.asarray(weights))
        expected = jax.jit(expected_log_transitions)
        got = expected(regimes, jnp.asarray(mean)[None], covariance[None])
        np.testing.assert_array_less(got[0, 0], want)
        np.testing.assert_allclose(got[0, 0], want, atol=close)


def test_sweeps_never_lower_the_bound():
    """Of a recurrent model, and of a chain, which is one with weights of zero."""
    y = ss.simulate(recurrent(), 60, key=jax.random.key(9)).y
    series = ss.Series(y).drop_labels()

    @eqx.filter_jit
    def bounds(model):
        chain, form = SV.lower(model, series)
        turn = lambda q, _: (structured.sweep(chain, q, form), q.bound)
        nowhere = structured.unknown(chain)
        wide = structured.widened(chain, nowhere.naturals, nowhere.states, nowhere.probs)
        return jax.lax.scan(turn, nowhere._replace(naturals=wide), length=25)[1][1:]

    chain, same, found = bounds(switching()), bounds(recurrent(UNUSED)), bounds(recurrent())
    np.testing.assert_allclose(same, chain, rtol=1e-9)
    for each in (chain, found):
        assert np.all(np.diff(each) >= -1e-9 * np.abs(each[0]))
        assert each[-1] > each[0] + 0.1


@pytest.mark.slow
def test_the_bound_from_nothing_is_that_from_the_regimes_that_were_drawn():
    """On the race track, where states that follow a wrong regime too soon lose tens of nats."""
    model = ss.RecurrentSwitchingLinearGaussian.nascar(key=jax.random.key(30))
    states, y = ss.simulate(model, 700, key=jax.random.key(31))
    series = ss.Series(y).drop_labels()
    probs = jax.nn.one_hot(states.regime, 4)

    @eqx.filter_jit
    def informed(model):
        chain, form = SV.lower(model, series)
        begin = structured.infer(chain, structured.unknown(chain).naturals, form)
        pairs = probs[:-1, :, None] * probs[1:, None, :]
        turn = lambda q, _: (structured.sweep(chain, q, form), q.bound)
        return jax.lax.scan(
            turn, begin._replace(probs=probs, pairs=pairs, bound=-jnp.inf), length=20
        )

    want = informed(model)[0].bound
    got = ss.smooth(model, y, method=ss.StructuredVariational(tolerance=1e-2))
    assert got.log_likelihood > want - 1
    assert np.mean(np.asarray(got.most_likely) == np.asarray(states.regime)) > 0.99


@pytest.mark.slow
def test_gradient_is_that_of_the_fixed_point(y):
    model = recurrent()

    def bound(scale):
        return ss.log_likelihood(ss.replace(model, {"offset": scale * B}), y, method=SV)

    step = 1e-4
    values, gradients = jax.vmap(jax.value_and_grad(bound))(jnp.array([1 + step, 1.0, 1 - step]))
    gradient, difference = gradients[1], (values[0] - values[2]) / (2 * step)
    np.testing.assert_allclose(gradient, difference, rtol=1e-4)


@pytest.mark.slow
def test_panel_and_what_comes_after_the_data(y):
    """Each recording as alone; missing moments at the end change nothing before them."""
    model = recurrent()
    longer = np.concatenate([y, np.full((3, 3), np.nan)])
    alone, panel = ss.smooth(model, longer, method=SV), ss.smooth(model, [y, longer], method=SV)
    for part in (panel[0], panel[1]):
        np.testing.assert_allclose(part.log_likelihood, alone.log_likelihood, rtol=1e-8)
        np.testing.assert_allclose(part.mean[:7], alone.mean[:7], atol=1e-5)
    assert len(panel[0]) == 7
    drawn = ss.sample_states(model, longer, key=jax.random.key(2), draws=20_000, method=SV)
    last = np.asarray(alone.mean[6]), np.asarray(alone.covariance[6])
    state, regime = np.asarray(drawn.state), np.asarray(drawn.regime)
    np.testing.assert_allclose(state[:, 6].mean(0), last[0], atol=5 * np.sqrt(last[1].max() / 2e4))
    # simulated from the same law by hand
    x, r = state[:, 6], regime[:, 6]
    scores = np.log(PROBS)[r] + x @ np.array([[0.0, 0.0], [0.7, -0.4]]).T
    ahead = 1 / (1 + np.exp(scores[:, 0] - scores[:, 1]))
    assert abs(regime[:, 7].mean() - ahead.mean()) < 5 * np.sqrt(0.25 / 2e4)
    assert abs(alone.probs[7, 1] - ahead.mean()) < 0.02
    mean = np.stack([x @ F[k].T + B[k] for k in (0, 1)])
    want = (1 - ahead)[:, None] * mean[0] + ahead[:, None] * mean[1]
    np.testing.assert_allclose(state[:, 7].mean(0), want.mean(0), atol=0.05)
    np.testing.assert_allclose(alone.mean[7], want.mean(0), atol=0.05)
    forecast = ss.forecast(model, y, 2, method=SV)
    at_next = want.mean(0) @ H[0].T + [0.1, 0.2, -0.3]
    np.testing.assert_allclose(forecast.mean[0], at_next, atol=5 * 2 / np.sqrt(1000))


@pytest.mark.slow
def test_float32_gives_what_float64_does(y):
    double = ss.smooth(recurrent(), y, method=SV)
    single = jax.tree.map(lambda x: x.astype(jnp.float32), recurrent())
    got = ss.smooth(single, y.astype(np.float32), method=ss.StructuredVariational(tolerance=1e-4))
    assert got.mean.dtype == jnp.float32
    np.testing.assert_allclose(got.log_likelihood, double.log_likelihood, rtol=1e-4)
    np.testing.assert_allclose(got.mean, double.mean, atol=5e-3)


def test_what_does_not_fit_is_named(y):
    with pytest.raises(TypeError, match="does not filter"):
        ss.filter(recurrent(), y, method=SV)
    with pytest.raises(TypeError, match="one observation at a time"):
        ss.online(recurrent(), SV)
    linear = ss.LinearGaussian.random(2, 3, key=jax.random.key(0))
    with pytest.raises(TypeError, match="needs Switching"):
        ss.smooth(linear, y, method=SV)
    flat = ss.AffineGaussian(F[0], scale=np.array([[1.0], [0.5]]))
    moves = ss.Switching(ss.FiniteKernel(PROBS), [flat, flat])
    singular = ss.Model(switching().initial, moves, switching().observation)
    with pytest.raises(ValueError, match="full rank"):
        ss.smooth(singular, y, method=SV)
    with pytest.raises(ValueError, match="2 channels"):
        ss.smooth(recurrent(), y[:, :2], method=SV)
    with pytest.raises(ValueError, match="two moments"):
        ss.smooth(recurrent(), y[:1], method=SV)
    with pytest.raises(ValueError, match="`iterations`"):
        ss.StructuredVariational(iterations=0)
    with pytest.raises(ValueError, match="`tolerance`"):
        ss.StructuredVariational(tolerance=-1.0)
