"""Ensembles on Lorenz' model of 1996: errors of the analysis and of the smoothed states over several truths.

Forty variables, forcing 8, all observed with unit noise every 0.05, no noise of the states: the setting in
which ensemble filters are compared since Whitaker & Hamill (2002). Truths differ by the seed; each begins on
the attractor, and each ensemble about the mean of the attractor with its spread, which it has to forget in
the first cycles. All errors are per variable, over the cycles between the first hundred and the last twenty,
where a smoother has little to add.
"""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

import statespace as ss
from benchmarks.harness import Options, store

CYCLES, SPIN_UP, LAST = 600, 100, 20
INTERVAL = 0.05
PLACES = np.arange(40)
GOAL = 0.25  # of the analysis, localised


def methods(quick: bool) -> dict[str, ss.EnsembleKalman]:
    """One setting of localisation and inflation for all that are localised, and what there is without."""
    near: dict[str, Any] = {
        "localisation": ss.Localisation(6.0, states=PLACES, observations=PLACES, period=40.0),
        "inflation": 1.02,
    }
    made = {
        "transform, localised, 20": ss.EnsembleKalman(20, **near),
        "transform, localised, 40": ss.EnsembleKalman(40, **near),
        "stochastic, localised, 40": ss.EnsembleKalman(40, "stochastic", **near),
        "transform, 40": ss.EnsembleKalman(40, inflation=1.06),
        "transform, 20": ss.EnsembleKalman(20, inflation=1.06),
    }
    return dict(list(made.items())[:1]) if quick else made


def truth(seed: int) -> tuple[np.ndarray, ss.Series]:
    """A path on the attractor, and its observations."""
    begin = ss.simulate(
        ss.Lorenz96(scale=0.0),
        400,
        key=jax.random.key(seed),
        times=INTERVAL * np.arange(400),
    ).states[-1]
    times = INTERVAL * np.arange(CYCLES)
    path = ss.simulate(
        ss.Lorenz96(scale=0.0),
        CYCLES,
        key=jax.random.key(1_000 + seed),
        times=times,
        initial_state=begin,
    )
    return np.asarray(path.states), ss.Series(path.y, times=times)


def scores(method: ss.EnsembleKalman, seed: int) -> dict[str, float]:
    """Root mean squares of the errors, and of the analysis' spread."""
    states, data = truth(seed)
    rows = slice(SPIN_UP, CYCLES - LAST)
    size = lambda x: float(np.sqrt(np.mean(np.asarray(x)[rows] ** 2)))
    model, key = ss.Lorenz96(scale=0.0), jax.random.key(2_000 + seed)
    analysis = ss.filter(model, data, method=method, key=key)
    smoothed = ss.smooth(model, data, method=method, key=key)
    return {
        "analysis": size(analysis.mean - states),
        "spread": size(analysis.std),
        "smoothed": size(smoothed.mean - states),
    }


def run(options: Options) -> None:
    seeds = range(2 if options.quick else options.seeds)
    print(f"\n== assimilation | Lorenz-96, {len(seeds)} truths: RMSE, mean ± s.d. (worst)")
    rows = []
    for name, method in methods(options.quick).items():
        every = [scores(method, seed) for seed in seeds]
        found = {part: np.array([one[part] for one in every]) for part in every[0]}
        shown = [
            f"{part} {x.mean():.3f} ± {x.std(ddof=1):.3f} ({x.max():.3f})"
            for part, x in found.items()
        ]
        met = ""
        if method.localisation is not None:
            met = f"   goal {'yes' if found['analysis'].mean() <= GOAL else 'NO'}"
        print(f"{name:28s}{'   '.join(shown)}{met}", flush=True)
        rows.append({"method": name} | {part: x.tolist() for part, x in found.items()})
    if options.save:
        store("assimilation", rows, options)
