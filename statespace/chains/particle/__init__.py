"""Particle recursions: propagate, weigh, resample. Arrays and pure functions only."""

from statespace.chains.particle.differentiable import (
    Soft,
    StopGradient,
    Transport,
    fisher,
)
from statespace.chains.particle.recursion import history, keys, run, take
from statespace.chains.particle.resampling import SCHEMES, Resampling, resampling_named
from statespace.chains.particle.types import (
    Chain,
    Cloud,
    Observer,
    Particles,
    Passage,
    Random,
    Run,
)
from statespace.chains.particle.variance import eves, filter_variance, relative_variance

__all__ = [
    "SCHEMES",
    "Chain",
    "Cloud",
    "Observer",
    "Particles",
    "Passage",
    "Random",
    "Resampling",
    "Run",
    "Soft",
    "StopGradient",
    "Transport",
    "eves",
    "filter_variance",
    "fisher",
    "history",
    "keys",
    "relative_variance",
    "resampling_named",
    "run",
    "take",
]
