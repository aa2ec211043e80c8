"""Mixtures over regimes along a chain: filter, smoother and joint draws.

Given its regimes a switching chain is Gaussian, but there are ``K^t`` paths of them. The law of the state is
carried as a mixture of N Gaussian components, each in a regime; each moment makes K of every one, and as many
are merged as are too many. Until any is merged, all is exact.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtr
from jaxtyping import Array, Float, Int, PRNGKeyArray

from statespace.chains.gaussian.covariances import predict, root
from statespace.chains.gaussian.mixtures import (
    Components,
    collapse,
    covariances,
    parted,
    similar,
    spreads,
)
from statespace.chains.gaussian.step import Seen, evidence, gains, move
from statespace.chains.gaussian.types import Form
from statespace.linearisation import Affine

_RIDGE = 16  # in units of rounding: what keeps the law of the next state from being singular


class Law(Protocol):
    """A switching model: how regimes and states move, and what is observed, near a Gaussian law."""

    regimes: int
    form: Form

    def first(self, step: Any) -> Components:
        """One component for each first regime, shapes ``(K, ...)``."""

    def logs(self, step: Any) -> Float[Array, "K K"]:
        """Log probabilities of the regime (columns) given the previous one (rows)."""

    def moves(self, k: int, step: Any, mean: Array, spread: Array) -> Affine:
        """The transition in regime k, round the state before."""

    def sees(self, k: int, step: Any, mean: Array, spread: Array, y: Array) -> Affine:
        """The observation in regime k, round the state; ``y`` is zero where missing."""


class Moment(NamedTuple):
    """A moment after its observation.

    Attributes:
        components: N, with normalised weights.
        group: into which of them each candidate went, ``(K, B)``: by its regime and its component before.
        pointwise: log density of the observation given those before.
        ess: effective number of candidates.
        below: probability of each channel to be below what was observed, ``(m,)``; of zero where missing.
    """

    components: Components
    group: Int[Array, "K B"]
    pointwise: Float[Array, ""]
    ess: Float[Array, ""]
    below: Float[Array, " m"]


def start(law: Law, step: Any, size: int, mixed: bool) -> Components:
    """The first states before their observation, ``(K, B)``; all but the first of each B are nothing."""
    slots = 1 if mixed else size
    first = law.first(step)
    wide = lambda x: jnp.broadcast_to(x[:, None], (x.shape[0], slots, *x.shape[1:]))
    there = jnp.arange(slots) == 0
    wide_weights = jnp.where(there, first.log_weights[:, None], -jnp.inf)
    return jax.tree.map(wide, first)._replace(log_weights=wide_weights)


def enter(law: Law, before: Components, step: Any, mixed: bool) -> Components:
    """The states before in each next regime, ``(K, B)``, weighed by how likely it follows theirs.

    Where the components are ``mixed`` those that go to one regime are merged (the interaction of Blom &
    Bar-Shalom 1988), so that B is 1.
    """
    into = jnp.moveaxis(before.log_weights[:, None] + law.logs(step)[before.regime], 1, 0)
    rows = []
    for k in range(law.regimes):
        here = before._replace(log_weights=into[k], regime=jnp.full_like(before.regime, k))
        if mixed:
            reached = jnp.any(jnp.isfinite(into[k]))
            # a regime that cannot be reached starts from the law of all
            given = jnp.where(reached, into[k], before.log_weights)
            total = jax.nn.logsumexp(given)
            every = jnp.zeros_like(before.regime)
            here = collapse(here._replace(log_weights=given - total), every, 1, law.form)
            here = here._replace(log_weights=jnp.where(reached, total, -jnp.inf)[None])
        rows.append(here)
    return jax.tree.map(lambda *x: jnp.stack(x), *rows)


def advance(law: Law, entered: Components, step: Any) -> Components:
    """The next states before their observation, ``(K, B)``."""
    rows = []
    for k in range(law.regimes):
        here = jax.tree.map(lambda x, k=k: x[k], entered)

        def ahead(mean: Array, spread: Array, k: int = k) -> tuple[Array, Array]:
            f, b, q = law.moves(k, step, mean, spread)
            return move(mean[:, None], f, b)[:, 0], predict(spread, f, q, law.form)

        mean, spread = jax.vmap(ahead)(here.mean, here.spread)
        rows.append(here._replace(mean=mean, spread=spread))
    return jax.tree.map(lambda *x: jnp.stack(x), *rows)


def see(
    law: Law, predicted: Components, step: Any, y: Float[Array, " m"]
) -> tuple[Components, Float[Array, ""], Float[Array, " m"]]:
    """What becomes of predictions when they are observed.

    Returns:
        ``K B`` candidates with normalised weights, the observation's log density, and ``below`` of
        :class:`Moment`.
    """
    mask = ~jnp.isnan(y)
    value = jnp.where(mask, y, 0)
    rows, below = [], []
    for k in range(law.regimes):

        def one(mean: Array, spread: Array, k: int = k) -> tuple[Array, ...]:
            h, d, r = law.sees(k, step, mean, spread, value)
            seen = gains(spread, h, r, mask, law.form)
            residual = jnp.where(mask, value - d, 0)
            after, constant, gram = evidence(mean[:, None], residual, seen)
            spoken = predict(spread, h, r, law.form)
            deviation = jnp.sqrt(jnp.diagonal(covariances(spoken, law.form)))
            lower = ndtr((value - h @ mean - d) / deviation)
            return after[:, 0], seen.filtered, constant - 0.5 * gram[0, 0], lower

        here = jax.tree.map(lambda x, k=k: x[k], predicted)
        mean, spread, log_density, lower = jax.vmap(one)(here.mean, here.spread)
        below.append(jnp.exp(here.log_weights) @ lower)
        rows.append(Components(here.regime, mean, spread, here.log_weights + log_density))
    candidates = jax.tree.map(lambda *x: jnp.concatenate(x), *rows)
    total = jax.nn.logsumexp(candidates.log_weights)
    return (
        candidates._replace(log_weights=candidates.log_weights - total),
        total,
        jnp.stack(below).sum(axis=0),
    )


def observe(law: Law, predicted: Components, step: Any, y: Float[Array, " m"], size: int) -> Moment:
    """The moment after its observation, with the candidates merged to N components."""
    candidates, total, below = see(law, predicted, step, y)
    group = similar(candidates, size, law.form)
    return Moment(
        collapse(candidates, group, size, law.form),
        group.reshape(predicted.regime.shape),
        total,
        1 / jnp.sum(jnp.exp(2 * candidates.log_weights)),
        below,
    )


def run(law: Law, steps: Any, y: Float[Array, "T m"], size: int, mixed: bool) -> Moment:
    """The filter at all moments; each field of the result has a leading axis of T."""
    first, later = (jax.tree.map(lambda x, at=at: x[at], (steps, y)) for at in (0, slice(1, None)))
    step, value = first
    begun = observe(law, start(law, step, size, mixed), step, value, size)

    def moment(before: Components, at: tuple[Any, Array]) -> tuple[Components, Moment]:
        step, y = at
        predicted = advance(law, enter(law, before, step, mixed), step)
        now = observe(law, predicted, step, y, size)
        return now.components, now

    _, rest = jax.lax.scan(moment, begun.components, later)
    return jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), begun, rest)


class Kernels(NamedTuple):
    """The law of a state given the next regime and state: from each law that enters a regime.

    ``x_t = mean + gain (x_{t+1} - offset - design mean) + N(0, spread)``.

    Attributes:
        log_weights: of the law and the next regime, ``(K, B)``.
        mean: of the law, ``(K, B, n)``.
        offset: of the transition, ``(K, B, n)``.
        seen: of the law, if the next state were its observation.
    """

    log_weights: Float[Array, "*T K B"]
    mean: Float[Array, "*T K B n"]
    offset: Float[Array, "*T K B n"]
    seen: Seen

    def at(self, x: Float[Array, " n"]) -> tuple[Float[Array, " n"], Float[Array, ""]]:
        """Mean given a next state, and the log density of that; of one component and regime."""
        mean, constant, gram = evidence(self.mean[:, None], x - self.offset, self.seen)
        return mean[:, 0], constant - 0.5 * gram[0, 0]


def kernels(law: Law, entered: Components, step: Any) -> Kernels:
    """The backward kernels of laws that enter the regimes of the next ``step``."""
    rows = []
    for k in range(law.regimes):

        def one(mean: Array, spread: Array, k: int = k) -> tuple[Array, Array, Seen]:
            f, b, q = law.moves(k, step, mean, spread)
            variance = jnp.diagonal(covariances(predict(spread, f, q, law.form), law.form))
            ridge = _RIDGE * jnp.finfo(mean.dtype).eps * jnp.where(variance > 0, variance, 1)
            if law.form == "covariance":
                q = q + jnp.diag(ridge)
            else:
                q = jnp.concatenate([q, jnp.diag(jnp.sqrt(ridge))], axis=1)
            every = jnp.ones(len(mean), bool)
            return mean, b, gains(spread, f, q, every, law.form)

        here = jax.tree.map(lambda x, k=k: x[k], entered)
        rows.append(Kernels(here.log_weights, *jax.vmap(one)(here.mean, here.spread)))
    return jax.tree.map(lambda *x: jnp.stack(x), *rows)


def all_kernels(law: Law, components: Components, steps: Any, mixed: bool = False) -> Kernels:
    """The backward kernels of all moments but the last."""
    before = jax.tree.map(lambda x: x[:-1], components)
    later = jax.tree.map(lambda x: x[1:], steps)
    return jax.vmap(lambda c, s: kernels(law, enter(law, c, s, mixed), s))(before, later)


class Made(NamedTuple):
    """How the components of a moment came about from those before.

    Attributes:
        parts: those before, in each next regime, ``(K, N)``.
        entered: what entered the regimes, ``(K, B)``: ``parts``, or these merged.
        candidates: what became of ``entered`` after the observation, ``K B``.
    """

    parts: Components
    entered: Components
    candidates: Components


def smooth(
    law: Law, made: Moment, back: Kernels, steps: Any, y: Float[Array, "T m"], mixed: bool
) -> Components:
    """The filter's components given all observations, with covariances in either form.

    Backward, the filter's steps are undone one by one. What the future says of a component is the likelihood
    by which its law became the smoothed one; each candidate that was merged in it is conditioned on, and
    weighed by, this likelihood (:func:`~statespace.chains.gaussian.mixtures.parted`: the backward pass of
    Heskes & Zoeter 2002, Expectation propagation for approximate inference in dynamic Bayesian networks),
    and followed back by the kernel of the law that it came from, which it was predicted by. Where laws were
    merged before they moved, these are parted likewise. Where none were merged this is the exact smoother.
    Where nothing is observed any more it is the filter.

    Args:
        law: the model.
        made: the filter.
        back: the backward kernels of what entered the regimes.
        steps: of the filter.
        y: the observations.
        mixed: whether components were merged before they moved.
    """
    full = lambda x: x._replace(spread=covariances(x.spread, law.form))

    def again(before: Components, step: Any, y: Array) -> Made:
        parts = enter(law, before, step, mixed=False)
        entered = enter(law, before, step, mixed) if mixed else parts
        candidates, _, _ = see(law, advance(law, entered, step), step, y)
        return Made(full(parts), full(entered), full(candidates))

    def moment(after: Components, at: tuple) -> tuple[Components, Components]:
        here, now, group, kernel, how = at
        regimes, size = how.parts.log_weights.shape
        ends = parted(how.candidates, group.ravel(), now, after)
        shaped = lambda x: jax.tree.map(lambda a: a.reshape(regimes, -1, *a.shape[1:]), x)

        def one(kernel: Kernels, mean: Array, covariance: Array) -> tuple[Array, Array]:
            gain, left = kernel.seen.gain, covariances(kernel.seen.filtered, law.form)
            return kernel.at(mean)[0], left + gain @ covariance @ gain.T

        ends = shaped(ends)
        means, laws = jax.vmap(jax.vmap(one))(kernel, ends.mean, ends.spread)
        begun = ends._replace(mean=means, spread=laws)
        flat = lambda x: jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), x)
        if mixed:
            into = jnp.repeat(jnp.arange(regimes), size)
            begun = parted(flat(how.parts), into, flat(how.entered), flat(begun))
        else:
            begun = flat(begun)
        parent = jnp.tile(jnp.arange(size), regimes)
        begun = begun._replace(regime=here.regime[parent])
        merged = collapse(begun, parent, size, "covariance")._replace(regime=here.regime)
        return merged, merged

    filtered = full(made.components)
    last = jax.tree.map(lambda x: x[-1], filtered)
    before, now = (jax.tree.map(lambda x, a=a: x[a], filtered) for a in (slice(-1), slice(1, None)))
    raw = jax.tree.map(lambda x: x[:-1], made.components)
    how = jax.vmap(again)(raw, jax.tree.map(lambda x: x[1:], steps), y[1:])
    _, rest = jax.lax.scan(moment, last, (before, now, made.group[1:], back, how), reverse=True)
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b[None]]), rest, last)


def sample(
    last: Components,
    regimes: Int[Array, "T N"],
    back: Kernels,
    key: PRNGKeyArray,
    draws: int,
    form: Form,
) -> tuple[Int[Array, "draws T"], Float[Array, "draws T n"]]:
    """Joint draws of regimes and states from the filter's mixtures, backward; exact where those are.

    Args:
        last: the last moment's components, with covariances.
        regimes: of the components of all moments.
        back: the kernels of all moments but the last.
        key: source of randomness.
        draws: how many.
        form: of the kernels.
    """
    steps, n = len(regimes), last.mean.shape[-1]
    one, two, three = jax.random.split(key, 3)
    noise = jax.random.normal(two, (steps, draws, n), last.mean.dtype)
    chosen = jax.random.categorical(one, last.log_weights, shape=(draws,))
    factor = spreads(last.spread, "sqrt")
    ends = last.mean[chosen] + jnp.einsum("dij,dj->di", factor[chosen], noise[-1])

    def moment(after: tuple[Array, Array], at: tuple) -> tuple[tuple[Array, Array], tuple]:
        regimes, kernel, key, noise = at

        def draw(k: Array, x: Array, key: Array, noise: Array) -> tuple[Array, Array]:
            here = jax.tree.map(lambda part: part[k], kernel)
            means, log_density = jax.vmap(lambda kernel: kernel.at(x))(here)
            i = jax.random.categorical(key, here.log_weights + log_density)
            left = here.seen.filtered[i]
            return regimes[i], means[i] + (left if form == "sqrt" else root(left)) @ noise

        drawn = jax.vmap(draw)(*after, jax.random.split(key, draws), noise)
        return drawn, drawn

    begin = (last.regime[chosen], ends)
    at = (regimes[:-1], back, jax.random.split(three, steps - 1), noise[:-1])
    _, rest = jax.lax.scan(moment, begin, at, reverse=True)
    path = jax.tree.map(lambda a, b: jnp.concatenate([a, b[None]]), rest, begin)
    return jnp.moveaxis(path[0], 0, 1), jnp.moveaxis(path[1], 0, 1)
