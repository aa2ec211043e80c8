"""Derivatives of the log likelihood against finite differences of the dense oracle."""

from functools import cache, partial

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import problems
import pytest
from oracle import REAL, derivative

from statespace.chains import gaussian

CASES = problems.cases() | {f"diffuse, {k}": v for k, v in problems.diffuse_cases().items()}
CASES |= {f"sites, {k}": v for k, v in problems.site_cases().items()}
# One program per shape is compiled; the associative forms compile slowly and share the hand-written
# derivative, so that they are tried on some shapes only.
PARALLEL = {*list(problems.cases())[:11], "sites, low rank, two empty", "sites, full rank"}


@eqx.filter_jit
def gradient(arrays, mask, form, parallel):
    def value(arrays):
        return gaussian.log_likelihood(problems.chain(arrays, form, mask), form, parallel)

    return jax.value_and_grad(value)(arrays)


def directions(problem):
    """Two random directions of each array by itself; a flat direction is structure, not a parameter."""
    r = np.random.default_rng(0)
    for name, value in problem.arrays.items():
        if name == "A" or value.size == 0 or ("J" in problem.arrays and name in "HdKy"):
            continue
        # in units of each moment's own values, which differ by orders of magnitude in some cases
        axes = tuple(range(1 if name in "FbLHdKyJh" else 0, value.ndim))
        size = np.nanmax(np.abs(value), axis=axes, keepdims=True, initial=0.0)
        for _ in range(2):
            direction = r.normal(size=value.shape) * np.where(size > 0, size, 1.0)
            if name == "J":
                direction = direction + np.swapaxes(direction, 1, 2)
            yield name, np.where(np.isnan(value), 0, direction)


@cache
def expected(case):
    """(array, direction, derivative of the oracle) for each direction, and the oracle's value."""
    problem = CASES[case]
    arrays = {k: np.asarray(v, REAL) for k, v in problem.arrays.items()}

    def moved(name, direction, h):
        return problems.dense({**arrays, name: arrays[name] + h * direction}).log_likelihood()

    out = []
    for name, direction in directions(problem):
        step = 3e-3 if case == VAGUE else 3e-4
        out.append((name, direction, float(derivative(partial(moved, name, direction), step))))
    return out


VAGUE = "vague initial state"
"""The case in which the oracle itself knows derivatives to about 1e-7 only: the differences of a likelihood
whose covariances are of size 10^7 carry noise of 10^-6 at its usual step, 10^-7 at ten times that."""


def combinations():
    for case in CASES:
        for form in ("covariance", "sqrt"):
            yield pytest.param(case, form, False, id=f"{case}-{form}-sequential")
            if case in PARALLEL:
                yield pytest.param(case, form, True, id=f"{case}-{form}-parallel")


@pytest.mark.parametrize(("case", "form", "parallel"), list(combinations()))
def test_gradient_in_every_array(case, form, parallel):
    problem = CASES[case]
    arrays = {k: jnp.asarray(v) for k, v in problem.arrays.items()}
    mask = jnp.asarray(~np.isnan(problem.y)) if np.isnan(problem.y).any() else None
    value, grad = gradient(arrays, mask, form, parallel)
    assert float(value) == pytest.approx(float(problem.dense.log_likelihood()), rel=1e-9)
    for name, direction, slope in expected(case):
        got = np.asarray(grad[name])
        assert np.isfinite(got).all(), f"gradient in {name} is not finite"
        # relative to the gradient's own size, so that a direction nearly orthogonal to it is no matter
        # A derivative may be zero (of a mean under a flat prior), or, under a vague prior, of size 1e-7
        # and come from terms of order one: then only its absolute error can be at rounding level.
        floor = 1.0 if case == VAGUE else 1e-3
        size = max(np.linalg.norm(got * direction), floor)
        rel = 5e-7 if case == VAGUE else 1e-9
        assert (got * direction).sum() == pytest.approx(slope, rel=rel, abs=rel * size), name
    if mask is not None:
        assert (np.asarray(grad["y"])[~np.asarray(mask)] == 0).all()


# Second derivatives ----------------------------------------------------------------------------------


def trend(theta, xp):
    """A damped trend with an offset: every array depends on the parameters."""
    a, s, c, e = theta
    one, zero = xp.ones_like(a), 0 * a
    row = lambda *entries: xp.stack(entries)
    problem = CASES["missing entries and rows"]
    y = xp.asarray(problem.y[:, :1], one.dtype)
    return {
        "m0": row(c, a),
        "L0": row(row(xp.exp(s), zero), row(a, one)),
        "F": row(row(one, one), row(zero, a))[None],
        "b": row(c, a * c)[None],
        "L": row(row(xp.exp(s), zero), row(a * s, xp.exp(2 * s)))[None],
        "H": row(row(one, e))[None],
        "d": row(c * c)[None],
        "K": row(row(xp.exp(e)))[None],
        "y": y,
    }


