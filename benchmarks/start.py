"""From a cold process to a first result: each row is the best of several fresh processes.

* import: the package, from a process that has NumPy.
* first filter: import, build, compile and run a filter (2 states, 1 channel, T = 100).
* associative compile: the first call of an associative filter (4 states, 4 channels, T = 10,000) after the
  back end has started.

No persistent compilation cache is used. What is compared is process CPU time.
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import subprocess
import sys
from typing import NamedTuple

from benchmarks.harness import HERE, Options, compare, print_table, store

PROGRAM = """
import json, os, sys, time
begin = time.process_time(), time.perf_counter()
os.environ.update(JAX_ENABLE_X64="1", JAX_PLATFORMS="cpu")
import numpy as np
{imports}
imported = time.process_time(), time.perf_counter()
y = np.cumsum(np.random.default_rng(0).normal(size=({length}, {channels})), 0)
F, Q = np.array([[1.0, 1.0], [0.0, 0.9]]), np.diag([0.1, 0.05])
H, R = np.array([[1.0, 0.0]]), np.eye(1)
{body}
run()
first = time.process_time(), time.perf_counter()
run()
second = time.process_time(), time.perf_counter()
print(json.dumps([begin, imported, first, second, len(sys.modules)]))
"""

ASSOCIATIVE = """
rng = np.random.default_rng(0)
F, Q, R = 0.97 * np.linalg.qr(rng.normal(size=(4, 4)))[0], 0.1 * np.eye(4), np.eye(4)
H = rng.normal(size=(4, 4))
jnp.ones(3).block_until_ready()
begin = time.process_time(), time.perf_counter()
"""


class Program(NamedTuple):
    """What a user types before the first result."""

    name: str
    imports: str
    body: str
    kind: str = "peer"
    needs: str | None = None


JAX = "import jax, jax.numpy as jnp"
OURS = """
def filtered(y):
    model = ss.Model(
        ss.Gaussian(jnp.zeros({n}), jnp.eye({n})),
        ss.AffineGaussian(jnp.asarray(F), covariance=jnp.asarray(Q)),
        ss.AffineGaussian(jnp.asarray(H), covariance=jnp.asarray(R)),
    )
    return ss.filter(model, y, method=ss.Kalman({method}))
