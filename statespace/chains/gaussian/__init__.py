"""The Gaussian chain: affine Gaussian kernels and Gaussian potentials, exact in four equivalent forms.

Every function takes ``form`` ("covariance" or "sqrt": what ``noise`` holds and the recursions carry) and
``parallel`` (associative scans instead of sequential ones).
"""

from statespace.chains.gaussian.forward import Forward
from statespace.chains.gaussian.likelihood import log_likelihood, pointwise, value_and_score
from statespace.chains.gaussian.posterior import (
    Filtered,
    Smoothed,
    filter,
    filter_and_smooth,
    filtered_by,
    observations,
    sample,
    smooth,
    smoothed_by,
)
from statespace.chains.gaussian.types import (
    Chain,
    Form,
    Initial,
    Observed,
    Sites,
    Transitions,
    length,
)

__all__ = [
    "Chain",
    "Filtered",
    "Form",
    "Forward",
    "Initial",
    "Observed",
    "Sites",
    "Smoothed",
    "Transitions",
    "filter",
    "filter_and_smooth",
    "filtered_by",
    "length",
    "log_likelihood",
    "observations",
    "pointwise",
    "sample",
    "smooth",
    "smoothed_by",
    "value_and_score",
]
