"""Student's t: distribution function, quantiles and scores."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.scipy.special import betainc, gammaln, ndtri
from jaxtyping import Array, Float

from statespace.scores import Score, whiten

_HALVINGS = 80  # of an interval of asinh(t) that holds a quantile


def tail(t: Float[Array, "*d"], df: Float[Array, "*d"]) -> Float[Array, "*d"]:
    """``P(T > |t|)`` of a standard Student t variable."""
    return 0.5 * betainc(0.5 * df, 0.5, df / (df + t**2))


def as_normal(t: Float[Array, "*d"], df: Float[Array, "*d"]) -> Float[Array, "*d"]:
    """The standard normal deviate at the same probability as a standard Student t one."""
    known = ~jnp.isnan(t)
    tiny = jnp.finfo(t.dtype).tiny
    deviate = -ndtri(jnp.maximum(tail(jnp.where(known, t, 0), df), tiny))
    return jnp.where(known, jnp.sign(t) * deviate, jnp.nan)


@jax.jit
def quantile(q: Float[Array, "*d"], df: Float[Array, "*d"]) -> Float[Array, "*d"]:
    """Where the distribution function of a standard Student t variable is q, by bisection."""
    dtype = jnp.result_type(q, df)
    q, df = jnp.broadcast_arrays(jnp.asarray(q, dtype), jnp.asarray(df, dtype))
    share = jnp.minimum(q, 1 - q)
    # beyond it the tail of any law of interest is nothing, and its square still a number
    furthest = jnp.full_like(q, 0.45 * jnp.log(jnp.finfo(dtype).max))

    def halve(_: Any, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = 0.5 * (low + high)
        inside = tail(jnp.sinh(middle), df) > share
        return jnp.where(inside, middle, low), jnp.where(inside, high, middle)

    low, high = jax.lax.fori_loop(0, _HALVINGS, halve, (jnp.zeros_like(q), furthest))
    found = jnp.sinh(0.5 * (low + high))
    return jnp.where(q == 0.5, 0, jnp.sign(q - 0.5) * found)


@jax.jit
def log_density(
    error: Float[Array, "T m"], spread: Float[Array, "T m m"], df: Float[Array, " T"]
) -> Float[Array, " T"]:
    """``log t_df(error; 0, spread)`` of what was observed at each moment; 0 where nothing was."""
    u, variance = whiten(error, spread)
    seen = ~jnp.isnan(u)
    count = jnp.sum(seen, axis=-1)
    square = jnp.sum(jnp.where(seen, u, 0) ** 2, axis=-1)
    log_det = jnp.sum(jnp.where(seen, jnp.log(variance), 0), axis=-1)
    half = 0.5 * (df + count)
    return (
        gammaln(half)
        - gammaln(0.5 * df)
        - 0.5 * (count * jnp.log(jnp.pi * df) + log_det)
        - half * jnp.log1p(square / df)
    )


@jax.jit
def crps(
    error: Float[Array, "T m"], scale: Float[Array, "T m"], df: Float[Array, "T 1"]
) -> Float[Array, "T m"]:
    """Continuous ranked probability score of a Student t law, infinite unless ``df > 1``.

    Jordan, Krüger & Lerch (2019), Evaluating probabilistic forecasts with scoringRules, appendix A.
    """
    z = error / jnp.where(scale > 0, scale, 1)
    log_beta = lambda a, b: gammaln(a) + gammaln(b) - gammaln(a + b)
    density = jnp.exp(
        -log_beta(0.5, 0.5 * df) - 0.5 * jnp.log(df) - 0.5 * (df + 1) * jnp.log1p(z**2 / df)
    )
    centre = jnp.sign(z) * (1 - 2 * tail(z, df))  # 2 F(z) - 1
    ratio = jnp.exp(log_beta(0.5, df - 0.5) - 2 * log_beta(0.5, 0.5 * df))
    rest = 2 * density * (df + z**2) - 2 * jnp.sqrt(df) * ratio
    score = scale * (z * centre + rest / (df - 1))
    return jnp.where(df > 1, jnp.where(scale > 0, score, jnp.abs(error)), jnp.inf)


def score(
    y: Float[Array, "h m"],
    mean: Float[Array, "h m"],
    spread: Float[Array, "h m m"],
    df: Float[Array, " h"],
    levels: tuple[float, ...],
) -> Score:
    """Scores of the predictions ``t_df(mean, spread)`` against ``y``; NaN is missing."""
    import numpy as np

    error = y - mean
    scale = jnp.sqrt(jnp.maximum(jnp.diagonal(spread, axis1=-2, axis2=-1), 0.0))
    upper = 0.5 + 0.5 * jnp.asarray(levels, error.dtype)
    half = quantile(upper[:, None], df)[..., None] * scale
    return Score(
        pointwise=np.asarray(log_density(error, spread, df)),
        errors=np.asarray(error),
        crps_each=np.asarray(crps(error, scale, df[:, None])),
        levels=levels,
        inside=np.asarray(jnp.abs(error) <= half),
    )
