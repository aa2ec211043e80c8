"""The density of states and observations together: what is known once a path of states is given."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from statespace.methods import potentials
from statespace.methods.lowering import at, steps_of
from statespace.methods.particle_lowering import initial_law
from statespace.model import Step
from statespace.series import Series


def moments(model: Any, series: Series) -> tuple[Step, Float[Array, "T m"]]:
    """The steps of a recording, with past observations where the model reads them, and its values."""
    steps = potentials.with_history(model.observation, series, steps_of(series)[0])
    return steps, series.channels


def log_density(
    model: Any, series: Series, path: Any, within: Bool[Array, " T"]
) -> Float[Array, ""]:
    """``log p(x_{0:T}, y_{0:T})`` of one path of states.

    Args:
        model: any model whose initial law and transition have densities.
        series: the recording; missing entries are integrated out.
        path: the states, shape ``(T, ...)``.
        within: False after the end of a padded recording.
    """
    steps, y = moments(model, series)
    later = jax.tree.map(lambda a: a[1:], (path, steps))
    before = jax.tree.map(lambda a: a[:-1], path)
    move = lambda x, new, step: jnp.sum(model.transition(x, step).log_prob(new))
    see = lambda x, step, y: potentials.log_density(model.observation(x, step), y)
    first = jnp.sum(initial_law(model, at(steps, 0)).log_prob(at(path, 0)))
    moved = jax.vmap(move)(before, *later)
    seen = jax.vmap(see)(path, steps, y)
    return first + jnp.sum(jnp.where(within[1:], moved, 0)) + jnp.sum(jnp.where(within, seen, 0))
