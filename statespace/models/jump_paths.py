"""Paths of Markov jump processes in continuous time: simulated exactly, and looked at."""

from __future__ import annotations

from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from statespace.chains.finite.sampling import choose
from statespace.checks import known
from statespace.conditionals.generators import JumpStatistics


class JumpPaths(eqx.Module):
    """Paths ``z(t)``, ``0 <= t <= duration``, of a jump process, known throughout.

    Attributes:
        times: shape ``(paths, J + 1)``: 0 and the moments of the jumps, infinite after the last.
        states: shape ``(paths, J + 1)``: the state entered at each of them; after the last it is repeated.
        duration: how long each path is.
        complete: shape ``(paths,)``: False for a path that would have gone on jumping after ``J`` jumps.
        count: the number K of states.
    """

    times: Float[Array, "paths J"]
    states: Int[Array, "paths J"]
    duration: Float[Array, ""]
    complete: Bool[Array, " paths"]
    count: int = eqx.field(static=True)

    def __len__(self) -> int:
        return len(self.times)

    @property
    def jumps(self) -> Int[Array, " paths"]:
        """Number of jumps of each path."""
        return jnp.sum(jnp.isfinite(self.times), axis=1) - 1

    def at(self, moments: Any) -> Int[Array, "paths T"]:
        """The states at given moments, which are the same for all paths, ``(T,)``, or ``(paths, T)``.

        Raises:
            ValueError: if a moment is outside of the paths.
        """
        moments = jnp.asarray(moments, self.times.dtype)
        inside = (moments >= 0) & (moments <= self.duration)
        if known(inside) and not bool(jnp.all(inside)):
            raise ValueError(
                f"`moments` must lie between 0 and the duration {float(self.duration):g} of the paths, got "
                f"{float(moments.min()):g} to {float(moments.max()):g}."
            )
        moments = jnp.broadcast_to(moments, (len(self), moments.shape[-1]))
        place = jax.vmap(lambda t, m: jnp.searchsorted(t, m, side="right"))(self.times, moments)
        return jnp.take_along_axis(self.states, place - 1, axis=1)

    def statistics(self) -> JumpStatistics:
        """Time spent in each state, ``(paths, K)``, and numbers of jumps between them, ``(paths, K, K)``."""
        ends = jnp.minimum(
            jnp.pad(self.times[:, 1:], ((0, 0), (0, 1)), constant_values=jnp.inf), self.duration
        )
        lasts = ends - jnp.minimum(self.times, self.duration)
        visit = jax.nn.one_hot(self.states, self.count, dtype=self.times.dtype)
        happened = jnp.isfinite(self.times[:, 1:]).astype(self.times.dtype)
        jumps = jnp.einsum("pj,pja,pjb->pab", happened, visit[:, :-1], visit[:, 1:])
        return JumpStatistics(jnp.einsum("pj,pja->pa", lasts, visit), jumps)


def jump_bound(generator: Float[Array, "K K"], duration: float) -> int:
    """So many jumps that a path has more with a probability below 1e-12.

    The number of jumps is at most a Poisson variable whose mean is the fastest rate times the duration.
    """
    mean = float(-np.diagonal(np.asarray(generator)).min(initial=0.0)) * float(duration)
    return int(np.ceil(mean + 8 * np.sqrt(mean) + 20))


@partial(jax.jit, static_argnames=("paths", "max_jumps"))
def sample_paths(
    generator: Float[Array, "K K"],
    law: Float[Array, " K"],
    duration: Float[Array, ""],
    key: PRNGKeyArray,
    paths: int,
    max_jumps: int,
) -> JumpPaths:
    """Draw paths jump by jump (Gillespie 1977): an exponential holding time, then where to.

    Args:
        generator: ``Q``.
        law: probabilities of the first state.
        duration: of each path.
        key: source of randomness.
        paths: how many.
        max_jumps: jumps for which there is room.
    """
    states, dtype = len(generator), generator.dtype
    rates = jnp.where(jnp.eye(states, dtype=bool), 0, generator)
    leaving = jnp.sum(rates, axis=1)
    uniforms = jax.random.uniform(key, (max_jumps + 2, 2, paths), dtype)
    first = choose(jnp.broadcast_to(law, (paths, states)), uniforms[0, 0])

    def jump(carry: tuple[Array, Array], u: Array) -> tuple[tuple[Array, Array], tuple]:
        time, state = carry
        rate = leaving[state]
        wait = -jnp.log1p(-u[0]) / jnp.where(rate > 0, rate, 1)
        after = time + jnp.where(rate > 0, wait, jnp.inf)
        within = after <= duration
        time = jnp.where(within, after, jnp.inf)
        state = jnp.where(within, choose(rates[state], u[1]), state)
        return (time, state), (time, state)

    start = (jnp.zeros(paths, dtype), first)
    _, (times, visited) = jax.lax.scan(jump, start, uniforms[1:])
    times = jnp.concatenate([start[0][None], times]).T
    visited = jnp.concatenate([first[None], visited]).T
    over = jnp.isfinite(times[:, -1])
    return JumpPaths(times[:, :-1], visited[:, :-1], jnp.asarray(duration, dtype), ~over, states)
