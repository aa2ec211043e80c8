"""Structured mean field of a switching linear chain: ``q(x) q(z)``, a Gaussian chain times a finite one.

Given the regimes' probabilities, the expected log density is quadratic in the states, and ``q(x)`` a Gaussian
chain; given the states' moments, ``q(z)`` is a finite chain (Ghahramani & Hinton 2000). Where the regimes
depend on the previous state, the expected log-sum-exp is bounded from above, and the bound enters ``q(x)`` as
a Gaussian site at each state (conjugate-computation variational inference: Khan & Lin 2017). All updates
raise one lower bound of the evidence.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from statespace.chains import finite, gaussian
from statespace.chains.gaussian import algebra as la
from statespace.chains.moments import compensated_sum, vmap_moments
from statespace.chains.switching_expectations import (
    Law,
    Regimes,
    States,
    expected_log_density,
    expected_log_transitions,
)

_LOG_2PI = 1.8378770664093453
SHORTEST = 2.0**-12  # step of q(x) that is tried


class SwitchingChain(NamedTuple):
    """A switching linear chain and its data.

    Attributes:
        regimes: how they follow each other.
        initial: of the first state: a law without a matrix, ``(1, K, n, 0)``.
        dynamics: entry ``t - 1`` leads into moment t.
        observation: with the missing entries left out.
        y: the data, zero where missing.
        within: False after the last moment that has an observation, which says nothing of those before.
    """

    regimes: Regimes
    initial: Law
    dynamics: Law
    observation: Law
    y: Float[Array, "T m"]
    within: Bool[Array, " T"]


class Naturals(NamedTuple):
    """Natural parameters of ``q(x)``: a quadratic form of each pair of neighbours, and one of each state.

    A pair has ``-(x' before x + 2 w' cross x + w' after w) / 2 + before_shift' x + after_shift' w`` for a
    state ``x`` and the next one ``w``; a state has ``-x' precision x / 2 + shift' x``.
    """

    before: Float[Array, "T-1 n n"]
    cross: Float[Array, "T-1 n n"]
    after: Float[Array, "T-1 n n"]
    before_shift: Float[Array, "T-1 n"]
    after_shift: Float[Array, "T-1 n"]
    first: Float[Array, "n n"]
    first_shift: Float[Array, " n"]
    precision: Float[Array, "T n n"]
    shift: Float[Array, "T n"]


class Structured(NamedTuple):
    """A mean field ``q(x) q(z)`` and its bound.

    Attributes:
        naturals: of ``q(x)``.
        states: moments of ``q(x)``.
        entropy: of each state given the one before under ``q(x)``; 0 after the last observation.
        probs: of the regimes under ``q(z)``.
        pairs: of each regime and the next.
        pointwise: the lower bound of the evidence, of which each moment has a share.
        bound: their sum.
    """

    naturals: Naturals
    states: States
    entropy: Float[Array, " T"]
    probs: Float[Array, "T K"]
    pairs: Float[Array, "T-1 K K"]
    pointwise: Float[Array, " T"]
    bound: Float[Array, ""]


# q(z) given q(x) ------------------------------------------------------------------------------------


def regimes_chain(chain: SwitchingChain, states: States) -> finite.Chain:
    """``q(z)`` as a finite chain, from the moments of ``q(x)``."""
    before, after = _shifted(states)
    seen = expected_log_density(chain.observation, States(chain.y, None, None), states, None)
    moved = expected_log_density(chain.dynamics, after, before, states.lag_one)
    moved = jnp.where(chain.within[1:, None], moved, 0)
    first = expected_log_density(chain.initial, _at(states, slice(0, 1)), None, None)
    logs = expected_log_transitions(chain.regimes, *before[:2])
    # rows that sum to less than one hand the rest to the moment that they lead from
    rest = jax.nn.logsumexp(logs, axis=-1)
    moves = jnp.exp(logs - rest[..., None])
    rest = jnp.where(chain.within[1:, None], rest, 0)
    potentials = seen + jnp.concatenate([first, moved])
    potentials = potentials + jnp.concatenate([rest, jnp.zeros_like(rest[:1])])
    return finite.Chain(chain.regimes.initial, moves, potentials)


def _infer_regimes(
    chain: SwitchingChain, naturals: Naturals, states: States, entropy: Array
) -> Structured:
    """The best ``q(z)`` for a given ``q(x)``, and the bound."""
    over = regimes_chain(chain, states)
    found = finite.smooth(over, parallel=False)
    pointwise = found.filtered.pointwise + entropy
    return Structured(
        naturals,
        states,
        entropy,
        found.probs,
        finite.pairs(over, found),
        pointwise,
        compensated_sum(pointwise),
    )


def renewed(chain: SwitchingChain, q: Structured) -> Structured:
    """The same ``q(x)`` in a chain of other parameters, with the best ``q(z)`` there."""
    return _infer_regimes(chain, q.naturals, q.states, q.entropy)


# q(x) given q(z) ------------------------------------------------------------------------------------


def target(
    chain: SwitchingChain, probs: Float[Array, "T K"], pairs: Array, states: States
) -> Naturals:
    """Natural parameters of the best ``q(x)``; with a recurrence, of a natural-gradient step towards it."""
    f, g = chain.dynamics, chain.observation
    later = probs[1:]

    def pair_of(weight: Array, f: Array, b: Array, white: Array) -> tuple[Array, ...]:
        a = white @ f
        c = jnp.einsum("kij,kj->ki", white, b)
        mixed = lambda one, other: jnp.einsum("k,kia,kib->ab", weight, one, other)
        shift = lambda one: jnp.einsum("k,kia,ki->a", weight, one, c)
        return mixed(a, a), -mixed(white, a), mixed(white, white), -shift(a), shift(white)

    def seen(weight: Array, h: Array, d: Array, white: Array, y: Array) -> tuple[Array, Array]:
        a = white @ h
        e = jnp.einsum("kij,kj->ki", white, y - d)
        return jnp.einsum("k,kia,kib->ab", weight, a, a), jnp.einsum("k,kia,ki->a", weight, a, e)

    pair = vmap_moments(pair_of, later, f.matrix, f.offset, f.whitener)
    n = states.mean.shape[1]
    # after the last observation: independent states, which say nothing of the others
    nothing: tuple[Any, ...] = (0, 0, jnp.eye(n, dtype=probs.dtype), 0, 0)
    inside = chain.within[1:]
    before, cross, after, before_shift, after_shift = (
        jnp.where(inside.reshape(-1, *[1] * (x.ndim - 1)), x, other)
        for x, other in zip(pair, nothing, strict=True)
    )
    precision, shift = vmap_moments(seen, probs, g.matrix, g.offset, g.whitener, chain.y)
    if chain.regimes.weights is not None:
        site, site_shift = _recurrence(chain, pairs, states)
        precision = precision.at[:-1].add(site)
        shift = shift.at[:-1].add(site_shift)
    white, mean = chain.initial.whitener[0], chain.initial.offset[0]
    first = jnp.einsum("k,kia,kib->ab", probs[0], white, white)
    at = jnp.einsum("k,kia,kib,kb->a", probs[0], white, white, mean)
    return Naturals(before, cross, after, before_shift, after_shift, first, at, precision, shift)


def _recurrence(chain: SwitchingChain, pairs: Array, states: States) -> tuple[Array, Array]:
    """What the regimes say of the states before them: gradients by mean and covariance, as sites."""
    inside = chain.within[1:, None, None]

    def expected(mean: Array, covariance: Array) -> Array:
        logs = expected_log_transitions(chain.regimes, mean, covariance)
        return jnp.sum(jnp.where(inside, pairs * logs, 0))

    mean, covariance = states.mean[:-1], states.covariance[:-1]
    slope, curvature = jax.grad(expected, (0, 1))(mean, covariance)
    precision = -(curvature + jnp.swapaxes(curvature, 1, 2))
    return precision, slope + jnp.einsum("tij,tj->ti", precision, mean)


def gaussian_chain(naturals: Naturals, form: gaussian.Form) -> tuple[gaussian.Chain, Law]:
    """``q(x)`` as a Gaussian chain, and its transitions as a law of one regime."""
    n = naturals.shift.shape[1]
    eye = jnp.eye(n, dtype=naturals.shift.dtype)

    def move(j: Array, cross: Array, shift: Array) -> tuple[Array, ...]:
        factor = la.cholesky(j)
        half = la.solve_lower(factor, jnp.concatenate([-cross, shift[:, None], eye], axis=1))
        f, b, inverse = half[:, :n], half[:, n], half[:, n + 1 :]
        root = la.transpose(inverse)  # of the covariance j^{-1}
        noise = root if form == "sqrt" else la.matmul(root, inverse)
        matrix, offset = la.matmul(root, f), la.matmul(root, b[:, None])[:, 0]
        log_scale = la.log_diagonal(factor) - 0.5 * n * _LOG_2PI
        # what is left of the pair's form is one of the state before
        left, left_shift = la.t_matmul(f, f), la.t_matmul(f, b[:, None])[:, 0]
        return matrix, offset, noise, la.transpose(factor), log_scale, left, left_shift

    matrix, offset, noise, white, log_scale, left, left_shift = jax.vmap(move)(
        naturals.after, naturals.cross, naturals.after_shift
    )
    precision = naturals.precision.at[:-1].add(naturals.before - left)
    shift = naturals.shift.at[:-1].add(naturals.before_shift + left_shift)
    first = move(naturals.first, jnp.zeros_like(eye), naturals.first_shift)
    chain = gaussian.Chain(
        gaussian.Initial(first[1], first[2]),
        gaussian.Transitions(matrix, offset, noise),
        gaussian.Sites((precision + jnp.swapaxes(precision, 1, 2)) / 2, shift),
    )
    joined = (
        jnp.concatenate([a[None], b])
        for a, b in zip(first, (matrix, offset, noise, white, log_scale))
    )
    matrix, offset, _, white, log_scale = joined
    return chain, Law(matrix[:, None], offset[:, None], white[:, None], log_scale[:, None])


def infer(chain: SwitchingChain, naturals: Naturals, form: gaussian.Form) -> Structured:
    """``q(x)`` of given natural parameters, the best ``q(z)`` for it, and the bound."""
    over, law = gaussian_chain(naturals, form)
    filtered, smoothed = gaussian.filter_and_smooth(over, form)
    states = States(smoothed.mean, smoothed.covariance, smoothed.lag_one)
    # -E log q(x): the normaliser less the expectation of what is normalised
    before, after = _shifted(states)
    first = expected_log_density(_at(law, slice(0, 1)), _at(states, slice(0, 1)), None, None)
    moved = expected_log_density(_at(law, slice(1, None)), after, before, states.lag_one)
    expected = jnp.concatenate([first, moved])[:, 0] + _expected_site(over.potentials, states)
    entropy = jnp.where(chain.within, filtered.pointwise - expected, 0)
    return _infer_regimes(chain, naturals, states, entropy)


def _expected_site(sites: gaussian.Sites, states: States) -> Float[Array, " T"]:
    square = states.covariance + states.mean[:, :, None] * states.mean[:, None, :]
    linear = jnp.sum(sites.shift * states.mean, axis=1)
    return linear - 0.5 * jnp.sum(sites.precision * square, axis=(1, 2))


def sweep(chain: SwitchingChain, q: Structured, form: gaussian.Form) -> Structured:
    """``q(x)`` given ``q(z)``, then ``q(z)`` given ``q(x)``: the bound does not fall.

    With a recurrence the step of the natural parameters is halved until it raises the bound; if it never
    does, what was given comes back.
    """
    aim = target(chain, q.probs, q.pairs, q.states)
    if chain.regimes.weights is None:
        return infer(chain, aim, form)

    def fell(trial: tuple[Structured, Array]) -> Bool[Array, ""]:
        return ~(trial[0].bound >= q.bound) & (trial[1] >= SHORTEST)

    def shorter(trial: tuple[Structured, Array]) -> tuple[Structured, Array]:
        size = trial[1] / 2
        return infer(chain, between(q.naturals, aim, size), form), size

    # the first trial is a whole step: twice that was not tried
    untried = q._replace(bound=jnp.full_like(q.bound, jnp.nan))
    found, _ = jax.lax.while_loop(fell, shorter, (untried, jnp.full_like(q.bound, 2)))
    better = found.bound >= q.bound
    return jax.tree.map(lambda new, old: jnp.where(better, new, old), found, q)


def between(old: Naturals, new: Naturals, size: Array) -> Naturals:
    """A part of the way from one law of the states to another."""
    return jax.tree.map(lambda a, b: a + size * (b - a), old, new)


# beginnings, and what comes after the data ----------------------------------------------------------


def unknown(chain: SwitchingChain) -> Structured:
    """Where to start from: states of zero, regimes of equal probability, a bound that any other beats."""
    t, count = len(chain.y), chain.regimes.scores.shape[-1]
    n, dtype = chain.dynamics.matrix.shape[-1], chain.y.dtype
    square = jnp.zeros((t, n, n), dtype)
    states = States(square[:, 0], square, square[1:])
    even = jnp.full((t, count), 1 / count, dtype)
    pairs = jnp.full((t - 1, count, count), 1 / count**2, dtype)
    plain = chain._replace(regimes=chain.regimes._replace(weights=None))
    nothing = jnp.zeros(t, dtype)
    naturals = target(plain, even, pairs, states)
    return Structured(naturals, states, nothing, even, pairs, nothing, jnp.asarray(-jnp.inf, dtype))


def widened(
    chain: SwitchingChain, naturals: Naturals, states: States, probs: Float[Array, "T K"]
) -> Naturals:
    """States under dynamics that are wide enough for every regime that is not excluded, about given means."""
    law, n = chain.dynamics, states.mean.shape[1]
    move = lambda w, x, *law: matched(w, x, jnp.zeros((n, n), x.dtype), *law)
    arrays = (law.matrix, law.offset, law.whitener)
    f, b, noise = vmap_moments(move, probs[1:], states.mean[:-1], *arrays)
    return _with_transitions(naturals, f, b, noise, chain.within)


def heated(chain: SwitchingChain, heat: Float[Array, ""]) -> SwitchingChain:
    """The chain with covariances of the dynamics' noise that are ``heat`` times as large."""
    law, n = chain.dynamics, chain.dynamics.matrix.shape[-1]
    log_scale = law.log_scale - 0.5 * n * jnp.log(heat)
    return chain._replace(
        dynamics=law._replace(whitener=law.whitener / jnp.sqrt(heat), log_scale=log_scale)
    )


def continued(chain: SwitchingChain, q: Structured, form: gaussian.Form) -> Structured:
    """The same with predictions after the last observation, by the moments of the mixture of regimes."""
    law = chain.dynamics
    t = len(chain.y)
    over_time = lambda x: jnp.broadcast_to(x, (t - 1, *x.shape[1:]))
    arrays = tuple(map(over_time, (law.matrix, law.offset, law.whitener, chain.regimes.scores)))
    smoothed = (q.probs[1:], q.states.mean[1:], q.states.covariance[1:])

    def move(carry: tuple[Array, ...], at: tuple) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
        probs, mean, covariance = carry
        (f, b, white, scores), smoothed, inside = at
        regimes = chain.regimes._replace(scores=scores[None])
        logs = expected_log_transitions(regimes, mean[None], covariance[None])[0]
        predicted = probs @ jax.nn.softmax(logs, axis=-1)
        f, b, noise = matched(predicted, mean, covariance, f, b, white)
        new = (predicted, f @ mean + b, f @ covariance @ f.T + noise)
        new = jax.tree.map(lambda old, new: jnp.where(inside, old, new), smoothed, new)
        return new, (f, b, noise)

    first = (q.probs[0], q.states.mean[0], q.states.covariance[0])
    f, b, noise = jax.lax.scan(move, first, (arrays, smoothed, chain.within[1:]))[1]
    return infer(chain, _with_transitions(q.naturals, f, b, noise, ~chain.within), form)


def matched(
    weights: Float[Array, " K"],
    mean: Float[Array, " n"],
    covariance: Float[Array, "n n"],
    matrix: Float[Array, "K n n"],
    offset: Float[Array, "K n"],
    whitener: Float[Array, "K n n"],
) -> tuple[Array, Array, Array]:
    """One affine transition with the moments of a mixture of them, from a state of given moments."""
    f = jnp.einsum("k,kij->ij", weights, matrix)
    b = weights @ offset
    inverse = jax.vmap(lambda w: la.solve_lower(w, la.eye(w.shape[0], w)))(whitener)
    gap_matrix, gap = matrix - f, offset - b + jnp.einsum("kij,j->ki", matrix - f, mean)
    noise = jnp.einsum("k,kia,kja->ij", weights, inverse, inverse)
    noise = noise + jnp.einsum("k,ki,kj->ij", weights, gap, gap)
    noise = noise + jnp.einsum("k,kia,ab,kjb->ij", weights, gap_matrix, covariance, gap_matrix)
    return f, b, noise


def _with_transitions(
    naturals: Naturals, matrix: Array, offset: Array, noise: Array, where: Array
) -> Naturals:
    """Other forms of some of the pairs: those of affine transitions."""

    def one(f: Array, b: Array, q: Array) -> tuple[Array, ...]:
        factor = la.cholesky(q)
        half = la.solve_lower(factor, jnp.concatenate([la.eye(len(b), q), f, b[:, None]], axis=1))
        white, a, c = half[:, : len(b)], half[:, len(b) : -1], half[:, -1:]
        cross = lambda one, other: la.t_matmul(one, other)
        return (
            cross(a, a),
            -cross(white, a),
            cross(white, white),
            -cross(a, c)[:, 0],
            cross(white, c)[:, 0],
        )

    names = ("before", "cross", "after", "before_shift", "after_shift")
    moved = vmap_moments(one, matrix, offset, noise)
    chosen = lambda x: where[1:].reshape(-1, *[1] * (x.ndim - 1))
    parts = {
        name: jnp.where(chosen(x), x, getattr(naturals, name))
        for name, x in zip(names, moved, strict=True)
    }
    return naturals._replace(**parts)


def _shifted(states: States) -> tuple[States, States]:
    """All states but the last, and all but the first."""
    mean, covariance, lag_one = states
    return States(mean[:-1], covariance[:-1], lag_one), States(mean[1:], covariance[1:], lag_one)


def _at(rows: Any, index: slice) -> Any:
    return jax.tree.map(lambda x: x[index], rows)
