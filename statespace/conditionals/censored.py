"""Values known only to lie between two bounds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.scipy.special import log_ndtr, logsumexp
from jaxtyping import Array, Float, PRNGKeyArray
from numpyro.distributions import constraints

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(5)
_NARROW = (
    0.25  # width, relative to the density's own scale, below which quadrature is exact to rounding
)


class _Standard(NamedTuple):
    """How a family is standardised.

    Attributes:
        of: from a distribution and a value in its support to z, which increases with it.
        log_tail: from z, and whether the upper tail is meant, to its log probability.
        median: of z.
        positive: whether values are.
    """

    of: Callable[[Any, Array], Array]
    log_tail: Callable[[Array, Array], Array]
    median: float
    positive: bool


def log_one_minus_exp(x: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """``log(1 - exp x)`` for negative x, to rounding (Mächler 2012)."""
    near = x > -np.log(2)
    close, far = jnp.where(near, x, -1.0), jnp.where(near, -1.0, x)
    return jnp.where(near, jnp.log(-jnp.expm1(close)), jnp.log1p(-jnp.exp(far)))


def _symmetric(log_cdf: Callable[[Array], Array]) -> Callable[[Array, Array], Array]:
    return lambda z, upper: log_cdf(jnp.where(upper, -z, z))


def _exponential(z: Array, upper: Array) -> Array:
    return jnp.where(upper, -z, log_one_minus_exp(-z))


def _location_scale(law: Any, value: Array) -> Array:
    return (value - law.loc) / law.scale


def _of_logarithm(law: Any, value: Array) -> Array:
    return (jnp.log(value) - law.loc) / law.scale


_NORMAL = _symmetric(log_ndtr)
_STANDARD: dict[str, _Standard] = {
    "Cauchy": _Standard(
        _location_scale,
        _symmetric(lambda z: jnp.log(jnp.arctan2(jnp.ones_like(z), -z) / np.pi)),
        0.0,
        False,
    ),
    "Exponential": _Standard(lambda law, x: law.rate * x, _exponential, np.log(2), True),
    "Logistic": _Standard(_location_scale, _symmetric(jax.nn.log_sigmoid), 0.0, False),
    "LogNormal": _Standard(_of_logarithm, _NORMAL, 0.0, True),
    "Normal": _Standard(_location_scale, _NORMAL, 0.0, False),
    "Weibull": _Standard(
        lambda law, x: (x / law.scale) ** law.concentration, _exponential, np.log(2), True
    ),
}
"""What is known of each family, by its NumPyro name."""


class IntervalCensored(dist.Distribution):
    """A value known by its bounds: a pair ``(lower, upper)`` has the probability ``F(upper) - F(lower)``.

    For rounding and quantisation, detection limits, inspection times, readings off the end of a scale, and
    survival of what is still running. In one recording every entry may have its own kind:

    * ``lower < upper``: the value lies between; log of a probability.
    * ``lower == upper``: the value was seen; log of its density.
    * ``lower`` NaN (or -inf): at most ``upper``, left-censored.
    * ``upper`` NaN (or inf): at least ``lower``, right-censored.
    * both NaN: missing.

    A row of the recording has the bounds of the channels in turn: ``lower_1, upper_1, lower_2, upper_2 …``.
    Log probabilities and their derivatives in the parameters are right far out in both tails and for narrow
    intervals: differences are taken on the side of the smaller tail, narrow ones are integrated.

    A draw is an exact value, twice: how values come to be censored is not part of the law.

    Args:
        base: law of the value, of any batch shape and without event shape: NumPyro's Normal, Logistic,
            Cauchy, LogNormal, Exponential or Weibull.

    Raises:
        TypeError: if the base is of another family.

    Example:
        >>> rounded = lambda eta: ss.IntervalCensored(dist.Normal(eta, 0.3))
        >>> observation = ss.GeneralisedLinear(matrix=[[1.0]], family=rounded)
        >>> bounds = jnp.stack([y - 0.5, y + 0.5], axis=1)  # (T, 2)
    """

    arg_constraints: dict[str, Any] = {}
    pytree_data_fields = ("base",)
    reads_nan = True
    """NaN in a value has a meaning here, and is not a missing channel."""

    def __init__(self, base: Any, *, validate_args: bool | None = None):
        if isinstance(base, dist.Distribution) and type(base).__name__ not in _STANDARD:
            inner = "; apply `to_event` outside" if isinstance(base, dist.Independent) else ""
            raise TypeError(
                f"`base` of IntervalCensored must be one of {', '.join(_STANDARD)}, got "
                f"{type(base).__name__}{inner}."
            )
        self.base = base
        batch = getattr(
            base, "batch_shape", ()
        )  # a placeholder where a transformation rebuilds the law
        super().__init__(batch, (2,), validate_args=validate_args)

    @constraints.dependent_property(is_discrete=False, event_dim=1)
    def support(self) -> constraints.Constraint:
        """Pairs of numbers."""
        return constraints.real_vector

    @property
    def mean(self) -> Float[Array, "*b 2"]:
        """Of the value, twice."""
        return jnp.stack([self.base.mean] * 2, axis=-1)

    @property
    def variance(self) -> Float[Array, "*b 2"]:
        """Of the value, twice."""
        return jnp.stack([self.base.variance] * 2, axis=-1)

    def sample(self, key: PRNGKeyArray | None, sample_shape: tuple[int, ...] = ()) -> Array:
        """Values, each as an interval of no width."""
        return jnp.stack([self.base.sample(key, sample_shape)] * 2, axis=-1)

    def log_prob(self, value: Any, intermediates: Any = None) -> Float[Array, "..."]:
        """Log probability of intervals; log density of values.

        Args:
            value: bounds, shape ``(..., 2)``.
            intermediates: as everywhere in NumPyro; not used.
        """
        value = jnp.asarray(value)
        lower, upper = value[..., 0], value[..., 1]
        lower = jnp.where(jnp.isnan(lower), -jnp.inf, lower)
        upper = jnp.where(jnp.isnan(upper), jnp.inf, upper)
        exact = (lower == upper) & jnp.isfinite(lower)
        point = jnp.where(exact, lower, self.base.support.feasible_like(lower))
        within = log_probability_between(self.base, lower, jnp.where(exact, jnp.inf, upper))
        found = jnp.where(exact, self.base.log_prob(point), within)
        return jnp.where(lower <= upper, found, -jnp.inf)

    @staticmethod
    def check_values(y: np.ndarray) -> None:
        """Refuse rows whose bounds are not in order.

        Args:
            y: shape ``(T, 2 m)``.

        Raises:
            ValueError: naming the first such pair.
        """
        pairs = y.reshape(len(y), -1, 2)
        bad = np.argwhere(pairs[..., 0] > pairs[..., 1])
        if len(bad):
            row, channel = bad[0].tolist()
            lower, upper = pairs[row, channel]
            raise ValueError(
                "observations of IntervalCensored must be pairs (lower, upper), but columns "
                f"{2 * channel} and {2 * channel + 1} of row {row} are {lower:g} and {upper:g}."
            )


def log_probability_between(
    law: Any, lower: Float[Array, "..."], upper: Float[Array, "..."]
) -> Float[Array, "..."]:
    """``log(F(upper) - F(lower))``; bounds may be infinite, and ``lower < upper``.

    Args:
        law: a distribution of one of the families above.
        lower: lower bounds.
        upper: upper bounds.
    """
    standard = _STANDARD[type(law).__name__]
    edge = 0.0 if standard.positive else -jnp.inf
    below, above = lower > edge, upper < jnp.inf
    between = below & above & (lower < upper)
    # bounds that are none have stand-ins, so that the branches not taken have finite derivatives
    x_left = jnp.where(below, lower, 1.0)
    x_right = jnp.where(between, upper, 2 * jnp.abs(x_left) + 1)
    x_only = jnp.where(above & (upper > edge), upper, x_left)
    left, right, only = (standard.of(law, x) for x in (x_left, x_right, x_only))
    middle = (left + right) / 2
    in_upper = middle > standard.median
    farther, nearer = jnp.where(in_upper, right, left), jnp.where(in_upper, left, right)
    tail = standard.log_tail(jnp.where(between, nearer, only), jnp.where(between, in_upper, ~above))
    narrow = between & ((right - left) * (1 + jnp.abs(middle)) < _NARROW)
    if standard.positive:
        narrow &= upper - lower < _NARROW * lower
    gap = jnp.where(narrow | ~between, -1.0, standard.log_tail(farther, in_upper) - tail)
    difference = tail + log_one_minus_exp(gap)
    integral = _integral(law, jnp.where(narrow, lower, 1.0), jnp.where(narrow, upper, 2.0))
    found = jnp.where(between, jnp.where(narrow, integral, difference), tail)
    return jnp.where(upper > edge, jnp.where(below | above, found, 0.0), -jnp.inf)


def _integral(law: Any, lower: Array, upper: Array) -> Array:
    """Log of the integral of a density over a narrow interval, by Gauss–Legendre quadrature."""
    half = (upper - lower) / 2
    shape = (-1,) + (1,) * half.ndim
    nodes = (lower + upper) / 2 + half * jnp.asarray(_NODES, half.dtype).reshape(shape)
    weights = jnp.asarray(_WEIGHTS, half.dtype).reshape(shape)
    return logsumexp(law.log_prob(nodes), b=weights, axis=0) + jnp.log(half)
