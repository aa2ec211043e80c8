"""statespace: write a state-space model down once, then run every inference method that is valid for it."""

from typing import TYPE_CHECKING, Any

from statespace import (
    config,
    datasets,
    decoding,
    diagnostics,
    durations,
    emissions,
    functionals,
    linearisation,
    plot,
)
from statespace.conditionals.affine import AffineGaussian, Gaussian
from statespace.conditionals.diffusion import LinearDiffusion
from statespace.conditionals.discriminative import Discriminative
from statespace.conditionals.factorial import FactorialKernel
from statespace.conditionals.finite import (
    Categorical,
    FiniteKernel,
    FiniteTransition,
    SoftmaxKernel,
)
from statespace.conditionals.generalised import GeneralisedLinear
from statespace.conditionals.jump import RateMatrix
from statespace.conditionals.recurrent import RecurrentKernel
from statespace.conditionals.semi_markov import SemiMarkovKernel
from statespace.conditionals.switching import RegimeState, Switching
from statespace.decoding.learn import learn_decoder
from statespace.expectation import Expectation, expect
from statespace.forecasts.finite import MixtureForecast
from statespace.forecasts.nongaussian import NonGaussianForecast
from statespace.forecasts.particle import ParticleForecast
from statespace.forecasts.switching import SwitchingForecast
from statespace.functionals import Additive
from statespace.learners.em import EM
from statespace.learners.fit import fit
from statespace.learners.gibbs import Gibbs
from statespace.learners.iterated_filtering import IteratedFiltering
from statespace.learners.jump_gibbs import JumpGibbs
from statespace.learners.marginal_metropolis import ParticleMarginalMetropolis
from statespace.learners.maximum_likelihood import MaximumLikelihood
from statespace.learners.nuts import NUTS
from statespace.learners.one_hot import OneHot, OneHotResult
from statespace.learners.online_maximum_likelihood import OnlineMaximumLikelihood
from statespace.learners.particle_em import ParticleEM
from statespace.learners.particle_gibbs import ParticleGibbsLearner
from statespace.learners.posterior_result import PosteriorResult
from statespace.learners.rate_priors import HierarchicalGamma
from statespace.learners.result import ConvergenceWarning, FitResult
from statespace.learners.score_ascent import ScoreAscent, ScoreClimbing
from statespace.learners.smc2 import SMC2
from statespace.learners.variational_em import VariationalEM
from statespace.localisation import Localisation
from statespace.methods import proposals
from statespace.methods.backward_sampling import BackwardSampling
from statespace.methods.discriminative_kalman import (
    DiscriminativeKalman,
    DiscriminativeOnline,
    DiscriminativePosterior,
)
from statespace.methods.ensemble_kalman import EnsembleKalman
from statespace.methods.fixed_lag import FixedLag
from statespace.methods.forward_backward import ForwardBackward
from statespace.methods.gaussian_sites import ConjugateVI, ExpectationPropagation, Laplace
from statespace.methods.gaussian_sums import GaussianSum, InteractingMultipleModel
from statespace.methods.iterated import IteratedSmoother
from statespace.methods.kalman import Kalman
from statespace.methods.linearising_filters import ExtendedKalman, SigmaPointKalman
from statespace.methods.online_ensemble import EnsembleOnline, EnsembleOnlineState
from statespace.methods.online_finite import FiniteOnline, FiniteOnlineState
from statespace.methods.online_kalman import Online, OnlineState
from statespace.methods.online_mixture import MixtureOnline, MixtureOnlineState
from statespace.methods.online_paris import ParisOnline, ParisOnlineState
from statespace.methods.online_particle import ParticleOnline, ParticleOnlineState
from statespace.methods.online_scale import ScaleOnline, ScaleOnlineState
from statespace.methods.online_switching import SwitchingOnline, SwitchingOnlineState
from statespace.methods.paris import DegenerateStatisticsWarning, PaRIS
from statespace.methods.particle_filter import ParticleFilter, ParticleMethod
from statespace.methods.particle_gibbs import ParisianParticleGibbs, ParticleGibbs, PathPosterior
from statespace.methods.rao_blackwellised import RaoBlackwellised
from statespace.methods.sequential_quasi import SequentialQuasiMonteCarlo
from statespace.methods.structured_variational import StructuredVariational
from statespace.methods.two_filter import TwoFilter
from statespace.methods.unknown_scale import ConjugateScale
from statespace.model import Model, StateSpaceModel, Step
from statespace.models.arima import AR, ARIMA, ARMA
from statespace.models.bearings import BearingsOnly
from statespace.models.components import Contribution
from statespace.models.coordinated_turn import CoordinatedTurn
from statespace.models.dynamic_factor import DynamicFactor
from statespace.models.epidemic import SIR
from statespace.models.factorial import FactorialHMM
from statespace.models.glm_hmm import GLMHMM
from statespace.models.hmm import HMM
from statespace.models.jump import MarkovJumpProcess
from statespace.models.jump_paths import JumpPaths
from statespace.models.linear_gaussian import LinearGaussian
from statespace.models.lorenz import Lorenz63, Lorenz96
from statespace.models.nonlinear_growth import NonlinearGrowth
from statespace.models.pendulum import Pendulum
from statespace.models.poisson_linear import PoissonLinearDynamics
from statespace.models.populations import LotkaVolterra, ThetaLogistic
from statespace.models.recurrent_switching import RecurrentSwitchingLinearGaussian
from statespace.models.regression import Regression
from statespace.models.semi_markov import HiddenSemiMarkov
from statespace.models.spikes import SpikeCounts
from statespace.models.structural import (
    Cycle,
    Irregular,
    LocalLevel,
    LocalLinearTrend,
    Seasonal,
    Structural,
)
from statespace.models.switching import SwitchingLinearGaussian
from statespace.models.tracking import (
    ConstantAcceleration,
    ConstantVelocity,
    IntegratedOrnsteinUhlenbeck,
    OrnsteinUhlenbeck,
)
from statespace.models.volatility import StochasticVolatility
from statespace.panels import PanelPosterior
from statespace.parameters import (
    constant,
    constrain,
    freeze,
    parameter,
    parameters,
    replace,
    supports,
    unconstrain,
)
from statespace.passage import FirstPassage, first_passage
from statespace.posteriors.finite import FinitePosterior
from statespace.posteriors.gaussian import Forecast, GaussianPosterior, Signal
from statespace.posteriors.mixture import MixturePosterior
from statespace.posteriors.particle import ParticlePosterior
from statespace.posteriors.student import StudentForecast, StudentPosterior, StudentSignal
from statespace.posteriors.switching import SwitchingPosterior
from statespace.recurrences import Recurrence, parallel_newton
from statespace.relabelling import relabel
from statespace.scores import Score
from statespace.selection import CrossValidation, compare, cross_validate
from statespace.series import Panel, Series
from statespace.verbs import (
    Simulation,
    filter,
    forecast,
    log_likelihood,
    online,
    sample_states,
    simulate,
    smooth,
)

