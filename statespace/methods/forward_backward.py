"""Exact inference in models of a finite state."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from statespace.chains import finite
from statespace.conditionals import aggregates
from statespace.conditionals.finite import Categorical, FiniteTransition, check_probabilities
from statespace.methods.lowering import at, dtype_of, stack, steps_of
from statespace.methods.potentials import check_observations, first_step, log_potentials
from statespace.model import Step, state_names
from statespace.posteriors.finite import FinitePosterior
from statespace.series import Panel, Series

if TYPE_CHECKING:
    from statespace.forecasts.finite import MixtureForecast
    from statespace.methods.online_finite import FiniteOnline


class ForwardBackward(eqx.Module):
    """Exact filter, smoother and likelihood of models with finitely many states (Rabiner 1989).

    Needs: ``initial`` a :class:`~statespace.Categorical` (or NumPyro's); ``transition`` a
    :class:`~statespace.FiniteKernel` or another :class:`~statespace.FiniteTransition`; ``observation``
    anything that gives a distribution with a density for each state. Missing entries, irregular times, inputs
    and soft labels of the states (``Series(state_weights=...)``) are supported.

    Args:
        parallel: whether to use associative scans, whose depth is logarithmic in the number of moments. None:
            on accelerators, for few states.
        lag: how many of the last states :func:`statespace.online` revises with each observation.

    Raises:
        ValueError: if ``lag`` is negative.
    """

    parallel: bool | None = eqx.field(static=True, default=None)
    lag: int = eqx.field(static=True, default=0)

    def __check_init__(self) -> None:
        if self.lag < 0:
            raise ValueError(f"`lag` of ForwardBackward must not be negative, got {self.lag}.")

    def lower(self, model: Any, series: Series) -> finite.Chain:
        """The chain of a model on a recording.

        Raises:
            TypeError: if a conditional is not of a kind that sums over states need.
            ValueError: if the conditionals' shapes do not fit each other or the recording.
        """
        steps, varies = steps_of(series)
        initial = initial_probs(model, at(steps, 0))
        kernel = transition(model)
        later = jax.tree.map(lambda x: x[1:] if len(series) > 1 else x, steps)
        moves = stack(kernel.matrix, later, varies)
        parts = len(initial)
        if moves.shape[1:] != (parts, parts):
            raise ValueError(
                f"`transition` of the model gives matrices of shape {moves.shape[1:]}, but `initial` is over "
                f"{parts} states."
            )
        states = aggregates.count(kernel.aggregate, parts)
        potentials = log_potentials(model.observation, series, steps, states)
        if potentials.shape != (len(series), states):
            raise ValueError(
                f"`observation` of the model gives log densities of shape {potentials.shape}; expected "
                f"({len(series)}, {states}), one for each moment and state."
            )
        potentials = aggregates.expand(kernel.aggregate, potentials)
        dtype = dtype_of(series, initial, moves, potentials)
        return finite.Chain(initial.astype(dtype), moves.astype(dtype), potentials.astype(dtype))

    def check(self, model: Any, data: Series | Panel) -> None:
        """Refuse data that the model cannot produce, before anything is traced."""
        kernel, step = transition(model), first_step(data)
        states = aggregates.count(kernel.aggregate, len(initial_probs(model, step)))
        check_observations(model.observation, data, states, step)

    def log_likelihood(self, model: Any, series: Series) -> Float[Array, ""]:
        """``log p(y)``; minus infinity where the model cannot produce the data."""
        chain = self.lower(model, series)
        return finite.log_likelihood(chain, parallel=self.parallel)

    def pointwise(self, model: Any, series: Series) -> Float[Array, " T"]:
        """``log p(y_t | y_0 … y_{t-1})`` of each moment."""
        chain = self.lower(model, series)
        return finite.pointwise(chain, parallel=self.parallel)

    def standardised_errors(self, model: Any, series: Series) -> Float[Array, "T m"]:
        """Normal pseudo-residuals of the one-step predictions (Zucchini & MacDonald, section 6.2)."""
        from statespace.methods.pseudo_residuals import pseudo_residuals

        chain = self.lower(model, series)
        predicted = finite.filter(chain, parallel=self.parallel).predicted
        predicted = aggregates.fold(model.transition.aggregate, predicted)
        return pseudo_residuals(model.observation, series, predicted)

    def posterior(self, model: Any, series: Series, kind: Any) -> FinitePosterior:
        """The law of the states: "filtered" or "smoothed"."""
        chain = self.lower(model, series)
        if kind == "smoothed":
            smoothed = finite.smooth(chain, parallel=self.parallel)
            filtered, probs, ratios = smoothed.filtered, smoothed.probs, smoothed.ratios
        else:
            filtered = finite.filter(chain, parallel=self.parallel)
            probs, ratios = filtered.probs, None
        names, kernel = state_names(model), transition(model)
        posterior = FinitePosterior(
            probs=probs,
            times=series.times,
            log_likelihood=filtered.log_likelihood,
            pointwise=filtered.pointwise,
            filtered=filtered.probs,
            predicted=filtered.predicted,
            ratios=ratios,
            y=series.channels,
            chain=chain,
            kind=kind,
            state_names=names if kernel.aggregate is None else None,
            parallel=self.parallel,
        )
        if kernel.aggregate is not None:
            posterior = posterior.fold(kernel.aggregate, names)
        return dataclasses.replace(posterior, factors=kernel.factors)

    def sample_states(
        self, model: Any, series: Series, key: PRNGKeyArray, draws: int
    ) -> Int[Array, "draws T"]:
        """Joint draws of all states given all observations."""
        chain = self.lower(model, series)
        paths = finite.sample(chain, key, draws, parallel=self.parallel)
        return aggregates.whole(model.transition.aggregate, paths)

    def forecast(self, model: Any, series: Series, rows: Array) -> MixtureForecast:
        """The law of observations at some moments of a recording, of which they are not part."""
        from statespace.forecasts.finite import forecast

        return forecast(model, self.posterior(model, series, "smoothed"), series, rows)

    def online(self, model: Any, dt: float) -> FiniteOnline:
        """The filter one observation at a time."""
        from statespace.methods.online_finite import FiniteOnline

        return FiniteOnline(model, self, dt)

    def recordings_at_once(self, model: Any, series: Series) -> bool:
        """Whether a panel is to be smoothed by `vmap`: always."""
        return True


def transition(model: Any) -> FiniteTransition:
    """The transition of a model, if it is one between finitely many states."""
    kernel = model.transition
    if not isinstance(kernel, FiniteTransition):
        raise TypeError(
            f"ForwardBackward does not fit this model: its `transition` is a {type(kernel).__name__}; exact "
            "sums over states need FiniteKernel, SoftmaxKernel, RateMatrix or another FiniteTransition."
        )
    return kernel


def initial_probs(model: Any, step: Step) -> Float[Array, " K"]:
    """The initial law as probabilities: given as a Categorical, or as NumPyro's."""
    law = model.initial
    if not isinstance(law, Categorical):
        if not hasattr(law, "log_prob"):
            law = law(step)
        if not hasattr(law, "probs") or len(law.batch_shape) or not law.support.is_discrete:
            raise TypeError(
                f"ForwardBackward does not fit this model: its `initial` is {type(law).__name__}; sums over "
                "states need statespace.Categorical or NumPyro's, of shape (K,)."
            )
        check_probabilities("initial", law.probs)
    return jnp.asarray(law.probs)
