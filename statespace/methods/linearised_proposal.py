"""Proposals from an expansion of the observation's log density round the predicted states.

All is done in the coordinates of the transition's noise, ``x' = mean + L e`` with ``e ~ N(0, I)`` a priori:
the noise may be singular.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import gammaln
from jaxtyping import Array, Float, PRNGKeyArray

from statespace.methods.lowering import at
from statespace.methods.particle_laws import (
    Affine,
    AffineObservation,
    AffineTransition,
    FunctionLaw,
    FunctionObservation,
    Moment,
    apply,
)

_LOG_2_PI = float(np.log(2 * np.pi))
_AT_THE_START = 20
"""Newton steps for the first state."""

_SHORTER = (1.0, 0.5, 0.25, 0.125, 0.0625, 0.03125, 0.0)
"""Shares of a Newton step that are tried; the best counts."""


class Noise(NamedTuple):
    """The Gaussian noise of the next state.

    Attributes:
        factor: L, shape ``(n, k)``, or ``(N, n, k)`` where it differs between particles.
        inverse: its pseudo-inverse, with the last two axes turned.
    """

    factor: Float[Array, "*N n k"]
    inverse: Float[Array, "*N k n"]


class Centre(NamedTuple):
    """The normal law of the noise given the observation, ``N(mean, root root^T)``.

    Attributes:
        mean: shape ``(N, k)``.
        root: shape ``(k, k)`` or ``(N, k, k)``.
        whitener: its inverse.
        log_det: its log determinant.
    """

    mean: Float[Array, "N k"]
    root: Float[Array, "*N k k"]
    whitener: Float[Array, "*N k k"]
    log_det: Float[Array, "*N"]


class Gain(NamedTuple):
    """What of a linear Gaussian observation does not depend on the particles: see :class:`Centre`.

    Attributes:
        gain: from the innovation to the mean, shape ``(k, m)``.
        root: as in :class:`Centre`.
        whitener: as in :class:`Centre`.
        log_det: as in :class:`Centre`.
    """

    gain: Float[Array, "k m"]
    root: Float[Array, "k k"]
    whitener: Float[Array, "k k"]
    log_det: Float[Array, ""]


def guide(proposal: Any, clouds: Any, moments: Moment) -> tuple[Guide, Moment]:
    """The guide of a model, and the rows of its recording with what varies of the guide.

    Raises:
        TypeError: if the transition is not Gaussian; it is named.
    """
    law, observation = clouds.transition, clouds.observation
    if not isinstance(law, AffineTransition):
        _check_gaussian(law, at(moments, 0))
        return Guide(proposal, clouds, None, None), moments
    exact = isinstance(observation, AffineObservation)

    def arrays(moment: Moment) -> tuple[Noise, Gain | None]:
        noise = _noise(law.at(moment).factor)
        if not exact:
            return noise, None
        y = None if observation.complete else moment.y
        return noise, _gain(noise.factor, observation.at(moment), y)

    constant = not jax.tree.leaves(moments.transition) and (
        not exact or (observation.complete and not jax.tree.leaves(moments.observation))
    )
    if constant:
        return Guide(proposal, clouds, *arrays(at(moments, 0))), moments
    rows = jax.vmap(arrays)(moments)
    return Guide(proposal, clouds, None, None), moments._replace(proposal=rows)


class Guide(eqx.Module):
    """Moves particles by the transition times an approximation of the observation's density.

    Attributes:
        proposal: its settings.
        clouds: the model.
        noise: of the transition where it never changes, else None.
        gain: the same of a linear Gaussian observation.
    """

    proposal: Any
    clouds: Any
    noise: Noise | None
    gain: Gain | None

    def start(self, random: PRNGKeyArray, size: int, moment: Moment) -> Array:
        """Draws of the first state."""
        first = _gaussian(self.clouds.initial.law)
        if first is None:
            return self.clouds.start(random, size, moment)
        mean, noise, centre = self._first(first, moment)
        e = self._draw(random, centre, size)
        return (mean + _times(noise.factor, e)).astype(moment.y.dtype)

    def log_ratio_start(self, particles: Array, moment: Moment) -> Float[Array, " N"]:
        """Log density of the initial law over that of the proposal."""
        first = _gaussian(self.clouds.initial.law)
        if first is None:
            return jnp.zeros(len(particles), moment.y.dtype)
        mean, noise, centre = self._first(first, moment)
        return self._ratio(_times(noise.inverse, particles - mean), centre)

    def draw(self, random: PRNGKeyArray, previous: Array, moment: Moment) -> Array:
        """Draws of the next state."""
        mean, noise, centre = self._next(previous, moment)
        return mean + _times(noise.factor, self._draw(random, centre, len(mean)))

    def log_ratio(self, previous: Array, particles: Array, moment: Moment) -> Float[Array, " N"]:
        """Log density of the transition over that of the proposal."""
        mean, noise, centre = self._next(previous, moment)
        return self._ratio(_times(noise.inverse, particles - mean), centre)

    def evidence(self, particles: Array, moment: Moment) -> Float[Array, " N"]:
        """Log of the integral of the approximation: ``p(y) = p(y | e) p(e) / p(e | y)`` at its centre."""
        mean, noise, centre = self._next(particles, moment)
        state = mean + _times(noise.factor, centre.mean)
        prior = -0.5 * jnp.sum(centre.mean**2, axis=1)
        return self.clouds.observation.log_prob(state, moment) + prior + centre.log_det

    def _next(self, previous: Array, moment: Moment) -> tuple[Array, Noise, Centre]:
        law = self.clouds.transition
        if isinstance(law, AffineTransition):
            mean = law.mean(previous, moment)
            noise, gain = moment.proposal if self.noise is None else (self.noise, self.gain)
        else:
            mean, factor = jax.vmap(lambda x: _gaussian(law.conditional(x, moment.step)))(previous)
            noise, gain = jax.vmap(_noise)(factor.astype(mean.dtype)), None
        centre = self._centre(mean, noise, gain, moment, self.proposal.iterations)
        return mean, noise, centre

    def _first(self, first: tuple[Array, Array], moment: Moment) -> tuple[Array, Noise, Centre]:
        dtype = moment.y.dtype
        mean, noise = first[0][None].astype(dtype), _noise(first[1].astype(dtype))
        observation, gain = self.clouds.observation, None
        if isinstance(observation, AffineObservation):
            y = None if observation.complete else moment.y
            gain = _gain(noise.factor, observation.at(moment), y)
        # one point for all particles, which is often far from what is observed
        steps = max(_AT_THE_START, self.proposal.iterations)
        return mean, noise, self._centre(mean, noise, gain, moment, steps)

    def _centre(
        self, mean: Array, noise: Noise, gain: Gain | None, moment: Moment, iterations: int
    ) -> Centre:
        observation = self.clouds.observation
        if gain is not None:
            law = observation.at(moment)
            error = moment.y - (apply(law.matrix, mean) + law.offset)
            error = error if observation.complete else jnp.nan_to_num(error, nan=0.0)
            return Centre(_times(gain.gain, error), *gain[1:])
        density = _density(observation)
        one = lambda m, factor: _expand(
            lambda e: density(m + factor @ e, moment),
            factor.shape[-1],
            m.dtype,
            iterations,
        )
        axes = (0, 0 if noise.factor.ndim == 3 else None)
        return jax.vmap(one, in_axes=axes)(mean, noise.factor)

    def _draw(self, random: PRNGKeyArray, centre: Centre, size: int) -> Float[Array, "N k"]:
        k, degrees = centre.mean.shape[1], self.proposal.degrees
        if degrees is None:
            return centre.mean + _times(
                centre.root, jax.random.normal(random, (size, k), centre.mean.dtype)
            )
        one, two = jax.random.split(random)
        z = jax.random.normal(one, (size, k), centre.mean.dtype)
        mixed = jax.random.chisquare(two, degrees, (size, 1), centre.mean.dtype) / degrees
        return centre.mean + _times(centre.root, z / jnp.sqrt(mixed))

    def _ratio(self, e: Float[Array, "N k"], centre: Centre) -> Float[Array, " N"]:
        """``log N(e; 0, I)`` over the log density of the proposal."""
        k, degrees = e.shape[1], self.proposal.degrees
        z = _times(centre.whitener, e - centre.mean)
        squared, prior = jnp.sum(z * z, axis=1), -0.5 * jnp.sum(e * e, axis=1)
        if degrees is None:
            return prior + 0.5 * squared + centre.log_det
        student = gammaln((degrees + k) / 2) - gammaln(degrees / 2) - 0.5 * k * np.log(degrees / 2)
        return prior - student + centre.log_det + 0.5 * (degrees + k) * jnp.log1p(squared / degrees)


def _times(matrix: Float[Array, "*N d k"], x: Float[Array, "N k"]) -> Float[Array, "N d"]:
    """A matrix, or one for each particle, times vectors."""
    return apply(matrix, x) if matrix.ndim == 2 else jnp.einsum("nij,nj->ni", matrix, x)


def _noise(factor: Float[Array, "n *k"]) -> Noise:
    if factor.ndim == 1:
        nonzero = factor != 0
        inverse = jnp.where(nonzero, 1 / jnp.where(nonzero, factor, 1), 0)
        return Noise(jnp.diag(factor), jnp.diag(inverse))
    return Noise(factor, jnp.linalg.pinv(factor))


def _gain(factor: Float[Array, "n k"], law: Affine, y: Float[Array, " m"] | None) -> Gain:
    """Of a linear Gaussian observation; channels of ``y`` that are missing say nothing."""
    matrix = law.matrix @ factor
    if y is not None:
        matrix = jnp.where(jnp.isnan(y)[:, None], 0, matrix)
    whiten = jnp.diag(law.whitener) if law.whitener.ndim == 1 else law.whitener
    seen = whiten @ matrix
    eye = jnp.eye(factor.shape[1], dtype=factor.dtype)
    lower = jnp.linalg.cholesky(eye + seen.T @ seen)
    inverse = jax.scipy.linalg.solve_triangular(lower, eye, lower=True)
    gain = inverse.T @ inverse @ seen.T @ whiten
    return Gain(gain, inverse.T, lower.T, -jnp.sum(jnp.log(jnp.diagonal(lower))))


def _expand(density: Callable[[Array], Array], k: int, dtype: Any, iterations: int) -> Centre:
    """The normal law near ``exp(density(e) - e.e / 2)``, by damped Newton steps from 0."""
    target = lambda e: density(e) - 0.5 * jnp.sum(e * e)

    def newton(_: Any, centre: Array) -> Array:
        precision, axes = _precision(density, centre)
        slope = jax.grad(density)(centre)
        slope = jnp.where(jnp.all(jnp.isfinite(slope)), slope, jnp.zeros_like(slope))
        step = axes @ ((axes.T @ (slope - centre)) / precision)
        tried = centre + jnp.asarray(_SHORTER, dtype)[:, None] * step
        value = jax.vmap(target)(tried)
        return tried[jnp.argmax(jnp.where(jnp.isnan(value), -jnp.inf, value))]

    # not at 0 itself, where automatic derivatives of max(x, 0), as of binomial logits, are wrong
    centre = jnp.full(k, 1e-3, dtype)
    centre = (
        newton(0, centre) if iterations == 1 else jax.lax.fori_loop(0, iterations, newton, centre)
    )
    # the curvature far from the centre can be much larger, and weights would then have no variance
    precision, axes = _precision(density, centre)
    root = jnp.sqrt(precision)
    return Centre(centre, axes / root, root[:, None] * axes.T, -jnp.sum(jnp.log(root)))


def _precision(
    density: Callable[[Array], Array], at: Float[Array, " k"]
) -> tuple[Float[Array, " k"], Float[Array, "k k"]]:
    """Eigenvalues and eigenvectors of ``I - density''``, of which what is below I counts as I."""
    k = len(at)
    curvature = -jax.hessian(density)(at)
    curvature = jnp.where(jnp.all(jnp.isfinite(curvature)), curvature, jnp.zeros_like(curvature))
    if k == 1:
        return 1 + jnp.maximum(curvature[0], 0), jnp.ones_like(curvature)
    values, axes = jnp.linalg.eigh(curvature)
    return 1 + jnp.maximum(values, 0), axes


def _density(observation: Any) -> Callable[[Array, Moment], Array]:
    """Log density of the observation given one state."""
    if isinstance(observation, FunctionObservation):
        return lambda x, moment: observation.density(x, moment.step, moment.y)
    return lambda x, moment: observation.log_prob(x[None], moment)[0]


def _gaussian(law: Any) -> tuple[Array, Array] | None:
    """Mean and factor of a normal distribution of vectors; None if it is another."""
    from numpyro.distributions import Independent, MultivariateNormal, Normal

    base = law
    while isinstance(base, Independent):
        base = base.base_dist
    shape = tuple(law.batch_shape) + tuple(law.event_shape) if hasattr(law, "event_shape") else ()
    if len(shape) != 1:
        return None
    if isinstance(base, MultivariateNormal):
        return base.loc, base.scale_tril
    if isinstance(base, Normal):
        return jnp.broadcast_to(base.loc, shape), jnp.broadcast_to(base.scale, shape)
    return None


def _check_gaussian(law: Any, moment: Moment) -> None:
    found = "is between finitely many states"
    if isinstance(law, FunctionLaw):
        made = eqx.filter_eval_shape(law.conditional, law.like, moment.step)
        base = made
        while hasattr(base, "base_dist"):
            base = base.base_dist
        if type(base).__name__ in ("Normal", "MultivariateNormal") and len(made.shape()) == 1:
            return
        found = f"gives {type(base).__name__}"
    raise TypeError(
        'the proposal "linearised" needs a `transition` whose distributions are normal laws of vectors; that '
        f'of this model {found}: use "bootstrap", "auxiliary" or a function `(state, step, y) -> '
        "Distribution`."
    )
