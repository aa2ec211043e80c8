"""Densities of one observation under a distribution, missing entries integrated out, and its moments."""

from __future__ import annotations

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float


def log_density(law: Any, y: Float[Array, " m"]) -> Float[Array, ""]:
    """Log density of one observation under a NumPyro distribution; NaN entries are integrated out."""
    import numpyro.distributions as dist

    seen = ~jnp.isnan(y)
    base = law
    while isinstance(base, dist.Independent):
        base = base.base_dist
    if base.event_shape == () or reads_nan(base):
        return jnp.sum(log_densities(base, y))
    if isinstance(base, dist.MultivariateNormal):
        both = seen[:, None] & seen[None, :]
        covariance = jnp.where(both, base.covariance_matrix, jnp.eye(len(y), dtype=y.dtype))
        error = jnp.where(seen, y - base.loc, 0.0)
        spare = 0.5 * jnp.log(2 * jnp.pi) * jnp.sum(~seen)
        return dist.MultivariateNormal(jnp.zeros_like(y), covariance).log_prob(error) + spare
    return jnp.where(jnp.all(seen), base.log_prob(_possible(base, y, seen)), 0.0)


def log_densities(law: Any, y: Float[Array, " m"]) -> Float[Array, " m"]:
    """Log density of each of several independent channels; 0 where an entry is NaN.

    A law that reads NaN itself may have channels of several entries.
    """
    import numpyro.distributions as dist

    seen = ~jnp.isnan(y)
    while isinstance(law, dist.Independent):
        law = law.base_dist
    if reads_nan(law):
        return jnp.atleast_1d(law.log_prob(y.reshape(shape_of(law))))
    possible = _possible(law, y, seen)
    return jnp.where(seen, law.log_prob(possible if law.batch_shape else possible[0]), 0.0)


def mean_and_variance(law: Any) -> tuple[Float[Array, "*m"], Float[Array, "*m"]]:
    """Mean and variance of each entry of a distribution; of a categorical one those of the category's number.

    NumPyro says NaN of the latter, ordinal ones (``OrderedLogistic``, ``OrderedProbit``) among them.

    Raises:
        NotImplementedError: if the distribution has neither.
        AttributeError: likewise.
    """
    import numpyro.distributions as dist

    base = law
    while isinstance(base, dist.Independent | dist.ExpandedDistribution | dist.MaskedDistribution):
        base = base.base_dist
    if not isinstance(base, dist.CategoricalProbs | dist.CategoricalLogits):
        mean = jnp.asarray(law.mean)
        return mean, jnp.broadcast_to(law.variance, mean.shape)
    probs = base.probs
    number = jnp.arange(probs.shape[-1], dtype=probs.dtype)
    mean = jnp.sum(probs * number, axis=-1)
    variance = jnp.sum(probs * (number - mean[..., None]) ** 2, axis=-1)
    shape = shape_of(law)
    return jnp.broadcast_to(mean, shape), jnp.broadcast_to(variance, shape)


def reads_nan(law: Any) -> bool:
    """Whether NaN has a meaning for a law besides a missing channel, as a bound that is not known."""
    while hasattr(law, "base_dist"):
        law = law.base_dist
    return getattr(law, "reads_nan", False)


def marginal(law: Any) -> bool:
    """Whether single channels of a distribution can be integrated out here."""
    import numpyro.distributions as dist

    while isinstance(law, dist.Independent):
        law = law.base_dist
    return law.event_shape == () or reads_nan(law) or isinstance(law, dist.MultivariateNormal)


def shape_of(law: Any) -> tuple[int, ...]:
    """Shape of one value of a distribution."""
    return tuple(law.batch_shape) + tuple(law.event_shape)


def check_law(law: Any, y: np.ndarray) -> None:
    """Refuse rows that are no values of a law.

    Args:
        law: a distribution.
        y: shape ``(T, m)``.

    Raises:
        ValueError: naming both shapes, or the values at fault.
    """
    m, shape = y.shape[1], shape_of(law)
    fits = math.prod(shape) == m if reads_nan(law) else shape == (m,) or (shape == () and m == 1)
    if not fits:
        raise ValueError(
            f"the data have {m} channel{'s' * (m != 1)}, but `observation` of the model gives values of "
            f"shape {shape}."
        )
    while hasattr(law, "base_dist"):
        law = law.base_dist
    if hasattr(law, "check_values"):
        law.check_values(y)


def _possible(law: Any, y: Array, seen: Bool[Array, " m"]) -> Array:
    """The observation with missing entries filled by possible ones, whose density is then left out."""
    y = jnp.where(seen, y, law.support.feasible_like(y))
    return y.astype(int) if law.support.is_discrete else y
