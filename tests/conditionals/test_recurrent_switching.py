"""Regimes that depend on the state: the kernel's law, the models made of it, and who refuses it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats

import statespace as ss

LOGITS = np.array([[0.4, -1.0, 0.2], [0.0, 1.5, -0.3], [-0.7, 0.1, 0.9]])
WEIGHTS = np.array([[1.0, -2.0], [0.5, 0.3], [-1.2, 0.8]])
DRIVEN = np.array([[0.7], [-0.2], [1.1]])
STATE = np.array([0.6, -0.4])
STEP = ss.Step(1, 1.0, 1.0, jnp.array([2.0]))


def small(logits=LOGITS, **more):
    return ss.RecurrentSwitchingLinearGaussian(
        initial_probs=[0.2, 0.5, 0.3],
        logits=logits,
        weights=WEIGHTS,
        matrix=[[[0.9, 0.1], [0.0, 0.8]]] * 3,
        offset=[[0.0, 1.0], [0.5, 0.0], [-1.0, 0.2]],
        scale=[[0.1, 0.2], [0.3, 0.1], [0.2, 0.2]],
        observation_matrix=[[[1.0, 0.0], [0.5, 1.0], [0.0, 1.0]]],
        observation_scale=[[0.3, 0.3, 0.4]],
        **more,
    )


@pytest.mark.parametrize("driven", [None, DRIVEN])
@pytest.mark.parametrize("rows", [3, 1])
def test_regimes_follow_a_softmax_of_the_state(rows, driven):
    kernel = ss.RecurrentKernel(LOGITS[:rows], WEIGHTS, driven)
    for regime in range(3):
        score = LOGITS[regime % rows] + WEIGHTS @ STATE
        score = score if driven is None else score + driven @ [2.0]
        got = kernel.probs(jnp.array(regime), jnp.asarray(STATE), STEP)
        np.testing.assert_allclose(got, scipy.special.softmax(score), rtol=1e-12)


def test_transition_multiplies_the_laws_of_regime_and_state():
    """Density against a softmax and the new regime's normal law, by SciPy; draws within five errors."""
    law = small().transition(ss.RegimeState(jnp.array(1), jnp.asarray(STATE)), STEP)
    probs = scipy.special.softmax(LOGITS[1] + WEIGHTS @ STATE)
    mean = np.array([[0.9, 0.1], [0.0, 0.8]]) @ STATE + [-1.0, 0.2]
    new = np.array([-0.3, -0.1])
    want = np.log(probs[2]) + scipy.stats.norm(mean, 0.2).logpdf(new).sum()
    got = law.log_prob(ss.RegimeState(jnp.array(2), jnp.asarray(new)))
    np.testing.assert_allclose(got, want, rtol=1e-12)
    drawn = jax.vmap(law.sample)(jax.random.split(jax.random.key(0), 20_000)).regime
    share = np.bincount(drawn, minlength=3) / 20_000
    assert np.all(np.abs(share - probs) < 5 * np.sqrt(probs * (1 - probs) / 20_000))


def test_particles_filter_it():
    """With weights of zero the regimes are a chain, whose likelihood with few moments is exact by sums."""
    y = ss.simulate(small(), 6, key=jax.random.key(1)).y
    logits = jnp.asarray(LOGITS)
    free = small()
    none = ss.RecurrentKernel(logits, np.zeros((3, 2)))
    chain = ss.FiniteKernel(jax.nn.softmax(logits, axis=1))
    models = [_with_kernel(free, kernel) for kernel in (none, chain)]
    exact = ss.log_likelihood(
        models[1], y, method=ss.RaoBlackwellised(particles=729), key=jax.random.key(0)
    )
    filtered = ss.ParticleFilter(particles=20_000)
    keys = jax.random.split(jax.random.key(2), 8)
    each = [float(ss.log_likelihood(models[0], y, method=filtered, key=k)) for k in keys]
    assert abs(np.mean(each) - exact) < 5 * np.std(each) / np.sqrt(8) + 1e-3


