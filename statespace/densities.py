"""Densities of one observation under a distribution, missing entries integrated out, and its moments."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from statespace.checks import require_arguments
from statespace.dependence import dependence


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


def law_at(conditional: Callable[..., Any], arguments: Mapping[str, Any], name: str) -> Any:
    """The law that a conditional gives.

    Args:
        conditional: a function.
        arguments: what it is called with, by the names to be used in errors.
        name: of the conditional, for errors.

    Raises:
        TypeError: if it takes other arguments, or gives no distribution.
    """
    require_arguments(name, conditional, tuple(arguments))
    law = conditional(*arguments.values())
    if not hasattr(law, "log_prob"):
        shape = getattr(law, "shape", None)
        given = type(law).__name__ if shape is None else f"an array of shape {shape}"
        raise TypeError(
            f"{name} must give a distribution, one of numpyro.distributions, got {given}."
        )
    return law


def check_law(
    conditional: Callable[..., Any],
    arguments: Mapping[str, Any],
    y: np.ndarray,
    name: str = "`observation` of the model",
) -> None:
    """Refuse rows that are no values of a conditional's law.

    Args:
        conditional: a function that gives a distribution.
        arguments: some that it may be called with, by name.
        y: shape ``(T, m)``.
        name: of the conditional, for errors.

    Raises:
        TypeError: if the conditional gives no distribution.
        ValueError: naming both shapes, or the values at fault.
    """
    law = law_at(conditional, arguments, name)
    m, shape = y.shape[1], shape_of(law)
    fits = math.prod(shape) == m if reads_nan(law) else shape == (m,) or (shape == () and m == 1)
    if not fits:
        raise ValueError(
            f"the data have {m} channel{'s' * (m != 1)}, but `observation` of the model gives values of "
            f"shape {shape}."
        )
    base = law
    while hasattr(base, "base_dist"):
        base = base.base_dist
    if hasattr(base, "check_values"):
        base.check_values(y)
    else:
        _check_support(law, conditional, arguments, y)


def _check_support(
    law: Any, conditional: Callable[..., Any], arguments: Mapping[str, Any], y: np.ndarray
) -> None:
    """Refuse values outside a law's support, where that is the same whatever the arguments."""
    from numpyro.distributions import constraints

    law = of_one_event(law)
    support = getattr(law, "support", None)
    # a density of angles goes on beyond one turn
    if support is None or support is constraints.circular:
        return
    bounds = jax.tree.leaves(support)
    if any(isinstance(x, jax.core.Tracer) for x in bounds):
        return
    if any(isinstance(x, jax.Array) for x in bounds):
        bounds_at = lambda *a: jax.tree.leaves(of_one_event(conditional(*a)).support)
        program: Any = jax.make_jaxpr(bounds_at)(*arguments.values())
        if any(dependence(program.jaxpr, [True] * len(program.jaxpr.invars))):
            return
    support = jax.tree.map(lambda x: np.asarray(x) if isinstance(x, jax.Array) else x, support)
    missing = np.isnan(y)
    inside = np.asarray(support(y))
    bad = np.argwhere(~(inside | (missing.any(axis=1) if inside.ndim == 1 else missing)))
    if len(bad):
        first = tuple(bad[0].tolist())
        raise ValueError(
            f"observations of {type(law).__name__} must be in its support, {support!r} (NaN where missing), "
            f"but y[{', '.join(map(str, first))}] is {y[first]} ({len(bad)} such entries)."
        )


def of_one_event(law: Any) -> Any:
    """The law of which others are independent copies."""
    import numpyro.distributions as dist

    while isinstance(law, dist.Independent | dist.ExpandedDistribution):
        law = law.base_dist
    return law


def _possible(law: Any, y: Array, seen: Bool[Array, " m"]) -> Array:
    """The observation with missing entries filled by possible ones, whose density is then left out."""
    y = jnp.where(seen, y, law.support.feasible_like(y))
    return y.astype(int) if law.support.is_discrete else y
