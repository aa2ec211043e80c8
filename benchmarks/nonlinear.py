"""Nonlinear Gaussian filters and smoothers: four states with drag, seen by range and bearing.

* ekf, ukf: the log likelihood by the extended and by the unscented Kalman filter.
* ... filter: the value, all filtered means and covariances. ... smoother: all smoothed ones.
* ... grad: the value and its gradient in the drag and in the log scales of both noises.
* iterated: the smoothed states after ten Gauss–Newton iterations, in time per iteration; nobody else has it.

The unscented transform has dynamax's defaults (alpha² = 3, beta = 2, kappa = 1) in every column.
"""

from __future__ import annotations

import ctypes
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

import statespace as ss
from benchmarks.compiled import contiguous, library, pointer
from benchmarks.harness import Call, Options, Skip, Suite
from statespace.linearisation import Unscented

LENGTHS = (1_000, 10_000)
DT, PULL, DRAG = 0.02, 0.3, 0.05
Q, R = np.array([1e-4, 1e-4, 1e-3, 1e-3]), np.array([0.05**2, 0.01**2])
M0, P0 = np.array([5.0, 5.0, 1.0, 1.0]), 0.1 * np.eye(4)
ITERATIONS = 10
PYTHON_LOOPS_TO = 1_000

KINDS = ("", " filter", " smoother", " grad")
suite = Suite(
    "nonlinear", ops=[f"{rule}{kind}" for rule in ("ekf", "ukf") for kind in KINDS] + ["iterated"]
)


def move(x: Any, drag: Any = DRAG, lib: Any = jnp) -> Any:
    """One step of a body with quadratic drag in a periodic field."""
    speed = lib.sqrt(x[2] ** 2 + x[3] ** 2 + 1e-6)
    return lib.array(
        [
            x[0] + DT * x[2],
            x[1] + DT * x[3],
            x[2] - DT * (drag * speed * x[2] + PULL * lib.sin(x[0])),
            x[3] - DT * (drag * speed * x[3] + PULL * lib.sin(x[1])),
        ]
    )


def see(x: Any, lib: Any = jnp) -> Any:
    """Range and bearing."""
    return lib.array([lib.sqrt(x[0] ** 2 + x[1] ** 2), lib.arctan2(x[1], x[0])])


class Problem:
    """A path drawn from the model."""

    def __init__(self, length: int):
        self.length = length
        rng, x = np.random.default_rng(1), M0.copy()
        self.y = np.empty((length, 2))
        for t in range(length):
            if t:
                x = move(x, lib=np) + np.sqrt(Q) * rng.normal(size=4)
            self.y[t] = see(x, np) + np.sqrt(R) * rng.normal(size=2)
        self.theta = (jnp.asarray(DRAG), jnp.asarray(0.0), jnp.asarray(0.0))

    @property
    def label(self) -> str:
        return f"4x2 T={self.length}"

    @property
    def facts(self) -> dict[str, Any]:
        return {"n": 4, "m": 2, "T": self.length, "dtype": "float64"}


def run(options: Options) -> None:
    lengths = options.lengths or (LENGTHS[:1] if options.quick else LENGTHS)
    suite.run((Problem(t) for t in lengths), options)


def of_states(out: tuple) -> float:
    """One number from means and covariances, which come last."""
    means, covariances = np.asarray(out[-2]), np.asarray(out[-1])
    return float(np.abs(means).sum() + np.trace(covariances, axis1=-2, axis2=-1).sum())


CHECKS = {
    "": float,
    "filter": of_states,
    "smoother": of_states,
    "grad": lambda out: float(sum(out[1])),
}


def split(op: str) -> tuple[str, str]:
    rule, _, kind = op.partition(" ")
    return rule, kind


def jitted(problem: Problem, kind: str, functions: dict[str, Any], *data: Any) -> Call | None:
    """The call of a JAX library, given its functions ``(theta, *data)``."""
    if kind == "grad":
        f = jax.jit(jax.value_and_grad(functions[""]))
    elif kind in functions:
        f = jax.jit(functions[kind])
    else:
        return None
    return Call(lambda: f(problem.theta, *data), CHECKS[kind])


# Ours


def model(theta: tuple) -> ss.Model:
    drag, log_q, log_r = theta
    q, r = jnp.exp(log_q / 2) * np.sqrt(Q), jnp.exp(log_r / 2) * np.sqrt(R)
    return ss.Model(
        ss.Gaussian(jnp.asarray(M0), jnp.asarray(np.sqrt(P0))),
        lambda x, step: dist.Normal(move(x, drag), q).to_event(1),
        lambda x, step: dist.Normal(see(x), r).to_event(1),
    )


