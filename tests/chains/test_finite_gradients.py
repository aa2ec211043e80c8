"""Derivatives of the finite chain's log likelihood against those of an enumeration of all paths."""

from functools import partial

import enumeration
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from statespace.chains import finite
from statespace.chains.finite import scaled

CASES = enumeration.cases()
ORDINARY = [*list(CASES)[:2], *list(CASES)[3:7]]
FORMS = pytest.mark.parametrize("parallel", [False, True], ids=["sequential", "parallel"])
EVERY = pytest.mark.parametrize("case", CASES)


def chain_of(arrays, dtype=float):
    return finite.Chain(*(jnp.asarray(x, dtype) for x in arrays))


gradient = jax.jit(jax.value_and_grad(finite.log_likelihood), static_argnums=1)


def of_the_gradient(derivative):
    """A matrix of second derivatives in all arrays of a chain, one after the other."""

    @partial(jax.jit, static_argnums=1)
    def hessian(chain, parallel=False):
        flat, back = ravel_pytree(chain)
        return derivative(jax.grad(lambda x: finite.log_likelihood(back(x), parallel)))(flat)

    return hessian


hessian = of_the_gradient(jax.jacfwd)


@partial(jax.jit, static_argnums=2)
def slope(chain, direction, parallel):
    """The derivative in one direction, in forward mode."""
    value = partial(finite.log_likelihood, parallel=parallel)
    return jax.jvp(value, (chain,), (direction,))[1]


@jax.jit
def by_paths(chain):
    """The log likelihood as a polynomial in the probabilities, path by path."""
    initial, a, w = chain
    moments, states = w.shape
    paths = jnp.indices((states,) * moments).reshape(moments, -1)
    a = jnp.broadcast_to(a, (moments - 1, states, states))
    total = initial[paths[0]] * jnp.exp(w[0])[paths[0]]
    for t in range(1, moments):
        total = total * a[t - 1][paths[t - 1], paths[t]] * jnp.exp(w[t])[paths[t]]
    return jnp.log(jnp.sum(total))


slopes_by_paths = jax.jit(jax.grad(by_paths))


@jax.jit
def hessian_by_paths(chain):
    flat, back = ravel_pytree(chain)
    return jax.hessian(lambda x: by_paths(back(x)))(flat)


@FORMS
@pytest.mark.parametrize("case", ORDINARY)
def test_gradient(case, parallel):
    """Also in probabilities that are zero: the value is a polynomial in them."""
    chain = chain_of(CASES[case])
    value, slopes = gradient(chain, parallel)
    expected = slopes_by_paths(chain)
    assert float(value) == pytest.approx(float(by_paths(chain)), rel=1e-13)
    for got, right in zip(slopes, expected, strict=True):
        # a potential of -inf has no derivative in the enumeration
        np.testing.assert_allclose(got, np.nan_to_num(right), rtol=1e-11, atol=1e-12)


@FORMS
@EVERY
def test_gradient_is_of_expected_numbers(case, parallel):
    """Fisher's identity from the enumeration, in the range in which a float64 can tell."""
    arrays, paths = CASES[case], enumeration.Paths(*CASES[case])
    _, slopes = gradient(chain_of(arrays), parallel)
    for x in slopes:
        assert np.isfinite(x).all()
    np.testing.assert_allclose(slopes.potentials, paths.marginals().astype(float), atol=1e-12)
    initial, a, _ = arrays
    first = np.asarray(slopes.initial) * initial
    np.testing.assert_allclose(first, paths.marginals()[0].astype(float), rtol=1e-11, atol=1e-12)
    moves = np.asarray(slopes.transitions) * a
    expected = paths.pairs().sum(0, keepdims=True) if len(a) == 1 else paths.pairs()
    np.testing.assert_allclose(moves, expected.astype(float), rtol=1e-11, atol=1e-12)


@FORMS
@pytest.mark.parametrize("case", ["plain", "varying", "structural zeros", "varying zeros"])
def test_hessian(case, parallel):
    chain = chain_of(CASES[case])
    got, expected = hessian(chain, parallel), hessian_by_paths(chain)
    # in the associative form zeros are fixed: a second derivative does not see them move
    flat = ravel_pytree(chain)[0]
    some = np.asarray(flat != 0) | (not parallel) | (np.arange(flat.size) >= flat.size - 18)
    both = np.ix_(some, some)
    np.testing.assert_allclose(got[both], expected[both], rtol=1e-9, atol=1e-10)
    assert np.isfinite(got).all()


