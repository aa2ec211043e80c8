"""Two-filter smoothing: a filter forwards, one backwards, and their pairs.

The backward filter targets ``g_t(x_t) p(y_{t:T} | x_t)`` with an artificial prior density ``g_t``, without
which it would be no law (Briers, Doucet & Maskell 2010). Prior and proposals are taken from the forward
filter: ``g_t`` is the Gaussian with the mean and covariance of its prediction, and states are proposed
backwards by the linear regression of one moment's states on the next one's in its pairs, both with heavier
tails. For a linear Gaussian model these are the exact backward kernels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from statespace.chains.particle.backward import AT_ONCE
from statespace.chains.particle.recursion import take
from statespace.chains.particle.resampling import resampling_named
from statespace.chains.particle.types import Chain, Cloud

WIDER = 1.2
"""By which factor artificial laws are wider than the clouds they are taken from."""


class Normal(NamedTuple):
    """``N(mean, factor factor^T)``.

    Attributes:
        mean: shape ``(n,)``.
        factor: lower triangular, shape ``(n, n)``.
    """

    mean: Float[Array, " n"]
    factor: Float[Array, "n n"]

    def log_prob(self, x: Float[Array, "N n"], shift: Any = 0.0) -> Float[Array, " N"]:
        """Log densities, with the mean moved by ``shift``."""
        z = jax.scipy.linalg.solve_triangular(self.factor, (x - self.mean - shift).T, lower=True)
        log_det = jnp.sum(jnp.log(jnp.diagonal(self.factor)))
        return (
            -0.5 * jnp.sum(z * z, axis=0) - log_det - 0.5 * len(self.mean) * math.log(2 * math.pi)
        )


class Regression(NamedTuple):
    """Of one moment's state on the next one's: ``N(law.mean + slope (x' - centre), …)``.

    Attributes:
        law: at ``x' = centre``.
        slope: shape ``(n, n)``.
        centre: shape ``(n,)``.
    """

    law: Normal
    slope: Float[Array, "n n"]
    centre: Float[Array, " n"]

    def shift(self, later: Float[Array, "N n"]) -> Float[Array, "N n"]:
        """By how much the mean moves with the next state."""
        return (later - self.centre) @ self.slope.T


def two_filter(
    key: Array,
    chain: Chain,
    potential: Callable[..., Array],
    clouds: Cloud,
    ancestors: Int[Array, "T N"],
    resample: Any = "systematic",
) -> tuple[Cloud, Float[Array, ""]]:
    """Smoothing weights of particles that a backward filter draws.

    Args:
        key: a PRNG key.
        chain: the Feynman–Kac model, whose states are arrays ``(n,)`` and whose transition has a density.
        potential: ``(particles, moment) -> (N,)``: log density of the observation.
        clouds: of a forward filter, with a leading axis of T.
        ancestors: of each particle the number of the one of the moment before.
        resample: the scheme of the backward filter.

    Returns:
        Clouds with a leading axis of T, each with the smoothing law's weights: those of the backward
        particles, but for the first moment, where they are the forward filter's particles; and the smallest
        effective sample size of the backward filter.
    """
    transition = chain.transition
    if transition is None:
        raise ValueError("two filters need `transition` of the chain, which has no density.")
    scheme = resampling_named(resample)
    particles, log_weights = clouds.particles, clouds.log_weights
    count, steps = log_weights.shape[1], len(log_weights)

    # predicted pairs (x_{t-1}, x_t) of the forward filter, with the weights of moment t-1
    weights = jnp.exp(log_weights)
    before = jax.vmap(take)(particles[:-1], ancestors[1:])
    shares = _pair_shares(weights[:-1], ancestors[1:])
    prior = jax.vmap(_normal)(particles[1:], shares)
    back = jax.vmap(_regression)(before, particles[1:], shares)
    moments = jax.tree.map(lambda x: x[1:], chain.moments)
    keys = jax.random.split(key, steps - 1)

    def last(key: Array, prior: Normal, moment: Any) -> Cloud:
        noise = jax.random.normal(key, (count, len(prior.mean)), particles.dtype)
        x = prior.mean + noise @ prior.factor.T
        return _normalised(x, potential(x, moment))

    def earlier(later: Cloud, at: Any) -> tuple[Cloud, Cloud]:
        key, prior, next_prior, law, moment, next_moment = at
        own, rest = jax.random.split(key)
        chosen = take(later.particles, scheme(own, later.log_weights))
        shift = law.shift(chosen)
        noise = jax.random.normal(rest, chosen.shape, chosen.dtype)
        x = law.law.mean + shift + noise @ law.law.factor.T
        weight = (
            prior.log_prob(x)
            + potential(x, moment)
            + transition(x, chosen, next_moment)
            - next_prior.log_prob(chosen)
            - law.law.log_prob(x, shift)
        )
        cloud = _normalised(x, weight)
        return cloud, cloud

    row = lambda tree, s: jax.tree.map(lambda x: x[s], tree)
    final = last(keys[-1], row(prior, -1), row(moments, -1))
    at = (
        keys[:-1],
        row(prior, slice(None, -1)),
        row(prior, slice(1, None)),
        row(back, slice(1, None)),
        row(moments, slice(None, -1)),
        row(moments, slice(1, None)),
    )
    _, rest = jax.lax.scan(earlier, final, at, reverse=True)
    backward = jax.tree.map(lambda x, y: jnp.concatenate([x, y[None]]), rest, final)

    def meet(at: Any) -> Float[Array, " N"]:
        forward, own, prior, moment = at
        ahead = _sums(transition, forward, own.particles, moment)
        return _normalised(
            None, own.log_weights + ahead - prior.log_prob(own.particles)
        ).log_weights

    smoothed = jax.lax.map(meet, (row(clouds, slice(None, -1)), backward, prior, moments))
    first = _first(transition, row(clouds, 0), row(backward, 0), row(prior, 0), row(moments, 0))
    ess = 1 / jnp.max(jnp.sum(jnp.exp(2 * backward.log_weights), axis=1))
    joined = Cloud(
        jnp.concatenate([particles[:1], backward.particles]),
        jnp.concatenate([first[None], smoothed]),
    )
    return joined, ess


def _first(
    transition: Callable[..., Array], forward: Cloud, later: Cloud, prior: Normal, moment: Any
) -> Float[Array, " N"]:
    """Weights of the first moment's particles, from the backward filter of the second."""
    weighted = Cloud(later.particles, later.log_weights - prior.log_prob(later.particles))
    turned = lambda x, state, moment: transition(state, x, moment)
    sums = _sums(turned, weighted, forward.particles, moment)
    return _normalised(None, forward.log_weights + sums).log_weights


def _sums(
    density: Callable[..., Array], cloud: Cloud, states: Float[Array, "N n"], moment: Any
) -> Float[Array, " N"]:
    """``log sum_i w_i p(state | x_i)`` of every state, for a block of them at a time."""
    count = len(cloud.log_weights)

    def one(state: Float[Array, " n"]) -> Float[Array, ""]:
        every = jnp.broadcast_to(state, (count, *state.shape))
        return jax.nn.logsumexp(cloud.log_weights + density(cloud.particles, every, moment))

    block = max(1, AT_ONCE.get(jax.default_backend(), 2**16) // count)
    if block >= len(states):
        return jax.vmap(one)(states)
    return jax.lax.map(one, states, batch_size=block)


def _pair_shares(weights: Float[Array, "T N"], ancestors: Int[Array, "T N"]) -> Float[Array, "T N"]:
    """Weights of pairs: each previous particle's own, shared among those that come from it."""

    def one(w: Array, a: Array) -> Array:
        sharing = jnp.zeros_like(w).at[a].add(1.0)
        share = w[a] / sharing[a]
        return share / jnp.sum(share)

    return jax.vmap(one)(weights, ancestors)


def _normal(x: Float[Array, "N n"], weights: Float[Array, " N"]) -> Normal:
    mean = weights @ x
    return Normal(mean, _factor(_covariance(x - mean, x - mean, weights)))


def _regression(
    before: Float[Array, "N n"], after: Float[Array, "N n"], weights: Float[Array, " N"]
) -> Regression:
    mean, centre = weights @ before, weights @ after
    here, there = before - mean, after - centre
    cross = _covariance(here, there, weights)
    spread = _steady(_covariance(there, there, weights))
    slope = jnp.linalg.solve(spread, cross.T).T
    error = here - there @ slope.T
    return Regression(Normal(mean, _factor(_covariance(error, error, weights))), slope, centre)


def _covariance(x: Array, z: Array, weights: Array) -> Float[Array, "n n"]:
    return (x * weights[:, None]).T @ z


def _factor(covariance: Float[Array, "n n"]) -> Float[Array, "n n"]:
    return WIDER * jnp.linalg.cholesky(_steady(covariance))


def _steady(covariance: Float[Array, "n n"]) -> Float[Array, "n n"]:
    """With a little on the diagonal, for clouds of few different particles."""
    size = jnp.finfo(covariance.dtype).eps ** 0.5
    spread = jnp.diagonal(covariance)
    return covariance + jnp.diag(size * (spread + jnp.max(spread)) + jnp.finfo(size.dtype).tiny)


def _normalised(particles: Any, log_weights: Float[Array, " N"]) -> Cloud:
    return Cloud(particles, log_weights - jax.nn.logsumexp(log_weights))
