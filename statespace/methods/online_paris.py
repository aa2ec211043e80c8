"""PaRIS one observation at a time, in constant memory."""

from __future__ import annotations

from typing import Any, NamedTuple

import equinox as eqx
from jaxtyping import Array

from statespace.chains.particle.paris import estimate, start, update
from statespace.methods.feeding import Fed
from statespace.methods.functional_lowering import sums_of
from statespace.methods.online_particle import ParticleOnline, ParticleOnlineState, passed


class ParisOnlineState(NamedTuple):
    """All that the past says of the present.

    Attributes:
        filter: the particle filter's state.
        value: ``E[h(x_{0:t}) | y_{0:t}]``; None before the first observation.
        statistics: of each particle the expectation given that it is the last state; None before the first
            observation.
    """

    filter: ParticleOnlineState
    value: Any = None
    statistics: Any = None

    @property
    def mean(self) -> Any:
        """``E[x_t | y_{0:t}]``, shape ``(n,)``."""
        return self.filter.mean

    @property
    def log_likelihood(self) -> Array:
        """Log of an unbiased estimate of ``p(y_{0:t})``."""
        return self.filter.log_likelihood

    @property
    def index(self) -> Array:  # type: ignore[override]  # not the method of tuples
        """The moment t; -1 before the first."""
        return self.filter.index

    @property
    def time(self) -> Array:
        """Its time."""
        return self.filter.time


class ParisOnline(Fed, eqx.Module):
    """A filter that is fed one observation at a time and expects a functional: see :func:`statespace.online`.

    Example:
        >>> smoother = ss.online(model, ss.PaRIS(functional=lag_one), key=key)
        >>> state = smoother.init()
        >>> for y in stream:
        ...     state = smoother.update(state, y)
        >>> state.value
    """

    model: Any
    method: Any
    dt: float = eqx.field(static=True)

    def init(self, channels: int = 1) -> ParisOnlineState:
        """The state before the first observation.

        Args:
            channels: the number of observed channels.
        """
        return ParisOnlineState(self._filter.init(channels))

    def advance(
        self, state: ParisOnlineState, y: Array, inputs: Array | None, time: Array | None
    ) -> ParisOnlineState:
        """The state after one more observation, traced."""
        model, method = self.model, self.method
        sums = sums_of(method.functional, model)
        filter, chain, passage = passed(self._filter, state.filter, y, inputs, time)
        random, before, ancestors, after, moment = passage
        if state.statistics is None:
            statistics = start(sums, after, moment)
        else:
            kernel = method.kernel_of(model, chain)
            numbers = kernel(
                random, chain, moment, before, after.particles, ancestors, method.draws
            )
            statistics = update(
                sums, state.statistics, before.particles, after.particles, numbers, moment
            )
        return ParisOnlineState(filter, estimate(after, statistics), statistics)

    @property
    def _filter(self) -> ParticleOnline:
        return ParticleOnline(self.model, self.method, self.dt)
