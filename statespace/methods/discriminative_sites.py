"""From a discriminative observation to Gaussian potentials, and what to do where the quotient is none.

All rules act on the eigenvalues of Q relative to S (1: the observation says nothing in that direction), so
they are functions of one symmetric matrix: Q in coordinates in which the marginal is standard normal.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Bool, Float

from statespace.chains.gaussian import algebra as la
from statespace.chains.gaussian.forward import LOG_2PI
from statespace.conditionals.discriminative import Discriminative


class Said(NamedTuple):
    """Potentials ``exp(constant + shift' x - x' precision x / 2)`` of the states.

    ``flagged`` says where the regression is in some direction less sure than the marginal: Q not below S.
    """

    precision: Float[Array, "T n n"]
    shift: Float[Array, "T n"]
    constant: Float[Array, " T"]
    flagged: Bool[Array, " T"]


def said_of(observation: Discriminative, y: Float[Array, "T m"]) -> Said:
    """The potential at each moment; an empty one where anything of the row is NaN.

    With a marginal the constants are such that each potential has expectation 1 under it, as
    ``p(y | x) / p(y)`` has. Without one the potential is the density ``N(x; f, Q)``.
    """
    seen = ~jnp.any(jnp.isnan(y), axis=1)
    mean, covariance = observation.moments(jnp.where(seen[:, None], y, 0))
    eye = jnp.eye(mean.shape[1], dtype=mean.dtype)
    # what the regression says of a row that is missing must not reach a derivative either
    mean = jnp.where(seen[:, None], mean, 0)
    covariance = jnp.where(seen[:, None, None], covariance, eye)
    said = _quotients(observation, mean, covariance)
    return jax.tree.map(lambda x: jnp.where(_along(seen, x), x, jnp.zeros_like(x)), said)


def check_regression(observation: Discriminative, states: int, y: Float[Array, "1 m"]) -> None:
    """Refuse a regression that does not fit the channels of the data or the states.

    Raises:
        ValueError: naming the shapes.
    """
    m = y.shape[1]
    try:
        made = jax.eval_shape(observation.regression, y[0])
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"`regression` of Discriminative cannot be evaluated on an observation of {m} channels: {error}"
        ) from error
    shapes = [getattr(x, "shape", None) for x in made] if isinstance(made, (tuple, list)) else made
    if shapes != [(states,), (states, states)]:
        raise ValueError(
            f"`regression` of Discriminative must give a mean ({states},) and a covariance "
            f"({states}, {states}) of the state for an observation of {m} channels, got {shapes}."
        )


def log_density(
    observation: Discriminative, state: Float[Array, " n"], y: Float[Array, " m"]
) -> Float[Array, ""]:
    """``log p(y | x) - log p(y)``, by which particles can be weighed; 0 where ``y`` is missing."""
    said = jax.tree.map(lambda x: x[0], said_of(observation, y[None]))
    return said.constant + said.shift @ state - 0.5 * state @ said.precision @ state


def _quotients(observation: Discriminative, mean: Array, covariance: Array) -> Said:
    n, dtype = mean.shape[1], jnp.result_type(mean, covariance)
    eye = jnp.eye(n, dtype=dtype)
    marginal = observation.marginal
    centre, unit = jnp.zeros(n, dtype), eye
    if marginal is not None:
        dtype = jnp.result_type(dtype, marginal.covariance)
        centre = marginal.mean.astype(dtype)
        unit = solve_triangular(la.cholesky(marginal.covariance.astype(dtype)), eye, lower=True)
    scaled = unit @ covariance @ unit.T
    weight, surplus, largest = by_rule(0.5 * (scaled + scaled.mT), observation.rule)
    error = (mean - centre) @ unit.T
    pull = jnp.einsum("tij,tj->ti", weight, error)
    precision = unit.T @ surplus @ unit
    linear = pull @ unit  # in x - centre
    constant = -(linear @ centre) - 0.5 * jnp.einsum("i,tij,j->t", centre, precision, centre)
    if marginal is None:
        norm = jnp.einsum("ti,ti->t", error, pull)
        constant = constant + _half_log_det(surplus) - 0.5 * norm - 0.5 * n * LOG_2PI
    else:
        half_log_det, norm = _normaliser(eye + surplus, pull)
        constant = constant + half_log_det - 0.5 * norm
    shift = linear + precision @ centre
    return Said(0.5 * (precision + precision.mT), shift, constant, largest > 1 + _rounding(scaled))


def _half_log_det(matrices: Float[Array, "T n n"]) -> Float[Array, " T"]:
    return jax.vmap(lambda a: la.log_diagonal(la.cholesky(a)))(matrices)


def _normaliser(
    matrices: Float[Array, "T n n"], vectors: Float[Array, "T n"]
) -> tuple[Float[Array, " T"], Float[Array, " T"]]:
    """``log|A| / 2`` and ``v' A^-1 v``."""

    def one(a: Array, v: Array) -> tuple[Array, Array]:
        factor = la.cholesky(a)
        return la.log_diagonal(factor), jnp.sum(la.solve_lower(factor, v[:, None]) ** 2)

    return jax.vmap(one)(matrices, vectors)


