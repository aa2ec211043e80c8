"""Probabilities with zeros: the bijection against autodiff, and what learners see of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro.distributions import biject_to

import statespace as ss
from statespace.conditionals.finite import Categorical, FiniteKernel, SoftmaxKernel
from statespace.constraints.sparse_simplex import SparseSimplex
from statespace.learners.result import redundant_count

MATRIX = jnp.array([[0.2, 0.5, 0.3], [0.0, 0.4, 0.6], [0.0, 0.0, 1.0]])


def test_round_trip_and_volume():
    """Of rows with n possible entries the first n - 1 are coordinates; the volume is theirs."""
    support = FiniteKernel(MATRIX)
    (constraint,) = ss.supports(support).values()
    bijection = biject_to(constraint)
    free = bijection.inv(MATRIX)
    assert free.shape == (3,) == bijection.inverse_shape((3, 3))
    assert bijection.forward_shape(free.shape) == (3, 3)
    np.testing.assert_allclose(bijection(free), MATRIX, rtol=1e-14)
    coordinates = lambda x: bijection(x)[jnp.array([0, 0, 1]), jnp.array([0, 1, 1])]
    expected = jnp.linalg.slogdet(jax.jacobian(coordinates)(free))[1]
    np.testing.assert_allclose(bijection.log_abs_det_jacobian(free, MATRIX), expected, rtol=1e-12)
    many = jnp.stack([free, -free])
    assert bijection(many).shape == (2, 3, 3)
    np.testing.assert_allclose(bijection(many)[1], bijection(-free), rtol=1e-14)


@pytest.mark.parametrize("free", [("logits",), ("weights",), ("logits", "weights")])
def test_directions_without_effect(free):
    """They are those that the derivative of the matrices at several inputs does not see."""
    rng = np.random.default_rng(0)
    inputs, *values = (jnp.asarray(rng.normal(size=s)) for s in ((6, 2), (3, 3), (3, 3, 2)))
    kernel = SoftmaxKernel(*values)
    two = ss.FactorialKernel([kernel, [[0.5, 0.5], [0.2, 0.8]]])
    for whole, begin, states in ((kernel, "", 3), (two, "kernels.0.", 6)):
        names = {begin + name for name in free}
        values = {k: v for k, v in ss.parameters(whole).items() if k in names}
        assert set(values) == names

        def matrices(values, whole=whole):
            at = lambda u: ss.replace(whole, values).matrix(ss.Step(1, 1.0, 1.0, u))
            return jax.vmap(at)(inputs)

        slopes = jax.jit(jax.jacobian(matrices))(values)
        flat = [np.reshape(slopes[k], (-1, v.size)) for k, v in values.items()]
        rank = np.linalg.matrix_rank(np.concatenate(flat, axis=1))
        size = sum(v.size for v in values.values())
        assert whole.redundant(names) == size - rank
        model = ss.HMM(None, whole, ss.emissions.Poisson(np.arange(1.0, 1 + states)))
        assert redundant_count(model, {"transition." + n for n in names}) == size - rank


def test_membership():
    constraint = SparseSimplex((True, False, True))
    assert constraint(jnp.array([0.4, 0.0, 0.6]))
    assert not constraint(jnp.array([0.4, 0.1, 0.5]))
    assert not constraint(jnp.array([1.0, 0.0, 0.0]))
    assert not constraint(jnp.array([0.4, 0.0, 0.5]))
    assert constraint(constraint.feasible_like(jnp.zeros(3)))


def test_learners_move_what_is_not_zero():
    kernel = FiniteKernel(MATRIX)
    free = ss.unconstrain(kernel)
    moved = ss.constrain(kernel, {k: v + 1.0 for k, v in free.items()})
    np.testing.assert_array_equal(moved.probs == 0, MATRIX == 0)
    np.testing.assert_allclose(moved.probs.sum(axis=1), 1, rtol=1e-14)
    again = jax.jit(lambda k, f: ss.constrain(k, f).probs)(kernel, free)
    np.testing.assert_allclose(again, MATRIX, rtol=1e-14)
    assert ss.unconstrain(Categorical([1.0])) == {"probs": pytest.approx(np.zeros(0))}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Categorical([0.5, 0.4]), r"`probs` must sum to one, but sums to 0\.9"),
        (lambda: Categorical([[1.0]]), r"shape \(K,\), got \(1, 1\)"),
        (lambda: Categorical([1.5, -0.5]), "negative or undefined"),
        (lambda: FiniteKernel(jnp.ones((2, 3)) / 3), r"shape \(K, K\), got \(2, 3\)"),
        (lambda: FiniteKernel([[0.5, 0.5], [0.5, 0.6]]), "sum to one in row 1"),
        (lambda: FiniteKernel([[np.nan, 1.0], [0.5, 0.5]]), "undefined probability in row 0"),
        (lambda: SoftmaxKernel(jnp.zeros((2, 2)), jnp.zeros((2, 3, 1))), r"\(2, 2, k\)"),
        (lambda: SoftmaxKernel(jnp.zeros((2, 2)), jnp.zeros((2, 2, 2)), 0), "names 1 inputs"),
    ],
)
def test_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