METHODS = {
    "ekf": ss.ExtendedKalman(),
    "ukf": ss.SigmaPointKalman(rule=Unscented(alpha=3**0.5, beta=2.0, kappa=1.0)),
}


def our_functions(method: Any) -> dict[str, Any]:
    def filtered(theta, series):
        p = ss.filter(model(theta), series, method=method)
        return p.log_likelihood, p.mean, p.covariance

    def smoothed(theta, series):
        p = ss.smooth(model(theta), series, method=method)
        return p.mean, p.covariance

    value = lambda theta, series: ss.log_likelihood(model(theta), series, method=method)
    return {"": value, "filter": filtered, "smoother": smoothed}


def iterated(problem: Problem, parallel: bool) -> Call:
    method = ss.IteratedSmoother(iterations=ITERATIONS, tolerance=0.0, parallel=parallel)
    f, series = jax.jit(our_functions(method)["smoother"]), ss.Series(problem.y)
    return Call(lambda: f(problem.theta, series), of_states, per=ITERATIONS)


@suite.column("statespace", kind="ours", fused=True)
def statespace(problem: Problem, op: str) -> Call | None:
    rule, kind = split(op)
    if rule == "iterated":
        return iterated(problem, parallel=False)
    return jitted(problem, kind, our_functions(METHODS[rule]), ss.Series(problem.y))


@suite.column("statespace (associative)", kind="ours")
def statespace_associative(problem: Problem, op: str) -> Call | None:
    return iterated(problem, parallel=True) if op == "iterated" else None


# The limit


@suite.column("C minimal", kind="bound")
def c_minimal(problem: Problem, op: str) -> Call | None:
    if op not in ("ekf", "ekf filter"):
        return None
    function = library("nonlinear").ekf
    function.restype = ctypes.c_double
    inputs = contiguous(problem.y, Q, R, M0, P0)
    arguments = [ctypes.c_long(problem.length), *map(pointer, inputs)]
    if op == "ekf":
        return Call(lambda keep=inputs: function(*arguments, None, None), float)
    means, covariances = np.zeros((problem.length, 4)), np.zeros((problem.length, 4, 4))
    outputs = [pointer(means), pointer(covariances)]
    return Call(lambda keep=inputs: (function(*arguments, *outputs), means, covariances), of_states)


# Peers


@suite.column("dynamax", needs="dynamax")
def dynamax(problem: Problem, op: str) -> Call | None:
    from dynamax import nonlinear_gaussian_ssm as nonlinear

    rule, kind = split(op)
    if rule == "iterated":
        return None
    states = ["filtered_means", "filtered_covariances"]

    def params(theta):
        drag, log_q, log_r = theta
        q, r = jnp.exp(log_q) * jnp.diag(jnp.asarray(Q)), jnp.exp(log_r) * jnp.diag(jnp.asarray(R))
        start = (jnp.asarray(M0), jnp.asarray(P0))
        return nonlinear.ParamsNLGSSM(*start, lambda x: move(x, drag), q, see, r)

    def passed(theta, y, fields):
        fields = ["marginal_loglik", *fields]
        if rule == "ekf":
            return nonlinear.extended_kalman_filter(params(theta), y, output_fields=fields)
        hyper = nonlinear.UKFHyperParams()
        return nonlinear.unscented_kalman_filter(params(theta), y, hyper, output_fields=fields)

    def filtered(theta, y):
        out = passed(theta, y, states)
        return out.marginal_loglik[-1], out.filtered_means, out.filtered_covariances

    def smoothed(theta, y):
        if rule == "ekf":
            out = nonlinear.extended_kalman_smoother(params(theta), y)
        else:
            out = nonlinear.unscented_kalman_smoother(params(theta), y, nonlinear.UKFHyperParams())
        return out.smoothed_means, out.smoothed_covariances

    value = lambda theta, y: passed(theta, y, []).marginal_loglik[-1]
    functions = {"": value, "filter": filtered, "smoother": smoothed}
    return jitted(problem, kind, functions, jnp.asarray(problem.y))


def cuthbert_call(problem: Problem, op: str, build: Any, data: Any, offset: int) -> Call | None:
    """Its filter and smoother in square-root form, from ``build(theta) -> (filter, smoother)``."""
    from cuthbert import filter as run_filter
    from cuthbert import smoother as run_smoother

    rule, kind = split(op)
    if rule != "ekf":
        return None

    def passed(theta, data):
        forward, backward = build(theta)
        return run_filter(forward, data, forward.init_prepare()), backward

    def filtered(theta, data):
        s = passed(theta, data)[0]
        return s.log_normalizing_constant[-1], s.mean[offset:], s.chol_cov[offset:]

    def smoothed(theta, data):
        s, backward = passed(theta, data)
        s = run_smoother(backward, s)
        return s.mean[offset:], s.chol_cov[offset:]

    value = lambda theta, data: passed(theta, data)[0].log_normalizing_constant[-1]
    call = jitted(problem, kind, {"": value, "filter": filtered, "smoother": smoothed}, data)
    if call is None or kind not in ("filter", "smoother"):
        return call

    def check(out):
        factor = np.asarray(out[-1])
        return of_states((out[-2], factor @ np.swapaxes(factor, -1, -2)))

    return Call(call.run, check)


