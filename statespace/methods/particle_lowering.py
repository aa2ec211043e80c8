"""From a model and a recording to a particle chain."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from statespace.chains.particle.types import Chain, Particles
from statespace.conditionals import aggregates
from statespace.conditionals.discriminative import Discriminative
from statespace.conditionals.finite import FiniteTransition
from statespace.methods.discriminative_sites import check_regression, said_of
from statespace.methods.lowering import at, dtype_of, steps_of
from statespace.methods.particle_laws import (
    AffineObservation,
    AffineTransition,
    FiniteLaw,
    FunctionLaw,
    FunctionObservation,
    InitialLaw,
    Moment,
    SiteObservation,
    TableObservation,
    affine,
    jumps,
    masked,
    over_time,
)
from statespace.methods.potentials import log_potentials, with_history
from statespace.methods.proposals import proposal_named
from statespace.methods.transition_bounds import bound_of
from statespace.model import Step
from statespace.series import Series


class Bootstrap(eqx.Module):
    """A model on clouds: states move by the transition and weigh what the observation says.

    Attributes:
        initial: law of the first state.
        transition: law of the next state.
        observation: law of the observation.
    """

    initial: InitialLaw
    transition: Any
    observation: Any

    def start(self, random: PRNGKeyArray, size: int, moment: Moment) -> Particles:
        """Draws of the first state."""
        return self.initial.draw(random, size)

    def weigh_start(self, particles: Particles, moment: Moment) -> Float[Array, " N"]:
        """Log density of the first observation."""
        return self.observation.log_prob(particles, moment)

    def propose(self, random: PRNGKeyArray, previous: Particles, moment: Moment) -> Particles:
        """Draws of the next state."""
        return self.transition.draw(random, previous, moment)

    def weigh(
        self, previous: Particles, particles: Particles, moment: Moment
    ) -> Float[Array, " N"]:
        """Log density of the observation."""
        return self.observation.log_prob(particles, moment)

    def chain(self, moments: Moment) -> Chain:
        """As the recursions take it."""
        density = self.transition.log_prob if self.transition.has_density else None
        return Chain(
            moments,
            self.start,
            self.weigh_start,
            self.propose,
            self.weigh,
            density,
            bound=bound_of(self.transition, at(moments.step, 0)),
        )


def lower(
    model: Any, series: Series, proposal: Any = "bootstrap", steps: Step | None = None
) -> Chain:
    """The particle chain of a model on a recording.

    Its moments are :class:`~statespace.methods.particle_laws.Moment` rows, with ``step`` and ``y``.

    Args:
        model: anything with ``initial``, ``transition`` and ``observation``.
        series: the recording.
        proposal: how particles are moved: see :class:`~statespace.ParticleFilter`.
        steps: the steps of the moments, where they are not those of the recording; they do not vary.

    Raises:
        TypeError: if the proposal cannot be derived from the model.
        ValueError: if the initial law is diffuse.
    """
    clouds, moments = on_clouds(model, series, steps)
    return proposal_named(proposal).chain(clouds, moments)


def on_clouds(model: Any, series: Series, steps: Step | None = None) -> tuple[Bootstrap, Moment]:
    """The conditionals of a model for clouds of states, and the rows of a recording."""
    if steps is None:
        steps, varies = steps_of(series)
    else:
        varies = jax.tree.map(lambda _: False, steps)
    dtype = dtype_of(series, eqx.filter(model, eqx.is_array))
    initial = InitialLaw(initial_law(model, at(steps, 0)), dtype)
    like = initial.like
    moments = Moment(with_history(model.observation, series, steps), series.channels.astype(dtype))
    row = at(moments, 0)
    transition: Any
    observation: Any

    if isinstance(model.transition, FiniteTransition):
        matrix = lambda step: jumps(model.transition.matrix(step), dtype)
        constant, varying = over_time(matrix, steps, varies)
        transition, moments = FiniteLaw(constant), moments._replace(transition=varying)
    elif hasattr(model.transition, "at"):
        law = lambda step: affine(model.transition, step, dtype)
        constant, varying = over_time(law, steps, varies)
        transition, moments = AffineTransition(constant), moments._replace(transition=varying)
    else:
        transition = FunctionLaw(model.transition, like, row.step, like)

    if isinstance(model.transition, FiniteTransition):
        parts = model.transition.aggregate
        states = aggregates.count(parts, len(model.transition.matrix(at(steps, 0))))
        table = log_potentials(model.observation, series, steps, states)
        whole = None if parts is None else lambda x: aggregates.whole(parts, x)
        observation = TableObservation(whole, bool(series.complete))
        moments = moments._replace(observation=table.astype(dtype))
    elif isinstance(model.observation, Discriminative):
        check_regression(model.observation, like.shape[-1], series.channels[:1])
        said = said_of(model.observation, series.channels)
        said = said._replace(flagged=None)
        moments = moments._replace(observation=jax.tree.map(lambda x: x.astype(dtype), said))
        observation = SiteObservation(bool(series.complete))
    elif hasattr(model.observation, "at"):
        constant, varying = _observed(model.observation, moments, varies, series.complete, dtype)
        observation = AffineObservation(constant, bool(series.complete))
        moments = moments._replace(observation=varying)
    else:
        observation = FunctionObservation(
            model.observation, like, row, complete=bool(series.complete)
        )
    return Bootstrap(initial, transition, observation), moments


def _observed(conditional: Any, moments: Moment, varies: Step, complete: Any, dtype: Any) -> Any:
    """The arrays of a linear Gaussian observation: those that never change, and those over time."""
    steps = moments.step._replace(history=None)
    constant, varying = over_time(lambda step: affine(conditional, step, dtype), steps, varies)
    every = jax.eval_shape(lambda: affine(conditional, at(steps, 0), dtype))
    if complete or every.factor.ndim == 1:
        return constant, varying
    row = lambda part, y: masked(eqx.combine(constant, part), y)
    full = jax.vmap(row)(varying, moments.y)
    masks = lambda like: like._replace(whitener=full.whitener, log_det=full.log_det)
    return constant._replace(whitener=None, log_det=None), masks(varying)


def initial_law(model: Any, step: Step) -> Any:
    """The distribution of the first state.

    Raises:
        ValueError: if it is diffuse: there is then nothing to draw from.
    """
    law = model.initial
    return law if hasattr(law, "log_prob") and hasattr(law, "sample") else law(step)


def states_of(model: Any, particles: Particles) -> Particles:
    """The states that particles stand for: the model's own, where its chain is of parts of them."""
    parts = getattr(model.transition, "aggregate", None)
    return particles if parts is None else aggregates.whole(parts, jnp.asarray(particles))
