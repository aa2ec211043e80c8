"""Integrating out flat directions of the initial state after the passes (de Jong 1991)."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from statespace.chains.moments import compensated_sum


class Flat(NamedTuple):
    """The law of the diffuse coefficients given data: ``delta ~ N(mean, root root^T)``."""

    mean: Float[Array, " q"]
    root: Float[Array, "q q"]
    log_evidence: Float[Array, ""]


def total(gram: Float[Array, "T c c"]) -> Float[Array, "c c"]:
    """The sum over moments, rounded once."""
    return compensated_sum(gram)


def integrate(gram: Float[Array, "c c"]) -> Flat:
    """The law of delta from ``exp(-z^T gram z / 2)``, ``z = (1, delta)``, and its integral over delta.

    The factor ``(2 pi)^{q/2}`` of the integral cancels against q of the observations' normalising
    constants, so that a diffuse direction contributes no ``-log(2 pi) / 2`` (Durbin & Koopman 2012, 7.2.2).
    """
    q = gram.shape[0] - 1
    if q == 0:
        zero = jnp.zeros(0, gram.dtype)
        return Flat(zero, jnp.zeros((0, 0), gram.dtype), -0.5 * gram[0, 0])
    information, score = gram[1:, 1:], -gram[1:, 0]
    sd = jnp.sqrt(jnp.diagonal(information))
    factor = jnp.linalg.cholesky(information / (sd[:, None] * sd[None, :]))
    root = jax.scipy.linalg.solve_triangular(factor, jnp.diag(1 / sd), lower=True).T
    mean = root @ (root.T @ score)
    log_det = 2 * jnp.sum(jnp.log(jnp.diagonal(factor))) + 2 * jnp.sum(jnp.log(sd))
    quadratic = gram[0, 0] - jnp.sum((root.T @ score) ** 2)
    return Flat(mean, root, -0.5 * quadratic - 0.5 * log_det + 0.5 * q * _LOG_2PI)


_LOG_2PI = 1.8378770664093453


def collapse(columns: Float[Array, "T n c"], flat: Flat) -> Float[Array, "T n c"]:
    """Columns in terms of standard normal coefficients: the mean first, then its spread over delta."""
    mean = columns[..., 0] + columns[..., 1:] @ flat.mean
    return jnp.concatenate([mean[..., None], columns[..., 1:] @ flat.root], axis=-1)


class Partial(NamedTuple):
    """The law of delta given the data so far, in which some directions may still be flat."""

    mean: Float[Array, " q"]
    covariance: Float[Array, "q q"]
    flat: Float[Array, "q q"]
    log_evidence: Float[Array, ""]


def integrate_identified(gram: Float[Array, "c c"]) -> Partial:
    """Like :func:`integrate`, over the directions that the data so far identify.

    ``flat`` projects on the others.
    """
    q = gram.shape[0] - 1
    information, score = gram[1:, 1:], -gram[1:, 0]
    values, vectors = jnp.linalg.eigh(information)
    largest = jnp.max(values, initial=0.0)
    known = values > q * 64 * jnp.finfo(gram.dtype).eps * largest
    inverse = jnp.where(known, 1 / jnp.where(known, values, 1), 0)
    pulled = vectors.T @ score
    mean = vectors @ (inverse * pulled)
    covariance = (vectors * inverse) @ vectors.T
    flat = (vectors * jnp.where(known, 0, 1)) @ vectors.T
    log_det = jnp.sum(jnp.where(known, jnp.log(jnp.where(known, values, 1)), 0))
    quadratic = gram[0, 0] - jnp.sum(inverse * pulled**2)
    evidence = -0.5 * quadratic - 0.5 * log_det + 0.5 * jnp.sum(known) * _LOG_2PI
    return Partial(mean, covariance, flat, evidence)


def running(gram: Float[Array, "T c c"]) -> Partial:
    """:func:`integrate_identified` for the data up to each moment."""
    return jax.vmap(integrate_identified)(jnp.cumsum(gram, axis=0))


def moments(
    columns: Float[Array, "n c"], covariance: Float[Array, "n n"], law: Partial
) -> tuple[Array, Array]:
    """Mean and covariance of a state over delta; infinite where a flat direction still enters."""
    spread = columns[:, 1:]
    mean = columns[:, 0] + spread @ law.mean
    covariance = covariance + spread @ law.covariance @ spread.T
    open_ = spread @ law.flat
    size = jnp.sum(open_**2, axis=1)
    reach = size > jnp.finfo(size.dtype).eps * jnp.maximum(jnp.sum(spread**2, axis=1), 1e-300)
    infinite = reach[:, None] & reach[None, :]
    sign = jnp.where(open_ @ open_.T < 0, -jnp.inf, jnp.inf)
    overlap = jnp.abs(open_ @ open_.T) > jnp.finfo(size.dtype).eps * jnp.sqrt(
        size[:, None] * size[None, :]
    )
    return mean, jnp.where(infinite & overlap, sign, covariance)