if TYPE_CHECKING:
    from statespace.conditionals.censored import IntervalCensored
    from statespace.learners.observation_distribution import ObservationDistribution

__version__ = "0.1.0"

__all__ = [
    "AR",
    "ARIMA",
    "ARMA",
    "EM",
    "GLMHMM",
    "HMM",
    "NUTS",
    "SIR",
    "SMC2",
    "Additive",
    "AffineGaussian",
    "BackwardSampling",
    "BearingsOnly",
    "Categorical",
    "ConjugateScale",
    "ConjugateVI",
    "ConstantAcceleration",
    "ConstantVelocity",
    "Contribution",
    "ConvergenceWarning",
    "CoordinatedTurn",
    "CrossValidation",
    "Cycle",
    "DegenerateStatisticsWarning",
    "Discriminative",
    "DiscriminativeKalman",
    "DiscriminativeOnline",
    "DiscriminativePosterior",
    "DynamicFactor",
    "EnsembleKalman",
    "EnsembleOnline",
    "EnsembleOnlineState",
    "Expectation",
    "ExpectationPropagation",
    "ExtendedKalman",
    "FactorialHMM",
    "FactorialKernel",
    "FiniteKernel",
    "FiniteOnline",
    "FiniteOnlineState",
    "FinitePosterior",
    "FiniteTransition",
    "FirstPassage",
    "FitResult",
    "FixedLag",
    "Forecast",
    "ForwardBackward",
    "Gaussian",
    "GaussianPosterior",
    "GaussianSum",
    "GeneralisedLinear",
    "Gibbs",
    "HiddenSemiMarkov",
    "HierarchicalGamma",
    "IntegratedOrnsteinUhlenbeck",
    "InteractingMultipleModel",
    "IntervalCensored",
    "Irregular",
    "IteratedFiltering",
    "IteratedSmoother",
    "JumpGibbs",
    "JumpPaths",
    "Kalman",
    "Laplace",
    "LinearDiffusion",
    "LinearGaussian",
    "LocalLevel",
    "LocalLinearTrend",
    "Localisation",
    "Lorenz63",
    "Lorenz96",
    "LotkaVolterra",
    "MarkovJumpProcess",
    "MaximumLikelihood",
    "MixtureForecast",
    "MixtureOnline",
    "MixtureOnlineState",
    "MixturePosterior",
    "Model",
    "NonGaussianForecast",
    "NonlinearGrowth",
    "ObservationDistribution",
    "OneHot",
    "OneHotResult",
    "Online",
    "OnlineMaximumLikelihood",
    "OnlineState",
    "OrnsteinUhlenbeck",
    "PaRIS",
    "Panel",
    "PanelPosterior",
    "ParisOnline",
    "ParisOnlineState",
    "ParisianParticleGibbs",
    "ParticleEM",
    "ParticleFilter",
    "ParticleForecast",
    "ParticleGibbs",
    "ParticleGibbsLearner",
    "ParticleMarginalMetropolis",
    "ParticleMethod",
    "ParticleOnline",
    "ParticleOnlineState",
    "ParticlePosterior",
    "PathPosterior",
    "Pendulum",
    "PoissonLinearDynamics",
    "PosteriorResult",
    "RaoBlackwellised",
    "RateMatrix",
    "Recurrence",
    "RecurrentKernel",
    "RecurrentSwitchingLinearGaussian",
    "RegimeState",
    "Regression",
    "ScaleOnline",
    "ScaleOnlineState",
    "Score",
    "ScoreAscent",
    "ScoreClimbing",
    "Seasonal",
    "SemiMarkovKernel",
    "SequentialQuasiMonteCarlo",
    "Series",
    "SigmaPointKalman",
    "Signal",
    "Simulation",
    "SoftmaxKernel",
    "SpikeCounts",
    "StateSpaceModel",
    "Step",
    "StochasticVolatility",
    "Structural",
    "StructuredVariational",
    "StudentForecast",
    "StudentPosterior",
    "StudentSignal",
    "Switching",
    "SwitchingForecast",
    "SwitchingLinearGaussian",
    "SwitchingOnline",
    "SwitchingOnlineState",
    "SwitchingPosterior",
    "ThetaLogistic",
    "TwoFilter",
    "VariationalEM",
    "compare",
    "config",
    "constant",
    "constrain",
    "cross_validate",
    "datasets",
    "decoding",
    "diagnostics",
    "durations",
    "emissions",
    "expect",
    "filter",
    "first_passage",
    "fit",
    "forecast",
    "freeze",
    "functionals",
    "learn_decoder",
    "linearisation",
    "log_likelihood",
    "online",
    "parallel_newton",
    "parameter",
    "parameters",
    "plot",
    "proposals",
    "relabel",
    "replace",
    "sample_states",
    "simulate",
    "smooth",
    "supports",
    "unconstrain",
]


def __getattr__(name: str) -> Any:
    """The classes that derive from NumPyro's, loaded on first use: it takes as long as JAX."""
    if name == "IntervalCensored":
        from statespace.conditionals.censored import IntervalCensored

        return IntervalCensored
    if name == "ObservationDistribution":
        from statespace.learners.observation_distribution import ObservationDistribution

        return ObservationDistribution
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(globals().keys() | set(__all__))