@suite.column("cuthbert (moments)", needs="cuthbert")
def cuthbert_moments(problem: Problem, op: str) -> Call | None:
    """It begins with a state before the first observation, from which the first transition does not move."""
    from cuthbert.gaussian import moments

    def build(theta):
        drag, log_q, log_r = theta
        q, r = jnp.exp(log_q / 2) * jnp.sqrt(Q), jnp.exp(log_r / 2) * jnp.sqrt(R)

        def dynamics(state, row):
            first = row[1] == 0
            mean = lambda x: jnp.where(first, x, move(x, drag))
            scale = jnp.where(first, 0.0, 1.0) * jnp.diag(q)
            return (lambda x: (mean(x), scale)), state.mean

        def observation(state, row):
            return (lambda x: (see(x), jnp.diag(r))), state.mean, row[0]

        start = jnp.asarray(M0), jnp.asarray(np.sqrt(P0))
        forward = moments.build_filter(*start, dynamics, observation)
        return forward, moments.build_smoother(dynamics)

    data = (jnp.asarray(problem.y), jnp.arange(problem.length))
    return cuthbert_call(problem, op, build, data, 1)


@suite.column("cuthbert (taylor)", needs="cuthbert")
def cuthbert_taylor(problem: Problem, op: str) -> Call | None:
    """From log densities; it makes one transition more at the start, so that its values are others."""
    from cuthbert.gaussian import taylor

    if op not in ("ekf", "ekf filter"):
        return None

    def log_density(error, variance):
        return -0.5 * jnp.sum(error**2 / variance + jnp.log(2 * jnp.pi * variance))

    def build(theta):
        drag, log_q, log_r = theta
        q, r = jnp.exp(log_q) * jnp.asarray(Q), jnp.exp(log_r) * jnp.asarray(R)

        def dynamics(state, _):
            density = lambda x, after: log_density(after - move(x, drag), q)
            return density, state.mean, move(state.mean, drag)

        def observation(state, y):
            return (lambda x, y: log_density(y - see(x), r)), state.mean, y

        first = lambda x: log_density(x - M0, jnp.diag(jnp.asarray(P0)))
        return taylor.build_filter(first, jnp.asarray(M0), dynamics, observation), None

    return cuthbert_call(problem, op, build, jnp.asarray(problem.y), 1)


@suite.column("filterpy", needs="filterpy")
def filterpy(problem: Problem, op: str) -> Call | None:
    from filterpy import kalman

    if op not in ("ekf filter", "ukf filter"):
        return None
    if problem.length > PYTHON_LOOPS_TO:
        raise Skip("a loop in Python")
    slope_of_move, slope_of_see = jax.jit(jax.jacfwd(move)), jax.jit(jax.jacfwd(see))

    def make(kind: Any, *arguments: Any) -> Any:
        k = kind(*arguments)
        k.x, k.P, k.Q, k.R = M0.copy(), P0.copy(), np.diag(Q), np.diag(R)
        return k

    def extended() -> tuple:
        k, means, covariances = make(kalman.ExtendedKalmanFilter, 4, 2), [], []
        for y in problem.y:
            k.update(y, lambda x: np.asarray(slope_of_see(x)), lambda x: see(x, np))
            means.append(k.x), covariances.append(k.P)
            slope = np.asarray(slope_of_move(k.x))
            k.x, k.P = move(k.x, lib=np), slope @ k.P @ slope.T + np.diag(Q)
        return np.array(means), np.array(covariances)

    def unscented() -> tuple:
        points = kalman.MerweScaledSigmaPoints(4, 3**0.5, 2.0, 1.0)
        functions = (lambda x: see(x, np)), (lambda x, dt: move(x, lib=np)), points
        k = make(kalman.UnscentedKalmanFilter, 4, 2, DT, *functions)
        means, covariances = [], []
        for t, y in enumerate(problem.y):
            if t:
                k.predict()
            else:
                k.sigmas_f = points.sigma_points(k.x, k.P)
            k.update(y)
            means.append(k.x.copy()), covariances.append(k.P.copy())
        return np.array(means), np.array(covariances)

    return Call(extended if op == "ekf filter" else unscented, of_states)
