"""What emissions refuse, with the remedy: parameters that do not fit, and observations that cannot be."""

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from statespace import emissions as em

EYE = np.stack([np.eye(2)] * 2)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: em.Gaussian(np.zeros((2, 2, 2)), EYE),
            ValueError,
            r"`mean` must have shape \(K,\) or",
        ),
        (
            lambda: em.Gaussian(np.zeros((2, 2)), np.ones((3, 2))),
            ValueError,
            r"`scale` must have shape \(2, 2\) or \(2, 2, 2\) \(or 1 in place of 2.*got \(3, 2\)",
        ),
        (
            lambda: em.Gaussian(np.zeros((2, 2)), -np.ones((2, 2))),
            ValueError,
            "`scale` must be positive",
        ),
        (
            lambda: em.Gaussian(np.zeros((2, 2)), EYE + 0.1),
            ValueError,
            r"(?s)lower triangular with a positive diagonal.*cholesky",
        ),
        (lambda: em.Gaussian([0.0, np.nan], [1.0, 1.0]), ValueError, "`mean` must be finite"),
        (
            lambda: em.StudentT([3.0], [0.0, 1.0], [1.0, 1.0]),
            ValueError,
            r"`degrees` must have shape \(2,\)",
        ),
        (
            lambda: em.StudentT([3.0, 0.0], [0.0, 1.0], [1.0, 1.0]),
            ValueError,
            "`degrees` must be positive",
        ),
        (lambda: em.Poisson([1.0, 0.0]), ValueError, "`rate` must be positive"),
        (lambda: em.Bernoulli([0.5, 1.0]), ValueError, "`probs` must be strictly between 0 and 1"),
        (
            lambda: em.NegativeBinomial([1.0, 2.0], [1.0]),
            ValueError,
            r"`concentration` must have shape \(2,\), got \(1,\)",
        ),
        (
            lambda: em.Categorical([0.5, 0.5]),
            ValueError,
            r"`probs` must have shape \(K, C\) or \(K, m, C\)",
        ),
        (
            lambda: em.Categorical([[0.5, 0.6]]),
            ValueError,
            r"must sum to one in row 0, but sums to 1\.1",
        ),
        (
            lambda: em.Mixture([[0.5, 0.4], [0.5, 0.5]], np.zeros((2, 2)), np.ones((2, 2))),
            ValueError,
            "`weights` must sum to one in row 0",
        ),
        (
            lambda: em.Mixture([[0.5, 0.5]], np.zeros((2, 2)), np.ones((2, 2))),
            ValueError,
            r"`mean` must have shape \(1, 2\), got \(2, 2\)",
        ),
        (
            lambda: em.Autoregressive(np.zeros((2, 1)), np.zeros((2, 2)), np.ones((2, 2))),
            ValueError,
            r"`coefficients` must have shape \(2, p, 2, 2\)",
        ),
        (
            lambda: em.Autoregressive(np.zeros((2, 1)), np.zeros(2), np.ones(2), np.zeros((3, 1))),
            ValueError,
            r"`input_matrix` must have shape \(2, 1\), got \(3, 1\)",
        ),
        (
            lambda: em.Distribution(dist.Normal(0, 1)),
            TypeError,
            "must be a NumPyro distribution class",
        ),
        (
            lambda: em.Distribution(dist.Normal, mean=[0.0]),
            TypeError,
            "Normal has no argument 'mean'",
        ),
        (
            lambda: em.Distribution(dist.Normal, loc=[0.0, 1.0], scale=[1.0]),
            ValueError,
            "must have one leading axis of states",
        ),
        (
            lambda: em.Distribution(dist.Normal, loc=[0.0, 1.0], scale=[1.0, -1.0]),
            ValueError,
            "`scale` of Normal must be inside its support",
        ),
    ],
)
def test_parameters(make, error, message):
    with pytest.raises(error, match=message):
        make()


COUNT = np.array([[0.0], [3.0], [np.nan]])
DIRICHLET = em.Distribution(dist.Dirichlet, concentration=jnp.ones((2, 3)))


@pytest.mark.parametrize(
    ("emission", "y", "message"),
    [
        (
            em.Poisson([1.0]),
            COUNT - 1,
            r"Poisson must be counts 0, 1, 2, … .*y\[0, 0\] is -1 \(1 such",
        ),
        (em.NegativeBinomial([1.0], [1.0]), COUNT / 2, r"y\[1, 0\] is 1.5"),
        (em.Bernoulli([0.5]), COUNT, r"Bernoulli must be 0 or 1 .*y\[1, 0\] is 3"),
        (
            em.Categorical([[0.5, 0.5, 0.0]]),
            COUNT,
            r"labels 0 … 2, as `probs` has 3 columns .*y\[1, 0\] is 3",
        ),
        (
            em.Gaussian([0.0], [1.0]),
            np.zeros((3, 2)),
            r"of 1 channel, but `y` has 2.*\(K, 2, ...\)",
        ),
        (em.StudentT([3.0], [0.0], [1.0]), np.zeros((3, 2)), "of 1 channel, but `y` has 2"),
        (em.Mixture([[1.0]], [[0.0]], [[1.0]]), np.zeros((3, 2)), "of 1 channel, but `y` has 2"),
        (em.Autoregressive([[0.5]], [0.0], [1.0]), np.zeros((3, 2)), "of 1 channel, but `y` has 2"),
        (
            em.Distribution(dist.Exponential, rate=[1.0, 2.0]),
            1 - COUNT,
            r"Exponential must be in the support of some state .*-2.0 is in none \(1 such",
        ),
        (
            DIRICHLET,
            np.array([[0.2, 0.3, 0.5], [np.nan, 0.5, 0.5]]),
            "row 1 is missing in part, and Dirichlet is not known to have marginals",
        ),
    ],
)
def test_observations(emission, y, message):
    with pytest.raises(ValueError, match=message):
        emission.check(y)


def test_possible_observations_pass():
    em.Poisson([1.0]).check(COUNT)
    em.Categorical([[0.2, 0.2, 0.2, 0.4]]).check(COUNT)
    em.Distribution(dist.Exponential, rate=[1.0, 2.0]).check(COUNT + 1)
    DIRICHLET.check(np.array([[0.2, 0.3, 0.5], [np.nan] * 3]))


def test_inputs_that_are_not_there():
    emission = em.Autoregressive([[0.5]], [0.0], [1.0], [[0.3]])
    from cases import steps

    with pytest.raises(ValueError, match=r"`input_matrix` for 1 inputs, but the data carry 2"):
        emission.log_probs(jnp.zeros((3, 1)), steps(3))
