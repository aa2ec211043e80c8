"""The log likelihood of a chain, with its derivative written by hand."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from statespace.chains.gaussian import algebra as la
from statespace.chains.gaussian import diffuse
from statespace.chains.gaussian.evidence import evidence
from statespace.chains.gaussian.forward import Forward, absorb_mask, covariances, forward, pulls
from statespace.chains.gaussian.means import Adjoint, adjoint_pass
from statespace.chains.gaussian.types import (
    Chain,
    Form,
    Initial,
    Observed,
    Sites,
    Transitions,
    length,
)
from statespace.chains.moments import compensated_sum, vmap_moments


@partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def log_likelihood(
    chain: Chain, form: Form = "covariance", parallel: bool = False
) -> Float[Array, ""]:
    """``log p(y_{0:T-1})``; under a flat prior on the diffuse directions, if there are any.

    Its derivative is the score of Koopman & Shephard (1992) from one backward pass, which inverts no noise
    covariance: it is finite at singular noise and known initial states. Forward and reverse mode, and
    derivatives of any order, are available.
    """
    constant, gram = evidence(chain, form, parallel)
    return constant + diffuse.integrate(gram).log_evidence


@log_likelihood.defjvp
def _log_likelihood_jvp(form: Form, parallel: bool, primals: tuple, tangents: tuple) -> tuple:
    (chain,), (direction,) = primals, tangents
    value, gradient = value_and_score(chain, form, parallel)
    pairs = zip(jax.tree.leaves(gradient), _float_leaves(direction), strict=True)
    slope = sum(jnp.sum(g * d) for g, d in pairs)
    return value, jnp.asarray(slope, value.dtype)


def _float_leaves(direction: Chain) -> list[Array]:
    return [x for x in jax.tree.leaves(direction) if x.dtype != jax.dtypes.float0]


def pointwise(
    chain: Chain, form: Form = "covariance", parallel: bool = False
) -> Float[Array, " T"]:
    """``log p(y_t | y_{0:t-1})`` for each t.

    With diffuse directions their sum is the diffuse likelihood, and a term before all directions are
    identified has a meaning only within that sum.
    """
    run = forward(chain, form, parallel)
    if run.gram.shape[1] == 1:
        return run.constant - 0.5 * run.gram[:, 0, 0]
    evidence = diffuse.running(run.gram).log_evidence
    return run.constant + jnp.diff(evidence, prepend=jnp.zeros(1, evidence.dtype))


def value_and_score(
    chain: Chain, form: Form = "covariance", parallel: bool = False
) -> tuple[Array, Chain]:
    """The log likelihood and its derivative with respect to every array of the chain."""
    run = forward(chain, form, parallel)
    flat = diffuse.integrate(diffuse.total(run.gram))
    value = compensated_sum(run.constant) + flat.log_evidence
    masked = absorb_mask(chain, form)
    pull = pulls(masked, run)
    back = adjoint_pass(
        chain.transitions.matrix, pull.closed, pull.mean, pull.information, parallel
    )
    # expectations over the diffuse coefficients: columns in standard normal coefficients
    r, after = diffuse.collapse(back.mean, flat), diffuse.collapse(back.mean_after, flat)
    back = back._replace(mean=r, mean_after=after)
    mean = diffuse.collapse(run.means.filtered, flat)
    filtered = covariances(run.gains.filtered, form)
    state = mean + vmap_moments(la.matmul, filtered, after)  # E[x_t | y], column by column
    gradient = Chain(
        _initial_score(chain, back, form),
        _transition_score(chain, back, filtered, state, form),
        _potential_score(chain, run, back, flat, state, filtered, form),
    )
    return value, gradient


def _noise_score(curvature: Array, noise: Array, form: Form) -> Array:
    """From the derivative with respect to a covariance to the one with respect to what is stored."""
    return curvature if form == "covariance" else 2 * la.matmul(la.symmetric(curvature), noise)


def _outer(a: Array, b: Array) -> Array:
    """``E[a b^T]`` of columns in standard normal coefficients."""
    return la.matmul_t(a, b)


def _gather(per_moment: Array, like: Array) -> Array:
    """Derivatives per moment, summed if the array is constant in time."""
    if like.shape[0] == per_moment.shape[0]:
        return per_moment
    return jnp.sum(per_moment, axis=0, keepdims=True)


def _initial_score(chain: Chain, back: Adjoint, form: Form) -> Initial:
    curvature = 0.5 * (_outer(back.mean[0], back.mean[0]) - back.information[0])
    noise = _noise_score(curvature, chain.initial.noise, form)
    d = chain.initial.diffuse
    # delta is a nuisance: its directions are part of the model's structure, not parameters
    return Initial(back.mean[0, :, 0], noise, None if d is None else jnp.zeros_like(d))


def _transition_score(
    chain: Chain, back: Adjoint, filtered: Array, state: Array, form: Form
) -> Transitions:
    f = chain.transitions
    if length(chain) == 1:
        return jax.tree.map(jnp.zeros_like, f)
    r, n = back.mean[1:], back.information[1:]

    def matrix(r: Array, n: Array, x: Array, p: Array, f: Array) -> Array:
        return _outer(r, x) - la.matmul(n, la.matmul(f, p))

    def noise(r: Array, n: Array, q: Array) -> Array:
        return _noise_score(0.5 * (_outer(r, r) - n), q, form)

    by_matrix = vmap_moments(matrix, r, n, state[:-1], filtered[:-1], f.matrix)
    by_noise = vmap_moments(noise, r, n, f.noise)
    return Transitions(
        _gather(by_matrix, f.matrix), _gather(r[..., 0], f.offset), _gather(by_noise, f.noise)
    )


def _potential_score(
    chain: Chain,
    run: Forward,
    back: Adjoint,
    flat: diffuse.Flat,
    state: Array,
    filtered: Array,
    form: Form,
) -> Observed | Sites:
    p = chain.potentials
    if isinstance(p, Sites):

        def second(x: Array, c: Array, n: Array) -> Array:
            return -0.5 * (_outer(x, x) + c - la.sandwich(c, n))

        by_precision = vmap_moments(second, state, filtered, back.information_after)
        return Sites(_gather(by_precision, p.precision), state[..., 0])

    innovation = diffuse.collapse(run.means.innovation, flat)

    def residual(factor: Array, v: Array, k: Array, after: Array) -> Array:
        """Derivative with respect to the observation's mean, in columns."""
        u = la.solve_lower_t(factor, la.solve_lower(factor, v))
        return u - la.t_matmul(k, after)

    e = vmap_moments(residual, run.gains.factor, innovation, run.gains.gain, back.mean_after)

    def matrix(e: Array, x: Array, k: Array, n: Array, p: Array) -> Array:
        # K^T (I - N P) with the filtered P: the predicted one, which may be vague, has dropped out
        return _outer(e, x) - la.t_matmul(k, la.eye(p.shape[0], p) - la.matmul(n, p))

    def noise(e: Array, factor: Array, k: Array, n: Array, r: Array) -> Array:
        inverse = la.solve_lower(factor, la.eye(factor.shape[0], factor))
        curvature = la.t_matmul(inverse, inverse) + la.t_matmul(k, la.matmul(n, k))
        return _noise_score(0.5 * (_outer(e, e) - curvature), r, form)

    g = run.gains
    r = p.noise
    by_matrix = vmap_moments(matrix, e, state, g.gain, back.information_after, filtered)
    if p.mask is None:
        by_noise = vmap_moments(noise, e, g.factor, g.gain, back.information_after, r)
    else:

        def seen(e, factor, k, n, r, mask):
            kept = noise(e, factor, k, n, jnp.where(mask[:, None], r, 0) if form == "sqrt" else r)
            rows = mask[:, None] & mask[None, :] if form == "covariance" else mask[:, None]
            return jnp.where(rows, kept, 0)

        by_noise = vmap_moments(seen, e, g.factor, g.gain, back.information_after, r, p.mask)
        by_matrix = jnp.where(p.mask[..., None], by_matrix, 0)
    by_offset = e[..., 0]
    return Observed(
        _gather(by_matrix, p.matrix), _gather(by_offset, p.offset), _gather(by_noise, r), -by_offset
    )
