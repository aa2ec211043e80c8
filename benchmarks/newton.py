"""Parallel Newton against the scan: a recurrent network of eight tanh units under white inputs.

* iterations: what ``parallel_newton`` needs to a change of 1e-7 over 1,000 moments, by the gain.
  After 300 it gives up and runs the scan. A table, not a time.
* time: of a contracting network (gain 0.5) over its length, against ``lax.scan``. With ``--platform gpu``
  wall time is compared.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import statespace as ss
from benchmarks.harness import Call, Options, Suite, store

UNITS, STEPS, MOST = 8, 1_000, 300
GAINS = (0.5, 1.0, 1.5, 2.5, 4.0)
LENGTHS = (1_000, 10_000, 100_000)
CONTRACTING = 0.5
KINDS = {"full": {}, "diagonal": {"jacobian": "diagonal"}, "damped": {"damping": 1e-3}}

suite = Suite("newton", ops=("time",))


class Problem:
    """A network and its inputs."""

    def __init__(self, gain: float, length: int):
        self.gain, self.length = gain, length
        rng = np.random.default_rng(0)
        self.weights = jnp.asarray(rng.normal(size=(UNITS, UNITS)) / np.sqrt(UNITS))
        self.inputs = jnp.asarray(rng.normal(size=(length, UNITS)))
        self.start = jnp.zeros(UNITS)

    @cached_property
    def label(self) -> str:
        return f"gain {self.gain:g} T={self.length}"

    @cached_property
    def facts(self) -> dict[str, Any]:
        return {"n": UNITS, "T": self.length, "gain": self.gain, "dtype": "float64"}

    def move(self, x: Any, u: Any) -> Any:
        return jnp.tanh(self.gain * (self.weights @ x) + u)

    def scan(self, inputs: Any) -> Any:
        return jax.lax.scan(lambda x, u: (self.move(x, u),) * 2, self.start, inputs)[1]

    def newton(self, inputs: Any, **settings: Any) -> Any:
        return ss.parallel_newton(self.move, self.start, inputs, **settings)


def run(options: Options) -> None:
    if not options.ops or "iterations" in options.ops:
        iterations(options)
    lengths = options.lengths or (LENGTHS[:1] if options.quick else LENGTHS)
    if not options.ops or "time" in options.ops:
        suite.run((Problem(CONTRACTING, t) for t in lengths), options)


def iterations(options: Options) -> None:
    """Print and store how many iterations each gain needs, and how far the result is from the scan."""
    print(f"\n== newton | iterations over {STEPS} moments (error against the scan)")
    print(f"{'gain':>8s}" + "".join(f"{kind:>22s}" for kind in KINDS))
    for gain in GAINS:
        problem, rows = Problem(gain, STEPS), []
        exact = problem.scan(problem.inputs)
        for kind, settings in KINDS.items():
            got = problem.newton(problem.inputs, iterations=MOST, tolerance=1e-7, **settings)
            error = float(jnp.max(jnp.abs(got.states - exact)))
            known = {"family": "newton", "op": "iterations", "size": problem.label, "column": kind}
            counts = {"iterations": int(got.iterations), "sequential": bool(got.sequential)}
            rows.append(known | {"error": error} | counts | problem.facts)
        cells = (
            f"{'> ' if r['sequential'] else ''}{r['iterations']} ({r['error']:.0e})" for r in rows
        )
        print(f"{gain:8g}" + "".join(f"{cell:>22s}" for cell in cells), flush=True)
        if options.save:
            store("newton", rows, options)


def timed(problem: Problem, f: Callable[[Any], Any]) -> Call:
    run = jax.jit(f)
    return Call(lambda: run(problem.inputs), lambda states: float(jnp.sum(jnp.abs(states))))


@suite.column("scan")
def scan(problem: Problem, op: str) -> Call:
    return timed(problem, problem.scan)


@suite.column("statespace (full)", kind="ours")
def full(problem: Problem, op: str) -> Call:
    return timed(problem, lambda inputs: problem.newton(inputs).states)


@suite.column("statespace (diagonal)", kind="ours")
def diagonal(problem: Problem, op: str) -> Call:
    return timed(problem, lambda inputs: problem.newton(inputs, jacobian="diagonal").states)
