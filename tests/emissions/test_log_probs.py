"""Log densities of every emission against SciPy, with entries missing in part and entirely."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CASES, K, T, steps

from statespace import emissions
from statespace.densities import log_density
from statespace.emissions.base import lagged


def expected(case):
    out = np.zeros((T, K))
    for t, row in enumerate(case.y):
        seen = ~np.isnan(row)
        if seen.any():
            out[t] = [case.oracle(k, seen, row, case.y[:t]) for k in range(K)]
    return out


@eqx.filter_jit
def everything(emission, y):
    """In one program: log densities alone, in a batch, of single states, a draw, and their gradient."""
    here = steps(T)
    filled = jnp.nan_to_num(y)
    both = jax.vmap(lambda y: emission.log_probs(y, here))(jnp.stack([filled, y]))
    at = here._replace(history=lagged(filled, emission.lags)) if emission.lags else here
    law = lambda k, t: emission(k, jax.tree.map(lambda a: a[t], at))
    late, states = jnp.arange(2, T), jnp.arange(K)
    single = jax.vmap(lambda t: jax.vmap(lambda k: log_density(law(k, t), filled[t]))(states))(late)
    draw = law(1, 3).sample(jax.random.key(0))

    def total(emission):
        each = emission.log_probs(y, here)
        return jnp.sum(jnp.where(each > -jnp.inf, each, 0))

    slopes = eqx.filter_grad(total)(emission)
    return emission.log_probs(y, here), both, single, draw, slopes


@pytest.mark.parametrize("name", CASES)
def test_against_scipy(name):
    """Alone, in a batch (where a branch on what is missing is taken for all), and as a plain conditional."""
    case = CASES[name]
    known = expected(case)
    assert np.isnan(case.y).any()
    alone, both, single, draw, slopes = everything(case.emission, jnp.asarray(case.y))
    np.testing.assert_allclose(alone, known, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(both[1], known, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(both[0, :3], known[:3], rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(single, both[0, 2:], rtol=1e-9, atol=1e-9)
    assert draw.shape in ((case.y.shape[1],), ())
    leaves = [s for s in jax.tree.leaves(slopes) if jnp.issubdtype(s.dtype, jnp.inexact)]
    assert leaves
    assert all(np.isfinite(s).all() for s in leaves)


def test_a_label_that_a_state_cannot_make():
    """It is impossible, not undefined."""
    emission = emissions.Categorical([[1.0, 0.0], [0.5, 0.5]])
    found = emission.log_probs(jnp.array([[1.0], [0.0]]), steps(2))
    np.testing.assert_allclose(found, [[-np.inf, np.log(0.5)], [0.0, np.log(0.5)]])


@pytest.mark.parametrize("name", ["gaussian full", "t diagonal", "poisson", "autoregressive"])
def test_float32(name):
    case = CASES[name]
    single = jax.tree.map(lambda a: a.astype(jnp.float32), (case.emission, jnp.asarray(case.y)))
    here = jax.tree.map(lambda a: a.astype(jnp.float32), steps(T))
    found = eqx.filter_jit(lambda e, y: e.log_probs(y, here))(*single)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, expected(case), rtol=2e-4, atol=2e-4)
