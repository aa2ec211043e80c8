"""Derivatives of the finite chain's log likelihood against those of an enumeration of all paths."""

from functools import partial

import enumeration
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from statespace.chains import finite

CASES = enumeration.cases()
ORDINARY = [*list(CASES)[:2], *list(CASES)[3:7]]
FORMS = pytest.mark.parametrize("parallel", [False, True], ids=["sequential", "parallel"])
EVERY = pytest.mark.parametrize("case", CASES)


def chain_of(arrays, dtype=float):
    return finite.Chain(*(jnp.asarray(x, dtype) for x in arrays))


gradient = jax.jit(jax.value_and_grad(finite.log_likelihood), static_argnums=1)


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


@FORMS
@pytest.mark.parametrize("case", ORDINARY)
def test_gradient(case, parallel):
    """Also in probabilities that are zero: the value is a polynomial in them."""
    chain = chain_of(CASES[case])
    value, slopes = gradient(chain, parallel)
    expected = jax.grad(by_paths)(chain)
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
    flat, back = ravel_pytree(chain)
    got = jax.jit(jax.hessian(lambda x: finite.log_likelihood(back(x), parallel)))(flat)
    expected = jax.jit(jax.hessian(lambda x: by_paths(back(x))))(flat)
    # in the associative form zeros are fixed: a second derivative does not see them move
    some = np.asarray(flat != 0) | (not parallel) | (np.arange(flat.size) >= flat.size - 18)
    both = np.ix_(some, some)
    np.testing.assert_allclose(got[both], expected[both], rtol=1e-9, atol=1e-10)
    assert np.isfinite(got).all()


def test_hessian_in_reverse_and_in_forward_mode():
    chain = chain_of(CASES["impossible states"])
    flat, back = ravel_pytree(chain)
    value = lambda x: finite.log_likelihood(back(x))
    modes = [
        jax.jacfwd(jax.grad(value)),
        jax.jacrev(jax.grad(value)),
        jax.jacfwd(jax.jacfwd(value)),
    ]
    one, two, three = (np.asarray(jax.jit(h)(flat)) for h in modes)
    np.testing.assert_allclose(one, two, rtol=1e-10, atol=1e-11)
    np.testing.assert_allclose(one, three, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("case", ["the first moment misleads", "two tracks that never meet"])
def test_hessian_in_the_potentials_where_weights_underflow(case):
    """It is the covariance of the states' indicators."""
    arrays, paths = CASES[case], enumeration.Paths(*CASES[case])
    chain = chain_of(arrays)
    value = lambda w: finite.log_likelihood(chain._replace(potentials=w))
    got = jax.jit(jax.hessian(value))(chain.potentials).reshape(18, 18)
    indicators = np.eye(3)[paths.paths].reshape(-1, 18)
    mean = paths.weights @ indicators
    expected = (paths.weights[:, None] * indicators).T @ indicators - np.outer(mean, mean)
    np.testing.assert_allclose(got, expected.astype(float), atol=1e-12)


@FORMS
@pytest.mark.parametrize("name", enumeration.IMPOSSIBLE)
def test_impossible_data_have_finite_derivatives(name, parallel):
    chain = chain_of(enumeration.IMPOSSIBLE[name])
    value, slopes = gradient(chain, parallel)
    assert value == -np.inf
    for x in slopes:
        assert np.isfinite(x).all()
    moved = jax.jvp(partial(finite.log_likelihood, parallel=parallel), (chain,), (slopes,))[1]
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
