"""The forward half of every Gaussian computation: mask, covariances, means, evidence of each moment."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from statespace.chains.gaussian import algebra as la
from statespace.chains.gaussian.covariances import Gains, covariance_pass
from statespace.chains.gaussian.means import Means, mean_pass
from statespace.chains.gaussian.types import Chain, Form, Observed, Sites
from statespace.chains.moments import vmap_moments

LOG_2PI = 1.8378770664093453


class Forward(NamedTuple):
    """Gains, means with their columns, and per moment the log-density terms.

    The log density of moment t given the past and the diffuse coefficients ``delta`` is
    ``constant_t - z^T gram_t z / 2`` with ``z = (1, delta)``.
    """

    gains: Gains
    means: Means
    constant: Float[Array, " T"]
    gram: Float[Array, "T c c"]


def absorb_mask(chain: Chain, form: Form) -> Chain:
    """The same chain with missing entries turned into observations of nothing: see :func:`absorb`."""
    p = chain.potentials
    return chain if isinstance(p, Sites) else chain._replace(potentials=absorb(p, form))


def absorb(p: Observed, form: Form) -> Observed:
    """Potentials without a mask: a missing entry observes nothing, with unit noise.

    It gets a zero row of ``H``, a zero residual and noise independent of the rest: its gain is zero and its
    log density a constant, which :func:`forward` leaves out.
    """
    if p.mask is None:
        return p
    seen = p.mask
    return Observed(
        matrix=jnp.where(seen[..., None], p.matrix, 0),
        offset=jnp.where(seen, p.offset, 0),
        noise=vmap_moments(lambda r, seen: mask_noise(r, seen, form), p.noise, seen),
        value=jnp.where(seen, p.value, 0),
    )


def mask_noise(r: Float[Array, "m k"], seen: Bool[Array, " m"], form: Form) -> Array:
    """Observation noise in which missing entries have unit noise of their own."""
    unit = jnp.diag(jnp.where(seen, 0, 1).astype(r.dtype))
    if form == "covariance":
        return jnp.where(seen[:, None] & seen[None, :], r, 0) + unit
    return jnp.concatenate([jnp.where(seen[:, None], r, 0), unit], axis=1)


def columns(chain: Chain) -> Float[Array, "n c"]:
    """The initial mean, followed by the diffuse directions."""
    mean = chain.initial.mean[:, None]
    if chain.initial.diffuse is None:
        return mean
    return jnp.concatenate([mean, chain.initial.diffuse.astype(mean.dtype)], axis=1)


def forward(chain: Chain, form: Form, parallel: bool) -> Forward:
    """Run the covariance pass and the mean pass, and take the evidence of each moment from them.

    The evidence comes from the one-step predictions after the scans, never from inside an associative
    operator, where its terms cancel.
    """
    count = None
    p = chain.potentials
    if isinstance(p, Observed) and p.mask is not None:
        count = jnp.sum(p.mask, axis=1)
    chain = absorb_mask(chain, form)
    p, f = chain.potentials, chain.transitions
    gains = covariance_pass(chain, form, parallel)
    if isinstance(p, Sites):
        design, residual = p.precision, p.shift
    else:
        design, residual = p.matrix, p.value - p.offset
    means = mean_pass(
        columns(chain), f.matrix, f.offset, design, residual, gains.gain, gains.ahead, parallel
    )
    if isinstance(p, Sites):
        constant = -vmap_moments(la.log_diagonal, gains.factor)
        gram = vmap_moments(
            site_gram, means.predicted, means.innovation, p.precision, p.shift, gains.gain
        )
    else:
        dims = p.value.shape[1] if count is None else count
        constant = -vmap_moments(la.log_diagonal, gains.factor) - 0.5 * LOG_2PI * dims
        whitened = vmap_moments(la.solve_lower, gains.factor, means.innovation)
        gram = vmap_moments(la.t_matmul, whitened, whitened)
    return Forward(gains, means, constant, gram)


def site_gram(mean: Array, innovation: Array, precision: Array, shift: Array, gain: Array) -> Array:
    """``log int N(x; m, P) exp(-x' L x / 2 + s' x) dx`` is ``-log|I + P L| / 2 - z' gram z / 2``."""
    linear = jnp.zeros((mean.shape[1],) * 2, mean.dtype).at[0].set(shift @ mean)
    return (
        la.t_matmul(mean, la.matmul(precision, mean))
        - la.t_matmul(innovation, la.matmul(gain, innovation))
        - linear
        - linear.T
    )


class Pull(NamedTuple):
    """What the potential at each moment says of the predicted state, for the adjoint pass."""

    closed: Float[Array, "T n n"]
    mean: Float[Array, "T n c"]
    information: Float[Array, "T n n"]


def pulls(chain: Chain, run: Forward) -> Pull:
    """``I - K H``, ``H^T S^{-1} v`` and ``H^T S^{-1} H`` of a chain whose mask is absorbed."""
    p = chain.potentials
    if isinstance(p, Sites):

        def site(precision: Array, gain: Array, v: Array) -> tuple[Array, Array, Array]:
            closed = la.eye(gain.shape[0], gain) - la.matmul(gain, precision)
            return closed, la.t_matmul(closed, v), la.symmetric(la.matmul(precision, closed))

        return Pull(*vmap_moments(site, p.precision, run.gains.gain, run.means.innovation))

    def observed(h: Array, gain: Array, factor: Array, v: Array) -> tuple[Array, Array, Array]:
        white_h, white_v = la.solve_lower(factor, h), la.solve_lower(factor, v)
        closed = la.eye(gain.shape[0], gain) - la.matmul(gain, h)
        return closed, la.t_matmul(white_h, white_v), la.t_matmul(white_h, white_h)

    return Pull(
        *vmap_moments(observed, p.matrix, run.gains.gain, run.gains.factor, run.means.innovation)
    )


def covariances(factors_or_covariances: Array, form: Form) -> Array:
    """Covariances from what a pass returned in this form."""
    if form == "covariance":
        return factors_or_covariances
    return jax.vmap(la.matmul_t)(factors_or_covariances, factors_or_covariances)
