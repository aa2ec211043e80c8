"""Constraints that NumPyro does not have, for parameters to name.

Importing this package loads NumPyro, so nothing does before the support of a parameter is asked for.
"""

from typing import Any

from numpyro.distributions.constraints import greater_than, open_interval

from statespace.constraints.autoregressive import invertible, stationary, stationary_vector
from statespace.constraints.trapezoidal import LowerTrapezoidal

__all__ = [
    "correlation",
    "invertible",
    "lower_trapezoidal",
    "period",
    "stationary",
    "stationary_vector",
]

correlation = open_interval(-1.0, 1.0)
"""Numbers in (-1, 1)."""

period = greater_than(2.0)
"""Periods, in steps, that a recording with one observation a step can tell apart."""


def lower_trapezoidal(value: Any) -> LowerTrapezoidal:
    """Matrices of the value's shape that are zero above the diagonal and positive on it."""
    return LowerTrapezoidal(value.shape[-1])
