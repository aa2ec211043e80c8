"""Paths of states drawn by particles, for learners that go on from the last one."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from statespace.chains.particle import parisian, recursion
from statespace.chains.particle.resampling import resampling_named
from statespace.learners import complete_data
from statespace.learners.likelihood import recordings
from statespace.learners.problem import Problem
from statespace.methods.particle_lowering import lower

SELECTIONS = ("ancestor", "backward")


class Drawing(NamedTuple):
    """How paths are drawn.

    Attributes:
        particles: N.
        proposal: how particles are moved, as for :class:`statespace.ParticleFilter`.
        resampling: the scheme.
        selection: "backward" or "ancestor", see :func:`statespace.chains.particle.parisian.conditional_move`.
    """

    particles: int
    proposal: Any
    resampling: Any
    selection: str = "backward"

    @property
    def settings(self) -> parisian.Settings:
        """As the chains take them."""
        return parisian.Settings(self.particles, self.resampling)


def check_drawing(drawing: Drawing, learner: str) -> None:
    """Refuse settings that cannot be run.

    Raises:
        ValueError: naming the argument.
    """
    if drawing.particles < 2:
        raise ValueError(f"`particles` of {learner} must be at least 2, got {drawing.particles}.")
    if drawing.selection not in SELECTIONS:
        raise ValueError(
            f"`selection` of {learner} must be one of {SELECTIONS}, got {drawing.selection!r}."
        )
    resampling_named(drawing.resampling)


def check_densities(model: Any, data: Any, learner: str) -> None:
    """Refuse a model whose states have no density.

    Raises:
        TypeError: naming the conditional at fault, and the learners that do without.
    """
    if getattr(model.transition, "aggregate", None) is not None:
        raise TypeError(
            f"{learner} needs the states as the model states them, and {type(model.transition).__name__} "
            "counts with parts of them: use Gibbs(), or MaximumLikelihood()."
        )
    series = jax.tree.map(lambda a: a[0], recordings(data)[0])
    if lower(model, series).transition is None:
        raise TypeError(
            f"{learner} needs the density of the states, and `transition` of the model has none (its noise "
            "spans fewer directions than the state has): use ParticleMarginalMetropolis() or "
            "IteratedFiltering(), which only draw from it."
        )


def first_paths(
    problem: Problem, z: Float[Array, " p"], key: PRNGKeyArray, drawing: Drawing
) -> Any:
    """A path of each recording through the particles of a filter, leaves ``(S, T, ...)``."""
    model, (series, within) = problem.place(z), recordings(problem.data)

    def one(series: Any, key: PRNGKeyArray) -> Any:
        key_run, key_path = jax.random.split(key)
        chain, settings = lower(model, series, drawing.proposal), drawing.settings
        run = recursion.run(
            chain,
            recursion.keys(key_run, within.shape[1]),
            settings.particles,
            resample=settings.resample,
            observer=recursion.history,
        )
        kept = parisian.Trajectories(*run.out)
        paths, _ = parisian.backward_paths(key_path, chain, kept, settings.kernel, 1)
        return jax.tree.map(lambda x: x[:, 0], paths)

    return jax.vmap(one)(series, jax.random.split(key, len(within)))


def moved_paths(
    problem: Problem, z: Float[Array, " p"], paths: Any, key: PRNGKeyArray, drawing: Drawing
) -> parisian.Move:
    """A new path of each recording, by a kernel that keeps their law given these parameters."""
    model, (series, within) = problem.place(z), recordings(problem.data)

    def one(series: Any, path: Any, key: PRNGKeyArray) -> parisian.Move:
        chain = lower(model, series, drawing.proposal)
        return parisian.conditional_move(key, chain, path, drawing.settings, drawing.selection)

    return jax.vmap(one)(series, paths, jax.random.split(key, len(within)))


def complete(problem: Problem, z: Float[Array, " p"], paths: Any) -> Float[Array, ""]:
    """``log p(x, y)`` of a path of each recording."""
    return complete_at(problem.place(z), problem.data, paths).astype(z.dtype)


def complete_at(model: Any, data: Any, paths: Any) -> Float[Array, ""]:
    """The same for a model as it stands."""
    series, within = recordings(data)
    one = lambda s, path, inside: complete_data.log_density(model, s, path, inside)
    return jnp.sum(jax.vmap(one)(series, paths, within))
