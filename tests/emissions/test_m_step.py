"""M-steps: at the maximum of the weighted log density where they are closed, and never downhill."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import CASES, K, steps, with_gaps

import statespace as ss
from statespace import emissions

S, T = 2, 40
CLOSED = [
    "gaussian diagonal",
    "gaussian tied diagonal",
    "gaussian of one channel",
    "poisson",
    "bernoulli",
    "categorical",
    "autoregressive of one channel",
]
# With missing entries of full covariances, or a law that is a mixture, the M-step is one of an inner EM.
ITERATED = [
    "gaussian full",
    "gaussian tied",
    "autoregressive",
    "t full",
    "t of one channel",
    "mixture",
    "negative binomial",
    "laplace",
]


def recordings(name, m):
    """Observations of the right kind, some of them missing, and weights of the states, some of them zero."""
    rng = np.random.default_rng(5)
    y = rng.negative_binomial(2, 0.4, size=(S, T, m)) * 1.0
    y = {"bernoulli": y > 2, "categorical": np.minimum(y, 3)}.get(name, y)
    if "binomial" not in name and name not in ("poisson", "bernoulli", "categorical"):
        y = rng.standard_t(5, size=(S, T, m)) @ (np.eye(m) + 0.3)
    weights = rng.dirichlet(np.ones(K), (S, T))
    weights[0, :5, 0] = 0.0
    weights[1, 30:] = 0.0
    share = 0.04 if "autoregressive" in name else 0.25  # a gap also hides what comes after it
    return jnp.asarray([with_gaps(part, rng, share) for part in y]), jnp.asarray(weights)


def expected(emission, y, weights):
    each = jax.vmap(emission.log_probs)(y, steps(T, S))
    return jnp.sum(jnp.where(weights > 0, weights * each, 0))


@eqx.filter_jit
def climbed(emission, y, weights, count):
    """Expected log densities along M-steps and at the end, and the slope there in the unconstrained space."""
    first, rest = eqx.partition(emission, eqx.is_array)

    def step(arrays, _):
        now = eqx.combine(arrays, rest)
        new = now.m_step(y, steps(T, S), weights)
        return eqx.filter(new, eqx.is_array), expected(now, y, weights)

    arrays, values = jax.lax.scan(step, first, None, length=count)
    end = eqx.combine(arrays, rest)
    slope = jax.grad(lambda z: expected(ss.constrain(end, z), y, weights))(ss.unconstrain(end))
    return jnp.append(values, expected(end, y, weights)), slope


@pytest.mark.parametrize("name", CLOSED + ITERATED)
def test_maximum(name):
    case = CASES[name]
    y, weights = recordings(name, case.y.shape[1])
    count = 1 if name in CLOSED else 3 if name == "laplace" else 1500 if name == "mixture" else 150
    values, slope = climbed(case.emission, y, weights, count)
    assert float(values[-1]) > float(values[0])
    assert np.all(np.diff(values) > -1e-9)
    if name == "laplace":  # whose density has kinks, so that slopes do not vanish
        return
    for key, value in slope.items():
        np.testing.assert_allclose(value, 0, atol=1e-8 if name in CLOSED else 2e-2, err_msg=key)


@pytest.mark.parametrize("name", ["gaussian full", "t full", "mixture", "poisson", "categorical"])
def test_a_state_without_weight_keeps_its_parameters(name):
    """Nothing becomes NaN, and the other states learn as ever."""
    case = CASES[name]
    y, weights = recordings(name, case.y.shape[1])
    weights = weights.at[..., 1].set(0.0)
    end = eqx.filter_jit(lambda e: e.m_step(y, steps(T, S), weights))(case.emission)
    old, new = ss.parameters(case.emission), ss.parameters(end)
    for key in old:
        np.testing.assert_array_equal(new[key][1], old[key][1])
        assert np.all(np.isfinite(new[key]))
        assert not np.allclose(new[key][0], old[key][0])


@pytest.mark.parametrize(
    ("name", "frozen"),
    [
        ("gaussian diagonal", "mean"),
        ("gaussian tied", "scale"),
        ("t of one channel", "degrees"),
        ("autoregressive", "coefficients"),
        ("negative binomial", "mean"),
        ("mixture", "weights"),
    ],
)
def test_frozen_fields(name, frozen):
    """They do not move, and the others are at the maximum given them."""
    case = CASES[name]
    y, weights = recordings(name, case.y.shape[1])

    @eqx.filter_jit
    def raised(emission):
        new = emission.m_step(y, steps(T, S), weights, frozen=frozenset({frozen}))
        slope = jax.grad(lambda v: expected(ss.replace(new, v), y, weights))(ss.parameters(new))
        return new, expected(emission, y, weights), expected(new, y, weights), slope

    new, before, after, slope = raised(case.emission)
    np.testing.assert_array_equal(getattr(new, frozen), getattr(case.emission, frozen))
    assert float(after) > float(before)
    if name == "gaussian diagonal":
        np.testing.assert_allclose(slope["scale"], 0, atol=1e-8)


def test_floor():
    """No variance below it, for independent channels and in every direction of a covariance."""
    y = jnp.ones((1, 6, 2)) * jnp.array([1.0, 2.0])
    weights = jnp.full((1, 6, 2), 0.5)
    for scale in (jnp.ones((2, 2)), jnp.stack([jnp.eye(2)] * 2)):
        start = emissions.Gaussian(jnp.zeros((2, 2)), scale)
        new = start.m_step(y, steps(6, 1), weights, floor=0.01)
        covariance = (
            new.scale**2 if scale.ndim == 2 else jnp.linalg.eigvalsh(new.scale @ new.scale.mT)
        )
        np.testing.assert_allclose(covariance, 0.01, rtol=1e-9)
        assert np.isnan(start.m_step(y, steps(6, 1), weights).scale).all()


def test_float32_stays():
    case = CASES["t full"]
    y, weights = recordings("t full", 3)
    small = jax.tree.map(lambda a: a.astype(jnp.float32), (case.emission, y, weights, steps(T, S)))
    new = eqx.filter_jit(lambda e, y, w, s: e.m_step(y, s, w))(small[0], *small[1:3], small[3])
    assert {a.dtype for a in jax.tree.leaves(new)} == {jnp.dtype(jnp.float32)}
