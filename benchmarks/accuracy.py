"""Accuracy on ill-conditioned models, in float32 and float64: ours in each form, next to the peers.

A row says how far a filter is from an oracle in extended precision: absolute error of the log
likelihood, largest error of a filtered mean in units of its posterior standard deviation, largest
relative error of a filtered variance, and at how many moments something was not finite. In float32
the oracle gets the rounded model and data, so that rounding them is not counted.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from benchmarks.harness import Options, store

LENGTH = 10_000
PARALLEL_PEERS = "cv Q=1e-8 R=1e-6"  # compiled for half a minute each: on one case, in float32


@dataclasses.dataclass(frozen=True)
class Problem:
    """``x_t = F x_{t-1} + N(0, Q)``, ``y_t = H x_t + N(0, R)`` for t = 1 … T; x_0 ~ N(0, P0) unseen."""

    F: np.ndarray
    Q: np.ndarray
    H: np.ndarray
    R: np.ndarray
    P0: np.ndarray
    start: np.ndarray | None = None  # of the simulated series; None: drawn from N(0, I)

    @property
    def matrices(self) -> dict[str, np.ndarray]:
        return {name: getattr(self, name) for name in ("F", "Q", "H", "R", "P0")}


def problems() -> dict[str, Problem]:
    """Small noises, a vague prior, exact observations; and one that is benign."""
    turn = np.array([[0.9, 0.1], [-0.1, 0.9]])
    move = np.array([[1.0, 0.01], [0.0, 1.0]])
    trend = np.array([[1.0, 1.0], [0.0, 1.0]])
    drift = np.array([[0.01**3 / 3, 0.01**2 / 2], [0.01**2 / 2, 0.01]])
    first = np.array([[1.0, 0.0]])
    r = np.random.default_rng(0)
    orthogonal, _ = np.linalg.qr(r.normal(size=(4, 4)))
    seen = r.normal(size=(2, 4))
    one, two, four = np.eye(1), np.eye(2), np.eye(4)
    return {
        "benign": Problem(turn, 0.1 * two, first, 0.5 * one, two),
        "rw Q=1e-8 R=1e-6": Problem(one, 1e-8 * one, one, 1e-6 * one, one),
        "cv Q=1e-8 R=1e-6": Problem(move, 1e-8 * drift + 1e-14 * two, first, 1e-6 * one, two),
        "4d dense Q=1e-8 R=1e-6": Problem(0.999 * orthogonal, 1e-8 * four, seen, 1e-6 * two, four),
        "vague prior P0=1e8": Problem(
            trend, np.diag([1e-2, 1e-4]), first, one, 1e8 * two, np.array([1e3, 1.0])
        ),
        "exact obs R=1e-12": Problem(
            turn, 0.1 * two, np.array([[1.0, 0.0], [1.0, 1e-4]]), 1e-12 * two, two
        ),
    }


def simulate(problem: Problem, length: int) -> np.ndarray:
    """A series of the problem, always the same one."""
    r = np.random.default_rng(3)
    n, m = len(problem.F), len(problem.H)
    drawn = r.normal(size=n)
    x = drawn if problem.start is None else problem.start
    q, s = np.linalg.cholesky(problem.Q), np.linalg.cholesky(problem.R)
    y = np.empty((length, m))
    for t in range(length):
        x = problem.F @ x + q @ r.normal(size=n)
        y[t] = problem.H @ x + s @ r.normal(size=m)
    return y


class Result(NamedTuple):
    """What a filter gives: the log likelihood, means (T, n) and covariances (T, n, n)."""

    log_likelihood: float
    mean: np.ndarray
    covariance: np.ndarray


def oracle(problem: Problem, y: np.ndarray) -> Result:
    """The textbook recursion with Joseph's update, in extended precision."""
    real = np.longdouble
    F, Q, H, R, P = (real(a) for a in problem.matrices.values())
    n, m = len(F), len(H)
    x, value, log_2pi = np.zeros(n, real), real(0), np.log(2 * np.arccos(real(-1)))
    means, covariances = [], []
    for row in real(y):
        x, P = F @ x, F @ P @ F.T + Q
        S = H @ P @ H.T + R
        factor = _cholesky(S)
        half = _forward(factor, H @ P)  # S^{-1/2} H P
        white = _forward(factor, row - H @ x)
        value -= (m * log_2pi + white @ white) / 2 + np.log(np.diagonal(factor)).sum()
        gain = half.T @ _forward(factor, np.eye(m, dtype=real))
        left = np.eye(n) - gain @ H
        x, P = x + half.T @ white, left @ P @ left.T + gain @ R @ gain.T
        P = (P + P.T) / 2
        means.append(x)
        covariances.append(P)
    return Result(float(value), np.array(means), np.array(covariances))


