"""The evidence of a whole chain, when nothing else is asked of the forward half.

One series runs the covariance pass and the mean pass apart, as
:mod:`statespace.chains.gaussian.forward` does. A batch of series (`vmap`) runs with the batch as the last
axis: with shared covariances one mean loop for all series; with covariances of their own one loop for both,
so that only two numbers a moment leave it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from statespace.chains.batching import batch_last
from statespace.chains.gaussian import algebra as la
from statespace.chains.gaussian.covariances import (
    Gains,
    covariance_loop,
    full_carry,
    pad_last,
    predict,
    update,
)
from statespace.chains.gaussian.forward import LOG_2PI, absorb, columns, forward, mask_noise
from statespace.chains.gaussian.means import first_column
from statespace.chains.gaussian.types import (
    Chain,
    Form,
    Initial,
    Observed,
    Sites,
    Transitions,
    is_constant,
    length,
)
from statespace.chains.moments import compensated_sum, scan_moments


def evidence(
    chain: Chain, form: Form, parallel: bool
) -> tuple[Float[Array, ""], Float[Array, "c c"]]:
    """Sums over moments of ``constant`` and ``gram`` of a :class:`Forward`."""
    p, f = chain.potentials, chain.transitions
    if parallel or isinstance(p, Sites):
        run = forward(chain, form, parallel)
        return compensated_sum(run.constant), compensated_sum(run.gram)
    steps, masked = length(chain), p.mask is not None
    total = _evidence(form, steps, masked, is_constant(chain))
    mask = jnp.ones((1, 1), p.value.dtype) if p.mask is None else p.mask.astype(p.value.dtype)
    residual = p.value - p.offset
    law = (chain.initial.noise, f.matrix, f.noise, p.matrix, p.noise, mask)
    return total(*law, columns(chain), f.offset, residual)


@cache
def _evidence(form: Form, steps: int, masked: bool, constant: bool) -> Callable[..., Any]:
    def apart(p0, f, q, h, r, mask, mean, b, residual) -> tuple[Array, Array]:
        """Forward, as for one series."""
        seen = mask != 0 if masked else None
        m = h.shape[1]
        zero = jnp.zeros((1, m), residual.dtype)
        chain = Chain(
            Initial(mean[:, 0], p0, mean[:, 1:] if mean.shape[1] > 1 else None),
            Transitions(f, b, q),
            Observed(h, zero, r, residual, seen),
        )
        run = forward(chain, form, False)
        return compensated_sum(run.constant), compensated_sum(run.gram)

    def together(p0, f, q, h, r, mask, mean, b, residual) -> tuple[Array, Array]:
        """Covariances, means and evidence in one loop, with trailing batch axes."""
        one = update(Observed, form)
        extra = (mask.shape[2:], mean.shape[2:], b.shape[2:], residual.shape[2:])
        batch = jnp.broadcast_shapes(*extra, *(x.shape[3:] for x in (f, q, h, r)), p0.shape[2:])
        p0 = full_carry(p0, form, batch, jnp.result_type(p0, f, q, h, r))
        mean = jnp.broadcast_to(mean, (*mean.shape[:2], *batch))

        def step(carry: tuple[Array, Array], at: tuple) -> tuple[Any, tuple[Array, Array]]:
            p, mean = carry
            f, q, b, h, r, seen, y = at
            if masked:
                h, y = h * seen[:, None], jnp.where(seen != 0, y, 0)
                r = _mask_last(r, seen, form)
            filtered, gain, factor = one(p, h, r)
            innovation = first_column(y, mean.shape[1]) - la.matmul(h, mean)
            white = la.solve_lower(factor, innovation)
            mean = la.matmul(f, mean + la.matmul(gain, innovation)) + first_column(b, mean.shape[1])
            out = (la.log_diagonal(factor), la.t_matmul(white, white))
            return (predict(filtered, f, q, form), mean), out

        arrays = (*(pad_last(x, steps) for x in (f, q, b)), h, r, mask, residual)
        log_scale, gram = scan_moments(step, (p0, mean), arrays, steps)[1]
        return _total(log_scale, gram, h.shape[1], mask)

    def after(whiten, ahead, f, h, mean, b, residual) -> Array:
        """Means and evidence in one loop, given gains: products with all series side by side.

        Only ``mean``, ``b`` and ``residual`` have trailing batch axes.
        """
        batch = jnp.broadcast_shapes(mean.shape[2:], b.shape[2:], residual.shape[2:])
        n, c = mean.shape[:2]
        mean = jnp.broadcast_to(mean, (n, c, *batch)).reshape(n, -1)

        def flat(x: Array) -> Array:
            first = first_column(x, c)
            return jnp.broadcast_to(first, (x.shape[0], c, *batch)).reshape(x.shape[0], -1)

        def step(mean: Array, at: tuple) -> tuple[Array, Array]:
            whiten, k, f, h, b, y = at
            m = h.shape[0]
            seen = jnp.concatenate([h, f]) @ mean
            moved = jnp.concatenate([whiten, k]) @ (flat(y) - seen[:m])
            white = moved[:m].reshape(m, c, *batch)
            return seen[m:] + moved[m:] + flat(b), la.t_matmul(white, white)

        arrays = (whiten, ahead, pad_last(f, steps), h, pad_last(b, steps), residual)
        return compensated_sum(scan_moments(step, mean, arrays, steps)[1])

    def _total(log_scale: Array, gram: Array, m: int, mask: Array) -> tuple[Array, Array]:
        count = jnp.sum(mask, axis=(0, 1)) if masked else jnp.asarray(m * steps, gram.dtype)
        return -compensated_sum(log_scale) - 0.5 * LOG_2PI * count, compensated_sum(gram)

    def small(*args: Array) -> bool:
        p0, f, q, h, r, *_ = args
        wide = max(p0.shape[1], q.shape[2], r.shape[2]) <= 2 * la.UNROLLED
        return wide and max(f.shape[1], h.shape[1]) <= la.UNROLLED

    own = batch_last(together, small)

    @jax.custom_batching.custom_vmap
    def run(*args: Array) -> tuple[Array, Array]:
        return apart(*args)

    @run.def_vmap
    def _(size: int, batched: Sequence[bool], *args: Array) -> tuple[Any, Any]:
        axes = [0 if b else None for b in batched]
        unbatched = [x[0] if b else x for x, b in zip(args, batched, strict=True)]
        if not small(*unbatched):
            return jax.vmap(apart, in_axes=axes)(*args), (True, True)
        if any(batched[:6]):
            return jax.vmap(own, in_axes=axes)(*args), (True, True)
        p0, f, q, h, r, mask, mean, b, residual = args
        if masked:
            # the values are not looked at here, only what is missing
            seen = absorb(Observed(h, h[:, :, 0], r, unbatched[8], mask != 0), form)
            h, r = seen.matrix, seen.noise
        gains = Gains(*covariance_loop(Observed, form, steps, constant)(p0, f, q, h, r))
        log_scale = jax.vmap(la.log_diagonal)(gains.factor)
        whiten = jax.vmap(lambda l: la.solve_lower(l, la.eye(l.shape[0], l)))(gains.factor)
        if masked:
            residual = jnp.where(mask != 0, residual, 0)
        last = (
            x[..., None] if axis is None else jnp.moveaxis(x, 0, -1)
            for x, axis in zip((mean, b, residual), axes[6:], strict=True)
        )
        gram = jnp.moveaxis(after(whiten, gains.ahead, f, h, *last), -1, 0)
        total, _ = _total(log_scale, jnp.zeros((1, 1, 1), gram.dtype), h.shape[1], mask)
        return (total, gram), (False, True)

    return run


def _mask_last(r: Array, seen: Array, form: Form) -> Array:
    """:func:`statespace.chains.gaussian.forward.mask_noise` with trailing batch axes."""
    if r.ndim == 2 and seen.ndim == 1:
        return mask_noise(r, seen != 0, form)
    unit = la.eye(seen.shape[0], seen[:, None]) * (1 - seen)[:, None]
    if form == "covariance":
        return r * seen[:, None] * seen[None, :] + unit
    parts = jnp.broadcast_arrays(r * seen[:, None])[0], unit
    batch = jnp.broadcast_shapes(*(x.shape[2:] for x in parts))
    return jnp.concatenate([jnp.broadcast_to(x, (*x.shape[:2], *batch)) for x in parts], axis=1)
