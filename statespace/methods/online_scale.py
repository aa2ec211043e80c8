"""The Student t filter one observation at a time, in constant memory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from statespace.chains.gaussian import diffuse
from statespace.chains.gaussian.scale import Terms, log_evidence
from statespace.methods.feeding import Fed
from statespace.methods.online_kalman import Online, OnlineState
from statespace.posteriors.student import inflated

if TYPE_CHECKING:
    from statespace.methods.unknown_scale import ConjugateScale


class ScaleOnlineState(NamedTuple):
    """All that the past says of the present.

    Attributes:
        mean: centre of the state's Student t law, shape ``(n,)``.
        covariance: shape ``(n, n)``; infinite up to two degrees of freedom.
        predicted_mean: of ``y_t`` given ``y_{0:t-1}``, shape ``(m,)``; NaN while it is diffuse.
        log_likelihood: ``log p(y_{0:t})``.
        index: the moment t; -1 before the first.
        time: its time.
        shape: of the factor's inverse gamma law; the state has ``2 shape`` degrees of freedom.
        rate: of the factor's law.
        entries: how many numbers have been observed.
        given: the state of the Kalman filter whose factor is 1.
    """

    mean: Float[Array, " n"]
    covariance: Float[Array, "n n"]
    predicted_mean: Float[Array, " m"]
    log_likelihood: Float[Array, ""]
    index: Int[Array, ""]  # type: ignore[assignment]  # not the method of tuples
    time: Float[Array, ""]
    shape: Float[Array, ""]
    rate: Float[Array, ""]
    entries: Float[Array, ""]
    given: OnlineState


class ScaleOnline(Fed, eqx.Module):
    """A filter that is fed one observation at a time: see :func:`statespace.online`."""

    predicts = True

    model: Any
    method: ConjugateScale
    dt: float = eqx.field(static=True)

    def __check_init__(self) -> None:
        self._plain()

    def _plain(self) -> Online:
        """The filter whose factor is 1."""
        return Online(self.model, self.method, self.dt)

    def init(self) -> ScaleOnlineState:
        """The state before the first observation."""
        given = self._plain().init()
        return _state(self.method, given, jnp.zeros_like(given.log_likelihood))

    def advance(
        self, state: ScaleOnlineState, y: Array | None, inputs: Array | None, time: Array | None
    ) -> ScaleOnlineState:
        """The state after one more observation, traced."""
        given = self._plain().advance(state.given, y, inputs, time)
        seen = 0 if y is None else jnp.sum(~jnp.isnan(y))
        return _state(self.method, given, state.entries + seen)


def _state(method: ConjugateScale, given: OnlineState, entries: Array) -> ScaleOnlineState:
    """What the factor's law makes of the state whose factor is 1."""
    known = diffuse.integrate_identified(given.gram)
    centred = given.gram.at[0].set(0).at[:, 0].set(0)
    free = diffuse.integrate_identified(centred).log_evidence
    spent = len(given.gram) - 1 - jnp.trace(known.flat)
    terms = Terms(given.constant + free, 2 * (free - known.log_evidence), entries - spent)
    prior = method.prior(entries.dtype)
    shape, rate = prior.after(terms)
    return ScaleOnlineState(
        mean=given.mean,
        covariance=inflated(given.covariance[None], shape[None], rate[None])[0],
        predicted_mean=given.predicted_mean,
        log_likelihood=log_evidence(prior, terms),
        index=given.index,
        time=given.time,
        shape=shape,
        rate=rate,
        entries=entries,
        given=given,
    )
