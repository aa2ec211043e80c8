"""Expectation maximisation of a linear Gaussian model, 4 states and 4 channels.

* iteration: one iteration, of a compiled step or of a fit of many.
* second fit: a whole call of `fit` with 20 iterations by a user who has called it before, recompilation
  included where the library recompiles. The columns begin at the same parameters and their log likelihoods
  after 20 iterations are compared.
"""

from __future__ import annotations

import ctypes
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import statespace as ss
from benchmarks.compiled import contiguous, library, pointer
from benchmarks.harness import Call, Options, Suite
from statespace.learners.em import EM

N = 4
LENGTHS = (1_000, 10_000)
FIT = 20
MANY = 50  # iterations of the fit from which ours are timed: what a call adds is spread over them

suite = Suite("em", ops=("iteration", "second fit"))


class Problem:
    """A series from a random rotation, and where the learners begin."""

    def __init__(self, length: int):
        self.length = length
        rng = np.random.default_rng(0)
        rotation, _ = np.linalg.qr(rng.normal(size=(N, N)))
        F, self.H = 0.97 * rotation, rng.normal(size=(N, N)) / 2
        x, self.y = np.zeros(N), np.empty((length, N))
        for t in range(length):
            x = F @ x + 0.3 * rng.normal(size=N)
            self.y[t] = self.H @ x + 0.5 * rng.normal(size=N)
        self.start = {
            "F": 0.9 * np.eye(N) + 0.02 * rng.normal(size=(N, N)),
            "H": rng.normal(size=(N, N)) / 2,
            "Q": 0.1 * np.eye(N),
            "R": 0.5 * np.eye(N),
            "m": np.zeros(N),
            "P": np.eye(N),
        }

    label = cached_property(lambda self: f"4x4 T={self.length}")
    facts = cached_property(lambda self: {"n": N, "m": N, "T": self.length, "dtype": "float64"})


def run(options: Options) -> None:
    lengths = options.lengths or (LENGTHS[:1] if options.quick else LENGTHS)
    suite.run((Problem(t) for t in lengths), options)


@suite.column("statespace", kind="ours", fused=True)
def statespace(problem: Problem, op: str) -> Call:
    s = problem.start
    model = ss.LinearGaussian(
        transition_matrix=s["F"],
        transition_scale=np.sqrt(s["Q"]),
        observation_matrix=s["H"],
        observation_scale=np.sqrt(s["R"]),
        initial_mean=s["m"],
        initial_scale=s["P"],
        transition_offset=np.zeros(N),
        observation_offset=np.zeros(N),
    )
    series = ss.Series(problem.y)
    count = FIT if op == "second fit" else MANY
    learner = EM(iterations=count, tolerance=0.0, progress=False)

    def run():
        fitted = ss.fit(model, series, learner=learner)
        if fitted.iterations != count:
            raise RuntimeError(f"stopped after {fitted.iterations} iterations: {fitted.reason}")
        return float(fitted.trace[count - 1])

    return Call(run, float) if op == "second fit" else Call(run, per=count)


@suite.column("C minimal, filter and smoother only", kind="bound")
def c_minimal(problem: Problem, op: str) -> Call | None:
    if op != "iteration":
        return None
    lib, t, s = library("kalman", N=N, M=N), ctypes.c_long(problem.length), problem.start
    lib.kf.restype = ctypes.c_double
    F, H = s["F"], s["H"]
    inputs = contiguous(F, F.T, s["Q"], H, H.T, s["R"], s["m"], s["P"], problem.y)
    shapes = (problem.length, N), (problem.length, N, N)
    fm, fP, pm, pP, sm, sP = (np.zeros(shape) for shape in shapes * 3)

    def run():
        value = lib.kf(t, *map(pointer, (*inputs, fm, fP, pm, pP)), ctypes.c_double(0.0))
        lib.rts(t, *map(pointer, (inputs[0], fm, fP, pm, pP, sm, sP)))
        return value

    return Call(run)


@suite.column("dynamax", needs="dynamax")
def dynamax(problem: Problem, op: str) -> Call:
    from dynamax.linear_gaussian_ssm import LinearGaussianSSM

    model, s = LinearGaussianSSM(N, N), {k: jnp.asarray(v) for k, v in problem.start.items()}
    params, properties = model.initialize(
        jax.random.key(0),
        initial_mean=s["m"],
        initial_covariance=s["P"],
        dynamics_weights=s["F"],
        dynamics_covariance=s["Q"],
        emission_weights=s["H"],
        emission_covariance=s["R"],
    )
    y = jnp.asarray(problem.y)
    if op == "second fit":

        def fit():
            return model.fit_em(params, properties, y, num_iters=FIT, verbose=False)[1]

        return Call(fit, lambda values: values[-1])
    memory = model.initialize_m_step_state(params, properties)

    @jax.jit
    def step(params: Any, memory: Any) -> tuple:
        statistics, value = jax.vmap(lambda y: model.e_step(params, y, None))(y[None])
        return *model.m_step(params, properties, statistics, memory), value.sum()

    return Call(lambda: step(params, memory))


@suite.column("pykalman", needs="pykalman")
def pykalman(problem: Problem, op: str) -> Call | None:
    if op != "iteration" or problem.length > 1_000:
        return None
    from pykalman import KalmanFilter

    s, zero = problem.start, np.zeros(N)

    def run():
        k = KalmanFilter(s["F"], s["H"], s["Q"], s["R"], zero, zero, s["m"], s["P"])
        k.em(problem.y, n_iter=1, em_vars="all")

    return Call(run)
