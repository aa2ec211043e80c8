"""Localisation: far-off observations say nothing of a state, whatever a small ensemble makes of them."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def gaspari_cohn(distance: Float[Array, "..."], radius: float) -> Float[Array, "..."]:
    """A correlation function that is zero beyond ``2 radius`` (Gaspari & Cohn 1999, equation 4.10).

    Args:
        distance: not negative.
        radius: half the distance at which it vanishes.
    """
    r = jnp.abs(distance) / radius
    near = 1 - 5 / 3 * r**2 + 5 / 8 * r**3 + 1 / 2 * r**4 - 1 / 4 * r**5
    inverse = 1 / jnp.where(r > 0, r, 1)
    far = 4 - 5 * r + 5 / 3 * r**2 + 5 / 8 * r**3 - 1 / 2 * r**4 + 1 / 12 * r**5 - 2 / 3 * inverse
    return jnp.where(r <= 1, near, jnp.where(r < 2, jnp.maximum(far, 0), 0))


class Localisation(eqx.Module):
    """Where states and observations are, and how far what one says of the other reaches.

    Args:
        radius: half the distance beyond which there is no influence.
        states: positions of the state's coordinates, shape ``(n,)`` or ``(n, k)``.
        observations: positions of the channels, shape ``(m,)`` or ``(m, k)``.
        period: length of a periodic domain in each direction; None for an open one.

    Raises:
        ValueError: if the radius or the period is not positive, or the positions have not the same number of
            directions.
    """

    radius: float = eqx.field(static=True)
    states: Float[Array, "n k"]
    observations: Float[Array, "m k"]
    period: float | None = eqx.field(static=True, default=None)

    def __init__(self, radius: float, states: Any, observations: Any, period: float | None = None):
        if not (np.isfinite(radius) and radius > 0):
            raise ValueError(f"`radius` of Localisation must be positive, got {radius}.")
        if period is not None and not period > 0:
            raise ValueError(f"`period` of Localisation must be positive or None, got {period}.")
        places = [jnp.asarray(a, float) for a in (states, observations)]
        places = [a[:, None] if a.ndim == 1 else a for a in places]
        if places[0].ndim != 2 or places[0].shape[1:] != places[1].shape[1:]:
            raise ValueError(
                "`states` and `observations` of Localisation must be positions in the same space, (n, k) and "
                f"(m, k), got {places[0].shape} and {places[1].shape}."
            )
        self.radius, self.period = float(radius), period
        self.states, self.observations = places

    @property
    def cross(self) -> Float[Array, "n m"]:
        """Influence of each observation on each state."""
        return self._taper(self.states, self.observations)

    @property
    def own(self) -> Float[Array, "m m"]:
        """Influence of the observations on each other."""
        return self._taper(self.observations, self.observations)

    def _taper(self, a: Array, b: Array) -> Array:
        apart = jnp.abs(a[:, None] - b[None])
        if self.period is not None:
            apart = jnp.minimum(apart % self.period, self.period - apart % self.period)
        return gaspari_cohn(jnp.sqrt(jnp.sum(apart**2, axis=-1)), self.radius)
