"""Order of the states: by a statistic, by a reference, and of draws one by one."""

import dataclasses
import warnings

import jax
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


RATES = np.array([[0.0, 0.3, 0.0], [0.1, 0.0, 0.5], [0.7, 0.2, 0.0]])


def jumps(rates=RATES):
    return ss.MarkovJumpProcess(rates, ss.emissions.Poisson([5.0, 9.0, 2.0]), [0.5, 0.5, 0.0])


def test_rates():
    """Edges and rates go with the states, in a model and back by a reference."""
    new = ss.relabel(jumps(), by="emission.rate")
    order = [2, 0, 1]
    expected = jumps(RATES[np.ix_(order, order)]).transition
    assert new.transition.edges == expected.edges
    np.testing.assert_array_equal(new.transition.rates, expected.rates)
    np.testing.assert_array_equal(new.initial_probs, [0.0, 0.5, 0.5])
    data = ss.Series(Y, times=np.sort(np.random.default_rng(0).uniform(0, 30, len(Y))))
    np.testing.assert_allclose(
        ss.log_likelihood(new, data), ss.log_likelihood(jumps(), data), rtol=1e-12
    )
    back = ss.relabel(new, reference=jumps())
    np.testing.assert_array_equal(back.transition.generator, jumps().transition.generator)


def leaving(model):
    """How fast each state is left."""
    return -jnp.diagonal(model.transition.generator)


def test_draws_of_rates(key):
    """Each draw by itself; where a jump is impossible the states can be told apart, and draws stay."""
    alike = ss.emissions.Poisson(np.ones(3))
    process = lambda rates: ss.freeze(ss.MarkovJumpProcess(rates, alike), "emission")
    start = process(np.where(RATES > 0, RATES, 0.05))
    data = ss.Series(Y[:6], times=np.arange(6.0))
    learner = ss.JumpGibbs(warmup=0, samples=4, chains=1, progress=False)
    name = "transition.rates"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ss.ConvergenceWarning)
        found = ss.fit(start, data, learner=learner, priors={name: dist.Gamma(1.0, 1.0)}, key=key)
        ordered = ss.relabel(found, by=leaving)
    off = ~np.eye(3, dtype=bool)
    for before, after in zip(found.draws[name][0], ordered.draws[name][0]):
        matrix = np.zeros((3, 3))
        matrix[off] = before
        order = np.argsort(matrix.sum(axis=1))
        np.testing.assert_array_equal(after, matrix[np.ix_(order, order)][off])
    fewer = process(np.where(RATES < 0.3, 0, RATES))
    short = dataclasses.replace(found, model=fewer, draws={name: found.draws[name][..., :3]})
    with pytest.raises(TypeError, match="rates with structural zeros cannot be relabelled"):
        ss.relabel(short, by=leaving)


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
                ss.HiddenSemiMarkov(
                    [0.5, 0.5],
                    [[0.0, 1.0], [1.0, 0.0]],
                    ss.durations.Geometric([0.5, 0.5]),
                    ss.emissions.Poisson([2.0, 1.0]),
                ),
                by="emission.rate",
            ),
            TypeError,
            "SemiMarkovKernel: each state has sub-states and a law of duration of its own",
        ),
        (
            lambda m: ss.relabel(
                ss.HMM(None, ss.FactorialKernel([A]), ss.emissions.Poisson([2.0, 1.0, 3.0])),
                by="emission.rate",
            ),
            TypeError,
            "FactorialKernel: a state is a tuple of one state of each chain",
        ),
        (
            lambda m: ss.relabel(
                ss.HMM(None, ss.FiniteKernel(lambda step: A), m.emission), by="emission.rate"
            ),
            TypeError,
            "FiniteKernel: it takes transitions that are a matrix, a matrix of rates",
        ),
    ],
)
def test_refused(call, error, message):
    with pytest.raises(error, match=message):
        call(model())


SWITCHING = {
    "initial_probs": [0.5, 0.3, 0.2],
    "matrix": np.array([0.9, 0.2, 0.6])[:, None, None] * np.eye(2),
    "offset": [[3.0, 0.0], [-3.0, 1.0], [0.0, -2.0]],
    "scale": [[0.2, 0.3]],
    "observation_matrix": [[[1.0, 0.2], [0.0, 1.0]]],
    "observation_scale": [[0.1, 0.1], [0.2, 0.2], [0.3, 0.3]],
}
WEIGHTS = [[1.0, 0.5], [-1.0, 0.0], [0.3, 2.0]]


@pytest.mark.parametrize("previous", [1, 3])
def test_regimes_of_a_recurrent_model(previous):
    """Every conditional is that of the regime that a place was given to; shared arrays stay."""
    logits = np.arange(9.0).reshape(3, 3)[:previous]
    model = ss.RecurrentSwitchingLinearGaussian(logits=logits, weights=WEIGHTS, **SWITCHING)
    order = [1, 2, 0]
    new = ss.relabel(model, by="matrix")
    for k, old in enumerate(order):
        np.testing.assert_array_equal(new.matrix[k], model.matrix[old])
        np.testing.assert_array_equal(new.observation_scale[k], model.observation_scale[old])
        state, step = jnp.array([0.3, -0.7]), ss.Step(1, 1.0, 1.0)
        got = new.kernel.probs(jnp.asarray(k), state, step)
        want = model.kernel.probs(jnp.asarray(old), state, step)
        np.testing.assert_allclose(got, want[jnp.array(order)], rtol=1e-12)
    np.testing.assert_array_equal(new.initial_probs.probs, [0.3, 0.2, 0.5])
    np.testing.assert_array_equal(new.scale, model.scale)
    back = ss.relabel(ss.freeze(new, "matrix"), reference=model)
    for name, value in ss.parameters(model).items():
        np.testing.assert_array_equal(ss.parameters(back)[name], value)


def test_regimes_of_a_chain_and_of_a_path():
    model = ss.SwitchingLinearGaussian(transition=0.3 * A + 0.7 * np.eye(3), **SWITCHING)
    drawn = ss.simulate(model, 60, key=jax.random.key(4))
    names = np.array([2, 0, 1])
    path = names[np.asarray(drawn.states.regime)]
    new = ss.relabel(model, reference=path, data=drawn.y)
    for old, k in enumerate(names):
        np.testing.assert_array_equal(new.offset[k], model.offset[old])
    order = np.argsort(names)
    np.testing.assert_allclose(new.kernel.probs, model.kernel.probs[np.ix_(order, order)])
    with pytest.raises(ValueError, match="no parameter of the emission"):
        ss.relabel(model, by="kernel.probs")
    parts = ss.Model(model.initial, model.transition, model.observation)
    with pytest.raises(TypeError, match="regimes of SwitchingLinearGaussian"):
        ss.relabel(parts, by="matrix")