def test_hessian_in_reverse_and_in_forward_mode():
    chain = chain_of(CASES["impossible states"])
    one = hessian(chain, False)
    two = of_the_gradient(jax.jacrev)(chain)
    np.testing.assert_allclose(one, two, rtol=1e-10, atol=1e-11)
    flat, back = ravel_pytree(chain)
    direction = np.random.default_rng(0).normal(size=flat.size)

    @jax.jit
    def forward(x):
        slope = lambda x: jax.jvp(lambda x: finite.log_likelihood(back(x)), (x,), (direction,))[1]
        return jax.jvp(slope, (x,), (direction,))[1]

    assert float(forward(flat)) == pytest.approx(float(direction @ one @ direction), rel=1e-10)


@pytest.mark.parametrize("case", ["the first moment misleads", "two tracks that never meet"])
def test_hessian_in_the_potentials_where_weights_underflow(case):
    """It is the covariance of the states' indicators."""
    paths = enumeration.Paths(*CASES[case])
    whole = hessian(chain_of(CASES[case]), False)
    assert np.isfinite(whole).all()
    indicators = np.eye(3)[paths.paths].reshape(-1, 18)
    mean = paths.weights @ indicators
    expected = (paths.weights[:, None] * indicators).T @ indicators - np.outer(mean, mean)
    np.testing.assert_allclose(whole[-18:, -18:], expected.astype(float), atol=1e-12)


def never_back(surprise):
    """A chain that never goes back; all but its last state, and later that one, are a surprise."""
    w = np.random.default_rng(3).normal(size=(6, 3))
    w[2, :2] -= surprise
    w[4, 2] -= surprise + 1
    matrix = np.array([[[0.7, 0.3, 0.0], [0.0, 0.6, 0.4], [0.0, 0.0, 1.0]]])
    return chain_of(([1.0, 0.0, 0.0], matrix, w))


@FORMS
def test_hessian_where_zeros_meet_underflow(parallel):
    """In all probabilities that are not zero, against the paths; logarithms do the work."""
    chain, surprise = never_back(690.0), 690.0
    assert scaled.forward(chain, True).extreme
    assert not scaled.forward(never_back(10.0), True).extreme
    got, flat = np.asarray(hessian(chain, parallel)), np.asarray(ravel_pytree(chain)[0])
    assert np.isfinite(got).all()
    # a constant brings the weights of the paths into the range of a float64
    raised = chain._replace(potentials=chain.potentials.at[0].add(surprise))
    both = np.ix_(flat != 0, flat != 0)
    expected = hessian_by_paths(raised)[both]
    assert np.abs(expected).max() > 0.1
    np.testing.assert_allclose(got[both], expected, rtol=1e-9, atol=1e-10)


@FORMS
@pytest.mark.parametrize("name", enumeration.IMPOSSIBLE)
def test_impossible_data_have_finite_derivatives(name, parallel):
    chain = chain_of(enumeration.IMPOSSIBLE[name])
    value, slopes = gradient(chain, parallel)
    assert value == -np.inf
    for x in slopes:
        assert np.isfinite(x).all()
    moved = slope(chain, slopes, parallel)
    assert np.isfinite(moved)


def test_a_batch_of_gradients_is_its_members():
    chains = [chain_of(c) for c in CASES.values() if len(c[1]) == 1][:8]
    batch = jax.tree.map(lambda *x: jnp.stack(x), *chains)
    values, slopes = jax.jit(jax.vmap(jax.value_and_grad(finite.log_likelihood)))(batch)
    for i, chain in enumerate(chains):
        value, slope = gradient(chain, False)
        assert float(values[i]) == pytest.approx(float(value), rel=1e-13)
        for got, right in zip(slopes, slope, strict=True):
            np.testing.assert_allclose(got[i], right, rtol=1e-11, atol=1e-12)


def test_parameters_by_the_chain_rule():
    """Through the softmax of logits: what learners do."""
    r = np.random.default_rng(0)
    theta = jnp.asarray(r.normal(size=(5, 3)))
    w = jnp.asarray(r.normal(size=(6, 3)))

    def chain(theta):
        laws = jax.nn.softmax(theta[:4], axis=1)
        return finite.Chain(laws[0], laws[1:][None], w * theta[4])

    got = jax.jit(jax.grad(lambda x: finite.log_likelihood(chain(x))))(theta)
    expected = jax.grad(lambda x: by_paths(chain(x)))(theta)
    np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-13)
