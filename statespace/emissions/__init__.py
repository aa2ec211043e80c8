"""Emissions: laws of the observation in each of finitely many states.

An emission holds its parameters with a leading axis of states, gives the log densities of all observations in
all states at once, and its own M-step. Any other callable ``(state, step) -> Distribution`` is a valid
observation of a finite-state model as well.
"""

from statespace.emissions.additive import AdditiveGaussian, AdditivePoisson
from statespace.emissions.autoregressive import Autoregressive
from statespace.emissions.base import Emission
from statespace.emissions.basis import Basis, Exponential, RaisedCosine
from statespace.emissions.counts import Bernoulli, Categorical, NegativeBinomial, Poisson
from statespace.emissions.gaussian import Gaussian, StudentT
from statespace.emissions.glm import GLM
from statespace.emissions.mixture import Mixture
from statespace.emissions.wrapped import Distribution

__all__ = [
    "GLM",
    "AdditiveGaussian",
    "AdditivePoisson",
    "Autoregressive",
    "Basis",
    "Bernoulli",
    "Categorical",
    "Distribution",
    "Emission",
    "Exponential",
    "Gaussian",
    "Mixture",
    "NegativeBinomial",
    "Poisson",
    "RaisedCosine",
    "StudentT",
]