def _cholesky(s: np.ndarray) -> np.ndarray:
    factor = np.zeros_like(s)
    for j in range(len(s)):
        factor[j, j] = np.sqrt(s[j, j] - factor[j, :j] @ factor[j, :j])
        factor[j + 1 :, j] = (s[j + 1 :, j] - factor[j + 1 :, :j] @ factor[j, :j]) / factor[j, j]
    return factor


def _forward(factor: np.ndarray, right: np.ndarray) -> np.ndarray:
    x = np.array(right)
    for i in range(len(factor)):
        x[i] = (x[i] - factor[i, :i] @ x[:i]) / factor[i, i]
    return x


# The columns: each yields (name, filter), ready to be called ------------------------------------------

Filter = tuple[str, Callable[[], Result]]


def ours(problem: Problem, y: np.ndarray, dtype: np.dtype) -> Iterator[Filter]:
    """statespace, through its verbs. The first predicted covariance is left to it, as a wide factor."""
    import jax
    import jax.numpy as jnp

    import statespace as ss

    def array(a: np.ndarray) -> jax.Array:
        return jnp.asarray(a, dtype)

    F, H = array(problem.F), array(problem.H)
    root = {name: array(np.linalg.cholesky(getattr(problem, name))) for name in ("Q", "R", "P0")}
    model = ss.Model(
        ss.Gaussian(jnp.zeros(len(F), dtype), jnp.concatenate([F @ root["P0"], root["Q"]], axis=1)),
        ss.AffineGaussian(F, scale=root["Q"]),
        ss.AffineGaussian(H, scale=root["R"]),
    )
    series = ss.Series(array(y))
    for form in ("sqrt", "covariance"):
        for parallel in (False, True):
            method = ss.Kalman(form=form, parallel=parallel)

            def run(method: ss.Kalman = method) -> Result:
                posterior = ss.filter(model, series, method=method)
                return Result(posterior.log_likelihood, posterior.mean, posterior.covariance)

            yield f"statespace {form}, {'associative' if parallel else 'sequential'}", run


def dynamax(problem: Problem, y: np.ndarray, dtype: np.dtype) -> Iterator[Filter]:
    """Sequential and associative."""
    import jax
    import jax.numpy as jnp
    from dynamax.linear_gaussian_ssm import lgssm_filter, parallel_inference
    from dynamax.linear_gaussian_ssm.inference import make_lgssm_params

    F, Q, H, R, P0 = (jnp.asarray(a, dtype) for a in problem.matrices.values())
    params = make_lgssm_params(jnp.zeros(len(F), dtype), F @ P0 @ F.T + Q, F, Q, H, R)

    def run(function: Callable) -> Result:
        out = jax.jit(function)(params, jnp.asarray(y, dtype))
        return Result(out.marginal_loglik, out.filtered_means, out.filtered_covariances)

    yield "dynamax", lambda: run(lgssm_filter)
    yield "dynamax parallel", lambda: run(parallel_inference.lgssm_filter)


def cuthbert(problem: Problem, y: np.ndarray, dtype: np.dtype) -> Iterator[Filter]:
    """Square roots, sequential and associative."""
    import jax
    import jax.numpy as jnp
    from cuthbert import filter as run_filter
    from cuthbert.gaussian import kalman

    F, H = jnp.asarray(problem.F, dtype), jnp.asarray(problem.H, dtype)
    q, r, p = (
        jnp.asarray(np.linalg.cholesky(a), dtype) for a in (problem.Q, problem.R, problem.P0)
    )
    zero_x, zero_y = jnp.zeros(len(F), dtype), jnp.zeros(len(H), dtype)
    built = kalman.build_filter(
        zero_x, p, lambda _: (F, zero_x, q), lambda inputs: (H, zero_y, r, inputs)
    )

    def run(parallel: bool) -> Result:
        def go(y: jax.Array):
            return run_filter(built, y, built.init_prepare(), parallel=parallel)

        out = jax.jit(go)(jnp.asarray(y, dtype))
        factor = np.asarray(out.chol_cov[1:], float)
        covariance = factor @ np.swapaxes(factor, 1, 2)
        return Result(out.log_normalizing_constant[-1], out.mean[1:], covariance)

    yield "cuthbert sqrt", lambda: run(False)
    yield "cuthbert sqrt parallel", lambda: run(True)


