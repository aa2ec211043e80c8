"""How particles are moved: by the transition, towards the observation, or as a function says."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from statespace.chains.particle.types import Chain, Particles
from statespace.methods.lowering import at
from statespace.methods.particle_laws import (
    AffineObservation,
    AffineTransition,
    FiniteLaw,
    FunctionLaw,
    InitialLaw,
    Moment,
    TableObservation,
)

__all__ = ["Auxiliary", "Bootstrap", "Given", "Linearised", "Proposal"]


Ahead = tuple[Callable[..., Float[Array, " N"]], Moment]


class Proposal(eqx.Module):
    """What all proposals are: something that makes a chain of a model on clouds."""

    @abstractmethod
    def chain(self, clouds: Any, moments: Moment) -> Chain:
        """The chain whose particles are moved this way.

        Args:
            clouds: the model's conditionals for clouds of states.
            moments: the rows of a recording.
        """

    def look_ahead(self, clouds: Any, moments: Moment) -> Ahead:
        """``(particles, next moment) -> (N,)``: log of about how likely each leads to the observation.

        With the rows of the recording, to which it may add what it needs.
        """
        return _at_the_mean(clouds, moments)


class Bootstrap(Proposal):
    """By the transition, whatever is observed (Gordon, Salmond & Smith 1993)."""

    def chain(self, clouds: Any, moments: Moment) -> Chain:
        """The chain of the model itself."""
        return clouds.chain(moments)


class Linearised(Proposal):
    """Towards the observation: the transition times a Gaussian approximation of ``p(y | x)``.

    ``log p(y | x)`` is expanded to second order round the predicted state of each particle, which gives the
    centre of the proposal; the curvature there, made positive semi-definite, gives its width. Steps are
    shortened where they would lose density. Where the model is
    linear and Gaussian this is the optimal proposal, ``p(x' | x, y)``. Needs a transition whose distributions
    are normal; its noise may be singular.

    Args:
        degrees: degrees of freedom of Student's t in place of the normal law, for heavier tails; None for
            the normal law.
        iterations: how often the expansion is made anew at the point that it led to.

    Raises:
        ValueError: if ``degrees`` or ``iterations`` is not positive.

    References:
        Doucet, Godsill & Andrieu (2000), On sequential Monte Carlo sampling methods for Bayesian filtering,
        section II.D.
    """

    degrees: float | None = eqx.field(static=True, default=None)
    iterations: int = eqx.field(static=True, default=1)

    def __check_init__(self) -> None:
        if self.degrees is not None and not self.degrees > 0:
            raise ValueError(f"`degrees` of Linearised must be positive, got {self.degrees}.")
        if self.iterations < 1:
            raise ValueError(f"`iterations` of Linearised must be positive, got {self.iterations}.")

    def chain(self, clouds: Any, moments: Moment) -> Chain:
        """The chain of expansions."""
        from statespace.methods.linearised_proposal import guide

        made, moments = guide(self, clouds, moments)
        return guided(clouds, made, moments)

    def look_ahead(self, clouds: Any, moments: Moment) -> Ahead:
        """The integral of the approximation; exact where the model is linear and Gaussian."""
        from statespace.methods.linearised_proposal import guide

        made, moments = guide(self, clouds, moments)
        return made.evidence, moments


class Given(Proposal):
    """By a function ``(state, step, y) -> Distribution`` of the next state.

    The first states come from ``initial``, or by ``function.initial(step, y)`` where it has such a method. At
    a moment at which nothing was observed particles move by the transition.

    Args:
        function: of a previous state, the step, and the observation ``(m,)``, NaN where missing in part.
    """

    function: Callable[..., Any]

    @property
    def name(self) -> str:
        """What to call it in messages."""
        return getattr(self.function, "__name__", type(self.function).__name__)

    def chain(self, clouds: Any, moments: Moment) -> Chain:
        """The chain of the function."""
        law = self.law(clouds, at(moments, 0))
        if not law.has_density:
            raise TypeError(f"the proposal {self.name} gives distributions without `log_prob`.")
        if not clouds.transition.has_density:
            raise TypeError(
                f"`transition` of the model has no density, by which draws of the proposal {self.name} are "
                'weighed: use proposal="bootstrap".'
            )
        first = getattr(self.function, "initial", None)
        return guided(clouds, _Given(clouds, law, first), moments)

    def law(self, clouds: Any, moment: Moment) -> FunctionLaw:
        """The function for clouds, whose step is the pair of step and observation."""
        like = clouds.initial.like
        conditional = lambda state, pair: self.function(state, *pair)
        return FunctionLaw(conditional, like, (moment.step, moment.y), like)


class Auxiliary(Proposal):
    """Particles are drawn anew by how well they predict the next observation (Pitt & Shephard 1999).

    Args:
        proposal: how they are then moved. With "linearised" the prediction is the integral of its
            approximation, else the density of the observation at the expected next state; it is exact
            for finite states and for linear Gaussian models.
    """

    proposal: Any = "bootstrap"

    def chain(self, clouds: Any, moments: Moment) -> Chain:
        """The chain of the proposal, which looks ahead."""
        inner = proposal_named(self.proposal)
        chain = inner.chain(clouds, moments)
        ahead, moments = inner.look_ahead(clouds, chain.moments)
        return eqx.tree_at(
            lambda c: (c.look_ahead, c.moments), chain, (ahead, moments), is_leaf=_whole
        )


_NAMED: dict[str, Callable[[], Proposal]] = {
    "bootstrap": Bootstrap,
    "linearised": Linearised,
    "auxiliary": Auxiliary,
}


def proposal_named(proposal: Any) -> Proposal:
    """A proposal by its name, or of a function.

    Raises:
        TypeError: if it is of another kind.
        ValueError: if there is none of this name.
    """
    if isinstance(proposal, Proposal):
        return proposal
    if isinstance(proposal, str):
        if proposal in _NAMED:
            return _NAMED[proposal]()
        raise ValueError(f"`proposal` must be one of {sorted(_NAMED)}, got {proposal!r}.")
    if callable(proposal) and not isinstance(proposal, type):
        return Given(proposal)
    raise TypeError(
        f"`proposal` must be one of {sorted(_NAMED)}, one of `statespace.proposals`, or a function "
        f"`(state, step, y) -> Distribution`, got {proposal!r}."
    )


def guided(clouds: Any, guide: Any, moments: Moment) -> Chain:
    """The chain whose particles a guide moves, with the weights that make up for it.

    A guide has ``start``, ``weigh_start``, ``draw`` and ``log_ratio``: the log density of the transition
    over that of the proposal.
    """

    def weigh(previous: Particles, particles: Particles, moment: Moment) -> Float[Array, " N"]:
        seen = clouds.observation.log_prob(particles, moment)
        return seen + guide.log_ratio(previous, particles, moment)

    def weigh_start(particles: Particles, moment: Moment) -> Float[Array, " N"]:
        seen = clouds.observation.log_prob(particles, moment)
        return seen + guide.log_ratio_start(particles, moment)

    plain = clouds.chain(moments)
    names = ("start", "weigh_start", "propose", "weigh")
    return eqx.tree_at(
        lambda c: [getattr(c, name) for name in names],
        plain,
        [guide.start, weigh_start, guide.draw, weigh],
        is_leaf=callable,
    )


class _Given(eqx.Module):
    """Guided by a function."""

    clouds: Any
    law: FunctionLaw
    initial: Callable[..., Any] | None

    def start(self, random: PRNGKeyArray, size: int, moment: Moment) -> Particles:
        if self.initial is None:
            return self.clouds.start(random, size, moment)
        return self._first(moment).draw(random, size)

    def log_ratio_start(self, particles: Particles, moment: Moment) -> Float[Array, " N"]:
        if self.initial is None:
            return jnp.zeros(len(jax.tree.leaves(particles)[0]), moment.y.dtype)
        return self.clouds.initial.log_prob(particles) - self._first(moment).log_prob(particles)

    def draw(self, random: PRNGKeyArray, previous: Particles, moment: Moment) -> Particles:
        drawn = self.law.draw(random, previous, self._paired(moment))
        if self.clouds.observation.complete:
            return drawn
        moved = self.clouds.propose(random, previous, moment)
        seen = ~jnp.all(jnp.isnan(moment.y))
        return jax.tree.map(lambda a, b: jnp.where(seen, a, b), drawn, moved)

    def log_ratio(
        self, previous: Particles, particles: Particles, moment: Moment
    ) -> Float[Array, " N"]:
        proposed = self.law.log_prob(previous, particles, self._paired(moment))
        ratio = self.clouds.transition.log_prob(previous, particles, moment) - proposed
        if self.clouds.observation.complete:
            return ratio
        return jnp.where(jnp.all(jnp.isnan(moment.y)), 0, ratio)

    def _paired(self, moment: Moment) -> Moment:
        return moment._replace(step=(moment.step, moment.y))

    def _first(self, moment: Moment) -> InitialLaw:
        assert self.initial is not None
        return InitialLaw(self.initial(moment.step, moment.y), moment.y.dtype)


def _whole(part: Any) -> bool:
    return part is None or isinstance(part, Moment)


def _at_the_mean(clouds: Any, moments: Moment) -> Ahead:
    """How likely the expected next state makes the observation; exact for finite and linear Gaussian ones."""
    law, observation = clouds.transition, clouds.observation
    if isinstance(law, AffineTransition) and isinstance(observation, AffineObservation):
        return Linearised().look_ahead(clouds, moments)
    if isinstance(law, FiniteLaw) and isinstance(observation, TableObservation):

        def over_states(particles: Array, moment: Moment) -> Float[Array, " N"]:
            logs = law.at(moment).logs
            every = observation.log_prob(jnp.arange(logs.shape[1]), moment)
            return jax.nn.logsumexp(logs + every, axis=1)[particles]

        return over_states, moments

    def at_mean(particles: Particles, moment: Moment) -> Float[Array, " N"]:
        return observation.log_prob(law.mean(particles, moment), moment)

    if not isinstance(law, AffineTransition):
        like = jax.tree.map(lambda x: jnp.zeros((1, *x.shape), x.dtype), clouds.initial.like)
        try:
            jax.eval_shape(lambda: law.mean(like, at(moments, 0)))
        except (NotImplementedError, AttributeError) as error:
            raise TypeError(
                "the auxiliary filter looks ahead to the expected next state, and the distributions of "
                '`transition` have no `mean`: use proposal="bootstrap".'
            ) from error
    return at_mean, moments
