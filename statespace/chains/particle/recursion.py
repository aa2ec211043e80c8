"""The recursion of a particle filter: resample, propose, weigh."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from statespace.chains.particle.differentiable import Gradient, Transport
from statespace.chains.particle.resampling import is_key, resampling_named
from statespace.chains.particle.types import (
    Chain,
    Cloud,
    Observer,
    Particles,
    Passage,
    Random,
    Run,
)

Ancestors = Int[Array, " N"]
Selection = tuple[Particles, Float[Array, " N"], Ancestors]


def keys(key: Key[Array, ""], steps: int, observe: bool = False) -> Random:
    """The usual randomness of a run: a PRNG key for each purpose and moment."""
    split = jax.random.split(key, (3 if observe else 2, steps))
    return Random(*split)


def run(
    chain: Chain,
    random: Random,
    particles: int,
    *,
    resample: str | Callable[..., Ancestors] = "systematic",
    threshold: float = 0.5,
    path: Any = None,
    ancestor: Callable[..., Int[Array, ""]] | None = None,
    observer: Observer | None = None,
    gradient: Gradient | None = None,
) -> Run:
    """Run a particle filter over all moments (Del Moral 2004; Chopin & Papaspiliopoulos 2020, alg. 10.3).

    Memory is of order N, besides a few numbers for each moment and what an observer gives out. A log weight
    that is NaN is an error of the model, and stays one: the log likelihood is then NaN, and ``pointwise``
    shows where it began.

    Args:
        chain: how particles move and what they weigh.
        random: where its random choices come from; :func:`keys` makes the usual one.
        particles: N, at least 2.
        resample: a scheme, by name or as a function ``(random, log_weights) -> ancestors``.
        threshold: resample when the effective sample size is below this share of N; 1: always; 0: never.
        path: states ``(T, ...)`` in the form of the particles: conditional particle filter (Andrieu, Doucet &
            Holenstein 2010), in which slot 0 holds this path.
        ancestor: ``(random, before, state, moment) -> number``: draws the ancestor of the path's ``state``
            anew at each moment (ancestor sampling, Lindsten, Jordan & Schön 2014). Each entry of
            ``random.resample`` is then a pair, for the resampling and for this; a PRNG key is split.
        observer: what to collect on the way.
        gradient: what makes the log likelihood differentiable: see
            :mod:`statespace.chains.particle.differentiable`. None: derivatives leave out how the ancestors
            depend on the weights.

    Raises:
        ValueError: for fewer than two particles, a threshold outside [0, 1], a path of another length,
            ancestor sampling without a path, or a path with a scheme without a conditional version or with
            optimal transport.
    """
    scheme = resampling_named(resample)
    steps = _length(chain, random, path)
    _check(particles, threshold, path, ancestor, scheme)
    if path is not None and isinstance(gradient, Transport):
        raise ValueError(
            "optimal transport moves a path away: a conditional particle filter has none"
        )
    kernel = Kernel(chain, particles, scheme, threshold, ancestor, gradient)

    def row(t: int) -> tuple[Any, ...]:
        return jax.tree.map(lambda x: x[t], (random, chain.moments, path))

    cloud, (pointwise, ess, impossible) = kernel.first(*row(0))
    state = out = None
    if observer is not None:
        state, out = observer.first(row(0)[0].observe, cloud, row(0)[1])
    head = (pointwise, ess, jnp.zeros((), bool), impossible), out

    def step(carry: tuple[Cloud, Any], at: tuple[Any, ...]) -> tuple[Any, Any]:
        before, state = carry
        cloud, ancestors, report = kernel.later(before, *at)
        out = None
        if observer is not None:
            passage = Passage(at[0].observe, before, ancestors, cloud, at[1])
            state, out = observer.later(state, passage)
        return (cloud, state), (report, out)

    rest = jax.tree.map(lambda x: x[1:], (random, chain.moments, path))
    (cloud, state), tail = jax.lax.scan(step, (cloud, state), rest, length=steps - 1)
    (pointwise, ess, resampled, impossible), out = jax.tree.map(
        lambda x, y: jnp.concatenate([x[None], y]), head, tail
    )
    return Run(cloud, jnp.sum(pointwise), pointwise, ess, resampled, impossible, state, out)


class Kernel:
    """One step of the recursion, and the first."""

    def __init__(
        self,
        chain: Chain,
        particles: int,
        scheme: Any,
        threshold: float,
        ancestor: Callable[..., Int[Array, ""]] | None = None,
        gradient: Gradient | None = None,
    ):
        self.chain, self.count, self.scheme = chain, particles, scheme
        self.threshold, self.ancestor, self.gradient = threshold, ancestor, gradient

    def first(self, random: Random, moment: Any, kept: Any) -> tuple[Cloud, tuple]:
        """The cloud of the first moment, and what is reported of it."""
        particles = self.chain.start(random.propose, self.count, moment)
        particles = _with_kept(particles, kept)
        increments = self.chain.weigh_start(particles, moment)
        uniform = jnp.full_like(increments, -math.log(self.count))
        log_weights, report = _weigh(uniform, increments, normalised=True)
        return Cloud(particles, log_weights), report

    def later(
        self, before: Cloud, random: Random, moment: Any, kept: Any
    ) -> tuple[Cloud, Ancestors, tuple]:
        """The next cloud, its ancestors, and what is reported of it."""
        previous, log_weights, ancestors, resampled = self._select(before, random, moment, kept)
        particles = self.chain.propose(random.propose, previous, moment)
        particles = _with_kept(particles, kept)
        increments = self.chain.weigh(previous, particles, moment)
        plain = self.chain.look_ahead is None and self.gradient is None
        log_weights, report = _weigh(log_weights, increments, normalised=plain)
        pointwise, ess, impossible = report
        return Cloud(particles, log_weights), ancestors, (pointwise, ess, resampled, impossible)

    def _select(
        self, before: Cloud, random: Random, moment: Any, kept: Any
    ) -> tuple[Particles, Float[Array, " N"], Ancestors, Bool[Array, ""]]:
        """The ancestors' states, log weights before the new observation, and which they are."""
        ahead = before.log_weights
        if self.chain.look_ahead is not None:
            ahead = ahead + self.chain.look_ahead(before.particles, moment)
            ahead = _normalised(ahead, before.log_weights)
        if self.threshold >= 1:
            # True, but not to the compiler: across a branch it does not fuse, and so does not draw the same
            # noise several times over for several uses of a particle.
            needed = jnp.max(ahead) < jnp.inf
        elif self.threshold <= 0:
            needed = jnp.zeros((), bool)
        else:
            needed = _ess(ahead) < self.threshold * self.count
        if self.gradient is not None and not isinstance(self.gradient, Transport):
            ahead = self.gradient.weights(ahead)
        own, again = random.resample, None
        new = jnp.zeros((), jnp.int32)
        if self.ancestor is not None:
            own, again = jax.random.split(own) if is_key(own) else own
            new = self.ancestor(again, before, kept, moment).astype(jnp.int32)
        same = jnp.arange(self.count, dtype=jnp.int32)

        def draw() -> Selection:
            equal = jnp.full_like(ahead, -math.log(self.count))
            if isinstance(self.gradient, Transport):
                return self.gradient.move(before.particles, before.log_weights), equal, same
            fixed = jax.lax.stop_gradient(ahead)
            ancestors = self._draw(own, fixed, kept, new).astype(jnp.int32)
            if self.chain.look_ahead is not None or self.gradient is not None:
                # what was drawn more often than by its weight weighs less
                equal = equal + _difference(before.log_weights, ahead)[ancestors]
            return take(before.particles, ancestors), equal, ancestors

        def keep() -> Selection:
            if self.ancestor is None:
                return *before, same
            swapped = same.at[new].set(0).at[0].set(new)  # the path and its new ancestor
            return *take(tuple(before), swapped), swapped

        if self.threshold <= 0:
            selection = keep()
        else:
            selection = jax.lax.cond(needed, draw, keep)
        return *selection, needed

    def _draw(
        self, random: Any, log_weights: Float[Array, " N"], kept: Any, new: Array
    ) -> Ancestors:
        if kept is None:
            return self.scheme(random, log_weights)
        if self.ancestor is None:
            return self.scheme.conditional(random, log_weights)
        # given that slot 0 has ancestor `new`: as for 0, with the numbers turned around
        turned = self.scheme.conditional(random, jnp.roll(log_weights, -new))
        return (turned + new) % self.count


