"""Many short series at once: 1,000 of length 100.

* shared: one parameter set for all series; the covariances do not depend on the data's values.
* own: each series has its own F, Q, R, as chains of a sampler or units of a study have.
* gaps: 5 % of the entries are missing, at different times in different series.

ops: loglik (the value of each series), filter (the values, all filtered means and covariances).
"""

from __future__ import annotations

import ctypes
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import statespace as ss
from benchmarks.compiled import contiguous, library, pointer
from benchmarks.harness import Call, Options, Suite

DIMS = ((2, 1), (4, 1), (4, 4))
SERIES, LENGTH = 1_000, 100

suite = Suite("batch", ops=("loglik", "filter"))


class Problem:
    """Random stable models, and a series drawn from each."""

    def __init__(self, n: int, m: int, length: int, shared: bool, gaps: bool):
        self.n, self.m, self.length, self.shared, self.gaps = n, m, length, shared, gaps
        rng = np.random.default_rng(n * 1000 + m)
        draws = [self._parameters(rng) for _ in range(1 if shared else SERIES)]
        F, Q, R = (np.stack(part) for part in zip(*draws))
        self.H = rng.normal(size=(m, n)) / np.sqrt(n)
        LQ, LR = np.linalg.cholesky(Q), np.sqrt(R)
        x = rng.normal(size=(SERIES, n, 1))
        self.y = np.empty((SERIES, length, m))
        for t in range(length):
            x = F @ x + LQ @ rng.normal(size=x.shape)
            self.y[:, t] = (self.H @ x + LR @ rng.normal(size=(SERIES, m, 1)))[..., 0]
        if gaps:
            self.y[rng.uniform(size=self.y.shape) < 0.05] = np.nan
            self.y[:, length // 2, 0] = np.nan  # at least one in each series
        self.m1 = np.zeros(n)
        self.P1 = F @ np.swapaxes(F, -1, -2) + Q  # one step after N(0, I)
        self.F, self.Q, self.R = F, Q, R
        if shared:
            self.F, self.Q, self.R, self.P1 = F[0], Q[0], R[0], self.P1[0]

    def _parameters(self, rng: np.random.Generator) -> tuple:
        rotation, _ = np.linalg.qr(rng.normal(size=(self.n, self.n)))
        root = rng.normal(size=(self.n, self.n)) / np.sqrt(self.n)
        Q = 0.1 * (root @ root.T + 0.5 * np.eye(self.n))
        return 0.97 * rotation, Q, np.diag(0.2 + rng.uniform(size=self.m))

    @property
    def label(self) -> str:
        case = ("shared" if self.shared else "own") + (", gaps" if self.gaps else "")
        return f"{case}, {self.n}x{self.m}"

    @property
    def facts(self) -> dict[str, Any]:
        case = {"shared": self.shared, "gaps": self.gaps, "series": SERIES}
        return {"n": self.n, "m": self.m, "T": self.length, "dtype": "float64"} | case


def run(options: Options) -> None:
    dims = options.dims or (DIMS[:1] if options.quick else DIMS)
    length = options.lengths[0] if options.lengths else LENGTH
    cases = [(shared, gaps) for gaps in (False, True) for shared in (True, False)]
    suite.run((Problem(*d, length, *case) for case in cases for d in dims), options)


def of_loglik(values: Any) -> float:
    return float(np.sum(values))


def of_filter(out: tuple) -> float:
    return float(np.sum(out[0]) + np.abs(np.asarray(out[1])).sum())


def mapped(problem: Problem, op: str, one: Any, data: Any) -> Call:
    """The call of a JAX library: ``one(series, F, Q, R, P1)`` under `vmap` and `jit`."""
    parameters = [jnp.asarray(a) for a in (problem.F, problem.Q, problem.R, problem.P1)]
    axis = None if problem.shared else 0
    f = jax.jit(jax.vmap(one, in_axes=(0, axis, axis, axis, axis)))
    return Call(lambda: f(data, *parameters), of_filter if op == "filter" else of_loglik)


# Ours


def model(problem: Problem, F: Any, Q: Any, R: Any, P1: Any) -> ss.Model:
    return ss.Model(
        initial=ss.Gaussian(jnp.asarray(problem.m1), covariance=P1),
        transition=ss.AffineGaussian(F, covariance=Q),
        observation=ss.AffineGaussian(jnp.asarray(problem.H), covariance=R),
    )


@suite.column("statespace", kind="ours", fused=True)
def statespace(problem: Problem, op: str) -> Call:
    def one(series, *parameters):
        fixed = model(problem, *parameters)
        if op == "loglik":
            return ss.log_likelihood(fixed, series)
        p = ss.filter(fixed, series)
        return p.log_likelihood, p.mean, p.covariance

    series = [ss.Series(y) for y in problem.y]
    return mapped(problem, op, one, jax.tree.map(lambda *parts: jnp.stack(parts), *series))


@suite.column("statespace (arrays)", kind="ours")
def statespace_arrays(problem: Problem, op: str) -> Call:
    """Given arrays under `vmap`, of which it cannot know whether anything is missing."""

    def one(y, *parameters):
        fixed = model(problem, *parameters)
        if op == "loglik":
            return ss.log_likelihood(fixed, y)
        p = ss.filter(fixed, y)
        return p.log_likelihood, p.mean, p.covariance

    return mapped(problem, op, one, jnp.asarray(problem.y))


@suite.column("statespace (panel, no jit)", kind="ours")
def statespace_panel(problem: Problem, op: str) -> Call | None:
    """The verb on a panel, whose recordings share a model: the sum of the values, or a list of posteriors."""
    if not problem.shared:
        return None
    panel = ss.Panel(list(problem.y))
    fixed = model(problem, *map(jnp.asarray, (problem.F, problem.Q, problem.R, problem.P1)))
    if op == "loglik":
        return Call(lambda: ss.log_likelihood(fixed, panel), float)

    def check(posteriors):
        return of_filter(tuple(zip(*((p.log_likelihood, p.mean) for p in posteriors))))

    return Call(lambda: ss.filter(fixed, panel), check)


# The limit


@suite.column("C minimal", kind="bound")
def c_minimal(problem: Problem, op: str) -> Call | None:
    if problem.gaps:
        return None
    return c_shared(problem, op) if problem.shared else c_own(problem, op)


def c_shared(problem: Problem, op: str) -> Call:
    """The covariances once; the means with the series as the contiguous axis."""
    p, t = problem, problem.length
    lib = library("kalman", N=p.n, M=p.m)
    inputs = contiguous(p.F, p.F.T, p.Q, p.H, p.H.T, p.R, p.m1, p.P1)
    values = np.zeros(SERIES)
    by_time = np.empty((t, p.m, SERIES))
    means = np.zeros((t, p.n, SERIES)) if op == "filter" else None

    def run(keep=inputs):
        by_time[...] = np.moveaxis(p.y, 0, -1)  # the change of layout is part of the time
        sizes = ctypes.c_long(SERIES), ctypes.c_long(t)
        lib.kf_batch_shared(*sizes, *map(pointer, (*inputs, by_time, means, values)))
        return (values, means) if op == "filter" else values

    return Call(run, of_filter if op == "filter" else of_loglik)


def c_own(problem: Problem, op: str) -> Call:
    p, t = problem, problem.length
    lib = library("kalman", N=p.n, M=p.m)
    transposed = np.swapaxes(p.F, 1, 2)
    inputs = contiguous(p.F, transposed, p.Q, p.H, p.H.T, p.R, p.m1, p.P1, p.y)
    values = np.zeros(SERIES)
    means = np.zeros((SERIES, t, p.n)) if op == "filter" else None
    covariances = np.zeros((SERIES, t, p.n, p.n)) if op == "filter" else None

    def run(keep=inputs):
        sizes = ctypes.c_long(SERIES), ctypes.c_long(t)
        lib.kf_batch_own(*sizes, *map(pointer, (*inputs, means, covariances, values)))
        return (values, means, covariances) if op == "filter" else values

    return Call(run, of_filter if op == "filter" else of_loglik)


# Peers


def dynamax_call(problem: Problem, op: str, y: np.ndarray) -> Call:
    from dynamax.linear_gaussian_ssm import lgssm_filter
    from dynamax.linear_gaussian_ssm.inference import make_lgssm_params

    m1, H = jnp.asarray(problem.m1), jnp.asarray(problem.H)

    def one(y, F, Q, R, P1):
        p = lgssm_filter(make_lgssm_params(m1, P1, F, Q, H, R), y)
        if op == "loglik":
            return p.marginal_loglik
        return p.marginal_loglik, p.filtered_means, p.filtered_covariances

    return mapped(problem, op, one, jnp.asarray(y))


@suite.column("dynamax", needs="dynamax")
def dynamax(problem: Problem, op: str) -> Call | None:
    """It has no missing values."""
    return None if problem.gaps else dynamax_call(problem, op, problem.y)


@suite.column("dynamax on complete data", kind="reference", needs="dynamax")
def dynamax_complete(problem: Problem, op: str) -> Call | None:
    """What the work would cost it if nothing were missing: no competitor where something is."""
    if not problem.gaps:
        return None
    call = dynamax_call(problem, op, np.nan_to_num(problem.y))
    return Call(call.run)


@suite.column("cuthbert", needs="cuthbert")
def cuthbert(problem: Problem, op: str) -> Call:
    from cuthbert import filter as run_filter
    from cuthbert.gaussian import kalman

    n, m = problem.n, problem.m
    H = jnp.asarray(problem.H)

    def one(y, F, Q, R, _):
        LQ, LR = jnp.linalg.cholesky(Q), jnp.linalg.cholesky(R)
        built = kalman.build_filter(
            jnp.zeros(n),  # it begins a step before the first observation
            jnp.eye(n),
            lambda _: (F, jnp.zeros(n), LQ),
            lambda y: (H, jnp.zeros(m), LR, y),
        )
        s = run_filter(built, y, built.init_prepare())
        if op == "loglik":
            return s.log_normalizing_constant[-1]
        return s.log_normalizing_constant[-1], s.mean[1:], s.chol_cov[1:]

    return mapped(problem, op, one, jnp.asarray(problem.y))


@suite.column("simdkalman", needs="simdkalman")
def simdkalman(problem: Problem, op: str) -> Call | None:
    """One parameter set for all series only; a moment that misses one channel counts as missing."""
    if not problem.shared or (problem.gaps and problem.m > 1):
        return None
    import simdkalman as package

    k = package.KalmanFilter(problem.F, problem.Q, problem.H, problem.R)
    constants = -0.5 * np.log(2 * np.pi) * (~np.isnan(problem.y)).sum(axis=(1, 2))
    prior = {"initial_value": problem.m1, "initial_covariance": problem.P1, "observations": False}

    def run():
        states = op == "filter"
        r = k.compute(problem.y, 0, smoothed=False, filtered=states, log_likelihood=True, **prior)
        values = r.log_likelihood + constants
        return (values, r.filtered.states.mean) if states else values

    return Call(run, of_filter if op == "filter" else of_loglik)


@suite.column("statsmodels (loop)", needs="statsmodels")
def statsmodels(problem: Problem, op: str) -> Call:
    from statsmodels.tsa.statespace.kalman_smoother import KalmanSmoother

    p, n = problem, problem.n

    def one(s):
        k = KalmanSmoother(k_endog=p.m, k_states=n, k_posdef=n)
        k.bind(p.y[s].copy())
        own = (lambda a: a) if p.shared else (lambda a: a[s])
        k["design"], k["transition"], k["selection"] = p.H, own(p.F), np.eye(n)
        k["state_cov"], k["obs_cov"] = own(p.Q), own(p.R)
        k.initialize_known(p.m1, own(p.P1))
        if op == "loglik":
            return k.loglike()
        r = k.filter()
        return r.llf, r.filtered_state, r.filtered_state_cov

    def run():
        results = [one(s) for s in range(SERIES)]
        return tuple(zip(*results)) if op == "filter" else results

    return Call(run, of_filter if op == "filter" else of_loglik)