def _along(seen: Bool[Array, " T"], x: Array) -> Array:
    return seen.reshape(-1, *(1,) * (x.ndim - 1))


def _rounding(matrices: Array) -> float:
    """How far above 1 an eigenvalue that is 1 may come out."""
    return 16 * matrices.shape[-1] * float(jnp.finfo(matrices.dtype).eps)


# the rules -----------------------------------------------------------------------------------------


def _clip(d: Array, _: Array) -> tuple[Array, Array]:
    weight = jnp.maximum(1 / d, 1)
    return weight, weight - 1


def _fallback(d: Array, flagged: Array) -> tuple[Array, Array]:
    return 1 / d, 1 / d - jnp.where(flagged, 0, 1)


def _shrink(d: Array, flagged: Array) -> tuple[Array, Array]:
    return 1 / d + jnp.where(flagged, 1, 0), 1 / d - jnp.where(flagged, 0, 1)


def _robust(d: Array, _: Array) -> tuple[Array, Array]:
    return 1 / d, 1 / d


_BY_RULE = {"clip": _clip, "fallback": _fallback, "shrink": _shrink, "robust": _robust}
"""From eigenvalues of Q, and whether one of them is above 1: the weight of f, and the site's precision."""


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def by_rule(
    matrices: Float[Array, "T n n"], rule: str
) -> tuple[Float[Array, "T n n"], Float[Array, "T n n"], Float[Array, " T"]]:
    """Weight of f, precision of the site, and the largest eigenvalue, of Q relative to the marginal.

    Derivatives are those of functions of a symmetric matrix (Daleckii & Krein 1965; Higham 2008, theorem
    3.11), which are finite where eigenvalues coincide, as derivatives of eigenvectors are not.
    """
    return _evaluate(*_eigh(matrices), rule)[0]


def _evaluate(values: Array, vectors: Array, rule: str) -> tuple:
    flagged = values[:, -1:] > 1 + _rounding(vectors)
    function = lambda d: _BY_RULE[rule](d, flagged)
    parts, slopes = jax.jvp(function, (values,), (jnp.ones_like(values),))
    weight, surplus = (jnp.einsum("tik,tk,tjk->tij", vectors, f, vectors) for f in parts)
    return (weight, surplus, values[:, -1]), parts, slopes


@by_rule.defjvp
def _by_rule_jvp(rule: str, primals: tuple, tangents: tuple) -> tuple:
    values, vectors = _eigh(primals[0])
    out, parts, slopes = _evaluate(values, vectors, rule)
    inner = jnp.einsum("tik,tij,tjl->tkl", vectors, tangents[0], vectors)
    gap = values[:, :, None] - values[:, None, :]
    size = jnp.maximum(jnp.abs(values[:, :, None]), jnp.abs(values[:, None, :]))
    close = jnp.abs(gap) <= jnp.sqrt(jnp.finfo(values.dtype).eps) * size

    def along(f: Array, slope: Array) -> Array:
        quotient = (f[:, :, None] - f[:, None, :]) / jnp.where(close, 1, gap)
        mean = 0.5 * (slope[:, :, None] + slope[:, None, :])
        return jnp.einsum(
            "tik,tkl,tjl->tij", vectors, jnp.where(close, mean, quotient) * inner, vectors
        )

    weight, surplus = (along(f, slope) for f, slope in zip(parts, slopes, strict=True))
    return out, (weight, surplus, inner[:, -1, -1])


def _eigh(matrices: Float[Array, "T n n"]) -> tuple[Float[Array, "T n"], Float[Array, "T n n"]]:
    """Eigenvalues, ascending, and eigenvectors: one matrix at a time on CPU, and for few states written out.

    See :func:`statespace.chains.gaussian.covariances.factorise_moments`.
    """
    n = matrices.shape[-1]
    if n == 1:
        return matrices[..., 0], jnp.ones_like(matrices)
    if n == 2:
        return _eigh_of_two(matrices)
    if jax.default_backend() == "cpu":
        return jax.lax.map(lambda a: tuple(jnp.linalg.eigh(a)), matrices)
    values, vectors = jnp.linalg.eigh(matrices)
    return values, vectors


def _eigh_of_two(matrices: Float[Array, "T 2 2"]) -> tuple[Array, Array]:
    """By one Jacobi rotation."""
    a, b, d = matrices[:, 0, 0], matrices[:, 0, 1], matrices[:, 1, 1]
    angle = 0.5 * jnp.arctan2(2 * b, d - a)
    c, s = jnp.cos(angle), jnp.sin(angle)
    low = a * c * c - 2 * b * c * s + d * s * s
    high = a * s * s + 2 * b * c * s + d * c * c
    vectors = jnp.stack([jnp.stack([c, s], -1), jnp.stack([-s, c], -1)], -2)
    return jnp.stack([low, high], -1), vectors
