"""Conditionals of whole clouds of states: drawn from and evaluated for all particles at once."""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import reduce
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from statespace.chains.gaussian.algebra import UNROLLED
from statespace.chains.particle.types import Particles
from statespace.conditionals.affine import psd_factor, square_factor
from statespace.densities import log_density
from statespace.methods.hoisting import hoisted
from statespace.methods.lowering import stack
from statespace.model import Conditional, Step

_LOG_2_PI = float(np.log(2 * np.pi))

_DRAWN_TOGETHER = frozenset(
    {
        "Bernoulli", "BernoulliProbs", "BernoulliLogits", "Beta", "Binomial", "BinomialProbs",
        "BinomialLogits", "Categorical", "CategoricalProbs", "CategoricalLogits", "Cauchy", "Exponential",
        "Gamma", "Gumbel", "HalfNormal", "Laplace", "Logistic", "LogNormal", "MultivariateNormal",
        "NegativeBinomial2", "Normal", "Poisson", "StudentT", "Uniform",
    }
)  # fmt: skip
"""Families of NumPyro whose ``sample`` draws one value for each of a batch of parameters."""


class Moment(NamedTuple):
    """One row of a recording, as the functions of a lowered chain are given it.

    Attributes:
        step: everything but the state that a conditional may depend on.
        y: the observation, shape ``(m,)``, NaN where missing.
        transition: what varies from moment to moment of the transition's arrays.
        observation: the same of the observation's.
        proposal: the same of the proposal's.
    """

    step: Step
    y: Float[Array, " m"]
    transition: Any = None
    observation: Any = None
    proposal: Any = None


class Affine(NamedTuple):
    """``N(matrix x + offset, factor factor^T)`` at one moment, with what its density needs.

    Attributes:
        matrix: shape ``(d, n)``.
        offset: shape ``(d,)``.
        factor: ``(d, k)``, or ``(d,)`` standard deviations.
        whitener: inverse of a square factor, ``(d, d)`` or ``(d,)``; None where there is no density.
        log_det: log determinant of a square factor.
    """

    matrix: Float[Array, "d n"]
    offset: Float[Array, " d"]
    factor: Float[Array, "..."]
    whitener: Float[Array, "..."] | None
    log_det: Float[Array, ""] | None


def affine(conditional: Any, step: Step, dtype: Any) -> Affine:
    """An ``AffineGaussian`` (or ``LinearDiffusion``) at one step."""
    here = conditional.at(step)
    matrix, offset = here.matrix.astype(dtype), here.offset.astype(dtype)
    factor = psd_factor(here.covariance) if here.scale is None else here.scale
    factor = factor.astype(dtype)
    if factor.ndim == 2 and factor.shape[1] < factor.shape[0]:
        return Affine(matrix, offset, factor, None, None)
    return Affine(matrix, offset, factor, *whitener(factor, triangular=here.scale is None))


def whitener(factor: Float[Array, "..."], *, triangular: bool = False) -> tuple[Array, Array]:
    """The inverse of a square factor of ``factor factor^T``, and its log determinant."""
    if factor.ndim == 1:
        return 1 / factor, jnp.sum(jnp.log(factor))
    square = factor if triangular else square_factor(factor)
    inverse = jax.scipy.linalg.solve_triangular(
        square, jnp.eye(len(square), dtype=square.dtype), lower=True
    )
    return inverse, jnp.sum(jnp.log(jnp.abs(jnp.diagonal(square))))


def apply(matrix: Float[Array, "..."], x: Float[Array, "N n"]) -> Float[Array, "N d"]:
    """``matrix x`` of every particle; a vector stands for a diagonal matrix."""
    if matrix.ndim == 1:
        return x * matrix
    if max(matrix.shape) > UNROLLED:
        return x @ matrix.T
    # written out, so that it is one loop with what is done to the particles before and after
    return reduce(operator.add, (x[:, j, None] * matrix[:, j] for j in range(matrix.shape[1])))


