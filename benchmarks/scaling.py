"""Associative against sequential scans over the length of a series, in both precisions.

* invariant: nothing varies, so that a sequential covariance pass may stop when it has converged.
* varying: one moment in ten is missing, so that it may not.

Ratios are to the sequential scan of the same precision. With ``--platform gpu`` wall time is compared.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import statespace as ss
from benchmarks.harness import Call, Options, Suite

DIMS = ((4, 4),)
LENGTHS = (1_000, 10_000, 100_000, 1_000_000)
DTYPES = ("float64", "float32")
PERIOD = 1_000  # a longer series repeats the first so many values: only its length matters

suite = Suite("scaling", ops=("loglik", "filter", "smoother"))


class Problem:
    """A stable model, and a series of any length from it."""

    def __init__(self, n: int, m: int, length: int, dtype: str, varying: bool):
        self.n, self.m, self.length, self.dtype, self.varying = n, m, length, dtype, varying
        rng = np.random.default_rng(n * 1000 + m)
        rotation, _ = np.linalg.qr(rng.normal(size=(n, n)))
        F, H = 0.97 * rotation, rng.normal(size=(m, n)) / np.sqrt(n)
        x, y = np.zeros(n), np.empty((PERIOD, m))
        for t in range(PERIOD):
            x = F @ x + 0.3 * rng.normal(size=n)
            y[t] = H @ x + 0.5 * rng.normal(size=m)
        if varying:
            y[5::10] = np.nan
        self.y = np.resize(y, (length, m)).astype(dtype)
        self.F, self.H = F.astype(dtype), H.astype(dtype)

    @cached_property
    def label(self) -> str:
        case = "varying" if self.varying else "invariant"
        return f"{case}, {self.n}x{self.m} T={self.length} {self.dtype}"

    @cached_property
    def facts(self) -> dict[str, Any]:
        size = {"n": self.n, "m": self.m, "T": self.length}
        return size | {"dtype": self.dtype, "varying": self.varying}


def run(options: Options) -> None:
    dims = options.dims or DIMS
    lengths = options.lengths or (LENGTHS[:2] if options.quick else LENGTHS)
    cases = [(varying, dtype) for varying in (False, True) for dtype in DTYPES]
    suite.run(
        (Problem(*d, t, dtype, varying) for d in dims for varying, dtype in cases for t in lengths),
        options,
    )


def scan(problem: Problem, op: str, parallel: bool) -> Call:
    method = ss.Kalman(parallel=parallel)
    n, dtype = problem.n, problem.dtype

    def model(F):
        return ss.LinearGaussian(
            transition_matrix=F,
            transition_scale=jnp.full(n, 0.3, dtype),
            observation_matrix=problem.H,
            observation_scale=jnp.full(problem.m, 0.5, dtype),
            initial_mean=jnp.zeros(n, dtype),
            initial_scale=jnp.ones(n, dtype),
        )

    def loglik(F, series):
        return ss.log_likelihood(model(F), series, method=method)

    def states(F, series):
        verb = ss.filter if op == "filter" else ss.smooth
        p = verb(model(F), series, method=method)
        return p.mean, p.covariance

    f = jax.jit(loglik if op == "loglik" else states)
    F, series = jnp.asarray(problem.F), ss.Series(problem.y)

    def check(out):
        if op == "loglik":
            return out
        means, covariances = (np.asarray(part, np.float64) for part in out)
        return np.abs(means).sum() + np.trace(covariances, axis1=-2, axis2=-1).sum()

    return Call(lambda: f(F, series), check)


@suite.column("sequential")
def sequential(problem: Problem, op: str) -> Call:
    return scan(problem, op, parallel=False)


@suite.column("associative", kind="ours")
def associative(problem: Problem, op: str) -> Call:
    return scan(problem, op, parallel=True)
