"""The hidden Markov model: published likelihoods, its parts, and what it refuses."""

import itertools

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from gnp_growth import GNP_GROWTH

import statespace as ss
from statespace.models.hmm import stationary_law

A = np.array([[0.9, 0.1, 0.0], [0.2, 0.5, 0.3], [0.0, 0.4, 0.6]])


def test_one_state_is_the_plain_model():
    y = np.array([1.0, 3.0, 0.0, np.nan, 2.0])
    model = ss.HMM(None, [[1.0]], ss.emissions.Poisson([1.7]))
    plain = dist.Poisson(1.7).log_prob(np.array([1, 3, 0, 2])).sum()
    np.testing.assert_allclose(ss.log_likelihood(model, y), plain, rtol=1e-12)
    np.testing.assert_array_equal(ss.smooth(model, y).probs, np.ones((5, 1)))


def test_stationary_law():
    values, vectors = np.linalg.eig(A.T)
    known = np.real(vectors[:, np.argmax(values.real)])
    np.testing.assert_allclose(stationary_law(jnp.asarray(A)), known / known.sum(), rtol=1e-12)
    model = ss.HMM("stationary", A, ss.emissions.Poisson([1.0, 2.0, 3.0]))
    assert list(ss.parameters(model)) == ["transition.probs", "emission.rate"]
    np.testing.assert_allclose(model.initial.probs, known / known.sum(), rtol=1e-12)


def test_uniform_first_state_and_zeros_that_stay():
    model = ss.HMM(None, A, ss.emissions.Poisson([1.0, 2.0, 3.0]))
    np.testing.assert_allclose(model.initial_probs, np.full(3, 1 / 3))
    free = ss.unconstrain(model)
    assert {k: v.shape for k, v in free.items()} == {
        "initial_probs": (2,),
        "transition.probs": (4,),
        "emission.rate": (3,),
    }
    moved = ss.constrain(model, {k: v + 0.3 for k, v in free.items()})
    np.testing.assert_array_equal(np.asarray(moved.transition.probs) == 0, A == 0)
    np.testing.assert_allclose(np.sum(moved.transition.probs, axis=1), 1)


# The parameters of Zucchini & MacDonald (2009), table 3.1: their stationary models of two and three states.
PUBLISHED = {
    2: ([[0.934, 0.066], [0.129, 0.871]], [15.472, 26.125], 342.3183),
    3: (
        [[0.955, 0.024, 0.021], [0.050, 0.899, 0.051], [0.000, 0.197, 0.803]],
        [13.146, 19.721, 29.714],
        329.4603,
    ),
}


@pytest.mark.parametrize("states", PUBLISHED)
def test_earthquakes_at_the_published_parameters(states):
    """These are rounded to three digits, so that the likelihood is next to the published maximum."""
    matrix, rates, known = PUBLISHED[states]
    y = ss.datasets.load("earthquakes")
    found = -float(ss.log_likelihood(ss.HMM("stationary", matrix, ss.emissions.Poisson(rates)), y))
    assert known - 1e-3 < found < known + 0.01


def test_hamilton():
    """Switching mean of an AR(4) in quarterly GNP growth (Hamilton 1989), at the maximum that EViews finds.

    The mean of the last four quarters matters too, so that a state is the regimes of five quarters.
    """
    stay, back = 0.754673, 0.095915
    mean, sd = np.array([-0.358811, 1.163516]), np.exp(-0.262658)
    ar = np.array([0.013486, -0.057521, -0.246983, -0.212923])
    regimes = np.array(list(itertools.product(range(2), repeat=5)))  # newest first
    moves = np.array([[stay, 1 - stay], [back, 1 - back]])
    matrix = np.zeros((32, 32))
    for i, now in enumerate(regimes):
        for new in range(2):
            j = np.flatnonzero((regimes == [new, *now[:4]]).all(axis=1))[0]
            matrix[i, j] = moves[now[0], new]
    offset = mean[regimes[:, 0]] - mean[regimes[:, 1:]] @ ar
    emission = ss.emissions.Autoregressive(np.tile(ar, (32, 1)), offset, [sd])
    found = ss.log_likelihood(ss.HMM("stationary", matrix, emission), GNP_GROWTH)
    np.testing.assert_allclose(found, -181.26339, atol=1e-4)


def test_a_function_as_emission():
    y = np.array([0.3, -1.0, 2.0])
    mean = jnp.array([0.0, 1.0])
    plain = ss.HMM(
        [0.3, 0.7],
        A[:2, :2] / A[:2, :2].sum(1, keepdims=True),
        lambda k, step: dist.Normal(mean[k], 1.0),
    )
    ready = ss.HMM(plain.initial_probs, plain.transition, ss.emissions.Gaussian(mean, jnp.ones(2)))
    np.testing.assert_allclose(ss.log_likelihood(plain, y), ss.log_likelihood(ready, y), rtol=1e-12)


POISSON = ss.emissions.Poisson([1.0, 2.0, 3.0])


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: ss.HMM([0.5, 0.4, 0.2], A, POISSON),
            ValueError,
            r"`initial_probs` must sum to one.*1\.1",
        ),
        (
            lambda: ss.HMM(None, A * 1.1, POISSON),
            ValueError,
            r"`probs` must sum to one in row 0.*1\.1",
        ),
        (lambda: ss.HMM(None, A[:2], POISSON), ValueError, r"shape \(K, K\), got \(2, 3\)"),
        (
            lambda: ss.HMM([0.5, 0.5], A, POISSON),
            ValueError,
            r"\(3,\), got \(2,\).*between 3 states",
        ),
        (
            lambda: ss.HMM(np.eye(3), A, POISSON),
            ValueError,
            r"`initial_probs` must have shape \(K,\)",
        ),
        (
            lambda: ss.HMM("uniform", A, POISSON),
            ValueError,
            "None .uniform. or 'stationary', got 'uniform'",
        ),
        (
            lambda: ss.HMM(None, A, ss.emissions.Poisson([1.0, 2.0])),
            ValueError,
            "`emission` has 2 states, but the transition is between 3",
        ),
        (lambda: ss.HMM(None, lambda step: A, POISSON), TypeError, r"FiniteKernel\(function\)"),
        (lambda: ss.HMM(None, A, ss.emissions.Poisson), TypeError, "`emission` must be one of"),
        (
            lambda: ss.HMM(None, A, POISSON, state_names=["a"]),
            ValueError,
            "name the 3 states, got 1",
        ),
        (
            lambda: ss.HMM("stationary", ss.FiniteKernel(lambda step: A), POISSON),
            ValueError,
            "only where the transition is a constant matrix",
        ),
        (
            lambda: ss.HMM(None, ss.FiniteKernel(lambda s: A), lambda k, s: None),
            ValueError,
            "must be given",
        ),
    ],
)
def test_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    ("y", "message"),
    [
        (np.array([1.0, -2.0]), r"counts 0, 1, 2, … \(NaN where missing\), but y\[1, 0\] is -2"),
        (np.array([1.0, 0.5]), r"y\[1, 0\] is 0.5"),
        (np.ones((3, 2)), "of 1 channel, but `y` has 2"),
    ],
)
def test_impossible_observations(y, message):
    model = ss.HMM(None, A, POISSON)
    for verb in (ss.log_likelihood, ss.smooth, lambda m, y: ss.fit(m, y, learner=ss.EM())):
        with pytest.raises(ValueError, match=message):
            verb(model, y)
