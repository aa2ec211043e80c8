"""What a Gaussian chain is made of. Arrays with a leading time axis; length 1 means constant in time."""

from __future__ import annotations

from typing import Literal, NamedTuple

from jaxtyping import Array, Bool, Float

Form = Literal["covariance", "sqrt"]
"""What `noise` holds and the recursions carry: a covariance ``(d, d)``, or a factor ``(d, k)`` of it."""


class Initial(NamedTuple):
    """``x_0 ~ N(mean, noise)``, plus flat directions: ``x_0 = mean + D delta + noise``, delta flat."""

    mean: Float[Array, " n"]
    noise: Float[Array, "n k"]
    diffuse: Float[Array, "n q"] | None = None


class Transitions(NamedTuple):
    """``x_t = F x_{t-1} + b + noise``; entry ``t - 1`` leads into moment ``t``."""

    matrix: Float[Array, "S n n"]
    offset: Float[Array, "S n"]
    noise: Float[Array, "S n k"]


class Observed(NamedTuple):
    """Potentials in observation form: ``y_t = H x_t + d + noise``; ``mask`` is True where observed."""

    matrix: Float[Array, "S m n"]
    offset: Float[Array, "S m"]
    noise: Float[Array, "S m k"]
    value: Float[Array, "T m"]
    mask: Bool[Array, "T m"] | None = None


class Sites(NamedTuple):
    """Potentials in information form: ``exp(-x' precision x / 2 + shift' x)``.

    A precision need not be positive semi-definite as long as every filtered precision is.
    """

    precision: Float[Array, "S n n"]
    shift: Float[Array, "T n"]


class Chain(NamedTuple):
    """``p(x_0) prod p(x_t | x_{t-1})`` times a potential per moment."""

    initial: Initial
    transitions: Transitions
    potentials: Observed | Sites


def length(chain: Chain) -> int:
    """Number of moments T."""
    p = chain.potentials
    return p.shift.shape[0] if isinstance(p, Sites) else p.value.shape[0]


def is_constant(chain: Chain) -> bool:
    """Whether the covariances obey one time-invariant recursion."""
    f, p = chain.transitions, chain.potentials
    arrays = [f.matrix, f.noise]
    arrays += [p.precision] if isinstance(p, Sites) else [p.matrix, p.noise]
    masked = isinstance(p, Observed) and p.mask is not None
    return not masked and all(a.shape[0] == 1 for a in arrays)