def take(particles: Particles, ancestors: Ancestors) -> Particles:
    """The particles of these numbers, all of which exist."""
    return jax.tree.map(lambda x: x.at[ancestors].get(mode="promise_in_bounds"), particles)


def _with_kept(particles: Particles, kept: Any) -> Particles:
    if kept is None:
        return particles
    return jax.tree.map(lambda x, state: x.at[0].set(state), particles, kept)


def _weigh(
    log_weights: Float[Array, " N"], increments: Float[Array, " N"], *, normalised: bool
) -> tuple[Float[Array, " N"], tuple[Array, Array, Array]]:
    """New normalised log weights; the log of the sum of the products, ESS, and whether it was impossible."""
    joint = log_weights + increments
    peak = jnp.max(joint)
    # stopped, as in logsumexp: the value does not depend on it
    shift = jax.lax.stop_gradient(jnp.where(jnp.isneginf(peak), 0, peak))
    linear = jnp.exp(joint - shift)
    total = jnp.sum(linear)
    impossible = jnp.isneginf(peak)
    pointwise = shift + jnp.log(jnp.where(impossible, 1, total))
    fallback = log_weights if normalised else log_weights - jax.nn.logsumexp(log_weights)
    after = jnp.where(impossible, fallback, joint - pointwise)
    ess = jnp.where(impossible, _ess(fallback), total**2 / jnp.sum(linear**2))
    return after, (jnp.where(impossible, -jnp.inf, pointwise), ess, impossible)


