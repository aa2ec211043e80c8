"""The covariance pass: gains and covariances of every moment. It never looks at the data's values."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from statespace.chains.associative import prefix_scan
from statespace.chains.batching import batch_last
from statespace.chains.gaussian import algebra as la
from statespace.chains.gaussian.types import Chain, Form, Observed, Sites, is_constant, length
from statespace.chains.moments import scan_moments, vmap_moments

_CHUNK_SMALL, _CHUNK = 64, 16  # steps between two looks at whether the recursion has converged
_BUFFER = (
    2**20
)  # numbers that may be stored before it has; a chain that takes longer is run plainly


class Gains(NamedTuple):
    """Per moment: predicted and filtered covariance (or factor), gain, innovation factor, and ``F gain``.

    For observed potentials ``gain`` is ``P H^T S^{-1}`` and ``factor`` the Cholesky factor of ``S``. For
    sites ``gain`` is the filtered covariance, which multiplies ``shift - precision m``, and ``factor`` that
    of ``I + U^T precision U`` with ``P = U U^T``. ``ahead`` is the gain on the next predicted mean; its last
    entry has no meaning.
    """

    predicted: Float[Array, "T n k"]
    filtered: Float[Array, "T n k"]
    gain: Float[Array, "T n m"]
    factor: Float[Array, "T m m"]
    ahead: Float[Array, "T n m"]


def covariance_pass(chain: Chain, form: Form, parallel: bool) -> Gains:
    """Gains of a chain without mask (see :func:`statespace.chains.gaussian.likelihood.absorb_mask`)."""
    p = chain.potentials
    kind = Sites if isinstance(p, Sites) else Observed
    potential = (p.precision, p.precision) if isinstance(p, Sites) else (p.matrix, p.noise)
    steps = length(chain)
    if parallel:
        return _parallel(chain, form)
    run = covariance_loop(kind, form, steps, is_constant(chain))
    f = chain.transitions
    return Gains(*run(chain.initial.noise, f.matrix, f.noise, *potential))


# one step ------------------------------------------------------------------------------------------


def update(
    kind: type, form: Form, seldom: bool = False
) -> Callable[..., tuple[Array, Array, Array]]:
    """``(P, H, R) -> (filtered, gain, factor)``, or with a site's precision for H.

    ``seldom`` says that it is to be a small program rather than a fast one: see ``algebra.tria``.
    """

    def observed_covariance(p: Array, h: Array, r: Array) -> tuple[Array, Array, Array]:
        w = la.matmul_t(p, h)
        return condition(p, la.transpose(w), la.matmul(h, w) + r, form)

    def observed_sqrt(u: Array, h: Array, r: Array) -> tuple[Array, Array, Array]:
        return condition(u, la.matmul(h, u), r, form, seldom)

    def site_sqrt(u: Array, precision: Array, _: Array) -> tuple[Array, Array, Array]:
        inner = la.symmetric(la.t_matmul(u, la.matmul(precision, u)))
        factor = la.cholesky(la.eye(u.shape[0], inner) + inner)
        filtered = la.transpose(la.solve_lower(factor, la.transpose(u)))
        return filtered, la.matmul_t(filtered, filtered), factor

    def site_covariance(p: Array, precision: Array, _: Array) -> tuple[Array, Array, Array]:
        _, filtered, factor = site_sqrt(root(p), precision, _)
        return filtered, filtered, factor

    if kind is Observed:
        return observed_sqrt if form == "sqrt" else observed_covariance
    return site_sqrt if form == "sqrt" else site_covariance


def condition(
    p: Array, cross: Array, own: Array, form: Form, seldom: bool = False
) -> tuple[Array, Array, Array]:
    """Filtered covariance (or factor), gain and innovation factor, from the joint law with the observation.

    Args:
        p: predicted covariance, or a lower triangular factor ``U`` of it.
        cross: ``Cov(y, x)``, shape ``(m, n)``; in the "sqrt" form ``Cov(y, z)`` with ``x = m + U z``.
        own: ``Cov(y)``; in the "sqrt" form the columns that make ``[cross, own]`` a factor of it.
        form: which of the two.
        seldom: whether it is to be a small program rather than a fast one.
    """
    if form == "covariance":
        factor = la.cholesky(own)
        v = la.solve_lower(factor, cross)
        return p - la.t_matmul(v, v), la.transpose(la.solve_lower_t(factor, v)), factor
    m, n = cross.shape[:2]
    own = jnp.broadcast_to(own, (*own.shape[:2], *cross.shape[2:]))
    zero = jnp.zeros((n, own.shape[1], *cross.shape[2:]), cross.dtype)
    above, below = (jnp.concatenate(row, axis=1) for row in ([cross, own], [p, zero]))
    full = la.tria(jnp.concatenate([above, below], axis=0), seldom)
    factor, across = full[:m, :m], full[m:, :m]
    return full[m:, m:], la.transpose(la.solve_lower_t(factor, la.transpose(across))), factor


def root(p: Array) -> Array:
    """A factor of a covariance that may be singular."""
    if p.shape[0] <= la.UNROLLED:
        return la.semi_cholesky(p)
    values, vectors = jnp.linalg.eigh(p)
    return vectors * jnp.sqrt(jnp.maximum(values, 0))


def predict(p: Array, f: Array, q: Array, form: Form, seldom: bool = False) -> Array:
    """``F P F^T + Q``, or its factor."""
    if form == "covariance":
        return la.sandwich(f, p) + q
    fu = la.matmul(f, p)
    q = jnp.broadcast_to(q, (*q.shape[:2], *fu.shape[2:]))
    return la.tria(jnp.concatenate([fu, q], axis=1), seldom)


# sequential ----------------------------------------------------------------------------------------


@cache
def covariance_loop(kind: type, form: Form, steps: int, steady: bool) -> Callable[..., Any]:
    """The sequential recursion ``(P_0, F, Q, H, R) -> Gains``.

    Args:
        kind: Observed, or Sites (then a precision stands for H and R).
        form: what the arrays of noise are.
        steps: the number of moments.
        steady: whether the arrays are constant in time, so that the recursion may stop on convergence.
    """
    one = update(kind, form)

    def moment(p: Array, f: Array, q: Array, h: Array, r: Array) -> tuple[Array, Gains]:
        filtered, gain, factor = one(p, h, r)
        return predict(filtered, f, q, form), Gains(p, filtered, gain, factor, la.matmul(f, gain))

    def plain(p0: Array, f: Array, q: Array, h: Array, r: Array) -> Gains:
        arrays = (pad_last(f, steps), pad_last(q, steps), h, r)
        p0 = full_carry(p0, form, *_shape(p0, f, q, h, r))
        return scan_moments(lambda p, at: moment(p, *at), p0, arrays, steps)[1]

    def until_converged(p0: Array, f: Array, q: Array, h: Array, r: Array) -> Gains:
        at = (f[0], q[0], h[0], r[0])
        few = max(f.shape[1], h.shape[1]) <= la.UNROLLED
        size = _CHUNK_SMALL if few else _CHUNK
        p0 = full_carry(p0, form, *_shape(p0, f, q, h, r))
        chunks = min(-(-steps // size), max(8, _BUFFER // (size * p0.size)))

        def chunk(state: tuple) -> tuple:
            i, p, _, buffers = state
            if few:  # a loop that keeps the covariance alone is the smallest; the rest all at once
                new, each = jax.lax.scan(lambda p, _: (moment(p, *at)[0], p), p, None, length=size)
                outs = jax.vmap(lambda p: moment(p, *at)[1])(each)
            else:
                new, outs = jax.lax.scan(lambda p, _: moment(p, *at), p, None, length=size)
            buffers = jax.tree.map(
                lambda b, o: jax.lax.dynamic_update_slice_in_dim(b, o, i * size, 0), buffers, outs
            )
            return i + 1, new, _same(outs.predicted[-1], new, form), buffers

        def going(state: tuple) -> Array:
            return (state[0] < chunks) & ~state[2]

        shapes = jax.eval_shape(lambda p: moment(p, *at)[1], p0)
        buffers = jax.tree.map(lambda s: jnp.zeros((chunks * size, *s.shape), s.dtype), shapes)
        start = (0, p0, jnp.zeros((), bool), buffers)
        used, _, converged, buffers = jax.lax.while_loop(going, chunk, start)
        index = jnp.minimum(jnp.arange(steps), used * size - 1)

        def repeat_last() -> Gains:
            return jax.tree.map(lambda b: b[index], buffers)

        if chunks * size >= steps:
            return repeat_last()
        return jax.lax.cond(converged, repeat_last, lambda: plain(p0, f, q, h, r))

    def small(p0: Array, f: Array, q: Array, h: Array, r: Array) -> bool:
        return (
            max(f.shape[1], h.shape[1]) <= la.UNROLLED
            and max(q.shape[2], r.shape[2]) <= 2 * la.UNROLLED
        )

    batched = batch_last(plain, small)
    if not steady or steps <= 2 * _CHUNK_SMALL:
        return batched
    return _with_fallback(until_converged, batched, plain)


def _with_fallback(fast: Callable, batched: Callable, plain: Callable) -> Callable:
    """``fast`` for one series; the plain recursion under `vmap` and for derivatives."""

    @jax.custom_batching.custom_vmap
    def single(*args: Array) -> Gains:
        return fast(*args)

    @single.def_vmap
    def _(size: int, in_batched: Any, *args: Array) -> tuple[Gains, Gains]:
        axes = [0 if b else None for b in in_batched]
        out = jax.vmap(batched, in_axes=axes, axis_size=size)(*args)
        return out, jax.tree.map(lambda _: True, out)

    @jax.custom_jvp
    def run(*args: Array) -> Gains:
        return single(*args)

    run.defjvp(lambda primals, tangents: jax.jvp(plain, primals, tangents))
    return run


def _same(old: Array, new: Array, form: Form) -> Array:
    """Whether two covariances agree to rounding, relative to each coordinate's own scale."""
    if form == "covariance":
        d = jnp.diagonal(new)
        size = jnp.sqrt(jnp.maximum(d[:, None] * d[None, :], 0))
    else:
        size = jnp.sqrt(jnp.sum(new * new, axis=1, keepdims=True)) + jnp.zeros_like(new)
    return jnp.all(jnp.abs(new - old) <= 4 * jnp.finfo(new.dtype).eps * size)


