"""The chain under jit, vmap and grad, in long series, and where its covariances converge."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import problems
import pytest
from oracle import REAL, derivative, kalman

from statespace.chains import gaussian


def batch(count=3, **options):
    """Chains that differ in every array, stacked; and one by one."""
    each = [problems.random(40 + i, **options).arrays for i in range(count)]
    return {k: jnp.stack([jnp.asarray(a[k]) for a in each]) for k in each[0]}, each


def value(arrays, mask, form):
    return gaussian.log_likelihood(problems.chain(arrays, form, mask), form, False)


def states(arrays, mask, form):
    chain = problems.chain(arrays, form, mask)
    return gaussian.filter(chain, form, False), gaussian.smooth(chain, form, False)


MASK = np.ones((3, 6, 2), bool)
MASK[0, 1, 0] = MASK[1, 3] = MASK[2, 0, 1] = False


@pytest.mark.parametrize("form", ["covariance", "sqrt"])
@pytest.mark.parametrize("size", [{}, {"n": 12}], ids=["small", "beyond the written-out sizes"])
def test_vmap_over_chains_of_their_own(form, size):
    """Values, gradients and states of a batch are those of each chain by itself."""
    stacked, each = batch(**size)
    mask = jnp.asarray(MASK)
    both = lambda a, k: (jax.value_and_grad(value)(a, k, form), states(a, k, form))
    one = jax.jit(both)
    got = jax.jit(jax.vmap(both))(stacked, mask)
    for i, arrays in enumerate(each):
        want = one({k: jnp.asarray(v) for k, v in arrays.items()}, mask[i])
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want)):
            np.testing.assert_allclose(a[i], b, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("masked", [False, True], ids=["complete", "missing entries"])
@pytest.mark.parametrize("varying", [False, True], ids=["constant", "varying"])
def test_vmap_over_series_with_shared_parameters(varying, masked):
    """The gradient in the shared arrays is the sum of the gradients of the series."""
    arrays = {k: jnp.asarray(v) for k, v in problems.random(50, varying=varying).arrays.items()}
    y = jnp.asarray(np.random.default_rng(51).normal(size=(3, 6, 2)))
    mask = jnp.asarray(MASK) if masked else None

    def total(shared, mapped):
        def one(y, mask):
            return value({**shared, "y": y}, mask, "covariance")

        if mapped:
            return jnp.sum(jax.vmap(one)(y, mask))
        return sum(one(y[i], None if mask is None else mask[i]) for i in range(3))

    got = jax.jit(jax.value_and_grad(partial(total, mapped=True)))(arrays)
    want = jax.jit(jax.value_and_grad(partial(total, mapped=False)))(arrays)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want)):
        np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("form", ["covariance", "sqrt"])
def test_without_jit(form):
    problem = problems.random(60)
    eager = gaussian.log_likelihood(problem.chain(form), form)
    assert float(eager) == pytest.approx(float(problem.dense.log_likelihood()), rel=1e-9)


# Long series -------------------------------------------------------------------------------------------


def long(F, L, H, K, L0, T=2000):
    """A series drawn from a time-invariant model."""
    F, L, H, K, L0 = (np.asarray(a, float) for a in (F, L, H, K, L0))
    n, m = len(F), len(H)
    r = np.random.default_rng(70)
    x, y = L0 @ r.normal(size=n), np.empty((T, m))
    for t in range(T):
        y[t] = H @ x + K @ r.normal(size=m)
        x = F @ x + L @ r.normal(size=n)
    zero = np.zeros(n)
    return problems.Problem(
        zero, L0, F[None], zero[None], L[None], H[None], np.zeros((1, m)), K[None], y
    )


TRACK = [[1.0, 0.01], [0.0, 1.0]]
SMALL = np.linalg.cholesky(
    1e-8 * np.array([[0.01**3 / 3, 0.01**2 / 2], [0.01**2 / 2, 0.01]]) + 1e-14 * np.eye(2)
)
LONG = {
    "fast": long([[0.9, 0.1], [-0.1, 0.9]], 0.3 * np.eye(2), [[1.0, 0.0]], [[0.7]], np.eye(2)),
    # Covariances of 1e-8: an absolute test of convergence stops here at once, and is wrong.
    "small and slow": long(TRACK, SMALL, [[1.0, 0.0]], [[1e-3]], np.eye(2)),
    # The unobserved second state converges only after some 10,000 steps.
    "hardly converging": long(
        np.diag([0.5, 0.9999]), np.diag([1.0, 1e-4]), [[1.0, 0.01]], [[1.0]], np.diag([1.0, 10.0])
    ),
}


@pytest.mark.parametrize("case", LONG)
def test_converged_covariances_against_the_recursion(case):
    """Where covariances have stopped changing they are no longer computed: nobody can tell."""
    problem = LONG[case]
    want, mean, cov, smoothed_mean, smoothed_cov = kalman(problem.dense)
    for form in ("covariance", "sqrt"):
        chain = problem.chain(form)
        filtered, smoothed = jax.jit(
            lambda c, f=form: (gaussian.filter(c, f), gaussian.smooth(c, f))
        )(chain)
        assert float(filtered.log_likelihood) == pytest.approx(float(want), rel=1e-9)
        sd = np.sqrt(np.einsum("tii->ti", cov).astype(float))
        for got, expected in ((filtered, (mean, cov)), (smoothed, (smoothed_mean, smoothed_cov))):
            error = np.abs(np.asarray(got.mean) - expected[0].astype(float)) / sd
            assert error.max() < 1e-8
            relative = np.einsum("tii->ti", np.asarray(got.covariance) / expected[1].astype(float))
            np.testing.assert_allclose(relative, 1, rtol=1e-8)


def test_gradient_of_a_converged_chain():
    problem = LONG["fast"]
    arrays = {k: jnp.asarray(v) for k, v in problem.arrays.items()}
    extended = {k: np.asarray(v, REAL) for k, v in problem.arrays.items()}
    grad = jax.jit(jax.grad(lambda a: value(a, None, "covariance")))(arrays)
    r = np.random.default_rng(71)
    for name in "FLHK":
        direction = r.normal(size=arrays[name].shape)

        def moved(h, name=name, direction=direction):
            return kalman(problems.dense({**extended, name: extended[name] + h * direction}))[0]

        slope = float(derivative(moved, 1e-4))
        assert float((grad[name] * direction).sum()) == pytest.approx(slope, rel=1e-9)


def test_a_gap_in_a_long_series():
    """Missing moments set a converged filter back, and it converges again."""
    base = LONG["fast"]
    problem = base.but(y=problems.without(base.y, slice(800, 850), slice(0, 5)))
    want, *_, smoothed_mean, smoothed_cov = kalman(problem.dense)
    smoothed = jax.jit(gaussian.smooth)(problem.chain("covariance"))
    assert float(smoothed.log_likelihood) == pytest.approx(float(want), rel=1e-9)
    np.testing.assert_allclose(smoothed.mean, smoothed_mean.astype(float), rtol=0, atol=1e-9)
    np.testing.assert_allclose(smoothed.covariance, smoothed_cov.astype(float), rtol=0, atol=1e-9)
