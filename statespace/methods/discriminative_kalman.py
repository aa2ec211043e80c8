"""The discriminative Kalman filter and smoother: observations that say p(x | y)."""

from __future__ import annotations

import dataclasses
from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from statespace.chains import gaussian
from statespace.chains.gaussian.step import absorb_site
from statespace.conditionals.affine import Gaussian
from statespace.conditionals.discriminative import Discriminative
from statespace.methods.discriminative_sites import Said, said_of
from statespace.methods.gaussian_lowering import (
    check_diffuse,
    check_transition,
    initial_law,
    linear,
    noise_over_time,
    widened,
)
from statespace.methods.gaussian_method import GaussianMethod, Lowered, in_parallel
from statespace.methods.lowering import at, dtype_of, stack, steps_of
from statespace.methods.online_kalman import GaussianOnline, Predicted, Update
from statespace.methods.potentials import first_step
from statespace.model import Step
from statespace.posterior import GaussianPosterior
from statespace.series import Panel, Series

_PROBED = 8  # moments at which the covariances of a regression are looked at before tracing


class DiscriminativePosterior(GaussianPosterior):
    """The law of the states where the observations are discriminative: see :class:`GaussianPosterior`.

    Attributes:
        flagged: where the regression was in some direction less sure than the marginal, so that the model's
            rule acted, shape ``(T,)``; never at a missing moment. Without a marginal "less sure" is than unit
            variance, and means nothing.
    """

    flagged: Bool[Array, " T"] | None = None

    @property
    def flag_rate(self) -> Float[Array, ""]:
        """Share of the observed moments at which Q was not below the marginal's covariance."""
        seen = ~jnp.any(jnp.isnan(self.y), axis=1)
        return jnp.sum(self.flagged) / jnp.sum(seen)

    def cut(self, size: int) -> DiscriminativePosterior:
        """The first moments of a padded recording."""
        short: Any = super().cut(size)
        return dataclasses.replace(short, flagged=self.flagged[:size])


class DiscriminativeKalman(GaussianMethod):
    """Filter and smoother of linear dynamics under discriminative observations (Burkhart et al. 2020).

    Needs: ``initial`` Gaussian; ``transition`` an ``AffineGaussian`` or ``LinearDiffusion``; ``observation``
    :class:`Discriminative`. Each observation becomes a Gaussian potential ``N(x; f, Q) / N(x; m, S)`` and the
    rest is exact: filter, smoother and draws, on regular and irregular times. A moment of which any channel
    is missing says nothing.

    The log likelihood is relative to independent observations, ``log p(y) - sum_t log p(y_t)``: what the
    dynamics contribute, comparable between dynamics with the same stationary law, and no measure of the
    regression. Without a marginal it is the density of the regression's means as observations of the states.

    Source: Burkhart, Brandman, Franco, Hochberg & Harrison (2020), Neural Computation 32(5), equations 2.4
    to 2.6; the smoother, the likelihood and missing observations follow from the same potentials.

    Args:
        form: "covariance", or "sqrt" for recursions on factors. None: "sqrt" in float32, "covariance" in
            float64.
        parallel: whether to use associative scans. None: on accelerators only.

    Raises:
        ValueError: if ``form`` is neither.
    """

    def lower(self, model: Any, series: Series) -> Lowered:
        """The chain of a model on a recording, without the constants of its potentials.

        Raises:
            TypeError: if a conditional is not of a kind that the method needs.
            ValueError: if the conditionals' shapes do not fit each other or the recording.
        """
        return self._lower(model, series)[0]

    def _lower(self, model: Any, series: Series) -> tuple[Lowered, Said]:
        steps, varies = steps_of(series)
        initial, transition, observation = _conditionals(model, at(steps, 0))
        check_diffuse(initial, series)
        later = jax.tree.map(lambda x: x[1:] if len(series) > 1 else x, steps)
        moves = stack(transition.at, later, varies)
        said = said_of(observation, series.channels)
        dtype = dtype_of(series, initial, moves, said)
        form = self.form or ("sqrt" if dtype == jnp.float32 else "covariance")
        chain = gaussian.Chain(
            gaussian.Initial(initial.mean, widened(initial, moves, moves, form), initial.diffuse),
            gaussian.Transitions(moves.matrix, moves.offset, noise_over_time(moves, form)),
            gaussian.Sites(said.precision, said.shift),
        )
        chain = jax.tree.map(lambda x: x.astype(dtype), chain)
        return Lowered(chain, {"form": form, "parallel": in_parallel(self.parallel, series)}), said

    def check(self, model: Any, data: Series | Panel) -> None:
        """Refuse what cannot go together, before anything is traced.

        Raises:
            TypeError: if a conditional is not of a kind that the method needs.
            ValueError: if the regression does not fit the channels of the data or the states, if one of its
                covariances is not positive definite, or if a moment is missing in part.
        """
        initial, _, observation = _conditionals(model, first_step(data))
        n, m = initial.mean.shape[0], data.channels.shape[-1]
        check_regression(observation, n, jnp.zeros((1, m), data.y.dtype))
        if isinstance(data.y, jax.core.Tracer):
            return
        y = np.asarray(data.y).reshape(-1, m)
        missing = np.isnan(y)
        partly = missing.any(axis=1) & ~missing.all(axis=1)
        if partly.any():
            raise ValueError(
                f"the moment in row {np.flatnonzero(partly)[0]} is missing in part, and a regression has no "
                "marginals: set the whole row to NaN, or fill in the missing channels."
            )
        seen = np.flatnonzero(~missing.any(axis=1))
        probed = seen[np.unique(np.linspace(0, len(seen) - 1, _PROBED).astype(int))]
        _check_covariances(observation, y[probed], probed)

    def log_likelihood(self, model: Any, series: Series) -> Float[Array, ""]:
        """``log p(y) - sum_t log p(y_t)``."""
        (chain, how), said = self._lower(model, series)
        return gaussian.log_likelihood(chain, **how) + jnp.sum(said.constant)

    def pointwise(self, model: Any, series: Series) -> Float[Array, " T"]:
        """``log p(y_t | y_0 … y_{t-1}) - log p(y_t)`` of each moment."""
        (chain, how), said = self._lower(model, series)
        return gaussian.pointwise(chain, **how) + said.constant

    def standardised_errors(self, model: Any, series: Series) -> NoReturn:
        """Refuse: observations are not predicted.

        Raises:
            TypeError: always.
        """
        raise _no_prediction("standardised errors of the observations")

    def posterior(self, model: Any, series: Series, kind: Any) -> DiscriminativePosterior:
        """The law of the states: "filtered" or "smoothed"."""
        lowered, said = self._lower(model, series)
        plain = self.posterior_of(model, series, lowered, kind)
        fields = {f.name: getattr(plain, f.name) for f in dataclasses.fields(plain)}
        fields["pointwise"] = plain.pointwise + said.constant
        fields["log_likelihood"] = plain.log_likelihood + jnp.sum(said.constant)
        return DiscriminativePosterior(**fields, flagged=said.flagged)

    def forecast(self, model: Any, series: Series, rows: Array) -> NoReturn:
        """Refuse: observations are not predicted.

        Raises:
            TypeError: always; it says how states are.
        """
        raise _no_prediction("a forecast of observations")

    def online(self, model: Any, dt: float) -> DiscriminativeOnline:
        """The filter one observation at a time."""
        return DiscriminativeOnline(model, self, dt)


