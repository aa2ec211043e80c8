"""The discriminative Kalman filter and smoother: observations that say p(x | y)."""

from __future__ import annotations

import dataclasses
from typing import Any, NoReturn

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from statespace.chains import gaussian
from statespace.chains.gaussian.covariances import full_carry, predict
from statespace.chains.gaussian.step import absorb_site, move
from statespace.conditionals.affine import Gaussian
from statespace.conditionals.discriminative import Discriminative
from statespace.linearisation import Affine, Cubature, Linearisation, require_rule, rule_of
from statespace.methods.discriminative_sites import Said, check_regression, said_of
from statespace.methods.gaussian_lowering import (
    check_diffuse,
    check_transition,
    initial_law,
    linear,
    noise,
    noise_over_time,
    widened,
)
from statespace.methods.gaussian_method import GaussianMethod, Lowered, in_parallel
from statespace.methods.linearised import make_affine, noise_at, proper
from statespace.methods.lowering import at, dtype_of, stack, steps_of
from statespace.methods.online_kalman import GaussianOnline, OnlineState, Predicted, Update
from statespace.methods.potentials import first_step
from statespace.model import Step
from statespace.posteriors.gaussian import GaussianPosterior
from statespace.probabilities import NoResiduals
from statespace.series import Panel, Series


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
    """Filter and smoother under discriminative observations (Burkhart et al. 2020).

    Needs: ``initial`` Gaussian; ``transition`` any conditional whose distribution has a mean and a
    covariance; ``observation`` :class:`Discriminative`. Each observation becomes a Gaussian potential
    ``N(x; f, Q) / N(x; m, S)``. With an ``AffineGaussian`` or a ``LinearDiffusion`` as the transition the
    rest is exact: filter, smoother and draws, on regular and irregular times. Any other transition is made
    affine round the filtered state, as extended and sigma-point Kalman filters do. A moment of which any
    channel is missing says nothing.

    The log likelihood is relative to independent observations, ``log p(y) - sum_t log p(y_t)``: what the
    dynamics contribute, comparable between dynamics with the same stationary law, and no measure of the
    regression. Without a marginal it is the density of the regression's means as observations of the states.

    Source: Burkhart, Brandman, Franco, Hochberg & Harrison (2020), Neural Computation 32(5), equations 2.4
    to 2.6; the smoother, the likelihood and missing observations follow from the same potentials.

    Args:
        form: "covariance", or "sqrt" for recursions on factors. None: "sqrt" in float32, "covariance" in
            float64.
        parallel: whether to use associative scans. None: on accelerators only.
        linearisation: of a transition that is not affine: a rule of :mod:`statespace.linearisation`. The
            default sees how the dynamics bend over the spread of the state, for as many evaluations as
            derivatives would take; ``Taylor()`` is that of the extended Kalman filter.

    Raises:
        TypeError: if ``linearisation`` is no such rule.
        ValueError: if ``form`` is neither.
    """

    linearisation: Linearisation = eqx.field(default=Cubature(), converter=rule_of)

    def __check_init__(self) -> None:
        require_rule("linearisation", "DiscriminativeKalman", self.linearisation)

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
        said = said_of(observation, series.channels)
        is_affine = hasattr(transition, "at")
        moves = stack(transition.at, later, varies) if is_affine else None
        dtype = dtype_of(series, initial, said, transition if moves is None else moves)
        form = self.form or ("sqrt" if dtype == jnp.float32 else "covariance")
        cast = lambda tree: jax.tree.map(lambda x: x.astype(dtype), tree)
        sites = cast(gaussian.Sites(said.precision, said.shift))
        if moves is None:
            start = gaussian.Initial(
                initial.mean, full_carry(noise(initial, form), form, (), dtype)
            )
            transitions = self._along(transition, cast(start), sites, later, form)
        else:
            noises = noise_over_time(moves, form)
            wide = widened(initial, moves, moves, form)
            start = gaussian.Initial(initial.mean, wide, initial.diffuse)
            transitions = gaussian.Transitions(moves.matrix, moves.offset, noises)
        chain = gaussian.Chain(cast(start), cast(transitions), sites)
        return Lowered(chain, {"form": form, "parallel": in_parallel(self.parallel, series)}), said

    def _along(
        self,
        transition: Any,
        initial: gaussian.Initial,
        sites: gaussian.Sites,
        later: Step,
        form: gaussian.Form,
    ) -> gaussian.Transitions:
        """A transition made affine along the filter's way, by which each moment leads to the next."""

        def moment(carry: tuple[Array, Array], row: Any) -> tuple[tuple[Array, Array], Affine]:
            (precision, shift), following = row
            columns, spread, _, _ = absorb_site(carry[0][:, None], carry[1], precision, shift, form)
            mean, spread, moves = self.ahead(transition, following, columns[:, 0], spread, form)
            return (mean, spread), moves

        before = jax.tree.map(lambda x: x[: len(later.index)], sites)
        return gaussian.Transitions(
            *jax.lax.scan(moment, (initial.mean, initial.noise), (before, later))[1]
        )

    def ahead(
        self, transition: Any, step: Step, mean: Array, spread: Array, form: gaussian.Form
    ) -> tuple[Array, Array, Affine]:
        """Where a state leads: mean and spread, and the affine transition."""
        made = make_affine(transition, step, self.linearisation, mean, spread, form, "transition")
        made = Affine(*(a.astype(mean.dtype) for a in made))
        mean = move(mean[:, None], made.matrix, made.offset)[:, 0]
        return mean, predict(spread, made.matrix, made.noise, form), made

    def check(self, model: Any, data: Series | Panel) -> None:
        """Refuse what cannot go together, before anything is traced.

        Raises:
            TypeError: if a conditional is not of a kind that the method needs.
            ValueError: if the regression does not fit the channels of the data or the states, if one of its
                covariances is not positive definite, if a moment is missing in part, or if ``initial`` is
                diffuse and the transition not affine.
        """
        initial, _, observation = _conditionals(model, first_step(data))
        n, m = initial.mean.shape[0], data.channels.shape[-1]
        check_regression(observation, n, jnp.zeros((1, m), data.y.dtype))
        if isinstance(data.y, jax.core.Tracer):
            return
        observation.check(np.asarray(data.y).reshape(-1, m))

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
        raise NoResiduals(_no_prediction("standardised errors of the observations"))

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
        raise TypeError(_no_prediction("forecast of observations"))

    def online(self, model: Any, dt: float) -> DiscriminativeOnline:
        """The filter one observation at a time."""
        return DiscriminativeOnline(model, self, dt)


