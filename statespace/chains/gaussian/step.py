"""One moment of the recursions by itself, for online use."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from statespace.chains.gaussian import algebra as la
from statespace.chains.gaussian.covariances import update
from statespace.chains.gaussian.forward import LOG_2PI, mask_noise, site_gram
from statespace.chains.gaussian.means import first_column
from statespace.chains.gaussian.types import Form, Observed, Sites


class Seen(NamedTuple):
    """One moment's update.

    Filtered covariance (or factor), gain, innovation factor, masked design, and how many entries were
    observed.
    """

    filtered: Float[Array, "n k"]
    gain: Float[Array, "n m"]
    factor: Float[Array, "m m"]
    design: Float[Array, "m n"]
    entries: Array


def gains(
    predicted: Float[Array, "n k"],
    design: Float[Array, "m n"],
    noise: Float[Array, "m k"],
    mask: Bool[Array, " m"],
    form: Form,
) -> Seen:
    """The covariance half of an update."""
    design = jnp.where(mask[:, None], design, 0)
    step = update(Observed, form)(predicted, design, mask_noise(noise, mask, form))
    return Seen(*step, design, jnp.sum(mask))


def move(
    columns: Float[Array, "n c"], matrix: Float[Array, "n n"], offset: Float[Array, " n"]
) -> Float[Array, "n c"]:
    """``F m + b``; the offset enters the first column only."""
    return la.matmul(matrix, columns) + first_column(offset, columns.shape[1])


def evidence(
    columns: Float[Array, "n c"], residual: Float[Array, " m"], seen: Seen
) -> tuple[Float[Array, "n c"], Float[Array, ""], Float[Array, "c c"]]:
    """The mean half of an update: filtered columns, and the log-density terms of :class:`Forward`."""
    innovation = first_column(residual, columns.shape[1]) - la.matmul(seen.design, columns)
    white = la.solve_lower(seen.factor, innovation)
    constant = -la.log_diagonal(seen.factor) - 0.5 * LOG_2PI * seen.entries
    return columns + la.matmul(seen.gain, innovation), constant, la.t_matmul(white, white)


def absorb_site(
    columns: Float[Array, "n c"],
    predicted: Float[Array, "n k"],
    precision: Float[Array, "n n"],
    shift: Float[Array, " n"],
    form: Form,
) -> tuple[Float[Array, "n c"], Float[Array, "n n"], Float[Array, ""], Float[Array, "c c"]]:
    """The update by a potential in information form.

    Returns:
        Filtered columns, filtered covariance (or a lower triangular factor), and the log-density terms of
        :class:`Forward`.
    """
    filtered, gain, factor = update(Sites, form)(predicted, precision, precision)
    if form == "sqrt":
        filtered = la.tria(filtered)
    innovation = first_column(shift, columns.shape[1]) - la.matmul(precision, columns)
    gram = site_gram(columns, innovation, precision, shift, gain)
    return columns + la.matmul(gain, innovation), filtered, -la.log_diagonal(factor), gram