def normal_log_prob(
    error: Float[Array, "N d"], whiten: Array, log_det: Array
) -> Float[Array, " N"]:
    """Log density of Gaussian errors."""
    z = apply(whiten, error)
    return -0.5 * jnp.sum(z * z, axis=-1) - (log_det + 0.5 * _LOG_2_PI * error.shape[-1])


def over_time(function: Callable[[Step], Any], steps: Step, varies: Step) -> tuple[Any, Any]:
    """A function of the step at all of them: the arrays that never change, and those over time."""
    every = stack(function, steps, varies)
    moves = jax.tree.map(lambda x: len(x) > 1, every)
    varying, constant = eqx.partition(every, moves)
    return jax.tree.map(lambda x: x[0], constant), varying


class AffineTransition(eqx.Module):
    """A linear Gaussian transition of clouds ``(N, n)``."""

    constant: Affine

    def at(self, moment: Moment) -> Affine:
        """Its arrays at one moment."""
        return eqx.combine(self.constant, moment.transition)

    @property
    def has_density(self) -> bool:
        """Whether the noise has as many dimensions as the state."""
        factor = self.constant.factor
        return factor is None or factor.ndim == 1 or factor.shape[1] >= factor.shape[0]

    def mean(self, previous: Float[Array, "N n"], moment: Moment) -> Float[Array, "N n"]:
        """Expected next states."""
        law = self.at(moment)
        return apply(law.matrix, previous) + law.offset

    def draw(self, key: PRNGKeyArray, previous: Float[Array, "N n"], moment: Moment) -> Array:
        """A next state of every particle."""
        law = self.at(moment)
        noise = jax.random.normal(key, (len(previous), law.factor.shape[-1]), previous.dtype)
        # a product: written out, the noise would be drawn again for each of its columns
        spread = noise * law.factor if law.factor.ndim == 1 else noise @ law.factor.T
        return apply(law.matrix, previous) + law.offset + spread

    def log_prob(self, previous: Array, particles: Array, moment: Moment) -> Float[Array, " N"]:
        """Log density of every pair."""
        law = self.at(moment)
        error = particles - (apply(law.matrix, previous) + law.offset)
        return normal_log_prob(error, law.whitener, law.log_det)


class Jumps(NamedTuple):
    """Probabilities between finitely many states at one moment.

    Attributes:
        cumulative: sums of the rows, shape ``(K, K)``.
        logs: logarithms, shape ``(K, K)``.
    """

    cumulative: Float[Array, "K K"]
    logs: Float[Array, "K K"]


class FiniteLaw(eqx.Module):
    """A transition between finitely many states of clouds ``(N,)`` of integers."""

    constant: Jumps

    def at(self, moment: Moment) -> Jumps:
        """Its arrays at one moment."""
        return eqx.combine(self.constant, moment.transition)

    @property
    def has_density(self) -> bool:
        """Always."""
        return True

    def draw(self, key: PRNGKeyArray, previous: Int[Array, " N"], moment: Moment) -> Array:
        """A next state of every particle."""
        return inverse_cdf(key, self.at(moment).cumulative[previous]).astype(previous.dtype)

    def log_prob(self, previous: Array, particles: Array, moment: Moment) -> Float[Array, " N"]:
        """Log probability of every pair."""
        return self.at(moment).logs[previous, particles]


def inverse_cdf(key: PRNGKeyArray, cumulative: Float[Array, "N K"]) -> Int[Array, " N"]:
    """One of K for every row of cumulative probabilities."""
    u = jax.random.uniform(key, cumulative.shape[:1], cumulative.dtype) * cumulative[:, -1]
    return jnp.sum(u[:, None] >= cumulative[:, :-1], axis=1)


def jumps(matrix: Float[Array, "K K"], dtype: Any) -> Jumps:
    """A matrix of probabilities, as draws and densities need it."""
    matrix = matrix.astype(dtype)
    possible = matrix > 0
    logs = jnp.where(possible, jnp.log(jnp.where(possible, matrix, 1)), -jnp.inf)
    return Jumps(jnp.cumsum(matrix, axis=1), logs)


