"""Filters for nonlinear models that linearise as they go: extended and sigma-point Kalman filters."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from statespace import angles
from statespace.chains import gaussian
from statespace.chains.gaussian.covariances import full_carry, predict
from statespace.chains.gaussian.step import evidence, gains, move
from statespace.chains.moments import compensated_sum
from statespace.linearisation import (
    Affine,
    Cubature,
    GaussHermite,
    Linearisation,
    Moments,
    SigmaPoints,
    Taylor,
    Unscented,
    mean_and_noise,
    moments_of,
)
from statespace.methods.gaussian_lowering import initial_law, noise
from statespace.methods.gaussian_method import GaussianMethod, Lowered, in_parallel
from statespace.methods.lowering import at, dtype_of, steps_of
from statespace.model import Step
from statespace.series import Panel, Series


class Linearised(GaussianMethod):
    """A filter that replaces each conditional by an affine one, round what it knows of the state by then.

    The observation is linearised round the predicted state, the transition round the filtered one, and both
    are then the Gaussian chain's: smoothing, sampling and forecasts are exact in the linearised model.
    """

    @property
    def linearisation(self) -> Linearisation:
        """The rule that makes a conditional affine."""
        raise NotImplementedError

    def check(self, model: Any, data: Series | Panel) -> None:
        """Refuse conditionals without a mean and a covariance, and shapes that do not fit.

        Raises:
            TypeError: naming the conditional at fault.
            ValueError: naming the shapes.
        """
        check_conditionals(model, data, type(self).__name__)

    def lower(self, model: Any, series: Series) -> Lowered:
        """The chain of the model made affine along the filter's way."""
        form, initial, steps, dtype = _start(self, model, series)
        run = _run(model, series, self.linearisation, form, initial, steps, dtype)
        y, mask = _values(series)
        moves = jax.tree.map(lambda x: x[:-1] if len(series) > 1 else x, run.moves)
        chain = gaussian.Chain(
            initial,
            gaussian.Transitions(*moves),
            gaussian.Observed(*run.sees, y.astype(dtype), mask),
        )
        return Lowered(chain, {"form": form, "parallel": in_parallel(self.parallel, series)})

    def log_likelihood(self, model: Any, series: Series) -> Float[Array, ""]:
        """The sum of the log densities of the filter's one-step predictions."""
        return compensated_sum(self.pointwise(model, series))

    def pointwise(self, model: Any, series: Series) -> Float[Array, " T"]:
        """The log density of each moment under the filter's one-step prediction."""
        form, initial, steps, dtype = _start(self, model, series)
        return _run(model, series, self.linearisation, form, initial, steps, dtype).pointwise

    def online(self, model: Any, dt: float) -> Any:
        """The filter one observation at a time."""
        from statespace.methods.online_linearised import OnlineLinearised

        return OnlineLinearised(model, self, dt)


class ExtendedKalman(Linearised):
    """The extended Kalman filter and its smoother (Jazwinski 1970, chapter 8; Särkkä & Svensson 2023, ch. 7).

    For smooth models that are nearly linear over the spread of the state. Needs: ``initial`` Gaussian;
    ``transition`` and ``observation`` any differentiable conditionals whose distributions have a mean and a
    covariance. Exact for linear Gaussian models. Missing entries, irregular times and inputs are supported.

    Args:
        form: "covariance", or "sqrt" for recursions on factors. None: "sqrt" in float32.
        parallel: whether the smoother uses associative scans.
        order: 1, or 2 for the filter that adds the curvature's share of mean and variance.

    Raises:
        ValueError: if ``form`` or ``order`` is not one of the above.
    """

    order: int = eqx.field(static=True, default=1)

    def __check_init__(self) -> None:
        Taylor(self.order)

    @property
    def linearisation(self) -> Linearisation:
        """Taylor's expansion at the mean."""
        return Taylor(self.order)


Rule = Literal["cubature", "unscented", "gauss-hermite"]
_RULES = {"cubature": Cubature, "unscented": Unscented, "gauss-hermite": GaussHermite}


class SigmaPointKalman(Linearised):
    """Unscented, cubature and Gauss–Hermite Kalman filters and smoothers (Särkkä & Svensson 2023, ch. 8).

    Needs no derivatives of the model, and sees the curvature over the spread of the state. Needs: ``initial``
    Gaussian; ``transition`` and ``observation`` conditionals whose distributions have a mean and a
    covariance. Exact for linear Gaussian models. Missing entries, irregular times and inputs are supported.

    Args:
        form: "covariance", or "sqrt" for recursions on factors. None: "sqrt" in float32.
        parallel: whether the smoother uses associative scans.
        rule: "cubature", "unscented", "gauss-hermite", or one of those of ``statespace.linearisation`` with
            settings of its own, such as ``Cubature(degree=5)``.

    Raises:
        ValueError: if ``rule`` is none of these.
    """

    rule: Rule | SigmaPoints = eqx.field(static=True, default="cubature")

    def __check_init__(self) -> None:
        if not isinstance(self.rule, SigmaPoints) and self.rule not in _RULES:
            raise ValueError(
                f"`rule` of SigmaPointKalman must be one of {sorted(_RULES)}, or a rule such as "
                f"statespace.linearisation.Cubature(degree=5), got {self.rule!r}."
            )

    @property
    def linearisation(self) -> Linearisation:
        """Regression on the rule's points."""
        return self.rule if isinstance(self.rule, SigmaPoints) else _RULES[self.rule]()


class FilterRun(NamedTuple):
    """What the linearising filter leaves: the affine stand-ins, and the evidence of each moment."""

    sees: Affine
    moves: Affine
    pointwise: Float[Array, " T"]


