"""Assumed-density filtering one observation at a time, in constant memory."""

from __future__ import annotations

from typing import Any

from jaxtyping import Array

from statespace.chains.gaussian.covariances import predict
from statespace.chains.gaussian.step import move
from statespace.methods.linearised import make_affine
from statespace.methods.online_linearised import LinearisedState, NormalOnline
from statespace.methods.site_filter import update
from statespace.model import Step


class OnlineSites(NormalOnline):
    """An assumed-density filter that is fed one observation at a time: see :func:`statespace.online`."""

    def __check_init__(self) -> None:
        if getattr(self.model.observation, "lags", 0):
            raise TypeError(
                f"{type(self.method).__name__} online keeps no observations for a later one to depend on: "
                "use `filter`, or `online` with ParticleFilter()."
            )

    def predicted(self, state: LinearisedState, step: Step) -> tuple[Array, Array]:
        """Of the next state, by the transition made affine round the present one."""
        law, form = (state.mean, state.spread), self.form
        rule = self.method.linearisation
        moves = make_affine(self.model.transition, step, rule, *law, form, "transition")
        mean = move(state.mean[:, None], moves.matrix, moves.offset)[:, 0]
        return mean, predict(state.spread, moves.matrix, moves.noise, form)

    def conditioned(self, step: Step, y: Array, mean: Array, spread: Array) -> Any:
        """A site of the observation, found from the predicted law."""
        method = self.method
        how = (method.rule, method.settings, self.model.observation)
        return update(*how, step, y, mean, spread, self.form)
