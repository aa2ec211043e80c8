"""Beliefs about the signs and strengths of connections, given a likelihood that is quadratic near them.

An edge is ``w = sign * strength``: its sign is -1, 0 or 1 (inhibitory, none, excitatory) with probabilities
``p`` of its own, which the states share; its strength is half-normal, ``density 2 N(strength; 0, scale^2)``.
The sign is summed and the strength integrated out exactly, edge by edge given the others' means: a
variational posterior that factorises over the edges (not over sign and strength of one).

References: Li et al. (2024), One-hot generalized linear model for switching brain state discovery, ICLR (the
model); Carbonetto & Stephens (2012), Scalable variational inference for Bayesian variable selection in
regression, Bayesian Analysis 7, 73-108 (the recursion); Asuncion et al. (2009), On smoothing and inference
for topic models, UAI (the shared probabilities integrated out, to zeroth order).
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.stats import norm
from jaxtyping import Array, Bool, Float


class Edges(NamedTuple):
    """Beliefs about coefficients of K states and m channels, p of each; not all are edges.

    Attributes:
        probs: of inhibitory, none, excitatory.
        mean: of the coefficient.
        square: mean square of the coefficient; for one that is no edge, the square of its value.
    """

    probs: Float[Array, "K m p 3"]
    mean: Float[Array, "K m p"]
    square: Float[Array, "K m p"]


class Kinds(NamedTuple):
    """What each of p coefficients is.

    Attributes:
        edge: whether it has a sign and a strength.
        shared: whether the states share it.
        precision: of its Gaussian prior around zero, where it is no edge.
    """

    edge: Bool[Array, " p"]
    shared: Bool[Array, " p"]
    precision: Float[Array, " p"]


class Site(NamedTuple):
    """A quadratic in place of the log likelihood: ``linear . c - c . information c / 2`` of each channel.

    Attributes:
        linear: its first-order term.
        information: minus its second derivative.
    """

    linear: Float[Array, "K m p"]
    information: Float[Array, "K m p p"]


def site(
    at: Float[Array, "K m p"], gradient: Float[Array, "K m p"], information: Float[Array, "K m p p"]
) -> Site:
    """The quadratic with this gradient and information at some coefficients."""
    return Site(gradient + jnp.einsum("kmij,kmj->kmi", information, at), information)


def start(coefficients: Float[Array, "K m p"], concentration: Float[Array, " 3"]) -> Edges:
    """Beliefs before anything is known of the signs, around given coefficients."""
    probs = jnp.broadcast_to(concentration / jnp.sum(concentration), (*coefficients.shape, 3))
    return Edges(probs, coefficients, coefficients**2)


def sign_and_strength(
    linear: Float[Array, "*n"],
    information: Float[Array, "*n"],
    log_prior: Float[Array, "*n 3"],
    scale: Float[Array, ""],
) -> tuple[Float[Array, "*n 3"], Float[Array, "*n"], Float[Array, "*n"]]:
    """The posterior of an edge whose log likelihood is ``linear * w - information * w^2 / 2``.

    Returns:
        Probabilities of the signs, mean and mean square of ``w``.
    """
    precision = information + scale**-2
    centre, width = linear / precision, precision**-0.5
    ratio = centre / width
    # against none: of the integral over the strength, the part that does not depend on the sign
    common = 0.5 * linear * centre - 0.5 * jnp.log(precision) - jnp.log(scale) + jnp.log(2.0)
    inhibitory, excitatory = norm.logcdf(-ratio), norm.logcdf(ratio)
    evidence = jnp.stack(
        [common + inhibitory, jnp.zeros_like(common), common + excitatory], axis=-1
    )
    probs = jax.nn.softmax(log_prior + evidence, axis=-1)
    density = norm.logpdf(ratio)
    below = centre - width * jnp.exp(density - inhibitory)
    above = centre + width * jnp.exp(density - excitatory)
    mean = probs[..., 0] * below + probs[..., 2] * above
    square = probs[..., 0] * (centre * below + width**2) + probs[..., 2] * (
        centre * above + width**2
    )
    return probs, mean, square


def refine(
    edges: Edges,
    likelihood: Site,
    kinds: Kinds,
    concentration: Float[Array, " 3"],
    scale: Float[Array, ""],
    sweeps: int,
) -> Edges:
    """Beliefs after some sweeps over the coefficients, each updated given the means of the others.

    Args:
        edges: beliefs.
        likelihood: of the coefficients.
        kinds: what each coefficient is.
        concentration: of the Dirichlet prior of the probabilities of the signs.
        scale: of the strengths.
        sweeps: how often each coefficient is updated.
    """
    information = likelihood.information
    gradient = likelihood.linear - jnp.einsum("kmij,kmj->kmi", information, edges.mean)
    p = gradient.shape[-1]

    def update(i: Array, carry: tuple[Edges, Array]) -> tuple[Edges, Array]:
        (probs, mean, square), gradient = carry
        j = i % p
        own, slope, now = information[:, :, j, j], gradient[:, :, j], mean[:, :, j]
        others = jnp.sum(probs[:, :, j], axis=0) - probs[:, :, j]
        signs, edge_mean, edge_square = sign_and_strength(
            own * now + slope, own, jnp.log(concentration + others), scale
        )
        shared = kinds.shared[j]
        all_slope = jnp.where(shared, jnp.sum(slope, axis=0), slope)
        all_own = jnp.where(shared, jnp.sum(own, axis=0), own)
        full = all_own + kinds.precision[j]
        known = full > 0
        value = jnp.where(known, (all_own * now + all_slope) / jnp.where(known, full, 1), now)
        new = jnp.where(kinds.edge[j], edge_mean, value)
        gradient = gradient - information[..., j] * (new - now)[..., None]
        edges = Edges(
            probs.at[:, :, j].set(jnp.where(kinds.edge[j], signs, probs[:, :, j])),
            mean.at[:, :, j].set(new),
            square.at[:, :, j].set(jnp.where(kinds.edge[j], edge_square, value**2)),
        )
        return edges, gradient

    return jax.lax.fori_loop(0, sweeps * p, update, (edges, gradient))[0]


def strength_scale(edges: Edges, kinds: Kinds, scale: Float[Array, ""]) -> Float[Array, ""]:
    """The scale of the strengths at its maximum given the beliefs; the old one counts as one edge."""
    there = jnp.sum((1 - edges.probs[..., 1]) * kinds.edge)
    squares = jnp.sum(edges.square * kinds.edge)
    return jnp.sqrt((squares + scale**2) / (there + 1))


def connectivity(
    probs: Float[Array, "K m p 3"], concentration: Float[Array, " 3"]
) -> Float[Array, "m p 3"]:
    """Posterior mean of the probabilities of the signs, which the states share."""
    counts = concentration + jnp.sum(probs, axis=0)
    return counts / jnp.sum(counts, axis=-1, keepdims=True)
