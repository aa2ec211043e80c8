"""What makes an estimate of the log likelihood random, as part of what a Metropolis sampler moves."""

from __future__ import annotations

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy.stats import norm
from jaxtyping import Array, Float, PRNGKeyArray

from statespace.chains import particle
from statespace.chains.particle.quasi import curve_order
from statespace.learners.estimates import bound
from statespace.learners.likelihood import recordings
from statespace.learners.problem import Problem
from statespace.methods.quantiles import uniform_chain


class Fresh(eqx.Module):
    """A key, replaced by another at each proposal: estimates are independent."""

    def draw(self, problem: Problem, key: PRNGKeyArray) -> PRNGKeyArray:
        """The first."""
        return key

    def move(self, noise: PRNGKeyArray, key: PRNGKeyArray) -> PRNGKeyArray:
        """The one of a proposal."""
        return key

    def log_density(self, problem: Problem, z: Array, noise: PRNGKeyArray) -> Float[Array, ""]:
        """Log likelihood plus log prior density of the unconstrained parameters."""
        return bound(problem, noise).log_density(z, volume=True)


class Correlated(eqx.Module):
    """All normal numbers that a bootstrap filter takes, of which a proposal changes each a little.

    Estimates at near parameters are then near each other: the error of their *ratio*, which is what is
    accepted by, is much smaller than that of each. For that particles are put in order (along a Hilbert
    curve) before ancestors are drawn, so that near numbers give near ancestors (Deligiannidis, Doucet & Pitt
    2018).

    Args:
        particles: of the filter.
        correlation: of a number with that of the proposal.
    """

    particles: int = eqx.field(static=True)
    correlation: float = eqx.field(static=True)

    def draw(self, problem: Problem, key: PRNGKeyArray) -> tuple[Array, Array]:
        """Normal numbers for the moves ``(S, T, N, d)`` and for the resampling ``(S, T)``."""
        series, within = recordings(problem.data)
        one = jax.tree.map(lambda a: a[0], series)
        width = max(uniform_chain(problem.model, one)[1])
        dtype = problem.vector().dtype
        key_move, key_select = jax.random.split(key)
        shape = (*within.shape, self.particles, width)
        moves = jax.random.normal(key_move, shape, dtype)
        return moves, jax.random.normal(key_select, within.shape, dtype)

    def move(self, noise: tuple[Array, Array], key: PRNGKeyArray) -> tuple[Array, Array]:
        """A step that keeps the numbers normal, and is as likely as the step back."""
        rest = (1 - self.correlation**2) ** 0.5
        step = lambda a, k: self.correlation * a + rest * jax.random.normal(k, a.shape, a.dtype)
        keys = jax.random.split(key)
        return step(noise[0], keys[0]), step(noise[1], keys[1])

    def log_density(
        self, problem: Problem, z: Array, noise: tuple[Array, Array]
    ) -> Float[Array, ""]:
        """Log likelihood plus log prior density of the unconstrained parameters."""
        model, (series, _) = problem.place(z), recordings(problem.data)
        each = jax.vmap(lambda s, *noise: _log_likelihood(model, s, *noise))(series, *noise)
        return (jnp.sum(each) + problem.log_prior(z, volume=True)).astype(z.dtype)


def _log_likelihood(model: Any, series: Any, moves: Array, selects: Array) -> Float[Array, ""]:
    """The estimate of one recording, a function of normal numbers."""
    chain, (first, later) = uniform_chain(model, series)

    def start(u: Array, count: int, moment: Any) -> Any:
        return _in_order(chain.start(u[:, :first], count, moment))

    def propose(u: Array, previous: Any, moment: Any) -> Any:
        return _in_order(chain.propose(u[:, :later], previous, moment))

    edge = jnp.finfo(moves.dtype).eps
    uniform = lambda a: jnp.clip(norm.cdf(a), edge, 1 - edge)
    return particle.run(
        dataclasses.replace(chain, start=start, propose=propose),
        particle.Random(uniform(moves), uniform(selects)),
        moves.shape[1],
        threshold=1.0,
    ).log_likelihood


def _in_order(particles: Any) -> Any:
    order = curve_order(particles)
    return jax.tree.map(lambda x: x[order], particles)