"""
OURS_JITTED = """
f, series = jax.jit(lambda s: (lambda p: (p.log_likelihood, p.mean, p.covariance))(filtered(s))), ss.Series(y)
run = lambda: jax.block_until_ready(f(series))
"""
OURS_VERB = "run = lambda: jax.block_until_ready(filtered(y).mean)"
DYNAMAX = """
p = make_lgssm_params(jnp.zeros({n}), jnp.eye({n}), *map(jnp.asarray, (F, Q, H, R)))
f = jax.jit(lambda p, y: lgssm_filter(p, y))
run = lambda: jax.block_until_ready(f(p, jnp.asarray(y)))
"""
CUTHBERT = """
F, Q, H, R = map(jnp.asarray, (F, Q, H, R))
built = kalman.build_filter(
    jnp.zeros({n}), jnp.eye({n}),
    lambda _: (F, jnp.zeros({n}), jnp.sqrt(Q)), lambda y: (H, jnp.zeros({m}), R, y),
)
f = jax.jit(lambda y: run_filter(built, y, built.init_prepare(), parallel={parallel}))
run = lambda: jax.block_until_ready(f(jnp.asarray(y)))
"""
STATSMODELS = """
k = KalmanSmoother(k_endog=1, k_states=2, k_posdef=2)
k.bind(y)
k["design"], k["transition"], k["selection"] = H, F, np.eye(2)
k["state_cov"], k["obs_cov"] = Q, R
k.initialize_known(np.zeros(2), np.eye(2))
run = k.filter
"""
FILTERPY = """
k = KalmanFilter(2, 1)
k.F, k.H, k.Q, k.R = F, H, Q, R
run = lambda: k.batch_filter(y[:, :, None])
"""
SIMDKALMAN = """
k = simdkalman.KalmanFilter(F, Q, H, R)
run = lambda: k.compute(y[None], 0, filtered=True, initial_value=np.zeros(2), initial_covariance=np.eye(2))
"""
_DYNAMAX = f"{JAX}\nfrom dynamax.linear_gaussian_ssm.{{}} import lgssm_filter\n"
_DYNAMAX += "from dynamax.linear_gaussian_ssm.inference import make_lgssm_params"
_CUTHBERT = (
    f"{JAX}\nfrom cuthbert.gaussian import kalman\nfrom cuthbert import filter as run_filter"
)
_STATSMODELS = "from statsmodels.tsa.statespace.kalman_smoother import KalmanSmoother"
_FUSED = f"{JAX}, statespace as ss\nss.config.cpu_fused_loops()"

ones = "run = lambda: jnp.ones(3).block_until_ready()"
ours, small = OURS.format(n=2, method=""), {"n": 2, "m": 1}
FIRST = (
    Program("jax alone", JAX, ones, "reference", "jax"),
    Program("statespace", f"{JAX}, statespace as ss", ours + OURS_JITTED, "ours"),
    Program("statespace [fused loops]", _FUSED, ours + OURS_JITTED, "ours"),
    Program("statespace (verb, no jit)", f"{JAX}, statespace as ss", ours + OURS_VERB, "ours"),
    Program("dynamax", _DYNAMAX.format("inference"), DYNAMAX.format(**small), needs="dynamax"),
    Program("cuthbert", _CUTHBERT, CUTHBERT.format(**small, parallel=False), needs="cuthbert"),
    Program("statsmodels", _STATSMODELS, STATSMODELS, needs="statsmodels"),
    Program(
        "pykalman",
        "from pykalman import KalmanFilter",
        "run = lambda: KalmanFilter(F, H, Q, R).filter(y)",
        needs="pykalman",
    ),
    Program("filterpy", "from filterpy.kalman import KalmanFilter", FILTERPY, needs="filterpy"),
    Program("simdkalman", "import simdkalman", SIMDKALMAN, needs="simdkalman"),
)
large = {"n": 4, "m": 4}
parallel = OURS.format(n=4, method="parallel=True") + OURS_JITTED
COMPILE = (
    Program("statespace (associative)", f"{JAX}, statespace as ss", ASSOCIATIVE + parallel, "ours"),
    Program(
        "dynamax associative",
        _DYNAMAX.format("parallel_inference"),
        ASSOCIATIVE + DYNAMAX.format(**large),
        needs="dynamax",
    ),
    Program(
        "cuthbert associative",
        _CUTHBERT,
        ASSOCIATIVE + CUTHBERT.format(**large, parallel=True),
        needs="cuthbert",
    ),
)


def run(options: Options) -> None:
    repeats = 2 if options.quick else 4
    first = [_row(program, 100, 1, repeats, options) for program in FIRST]
    _show("import", "import", [row for row in first if row], options)
    _show("first filter", "first", [row for row in first if row], options)
    chosen = COMPILE[:1] if options.quick else COMPILE
    rows = [
        _row(program, 10_000, 4, 2 if i == 0 else 1, options) for i, program in enumerate(chosen)
    ]
    _show("associative compile, 4x4 T=10000", "compile", [row for row in rows if row], options)


def _row(
    program: Program, length: int, channels: int, repeats: int, options: Options
) -> dict | None:
    """The minima over fresh processes; the first is not counted, as it warms the disk's cache."""
    if options.only and not any(part in program.name for part in options.only):
        return None
    if program.needs and importlib.util.find_spec(program.needs) is None:
        print(f"start: left out, not installed: {program.needs}")
        return None
    text = PROGRAM.format(
        imports=program.imports, body=program.body, length=length, channels=channels
    )
    runs = []
    for i in range(repeats + (repeats > 1)):
        done = subprocess.run(
            [sys.executable, "-c", text], capture_output=True, text=True, cwd=HERE.parent
        )
        if done.returncode:
            last = done.stderr.strip().splitlines()[-1:]
            print(f"   ({program.name}: FAILED {last})", flush=True)
            return None
        if i or repeats == 1:
            runs.append(json.loads(done.stdout.splitlines()[-1]))
    return {"column": program.name, "kind": program.kind, "runs": runs}


def _show(op: str, what: str, measured: list[dict], options: Options) -> None:
    """One table of one part of what the processes reported."""
    if options.ops and not any(part in op for part in options.ops):
        return
    begin, end = {"import": (0, 1), "first": (0, 2), "compile": (0, 2)}[what]
    rows = []
    for row in measured:
        cpu, wall = ([r[end][i] - r[begin][i] for r in row["runs"]] for i in (0, 1))
        rows.append(
            {
                "family": "start",
                "op": op,
                "size": "",
                "column": row["column"],
                "kind": row["kind"],
                "value": math.nan,
                "key": min(cpu),
                "cpu_min": min(cpu),
                "cpu_median": sorted(cpu)[len(cpu) // 2],
                "wall_min": min(wall),
                "wall_median": sorted(wall)[len(wall) // 2],
                "compile": math.nan,
                "second": min(r[3][0] - r[2][0] for r in row["runs"]),
                "modules": row["runs"][0][4],
                "recompilations": 0,
                "repeats": len(cpu),
                "load": os.getloadavg()[0],
                "core": options.core,
                "platform": "cpu",
                "dtype": "float64",
            }
        )
    if rows:
        compare(rows)
        print_table(f"start | {op}", rows)
        if options.save:
            store("start", rows, options)
