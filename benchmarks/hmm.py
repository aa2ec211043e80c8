"""Hidden Markov models, given the log weights of the states at each moment and a constant transition matrix.

* loglik: the value.
* smoother: all posterior probabilities of the states.
* viterbi: the most probable path.
* grad: the value and its gradient in the log transition probabilities and in the log weights.
* counts: the E-step: posterior probabilities and expected numbers of transitions.
* starts: the E-steps of 20 chains with parameters of their own, in one call.
"""

from __future__ import annotations

import ctypes
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.compiled import contiguous, library, pointer
from benchmarks.harness import Call, Options, Skip, Suite
from statespace.chains import finite

STATES = (2, 5, 20, 100)
LENGTHS = (1_000, 100_000)
STARTS = 20
LARGEST = 30_000_000  # numbers that may be made for each pair of states at each moment

suite = Suite("hmm", ops=("loglik", "smoother", "viterbi", "grad", "counts", "starts"))


class Problem:
    """States that persist, each with a unit normal around its number; a recording drawn from it."""

    def __init__(self, states: int, length: int):
        self.states, self.length = states, length
        rng = np.random.default_rng(states)
        self.transition = 0.3 * rng.dirichlet(np.ones(states), size=states) + 0.7 * np.eye(states)
        self.initial = np.full(states, 1 / states)
        below = np.cumsum(self.transition, axis=1)
        path, u = np.zeros(length, int), rng.uniform(size=length)
        for t in range(1, length):
            path[t] = min(states - 1, np.searchsorted(below[path[t - 1]], u[t]))
        y = path + rng.normal(size=length)
        self.weights = -0.5 * (y[:, None] - np.arange(states)) ** 2 - 0.5 * np.log(2 * np.pi)

    @property
    def label(self) -> str:
        return f"K={self.states} T={self.length}"

    @property
    def facts(self) -> dict[str, Any]:
        return {"n": self.states, "T": self.length, "dtype": "float64"}

    def starts(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Parameters and log weights of 20 chains."""
        if self.states**2 * self.length * STARTS > LARGEST:
            raise Skip("too many numbers")
        rng = np.random.default_rng(0)
        shape = (STARTS, self.states, self.states)
        transitions = self.transition * rng.uniform(0.5, 1.5, size=shape)
        transitions /= transitions.sum(-1, keepdims=True)
        weights = self.weights * rng.uniform(0.5, 1.5, size=(STARTS, 1, 1))
        return np.tile(self.initial, (STARTS, 1)), transitions, weights


def run(options: Options) -> None:
    states = [k for k, _ in options.dims] or (STATES[:2] if options.quick else STATES)
    lengths = options.lengths or (LENGTHS[:1] if options.quick else LENGTHS)
    suite.run((Problem(k, t) for k in states for t in lengths), options)


# One number from what was computed


def by_state(probs: Any) -> float:
    probs = np.asarray(probs)
    return float((probs * np.arange(probs.shape[-1])).sum())


def of_path(path: Any) -> float:
    return float(np.asarray(path).sum())


def of_gradient(out: tuple) -> float:
    _, (by_transition, by_weights) = out
    return float(np.asarray(by_transition).sum()) + by_state(by_weights)


def of_counts(out: tuple) -> float:
    probs, transitions = out
    return by_state(probs) + by_state(transitions)


CHECKS = {
    "loglik": float,
    "smoother": by_state,
    "viterbi": of_path,
    "grad": of_gradient,
    "counts": of_counts,
    "starts": of_counts,
}


def jitted(problem: Problem, op: str, functions: dict[str, Any]) -> Call:
    """The call of a JAX library, given a function ``(initial, transition, weights)`` for each op."""
    if op == "starts":
        f, arrays = jax.jit(jax.vmap(functions["counts"])), problem.starts()
    elif op == "grad":

        def value(log_transition, initial, weights):
            return functions["loglik"](initial, jnp.exp(log_transition), weights)

        f = jax.jit(jax.value_and_grad(value, argnums=(0, 2)))
        arrays = np.log(problem.transition), problem.initial, problem.weights
    else:
        f, arrays = jax.jit(functions[op]), (problem.initial, problem.transition, problem.weights)
    arrays = tuple(map(jnp.asarray, arrays))
    return Call(lambda: f(*arrays), CHECKS[op])


# Ours


def our_functions(parallel: bool | None) -> dict[str, Any]:
    def chain(initial, transition, weights):
        return finite.Chain(initial, transition[None], weights)

    def counts(*arrays):
        c = finite.expected_counts(chain(*arrays), parallel=parallel)
        return c.occupancy, c.transitions

    return {
        "loglik": lambda *arrays: finite.log_likelihood(chain(*arrays), parallel),
        "smoother": lambda *arrays: finite.smooth(chain(*arrays), parallel).probs,
        "viterbi": lambda *arrays: finite.viterbi(chain(*arrays), parallel)[0],
        "counts": counts,
    }


@suite.column("statespace", kind="ours", fused=True)
def statespace(problem: Problem, op: str) -> Call:
    return jitted(problem, op, our_functions(None))


@suite.column("statespace (associative)", kind="ours", extra=True)
def statespace_associative(problem: Problem, op: str) -> Call:
    if problem.states**2 * problem.length > LARGEST:
        raise Skip("too many numbers")
    return jitted(problem, op, our_functions(True))


# The limit


@suite.column("C minimal", kind="bound")
def c_minimal(problem: Problem, op: str) -> Call | None:
    if op in ("grad", "starts"):
        return None
    lib = library("hmm", K=problem.states)
    lib.hmm_forward.restype = ctypes.c_double
    t, k = ctypes.c_long(problem.length), problem.states
    arrays = problem.initial, problem.transition, problem.transition.T, problem.weights
    initial, a, at, weights = arrays = contiguous(*arrays)
    if op == "viterbi":
        logs = contiguous(np.log(initial), np.log(at))
        path = np.zeros(problem.length, np.int64)

        def viterbi(keep=(logs, weights)):
            where = path.ctypes.data_as(ctypes.c_void_p)
            lib.hmm_viterbi(t, *map(pointer, (*logs, weights)), where)
            return path

        return Call(viterbi, of_path)

    def forward(*outputs):
        return lib.hmm_forward(t, *map(pointer, (initial, a, weights, *outputs)))

    if op == "loglik":
        return Call(lambda keep=arrays: forward(None, None), float)
    filtered, predicted, probs = (np.zeros((problem.length, k)) for _ in range(3))
    pairs = np.zeros((k, k)) if op == "counts" else None

    def smooth(keep=arrays):
        forward(filtered, predicted)
        lib.hmm_smooth(t, *map(pointer, (at, filtered, predicted, probs, pairs, a)))
        return probs if pairs is None else (probs, pairs)

    return Call(smooth, CHECKS[op])


# Peers


@suite.column("hmmlearn (scaling)", needs="hmmlearn")
def hmmlearn(problem: Problem, op: str) -> Call | None:
    """Its C++ kernels, called as its own `score`, `score_samples`, `decode` and `fit` call them."""
    return hmmlearn_call(problem, op, "scaling")


@suite.column("hmmlearn (log)", needs="hmmlearn")
def hmmlearn_log(problem: Problem, op: str) -> Call | None:
    """The implementation that it uses unless told otherwise."""
    if problem.states**2 * problem.length > LARGEST:
        raise Skip("takes seconds")
    return None if op == "viterbi" else hmmlearn_call(problem, op, "log")


def hmmlearn_call(problem: Problem, op: str, form: str) -> Call | None:
    if op in ("grad", "starts"):
        return None
    from hmmlearn import _hmmc

    initial, a, weights = problem.initial, problem.transition, problem.weights
    if op == "viterbi":
        return Call(lambda: _hmmc.viterbi(initial, a, weights)[1], of_path)

    def run():
        if form == "scaling":
            linear = np.exp(weights)
            value, forward, scale = _hmmc.forward_scaling(initial, a, linear)
            if op == "loglik":
                return value
            backward = _hmmc.backward_scaling(initial, a, linear, scale)
            probs = forward * backward
        else:
            value, forward = _hmmc.forward_log(initial, a, weights)
            if op == "loglik":
                return value
            backward = _hmmc.backward_log(initial, a, weights)
            probs = forward + backward
            probs = np.exp(probs - probs.max(axis=1, keepdims=True))
        probs /= probs.sum(axis=1, keepdims=True)
        if op == "smoother":
            return probs
        if form == "scaling":
            return probs, _hmmc.compute_scaling_xi_sum(forward, a, backward, linear)
        return probs, np.exp(_hmmc.compute_log_xi_sum(forward, a, backward, weights))

    return Call(run, CHECKS[op])


@suite.column("dynamax", needs="dynamax")
def dynamax(problem: Problem, op: str) -> Call:
    from dynamax.hidden_markov_model.inference import hmm_filter, hmm_posterior_mode, hmm_smoother

    if op == "grad" and problem.states**2 * problem.length > LARGEST:
        raise Skip("its gradient keeps all pairs")

    def counts(*arrays):
        p = hmm_smoother(*arrays)
        pairs = p.trans_probs
        return p.smoothed_probs, pairs if pairs.ndim == 2 else pairs.sum(0)

    functions = {
        "loglik": lambda *arrays: hmm_filter(*arrays).marginal_loglik,
        "smoother": lambda *arrays: hmm_smoother(*arrays).smoothed_probs,
        "viterbi": hmm_posterior_mode,
        "counts": counts,
    }
    return jitted(problem, op, functions)


@suite.column("dynamax associative", needs="dynamax", extra=True)
def dynamax_associative(problem: Problem, op: str) -> Call | None:
    from dynamax.hidden_markov_model.parallel_inference import hmm_filter, hmm_smoother

    if op in ("viterbi", "counts", "starts"):
        return None
    if problem.states**2 * problem.length > LARGEST:
        raise Skip("too many numbers")
    functions = {
        "loglik": lambda *arrays: hmm_filter(*arrays).marginal_loglik,
        "smoother": lambda *arrays: hmm_smoother(*arrays).smoothed_probs,
    }
    return jitted(problem, op, functions)
