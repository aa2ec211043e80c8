"""Raising a function of some parameters inside their supports: the M-step that needs no closed form."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from statespace.optimisation import descent

_TOLERANCE = 1e-10  # nats


def climb(
    objective: Callable[[dict[str, Array]], Float[Array, ""]],
    values: Mapping[str, Array],
    supports: Mapping[str, Any],
    evaluations: int = 200,
) -> dict[str, Array]:
    """Values at which the objective is at a maximum, or at least as high as at the given ones.

    Args:
        objective: of the values by name.
        values: where to start, strictly inside their supports.
        supports: a NumPyro constraint for each.
        evaluations: at most so many of the objective and its gradient.
    """
    from numpyro.distributions import biject_to

    to = {name: biject_to(supports[name]) for name in values}
    z, unravel = ravel_pytree([to[name].inv(value) for name, value in values.items()])
    place = lambda z: {name: to[name](part) for name, part in zip(values, unravel(z))}

    def loss(z: Array) -> Array:
        return -objective(place(z)).astype(z.dtype)

    tolerance = jnp.asarray(_TOLERANCE, z.dtype)
    state = descent.advance(loss, descent.start(z), tolerance, jnp.asarray(evaluations))
    return place(state.x)
