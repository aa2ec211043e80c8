"""Priors: what is believed of single parameters, on the scale on which the model states them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import gammaln
from jaxtyping import Array, Float

from statespace.parameters import parameters, supports

if TYPE_CHECKING:
    from numpyro.distributions import Distribution

Priors = Mapping[str, Any]
"""Parameter name to NumPyro distribution of the parameter as the model states it."""


def checked_priors(
    model: Any, priors: Priors | None, *, every: str | None = None
) -> dict[str, Distribution]:
    """The priors, if they go with the model.

    Args:
        model: any model.
        priors: by the names that :func:`statespace.parameters` gives; None for none.
        every: what needs a prior for each free parameter (it is named in the error), or None.

    Raises:
        TypeError: if a prior is not a continuous NumPyro distribution.
        ValueError: if a name is not a free parameter, a shape does not fit, a prior reaches outside the
            parameter's support, or a prior is missing where each parameter needs one.
    """
    priors = dict(priors or {})
    free = parameters(model, frozen=False)
    known = supports(model)
    for name, prior in priors.items():
        if name not in known:
            raise ValueError(
                f"`priors`: {name!r} is not a parameter of the model; it has {list(known)}."
            )
        if name not in free:
            raise ValueError(
                f"`priors`: {name!r} is frozen and will not be learned; drop its prior, or do not "
                "freeze it."
            )
        _check_prior(name, prior, known[name], jnp.shape(free[name]))
    missing = [name for name in free if name not in priors]
    if every is not None and missing:
        raise ValueError(
            f"{every} needs a prior for every free parameter, and {missing} have none: add them to "
            "`priors`, or hold them at their values with `ss.freeze(model, name)`. A flat prior is "
            "`numpyro.distributions.ImproperUniform(support, (), shape)`."
        )
    return priors


def log_prior(model: Any, priors: Priors) -> Float[Array, ""]:
    """Log density of the priors at the model's parameters, those that its emission brings included."""
    values = parameters(model)
    own = getattr(getattr(model, "emission", None), "log_prior", None)
    total = jnp.zeros(()) if own is None else own()
    for name, prior in priors.items():
        total = total + jnp.sum(log_density(prior, values[name]))
    return total


def log_density(prior: Distribution, value: Array) -> Float[Array, "..."]:
    """Log density of a prior; for probabilities, up to a constant where some of them are zero for good."""
    from numpyro.distributions import Dirichlet

    if not isinstance(prior, Dirichlet):
        return prior.log_prob(value)
    concentration = prior.concentration
    positive = value > 0
    logs = jnp.where(positive, jnp.log(jnp.where(positive, value, 1)), 0)
    normaliser = jnp.sum(gammaln(concentration), axis=-1) - gammaln(jnp.sum(concentration, axis=-1))
    return jnp.sum((concentration - 1) * logs, axis=-1) - normaliser


def _check_prior(name: str, prior: Any, support: Any, shape: tuple[int, ...]) -> None:
    from numpyro.distributions import Distribution

    if not isinstance(prior, Distribution):
        raise TypeError(
            f"`priors`: {name!r} needs a NumPyro distribution, got {type(prior).__name__}."
        )
    if prior.support.is_discrete:
        raise TypeError(
            f"`priors`: {name!r} is a continuous parameter, but {type(prior).__name__} is discrete."
        )
    own = prior.batch_shape + prior.event_shape
    event = prior.event_shape
    fits = shape[len(shape) - len(event) :] == event and len(shape) >= len(event)
    try:
        fits = fits and np.broadcast_shapes(own, shape) == shape
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(
            f"`priors`: {name!r} has shape {shape}, but its prior {type(prior).__name__} has shape "
            f"{own} (event shape {event}); give a scalar prior, which then holds for each entry, or "
            "one of the parameter's shape."
        )
    if not _within(prior, support, shape):
        raise ValueError(
            f"`priors`: the prior {type(prior).__name__} of {name!r} reaches outside the parameter's "
            f"support ({_describe(support)}): use a distribution on that support, such as "
            f"{_suggestion(support)}."
        )


def _within(prior: Distribution, support: Any, shape: tuple[int, ...]) -> bool:
    """Whether a prior lives inside a support: by their bounds, or else by drawing from it."""
    from numpyro.distributions import Dirichlet, ImproperUniform

    from statespace.constraints.sparse_simplex import SparseSimplex

    allowed, reached = _bounds(support), _bounds(prior.support)
    if allowed == (-np.inf, np.inf):
        return True
    if allowed is not None and reached is not None:
        return bool(np.all(reached[0] >= allowed[0]) and np.all(reached[1] <= allowed[1]))
    if type(_base(prior.support)) is type(_base(support)):
        return True
    if isinstance(support, SparseSimplex) and isinstance(prior, Dirichlet):
        return True
    if isinstance(prior, ImproperUniform):
        return False
    missing = shape[: len(shape) - len(prior.batch_shape + prior.event_shape)]
    draws = prior.sample(jax.random.key(0), (100, *missing))
    return bool(np.all(support(draws)))


def _base(support: Any) -> Any:
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    return support


def _bounds(support: Any) -> tuple[Any, Any] | None:
    """Lower and upper bound of each entry, or None for supports that are not boxes."""
    from numpyro.distributions import constraints

    base = _base(support)
    if base is constraints.real:
        return -np.inf, np.inf
    if type(base) not in (
        type(constraints.positive),
        type(constraints.nonnegative),
        type(constraints.unit_interval),
        type(constraints.interval(0, 1)),
        type(constraints.open_interval(0, 1)),
        type(constraints.greater_than(0)),
        type(constraints.greater_than_eq(0)),
        type(constraints.less_than(0)),
        type(constraints.less_than_eq(0)),
    ):
        return None
    lower, upper = getattr(base, "lower_bound", -np.inf), getattr(base, "upper_bound", np.inf)
    return np.asarray(lower), np.asarray(upper)


def _describe(support: Any) -> str:
    bounds = _bounds(support)
    if bounds is None:
        return type(_base(support)).__name__.strip("_").replace("_", " ").lower()
    return f"{np.min(bounds[0]):g} to {np.max(bounds[1]):g}"


def _suggestion(support: Any) -> str:
    bounds = _bounds(support)
    if bounds is None:
        return "`TransformedDistribution(base, biject_to(support))`"
    if np.isfinite(np.max(bounds[1])):
        return "`Uniform(lower, upper)` or `TruncatedNormal(mean, sd, low=lower, high=upper)`"
    return "`HalfNormal(scale)` or `LogNormal(mean, sd)`"
