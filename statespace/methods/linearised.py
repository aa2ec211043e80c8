"""Models made affine: conditionals round a state, and whole chains round all states."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from statespace import angles
from statespace.chains import gaussian
from statespace.chains.gaussian.covariances import full_carry
from statespace.densities import law_at, of_one_event
from statespace.linearisation import Affine, Linearisation, Moments, mean_and_noise, moments_of
from statespace.methods.gaussian_lowering import initial_law, noise, require_columns
from statespace.methods.lowering import at, dtype_of, steps_of
from statespace.model import Step
from statespace.series import Panel, Series


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
        moments = together(moments, mean)
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


def together(moments: Moments, mean: Float[Array, " n"]) -> Moments:
    """Moments whose angles at all states are next to those at the mean."""
    here = moments(mean)[0]

    def turned(x: Array) -> tuple[Array, Array]:
        value, noise = moments(x)
        return angles.nearest(value, here), noise

    return turned


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


def noise_at(
    conditional: Any, step: Step, x: Float[Array, " n"], form: gaussian.Form, name: str
) -> tuple[Array, Array]:
    """Mean and noise of a conditional at one state."""
    if hasattr(conditional, "at"):
        here = conditional.at(step)
        return here.matrix @ x + here.offset, noise(here, form)
    return moments_of(conditional, step, form, name)(x)


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
    check_conditional(model.transition, "transition", step, law.mean, n, method)
    check_conditional(model.observation, "observation", step, law.mean, m, method)


def check_conditional(
    conditional: Any, name: str, step: Step, mean: Float[Array, " n"], rows: int, method: str
) -> None:
    """Refuse a conditional without a mean and a covariance, or of another shape.

    Args:
        conditional: of a model.
        name: which of them it is.
        step: the first one.
        mean: of the first state.
        rows: number of values that it should give.
        method: the name of the method that makes it affine.

    Raises:
        TypeError: if it gives no distribution, or one without a finite mean and covariance.
        ValueError: naming the shapes.
    """
    require_columns(name, conditional, mean, step)
    kinds: list[type] = []

    def look(x: Array) -> Array:
        if hasattr(conditional, "at"):
            return noise_at(conditional, step, x, "covariance", name)[0]
        law = law_at(conditional, {"state": x, "step": step}, f"`{name}` of the model")
        kinds.append(type(of_one_event(law)))
        return mean_and_noise(law, "covariance", name)[0]

    shape = jax.eval_shape(look, mean).shape
    if shape != (rows,):
        seen = name == "observation"
        what = f"the data have {rows} channels" if seen else f"the state has {rows}"
        raise ValueError(
            f"`{name}` of the model gives values of shape {shape}, but {what}: expected ({rows},)."
        )
    if kinds:
        _check_moments(conditional, kinds[-1], step, mean, name, method)


def _check_moments(
    conditional: Any, kind: type, step: Step, mean: Array, name: str, method: str
) -> None:
    """Refuse a law with tails so heavy that it has no mean or no variance."""
    import numpyro.distributions as dist

    heavy = (dist.Cauchy, dist.HalfCauchy, dist.StudentT, dist.MultivariateStudentT)
    if not issubclass(kind, (*heavy, dist.Pareto, dist.InverseGamma, dist.Levy)):
        return
    law = conditional(mean, step)
    parts = (law, *mean_and_noise(law, "covariance", name))
    leaves = jax.tree.leaves(parts)
    if any(isinstance(x, jax.core.Tracer) for x in leaves):
        return
    finite = [bool(np.isfinite(np.asarray(x)).all()) for x in leaves]
    if all(finite[:-2]) and not all(finite):  # parameters are, moments are not
        others = "Laplace(), ExpectationPropagation() or " * (name == "observation")
        raise TypeError(
            f"{method} replaces laws by their mean and covariance, but `{name}` of the model gives "
            f"{kind.__name__}, of which not both are finite here: use {others}"
            "particles, such as BackwardSampling()."
        )


class Nominal(NamedTuple):
    """States round which a model is made affine: their means, and covariances or factors of them."""

    mean: Float[Array, "T n"]
    spread: Float[Array, "T n n"]


class Start(NamedTuple):
    """What a recording and the initial law give: all that is not to be linearised.

    Attributes:
        initial: the law of the first state.
        steps: of the recording, stacked over time.
        y: the observations, zero where missing.
        mask: where they are not; None if they are complete.
        form: of the recursion.
    """

    initial: gaussian.Initial
    steps: Step
    y: Float[Array, "T m"]
    mask: Bool[Array, "T m"] | None
    form: gaussian.Form


def started(model: Any, series: Series, form: gaussian.Form | None, name: str) -> Start:
    """Where a method of this name starts.

    Raises:
        ValueError: if the initial law is diffuse.
    """
    steps, _ = steps_of(series)
    law = proper(initial_law(model, at(steps, 0)), name)
    dtype = dtype_of(series, law, model)
    form = form or ("sqrt" if dtype == jnp.float32 else "covariance")
    initial = gaussian.Initial(
        law.mean.astype(dtype), full_carry(noise(law, form), form, (), dtype)
    )
    y = series.channels.astype(dtype)
    if series.complete is True:
        return Start(initial, steps, y, None, form)
    mask = ~jnp.isnan(y)
    return Start(initial, steps, jnp.where(mask, y, 0), mask, form)


def linearised(
    model: Any, start: Start, rule: Linearisation, seen_from: Nominal, moved_from: Nominal
) -> gaussian.Chain:
    """The chain of the model made affine: observations round some states, transitions round some others."""
    form = start.form

    def see(step: Step, mean: Array, spread: Array, y: Array) -> Affine:
        return observed_affine(model, step, rule, mean, spread, y, form)

    def move(step: Step, mean: Array, spread: Array) -> Affine:
        made = make_affine(model.transition, step, rule, mean, spread, form, "transition")
        return Affine(*(a.astype(mean.dtype) for a in made))

    sees = jax.vmap(see)(start.steps, *seen_from, start.y)
    single = len(start.y) == 1  # its transition leads nowhere
    later = start.steps if single else jax.tree.map(lambda x: x[1:], start.steps)
    before = moved_from if single else jax.tree.map(lambda x: x[:-1], moved_from)
    moves = jax.vmap(move)(later, *before)
    potentials = gaussian.Observed(*sees, start.y, start.mask)
    return gaussian.Chain(start.initial, gaussian.Transitions(*moves), potentials)
