"""Backward kernels: which previous particle a state may have come from, given all that were there.

Given a cloud with weights ``w_l`` and a state ``x'`` of the next moment, each draws numbers ``l`` from

    P(l) proportional to w_l p(x' | x_l),

for many states at once, all draws by inversion of a distribution function: one uniform each. Three ways:

* :class:`Exact` sums over the cloud: O(N) for each state, in blocks, so that no N × N array is ever there.
* :class:`Rejection` proposes by the weights and accepts by the density, which needs the density's greatest
  value. It is exact too: what is not accepted after a number of trials is drawn by summation (Dau & Chopin
  2022; without that cap the expected time may be infinite).
* :class:`Metropolis` makes a few independent Metropolis steps from the particle's own ancestor, which has the
  right law already in the sense of the weighted cloud, and so they all keep it (Bunch & Godsill 2013; Dau &
  Chopin 2022): O(1) for each state, no bound needed, the same time whatever the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from statespace.chains.particle.recursion import take
from statespace.chains.particle.resampling import is_key
from statespace.chains.particle.types import Chain, Cloud, Particles

AT_ONCE = {"cpu": 2**16, "gpu": 2**24, "tpu": 2**24}
"""How many pairs of particles are weighed at once: what fits into a cache, or fills an accelerator."""

DRAWN_AT_ONCE = 1024
"""How many uniforms are drawn by one call on a CPU; of more, each takes several times as long."""

SMALL = 300
"""Up to this many particles sums over the cloud are as quick as the other kernels."""


class Backward(eqx.Module):
    """A backward kernel."""

    def __call__(
        self,
        random: Any,
        chain: Chain,
        moment: Any,
        cloud: Cloud,
        states: Particles,
        ancestors: Int[Array, " M"],
        draws: int = 1,
    ) -> Int[Array, "M draws"]:
        """Draw where states came from.

        Args:
            random: a PRNG key; or the uniforms themselves, shape ``(K, draws, M)``, K as ``uniforms`` says.
            chain: of which ``transition`` is used, and by some kernels ``bound``.
            moment: the row of the chain's moments that belongs to ``states``.
            cloud: the particles of the moment before, N of them.
            states: M states.
            ancestors: from which particle each of them was moved.
            draws: how many for each state, independent given the cloud and the state.

        Returns:
            Numbers of particles of the cloud. A state that none of them can have led to keeps its ancestor.
        """
        if chain.transition is None:
            raise ValueError("backward draws need `transition` of the chain, which has no density.")
        u = _Uniforms(random, (draws, len(ancestors)), cloud.log_weights.dtype)
        return self.draw(u, chain, moment, cloud, states, ancestors).T

    @property
    def uniforms(self) -> int:
        """How many uniforms one draw may take."""
        raise NotImplementedError

    def draw(
        self,
        u: Callable[[Any], Array],
        chain: Chain,
        moment: Any,
        cloud: Cloud,
        states: Particles,
        ancestors: Int[Array, " M"],
    ) -> Int[Array, "draws M"]:
        """The numbers, from the k-th uniforms ``u(k)``."""
        raise NotImplementedError


class Exact(Backward):
    """Sums over the cloud: O(N) for each state."""

    @property
    def uniforms(self) -> int:
        """How many uniforms one draw may take."""
        return 1

    def draw(self, u, chain, moment, cloud, states, ancestors):
        """The numbers, from the k-th uniforms ``u(k)``."""
        return _summed(u(0), chain, moment, cloud, states, ancestors)


class Metropolis(Backward):
    """Independent Metropolis steps from the ancestor: O(1) for each state.

    Args:
        steps: how many. The law given the cloud is reached as they grow; what is kept with any number is the
            law of the weighted pairs (ancestor, particle).
    """

    steps: int = eqx.field(static=True, default=5)

    @property
    def uniforms(self) -> int:
        """How many uniforms one draw may take."""
        return 2 * self.steps

    def draw(self, u, chain, moment, cloud, states, ancestors):
        """The numbers, from the k-th uniforms ``u(k)``."""
        density = _density(chain, moment, cloud, states)
        search = inverse(jnp.exp(cloud.log_weights))

        def move(k: Any, at: tuple[Array, Array]) -> tuple[Array, Array]:
            number, log_density = at
            candidate = search(u(2 * k))
            its = density(candidate)
            accept = jnp.log(u(2 * k + 1)) < its - log_density
            return jnp.where(accept, candidate, number), jnp.where(accept, its, log_density)

        start = jnp.broadcast_to(ancestors, u.shape)
        return jax.lax.fori_loop(0, self.steps, move, (start, density(start)))[0]


class Rejection(Backward):
    """Proposals by the weights, accepted by the density: O(1) for each state where transitions mix well.

    With ``b_l`` the greatest log density from particle ``l`` (``bound`` of the chain), ``l`` is proposed with
    probability proportional to ``w_l exp(b_l)`` and accepted with ``p(x' | x_l) exp(-b_l)``. A density whose
    noise depends on the state is so bounded for each particle by its own peak.

    Args:
        trials: how many before the state's law is summed over the cloud.
    """

    trials: int = eqx.field(static=True, default=16)

    @property
    def uniforms(self) -> int:
        """How many uniforms one draw may take."""
        return 2 * self.trials + 1

    def draw(self, u, chain, moment, cloud, states, ancestors):
        """The numbers, from the k-th uniforms ``u(k)``."""
        if chain.bound is None:
            raise ValueError(
                "backward draws by rejection need `bound` of the chain, the greatest value of its "
                "transition's log density; Metropolis and Exact do not."
            )
        density = _density(chain, moment, cloud, states)
        bound = jnp.broadcast_to(
            chain.bound(cloud.particles, moment), cloud.log_weights.shape
        ).astype(cloud.log_weights.dtype)
        weights = cloud.log_weights + bound
        search = inverse(jnp.exp(weights - _finite(jnp.max(weights))))

        def unfinished(at: tuple[Any, Array, Array]) -> Bool[Array, ""]:
            return (at[0] < self.trials) & ~jnp.all(at[2])

        def trial(at: tuple[Any, Array, Array]) -> tuple[Any, Array, Array]:
            k, number, done = at
            candidate = search(u(2 * k))
            accept = jnp.log(u(2 * k + 1)) < density(candidate) - bound[candidate]
            return k + 1, jnp.where(done, number, candidate), done | accept

        start = (0, jnp.broadcast_to(ancestors, u.shape), jnp.zeros(u.shape, bool))
        _, number, done = jax.lax.while_loop(unfinished, trial, start)
        last = u(2 * self.trials)
        return _finish(number, done, last, chain, moment, cloud, states, ancestors)


KERNELS = {"exact": Exact, "rejection": Rejection, "metropolis": Metropolis}
"""The kernels by name."""


def kernel_named(kernel: Any, chain: Chain, particles: int) -> Backward:
    """A kernel by its name; "auto": sums for few particles, else rejection where a bound is known.

    Raises:
        ValueError: if there is no kernel of this name.
        TypeError: if it is neither a name nor a kernel.
    """
    check_kernel(kernel)
    if isinstance(kernel, Backward):
        return kernel
    if kernel != "auto":
        return KERNELS[kernel]()
    if particles <= SMALL:
        return Exact()
    return Metropolis() if chain.bound is None else Rejection()


def check_kernel(kernel: Any) -> None:
    """Refuse what is neither a kernel nor the name of one.

    Raises:
        ValueError: if there is no kernel of this name.
        TypeError: if it is neither a name nor a kernel.
    """
    if isinstance(kernel, Backward):
        return
    if not isinstance(kernel, str):
        raise TypeError(
            f"a backward kernel must be a name ({', '.join(KERNELS)}, auto) or one of "
            f"statespace.chains.particle.backward, got {kernel!r}."
        )
    if kernel != "auto" and kernel not in KERNELS:
        raise ValueError(
            f"there is no backward kernel {kernel!r}; there are {', '.join(KERNELS)}, auto."
        )


def inverse(weights: Float[Array, " N"]) -> Callable[[Array], Int[Array, "*batch"]]:
    """The inverse of a distribution function: uniforms to numbers, of whom none has weight zero."""
    sums = jnp.cumsum(weights)

    def search(u: Float[Array, "*batch"]) -> Int[Array, "*batch"]:
        # u total may be rounded up to the total, which lies beyond the last
        level = jnp.minimum(u * sums[-1], _below(sums[-1]))
        found = jnp.searchsorted(sums, level.ravel(), side="right")
        return found.reshape(u.shape).astype(jnp.int32)

    return search


class _Uniforms:
    """The k-th uniforms: drawn with a key, or given."""

    def __init__(self, random: Any, shape: tuple[int, ...], dtype: Any):
        self.random, self.shape, self.dtype = random, shape, dtype

    def __call__(self, k: Any) -> Float[Array, "draws M"]:
        if not is_key(self.random):
            return self.random[k].reshape(self.shape)
        key = jax.random.fold_in(self.random, k)
        size = math.prod(self.shape)
        if jax.default_backend() != "cpu" or size <= DRAWN_AT_ONCE:
            return jax.random.uniform(key, self.shape, self.dtype)
        one = lambda key: jax.random.uniform(key, (DRAWN_AT_ONCE,), self.dtype)
        every = jax.lax.map(one, jax.random.split(key, -(-size // DRAWN_AT_ONCE)))
        return every.ravel()[:size].reshape(self.shape)


def _density(
    chain: Chain, moment: Any, cloud: Cloud, states: Particles
) -> Callable[[Array], Float[Array, "draws M"]]:
    """The log density of the states from the particles of given numbers ``(draws, M)``."""
    transition = chain.transition
    assert transition is not None
    return jax.vmap(lambda numbers: transition(take(cloud.particles, numbers), states, moment))


def _summed(
    u: Float[Array, "draws M"],
    chain: Chain,
    moment: Any,
    cloud: Cloud,
    states: Particles,
    ancestors: Int[Array, " M"],
) -> Int[Array, "draws M"]:
    """Draws by sums over the cloud, for a block of states at a time."""
    count, transition = len(cloud.log_weights), chain.transition
    assert transition is not None

    def one(at: tuple[Array, Particles, Array]) -> Int[Array, " draws"]:
        u, state, ancestor = at
        every = jax.tree.map(lambda x: jnp.broadcast_to(x, (count, *x.shape)), state)
        weights = cloud.log_weights + transition(cloud.particles, every, moment)
        greatest = jnp.max(weights)
        found = _pick(jnp.exp(weights - _finite(greatest)), u)
        return jnp.where(jnp.isfinite(greatest), found, ancestor).astype(jnp.int32)

    block = max(1, AT_ONCE.get(jax.default_backend(), 2**16) // count)
    rows = (u.T, states, ancestors)
    if block >= len(ancestors):
        return jax.vmap(one)(rows).T
    return jax.lax.map(one, rows, batch_size=block).T


def _pick(weights: Float[Array, " N"], u: Float[Array, " draws"]) -> Int[Array, " draws"]:
    """Inversion of one distribution function for few draws: first to a block of particles, then inside.

    Sums of blocks cost less than all partial sums.
    """
    count = len(weights)
    width = 1 << (count.bit_length() // 2)
    blocks = jnp.pad(weights, (0, -count % width)).reshape(-1, width)
    ends = jnp.cumsum(jnp.sum(blocks, axis=1))
    level = jnp.minimum(u * ends[-1], _below(ends[-1]))
    block = jnp.sum(ends <= level[:, None], axis=1)
    start = jnp.where(block > 0, ends[block - 1], 0)
    sums = jnp.cumsum(blocks[block], axis=1)
    rest = jnp.minimum(level - start, _below(sums[:, -1]))
    return block * width + jnp.sum(sums <= rest[:, None], axis=1)


def _finish(
    number: Int[Array, "draws M"],
    done: Bool[Array, "draws M"],
    u: Float[Array, "draws M"],
    chain: Chain,
    moment: Any,
    cloud: Cloud,
    states: Particles,
    ancestors: Int[Array, " M"],
) -> Int[Array, "draws M"]:
    """What trials left open, by sums over the cloud: some at a time until none is left."""
    total, count = number.size, len(ancestors)
    size = min(total, 16)
    flat, u = number.ravel(), u.ravel()

    def some(at: tuple[Any, Array, Array]) -> tuple[Any, Array, Array]:
        _, number, open_ = at
        chosen = jnp.nonzero(open_, size=size, fill_value=total)[0]
        there = jnp.minimum(chosen, total - 1)
        row = there % count
        found = _summed(u[there][None], chain, moment, cloud, take(states, row), ancestors[row])[0]
        number = number.at[chosen].set(found, mode="drop")
        open_ = open_.at[chosen].set(False, mode="drop")
        return jnp.any(open_), number, open_

    open_ = ~done.ravel()
    at = (jnp.any(open_), flat.astype(jnp.int32), open_)
    return jax.lax.while_loop(lambda at: at[0], some, at)[1].reshape(number.shape)


def _finite(value: Float[Array, ""]) -> Float[Array, ""]:
    return jnp.where(jnp.isfinite(value), value, 0.0)


def _below(value: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """The next number towards zero."""
    return jnp.nextafter(value, jnp.zeros_like(value))