def make_affine(
    conditional: Any,
    step: Step,
    rule: Linearisation,
    mean: Array,
    spread: Array,
    form: Any,
    name: str,
) -> Affine:
    """A conditional's affine stand-in round a state; itself where it is affine."""
    if hasattr(conditional, "at"):
        here = conditional.at(step)
        return Affine(here.matrix, here.offset, noise(here, form))
    moments = moments_of(conditional, step, form, name)
    if angles.given_by(conditional, mean, step):
        moments = _together(moments, mean)
    return rule(moments, mean, spread, form)


def observed_affine(
    model: Any,
    step: Step,
    rule: Linearisation,
    mean: Array,
    spread: Array,
    y: Float[Array, " m"],
    form: Any,
) -> Affine:
    """The observation's affine stand-in; one of angles predicts them next to those that were seen."""
    made = make_affine(model.observation, step, rule, mean, spread, form, "observation")
    made = Affine(*(a.astype(mean.dtype) for a in made))
    if not angles.given_by(model.observation, mean, step):
        return made
    predicted = made.matrix @ mean + made.offset
    return made._replace(offset=made.offset + angles.nearest(predicted, y) - predicted)


def _together(moments: Moments, mean: Float[Array, " n"]) -> Moments:
    """Moments whose angles at all states are next to those at the mean."""
    here = moments(mean)[0]

    def turned(x: Array) -> tuple[Array, Array]:
        value, noise = moments(x)
        return angles.nearest(value, here), noise

    return turned


def _start(
    method: Linearised, model: Any, series: Series
) -> tuple[gaussian.Form, gaussian.Initial, Step, Any]:
    steps, _ = steps_of(series)
    law = proper(initial_law(model, at(steps, 0)), type(method).__name__)
    dtype = dtype_of(series, law, model)
    form = method.form or ("sqrt" if dtype == jnp.float32 else "covariance")
    first = full_carry(noise(law, form), form, (), dtype)
    return form, gaussian.Initial(law.mean.astype(dtype), first), steps, dtype


def proper(law: Any, name: str) -> Any:
    """An initial law without diffuse directions.

    Raises:
        ValueError: if it has any.
    """
    if law.diffuse is not None:
        raise ValueError(
            f"{name} needs a state to linearise at, but `initial` of the model is diffuse in some "
            "directions: give it a finite scale, `Gaussian(mean, scale)`."
        )
    return law


def _values(series: Series) -> tuple[Array, Array]:
    """Observations with zeros where missing, and where they are not."""
    mask = ~jnp.isnan(series.channels)
    return jnp.where(mask, series.channels, 0), mask


def _run(
    model: Any,
    series: Series,
    rule: Linearisation,
    form: gaussian.Form,
    initial: gaussian.Initial,
    steps: Step,
    dtype: Any,
) -> FilterRun:
    y, mask = _values(series)

    def moment(carry: tuple[Array, Array], row: tuple) -> tuple[tuple[Array, Array], FilterRun]:
        mean, spread = carry
        step, following, y, mask = row
        filtered, spread, sees, log_density = update(model, step, rule, mean, spread, y, mask, form)
        moves = make_affine(model.transition, following, rule, filtered, spread, form, "transition")
        moves = Affine(*(a.astype(dtype) for a in moves))
        mean = move(filtered[:, None], moves.matrix, moves.offset)[:, 0]
        spread = predict(spread, moves.matrix, moves.noise, form)
        return (mean, spread), FilterRun(sees, moves, log_density)

    following = jax.tree.map(lambda x: jnp.concatenate([x[1:], x[-1:]]), steps)
    rows = (steps, following, y.astype(dtype), mask)
    return jax.lax.scan(moment, (initial.mean, initial.noise), rows)[1]


def update(
    model: Any,
    step: Step,
    rule: Linearisation,
    mean: Float[Array, " n"],
    spread: Float[Array, "n n"],
    y: Float[Array, " m"],
    mask: Array,
    form: gaussian.Form,
) -> tuple[Array, Array, Affine, Array]:
    """Filtered mean and spread, the observation's affine stand-in, and the log density of the observation."""
    sees = observed_affine(model, step, rule, mean, spread, y, form)
    seen = gains(spread, sees.matrix, sees.noise, mask, form)
    residual = jnp.where(mask, y - sees.offset, 0)
    filtered, constant, gram = evidence(mean[:, None], residual, seen)
    return filtered[:, 0], seen.filtered, sees, constant - 0.5 * gram[0, 0]


def noise_at(
    conditional: Any, step: Step, x: Float[Array, " n"], form: gaussian.Form, name: str
) -> tuple[Array, Array]:
    """Mean and noise of a conditional at one state."""
    if hasattr(conditional, "at"):
        here = conditional.at(step)
        return here.matrix @ x + here.offset, noise(here, form)
    return mean_and_noise(conditional(x, step), form, name)


def check_conditionals(model: Any, data: Series | Panel, method: str) -> None:
    """Refuse conditionals without a mean and a covariance, and shapes that do not fit.

    Raises:
        TypeError: naming the conditional at fault.
        ValueError: naming the shapes.
    """
    series = data.series[0] if isinstance(data, Panel) else data
    step = at(steps_of(series)[0], 0)
    law = proper(initial_law(model, step), method)
    n, m = law.mean.shape[0], series.channels.shape[1]
    for name, rows in (("transition", n), ("observation", m)):
        conditional = getattr(model, name)
        look = lambda x, c=conditional, name=name: noise_at(c, step, x, "covariance", name)
        shape = jax.eval_shape(look, law.mean)[0].shape
        if shape != (rows,):
            what = f"the data have {m} channels" if name == "observation" else f"the state has {n}"
            raise ValueError(
                f"`{name}` of the model gives values of shape {shape}, but {what}: expected ({rows},)."
            )
