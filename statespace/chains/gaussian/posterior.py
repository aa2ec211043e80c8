"""Filtered, smoothed and sampled states of a chain."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from statespace.chains.gaussian import algebra as la
from statespace.chains.gaussian import diffuse
from statespace.chains.gaussian.backward import backward_pass, smoothed_columns
from statespace.chains.gaussian.forward import Forward, covariances, forward
from statespace.chains.gaussian.types import Chain, Form, Sites, length
from statespace.chains.moments import compensated_sum, scan_moments, vmap_moments


class Filtered(NamedTuple):
    """``x_t`` given ``y_{0:t}``, and the one-step predictions that lead there.

    The predictions of the observations cover every channel, observed or not; they are None for sites.
    """

    mean: Float[Array, "T n"]
    covariance: Float[Array, "T n n"]
    predicted_mean: Float[Array, "T n"]
    predicted_covariance: Float[Array, "T n n"]
    observation_mean: Float[Array, "T m"] | None
    observation_covariance: Float[Array, "T m m"] | None
    pointwise: Float[Array, " T"]
    log_likelihood: Float[Array, ""]


class Smoothed(NamedTuple):
    """``x_t`` given all data; ``lag_one[t] = Cov(x_t, x_{t+1})``."""

    mean: Float[Array, "T n"]
    covariance: Float[Array, "T n n"]
    lag_one: Float[Array, "S n n"]
    log_likelihood: Float[Array, ""]


def filter(chain: Chain, form: Form = "covariance", parallel: bool = False) -> Filtered:
    """Filtered states, one-step predictions and pointwise log likelihood."""
    return filtered_by(chain, forward(chain, form, parallel), form)


def filtered_by(chain: Chain, run: Forward, form: Form) -> Filtered:
    """Filtered states from a forward pass over the chain."""
    predicted = covariances(run.gains.predicted, form)
    filtered = covariances(run.gains.filtered, form)
    if run.gram.shape[1] == 1:
        mean, predicted_mean = run.means.filtered[..., 0], run.means.predicted[..., 0]
        pointwise = run.constant - 0.5 * run.gram[:, 0, 0]
        total = compensated_sum(run.constant) - 0.5 * compensated_sum(run.gram[:, 0, 0])
    else:
        after = diffuse.running(run.gram)
        before = jax.tree.map(
            lambda x, first: jnp.concatenate([first[None], x[:-1]]), after, _nothing_known(run)
        )
        mean, filtered = jax.vmap(diffuse.moments)(run.means.filtered, filtered, after)
        predicted_mean, predicted = jax.vmap(diffuse.moments)(
            run.means.predicted, predicted, before
        )
        pointwise = run.constant + jnp.diff(after.log_evidence, prepend=jnp.zeros(1, mean.dtype))
        total = (
            compensated_sum(run.constant) + diffuse.integrate(diffuse.total(run.gram)).log_evidence
        )
    y_mean, y_covariance = observations(chain, predicted_mean, predicted, form)
    return Filtered(
        mean, filtered, predicted_mean, predicted, y_mean, y_covariance, pointwise, total
    )


def _nothing_known(run: Forward) -> diffuse.Partial:
    q, dtype = run.gram.shape[1] - 1, run.gram.dtype
    zero = jnp.zeros((q, q), dtype)
    return diffuse.Partial(jnp.zeros(q, dtype), zero, jnp.eye(q, dtype=dtype), jnp.zeros((), dtype))


def observations(
    chain: Chain, mean: Array, covariance: Array, form: Form = "covariance"
) -> tuple[Array | None, Array | None]:
    """The law of a new observation at each moment, from that of the state there; None for sites."""
    p = chain.potentials
    if isinstance(p, Sites):
        return None, None

    def one(h: Array, d: Array, r: Array, mean: Array, covariance: Array) -> tuple[Array, Array]:
        # an infinite variance reaches a channel only through a nonzero entry of H
        infinite = jnp.isinf(jnp.diagonal(covariance))
        finite = jnp.where(infinite[:, None] | infinite[None, :], 0, covariance)
        reach = jnp.any((h != 0) & infinite[None, :], axis=1)
        r = r if form == "covariance" else la.matmul_t(r, r)
        s = la.sandwich(h, finite) + r
        return la.matmul(h, mean[:, None])[:, 0] + d, jnp.where(
            reach[:, None] & reach[None, :], jnp.inf, s
        )

    return vmap_moments(one, p.matrix, p.offset, p.noise, mean, covariance)


def smooth(chain: Chain, form: Form = "covariance", parallel: bool = False) -> Smoothed:
    """Smoothed states with lag-one covariances (Rauch, Tung & Striebel 1965): see ``backward``."""
    return smoothed_by(chain, forward(chain, form, parallel), form, parallel)


def filter_and_smooth(
    chain: Chain, form: Form = "covariance", parallel: bool = False
) -> tuple[Filtered, Smoothed]:
    """Both, from one forward pass."""
    run = forward(chain, form, parallel)
    return filtered_by(chain, run, form), smoothed_by(chain, run, form, parallel)


def smoothed_by(chain: Chain, run: Forward, form: Form, parallel: bool) -> Smoothed:
    """Smoothed states from a forward pass over the chain."""
    flat = diffuse.integrate(diffuse.total(run.gram))
    states = backward_pass(chain, run, form, parallel)
    columns = diffuse.collapse(states.columns, flat)
    covariance, lag_one, loose = states.covariance, states.lag_one, columns[..., 1:]
    if loose.shape[-1]:
        covariance = covariance + loose @ jnp.swapaxes(loose, -1, -2)
        lag_one = lag_one + loose[:-1] @ jnp.swapaxes(loose[1:], -1, -2)
    total = compensated_sum(run.constant) + flat.log_evidence
    return Smoothed(columns[..., 0], covariance, lag_one, total)


def smoothed_means(chain: Chain, form: Form, parallel: bool) -> Float[Array, "T n"]:
    """Means alone, for simulation smoothing."""
    run = forward(chain, form, parallel)
    flat = diffuse.integrate(diffuse.total(run.gram))
    columns = smoothed_columns(chain, run, form, parallel)
    return columns[..., 0] + columns[..., 1:] @ flat.mean


def sample(
    chain: Chain, key: Array, draws: int, form: Form = "covariance", parallel: bool = False
) -> Float[Array, "draws T n"]:
    """Exact joint draws of all states given the data (the simulation smoother of Durbin & Koopman 2002).

    A trajectory is simulated from the model without its means, smoothed as if observed, and the difference of
    the two added to the smoothed mean: it has the right covariance, singular or not.
    """
    mean = smoothed_means(chain, form, parallel)

    def draw(key: Array) -> Array:
        states, fake = _centred(chain, key, form)
        return mean + states - smoothed_means(fake, form, parallel)

    return jax.vmap(draw)(jax.random.split(key, draws))


def _centred(chain: Chain, key: Array, form: Form) -> tuple[Array, Chain]:
    """A simulated trajectory of the chain without means, and the chain observing it."""
    states, value = simulate_noise(chain, key, form)
    initial = chain.initial._replace(mean=jnp.zeros_like(chain.initial.mean))
    f = chain.transitions._replace(offset=jnp.zeros_like(chain.transitions.offset))
    p = chain.potentials
    if isinstance(p, Sites):
        p = p._replace(shift=value)
    else:
        p = p._replace(value=value, offset=jnp.zeros_like(p.offset))
    return states, Chain(initial, f, p)


def factor(noise: Array, form: Form) -> Array:
    """Factors of noise covariances; zeros for zeros."""
    return noise if form == "sqrt" else jax.vmap(_psd_root)(noise)


def _psd_root(p: Array) -> Array:
    d = jnp.sqrt(jnp.maximum(jnp.diagonal(p), 0))
    scale = jnp.where(d > 0, d, 1)
    values, vectors = jnp.linalg.eigh(p / (scale[:, None] * scale[None, :]))
    return d[:, None] * vectors * jnp.sqrt(jnp.maximum(values, 0))


def simulate_noise(chain: Chain, key: Array, form: Form) -> tuple[Array, Array]:
    """States and potentials' values of the chain with all means zero and the diffuse coefficients zero."""
    steps = length(chain)
    p, f = chain.potentials, chain.transitions
    keys = jax.random.split(key, 3)
    dtype = chain.initial.mean.dtype

    def noise(key: Array, noise: Array, count: int, form: Form = form) -> Array:
        l = factor(noise, form)
        e = jax.random.normal(key, (count, l.shape[-1]), dtype)
        return (
            vmap_moments(lambda l, e: l @ e, l, e) if count else jnp.zeros((0, l.shape[1]), dtype)
        )

    first = noise(keys[0], chain.initial.noise[None], 1)[0]
    w = noise(keys[1], f.noise, steps - 1)

    def step(x: Array, at: tuple[Array, Array]) -> tuple[Array, Array]:
        f, w = at
        x = f @ x + w
        return x, x

    states = first[None]
    if steps > 1:
        rest = scan_moments(step, first, (f.matrix, w), steps - 1)[1]
        states = jnp.concatenate([states, rest])
    if isinstance(p, Sites):
        # s = L x + L^{1/2} e; a precision is itself in either form
        e = noise(keys[2], p.precision, steps, "covariance")
        return states, vmap_moments(lambda h, x: h @ x, p.precision, states) + e
    return states, vmap_moments(lambda h, x: h @ x, p.matrix, states) + noise(
        keys[2], p.noise, steps
    )
