"""Pictures of particle runs: how many particles count, and how many lineages are left."""

from __future__ import annotations

from typing import Any

import numpy as np

from statespace import canvas
from statespace.canvas import ACCENT, FAINT, MAIN
from statespace.particle_diagnostics import pareto_k, unique_ancestors


def particles(posterior: Any, *, axes: Any = None) -> Any:
    """Three panels over time: effective sample size, lineages that are left, Pareto k of the weights.

    Moments at which ancestors were drawn are marked below the first. A lineage that is left leads to one of
    the last particles. Dashed: k = 0.7, above which means over the weights cannot be trusted.

    Args:
        posterior: of ``filter`` with a particle method.
        axes: three Axes; default: new ones.

    Returns:
        An array of Axes.

    Raises:
        ImportError: if matplotlib is not installed.
        TypeError: if it is no posterior by particles.
        ValueError: if it holds no ancestors, or ``axes`` are too few.

    Example:
        >>> ss.plot.particles(ss.filter(model, y, method=ss.ParticleFilter(), key=key))
    """
    unique, shapes = unique_ancestors(posterior), pareto_k(posterior.log_weights)
    count = posterior.log_weights.shape[1]
    made = canvas.panels(3, axes, height=1.9)
    x = canvas.positions(posterior.times, posterior.labels)
    drawn = np.asarray(posterior.resampled)
    made[0].plot(x, posterior.ess, color=MAIN, lw=1.2)
    made[0].plot(x[drawn], np.zeros(drawn.sum()), "|", color=ACCENT, ms=6, label="drawn anew")
    made[0].set_ylim(-0.05 * count, 1.05 * count)
    made[1].plot(x, unique, color=MAIN, lw=1.2)
    made[1].set_yscale("log")
    finite = np.where(np.isfinite(shapes), shapes, np.nan)
    made[2].plot(x, finite, "o", color=MAIN, ms=2.6, mew=0)
    made[2].axhline(0.7, color=FAINT, lw=1, ls="--")
    names = ("effective\nsample size", "lineages left", "Pareto k")
    for ax, name in zip(made, names):
        canvas.dress(ax, posterior.labels, name)
    return canvas.finish(made, axes)


def update_rates(result: Any, *, axes: Any = None) -> Any:
    """In which share of the sweeps of particle Gibbs the state of each moment was drawn anew.

    Near 0 at early moments the path sticks: use more particles, or ancestor or backward sampling.

    Args:
        result: what ``expect`` gives with a particle Gibbs method, or the rates themselves, shape ``(T,)``.
        axes: one Axes; default: a new one.

    Returns:
        The Axes.

    Raises:
        ImportError: if matplotlib is not installed.
        ValueError: if there are no update rates.
    """
    rates = getattr(result, "update_rates", result)
    if rates is None or np.ndim(rates) != 1:
        raise ValueError(
            "there are no update rates: use `expect` with ParticleGibbs() or ParisianParticleGibbs()."
        )
    made = canvas.panels(1, axes, height=2.4)
    made[0].plot(np.arange(len(rates)), rates, color=MAIN, lw=1.2)
    made[0].set(ylim=(0, 1.02))
    canvas.dress(made[0], None, "share of sweeps")
    made[0].set_xlabel("moment")
    return made[0]