def full_carry(p0: Array, form: Form, batch: tuple[int, ...], dtype: Any) -> Array:
    """The first covariance in the shape that the recursion keeps: square, with all trailing axes."""
    if form == "sqrt" and p0.shape[1] != p0.shape[0]:
        p0 = la.tria(p0)
    return jnp.broadcast_to(p0, (*p0.shape[:2], *batch)).astype(dtype)


def _shape(p0: Array, *arrays: Array) -> tuple[tuple[int, ...], Any]:
    """Trailing axes and dtype in which a recursion through these arrays runs."""
    batch = jnp.broadcast_shapes(p0.shape[2:], *(a.shape[3:] for a in arrays))
    return batch, jnp.result_type(p0, *arrays)


def pad_last(x: Array, steps: int) -> Array:
    """Transitions repeated once at the end, so that the last moment has one to predict with."""
    if x.shape[0] == 0:
        return jnp.zeros((1, *x.shape[1:]), x.dtype)
    if x.shape[0] == 1 or x.shape[0] == steps:
        return x
    return jnp.concatenate([x, x[-1:]])


# parallel ------------------------------------------------------------------------------------------


def _parallel(chain: Chain, form: Form) -> Gains:
    """Filtered covariances by an associative scan, gains afterwards for all moments at once.

    Särkkä & García-Fernández (2021); in square-root form Yaghoobi et al. (2025).
    """
    f, p, steps = chain.transitions, chain.potentials, length(chain)
    kind = Sites if isinstance(p, Sites) else Observed
    h, r = (p.precision, p.precision) if isinstance(p, Sites) else (p.matrix, p.noise)
    one = update(kind, form, seldom=True)
    n = f.matrix.shape[1]
    p0 = chain.initial.noise
    p0 = full_carry(p0, form, *_shape(p0, f.matrix, f.noise, h, r))

    def element(f: Array, q: Array, h: Array, r: Array) -> tuple[Array, Array, Array]:
        """The law of x_t given x_{t-1} and the potential at t, and what the potential says of x_{t-1}."""
        if form == "sqrt":
            q = la.tria(q, seldom=True)
        filtered, gain, factor = one(q, h, r)
        a = f - la.matmul(gain, la.matmul(h, f))
        if kind is Observed:
            z = la.transpose(la.solve_lower(factor, la.matmul(h, f)))
            return a, filtered, la.matmul_t(z, z) if form == "covariance" else _square(z)
        information = la.symmetric(la.t_matmul(f, la.matmul(h, a)))
        return a, filtered, information if form == "covariance" else root(information)

    def first(p0: Array, h: Array, r: Array) -> tuple[Array, Array, Array]:
        filtered = one(p0, h, r)[0]
        return jnp.zeros_like(filtered), filtered, jnp.zeros_like(filtered)

    head = first(p0, h[0], r[0])
    if steps > 1:
        arrays = (f.matrix, f.noise, h[1:] if len(h) > 1 else h, r[1:] if len(r) > 1 else r)
        axes = tuple(0 if len(x) > 1 else None for x in arrays)
        args = tuple(x if len(x) > 1 else x[0] for x in arrays)
        if all(ax is None for ax in axes):
            later = jax.tree.map(lambda x: jnp.broadcast_to(x, (steps - 1, n, n)), element(*args))
        else:
            later = jax.vmap(element, in_axes=axes)(*args)
        elements = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), head, later)
    else:
        elements = jax.tree.map(lambda a: a[None], head)
    combine = _combine_sqrt if form == "sqrt" else _combine_covariance
    _, filtered, _ = prefix_scan(combine, elements)

    def ahead(p: Array, f: Array, q: Array) -> Array:
        return predict(p, f, q, form, seldom=True)

    predicted = p0[None]
    if steps > 1:
        predicted = jnp.concatenate(
            [predicted, vmap_moments(ahead, filtered[:-1], f.matrix, f.noise)]
        )
    filtered, gain, factor = vmap_moments(one, predicted, h, r)
    ahead = vmap_moments(la.matmul, pad_last(f.matrix, steps), gain)
    return Gains(predicted, filtered, gain, factor, ahead)


