"""Filters for nonlinear models that linearise as they go: extended and sigma-point Kalman filters."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from statespace import angles
from statespace.chains import gaussian
from statespace.chains.gaussian import algebra as la
from statespace.chains.gaussian.covariances import Gains, condition
from statespace.chains.gaussian.forward import LOG_2PI, mask_noise
from statespace.chains.gaussian.means import Means
from statespace.chains.moments import compensated_sum
from statespace.linearisation import (
    Cubature,
    Joint,
    Linearisation,
    SigmaPoints,
    Taylor,
    mean_and_noise,
    propagated,
    require_rule,
    rule_of,
)
from statespace.methods.gaussian_lowering import noise
from statespace.methods.gaussian_method import GaussianMethod, Lowered, in_parallel
from statespace.methods.hoisting import hoisted
from statespace.methods.linearised import (
    Nominal,
    Start,
    check_conditionals,
    linearised,
    started,
    together,
)
from statespace.methods.lowering import at
from statespace.model import Step
from statespace.posteriors.gaussian import GaussianPosterior
from statespace.series import Panel, Series


class Linearised(GaussianMethod):
    """A filter that replaces each conditional by an affine one, round what it knows of the state by then.

    The observation is linearised round the predicted state, the transition round the filtered one, and both
    are then the Gaussian chain's: smoothing, sampling and forecasts are exact in the linearised model.
    """

    @property
    @abstractmethod
    def linearisation(self) -> Linearisation:
        """The rule that makes a conditional affine."""

    def check(self, model: Any, data: Series | Panel) -> None:
        """Refuse conditionals without a mean and a covariance, and shapes that do not fit.

        Raises:
            TypeError: naming the conditional at fault.
            ValueError: naming the shapes.
        """
        check_conditionals(model, data, type(self).__name__)

    def lower(self, model: Any, series: Series) -> Lowered:
        """The chain of the model made affine along the filter's way."""
        return self.run(model, series)[0]

    def log_likelihood(self, model: Any, series: Series) -> Float[Array, ""]:
        """The sum of the log densities of the filter's one-step predictions."""
        return compensated_sum(self.pointwise(model, series))

    def pointwise(self, model: Any, series: Series) -> Float[Array, " T"]:
        """The log density of each moment under the filter's one-step prediction."""
        start = started(model, series, self.form, type(self).__name__)
        run = forward(model, start, self.linearisation)
        return run.constant - 0.5 * run.gram[:, 0, 0]

    def posterior(self, model: Any, series: Series, kind: Any) -> GaussianPosterior:
        """The law of the states: "filtered" or "smoothed"."""
        lowered, run = self.run(model, series)
        return self.posterior_of(model, series, lowered, kind, run)

    def run(self, model: Any, series: Series) -> tuple[Lowered, gaussian.Forward]:
        """The chain made affine along the filter's way, and the filter's pass over it."""
        start = started(model, series, self.form, type(self).__name__)
        chain, run = filtered(model, start, self.linearisation)
        how = {"form": start.form, "parallel": in_parallel(self.parallel, series)}
        return Lowered(chain, how), run

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
        TypeError: if ``rule`` is neither a name nor a rule of points.
        ValueError: if ``form`` or the name is not one of the above.
    """

    rule: SigmaPoints = eqx.field(static=True, default=Cubature(), converter=rule_of)

    def __check_init__(self) -> None:
        require_rule("rule", "SigmaPointKalman", self.rule, SigmaPoints)

    @property
    def linearisation(self) -> Linearisation:
        """Regression on the rule's points."""
        return self.rule


def filtered(
    model: Any, start: Start, rule: Linearisation
) -> tuple[gaussian.Chain, gaussian.Forward]:
    """The chain of the model made affine along the filter's way, and the filter's pass over it."""
    run = forward(model, start, rule)
    before = Nominal(run.means.predicted[..., 0], run.gains.predicted)
    after = Nominal(run.means.filtered[..., 0], run.gains.filtered)
    return linearised(model, start, rule, before, after), run


