"""Conditional particle filters that draw paths: particle Gibbs, and PaRIS within it.

A conditional particle filter keeps one path among its particles. What it draws in turn, a path through its
particles, has the smoothing law if the kept one had (Andrieu, Doucet & Holenstein 2010); so has in
expectation what PaRIS makes of the same particles (the Parisian particle Gibbs sampler: Cardoso, Moulines &
Olsson 2023).
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from statespace.chains.particle.backward import Backward, Exact, inverse
from statespace.chains.particle.paris import Sums, estimate, start, trace, update
from statespace.chains.particle.recursion import history, keys, run, take
from statespace.chains.particle.resampling import is_key
from statespace.chains.particle.types import Chain, Cloud, Observer, Particles, Passage


class Trajectories(NamedTuple):
    """All clouds of a run and the numbers of ancestors.

    Attributes:
        clouds: with a leading axis of T.
        ancestors: of each particle the number of the one of the moment before.
    """

    clouds: Cloud
    ancestors: Int[Array, "T N"]


def backward_paths(
    random: Any,
    chain: Chain,
    kept: Trajectories,
    kernel: Backward,
    draws: int,
) -> tuple[Particles, Int[Array, "T draws"]]:
    """Paths through the clouds of a filter, from the last moment to the first (Godsill, Doucet & West 2004).

    Args:
        random: a PRNG key; or the uniforms: ``(draws,)`` of the last moment, and of each moment but the first
            those that the kernel takes, ``(T - 1, K, 1, draws)``.
        chain: that the filter ran.
        kept: what it left.
        kernel: the backward kernel.
        draws: how many paths, independent given the clouds.

    Returns:
        The paths, with axes of moments and draws first, and the numbers of the particles on them.
    """
    count = kept.ancestors.shape[0]
    u: Any
    each: Any
    u, each = (None, None) if is_key(random) else random
    if is_key(random):
        own, rest = jax.random.split(random)
        u = jax.random.uniform(own, (draws,), kept.clouds.log_weights.dtype)
        each = jax.random.split(rest, count)[1:]
    final = jax.tree.map(lambda x: x[-1], kept.clouds)
    last = inverse(jnp.exp(final.log_weights))(u)

    def back(later: tuple[Array, Particles], at: Any) -> tuple[Any, Any]:
        number, states = later
        random, cloud, ancestors, moment = at
        found = kernel(random, chain, moment, cloud, states, ancestors[number])[:, 0]
        return (found, take(cloud.particles, found)), later

    earlier = jax.tree.map(lambda x: x[:-1], kept.clouds)
    at = each, earlier, kept.ancestors[1:], jax.tree.map(lambda x: x[1:], chain.moments)
    first, rest = jax.lax.scan(back, (last, take(final.particles, last)), at, reverse=True)
    chosen, paths = jax.tree.map(lambda x, y: jnp.concatenate([x[None], y]), first, rest)
    return paths, chosen


class Settings(NamedTuple):
    """How conditional particle filters run.

    Attributes:
        particles: N.
        resample: the scheme, which needs a conditional version.
        threshold: resample when the effective sample size is below this share of N.
        kernel: the backward kernel.
    """

    particles: int
    resample: Any = "systematic"
    threshold: float = 1.0
    kernel: Backward = Exact()


class Move(NamedTuple):
    """What one sweep of particle Gibbs gives.

    Attributes:
        path: the new path, T states.
        moved: at which moments its particle is another than the old path's, shape ``(T,)``.
    """

    path: Particles
    moved: Bool[Array, " T"]


def conditional_move(
    random: Any, chain: Chain, path: Particles, settings: Settings, selection: str = "backward"
) -> Move:
    """A new path given one: a Markov kernel that leaves the smoothing law as it is.

    Args:
        random: a PRNG key; or a pair, the conditional filter's ``Random`` and what draws the path: for
            "backward" as in :func:`backward_paths` with one draw, otherwise one uniform ``(1,)``.
        chain: the Feynman–Kac model.
        path: T states.
        settings: how the filter runs.
        selection: "backward": the path is drawn backwards (Whiteley 2010); "ancestor": the kept path's
            ancestors are drawn anew on the way (Lindsten, Jordan & Schön 2014), and the path is a lineage;
            "lineage": a lineage alone (Andrieu, Doucet & Holenstein 2010), which hardly moves in the past.
    """
    if is_key(random):
        own, rest = jax.random.split(random)
        random = keys(own, len(jax.tree.leaves(path)[0])), rest
    ancestor = partial(ancestor_of, chain) if selection == "ancestor" else None
    filtered = run(
        chain,
        random[0],
        settings.particles,
        resample=settings.resample,
        threshold=settings.threshold,
        path=path,
        ancestor=ancestor,
        observer=history,
    )
    kept = Trajectories(*filtered.out)
    if selection == "backward":
        new, chosen = backward_paths(random[1], chain, kept, settings.kernel, 1)
    else:
        last = _one(random[1], filtered.last)
        new, chosen = trace(kept.clouds, kept.ancestors, last)
    new = jax.tree.map(lambda x: x[:, 0], new)
    return Move(new, chosen[:, 0] != 0)


def ancestor_of(chain: Chain, random: Any, before: Cloud, state: Any, moment: Any) -> Array:
    """Which particle a state came from, by the backward kernel: for ancestor sampling."""
    one = jax.tree.map(lambda x: x[None], state)
    zero = jnp.zeros(1, jnp.int32)
    random = random if is_key(random) else jnp.reshape(random, (1, 1, 1))
    return Exact()(random, chain, moment, before, one, zero)[0, 0]


def _one(random: Any, cloud: Cloud) -> Int[Array, " 1"]:
    """The number of one particle, drawn by the weights, with a key or a uniform."""
    dtype = cloud.log_weights.dtype
    u = jax.random.uniform(random, (1,), dtype) if is_key(random) else random
    return inverse(jnp.exp(cloud.log_weights))(u)


class Sweep(NamedTuple):
    """What one sweep of the Parisian particle Gibbs sampler gives.

    Attributes:
        path: the new path, T states.
        value: the estimate of the functional's expectation.
        moved: at which moments the new path's particle is another than the old one's, shape ``(T,)``.
    """

    path: Particles
    value: Any
    moved: Bool[Array, " T"]


def parisian_sweep(
    random: Any,
    chain: Chain,
    path: Particles | None,
    sums: Sums,
    settings: Settings,
    draws: int = 2,
) -> Sweep:
    """PaRIS with one path kept among the particles; then a new path (Cardoso, Moulines & Olsson 2023).

    Each particle's own path continues that of its first backward draw, and the new path is one of them, drawn
    by the particles' weights. If the kept path has the smoothing law, so has the new one, and the value is
    unbiased, with any number of particles.

    Args:
        random: a PRNG key; or a pair, the filter's ``Random`` (with ``observe``) and one uniform ``(1,)``.
        chain: the Feynman–Kac model.
        path: T states; None for a filter that keeps none, which is PaRIS and begins a Markov chain.
        sums: the functional.
        settings: how the filter runs.
        draws: how many backward draws for each particle and moment.
    """
    if is_key(random):
        own, rest = jax.random.split(random)
        steps = len(jax.tree.leaves(chain.moments)[0])
        random = keys(own, steps, observe=True), rest
    filtered = run(
        chain,
        random[0],
        settings.particles,
        resample=settings.resample,
        threshold=settings.threshold,
        path=path,
        observer=_with_paths(chain, sums, settings.kernel, draws),
    )
    value = estimate(filtered.last, filtered.state)
    clouds, numbers = filtered.out
    new, chosen = trace(clouds, numbers, _one(random[1], filtered.last))
    return Sweep(jax.tree.map(lambda x: x[:, 0], new), value, chosen[:, 0] != 0)


def _with_paths(chain: Chain, sums: Sums, kernel: Backward, draws: int) -> Observer:
    """The statistics, and of each particle the first of those that it came from."""

    def first(random: Any, cloud: Cloud, moment: Any) -> tuple[Any, Trajectories]:
        own = jnp.arange(len(cloud.log_weights), dtype=jnp.int32)
        return start(sums, cloud, moment), Trajectories(cloud, own)

    def later(statistics: Any, passage: Passage) -> tuple[Any, Trajectories]:
        random, before, ancestors, after, moment = passage
        numbers = kernel(random, chain, moment, before, after.particles, ancestors, draws)
        new = update(sums, statistics, before.particles, after.particles, numbers, moment)
        return new, Trajectories(after, numbers[:, 0])

    return Observer(first, later)
