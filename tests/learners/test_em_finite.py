"""EM of finite states against sums over all paths, published maxima and maximum likelihood."""

import itertools
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from compilations import compilations
from scipy import stats

import statespace as ss

PI, A = np.array([0.6, 0.4]), np.array([[0.8, 0.2], [0.3, 0.7]])
MEAN, SD = np.array([[0.0, 1.0], [2.0, -1.0]]), np.array([[1.0, 0.5], [0.8, 1.2]])


def two_states(**changes):
    parts = {"initial_probs": PI, "transition": A, "emission": ss.emissions.Gaussian(MEAN, SD)}
    return ss.HMM(**(parts | changes))


def short_panel():
    """Recordings of five and four moments, with entries missing in part and entirely, and soft labels."""
    rng = np.random.default_rng(0)
    y = [rng.normal(size=(n, 2)) + 1.0 for n in (5, 4)]
    y[0][1, 0] = y[1][2] = np.nan
    labels = np.full((5, 2), np.nan)
    labels[3] = [0.2, 0.9]
    return [
        ss.Series(y[0], state_weights=labels),
        ss.Series(y[1], state_weights=np.full((4, 2), np.nan)),
    ]


def enumerated(y, labels):
    """Log likelihood, law of the first state, expected transitions and state probabilities, path by path."""
    T = len(y)
    total, first, moves, states = 0.0, np.zeros(2), np.zeros((2, 2)), np.zeros((T, 2))
    for path in itertools.product(range(2), repeat=T):
        p = PI[path[0]] * np.prod([A[a, b] for a, b in itertools.pairwise(path)])
        for t, k in enumerate(path):
            seen = ~np.isnan(y[t])
            p *= np.prod(stats.norm.pdf(y[t][seen], MEAN[k][seen], SD[k][seen]))
            p *= 1.0 if np.isnan(labels[t, k]) else labels[t, k]
        total += p
        first[path[0]] += p
        for a, b in itertools.pairwise(path):
            moves[a, b] += p
        states[np.arange(T), path] += p
    return np.log(total), first / total, moves / total, states / total


def quietly(*args, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ss.ConvergenceWarning)
        return ss.fit(*args, **kwargs)


@pytest.mark.parametrize("sticky", [0.0, 3.0])
def test_one_iteration_path_by_path(sticky):
    """Baum & Welch by hand: a pooled M-step on what is expected of each recording by itself."""
    data = short_panel()
    concentration = np.ones((2, 2)) + sticky * np.eye(2)
    priors = {"transition.probs": dist.Dirichlet(jnp.asarray(concentration))} if sticky else None
    fitted = quietly(two_states(), data, learner=ss.EM(iterations=1), priors=priors)
    parts = [enumerated(np.asarray(s.y), np.asarray(s.state_weights)) for s in data]
    known = sum(p[0] for p in parts) + (
        stats.dirichlet.logpdf(A[0], concentration[0]) if sticky else 0
    )
    known += stats.dirichlet.logpdf(A[1], concentration[1]) if sticky else 0
    np.testing.assert_allclose(fitted.trace[0], known, rtol=1e-12)

    first, moves = sum(p[1] for p in parts), sum(p[2] for p in parts) + concentration - 1
    found = fitted.parameters
    np.testing.assert_allclose(found["initial_probs"], first / first.sum(), rtol=1e-10)
    np.testing.assert_allclose(
        found["transition.probs"], moves / moves.sum(axis=1, keepdims=True), rtol=1e-10
    )
    y, weights = np.concatenate([s.y for s in data]), np.concatenate([p[3] for p in parts])
    for k in range(2):
        for i in range(2):
            seen = ~np.isnan(y[:, i])
            w, values = weights[seen, k], y[seen, i]
            mean = np.average(values, weights=w)
            sd = np.sqrt(np.average((values - mean) ** 2, weights=w))
            np.testing.assert_allclose(found["emission.mean"][k, i], mean, rtol=1e-10)
            np.testing.assert_allclose(found["emission.scale"][k, i], sd, rtol=1e-10)


class Shifted(eqx.Module):
    """An observation without an M-step of its own."""

    shift: jax.Array = ss.parameter()
    width: jax.Array = ss.parameter("positive")

    def __call__(self, state, step):
        return dist.Laplace(self.shift[state], self.width)


def recordings(m=2):
    """Two recordings of unequal length that switch between two levels, with inputs and gaps."""
    rng = np.random.default_rng(3)
    out = []
    for T in (40, 25):
        z = (np.cumsum(rng.random(T) < 0.15) % 2)[:, None]
        y = np.where(z, 2.0, 0.0) + 0.7 * rng.normal(size=(T, m))
        y[rng.random(y.shape) < 0.1] = np.nan
        times = np.cumsum(rng.uniform(0.5, 2.0, T))
        out.append(ss.Series(y, times, inputs=rng.normal(size=(T, 2))))
    return out


