"""The log likelihood of a chain, with its derivative written by hand."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from statespace.chains.finite import passes
from statespace.chains.finite.types import Chain


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def log_likelihood(chain: Chain, parallel: bool | None = None) -> Float[Array, ""]:
    """``log p(y_{0:T-1})``; ``-inf`` if the data are impossible.

    Its derivative is that of Fisher's identity from one backward pass: expected numbers of visits and
    transitions (Cappé, Moulines & Rydén 2005, section 10.1.3), also at probabilities that are zero. It is
    finite where the value is not: there, moments that are impossible given their past are passed over.
    Forward and reverse mode, and derivatives of any order, are available. ``parallel`` as in
    :func:`statespace.chains.finite.filter`.
    """
    return passes.total(pointwise(chain, parallel))


@log_likelihood.defjvp
def _log_likelihood_jvp(parallel: bool | None, primals: tuple, tangents: tuple) -> tuple:
    (chain,), (direction,) = primals, tangents
    value, gradient = value_and_score(chain, parallel)
    slope = sum(jnp.sum(g * d) for g, d in zip(gradient, direction, strict=True))
    return value, jnp.asarray(slope, value.dtype)


def value_and_score(chain: Chain, parallel: bool | None = None) -> tuple[Array, Chain]:
    """The log likelihood and its derivative with respect to every array of the chain."""
    found = passes.run(chain, "slopes", parallel)
    gradient = Chain(found.ratios[0], found.sums, found.smoothed)
    return passes.total(found.pointwise), gradient


def pointwise(chain: Chain, parallel: bool | None = None) -> Float[Array, " T"]:
    """``log p(y_t | y_{0:t-1})`` for each t."""
    return passes.evidence(chain, parallel)
