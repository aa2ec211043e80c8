"""Derivatives of a particle filter's log likelihood.

Drawing ancestors is no smooth function of the weights; differentiating a run as it is leaves that out. What
is done about it is said by the ``gradient`` of :func:`statespace.chains.particle.run`: :class:`StopGradient`,
whose value is that of the plain filter and whose derivative of the likelihood is unbiased; :class:`Soft`,
whose derivative is that of the given draws; and :class:`Transport`, a smooth function altogether.
"""

from __future__ import annotations

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from statespace.chains.particle.types import Chain, Particles


class StopGradient(eqx.Module):
    """Ancestors are drawn by weights held fixed, and weigh what makes up for it (Ścibior & Wood 2021).

    After resampling particle i weighs ``W_a / stop(W_a) / N``: 1 / N, with the derivative of its ancestor's
    weight. The derivative of the estimate of the likelihood is then unbiased, if that of what is drawn is
    (see :func:`fisher`). That of its logarithm is the estimate of the score from the ancestries of the
    particles (Poyiadjis, Doucet & Singh 2011, algorithm 1), whose variance grows as T squared.
    """

    def weights(self, log_weights: Float[Array, " N"]) -> Float[Array, " N"]:
        """By which ancestors are drawn."""
        return jax.lax.stop_gradient(log_weights)


class Soft(eqx.Module):
    """Ancestors are drawn by a mixture of the weights and a uniform law (Karkus, Hsu & Lee 2018).

    After resampling particle i weighs ``W_a / (share W_a + (1 - share) / N)``, which depends smoothly on the
    weights. The estimate of the likelihood is unbiased; its derivative leaves out that of the draws, and has
    more bias the nearer ``share`` is to 1.

    Args:
        share: of the weights in the mixture, inside [0, 1].

    Raises:
        ValueError: if ``share`` is outside [0, 1].
    """

    share: float = eqx.field(static=True, default=0.5)

    def __check_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise ValueError(f"`share` of Soft must be inside [0, 1], got {self.share}.")

    def weights(self, log_weights: Float[Array, " N"]) -> Float[Array, " N"]:
        """By which ancestors are drawn."""
        uniform = (1 - self.share) / len(log_weights)
        return jnp.log(self.share * jnp.exp(log_weights) + uniform)


class Transport(eqx.Module):
    """Particles are moved to equal weights by entropy-regularised optimal transport (Corenflos et al. 2021).

    The new particles are averages of the old ones, and smooth functions of particles and weights. Their mean
    is that of the weighted ones; the estimate of the likelihood is consistent but biased. Costs of order
    ``iterations N^2``; every state must be real.

    Args:
        regularisation: of the entropy, in units of the squared spread of the particles; positive.
        iterations: of Sinkhorn's algorithm; the derivative goes through all of them.

    Raises:
        ValueError: if an argument is not positive.
    """

    regularisation: float = eqx.field(static=True, default=0.1)
    iterations: int = eqx.field(static=True, default=100)

    def __check_init__(self) -> None:
        for name in ("regularisation", "iterations"):
            value = getattr(self, name)
            if not value > 0:
                raise ValueError(f"`{name}` of Transport must be positive, got {value}.")

    def move(self, particles: Particles, log_weights: Float[Array, " N"]) -> Particles:
        """Particles of equal weight in place of weighted ones.

        Raises:
            TypeError: if a part of the state is not real.
        """
        leaves, tree = jax.tree.flatten(particles)
        for x in leaves:
            if not jnp.issubdtype(x.dtype, jnp.floating):
                raise TypeError(
                    f"Transport averages particles, whose states must be real; got {x.dtype}: use "
                    'gradient="score" instead'
                )
        count = len(log_weights)
        flat = jnp.concatenate([x.reshape(count, -1) for x in leaves], axis=1)
        plan = self.plan(flat, log_weights)
        moved = [(count * plan.T @ x.reshape(count, -1)).reshape(x.shape) for x in leaves]
        return jax.tree.unflatten(tree, moved)

    def plan(
        self, points: Float[Array, "N d"], log_weights: Float[Array, " N"]
    ) -> Float[Array, "N N"]:
        """What goes from where (rows, which add up to the weights) to where (columns, to 1 / N)."""
        spread = jnp.max(jnp.var(points, axis=0)) * points.shape[1]
        scale = self.regularisation * jnp.where(spread > 0, spread, 1)
        distance = jnp.sum((points[:, None] - points[None]) ** 2, axis=-1)
        kernel = -distance / scale
        uniform = -jnp.log(jnp.asarray(len(points), kernel.dtype))
        floor = jnp.finfo(kernel.dtype).min / 1e3  # in place of -inf, which has no derivative
        rows = jnp.maximum(log_weights, floor)

        def round(columns: Array, _: None) -> tuple[Array, None]:
            left = rows - jax.nn.logsumexp(kernel + columns, axis=1)
            return uniform - jax.nn.logsumexp(kernel + left[:, None], axis=0), None

        columns, _ = jax.lax.scan(
            round, jnp.zeros_like(log_weights), None, length=self.iterations - 1
        )
        left = rows - jax.nn.logsumexp(kernel + columns, axis=1)
        columns = uniform - jax.nn.logsumexp(kernel + left[:, None], axis=0)
        return jnp.exp(kernel + left[:, None] + columns)


Gradient = StopGradient | Soft | Transport


def fisher(chain: Chain, joint_start: Callable[..., Array], joint: Callable[..., Array]) -> Chain:
    """A chain whose derivative is Fisher's: of the model's densities, at particles that are held fixed.

    With :class:`StopGradient` the derivative of the estimate of the likelihood is then unbiased whatever is
    drawn, continuous or not.

    Args:
        chain: the chain; its values stay.
        joint_start: ``(particles, moment) -> (N,)``: ``log p(x_0) p(y_0 | x_0)``.
        joint: ``(previous, particles, moment) -> (N,)``: ``log p(x' | x) p(y | x')``.
    """
    stop = jax.lax.stop_gradient

    def with_derivative(value: Array, of: Array) -> Array:
        return stop(value) + jnp.where(jnp.isneginf(of), 0, of - stop(of))

    return eqx.tree_at(
        lambda c: (c.start, c.weigh_start, c.propose, c.weigh),
        chain,
        (
            lambda *args: stop(chain.start(*args)),
            lambda x, at: with_derivative(chain.weigh_start(x, at), joint_start(x, at)),
            lambda *args: stop(chain.propose(*args)),
            lambda before, x, at: with_derivative(chain.weigh(before, x, at), joint(before, x, at)),
        ),
        is_leaf=callable,
    )
