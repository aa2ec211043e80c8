"""Draws as functions of uniform numbers: what quasi-Monte Carlo and correlated filters draw from."""

from __future__ import annotations

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy.special import ndtri
from jaxtyping import Array, Float

from statespace.chains import particle
from statespace.conditionals.switching import RegimeLaw, RegimeState, pick
from statespace.methods.particle_laws import AffineTransition, FiniteLaw, apply
from statespace.methods.particle_lowering import on_clouds
from statespace.model import Step
from statespace.series import Series


def from_uniforms(law: Any, u: Float[Array, " d"]) -> Any:
    """A draw from a distribution by its inverse distribution function, one coordinate after the other.

    With ``u`` uniform on the unit cube the draw has the law; near values of ``u`` give near draws.

    Args:
        law: a NumPyro distribution whose one-dimensional parts have ``icdf``, a multivariate normal, a
            categorical, or a law of regime and state.
        u: inside (0, 1), as many as :func:`uniforms` says.

    Raises:
        TypeError: if the distribution has no inverse distribution function.
    """
    import numpyro.distributions as dist

    if isinstance(law, RegimeLaw):
        regime = _index(jnp.cumsum(law.probs), u[0])
        return RegimeState(regime, from_uniforms(pick(law.laws, regime), u[1:]))
    shape = (*getattr(law, "batch_shape", ()), *getattr(law, "event_shape", ()))
    while isinstance(law, (dist.Independent, dist.ExpandedDistribution)):
        law = law.base_dist
    if isinstance(law, dist.MultivariateNormal):
        return law.loc + law.scale_tril @ ndtri(u)
    if isinstance(law, dist.Normal):
        return law.loc + law.scale * ndtri(u).reshape(shape)
    if isinstance(law, (dist.CategoricalProbs, dist.CategoricalLogits)):
        return _index(jnp.cumsum(law.probs, axis=-1), u.reshape(shape))
    try:
        return jnp.asarray(law.icdf(u.reshape(shape)))
    except (NotImplementedError, AttributeError):
        raise TypeError(
            f"{type(law).__name__} has no inverse distribution function (`icdf`), which draws from uniform "
            "numbers need: use ParticleFilter(), which only draws from it."
        ) from None


def uniforms(law: Any) -> int:
    """How many uniform numbers a draw takes."""
    if isinstance(law, RegimeLaw):
        return 1 + uniforms(law.laws[0])
    size = 1
    for length in (*getattr(law, "batch_shape", ()), *getattr(law, "event_shape", ())):
        size *= length
    return size


def _index(cumulative: Float[Array, "*b K"], u: Float[Array, "*b"]) -> Array:
    """Of which of K intervals ``u`` is inside."""
    below = u[..., None] * cumulative[..., -1:] >= cumulative[..., :-1]
    return jnp.sum(below, axis=-1)


def uniform_chain(
    model: Any, series: Series, steps: Step | None = None
) -> tuple[particle.Chain, tuple[int, int]]:
    """The bootstrap chain of a model, drawn from uniform numbers.

    ``start`` and ``propose`` take arrays ``(N, d)`` inside (0, 1) in place of a key.

    Args:
        model: the model.
        series: the recording.
        steps: the steps of its moments; None for those of the recording.

    Returns:
        The chain, and how many numbers a first and a later state take.

    Raises:
        TypeError: if the initial law or the transition has no inverse distribution function; it is named.
    """
    clouds, moments = on_clouds(model, series, steps)
    chain = clouds.chain(moments)
    like, row = clouds.initial.like, jax.tree.map(lambda x: x[0], moments)
    cast = lambda x: jax.tree.map(lambda x, like: x.astype(like.dtype), x, like)

    def start(u: Float[Array, "N d"], count: int, moment: Any) -> Any:
        return cast(jax.vmap(lambda u: from_uniforms(clouds.initial.law, u))(u))

    law = clouds.transition
    if isinstance(law, AffineTransition):
        later = jax.eval_shape(lambda: law.at(row).factor).shape[-1]

        def propose(u: Float[Array, "N d"], previous: Any, moment: Any) -> Any:
            return law.mean(previous, moment) + apply(law.at(moment).factor, ndtri(u))

    elif isinstance(law, FiniteLaw):
        later = 1

        def propose(u: Float[Array, "N d"], previous: Any, moment: Any) -> Any:
            rows = law.at(moment).cumulative[previous]
            return _index(rows, u[:, 0]).astype(previous.dtype)

    else:
        state = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)
        later = uniforms(eqx.filter_eval_shape(law.conditional, state, row.step))

        def propose(u: Float[Array, "N d"], previous: Any, moment: Any) -> Any:
            one = lambda x, u: from_uniforms(law.conditional(x, moment.step), u)
            return cast(jax.vmap(one)(previous, u))

    drawn = dataclasses.replace(chain, start=start, propose=propose)
    return drawn, (uniforms(clouds.initial.law), later)