class FunctionLaw(eqx.Module):
    """Any conditional ``(state, step) -> Distribution``, of clouds.

    Args:
        conditional: the function.
        state: shape and type of one state to condition on.
        step: shapes and types of a step.
        like: shape and type of one state that comes out.
    """

    conditional: Conditional
    law: Callable[..., Any] | None
    density: Callable[..., Array] | None
    like: Any

    def __init__(self, conditional: Conditional, state: Any, step: Step, like: Any):
        self.conditional, self.like = conditional, like
        self.law = (
            hoisted(conditional, state, step) if _drawn_together(conditional, state, step) else None
        )
        try:
            one = lambda before, after, step: log_prob(conditional(before, step), after)
            self.density = hoisted(one, state, like, step)
        except (NotImplementedError, AttributeError):  # it can be drawn from, and that is all
            self.density = None

    @property
    def has_density(self) -> bool:
        """Whether its distributions have a ``log_prob``."""
        return self.density is not None

    def draw(self, key: PRNGKeyArray, previous: Particles, moment: Moment) -> Particles:
        """A next state of every particle."""
        if self.law is None:
            keys = jax.random.split(key, count(previous))
            one = lambda x, k: self.conditional(x, moment.step).sample(k)
            drawn = jax.vmap(one)(previous, keys)
        else:
            from numpyro.distributions.batch_util import promote_batch_shape

            laws = jax.vmap(self.law, in_axes=(0, None))(previous, moment.step)
            drawn = promote_batch_shape(laws).sample(key)
        return jax.tree.map(lambda x, like: x.astype(like.dtype), drawn, self.like)

    def mean(self, previous: Particles, moment: Moment) -> Particles:
        """Expected next states."""
        one = lambda x: self.conditional(x, moment.step).mean
        return jax.vmap(one)(previous)

    def log_prob(
        self, previous: Particles, particles: Particles, moment: Moment
    ) -> Float[Array, " N"]:
        """Log density of every pair."""
        return jax.vmap(self.density, in_axes=(0, 0, None))(previous, particles, moment.step)


class InitialLaw(eqx.Module):
    """The law of the first state, of clouds.

    Args:
        law: a distribution.
        dtype: of the real coordinates.
    """

    law: Any
    dtype: Any = eqx.field(static=True)

    @property
    def like(self) -> Any:
        """Shape and type of one state."""
        one = jax.eval_shape(self.law.sample, jax.random.key(0))
        real = lambda x: jnp.issubdtype(x.dtype, jnp.inexact)
        cast = lambda x: jax.ShapeDtypeStruct(x.shape, self.dtype if real(x) else x.dtype)
        return jax.tree.map(cast, one)

    def draw(self, key: PRNGKeyArray, size: int) -> Particles:
        """That many first states."""
        from numpyro.distributions import Distribution

        if isinstance(self.law, Distribution):
            drawn = self.law.sample(key, (size,))
        else:
            drawn = jax.vmap(self.law.sample)(jax.random.split(key, size))
        return jax.tree.map(lambda x, like: x.astype(like.dtype), drawn, self.like)

    def log_prob(self, particles: Particles) -> Float[Array, " N"]:
        """Log density of every first state."""
        return jax.vmap(hoisted(lambda x: log_prob(self.law, x), self.like))(particles)


class AffineObservation(eqx.Module):
    """A linear Gaussian observation of clouds; channels that are missing are integrated out."""

    constant: Affine
    complete: bool = eqx.field(static=True)

    def at(self, moment: Moment) -> Affine:
        """Its arrays at one moment."""
        return eqx.combine(self.constant, moment.observation)

    def log_prob(self, particles: Float[Array, "N n"], moment: Moment) -> Float[Array, " N"]:
        """Log density of the observation given every particle."""
        law = self.at(moment)
        mean = apply(law.matrix, particles) + law.offset
        if self.complete:
            return normal_log_prob(moment.y - mean, law.whitener, law.log_det)
        seen = ~jnp.isnan(moment.y)
        error = jnp.where(seen, moment.y, 0) - mean
        whiten, log_det = law.whitener, law.log_det
        if whiten.ndim == 1:
            log_det = jnp.sum(jnp.where(seen, jnp.log(law.factor), 0))
        z = apply(whiten, jnp.where(seen, error, 0))
        return -0.5 * jnp.sum(z * z, axis=-1) - (log_det + 0.5 * _LOG_2_PI * jnp.sum(seen))


