"""Expected log densities of a switching linear chain whose states are Gaussian.

That of a linear conditional is exact. Where the regimes depend on the previous state, the expected
log-sum-exp of their law is bounded from above (Knowles & Minka 2011).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from statespace.chains.moments import vmap_moments

_TILTS = 8  # rounds that tighten the bound of an expected log-sum-exp


class Law(NamedTuple):
    """``y ~ N(F_k x + b_k, L_k L_k^T)`` in regime k; S is T, or 1 where nothing changes over time.

    Attributes:
        matrix: ``F``.
        offset: ``b``.
        whitener: ``L^{-1}``; zero rows for entries that are missing.
        log_scale: log density at the mean.
    """

    matrix: Float[Array, "S K d n"]
    offset: Float[Array, "S K d"]
    whitener: Float[Array, "S K d d"]
    log_scale: Float[Array, "S K"]


class Regimes(NamedTuple):
    """How regimes follow each other: ``log p(k | j, x) = log_softmax_k(scores[j, k] + weights[k] x)``.

    Attributes:
        initial: probabilities of the first regime.
        scores: entry ``t - 1`` leads into moment t; J is 1 where the previous regime plays no part.
        weights: of the previous state; None where it plays no part.
    """

    initial: Float[Array, " K"]
    scores: Float[Array, "S J K"]
    weights: Float[Array, "K n"] | None


class States(NamedTuple):
    """Moments of ``q(x)``; ``lag_one[t] = Cov(x_t, x_{t+1})``."""

    mean: Float[Array, "T n"]
    covariance: Float[Array, "T n n"]
    lag_one: Float[Array, "T-1 n n"]


def expected_log_density(
    law: Law, target: States, source: States | None, cross: Array | None
) -> Float[Array, "T K"]:
    """``E log N(w; F_k x + b_k, L_k L_k^T)`` at each moment and in each regime.

    Args:
        law: the regimes' laws.
        target: moments of ``w``.
        source: moments of ``x``; None for an initial law.
        cross: ``Cov(x, w)``, shape ``(T, n, d)``; None where ``w`` is known.
    """

    def moment(law: Law, w: Array, p: Array, x: Array, v: Array, c: Array) -> Array:
        def regime(f: Array, b: Array, white: Array, log_scale: Array) -> Array:
            g = white @ f
            e = white @ (w - b) - g @ x
            spread = jnp.sum((white @ p) * white) + jnp.sum((g @ v) * g)
            spread = spread - 2 * jnp.sum((g @ c) * white)
            return log_scale - 0.5 * (e @ e + spread)

        return jax.vmap(regime)(*law)

    d, n = target.mean.shape[1], law.matrix.shape[-1]
    zeros = jnp.zeros((1, d, d), target.mean.dtype)
    known = source is None or cross is None
    p = zeros if target.covariance is None else target.covariance
    x = jnp.zeros((1, n), p.dtype) if source is None else source.mean
    v = jnp.zeros((1, n, n), p.dtype) if source is None else source.covariance
    c = jnp.zeros((1, n, d), p.dtype) if known else cross
    one = lambda f, b, white, s, w, p, x, v, c: moment(Law(f, b, white, s), w, p, x, v, c)
    return vmap_moments(one, *law, target.mean, p, x, v, c)


def expected_log_transitions(
    regimes: Regimes, mean: Float[Array, "S n"], covariance: Float[Array, "S n n"]
) -> Float[Array, "S K K"]:
    """A lower bound of ``E log p(z_t = k | z_{t-1} = j, x_{t-1})``; exact where the state plays no part.

    For any ``a``, ``E log sum_k exp(psi_k) <= a' m + log sum_k exp(m_k - a' m + (e_k - a)' S (e_k - a) / 2)``
    of a Gaussian ``psi`` with mean ``m`` and covariance ``S`` (the tilted bound of Knowles & Minka 2011).
    """
    count = regimes.scores.shape[-1]
    if regimes.weights is None:
        scores = jnp.broadcast_to(regimes.scores, (len(mean), *regimes.scores.shape[1:]))
    else:
        w = regimes.weights

        def one(scores: Array, mean: Array, covariance: Array) -> Array:
            spread = w @ covariance @ w.T
            psi = scores + w @ mean
            return psi - jax.vmap(lambda m: _tilted_bound(m, spread))(psi)[:, None]

        scores = vmap_moments(one, regimes.scores, mean, covariance)
    return jnp.broadcast_to(scores, (len(scores), count, count))


def _tilted_bound(m: Float[Array, " K"], spread: Float[Array, "K K"]) -> Float[Array, ""]:
    """An upper bound of the expected log-sum-exp of a Gaussian."""
    half = 0.5 * jnp.diagonal(spread)
    # a fixed point that contracts: the map's slope is at most half the trace
    rate = 1 / (1 + 0.5 * jnp.trace(spread))

    def tighten(a: Array, _: None) -> tuple[Array, None]:
        return a + rate * (jax.nn.softmax(m + half - spread @ a) - a), None

    a = jax.lax.scan(tighten, jax.nn.softmax(m), None, length=_TILTS)[0]
    sa = spread @ a
    return 0.5 * a @ sa + jax.nn.logsumexp(m + half - sa)
