"""Bootstrap particle filters: the log likelihood of 1,000 moments.

* sv: stochastic volatility, one state. cv: position and velocity in the plane, four states; its exact value
  comes from a Kalman filter.
* Every column resamples systematically at every moment, so that all do the same work; "adaptive" is the
  default of the library, which resamples when the effective sample size falls below half.

The values differ by Monte Carlo error. ops: loglik (one run); batch (1,000 runs with 100 particles over the
first 100 moments, in one call).
"""

from __future__ import annotations

import ctypes
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import statespace as ss
from benchmarks.compiled import contiguous, library, pointer
from benchmarks.harness import Call, Options, Skip, Suite

LENGTH, SIZES = 1_000, (100, 1_000, 10_000)
BATCH, SHORT = 1_000, 100
MEAN, PERSISTENCE, SCALE = -1.02, 0.9702, 0.178
DT, MOVE, NOISE = 0.1, 0.1, 0.5
F = np.eye(4) + DT * np.eye(4, k=2)

suite = Suite("particles", ops=("loglik", "batch"))


class Problem:
    """A series drawn from one of the models."""

    def __init__(self, name: str, size: int, length: int):
        self.name, self.size, self.length = name, size, length
        rng = np.random.default_rng(0)
        if name == "sv":
            x, self.y = MEAN, np.empty((length, 1))
            for t in range(length):
                x = MEAN + PERSISTENCE * (x - MEAN) + SCALE * rng.normal()
                self.y[t] = np.exp(x / 2) * rng.normal()
        else:
            state, self.y = rng.normal(size=4), np.empty((length, 2))
            for t in range(length):
                state = F @ state + MOVE * rng.normal(size=4)
                self.y[t] = state[:2] + NOISE * rng.normal(size=2)
        self.seeds = itertools.count()

    @property
    def label(self) -> str:
        return f"{self.name} N={self.size} T={self.length}"

    @property
    def facts(self) -> dict[str, Any]:
        states = 1 if self.name == "sv" else 4
        return {"n": states, "N": self.size, "T": self.length, "dtype": "float64"}

    def model(self) -> Any:
        if self.name == "sv":
            return ss.StochasticVolatility(mean=MEAN, persistence=PERSISTENCE, scale=SCALE)
        return ss.LinearGaussian(
            transition_matrix=F,
            transition_scale=MOVE * np.eye(4),
            transition_offset=np.zeros(4),
            observation_matrix=np.eye(2, 4),
            observation_scale=NOISE * np.eye(2),
            observation_offset=np.zeros(2),
            initial_mean=np.zeros(4),
            initial_scale=np.linalg.cholesky(F @ F.T + MOVE**2 * np.eye(4)),
        )


def run(options: Options) -> None:
    sizes = SIZES[:2] if options.quick else SIZES
    lengths = options.lengths or (LENGTH,)
    problems = [Problem(name, n, t) for name in ("sv", "cv") for n in sizes for t in lengths]
    suite.run(problems, options)


# Ours


def ours(problem: Problem, op: str, threshold: float) -> Call | None:
    model, length = problem.model(), problem.length if op == "loglik" else SHORT
    method = ss.ParticleFilter(particles=problem.size, threshold=threshold)
    series = ss.Series(problem.y[:length])
    one = lambda key: ss.log_likelihood(model, series, method=method, key=key)
    if op == "loglik":
        return Call(lambda: one(jax.random.key(next(problem.seeds))), float)
    if problem.size != SIZES[0]:
        return None
    many = jax.jit(jax.vmap(one))
    keys = lambda: jax.random.split(jax.random.key(next(problem.seeds)), BATCH)
    return Call(lambda: many(keys()), lambda values: float(jnp.mean(values)))


@suite.column("statespace", kind="ours")
def statespace(problem: Problem, op: str) -> Call | None:
    return ours(problem, op, 1.0)


