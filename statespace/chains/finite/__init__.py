"""The finite chain: transition matrices and potentials over states 0, ..., K-1, exact.

Functions take ``parallel``: whether to use associative scans instead of sequential ones. None: on
accelerators, for few states.
"""

from statespace.chains.finite.likelihood import log_likelihood, pointwise, value_and_score
from statespace.chains.finite.online import Window, fixed_lag, start, step
from statespace.chains.finite.posterior import expected_counts, filter, pairs, smooth
from statespace.chains.finite.sampling import paths, sample
from statespace.chains.finite.types import Chain, Counts, Filtered, Smoothed, length
from statespace.chains.finite.viterbi import joint_log_prob, viterbi

__all__ = [
    "Chain",
    "Counts",
    "Filtered",
    "Smoothed",
    "Window",
    "expected_counts",
    "filter",
    "fixed_lag",
    "joint_log_prob",
    "length",
    "log_likelihood",
    "pairs",
    "paths",
    "pointwise",
    "sample",
    "smooth",
    "start",
    "step",
    "value_and_score",
    "viterbi",
]
