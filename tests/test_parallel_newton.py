"""Recurrences solved for all moments at once against the scan."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import statespace as ss

N, STEPS = 4, 60
RNG = np.random.default_rng(0)
WEIGHTS = jnp.asarray(RNG.normal(size=(N, N)) / np.sqrt(N))
INPUTS = jnp.asarray(RNG.normal(size=(STEPS, N)))
START = jnp.asarray(RNG.normal(size=N))


def network(gain):
    """A recurrent network, contracting for a small gain."""
    return lambda x, u: jnp.tanh(gain * WEIGHTS @ x + u)


def scanned(f, x0=START, inputs=INPUTS):
    return jax.lax.scan(lambda x, u: (f(x, u),) * 2, x0, inputs)[1]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"jacobian": "diagonal"},
        {"jacobian": 2},
        {"damping": 1e-3},
        {"jacobian": lambda x, u: jnp.zeros(N)},
    ],
    ids=["full", "diagonal", "blocks", "damped", "given"],
)
def test_it_is_the_scan(settings):
    f = network(0.5)
    got = ss.parallel_newton(f, START, INPUTS, **settings)
    assert bool(got.converged)
    assert not bool(got.sequential)
    np.testing.assert_allclose(got.states, scanned(f), atol=1e-9)
    assert float(got.residual) < 1e-8


def test_a_linear_recurrence_takes_one_step_to_find_and_one_to_see():
    got = ss.parallel_newton(lambda x, u: 0.9 * WEIGHTS @ x + u, START, INPUTS)
    assert int(got.iterations) == 2


def test_one_step_solves_a_linear_recurrence():
    f = lambda x, u: 0.9 * WEIGHTS @ x + u
    got = ss.parallel_newton(f, START, INPUTS, iterations=1, fallback=False)
    np.testing.assert_allclose(got.states, scanned(f), atol=1e-12)


def test_without_a_past_one_step_finds_all_moments():
    f = lambda x, u: jnp.tanh(u)
    got = ss.parallel_newton(f, START, INPUTS, jacobian="diagonal")
    assert int(got.iterations) <= 2
    np.testing.assert_allclose(got.states, jnp.tanh(INPUTS), atol=1e-14)


@pytest.mark.parametrize("steps", [1, 2, 17])
def test_any_number_of_moments(steps):
    f, inputs = network(0.7), INPUTS[:steps]
    got = ss.parallel_newton(f, START, inputs)
    assert bool(got.converged)
    np.testing.assert_allclose(got.states, scanned(f, inputs=inputs), atol=1e-9)


GAINS = np.array([0.5, 1.0, 1.5, 2.5, 4.0])


@pytest.mark.parametrize(
    ("jacobian", "least", "most", "solved"),
    [
        ("full", (3, 4, 5, 15, 60), (8, 14, 40, 61, 61), 3),
        ("diagonal", (9, 15, 25, 61, 61), (22, 45, 61, 61, 61), 2),
    ],
)
def test_iterations_grow_with_the_gain_of_a_network(jacobian, least, most, solved):
    """As 4, 9, 38, 125, above 300 (full) and 15, 31, 78, above 300 twice (diagonal) over 1,000 moments do."""
    rng = np.random.default_rng(1)
    weights = jnp.asarray(rng.normal(size=(8, 8)) / np.sqrt(8))
    inputs = jnp.asarray(rng.normal(size=(300, 8)))

    @jax.jit
    def run(gain):
        f = lambda x, u: jnp.tanh(gain * weights @ x + u)
        got = ss.parallel_newton(
            f, jnp.zeros(8), inputs, jacobian=jacobian, iterations=60, tolerance=1e-11
        )
        return got, scanned(f, jnp.zeros(8), inputs)

    runs = [run(gain) for gain in GAINS]
    counts = [int(got.iterations) + int(got.sequential) for got, _ in runs]
    assert all(np.array(least) <= counts), counts
    assert all(counts <= np.array(most)), counts
    assert [bool(got.converged) for got, _ in runs[:solved]] == [True] * solved
    for got, expected in runs:  # to rounding, or moment by moment and saying so
        assert bool(got.sequential) is not bool(got.converged)
        np.testing.assert_allclose(got.states, expected, atol=1e-9)


def test_what_overflows_is_not_taken_for_a_solution():
    f = lambda x, u: 3 * x * jnp.abs(x) + u
    x0, inputs = jnp.full(1, 5.0), jnp.ones((20, 1))
    got = ss.parallel_newton(f, x0, inputs)
    assert not bool(got.converged)
    assert bool(got.sequential)
    np.testing.assert_array_equal(got.states, scanned(f, x0, inputs))
    assert np.isinf(got.states[-1])


def test_in_a_batch_each_stops_by_itself():
    gains = jnp.array([0.3, 0.9, 4.0])
    run = lambda g: ss.parallel_newton(network(g), START, INPUTS, iterations=12)
    together, alone = jax.jit(jax.vmap(run))(gains), [run(g) for g in gains]
    assert [int(i) for i in together.iterations] == [int(a.iterations) for a in alone]
    assert [bool(i) for i in together.sequential] == [False, False, True]
    for i, gain in enumerate(gains):
        np.testing.assert_allclose(together.states[i], scanned(network(gain)), atol=1e-9)


def test_a_good_guess_saves_iterations():
    f = network(0.9)
    first = ss.parallel_newton(f, START, INPUTS)
    again = ss.parallel_newton(f, START, INPUTS, guess=first.states)
    assert int(again.iterations) == 1 < int(first.iterations)


def test_what_does_not_converge_is_run_moment_by_moment():
    f = network(4.0)
    got = ss.parallel_newton(f, START, INPUTS, iterations=3)
    assert bool(got.sequential)
    assert not bool(got.converged)
    np.testing.assert_allclose(got.states, scanned(f), atol=1e-12)
    left = ss.parallel_newton(f, START, INPUTS, iterations=3, fallback=False)
    assert not bool(left.sequential)
    assert float(left.residual) > 1e-3


def test_an_expanding_recurrence_overflows_and_recovers():
    # the first guess makes later moments overflow; the first t are exact after t iterations
    f = lambda x, u: 3.9 * x * (1 - x) + 0 * u
    x0, inputs = jnp.array([0.3]), jnp.zeros((12, 1))
    got = ss.parallel_newton(f, x0, inputs, iterations=20)
    np.testing.assert_allclose(got.states, scanned(f, x0, inputs), atol=1e-9)


@pytest.mark.parametrize("jacobian", ["full", "diagonal"])
def test_gradients_are_those_of_the_scan(jacobian):
    def loss(solve, parameters):
        gain, x0, inputs = parameters
        return jnp.sum(jnp.sin(jnp.arange(STEPS * N).reshape(STEPS, N)) * solve(gain, x0, inputs))

    parallel = lambda g, x, u: ss.parallel_newton(network(g), x, u, jacobian=jacobian).states
    plain = lambda g, x, u: scanned(network(g), x, u)
    at = (0.6, START, INPUTS)
    got, expected = (jax.grad(lambda p, s=s: loss(s, p))(at) for s in (parallel, plain))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-8), got, expected)
    tangent = (1.0, jnp.ones(N), jnp.ones_like(INPUTS))
    got, expected = (jax.jvp(lambda *p, s=s: s(*p), at, tangent)[1] for s in (parallel, plain))
    np.testing.assert_allclose(got, expected, atol=1e-8)


def test_single_moments_float32_and_batches():
    f = lambda x: jnp.cos(x)
    got = ss.parallel_newton(f, jnp.ones(2, jnp.float32), steps=1)
    assert got.states.dtype == jnp.float32
    np.testing.assert_allclose(got.states, np.cos(np.ones((1, 2))), rtol=1e-6)
    starts = jnp.stack([START, -START])
    many = jax.vmap(lambda x: ss.parallel_newton(network(0.5), x, INPUTS).states)(starts)
    np.testing.assert_allclose(many[1], scanned(network(0.5), -START), atol=1e-9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x0": jnp.zeros((2, 2))}, "`x0` must be a vector of floats"),
        ({"inputs": None}, "`steps` must be positive where there are no `inputs`"),
        ({"steps": 3}, "`steps` is 3, but `inputs` has 60 moments"),
        ({"guess": jnp.zeros((3, N))}, r"`guess` must have shape \(60, 4\)"),
        ({"jacobian": "band"}, "`jacobian` must be"),
        ({"jacobian": 3}, "blocks must divide the 4 coordinates"),
        ({"jacobian": "diagonal", "damping": 0.1}, "`damping` must be positive and goes with"),
        ({"iterations": 0}, "`iterations` and `tolerance` must be positive"),
        ({"f": lambda x, u: x[:2]}, r"`f` must return a state of shape \(4,\)"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    given = {"f": network(0.5), "x0": START, "inputs": INPUTS} | arguments
    if given["inputs"] is None:
        given["f"] = lambda x: x
    with pytest.raises(ValueError, match=message):
        ss.parallel_newton(given.pop("f"), given.pop("x0"), given.pop("inputs"), **given)