@suite.column("statespace (adaptive)", kind="ours")
def statespace_adaptive(problem: Problem, op: str) -> Call | None:
    return ours(problem, op, 0.5)


# The limit


@suite.column("C minimal", kind="bound")
def c_minimal(problem: Problem, op: str) -> Call:
    lib = library("particles")
    function = getattr(lib, f"particles_{problem.name}")
    function.restype = ctypes.c_double
    length, runs = (problem.length, 1) if op == "loglik" else (SHORT, BATCH)
    if op == "batch" and problem.size != SIZES[0]:
        raise Skip("measured with few particles")
    (y,) = contiguous(problem.y)
    parameters = (MEAN, PERSISTENCE, SCALE) if problem.name == "sv" else (DT, MOVE, NOISE)
    numbers = tuple(map(ctypes.c_double, parameters))

    def one() -> float:
        seed = ctypes.c_uint64(next(problem.seeds))
        return function(ctypes.c_long(length), problem.size, pointer(y), *numbers, seed)

    return Call(lambda keep=y: np.mean([one() for _ in range(runs)]), float)


# Peers


@suite.column("particles", needs="particles")
def particles(problem: Problem, op: str) -> Call | None:
    import particles
    from particles import distributions as dists
    from particles import state_space_models as ssm

    if op != "loglik":
        return None

    class Tracking(ssm.StateSpaceModel):
        def PX0(self):
            return dists.MvNormal(cov=F @ F.T + MOVE**2 * np.eye(4))

        def PX(self, t, xp):
            return dists.MvNormal(loc=xp @ F.T, cov=MOVE**2 * np.eye(4))

        def PY(self, t, xp, x):
            return dists.MvNormal(loc=x[:, :2], cov=NOISE**2 * np.eye(2))

    volatility = ssm.StochVol(mu=MEAN, rho=PERSISTENCE, sigma=SCALE)
    model = volatility if problem.name == "sv" else Tracking()
    data = problem.y[:, 0] if problem.name == "sv" else problem.y
    feynman_kac = ssm.Bootstrap(ssm=model, data=data)

    def run() -> float:
        smc = particles.SMC(
            fk=feynman_kac, N=problem.size, resampling="systematic", ESSrmin=1.0, collect="off"
        )
        smc.run()
        return smc.logLt

    return Call(run, float)


@suite.column("cuthbert", needs="cuthbert")
def cuthbert(problem: Problem, op: str) -> Call | None:
    from cuthbert import filter as run_filter
    from cuthbert.smc import particle_filter
    from cuthbertlib.resampling import systematic

    if op != "loglik":
        return None
    normal, half = jax.random.normal, 0.5 * float(np.log(2 * np.pi))
    # its filter begins with a state before the first observation
    if problem.name == "sv":
        first = SCALE / np.sqrt(1 - PERSISTENCE**2)
        start = lambda key: MEAN + first * normal(key)
        move = lambda key, x, y: MEAN + PERSISTENCE * (x - MEAN) + SCALE * normal(key)
        weigh = lambda before, x, y: -0.5 * (x + y[0] ** 2 * jnp.exp(-x)) - half
    else:
        matrix = jnp.asarray(F)
        start = lambda key: normal(key, (4,))
        move = lambda key, x, y: matrix @ x + MOVE * normal(key, (4,))
        weigh = lambda before, x, y: (
            -0.5 * ((y - x[:2]) ** 2).sum() / NOISE**2 - 2 * half - 2 * np.log(NOISE)
        )
    made = particle_filter.build_filter(start, move, weigh, problem.size, systematic.resampling)

    @jax.jit
    def value(key, y):
        first, rest = jax.random.split(key)
        states = run_filter(made, y, made.init_prepare(key=first), key=rest)
        return states.log_normalizing_constant[-1]

    y = jnp.asarray(problem.y)
    return Call(lambda: value(jax.random.key(next(problem.seeds)), y), float)