DRIVEN = ss.SoftmaxKernel(np.log(A), 0.1 * np.ones((2, 2, 2)))
LOOSE = ss.Model(
    ss.Categorical(PI), ss.FiniteKernel(A), Shifted(jnp.array([0.0, 1.0]), jnp.array(1.0))
)
FULL = ss.emissions.Gaussian(MEAN, np.stack([np.eye(2), np.eye(2)]))
VARIANTS = {
    "full covariance": (two_states(emission=FULL), {}),
    "driven by inputs": (two_states(transition=DRIVEN), {}),
    "in continuous time": (two_states(transition=ss.RateMatrix([[0.0, 0.3], [0.4, 0.0]])), {}),
    "from the stationary law": (two_states(initial_probs="stationary"), {}),
    "observation without an M-step": (LOOSE, {}),
    "partly frozen": (ss.freeze(two_states(), "emission.mean", "initial_probs"), {}),
    "with a prior of the emission": (two_states(), {"emission.scale": dist.Gamma(20.0, 30.0)}),
    "sticky": (two_states(), {"transition.probs": dist.Dirichlet(jnp.array([2.0, 1.5]))}),
    "autoregressive": (
        two_states(
            emission=ss.emissions.Autoregressive(
                0.1 * np.ones((2, 1, 2, 2)), MEAN, SD, np.zeros((2, 2, 2))
            )
        ),
        {},
    ),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_likelihood_never_falls(name):
    start, priors = VARIANTS[name]
    data = recordings(1 if start is LOOSE else 2)
    fitted = quietly(start, data, learner=ss.EM(iterations=12, tolerance=0.0), priors=priors)
    assert len(fitted.trace) == 13
    assert np.all(np.diff(fitted.trace) > -1e-9)
    assert fitted.trace[-1] > fitted.trace[0] + 0.1
    free, old = ss.parameters(start, frozen=False), ss.parameters(start)
    for key, value in fitted.parameters.items():
        assert np.array_equal(value, old[key]) == (key not in free), key


@pytest.mark.slow
@pytest.mark.parametrize("name", ["full covariance", "driven by inputs", "in continuous time"])
def test_fixed_point_is_a_maximum(name):
    """The slope of the log likelihood in the unconstrained space has vanished."""
    start, priors = VARIANTS[name]
    data = recordings()
    fitted = quietly(start, data, learner=ss.EM(iterations=1500, tolerance=1e-10), priors=priors)
    assert fitted.converged
    np.testing.assert_allclose(
        fitted.log_likelihood, ss.log_likelihood(fitted.model, data), rtol=1e-12
    )
    go_on = lambda z: ss.log_likelihood(ss.constrain(fitted.model, z), data)
    for key, slope in jax.grad(go_on)(ss.unconstrain(fitted.model)).items():
        np.testing.assert_allclose(slope, 0, atol=5e-3, err_msg=key)


def earthquakes(states):
    matrix = np.full((states, states), 0.1 / max(states - 1, 1))
    np.fill_diagonal(matrix, 1.0 if states == 1 else 0.9)
    return ss.HMM("stationary", matrix, ss.emissions.Poisson(np.linspace(12, 30, states)))


# -log L at the maximum, Zucchini & MacDonald (2009), table 3.1
MAXIMA = {1: 391.9189, 2: 342.3183, 3: 329.4603}


@pytest.mark.parametrize("states", MAXIMA)
def test_earthquakes(states):
    y = ss.datasets.load("earthquakes")
    fitted = ss.fit(earthquakes(states), y, learner=ss.EM(tolerance=1e-8))
    np.testing.assert_allclose(-fitted.log_likelihood, MAXIMA[states], atol=1e-4)


@pytest.mark.slow
def test_earthquakes_of_four_states_need_many_starts(key):
    y = ss.datasets.load("earthquakes")
    learner = ss.EM(tolerance=1e-8, starts=20)
    fitted = ss.fit(earthquakes(4), y, learner=learner, key=key)
    np.testing.assert_allclose(-fitted.log_likelihood, 327.8316, atol=1e-4)
    ends = np.array([trace[-1] for trace in fitted.starts])
    assert len(ends) == 20
    assert ends[0] < -328
    assert np.max(ends) == pytest.approx(fitted.log_likelihood, abs=1e-6)


@pytest.mark.slow
def test_maximum_likelihood_goes_on():
    """Standard errors of what EM found; zeros of the matrix stay, and are no parameters."""
    left_right = np.array([[0.9, 0.1, 0.0], [0.0, 0.9, 0.1], [0.0, 0.0, 1.0]])
    y = np.concatenate([np.random.default_rng(0).poisson(rate, 25) for rate in (2, 10, 5)]) * 1.0
    start = ss.HMM([1.0, 0.0, 0.0], left_right, ss.emissions.Poisson([1.0, 8.0, 4.0]))
    near = ss.fit(start, y, learner=ss.EM(tolerance=1e-9))
    best = ss.fit(near, y)
    assert 0 <= best.log_likelihood - near.log_likelihood < 1e-6
    assert best.degrees == 2 + 3
    np.testing.assert_array_equal(best.parameters["transition.probs"] == 0, left_right == 0)
    rate = best.parameters["emission.rate"][0]
    np.testing.assert_allclose(
        best.standard_errors["emission.rate"][0], np.sqrt(rate / 25), rtol=0.02
    )


def test_starts(key):
    """The first is the model as given, here on the saddle of equal states; the best is kept."""
    data = recordings()
    equal = ss.emissions.Gaussian(np.ones((2, 2)), np.ones((2, 2)))
    same = ss.HMM(None, [[0.5, 0.5], [0.5, 0.5]], equal)
    learner = ss.EM(iterations=60, starts=6, floor=1e-4)
    fitted = quietly(same, data, learner=learner, key=key)
    y = np.concatenate([s.y for s in data])
    one = stats.norm.logpdf(y, np.nanmean(y, axis=0), np.nanstd(y, axis=0))
    np.testing.assert_allclose(fitted.starts[0][-1], np.nansum(one), rtol=1e-9)
    assert fitted.log_likelihood > fitted.starts[0][-1] + 20
    assert max(trace[-1] for trace in fitted.starts) <= fitted.log_likelihood
    random = ss.EM(iterations=60, starts=6, floor=1e-4, initialisation="random")
    drawn = quietly(same, data, learner=random, key=key)
    np.testing.assert_allclose(drawn.log_likelihood, fitted.log_likelihood, atol=0.5)
    again = [ss.Series(s, inputs=s.inputs) for s in data]
    with compilations() as events:
        quietly(same, again, learner=learner, key=jax.random.key(1))
    assert events == []


def test_a_state_never_visited_keeps_its_emission():
    model = ss.HMM(
        [1.0, 0.0], [[1.0, 0.0], [0.5, 0.5]], ss.emissions.Gaussian([0.0, 7.0], [1.0, 2.0])
    )
    fitted = ss.fit(model, np.array([0.3, -0.2, 1.0]), learner=ss.EM())
    np.testing.assert_allclose(fitted.parameters["emission.mean"], [1.1 / 3, 7.0], rtol=1e-9)
    assert fitted.parameters["emission.scale"][1] == 2.0
    np.testing.assert_array_equal(fitted.parameters["transition.probs"], [[1.0, 0.0], [0.5, 0.5]])


SPIKE = np.array([0.1, -0.3, 50.0, 0.4, -0.5, 0.2, 0.3])


def test_collapse():
    """A state that keeps a single observation for itself: an error, or the floor."""
    model = ss.HMM(None, [[0.5, 0.5], [0.5, 0.5]], ss.emissions.Gaussian([0.0, 40.0], [1.0, 5.0]))
    with pytest.raises(ValueError, match=r"collapsed to zero: a state has kept.*EM\(floor=...\)"):
        ss.fit(model, SPIKE, learner=ss.EM())
    fitted = quietly(model, SPIKE, learner=ss.EM(floor=0.01))
    np.testing.assert_allclose(fitted.parameters["emission.scale"][1], 0.1, rtol=1e-9)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda y: ss.fit(two_states(), y, learner=ss.EM(starts=3)),
            ValueError,
            "give `fit` a `key`",
        ),
        (
            lambda y: ss.fit(
                ss.LinearGaussian([[0.5]], [1.0], [[1.0]], [1.0], [0.0], [1.0]),
                y[:, 0],
                learner=ss.EM(starts=3),
                key=jax.random.key(0),
            ),
            TypeError,
            "is for models of finitely many states",
        ),
        (
            lambda y: ss.fit(LOOSE, y[:, 0], learner=ss.EM(starts=3), key=jax.random.key(0)),
            TypeError,
            "the observation of this model has none",
        ),
        (
            lambda y: ss.fit(
                two_states(),
                y,
                learner=ss.EM(),
                priors={"transition.probs": dist.Dirichlet(jnp.array([0.5, 1.0]))},
            ),
            ValueError,
            "'transition.probs' has concentrations below 1",
        ),
        (lambda y: ss.EM(starts=0), ValueError, "`starts` must be at least 1, got 0"),
        (lambda y: ss.EM(initialisation="zeros"), ValueError, "`initialisation` must be one of"),
    ],
)
def test_refused(call, error, message):
    with pytest.raises(error, match=message):
        call(np.random.default_rng(0).normal(size=(5, 2)))
