"""Order of the states: by a statistic, by a reference, and of draws one by one."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

import statespace as ss

A = np.array([[0.7, 0.3, 0.0], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6]])
Y = np.random.default_rng(0).poisson(np.repeat([9.0, 2.0, 5.0], 15)) * 1.0


def model():
    return ss.HMM([0.5, 0.5, 0.0], A, ss.emissions.Poisson([5.0, 9.0, 2.0]))


def test_by_a_parameter_and_by_a_function():
    """The likelihood stays what it was, and so do zeros, now at other places."""
    for by in ("emission.rate", lambda m: m.emission.rate):
        new = ss.relabel(model(), by=by)
        order = [2, 0, 1]
        np.testing.assert_array_equal(new.emission.rate, [2.0, 5.0, 9.0])
        np.testing.assert_array_equal(new.transition.probs, A[np.ix_(order, order)])
        np.testing.assert_array_equal(new.initial_probs, [0.0, 0.5, 0.5])
        np.testing.assert_allclose(
            ss.log_likelihood(new, Y), ss.log_likelihood(model(), Y), rtol=1e-12
        )
        back = ss.constrain(new, ss.unconstrain(new))
        np.testing.assert_allclose(back.transition.probs, new.transition.probs)


def test_by_a_model_and_by_a_path():
    reference = ss.HMM(None, np.full((3, 3), 1 / 3), ss.emissions.Poisson([8.5, 5.5, 1.0]))
    np.testing.assert_array_equal(ss.relabel(model(), reference=reference).emission.rate, [9, 5, 2])
    path = np.repeat([0, 2, 1], 15)
    found = ss.relabel(model(), reference=path, data=Y)
    np.testing.assert_array_equal(found.emission.rate, [9.0, 5.0, 2.0])
    both = ss.relabel(model(), reference=[path, path], data=[Y, Y])
    np.testing.assert_array_equal(both.emission.rate, found.emission.rate)


def test_driven_transitions_and_frozen_models():
    kernel = ss.SoftmaxKernel(jnp.log(A + 0.1), jnp.arange(9.0).reshape(3, 3, 1))
    driven = ss.HMM(None, kernel, ss.emissions.Poisson([5.0, 9.0, 2.0]))
    data = ss.Series(Y, inputs=np.linspace(-0.1, 0.1, len(Y)))
    new = ss.relabel(ss.freeze(driven, "emission.rate"), by="emission.rate")
    assert list(ss.parameters(new, frozen=False)) == [
        "initial_probs",
        "transition.logits",
        "transition.weights",
    ]
    np.testing.assert_allclose(
        ss.log_likelihood(new, data), ss.log_likelihood(driven, data), rtol=1e-12
    )


@pytest.mark.slow
def test_draws(key):
    """A chain whose states have switched comes back, draw by draw, to what it was, densities too."""
    y = np.random.default_rng(1).poisson(np.repeat([9.0, 2.0], 20)) * 1.0
    start = ss.HMM(None, [[0.9, 0.1], [0.1, 0.9]], ss.emissions.Poisson([2.0, 9.0]))
    start = ss.freeze(start, "initial_probs")
    priors = {
        "transition.probs": dist.Dirichlet(jnp.ones(2)),
        "emission.rate": dist.Gamma(2.0, 0.4),
    }
    learner = ss.NUTS(warmup=100, samples=50, chains=2, spread=0.1)
    posterior = ss.fit(start, y, learner=learner, priors=priors, key=key)
    assert np.all(np.diff(posterior.draws["emission.rate"], axis=2) > 0)
    switched = {k: np.array(v) for k, v in posterior.draws.items()}
    switched["emission.rate"][1] = switched["emission.rate"][1, :, ::-1]
    switched["transition.probs"][1] = switched["transition.probs"][1, :, ::-1, ::-1]
    mixed = dataclasses.replace(posterior, draws=switched)
    for how in ({"by": "emission.rate"}, {"reference": start}):
        ordered = ss.relabel(mixed, **how)
        for name, value in posterior.draws.items():
            np.testing.assert_array_equal(ordered.draws[name], value)
        np.testing.assert_allclose(ordered.pointwise(), posterior.pointwise(), rtol=1e-9)
    held = ss.freeze(
        ss.HMM([0.9, 0.1], A[1:, 1:] / A[1:, 1:].sum(1, keepdims=True), start.emission),
        "initial_probs",
    )
    wrong = dataclasses.replace(mixed, model=held)
    with pytest.raises(TypeError, match="'initial_probs' was frozen"):
        ss.relabel(wrong, by="emission.rate")
    with pytest.raises(TypeError, match="relabel a model by it"):
        ss.relabel(mixed, reference=np.zeros(40, int), data=y)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda m: ss.relabel(m), ValueError, "exactly one of"),
        (
            lambda m: ss.relabel(m, by="emission.mean"),
            ValueError,
            r"no parameter of the emission.*rate",
        ),
        (lambda m: ss.relabel(m, by=3), ValueError, "name of a parameter or a function, got 3"),
        (lambda m: ss.relabel(m, reference=[0, 1]), ValueError, "give the recordings as `data`"),
        (
            lambda m: ss.relabel(m, reference=np.full(45, 3), data=Y),
            ValueError,
            r"path of states 0 … 2 of shape \(45,\)",
        ),
        (
            lambda m: ss.relabel(
                m, reference=ss.HMM(None, A, ss.emissions.Poisson(np.ones((3, 2))))
            ),
            ValueError,
            r"no parameter 'emission.rate' of shape \(3,\)",
        ),
        (
            lambda m: ss.relabel(
                ss.HMM(
                    None, ss.RateMatrix([[0.0, 1.0], [1.0, 0.0]]), ss.emissions.Poisson([1.0, 2.0])
                ),
                by="emission.rate",
            ),
            TypeError,
            "not for RateMatrix",
        ),
    ],
)
def test_refused(call, error, message):
    with pytest.raises(error, match=message):
        call(model())