@pytest.mark.parametrize("parallel", [False, True], ids=["sequential", "parallel"])
@pytest.mark.parametrize("form", ["covariance", "sqrt"])
def test_hessian_by_forward_over_reverse(form, parallel):
    theta = np.array([0.8, -0.3, 0.5, -0.2])
    mask = jnp.asarray(~np.isnan(CASES["missing entries and rows"].y[:, :1]))

    def value(theta):
        return gaussian.log_likelihood(
            problems.chain(trend(theta, jnp), form, mask), form, parallel
        )

    def oracle(*moves):
        point = np.asarray(theta, REAL).copy()
        for i, h in moves:
            point[i] += h
        return problems.dense(trend(point, np)).log_likelihood()

    hessian = jax.jit(jax.jacfwd(jax.grad(value)))(jnp.asarray(theta))
    for i in range(4):
        for j in range(i + 1):
            inner = lambda hi, i=i, j=j: derivative(lambda hj: oracle((i, hi), (j, hj)), 2e-3)
            assert float(hessian[i, j]) == pytest.approx(float(derivative(inner, 2e-3)), rel=1e-8)
            assert float(hessian[i, j]) == pytest.approx(float(hessian[j, i]), rel=1e-9)


@pytest.mark.parametrize("form", ["covariance", "sqrt"])
def test_forward_mode_is_reverse_mode(form):
    arrays = {k: jnp.asarray(v) for k, v in CASES["complete"].arrays.items()}
    value = lambda a: gaussian.log_likelihood(problems.chain(a, form), form, False)
    direction = jax.tree.map(
        lambda x: jnp.cos(jnp.arange(x.size, dtype=float)).reshape(x.shape), arrays
    )
    slope = jax.jvp(value, (arrays,), (direction,))[1]
    grad = jax.grad(value)(arrays)
    expected = sum(jnp.sum(grad[k] * direction[k]) for k in arrays)
    assert float(slope) == pytest.approx(float(expected), rel=1e-12)


# A masked step is a skipped step -----------------------------------------------------------------------


def skip(arrays, t, channel=None):
    """The same model without moment t (the two transitions around it made one), or without a channel."""
    if channel is not None:
        keep = jnp.asarray([i for i in range(arrays["y"].shape[1]) if i != channel])
        return {**arrays, **{k: arrays[k][:, keep] for k in "HdKy"}}
    cov = lambda L: L @ L.T
    F, b, L = arrays["F"], arrays["b"], arrays["L"]
    joint = jnp.linalg.cholesky(F[t] @ cov(L[t - 1]) @ F[t].T + cov(L[t]))
    merged = {"F": F[t] @ F[t - 1], "b": F[t] @ b[t - 1] + b[t], "L": joint}
    out = {
        k: jnp.concatenate([arrays[k][: t - 1], merged[k][None], arrays[k][t + 1 :]])
        for k in merged
    }
    return {**arrays, **out, **{k: jnp.delete(arrays[k], t, 0) for k in "HdKy"}}


@pytest.mark.parametrize("form", ["covariance", "sqrt"])
def test_a_masked_moment_is_a_skipped_moment(form):
    """In value and in every derivative; what lies under the mask does not matter, NaN or 1e300."""
    arrays = {k: jnp.asarray(v) for k, v in CASES["complete"].arrays.items()}
    mask = jnp.ones((6, 2), bool).at[3].set(False)

    @partial(jax.jit, static_argnums=1)
    def of(arrays, skipped, under):
        def value(arrays):
            if skipped:
                return gaussian.log_likelihood(problems.chain(skip(arrays, 3), form), form, False)
            hidden = {**arrays, "y": jnp.where(mask, arrays["y"], under)}
            return gaussian.log_likelihood(problems.chain(hidden, form, mask), form, False)

        return jax.value_and_grad(value)(arrays)

    expected, expected_grad = of(arrays, True, 0.0)
    for under in (jnp.nan, jnp.inf, 1e300, 0.0):
        got, grad = of(arrays, False, under)
        assert float(got) == pytest.approx(float(expected), rel=1e-13)
        for name in arrays:
            np.testing.assert_allclose(
                grad[name], expected_grad[name], rtol=1e-9, atol=1e-11, err_msg=name
            )


@pytest.mark.parametrize("form", ["covariance", "sqrt"])
def test_a_masked_channel_is_no_channel(form):
    arrays = {k: jnp.asarray(v) for k, v in CASES["complete"].arrays.items()}
    mask = jnp.ones((6, 2), bool).at[:, 0].set(False)
    hidden = {**arrays, "y": jnp.where(mask, arrays["y"], jnp.nan)}

    def masked(a):
        return gaussian.log_likelihood(problems.chain(a, form, mask), form, False)

    def without(a):
        return gaussian.log_likelihood(problems.chain(skip(a, 0, channel=0), form), form, False)

    got, grad = jax.value_and_grad(masked)(hidden)
    expected, expected_grad = jax.value_and_grad(without)(arrays)
    assert float(got) == pytest.approx(float(expected), rel=1e-13)
    for name in arrays:
        np.testing.assert_allclose(
            grad[name], expected_grad[name], rtol=1e-9, atol=1e-11, err_msg=name
        )


def test_a_full_mask_is_no_mask():
    arrays = {k: jnp.asarray(v) for k, v in CASES["complete"].arrays.items()}
    with_mask = gradient(arrays, jnp.ones((6, 2), bool), "covariance", False)
    without_mask = gradient(arrays, None, "covariance", False)
    for a, b in zip(jax.tree.leaves(with_mask), jax.tree.leaves(without_mask)):
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-12)