def statsmodels(problem: Problem, y: np.ndarray, dtype: np.dtype) -> Iterator[Filter]:
    """Its default settings, with its absolute test of convergence."""
    from statsmodels.tsa.statespace.kalman_filter import KalmanFilter

    F, Q, H, R, P0 = (a.astype(dtype) for a in problem.matrices.values())

    def run() -> Result:
        model = KalmanFilter(k_endog=len(H), k_states=len(F), k_posdef=len(F), dtype=dtype)
        model.bind(y.astype(dtype))
        model["design"], model["transition"], model["selection"] = H, F, np.eye(len(F), dtype=dtype)
        model["state_cov"], model["obs_cov"] = Q, R
        model.initialize_known(np.zeros(len(F), dtype), F @ P0 @ F.T + Q)
        out = model.filter()
        return Result(out.llf, out.filtered_state.T, np.moveaxis(out.filtered_state_cov, -1, 0))

    yield "statsmodels", run


COLUMNS = {"statespace": ours, "dynamax": dynamax, "cuthbert": cuthbert, "statsmodels": statsmodels}


def filters(problem: Problem, y: np.ndarray, dtype: np.dtype) -> Iterator[Filter]:
    """Those of every installed library."""
    for package, column in COLUMNS.items():
        if importlib.util.find_spec(package) is not None:
            yield from column(problem, y, dtype)


# Measuring and printing ---------------------------------------------------------------------------------


def errors(got: Result, want: Result) -> dict[str, float]:
    """Distances of a result from the oracle."""
    mean, covariance = np.asarray(got.mean, float), np.asarray(got.covariance, float)
    finite = np.isfinite(mean).all(1) & np.isfinite(covariance).all((1, 2))
    variance = np.einsum("tii->ti", want.covariance)
    off = np.abs(mean - want.mean) / np.sqrt(variance)
    ratio = np.abs(np.einsum("tii->ti", covariance) / variance - 1)
    nothing = not finite.any()
    return {
        "loglik": abs(float(got.log_likelihood) - want.log_likelihood),
        "mean": np.nan if nothing else float(off[finite].max()),
        "variance": np.nan if nothing else float(ratio[finite].max()),
        "nan": int((~finite).sum()),
    }


def run(options: Options) -> None:
    """Print a table for each model and precision, and store the rows."""
    lengths = options.lengths or ((1000,) if options.quick else (LENGTH,))
    rows = []
    for length in lengths:
        for name, problem in problems().items():
            y = simulate(problem, length)
            for dtype in (np.dtype("float32"), np.dtype("float64")):
                rows += _table(name, problem, y, dtype, options)
    if options.save:
        store("accuracy", rows, options)


def _table(
    name: str, exact: Problem, y: np.ndarray, dtype: np.dtype, options: Options
) -> list[dict]:
    rounded = {k: v.astype(dtype).astype(float) for k, v in exact.matrices.items()}
    problem, y = dataclasses.replace(exact, **rounded), y.astype(dtype).astype(float)
    want = oracle(problem, y)
    value = want.log_likelihood
    print(f"\naccuracy | {dtype} | {name} | T={len(y)} | log likelihood {value:.4f}")
    print(f"{'':38s} {'loglik':>9s} {'mean/sd':>9s} {'variance':>9s} {'NaN':>6s}")
    import jax

    rows = []
    for column, function in filters(problem, y, dtype):
        if options.only and not any(part in column for part in options.only):
            continue
        if column.endswith("parallel") and (
            name != PARALLEL_PEERS or dtype == np.float64 or options.quick
        ):
            continue
        ours = column.startswith("statespace")
        try:
            # peers mix their own constants in: give them a session of the precision in question
            with jax.enable_x64(ours or dtype == np.float64):
                row = errors(function(), want)
        except Exception as error:  # a peer that fails is a finding, not the end of the run
            print(f"{column:38s} FAILED {type(error).__name__}: {str(error)[:120]}", flush=True)
            continue
        cells = f"{row['loglik']:9.1e} {row['mean']:9.1e} {row['variance']:9.1e} {row['nan']:6d}"
        print(f"{column:38s} {cells}", flush=True)
        known = {"family": "accuracy", "size": f"{name}, T={len(y)}", "dtype": str(dtype)}
        rows.append(known | {"column": column} | row)
    return rows
