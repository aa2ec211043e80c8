"""Mixtures of Gaussian laws, each in a regime: moments, merging, and which to merge."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from statespace.chains.gaussian import algebra as la
from statespace.chains.gaussian.covariances import root
from statespace.chains.gaussian.step import absorb_site
from statespace.chains.gaussian.types import Form

_CREDIBLE = 9.0  # squared deviations that are nothing to wonder at
_WIDENED = 1e-6  # share of the mixture's variance that keeps determinants of singular laws finite


class Components(NamedTuple):
    """A mixture: regimes, and a Gaussian law for each component.

    Attributes:
        regime: 0 … K-1, shape ``(N,)``.
        mean: shape ``(N, n)``.
        spread: covariances or factors, shape ``(N, n, n)``.
        log_weights: shape ``(N,)``; -inf where there is no component.
    """

    regime: Int[Array, "*N"]
    mean: Float[Array, "*N n"]
    spread: Float[Array, "*N n n"]
    log_weights: Float[Array, "*N"]


def mixture_moments(
    weights: Float[Array, " N"], means: Float[Array, "N n"], covariances: Float[Array, "N n n"]
) -> tuple[Float[Array, " n"], Float[Array, "n n"]]:
    """Mean and covariance of a mixture of normal laws."""
    mean = weights @ means
    error = means - mean
    between = jnp.einsum("i,ij,ik->jk", weights, error, error)
    return mean, jnp.einsum("i,ijk->jk", weights, covariances) + between


def covariances(spread: Float[Array, "*N n n"], form: Form) -> Float[Array, "*N n n"]:
    """Covariances of what the form holds."""
    return spread if form == "covariance" else spread @ jnp.swapaxes(spread, -1, -2)


def spreads(covariance: Float[Array, "N n n"], form: Form) -> Float[Array, "N n n"]:
    """What the form holds of covariances that may be singular; factors are lower triangular."""
    if form == "covariance":
        return covariance
    factor = jax.vmap(root)(covariance)
    return factor if covariance.shape[-1] <= la.UNROLLED else jax.vmap(la.tria)(factor)


def collapse(mixture: Components, group: Int[Array, " M"], count: int, form: Form) -> Components:
    """One component for each group, with the moments of its members.

    A group without weight gets the moments of the whole mixture, at which any conditional can be evaluated.

    Args:
        mixture: M components with normalised weights.
        group: of each component, 0 … count-1; components of one group are in one regime, or weigh nothing.
        count: number of groups.
        form: what ``spread`` holds.
    """
    weights = jnp.exp(mixture.log_weights)
    member = group == jnp.arange(count)[:, None]
    total = member @ weights
    there = total > 0
    share = jnp.where(
        there[:, None], member * weights / jnp.where(there, total, 1)[:, None], weights
    )
    each = jax.vmap(mixture_moments, (0, None, None))
    mean, covariance = each(share, mixture.mean, covariances(mixture.spread, form))
    regime = jnp.max(jnp.where(member & (weights > 0), mixture.regime, 0), axis=1)
    log_total = jnp.where(there, jnp.log(jnp.where(there, total, 1)), -jnp.inf)
    return Components(regime, mean, spreads(covariance, form), log_total)


class Learned(NamedTuple):
    """How a Gaussian law became another, along axes that both are independent along.

    Attributes:
        axes: rows, in which the law before is of unit variance; zero where it has none.
        variance: of the law after.
        away: its mean less that before.
    """

    axes: Float[Array, "*G n n"]
    variance: Float[Array, "*G n"]
    away: Float[Array, "*G n"]


def learned(before: Components, after: Components) -> Learned:
    """How one law, with a covariance that may be singular, became another."""
    deviation = jnp.sqrt(jnp.diagonal(before.spread))
    deviation = jnp.where(deviation > 0, deviation, 1)
    values, vectors = jnp.linalg.eigh(before.spread / (deviation[:, None] * deviation))
    spans = values > len(values) * jnp.finfo(values.dtype).eps * values[-1]
    half = jnp.where(spans, 1 / jnp.sqrt(jnp.where(spans, values, 1)), 0)
    white = (vectors * half).T / deviation
    scaled = white @ after.spread @ white.T + jnp.diag(jnp.where(spans, 0, 1))
    variance, turn = jnp.linalg.eigh(scaled)
    axes = turn.T @ white
    return Learned(axes, variance, axes @ (after.mean - before.mean))


def conditioned(
    mean: Float[Array, " n"], law: Float[Array, "n n"], likelihood: Learned
) -> tuple[Float[Array, " n"], Float[Array, "n n"], Float[Array, ""]]:
    """A law given the likelihood that made one law of another, and how well it expects it.

    Along each axis the likelihood is ``exp(a x / s - (1 / s - 1) x^2 / 2)``, where ``s`` is the variance
    after and ``a`` how far the mean went. No likelihood makes a variance larger, but merging does: ``s`` is
    at most one. A law that is wider than the one before would be moved, and weighed, without bound by a
    likelihood of little precision: for it, ``s`` is at most what makes ``a`` credible.

    Args:
        mean: less that of the law before.
        law: covariance.
        likelihood: the likelihood.
    """
    axes, variance, away = likelihood
    wider = 1 - 1 / jnp.maximum(jnp.sum((axes @ law) * axes, axis=1), 1)
    most = 1 / (1 + wider * away**2 / _CREDIBLE)
    variance = jnp.clip(variance, jnp.finfo(variance.dtype).eps, most)
    precision = axes.T @ ((1 / variance - 1)[:, None] * axes)
    shift = axes.T @ (away / variance)
    moved, law, constant, gram = absorb_site(mean[:, None], law, precision, shift, "covariance")
    return moved[:, 0], law, constant - 0.5 * gram[0, 0]


def parted(
    mixture: Components, group: Int[Array, " M"], before: Components, after: Components
) -> Components:
    """The members of each group, when more is known of what they were merged in.

    Each is conditioned on the likelihood that made the group's law what it is after, and weighed by what it
    expects of it: merged, they have its moments again, as far as it could be a likelihood.

    Args:
        mixture: M components with covariances, as they were merged.
        group: of each component, as in :func:`collapse`.
        before: the groups' laws, with covariances.
        after: what became of them, with covariances.

    Returns:
        M components; those of a group weigh together what it does after.
    """
    likelihood = jax.tree.map(lambda x: x[group], jax.vmap(learned)(before, after))
    centre = before.mean[group]
    moved, law, density = jax.vmap(conditioned)(mixture.mean - centre, mixture.spread, likelihood)
    there = jnp.isfinite(mixture.log_weights)
    member = (group == jnp.arange(len(before.log_weights))[:, None]) & there
    log_weights = mixture.log_weights + density
    total = jax.nn.logsumexp(jnp.where(member, log_weights, -jnp.inf), axis=1)[group]
    share = jnp.where(there, log_weights - jnp.where(there, total, 0), -jnp.inf)
    alone = (jnp.sum(member, axis=1) == 1)[group]
    return Components(
        mixture.regime,
        jnp.where(alone[:, None], after.mean[group], centre + moved),
        jnp.where(alone[:, None, None], after.spread[group], law),
        share + after.log_weights[group],
    )


def similar(mixture: Components, count: int, form: Form) -> Int[Array, " M"]:
    """Groups of components that lose least when they are merged: see :func:`collapse`.

    From all M components on, the two of one regime are merged, again and again, for which a bound of the
    Kullback–Leibler divergence from the mixture that is left is least (Runnalls 2007, Kullback–Leibler
    approach to Gaussian mixture reduction, equation 21). With as many groups as there are regimes each is a
    regime. Components without weight are merged first.

    Args:
        mixture: M components with normalised weights.
        count: number of groups, at least the number of regimes.
        form: what ``spread`` holds.

    Returns:
        The group of each component, 0 … count-1.
    """
    size = len(mixture.log_weights)
    if size <= count:
        return jnp.arange(size)
    mixture = jax.lax.stop_gradient(mixture)
    weights = jnp.exp(mixture.log_weights)
    law = covariances(mixture.spread, form)
    deviation = jnp.sqrt(jnp.diagonal(mixture_moments(weights, mixture.mean, law)[1]))
    deviation = jnp.where(deviation > 0, deviation, 1)
    floor = _WIDENED * jnp.eye(len(deviation), dtype=law.dtype)
    law = law / (deviation[:, None] * deviation) + floor
    size_of = jax.vmap(half_log_det)(law)
    first = Merged(weights, mixture.mean / deviation, law, size_of, mixture.regime)
    alone = jnp.arange(size)

    def merge(_: int, carry: tuple) -> tuple:
        laws, cost, group, left = carry
        i, j = jnp.divmod(jnp.argmin(cost), size)
        both = joined(*(jax.tree.map(lambda x, at=at: x[at], laws) for at in (i, j)))
        # selections in place of scatters, which would be loops of their own
        here, gone = alone == i, alone == j
        put = lambda x, new: jnp.where(here.reshape(-1, *(1,) * (x.ndim - 1)), new, x)
        laws = jax.tree.map(put, laws, both)
        anew = jax.vmap(loss, (None, 0))(both, laws)
        anew = jnp.where(here, _SELF, jnp.where(left & ~gone, anew, jnp.inf))
        cost = jnp.where(here[:, None], anew, jnp.where(here, anew[:, None], cost))
        cost = jnp.where(gone[:, None] | gone, jnp.inf, cost)
        return laws, cost, jnp.where(gone[group], i, group), left & ~gone

    cost = jax.vmap(jax.vmap(loss, (None, 0)), (0, None))(first, first)
    cost = jnp.where(jnp.eye(size, dtype=bool), _SELF, cost)
    begin = (first, cost, alone, jnp.ones(size, bool))
    _, _, group, left = jax.lax.fori_loop(0, size - count, merge, begin)
    return (jnp.cumsum(left) - 1)[group]


_SELF = 1e30  # on the diagonal of the losses: no component is merged with itself


class Merged(NamedTuple):
    """Components on the way to being merged, in units of the mixture's deviations."""

    weight: Float[Array, "*M"]
    mean: Float[Array, "*M n"]
    covariance: Float[Array, "*M n n"]
    half_log_det: Float[Array, "*M"]
    regime: Int[Array, "*M"]


def half_log_det(covariance: Float[Array, "n n"]) -> Float[Array, ""]:
    """Half the logarithm of a covariance's determinant."""
    return la.log_diagonal(la.cholesky(covariance))


def joined(one: Merged, two: Merged) -> Merged:
    """Two components as one with their moments."""
    total = one.weight + two.weight
    share = jnp.where(total > 0, two.weight / jnp.where(total > 0, total, 1), 0.5)
    apart = two.mean - one.mean
    covariance = one.covariance + share * (two.covariance - one.covariance)
    covariance = covariance + share * (1 - share) * jnp.outer(apart, apart)
    regime = jnp.where(one.weight > 0, one.regime, two.regime)
    mean = one.mean + share * apart
    return Merged(total, mean, covariance, half_log_det(covariance), regime)


def loss(one: Merged, two: Merged) -> Float[Array, ""]:
    """Bound of the divergence that merging two components makes; infinite between regimes."""
    both = joined(one, two)
    bound = sum(
        sign * law.weight * law.half_log_det for law, sign in ((both, 1), (one, -1), (two, -1))
    )
    bound = jnp.where(one.regime == two.regime, bound, jnp.inf)
    return jnp.where((one.weight > 0) & (two.weight > 0), bound, -jnp.inf)
