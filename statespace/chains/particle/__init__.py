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
    "fisher",
    "history",
    "keys",
    "resampling_named",
    "run",
    "take",
]