def masked(law: Affine, y: Float[Array, " m"]) -> Affine:
    """A linear Gaussian observation of full noise, whose missing channels are as if white."""
    seen = ~jnp.isnan(y)
    both = seen[:, None] & seen[None, :]
    noise = jnp.where(both, law.factor @ law.factor.T, jnp.eye(len(y), dtype=y.dtype))
    whiten, log_det = whitener(jnp.linalg.cholesky(noise), triangular=True)
    return law._replace(whitener=whiten, log_det=log_det)


class TableObservation(eqx.Module):
    """An observation of finitely many states, evaluated in every one of them beforehand.

    Args:
        whole: from the chain's states to those that are observed; None where they are the same.
        complete: whether nothing is missing.
    """

    whole: Callable[[Array], Array] | None
    complete: bool = eqx.field(static=True)

    def log_prob(self, particles: Int[Array, " N"], moment: Moment) -> Float[Array, " N"]:
        """Log density of the observation given every particle."""
        return moment.observation[particles if self.whole is None else self.whole(particles)]


class SiteObservation(eqx.Module):
    """An observation of which a Gaussian potential of the states is known beforehand."""

    complete: bool = eqx.field(static=True)

    def log_prob(self, particles: Float[Array, "N n"], moment: Moment) -> Float[Array, " N"]:
        """Log of the potential at every particle: ``log p(y | x) - log p(y)``."""
        site = moment.observation
        curved = jnp.sum(particles * apply(site.precision, particles), axis=-1)
        return site.constant + particles @ site.shift - 0.5 * curved


class FunctionObservation(eqx.Module):
    """Any observation ``(state, step) -> Distribution``, of clouds."""

    density: Callable[..., Array]
    complete: bool = eqx.field(static=True)

    def __init__(self, conditional: Conditional, state: Any, moment: Moment, *, complete: bool):
        self.complete = complete

        def one(x: Any, step: Step, y: Array) -> Array:
            law = conditional(x, step)
            return complete_density(law, y) if complete else log_density(law, y)

        self.density = hoisted(one, state, moment.step, moment.y)

    def log_prob(self, particles: Particles, moment: Moment) -> Float[Array, " N"]:
        """Log density of the observation given every particle."""
        return jax.vmap(self.density, in_axes=(0, None, None))(particles, moment.step, moment.y)


def complete_density(law: Any, y: Float[Array, " m"]) -> Float[Array, ""]:
    """Log density of one observation without missing entries under a NumPyro distribution."""
    value = y.reshape(tuple(law.batch_shape) + tuple(law.event_shape))
    return log_prob(law, value.astype(int) if law.support.is_discrete else value)


def log_prob(law: Any, value: Any) -> Float[Array, ""]:
    """Log density of one value; independent entries are summed over."""
    from numpyro.distributions import MultivariateNormal

    if isinstance(law, MultivariateNormal) and law.batch_shape == ():
        # a product with the inverse, which is hoisted out of loops where the factor is constant
        inverse, log_det = whitener(law.scale_tril, triangular=True)
        return normal_log_prob((value - law.loc)[None], inverse, log_det)[0]
    return jnp.sum(law.log_prob(value))


def _drawn_together(conditional: Conditional, state: Any, step: Step) -> bool:
    """Whether one call can draw from the distributions of all particles."""
    from numpyro.distributions import Distribution, Independent

    law = eqx.filter_eval_shape(conditional, state, step)
    if not isinstance(law, Distribution):
        return False
    while isinstance(law, Independent):
        law = law.base_dist
    return type(law).__module__.startswith("numpyro.") and type(law).__name__ in _DRAWN_TOGETHER


def count(particles: Particles) -> int:
    """How many particles there are."""
    return len(jax.tree.leaves(particles)[0])