def forward(model: Any, start: Start, rule: Linearisation) -> gaussian.Forward:
    """The filter that linearises as it goes, as the forward pass over the chain that comes out."""
    form, steps = start.form, start.steps
    first = at(steps, 0)
    see = joint_law(model.observation, rule, start.initial.mean, first, form, "observation")
    move = joint_law(model.transition, rule, start.initial.mean, first, form, "transition")

    def moment(carry: tuple[Array, Array], row: tuple) -> tuple[tuple[Array, Array], tuple]:
        mean, spread = carry
        step, following, y, mask = row
        seen = update(see(step, mean, spread, y), mean, spread, y, mask, form)
        ahead = move(following, seen.mean, seen.spread)
        return moved(ahead, form), (mean, spread, seen)

    following = jax.tree.map(lambda x: jnp.concatenate([x[1:], x[-1:]]), steps)
    rows = (steps, following, start.y, start.mask)
    _, (mean, spread, seen) = jax.lax.scan(moment, (start.initial.mean, start.initial.noise), rows)
    gains = Gains(spread, seen.spread, seen.gain, seen.factor, jnp.zeros_like(seen.gain))
    means = Means(mean[..., None], seen.innovation[..., None], seen.mean[..., None])
    return gaussian.Forward(gains, means, seen.constant, seen.gram)


class Updated(NamedTuple):
    """A moment after its observation.

    Attributes:
        mean: filtered.
        spread: filtered covariance, or a factor of it.
        gain: of the innovation on the mean.
        factor: of the innovation's covariance.
        innovation: zero where missing.
        constant: with ``gram``, the log density of the observation: ``constant - gram / 2``.
        gram: shape ``(1, 1)``.
    """

    mean: Float[Array, " n"]
    spread: Float[Array, "n n"]
    gain: Float[Array, "n m"]
    factor: Float[Array, "m m"]
    innovation: Float[Array, " m"]
    constant: Float[Array, ""]
    gram: Float[Array, "1 1"]

    @property
    def log_density(self) -> Float[Array, ""]:
        """Of the observation, given those before it."""
        return self.constant - 0.5 * self.gram[0, 0]


def update(
    joint: Joint,
    mean: Float[Array, " n"],
    spread: Float[Array, "n n"],
    y: Float[Array, " m"],
    mask: Bool[Array, " m"] | None,
    form: gaussian.Form,
) -> Updated:
    """The state given an observation, from their joint law."""
    innovation, cross, own = y - joint.mean, joint.cross, joint.own
    entries: Any = len(y)
    if mask is not None:
        innovation, cross = jnp.where(mask, innovation, 0), jnp.where(mask[:, None], cross, 0)
        own, entries = mask_noise(own, mask, form), jnp.sum(mask)
    filtered, gain, factor = condition(spread, cross, own, form)
    column = innovation[:, None]
    white = la.solve_lower(factor, column)
    constant = -la.log_diagonal(factor) - 0.5 * LOG_2PI * entries
    moved = mean + la.matmul(gain, column)[:, 0]
    return Updated(moved, filtered, gain, factor, innovation, constant, la.t_matmul(white, white))


def moved(joint: Joint, form: gaussian.Form) -> tuple[Array, Array]:
    """Mean and covariance (or factor) of what a state leads to."""
    if form == "covariance":
        return joint.mean, joint.own
    return joint.mean, la.tria(jnp.concatenate([joint.cross, joint.own], axis=1))


def joint_law(
    conditional: Any,
    rule: Linearisation,
    mean: Float[Array, " n"],
    step: Step,
    form: gaussian.Form,
    name: str,
) -> Callable[..., Joint]:
    """A function of a step, the law of the state there and what is seen, for use in a loop.

    What depends on neither step nor state is computed here.

    Args:
        conditional: a model's transition or observation.
        rule: that makes it affine.
        mean: an example of a state.
        step: an example of a step.
        form: of the recursion.
        name: of the conditional, for errors.
    """
    cast = lambda *arrays: tuple(a.astype(mean.dtype) for a in arrays)
    if hasattr(conditional, "at"):

        def parts(step: Step) -> tuple[Array, ...]:
            here = conditional.at(step)
            return cast(here.matrix, here.offset, noise(here, form))

        known = hoisted(parts, step)

        def affine(step: Step, mean: Array, spread: Array, y: Array | None = None) -> Joint:
            matrix, offset, own = known(step)
            value = la.matmul(matrix, mean[:, None])[:, 0] + offset
            return propagated(value, matrix, own, spread, form)

        return affine
    look = lambda x, step: cast(*mean_and_noise(conditional(x, step), form, name))
    moments = hoisted(look, mean, step)
    turns = angles.given_by(conditional, mean, step)

    def joint(step: Step, mean: Array, spread: Array, y: Array | None = None) -> Joint:
        here = lambda x: moments(x, step)
        made = rule.joint(together(here, mean) if turns else here, mean, spread, form)
        if y is None or not turns:
            return made
        return made._replace(mean=angles.nearest(made.mean, y))

    return joint
