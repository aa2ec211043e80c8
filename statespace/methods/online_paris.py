"""PaRIS one observation at a time, in constant memory."""

from __future__ import annotations

from typing import Any, NamedTuple

import equinox as eqx
from jaxtyping import Array

from statespace.chains.particle.paris import estimate, start, update
from statespace.methods.feeding import received
from statespace.methods.functional_lowering import sums_of
from statespace.methods.online_particle import ParticleOnline, ParticleOnlineState, advance


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


class ParisOnline(eqx.Module):
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

    def update(
        self, state: ParisOnlineState, y: Any, inputs: Any = None, time: Any = None
    ) -> ParisOnlineState:
        """The state after one more observation.

        Args:
            state: from ``init()`` or the previous ``update``.
            y: the observation, shape ``(m,)`` or a number; NaN where missing.
            inputs: shape ``(k,)``, where the model uses inputs.
            time: when it was made; default: ``dt`` after the previous one.

        Raises:
            TypeError: if the transition of the model has no density.
            ValueError: if ``time`` is not after the previous observation.
        """
        dtype = state.filter.log_weights.dtype
        return _update(self, state, *received(state.filter, dtype, y, inputs, time))

    @property
    def _filter(self) -> ParticleOnline:
        return ParticleOnline(self.model, self.method, self.dt)


@eqx.filter_jit
def _update(
    online: ParisOnline,
    state: ParisOnlineState,
    y: Array,
    inputs: Array | None,
    time: Array | None,
) -> ParisOnlineState:
    model, method = online.model, online.method
    sums = sums_of(method.functional, model)
    filter, chain, passage = advance(online._filter, state.filter, y, inputs, time)
    random, before, ancestors, after, moment = passage
    if state.statistics is None:
        statistics = start(sums, after, moment)
    else:
        kernel = method.kernel_of(model, chain)
        numbers = kernel(random, chain, moment, before, after.particles, ancestors, method.draws)
        statistics = update(
            sums, state.statistics, before.particles, after.particles, numbers, moment
        )
    return ParisOnlineState(filter, estimate(after, statistics), statistics)