class DiscriminativeOnline(GaussianOnline):
    """The discriminative Kalman filter, fed one observation at a time: see :func:`statespace.online`.

    ``predicted_mean`` of its states is empty, because observations are not predicted.
    """

    def __check_init__(self) -> None:
        _conditionals(self.model, Step(0, 0.0, self.dt))

    def see(self, step: Step, predicted: Predicted, y: Array | None) -> Update:
        """Update a predicted state by one observation."""
        columns, spread, _ = predicted
        c, dtype = columns.shape[1], columns.dtype
        nothing = jnp.zeros(0, dtype)
        if y is None:
            return Update(columns, spread, jnp.zeros((), dtype), jnp.zeros((c, c), dtype), nothing)
        said = jax.tree.map(lambda x: x[0], said_of(self.model.observation, y[None]))
        precision, shift = said.precision.astype(dtype), said.shift.astype(dtype)
        made = absorb_site(columns, spread, precision, shift, self.form)
        constant = made[2] + said.constant.astype(dtype)
        return Update(made[0], made[1], constant, made[3], nothing)


def _conditionals(model: Any, step: Step) -> tuple[Gaussian, Any, Discriminative]:
    """The three conditionals, if they are of the kinds that the method needs."""
    initial = initial_law(model, step)
    transition = linear(model, "transition", "DiscriminativeKalman")
    check_transition(initial, transition, step)
    observation = model.observation
    if not isinstance(observation, Discriminative):
        raise TypeError(
            "DiscriminativeKalman does not fit this model: its `observation` is a "
            f"{type(observation).__name__}, and it needs Discriminative, which says p(x | y)."
        )
    n = initial.mean.shape[0]
    if observation.marginal is not None and observation.marginal.mean.shape != (n,):
        raise ValueError(
            f"`marginal` of Discriminative is over {observation.marginal.mean.shape[0]} coordinates, but "
            f"`initial` of the model says that the state has {n}."
        )
    return initial, transition, observation


def check_regression(observation: Discriminative, states: int, y: Float[Array, "1 m"]) -> None:
    """Refuse a regression that does not fit the channels of the data or the states.

    Raises:
        ValueError: naming the shapes.
    """
    m = y.shape[1]
    try:
        made = jax.eval_shape(observation.regression, y[0])
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"`regression` of Discriminative cannot be evaluated on an observation of {m} channels: {error}"
        ) from error
    shapes = [getattr(x, "shape", None) for x in made] if isinstance(made, (tuple, list)) else made
    if shapes != [(states,), (states, states)]:
        raise ValueError(
            f"`regression` of Discriminative must give a mean ({states},) and a covariance "
            f"({states}, {states}) of the state for an observation of {m} channels, got {shapes}."
        )


def _check_covariances(observation: Discriminative, y: np.ndarray, rows: np.ndarray) -> None:
    leaves = jax.tree.leaves(observation)
    if any(isinstance(x, jax.core.Tracer) for x in leaves):
        return
    covariances = np.asarray(observation.moments(jnp.asarray(y))[1])
    for row, covariance in zip(rows, covariances):
        if not (np.isfinite(covariance).all() and np.linalg.eigvalsh(covariance)[0] > 0):
            raise ValueError(
                f"`regression` of Discriminative gives at row {row} of the data a covariance that is not "
                f"positive definite: {covariance.tolist()}."
            )


def _no_prediction(what: str) -> TypeError:
    return TypeError(
        f"a Discriminative observation has no {what}: it knows p(x | y) and not p(y | x). To predict states, "
        "`smooth` the data with a row of NaN at each moment that is asked for."
    )