class DiscriminativeOnline(GaussianOnline):
    """The discriminative Kalman filter, fed one observation at a time: see :func:`statespace.online`.

    ``predicted_mean`` of its states is empty, because observations are not predicted.
    """

    def __check_init__(self) -> None:
        _conditionals(self.model, Step(0, 0.0, self.dt))

    def ahead(self, state: OnlineState, step: Step) -> tuple[Array, Array]:
        """Columns and spread of the state at a step, before its observation."""
        transition: Any = self.model.transition
        if hasattr(transition, "at"):
            return super().ahead(state, step)
        method: Any = self.method
        mean, spread, _ = method.ahead(
            transition, step, state.columns[:, 0], state.spread, self.form
        )
        return mean[:, None], spread

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
    initial, transition, observation = initial_law(model, step), model.transition, model.observation
    if not isinstance(observation, Discriminative):
        raise TypeError(
            "DiscriminativeKalman does not fit this model: its `observation` is a "
            f"{type(observation).__name__}, and it needs Discriminative, which says p(x | y)."
        )
    n = initial.mean.shape[0]
    if hasattr(transition, "at"):
        check_transition(initial, linear(model, "transition", "DiscriminativeKalman"), step)
    else:
        proper(initial, "DiscriminativeKalman with a transition that is not affine")
        look = lambda x: noise_at(transition, step, x, "covariance", "transition")
        shape = jax.eval_shape(look, initial.mean)[0].shape
        if shape != (n,):
            raise ValueError(
                f"`transition` of the model gives values of shape {shape}, but the state has {n}: expected "
                f"({n},)."
            )
    if observation.marginal is not None and observation.marginal.mean.shape != (n,):
        raise ValueError(
            f"`marginal` of Discriminative is over {observation.marginal.mean.shape[0]} coordinates, but "
            f"`initial` of the model says that the state has {n}."
        )
    return initial, transition, observation


def _no_prediction(what: str) -> str:
    return (
        f"a Discriminative observation has no {what}: it knows p(x | y) and not p(y | x). To predict states, "
        "`smooth` the data with a row of NaN at each moment that is asked for."
    )
