"""Linear Gaussian models, one series.

``x_1 ~ N(m_1, P_1)``, ``x_t = F x_{t-1} + q``, ``y_t = H x_t + r``; time-invariant, full Q, diagonal R.

* loglik: the value.
* filter: the value, all filtered means and covariances.
* smoother: all smoothed means and covariances.
* grad: the value and its gradient in F (all entries) and in the log scales of Q and R.
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
from benchmarks.harness import Call, Options, Skip, Suite

DIMS = ((2, 1), (4, 1), (4, 4), (8, 1), (8, 4), (16, 4), (64, 16))
LENGTHS = (1_000, 10_000)
PYTHON_LOOPS_TO = 1_000  # what loops in Python is linear in T, and measured up to here

suite = Suite("kalman", ops=("loglik", "filter", "smoother", "grad"))


class Problem:
    """A random stable model and a series drawn from it."""

    def __init__(self, n: int, m: int, length: int):
        self.n, self.m, self.length = n, m, length
        rng = np.random.default_rng(n * 1000 + m)
        rotation, _ = np.linalg.qr(rng.normal(size=(n, n)))
        root = rng.normal(size=(n, n)) / np.sqrt(n)
        self.F = 0.97 * rotation
        self.Q = 0.1 * (root @ root.T + 0.5 * np.eye(n))
        self.H = rng.normal(size=(m, n)) / np.sqrt(n)
        self.r = 0.2 + rng.uniform(size=m)
        self.R = np.diag(self.r)
        self.m0, self.P0 = (
            np.zeros(n),
            np.eye(n),
        )  # one step earlier, for who begins with a prediction
        self.m1, self.P1 = self.F @ self.m0, self.F @ self.P0 @ self.F.T + self.Q
        self.LQ, self.LR = np.linalg.cholesky(self.Q), np.sqrt(self.R)
        x = rng.normal(size=n)
        state_noise = rng.normal(size=(length, n)) @ self.LQ.T
        self.y = rng.normal(size=(length, m)) @ self.LR.T
        for t in range(length):
            x = self.F @ x + state_noise[t]
            self.y[t] += self.H @ x

    @property
    def label(self) -> str:
        return f"{self.n}x{self.m} T={self.length}"

    @property
    def facts(self) -> dict[str, Any]:
        return {"n": self.n, "m": self.m, "T": self.length, "dtype": "float64"}

    @cached_property
    def theta(self) -> tuple:
        """F, and the log scales of Q and R: what the gradient is taken in."""
        return jnp.asarray(self.F), jnp.asarray(0.0), jnp.asarray(0.0)


def run(options: Options) -> None:
    dims = options.dims or (((2, 1), (4, 4)) if options.quick else DIMS)
    lengths = options.lengths or (LENGTHS[:1] if options.quick else LENGTHS)
    suite.run((Problem(n, m, t) for n, m in dims for t in lengths), options)


# One number from what was computed


def of_filter(out: tuple) -> float:
    _, means, covariances = out
    return _total(means, covariances)


def of_smoother(out: tuple) -> float:
    return _total(*out)


def of_gradient(out: tuple) -> float:
    _, (by_matrix, by_q, by_r) = out
    return float(np.sum(by_matrix) + by_q + by_r)


def _total(means: Any, covariances: Any) -> float:
    means, covariances = np.asarray(means), np.asarray(covariances)
    return float(np.abs(means).sum() + np.trace(covariances, axis1=-2, axis2=-1).sum())


CHECKS = {"loglik": float, "filter": of_filter, "smoother": of_smoother, "grad": of_gradient}


def jitted(problem: Problem, op: str, functions: dict[str, Any], *data: Any) -> Call:
    """The call of a JAX library, given a function ``(theta, *data)`` for each op."""
    f = jax.jit(functions[op])
    return Call(lambda: f(problem.theta, *data), CHECKS[op])


# Ours


def model(problem: Problem, theta: tuple) -> ss.LinearGaussian:
    F, log_q, log_r = theta
    return ss.LinearGaussian(
        transition_matrix=F,
        transition_scale=jnp.exp(log_q / 2) * problem.LQ,
        observation_matrix=jnp.asarray(problem.H),
        observation_scale=jnp.exp(log_r / 2) * np.sqrt(problem.r),
        initial_mean=jnp.asarray(problem.m1),
        initial_scale=jnp.asarray(np.linalg.cholesky(problem.P1)),
    )


def our_functions(problem: Problem, method: ss.Kalman | None = None) -> dict[str, Any]:
    def loglik(theta, series):
        return ss.log_likelihood(model(problem, theta), series, method=method)

    def filtered(theta, series):
        p = ss.filter(model(problem, theta), series, method=method)
        return p.log_likelihood, p.mean, p.covariance

    def smoothed(theta, series):
        p = ss.smooth(model(problem, theta), series, method=method)
        return p.mean, p.covariance

    gradient = jax.value_and_grad(loglik)
    return {"loglik": loglik, "filter": filtered, "smoother": smoothed, "grad": gradient}


@suite.column("statespace", kind="ours", fused=True)
def statespace(problem: Problem, op: str) -> Call:
    return jitted(problem, op, our_functions(problem), ss.Series(problem.y))


@suite.column("statespace (verb, no jit)", kind="ours")
def statespace_verb(problem: Problem, op: str) -> Call | None:
    """The verb as it is called in a notebook: it returns the whole posterior, with its predictions.

    What it adds hardly depends on the length, so that the shorter series tell it.
    """
    if problem.length > PYTHON_LOOPS_TO:
        return None
    series, fixed = ss.Series(problem.y), model(problem, problem.theta)
    if op == "grad":
        f = our_functions(problem)["grad"]
        return Call(lambda: f(problem.theta, series), of_gradient)
    if op == "loglik":
        return Call(lambda: ss.log_likelihood(fixed, series), float)
    verb = ss.filter if op == "filter" else ss.smooth
    return Call(lambda: verb(fixed, series), lambda p: _total(p.mean, p.covariance))


@suite.column("statespace (sqrt)", kind="ours", fused=True, extra=True)
def statespace_sqrt(problem: Problem, op: str) -> Call:
    method = ss.Kalman(form="sqrt")
    return jitted(problem, op, our_functions(problem, method), ss.Series(problem.y))


@suite.column("statespace (associative)", kind="ours", extra=True)
def statespace_associative(problem: Problem, op: str) -> Call:
    method = ss.Kalman(parallel=True)
    return jitted(problem, op, our_functions(problem, method), ss.Series(problem.y))


# The limit


@suite.column("C minimal", kind="bound")
def c_minimal(problem: Problem, op: str) -> Call | None:
    return None if op == "grad" else c_call(problem, op)


@suite.column("C steady state", kind="bound")
def c_steady(problem: Problem, op: str) -> Call | None:
    """Stops updating the covariance when it has converged: time-invariant models only."""
    return c_call(problem, op, tolerance=1e-14) if op == "loglik" else None


def c_call(problem: Problem, op: str, tolerance: float = 0.0) -> Call:
    n, t = problem.n, problem.length
    lib = library("kalman", N=n, M=problem.m)
    lib.kf.restype = ctypes.c_double
    p = problem
    inputs = contiguous(p.F, p.F.T, p.Q, p.H, p.H.T, p.R, p.m1, p.P1, p.y)
    arguments = [ctypes.c_long(t), *map(pointer, inputs)]

    def kf(*outputs):
        return lib.kf(*arguments, *map(pointer, outputs), ctypes.c_double(tolerance))

    if op == "loglik":
        return Call(lambda keep=inputs: kf(None, None, None, None), float)
    fm, fP = np.zeros((t, n)), np.zeros((t, n, n))
    if op == "filter":
        return Call(lambda keep=inputs: (kf(fm, fP, None, None), fm, fP), of_filter)
    pm, pP, sm, sP = np.zeros((t, n)), np.zeros((t, n, n)), np.zeros((t, n)), np.zeros((t, n, n))

    def smooth(keep=inputs):
        kf(fm, fP, pm, pP)
        lib.rts(ctypes.c_long(t), *map(pointer, (inputs[0], fm, fP, pm, pP, sm, sP)))
        return sm, sP

    return Call(smooth, of_smoother)


# JAX libraries


def dynamax_call(problem: Problem, op: str, parallel: bool) -> Call:
    from dynamax.linear_gaussian_ssm.inference import make_lgssm_params

    if parallel:
        from dynamax.linear_gaussian_ssm.parallel_inference import lgssm_filter, lgssm_smoother
    else:
        from dynamax.linear_gaussian_ssm import lgssm_filter, lgssm_smoother

    def params(theta):
        F, log_q, log_r = theta
        m1, P1, H = map(jnp.asarray, (problem.m1, problem.P1, problem.H))
        return make_lgssm_params(
            m1, P1, F, jnp.exp(log_q) * problem.Q, H, jnp.exp(log_r) * problem.R
        )

    def loglik(theta, y):
        return lgssm_filter(params(theta), y).marginal_loglik

    def filtered(theta, y):
        p = lgssm_filter(params(theta), y)
        return p.marginal_loglik, p.filtered_means, p.filtered_covariances

    def smoothed(theta, y):
        p = lgssm_smoother(params(theta), y)
        return p.smoothed_means, p.smoothed_covariances

    gradient = jax.value_and_grad(loglik)
    functions = {"loglik": loglik, "filter": filtered, "smoother": smoothed, "grad": gradient}
    return jitted(problem, op, functions, jnp.asarray(problem.y))


@suite.column("dynamax", needs="dynamax")
def dynamax(problem: Problem, op: str) -> Call:
    return dynamax_call(problem, op, parallel=False)


@suite.column("dynamax associative", needs="dynamax", extra=True)
def dynamax_associative(problem: Problem, op: str) -> Call:
    return dynamax_call(problem, op, parallel=True)


def cuthbert_call(problem: Problem, op: str, parallel: bool) -> Call:
    """Square-root form. It begins a step before the first observation, so the first transition is
    detached from theta: the law of ``x_1`` is then fixed, as in the other columns."""
    from cuthbert import filter as run_filter
    from cuthbert import smoother as run_smoother
    from cuthbert.gaussian import kalman

    n, m = problem.n, problem.m
    m0, L0 = jnp.asarray(problem.m0), jnp.linalg.cholesky(jnp.asarray(problem.P0))
    H, LQ, LR = map(jnp.asarray, (problem.H, problem.LQ, problem.LR))

    def build(theta):
        F, log_q, log_r = theta

        def dynamics(step):
            first, _ = step
            matrix = jnp.where(first, jax.lax.stop_gradient(F), F)
            scale = jnp.where(first, LQ, jnp.exp(log_q / 2) * LQ)
            return matrix, jnp.zeros(n), scale

        def observation(step):
            return H, jnp.zeros(m), jnp.exp(log_r / 2) * LR, step[1]

        return kalman.build_filter(m0, L0, dynamics, observation), kalman.build_smoother(dynamics)

    def states(theta, steps):
        forward, _ = build(theta)
        return run_filter(forward, steps, forward.init_prepare(), parallel=parallel)

    def loglik(theta, steps):
        return states(theta, steps).log_normalizing_constant[-1]

    def filtered(theta, steps):
        s = states(theta, steps)
        return s.log_normalizing_constant[-1], s.mean[1:], s.chol_cov[1:]

    def smoothed(theta, steps):
        s = run_smoother(build(theta)[1], states(theta, steps), parallel=parallel)
        return s.mean[1:], s.chol_cov[1:]

    gradient = jax.value_and_grad(loglik)
    functions = {"loglik": loglik, "filter": filtered, "smoother": smoothed, "grad": gradient}
    steps = (jnp.arange(problem.length) == 0, jnp.asarray(problem.y))
    call = jitted(problem, op, functions, steps)
    if op not in ("filter", "smoother"):
        return call

    def check(out):
        factor = np.asarray(out[-1])
        return CHECKS[op]((*out[:-1], factor @ np.swapaxes(factor, -1, -2)))

    return Call(call.run, check)


@suite.column("cuthbert", needs="cuthbert")
def cuthbert(problem: Problem, op: str) -> Call:
    if op == "grad" and problem.length * problem.n**2 > 1_000_000:
        raise Skip("its gradient takes minutes")
    return cuthbert_call(problem, op, parallel=False)


@suite.column("cuthbert associative", needs="cuthbert", extra=True)
def cuthbert_associative(problem: Problem, op: str) -> Call:
    return cuthbert_call(problem, op, parallel=True)


# Compiled and Python libraries


def statsmodels_call(problem: Problem, op: str, steady: bool) -> Call | None:
    if op == "grad":
        return statsmodels_score(problem) if steady and problem.n <= 4 else None
    from statsmodels.tsa.statespace.kalman_smoother import KalmanSmoother

    n = problem.n
    smoother = KalmanSmoother(k_endog=problem.m, k_states=n, k_posdef=n)
    smoother.bind(problem.y.copy())
    smoother["design"], smoother["transition"] = problem.H, problem.F
    smoother["selection"] = np.eye(n)
    smoother["state_cov"], smoother["obs_cov"] = problem.Q, problem.R
    smoother.initialize_known(problem.m1, problem.P1)
    if not steady:
        smoother.tolerance = 0

    def filtered():
        r = smoother.filter()
        return r.llf, r.filtered_state.T, np.moveaxis(r.filtered_state_cov, -1, 0)

    def smoothed():
        r = smoother.smooth()
        return r.smoothed_state.T, np.moveaxis(r.smoothed_state_cov, -1, 0)

    run = {"loglik": smoother.loglike, "filter": filtered, "smoother": smoothed}[op]
    return Call(run, CHECKS[op])


def statsmodels_score(problem: Problem) -> Call:
    """Its score by complex steps: one filter for each parameter."""
    from statsmodels.tsa.statespace.mlemodel import MLEModel

    n = problem.n

    class Model(MLEModel):
        start_params = np.zeros(n * n + 2)

        def __init__(self, y):
            super().__init__(y, k_states=n, k_posdef=n)
            self["design"], self["selection"] = problem.H, np.eye(n)
            self.ssm.initialize_known(problem.m1, problem.P1)

        def update(self, params, **_):
            self["transition"] = params[: n * n].reshape(n, n)
            self["state_cov"] = np.exp(params[-2]) * problem.Q
            self["obs_cov"] = np.exp(params[-1]) * problem.R

    built, theta = Model(problem.y), np.r_[problem.F.ravel(), 0.0, 0.0]

    def score():
        g = built.score(theta, approx_complex_step=True)
        return 0.0, (g[:-2], g[-2], g[-1])

    return Call(score, of_gradient)


@suite.column("statsmodels (steady state)", needs="statsmodels")
def statsmodels(problem: Problem, op: str) -> Call | None:
    """As it comes: it stops updating the covariance when that has converged."""
    return statsmodels_call(problem, op, steady=True)


@suite.column("statsmodels (tolerance=0)", needs="statsmodels")
def statsmodels_full(problem: Problem, op: str) -> Call | None:
    """Made to do the same work as the others."""
    return statsmodels_call(problem, op, steady=False)


def _too_long(problem: Problem, op: str) -> bool:
    return op == "grad" or problem.length > PYTHON_LOOPS_TO


@suite.column("pykalman", needs="pykalman")
def pykalman(problem: Problem, op: str) -> Call | None:
    if _too_long(problem, op):
        return None
    from pykalman import KalmanFilter

    p = problem
    k = KalmanFilter(p.F, p.H, p.Q, p.R, np.zeros(p.n), np.zeros(p.m), p.m1, p.P1)
    runs = {
        "loglik": lambda: k.loglikelihood(p.y),
        "filter": lambda: (None, *k.filter(p.y)),
        "smoother": lambda: k.smooth(p.y),
    }
    return Call(runs[op], CHECKS[op])


@suite.column("filterpy", needs="filterpy")
def filterpy(problem: Problem, op: str) -> Call | None:
    if _too_long(problem, op):
        return None
    from filterpy.kalman import KalmanFilter

    def make():
        k = KalmanFilter(problem.n, problem.m)
        k.F, k.H, k.Q, k.R = problem.F, problem.H, problem.Q, problem.R
        k.x, k.P = problem.m1.copy().reshape(-1, 1), problem.P1.copy()
        return k

    def loglik():
        k, total = make(), 0.0
        for y in problem.y:
            k.update(y.reshape(-1, 1))
            total += k.log_likelihood
            k.predict()
        return total

    def states():
        k = make()
        means, covariances, _, _ = k.batch_filter(problem.y[:, :, None], update_first=True)
        if op == "filter":
            return None, means[..., 0], covariances
        means, covariances, _, _ = k.rts_smoother(means, covariances)
        return means[..., 0], covariances

    return Call(loglik if op == "loglik" else states, CHECKS[op])


@suite.column("simdkalman", needs="simdkalman")
def simdkalman(problem: Problem, op: str) -> Call | None:
    if _too_long(problem, op):
        return None
    import simdkalman as package

    k = package.KalmanFilter(problem.F, problem.Q, problem.H, problem.R)
    y = problem.y[None]
    prior = {"initial_value": problem.m1, "initial_covariance": problem.P1, "observations": False}
    constant = -0.5 * problem.y.size * np.log(2 * np.pi)  # which it leaves out

    def loglik():
        r = k.compute(y, 0, smoothed=False, filtered=False, log_likelihood=True, **prior)
        return r.log_likelihood[0] + constant

    def filtered():
        r = k.compute(y, 0, smoothed=False, filtered=True, log_likelihood=True, **prior)
        states = r.filtered.states
        return r.log_likelihood[0] + constant, states.mean[0], states.cov[0]

    def smoothed():
        states = k.compute(y, 0, smoothed=True, **prior).smoothed.states
        return states.mean[0], states.cov[0]

    return Call({"loglik": loglik, "filter": filtered, "smoother": smoothed}[op], CHECKS[op])
