"""A number that forgets: the autoregression of order one, at any interval."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from statespace.conditionals.affine import AffineGaussian, Gaussian
from statespace.model import Step

if TYPE_CHECKING:
    from numpyro.distributions import Distribution


class Reverting(eqx.Module):
    """``x_t - mean = persistence^dt (x_{t-1} - mean) + noise``, one coordinate.

    Over one unit of time the noise has the standard deviation ``scale``; over any other interval the one that
    makes the law compose, ``scale^2 (1 - persistence^{2 dt}) / (1 - persistence^2)``: an Ornstein–Uhlenbeck
    process, said in discrete time.

    Args:
        mean: scalar.
        persistence: correlation over one unit of time, between 0 and 1.
        scale: standard deviation of the noise of one unit of time, positive.
        drive: function ``step -> scalar`` that is added to the next state; None for none.
    """

    mean: Float[Array, ""]
    persistence: Float[Array, ""]
    scale: Float[Array, ""]
    drive: Any = None

    def decay(self, step: Step) -> tuple[Float[Array, ""], Float[Array, ""]]:
        """Correlation over the interval of a step, and the standard deviation of its noise."""
        correlation = self.persistence ** jnp.asarray(step.dt, self.persistence.dtype)
        spent = (1 - correlation) * (1 + correlation)
        unit = (1 - self.persistence) * (1 + self.persistence)
        return correlation, self.scale * jnp.sqrt(spent / unit)

    def at(self, step: Step) -> AffineGaussian:
        """The conditional at one step."""
        correlation, scale = self.decay(step)
        offset = (1 - correlation) * self.mean
        if self.drive is not None:
            offset = offset + self.drive(step)
        return AffineGaussian(correlation[None, None], offset[None], scale[None])

    def __call__(self, state: Float[Array, " 1"], step: Step) -> Distribution:
        """The distribution of the next state."""
        return self.at(step)(state, step)

    @property
    def stationary(self) -> Gaussian:
        """The law that it tends to, without the drive."""
        unit = (1 - self.persistence) * (1 + self.persistence)
        return Gaussian(self.mean[None], (self.scale / jnp.sqrt(unit))[None])