def _with_kernel(model, kernel):
    names = ("matrix", "scale", "observation_matrix", "observation_scale")
    parts = [getattr(model, name) for name in names]
    return ss.SwitchingLinearGaussian([0.2, 0.5, 0.3], kernel, *parts, offset=model.offset)


def test_a_filter_that_integrates_the_state_out_refuses_it():
    model = small()
    assert model.transition.recurrent
    assert not model.initial.recurrent
    with pytest.raises(TypeError, match="depend on the previous state"):
        ss.filter(model, np.zeros((4, 3)), method=ss.RaoBlackwellised(), key=jax.random.key(0))


def test_nascar_goes_round_the_track():
    """Right above the axis and left below it between the bends, which turn round (2, 0) and (-2, 0)."""
    model = ss.RecurrentSwitchingLinearGaussian.nascar(key=jax.random.key(0))
    states, y = ss.simulate(model, 1000, key=jax.random.key(1))
    before, after = states.state[:-1], states.state[1:]
    regime, x = np.asarray(states.regime[1:]), np.asarray(before)
    assert y.shape == (1000, 10)
    assert np.bincount(regime).min() > 100
    clear = np.abs(np.abs(x[:, 0]) - 2) > 0.1 + 0.1 * np.abs(x[:, 1])  # the corners give way
    assert np.all(x[clear & (regime == 0), 0] > 2)
    assert np.all(x[clear & (regime == 1), 0] < -2)
    assert np.all(np.abs(x[clear & (regime > 1), 0]) < 2)
    drive = np.asarray(after - before)[:, 0]
    for k, mean in ((2, 0.1), (3, -0.25)):
        assert abs(drive[regime == k].mean() - mean) < 5 * 0.01 / np.sqrt(np.sum(regime == k))
    for k, centre in ((0, 2.0), (1, -2.0)):
        radius = [np.hypot(z[regime == k, 0] - centre, z[regime == k, 1]) for z in (x, after)]
        assert np.all(np.abs(radius[1] - radius[0]) < 0.06)


def test_starting_values_reproduce_the_principal_components():
    y = np.asarray(ss.simulate(small(), 200, key=jax.random.key(3)).y)
    model = ss.RecurrentSwitchingLinearGaussian.from_principal_components(y, 3, 2)
    linear = ss.LinearGaussian.from_principal_components(y, 2)
    np.testing.assert_allclose(model.observation_matrix[0], linear.observation_matrix)
    np.testing.assert_allclose(model.matrix, [linear.transition_matrix] * 3)
    probs = model.kernel.probs(jnp.array(0), jnp.asarray(STATE), STEP)
    np.testing.assert_allclose(probs, [0.95, 0.025, 0.025], rtol=1e-10)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ss.RecurrentKernel(LOGITS, [1.0, 2.0]), r"`weights` .* shape \(K, n\)"),
        (lambda: ss.RecurrentKernel(LOGITS[:2], WEIGHTS), r"`logits` .* plays no part"),
        (lambda: ss.RecurrentKernel(LOGITS, WEIGHTS, DRIVEN[:2]), "`input_weights` must have"),
        (lambda: ss.RecurrentKernel(LOGITS * np.nan, WEIGHTS), "`logits` must be finite"),
        (lambda: small(logits=np.zeros((1, 4))), "`logits` of RecurrentKernel"),
        (
            lambda: _with_kernel(small(), ss.RecurrentKernel(LOGITS, WEIGHTS[:, :1])),
            r"`weights` must have shape \(3, 2\)",
        ),
        (
            lambda: ss.SwitchingLinearGaussian.from_principal_components(np.zeros(5), 2, 1),
            r"`y` of shape \(T, m\)",
        ),
        (
            lambda: ss.SwitchingLinearGaussian.from_principal_components(np.eye(9), 0, 1),
            "`regimes` must be at least 1",
        ),
    ],
)
def test_what_does_not_fit_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_inputs_that_are_missing_are_named():
    with pytest.raises(ValueError, match=r"weights for 1 inputs.*Series"):
        ss.simulate(small(input_weights=DRIVEN), 5, key=jax.random.key(0))
