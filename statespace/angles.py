"""Angles in Gaussian inference, where -pi and pi are the same.

A normal law knows nothing of whole turns. Where a conditional's law is von Mises, predictions from different
states are therefore turned to be next to each other, and then together to be next to the observation;
nothing else of a Gaussian method need know of angles. That is sound while the prediction is known to much
better than half a turn.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.scipy.special import i0e, i1e
from jaxtyping import Array, Float


def nearest(angle: Float[Array, "*d"], to: Float[Array, "*d"]) -> Float[Array, "*d"]:
    """The same angle by another number of whole turns, within half a turn of another."""
    turn = 2 * np.pi
    return angle - turn * jnp.round((angle - to) / turn)


def are_angles(law: Any) -> bool:
    """Whether a NumPyro distribution is one of angles."""
    import numpyro.distributions as dist

    while isinstance(law, dist.Independent | dist.ExpandedDistribution):
        law = law.base_dist
    return isinstance(law, dist.VonMises)


def given_by(conditional: Any, state: Float[Array, " n"], step: Any) -> bool:
    """Whether a conditional is a law of angles."""
    return not hasattr(conditional, "at") and are_angles(conditional(state, step))


def variance(concentration: Float[Array, "*d"]) -> Float[Array, "*d"]:
    """Variance of the normal law which, wrapped round the circle, has the same mean resultant length.

    It is ``-2 log(I1(k) / I0(k))`` (Mardia & Jupp 2000, section 3.5.7), about ``1 / k`` for small noise. The
    circular variance ``1 - I1(k) / I0(k)``, which NumPyro gives, is about half of that.
    """
    return -2 * jnp.log(i1e(concentration) / i0e(concentration))
