"""Exponential families of one channel, and the links from a linear predictor to them.

A family is its cumulant ``A``: ``log p(y | θ) = y·θ - A(θ) + log h(y)``, so that its mean is ``A'(θ)`` and
its variance ``A''(θ)``. A link is the natural parameter as a function of the linear predictor, ``θ(η)``.
Score and Fisher information in ``η`` follow by differentiation, for every family and link alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import gammaln, logsumexp
from jaxtyping import Array, Float

if TYPE_CHECKING:
    from numpyro.distributions import Distribution


class Family(NamedTuple):
    """An exponential family of one channel, in q natural parameters.

    Attributes:
        cumulant: of the natural parameters, ``(q,) -> ()``.
        statistic: what the natural parameters multiply, ``(y, q) -> (..., q)``.
        log_prob: ``(y, θ (..., q), scale) -> (...)``.
        distribution: ``(θ (..., q), scale) -> Distribution`` with batch shape ``(...)``.
        links: natural parameters as functions of the linear predictors, by the name of the inverse link; the
            first is the default.
        support: what an observation may be, in words, and whether an array of them is.
    """

    cumulant: Callable[[Array], Array]
    statistic: Callable[[Array, int], Array]
    log_prob: Callable[[Array, Array, Any], Array]
    distribution: Callable[[Array, Any], Distribution]
    links: dict[str, Callable[[Array], Array]]
    support: tuple[str, Callable[[np.ndarray, int], np.ndarray]]


def fisher(
    family: Family,
    natural: Callable[[Array], Array],
    statistic: Float[Array, "*n q"],
    eta: Float[Array, "*n q"],
) -> tuple[Float[Array, "*n q"], Float[Array, "*n q q"]]:
    """Score and Fisher information of the linear predictors, at dispersion one.

    Args:
        family: of the observations.
        natural: the link, as :attr:`Family.links` has it.
        statistic: of the observations.
        eta: the linear predictors.
    """

    def one(t: Array, e: Array) -> tuple[Array, Array]:
        theta, slope = natural(e), jax.jacfwd(natural)(e)
        mean = jax.grad(family.cumulant)
        return (t - mean(theta)) @ slope, slope.T @ jax.jacfwd(mean)(theta) @ slope

    if eta.shape[-1] > 1:
        return jnp.vectorize(one, signature="(q),(q)->(q),(q,q)")(statistic, eta)
    # one natural parameter: the same with numbers in place of matrices, which vectorises
    theta, slope = jax.jvp(natural, (eta,), (jnp.ones_like(eta),))
    each = jax.grad(lambda x: jnp.sum(jax.vmap(family.cumulant)(x.reshape(-1, 1))))
    mean, variance = jax.jvp(each, (theta,), (jnp.ones_like(theta),))
    return (statistic - mean) * slope, (slope**2 * variance)[..., None]


def log_softplus(x: Array) -> Array:
    """``log log(1 + exp x)``, also where the inner logarithm underflows."""
    safe = jnp.maximum(x, -15.0)
    return jnp.where(x < -15.0, x - jnp.exp(x) / 2, jnp.log(jax.nn.softplus(safe)))


def log_expm1_exp(x: Array) -> Array:
    """``log(exp(exp x) - 1)``: log odds of at least one event at the log rate ``x``."""
    safe = jnp.maximum(x, -15.0)
    rate = jnp.exp(safe)
    return jnp.where(x < -15.0, x + jnp.exp(x) / 2, rate + jnp.log(-jnp.expm1(-rate)))


def _identity(x: Array) -> Array:
    return x


def _first(y: Array, q: int) -> Array:
    return y[..., None]


def _indicators(y: Array, q: int) -> Array:
    """Of each category but the first, whether it is the one."""
    return (y[..., None] == jnp.arange(1, q + 1)).astype(y.dtype)


def _with_zero(theta: Array) -> Array:
    return jnp.concatenate([jnp.zeros_like(theta[..., :1]), theta], axis=-1)


def _poisson(theta: Array, scale: Any) -> Distribution:
    from numpyro.distributions import Poisson

    return Poisson(jnp.exp(theta[..., 0]), validate_args=False)


def _bernoulli(theta: Array, scale: Any) -> Distribution:
    from numpyro.distributions import BernoulliLogits

    return BernoulliLogits(theta[..., 0], validate_args=False)


def _normal(theta: Array, scale: Any) -> Distribution:
    from numpyro.distributions import Normal

    return Normal(theta[..., 0], scale, validate_args=False)


def _categorical(theta: Array, scale: Any) -> Distribution:
    from numpyro.distributions import CategoricalLogits

    return CategoricalLogits(_with_zero(theta), validate_args=False)


def _normal_log_prob(y: Array, theta: Array, scale: Any) -> Array:
    return -0.5 * ((y - theta[..., 0]) / scale) ** 2 - jnp.log(scale) - 0.5 * math.log(2 * math.pi)


def _categorical_log_prob(y: Array, theta: Array, scale: Any) -> Array:
    chosen = jnp.sum(_indicators(y, theta.shape[-1]) * theta, axis=-1)
    return chosen - logsumexp(_with_zero(theta), axis=-1)


def _poisson_log_prob(y: Array, theta: Array, scale: Any) -> Array:
    return y * theta[..., 0] - jnp.exp(theta[..., 0]) - gammaln(y + 1)


def _bernoulli_log_prob(y: Array, theta: Array, scale: Any) -> Array:
    return y * theta[..., 0] - jax.nn.softplus(theta[..., 0])


FAMILIES: dict[str, Family] = {
    "bernoulli": Family(
        cumulant=lambda theta: jax.nn.softplus(theta[0]),
        statistic=_first,
        log_prob=_bernoulli_log_prob,
        distribution=_bernoulli,
        links={
            "sigmoid": _identity,
            "exp": log_expm1_exp,
            "softplus": lambda eta: log_expm1_exp(log_softplus(eta)),
        },
        support=("0 or 1", lambda y, q: (y == 0) | (y == 1)),
    ),
    "categorical": Family(
        cumulant=lambda theta: logsumexp(_with_zero(theta)),
        statistic=_indicators,
        log_prob=_categorical_log_prob,
        distribution=_categorical,
        links={"softmax": _identity},
        support=("an integer from 0 to {q}", lambda y, q: (y == np.round(y)) & (y >= 0) & (y <= q)),
    ),
    "gaussian": Family(
        cumulant=lambda theta: theta[0] ** 2 / 2,
        statistic=_first,
        log_prob=_normal_log_prob,
        distribution=_normal,
        links={
            "identity": _identity,
            "exp": jnp.exp,
            "softplus": jax.nn.softplus,
            "sigmoid": jax.nn.sigmoid,
        },
        support=("a number", lambda y, q: np.isfinite(y)),
    ),
    "poisson": Family(
        cumulant=lambda theta: jnp.exp(theta[0]),
        statistic=_first,
        log_prob=_poisson_log_prob,
        distribution=_poisson,
        links={"exp": _identity, "softplus": log_softplus, "sigmoid": jax.nn.log_sigmoid},
        support=("a count 0, 1, 2 …", lambda y, q: (y == np.round(y)) & (y >= 0)),
    ),
}
"""The families by name."""