def factorise_moments(function: Callable, *arrays: Array) -> Any:
    """:func:`vmap_moments` of a function that calls LAPACK for large matrices: one moment at a time on CPU.

    XLA:CPU of jaxlib 0.10 can wait for ever when two batched LAPACK calls run at once.
    """
    if max(x.shape[1] for x in arrays) <= la.UNROLLED or jax.default_backend() != "cpu":
        return vmap_moments(function, *arrays)
    steps = max(x.shape[0] for x in arrays)
    every = tuple(jnp.broadcast_to(x, (steps, *x.shape[1:])) for x in arrays)
    return jax.lax.map(lambda at: function(*at), every)


def _square(z: Array) -> Array:
    """An ``(n, n)`` factor of ``z z^T``."""
    n, m = z.shape
    return jnp.pad(z, ((0, 0), (0, n - m))) if m <= n else la.tria(z, seldom=True)


def _combine_covariance(first: tuple, second: tuple) -> tuple[Array, Array, Array]:
    (a1, c1, j1), (a2, c2, j2) = first, second
    if c1.shape[0] <= la.UNROLLED:
        # (I + C J)^{-1} = I - U (I + U^T J U)^{-1} U^T J with C = U U^T
        u = la.semi_cholesky(c1)
        factor = la.cholesky(la.eye(u.shape[0], u) + la.symmetric(la.t_matmul(u, la.matmul(j2, u))))
        w = la.solve_lower(factor, la.transpose(u))
        c = la.t_matmul(w, w)  # (I + C J)^{-1} C
    else:
        c = la.symmetric(jnp.linalg.solve(jnp.eye(len(c1), dtype=c1.dtype) + c1 @ j2, c1))
    ja = la.matmul(j2, a1)
    cja = la.matmul(c, ja)
    a = la.matmul(a2, a1 - cja)
    j = la.symmetric(la.t_matmul(a1, ja - la.matmul(j2, cja)))
    return a, la.sandwich(a2, c) + c2, j + j1


def _combine_sqrt(first: tuple, second: tuple) -> tuple[Array, Array, Array]:
    (a1, u1, z1), (a2, u2, z2) = first, second
    n = a1.shape[0]
    one = jnp.broadcast_to(la.eye(n, u1), u1.shape)
    full = la.tria(
        jnp.concatenate(
            [
                jnp.concatenate([la.t_matmul(u1, z2), one], axis=1),
                jnp.concatenate([z2, jnp.zeros_like(z2)], axis=1),
            ],
            axis=0,
        ),
        seldom=True,
    )
    x11, x21, x22 = full[:n, :n], full[n:, :n], full[n:, n:]
    w = la.transpose(la.solve_lower(x11, la.transpose(u1)))  # U1 X11^{-T}
    a = la.matmul(a2, a1 - la.matmul(w, la.t_matmul(x21, a1)))
    u = la.tria(jnp.concatenate([la.matmul(a2, w), u2], axis=1), seldom=True)
    z = la.tria(jnp.concatenate([la.t_matmul(a1, x22), z1], axis=1), seldom=True)
    return a, u, z
