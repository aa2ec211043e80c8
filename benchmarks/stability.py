"""Stability in float32: 100 runs of bearings of a turning target, T up to 8,000 moments.

The published setting (Yaghoobi, Corenflos, Hassan & Särkkä 2022): two sensors, a wrong first guess of the
state, and 20 iterations; but angles are angles. Taken for plain numbers, as published, they lead the extended
filter to positions of 1e18 in 6 to 8 runs of 100, where float32 ends in either form. A run fails where the
log likelihood or a smoothed state is not finite, where a smoothed covariance is not positive semi-definite
but for rounding, or where positions are on average farther than 0.1 from those of the same method in float64,
square-root form.
Published failures (log likelihoods that are NaN, associative scans on a GPU): iterated cubature in covariance
form 19 % at T = 80 and 100 % from T = 100 on, in square-root form 0 to 2 %; iterated extended 0 to 2 %, 0 %.
With ``--extra`` also the associative scans.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import statespace as ss
from benchmarks.harness import Options, store
from statespace.linearisation import Cubature
from statespace.methods.gaussian_checks import definite

LENGTHS = (80, 100, 500, 2000, 8000)
QUICK = (100,)
RUNS = 100
FAR = 0.1  # mean distance from the positions in float64; the object moves about 1 in a unit of time


def model(dtype: Any = jnp.float32) -> ss.CoordinatedTurn:
    """The published model and its wrong first guess; they turn clockwise where the rate is positive."""
    number = lambda x: jnp.asarray(x, dtype)
    return ss.CoordinatedTurn(
        acceleration_scale=number(0.1),
        noise_scale=number(0.5),
        initial_mean=number([-4.0, -1.0, 2.0, 7.0, -3.0]),
        initial_scale=number(np.ones(5)),
        sensors=number([[-1.5, 0.5], [1.0, 1.0]]),
        turn_scale=number(np.sqrt(0.1)),
    )


def recordings(runs: int, length: int) -> np.ndarray:
    """Angles ``(runs, length + 1, 2)``; the first guess is of a moment before the first of them."""
    data = ss.datasets.load("bearings_only")
    angles = data.to_numpy().reshape(RUNS, -1, 2)[:runs, :length]
    return np.pad(angles, ((0, 0), (1, 0), (0, 0)), constant_values=np.nan)


def methods(form: str, parallel: bool = False) -> dict[str, Any]:
    """The four methods in a form."""
    how: Any = {"form": form, "parallel": parallel}
    return {
        "extended": ss.ExtendedKalman(**how),
        "cubature": ss.SigmaPointKalman(**how),
        "iterated extended": ss.IteratedSmoother(iterations=20, **how),
        "iterated cubature": ss.IteratedSmoother(linearisation=Cubature(), iterations=20, **how),
    }


class Smoothed(NamedTuple):
    """What is kept of each run: log likelihood, positions, and whether all is finite and definite."""

    log_likelihood: np.ndarray
    position: np.ndarray
    finite: np.ndarray
    definite: np.ndarray


def smoothed(method: Any, dtype: Any, angles: np.ndarray) -> Smoothed:
    """All runs at once."""
    turning = model(dtype)
    times = jnp.arange(angles.shape[1], dtype=dtype) * jnp.asarray(0.01, dtype)

    @jax.jit
    def run(angles: jax.Array) -> tuple:
        def one(y: jax.Array) -> tuple:
            series = ss.Series(y, times=times)
            found = method.posterior(turning, series, "smoothed")
            return found.log_likelihood, found.mean, found.covariance

        return jax.vmap(one)(angles)

    value, mean, covariance = (np.asarray(a) for a in run(jnp.asarray(angles, dtype)))
    every = (value[:, None, None], mean, covariance.reshape(*covariance.shape[:2], -1))
    finite = np.all([np.isfinite(a).all(axis=(1, 2)) for a in every], axis=0)
    fine = np.array([ok and definite(p) for ok, p in zip(finite, covariance, strict=True)])
    return Smoothed(value, mean[..., :2], finite, fine)


def failures(found: Smoothed, reference: Smoothed) -> dict[str, float]:
    """Percentages of the runs that fail, by how."""
    away = np.linalg.norm(found.position - reference.position, axis=-1).mean(axis=1)
    far = found.finite & (away > FAR)
    return {
        "not finite": 100 * float(np.mean(~found.finite)),
        "not definite": 100 * float(np.mean(found.finite & ~found.definite)),
        "far off": 100 * float(np.mean(far)),
        "any": 100 * float(np.mean(~found.finite | ~found.definite | far)),
    }


def measured(options: Options) -> Iterator[dict]:
    """A row for each length, method and form."""
    lengths = options.lengths or (QUICK if options.quick else LENGTHS)
    runs = 10 if options.quick else RUNS
    for length in lengths:
        angles = recordings(runs, length)
        for name, best in methods("sqrt").items():
            if options.only and not any(part in name for part in options.only):
                continue
            reference = smoothed(best, jnp.float64, angles)
            for parallel in (False, True) if options.extra else (False,):
                for form in ("covariance", "sqrt"):
                    found = smoothed(methods(form, parallel)[name], jnp.float32, angles)
                    scan = "associative" if parallel else "sequential"
                    case = {"T": length, "method": name, "form": form, "scan": scan, "runs": runs}
                    yield case | failures(found, reference)


def run(options: Options) -> None:
    """Print a line for each case, and store it."""
    print("== stability | float32, percentage of runs that fail")
    print(f"{'':48s}{'not finite':>12s}{'not definite':>14s}{'far off':>10s}{'any':>8s}")
    rows = []
    for row in measured(options):
        name = f"T={row['T']:<6d}{row['method']}, {row['form']}, {row['scan']}"
        numbers = [row[k] for k in ("not finite", "not definite", "far off", "any")]
        print(f"{name:48s}" + "".join(f"{x:>{w}.0f}" for x, w in zip(numbers, (12, 14, 10, 8))))
        rows.append(row)
    if options.save:
        store("stability", rows, options)
