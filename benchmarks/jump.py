"""Rates of a flashing ratchet from panels of sampled paths: errors and seconds.

A particle on three sites, in a potential that is switched on and off: six states, 18 possible jumps among the
30 that are estimated. Paths begin in a state drawn uniformly, last for one unit of time, and are seen at 100
moments, either regular or drawn at random for each path. Shown is the root-mean-square error of the 30
rates. The reference is the foundation inference model for jump processes (Berghaus et al. 2024), as the
notebook that comes with it prints its errors on its own draws of the same process.
"""

from __future__ import annotations

import time
import warnings
from typing import NamedTuple

import jax
import numpy as np

import statespace as ss
from benchmarks.harness import Options, store

POTENTIAL, SWITCH, DIFFUSION = 1.0, 1.0, 1.0
DURATION, MOMENTS = 1.0, 100
REFERENCE = {1: 0.648, 30: 0.330, 100: 0.212, 300: 0.162, 1000: 0.230, 5000: 0.723}
ML, POSTERIOR = "EM, maximum likelihood", "Gibbs, posterior mean"
IRREGULAR = "EM, irregular moments"
GOALS = {(ML, 300): 0.16, (ML, 5000): 0.035, (POSTERIOR, 30): 0.33}
SECONDS = 1.0  # a fit of 300 paths by EM, compiled


class Case(NamedTuple):
    """How many paths, how their rates are found, and how often that is repeated."""

    method: str
    paths: int
    seeds: int


CASES = (
    Case(ML, 30, 20),
    Case(ML, 300, 20),
    Case(IRREGULAR, 300, 5),
    Case(ML, 5000, 5),
    Case(POSTERIOR, 30, 20),
)


def ratchet() -> np.ndarray:
    """Rates: sites 0 to 2 with the potential on, and again with it off."""
    site = np.arange(3)
    rates = np.zeros((6, 6))
    rates[:3, :3] = np.exp(-POTENTIAL / 2 * (site - site[:, None]))
    rates[3:, 3:] = DIFFUSION
    rates[:3, 3:] = rates[3:, :3] = SWITCH * np.eye(3)
    np.fill_diagonal(rates, 0)
    return rates


def panel(paths: int, seed: int, irregular: bool) -> ss.Panel:
    """Paths as they are seen."""
    key, key_times = jax.random.split(jax.random.key(seed))
    drawn = ss.MarkovJumpProcess(ratchet()).sample_paths(DURATION, key=key, paths=paths)
    times = np.broadcast_to(np.linspace(0, DURATION, MOMENTS), (paths, MOMENTS))
    if irregular:
        draws = jax.random.uniform(key_times, times.shape, maxval=DURATION)
        times = np.sort(np.asarray(draws), axis=1)
    states = np.asarray(drawn.at(times)).astype(float)
    return ss.Panel([ss.Series(y, times=t) for y, t in zip(states, times, strict=True)])


def fit(case: Case, data: ss.Panel, seed: int) -> ss.FitResult:
    start = ss.MarkovJumpProcess(np.ones((6, 6)))
    if case.method != POSTERIOR:
        return ss.fit(start, data, learner=ss.EM(progress=False))
    learner = ss.JumpGibbs(warmup=200, samples=1000, chains=2, progress=False)
    priors = {"transition.rates": ss.HierarchicalGamma()}
    return ss.fit(start, data, learner=learner, priors=priors, key=jax.random.key(seed))


def error(model: ss.MarkovJumpProcess) -> float:
    off = ~np.eye(6, dtype=bool)
    return float(np.sqrt(np.mean((np.asarray(model.transition.generator) - ratchet())[off] ** 2)))


def experiment(case: Case, options: Options) -> list[dict]:
    rows = []
    for seed in range(min(case.seeds, 3) if options.quick else case.seeds):
        data = panel(case.paths, seed, case.method == IRREGULAR)
        if not rows:
            fit(case, data, seed)  # compiles
        wall, cpu = time.perf_counter(), time.process_time()
        fitted = fit(case, data, seed)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        known = {"case": case.method, "paths": case.paths, "seed": seed}
        rows.append(known | {"error": error(fitted.model), "wall": wall, "cpu": cpu})
    return rows


def run(options: Options) -> None:
    print("\n== jump | error of 30 rates; seconds of a fit, compiled (least over the seeds)")
    heads = ("paths", "seeds", "mean", "std", "reference", "cpu s", "goal", "met")
    print(f"{'':26s}" + "".join(f"{head:>10s}" for head in heads))
    for case in CASES:
        if options.only and not any(part in case.method for part in options.only):
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ss.ConvergenceWarning)
            rows = experiment(case, options)
        if options.save:
            store("jump", rows, options)
        errors = np.array([row["error"] for row in rows])
        goal = GOALS.get((case.method, case.paths))
        met = "" if goal is None else "yes" if errors.mean() <= goal else "NO"
        least = min(row["cpu"] for row in rows)
        cells = (
            f"{errors.mean():.3f}",
            f"{errors.std(ddof=1):.3f}",
            f"{REFERENCE[case.paths]:.3f}",
        )
        more = (f"{least:.2f}", "" if goal is None else f"{goal:g}", met)
        print(
            f"{case.method:26s}{case.paths:10d}{len(rows):10d}"
            + "".join(f"{c:>10s}" for c in cells + more),
            flush=True,
        )
        if (case.method, case.paths) == (ML, 300):
            print(
                f"goal: a fit of 300 paths <= {SECONDS:g} s: {least:.2f} "
                f"{'yes' if least <= SECONDS else 'NO'}"
            )