def _normalised(log_weights: Float[Array, " N"], otherwise: Float[Array, " N"]) -> Array:
    total = jax.nn.logsumexp(log_weights)
    return jnp.where(jnp.isneginf(total), otherwise, log_weights - total)


def _difference(x: Float[Array, " N"], y: Float[Array, " N"]) -> Float[Array, " N"]:
    """``x - y``, and 0 where both are minus infinity: of weights that are never drawn."""
    none = jnp.isneginf(y)
    return jnp.where(none, 0, x) - jnp.where(none, 0, y)


def _ess(log_weights: Float[Array, " N"]) -> Float[Array, ""]:
    return 1 / jnp.sum(jnp.exp(2 * log_weights))


def _first(random: Any, cloud: Cloud, moment: Any) -> tuple[None, tuple[Cloud, Ancestors]]:
    return None, (cloud, jnp.arange(len(cloud.log_weights), dtype=jnp.int32))


def _later(state: None, passage: Passage) -> tuple[None, tuple[Cloud, Ancestors]]:
    return None, (passage.after, passage.ancestors)


history = Observer(_first, _later)
"""Gives out every cloud, and of each particle the number of its ancestor."""


def _length(chain: Chain, random: Random, path: Any) -> int:
    lengths = {x.shape[0] for x in jax.tree.leaves(chain.moments)}
    if len(lengths) != 1:
        raise ValueError(f"moments must share one leading axis of T; got lengths {sorted(lengths)}")
    (steps,) = lengths
    for name, given in (("random", random), ("path", path)):
        other = {x.shape[0] for x in jax.tree.leaves(given)} - {steps}
        if other:
            raise ValueError(
                f"{name} must have a leading axis of {steps}, one entry for each moment; "
                f"got {sorted(other)[0]}"
            )
    return steps


def _check(particles: int, threshold: float, path: Any, ancestor: Any, scheme: Any) -> None:
    if particles < 2:
        raise ValueError(f"particles must be at least 2; got {particles}")
    if not 0 <= threshold <= 1:
        raise ValueError(
            f"threshold must be within [0, 1], a share of the particles; got {threshold}"
        )
    if ancestor is not None and path is None:
        raise ValueError("ancestor draws the ancestors of a path: give path as well")
    if path is not None and not hasattr(scheme, "conditional"):
        raise ValueError(
            "a conditional particle filter needs a resampling scheme with a method `conditional` "
            f"as those of SCHEMES have; {scheme!r} has none"
        )
