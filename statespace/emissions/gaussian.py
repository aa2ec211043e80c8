"""Gaussian and Student's t observations of each state."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import digamma, gammaln
from jaxtyping import Array, Float

from statespace.checks import (
    is_lower_with_positive_diagonal,
    known,
    require_finite,
    require_positive,
    require_shape,
)
from statespace.emissions.base import (
    NONE,
    Emission,
    by_channel,
    pooled,
    require_channels,
    visited,
)
from statespace.emissions.regression import quadratic, regress
from statespace.model import Step
from statespace.parameters import parameter, replace

if TYPE_CHECKING:
    from numpyro.distributions import Distribution

_LOG_2_PI = float(np.log(2 * np.pi))


def scale_support(value: Array) -> str:
    """Of standard deviations ``(K, m)`` or triangular factors ``(K, m, m)``."""
    return "lower_cholesky" if jnp.ndim(value) == 3 else "positive"


class Gaussian(Emission):
    """``y ~ N(mean_k, L_k L_k^T)`` in state k.

    Args:
        mean: shape ``(K, m)``, or ``(K,)`` for a single channel.
        scale: ``(K, m)`` standard deviations of independent channels (``(K,)`` for a single one), or
            ``(K, m, m)`` lower triangular factors of full covariances, such as
            ``jnp.linalg.cholesky(covariances)``. With a leading axis of 1 all states share it ("tied").

    Raises:
        ValueError: if shapes do not fit, or a scale is not positive or no Cholesky factor.

    Example:
        >>> ss.emissions.Gaussian(mean=[[0.0, 0.0], [3.0, 1.0]], scale=jnp.ones((2, 2)))
    """

    mean: Float[Array, "..."] = parameter()
    scale: Float[Array, "..."] = parameter(scale_support)

    def __check_init__(self) -> None:
        require_location("mean", self.mean)
        require_scales("scale", self.scale, *by_channel(self.mean).shape)

    def check(self, y: Any) -> None:
        """Refuse observations of another number of channels."""
        require_channels(self, y, by_channel(self.mean).shape[1])

    def __call__(self, state: Any, step: Step) -> Distribution:
        """The distribution of the observation in one state."""
        return normal(self.mean[state], at_state(self.scale, state), channels=self.mean.ndim - 1)

    def log_probs(self, y: Float[Array, "T m"], steps: Step) -> Float[Array, "T K"]:
        """Log density of every observation in every state; NaN entries are integrated out."""
        return log_normal(y, by_channel(self.mean)[None], by_channel(self.scale))

    def m_step(
        self,
        y: Float[Array, "S T m"],
        steps: Step,
        weights: Float[Array, "S T K"],
        *,
        floor: Any = 0.0,
        frozen: frozenset[str] = NONE,
    ) -> Gaussian:
        """Weighted means and covariances; see :meth:`Emission.m_step`.

        Missing entries of independent channels are left out; with full covariances they count by
        their expectation given the observed ones.
        """
        y, weights = pooled(y, weights)
        return with_regression(self, y, weights, floor=floor, frozen=frozen)


class StudentT(Emission):
    """Student's t of ``degrees_k`` degrees of freedom about ``mean_k`` in state k.

    Several channels are one multivariate t: outliers hit all of them at once.

    Args:
        degrees: degrees of freedom, shape ``(K,)``; hold them with ``ss.freeze`` where they are given.
        mean: shape ``(K, m)``, or ``(K,)`` for a single channel.
        scale: as of :class:`Gaussian`; the covariance is ``degrees / (degrees - 2)`` times ``L L^T``.

    Raises:
        ValueError: if shapes do not fit, or degrees or a scale are not positive.

    References:
        Liu & Rubin (1995), ML estimation of the t distribution using EM and its extensions; missing
        entries as in their section 3.
    """

    degrees: Float[Array, " K"] = parameter("positive")
    mean: Float[Array, "..."] = parameter()
    scale: Float[Array, "..."] = parameter(scale_support)

    def __check_init__(self) -> None:
        require_location("mean", self.mean)
        require_shape("degrees", self.degrees, self.mean.shape[:1])
        require_positive("degrees", self.degrees, zero=False)
        require_scales("scale", self.scale, *by_channel(self.mean).shape)

    def check(self, y: Any) -> None:
        """Refuse observations of another number of channels."""
        require_channels(self, y, by_channel(self.mean).shape[1])

    def __call__(self, state: Any, step: Step) -> Distribution:
        """The distribution of the observation in one state."""
        from numpyro.distributions import MultivariateStudentT, StudentT

        scale = at_state(self.scale, state)
        if self.mean.ndim == 1:
            return StudentT(self.degrees[state], self.mean[state], scale)
        factor = jnp.diag(scale) if scale.ndim == 1 else scale
        return MultivariateStudentT(self.degrees[state], self.mean[state], factor)

    def log_probs(self, y: Float[Array, "T m"], steps: Step) -> Float[Array, "T K"]:
        """Log density of every observation in every state; NaN entries are integrated out."""
        squared, log_det, count = self._quadratic(y)
        half = (self.degrees + count) / 2
        normaliser = gammaln(half) - gammaln(self.degrees / 2)
        normaliser = normaliser - count / 2 * jnp.log(self.degrees * jnp.pi)
        return normaliser - log_det - half * jnp.log1p(squared / self.degrees)

    def m_step(
        self,
        y: Float[Array, "S T m"],
        steps: Step,
        weights: Float[Array, "S T K"],
        *,
        floor: Any = 0.0,
        frozen: frozenset[str] = NONE,
    ) -> StudentT:
        """One step of EM over the precisions of which the t is a mixture; see :meth:`Emission.m_step`."""
        y, weights = pooled(y, weights)
        squared, _, count = self._quadratic(y)
        precision = (self.degrees + count) / (self.degrees + squared)
        new = with_regression(self, y, weights, precision=precision, floor=floor, frozen=frozen)
        if "degrees" in frozen:
            return new
        half = (self.degrees + count) / 2
        log_precision = jnp.log(precision) + digamma(half) - jnp.log(half)
        weights = jnp.where(count > 0, weights, 0)
        total = jnp.sum(weights, axis=0)
        some = visited(total)
        excess = jnp.sum(weights * (log_precision - precision), axis=0)
        degrees = _degrees(excess / jnp.where(some, total, 1), self.degrees)
        return replace(new, {"degrees": jnp.where(some, degrees, self.degrees)})

    def _quadratic(self, y: Float[Array, "T m"]) -> Any:
        seen = ~jnp.isnan(y)
        residuals = jnp.where(seen, y, 0)[:, None] - by_channel(self.mean)[None]
        return quadratic(residuals, seen, by_channel(self.scale))


def _degrees(excess: Float[Array, " K"], old: Float[Array, " K"]) -> Float[Array, " K"]:
    """Where ``1 + log(v/2) - digamma(v/2) + excess`` vanishes, by bisection of log v; it falls with v."""
    bounds = jnp.log(jnp.minimum(old, 0.05)), jnp.log(jnp.maximum(old, 1e4))

    def halve(_: Array, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = (low + high) / 2
        half = jnp.exp(middle) / 2
        above = 1 + jnp.log(half) - digamma(half) + excess > 0
        return jnp.where(above, middle, low), jnp.where(above, high, middle)

    low, high = jax.lax.fori_loop(0, 60, halve, bounds)
    return jnp.exp((low + high) / 2).astype(old.dtype)


def with_regression(
    emission: Any,
    y: Float[Array, "N m"],
    weights: Float[Array, "N K"],
    *,
    precision: Float[Array, "N K"] | None = None,
    floor: Any,
    frozen: frozenset[str],
) -> Any:
    """The emission with ``mean`` and ``scale`` from a regression on a constant."""
    old, scale = by_channel(emission.mean), by_channel(emission.scale)
    mean, scale = regress(
        y,
        jnp.ones((len(y), 1), y.dtype),
        weights,
        old[:, :, None],
        scale,
        precision=precision,
        floor=floor,
        movable=np.array(["mean" not in frozen]),
        learn_scale="scale" not in frozen,
    )
    mean, scale = mean.reshape(emission.mean.shape), scale.reshape(emission.scale.shape)
    return replace(emission, {"mean": mean, "scale": scale})


def log_normal(
    y: Float[Array, "T m"], mean: Float[Array, "#T K m"], scale: Float[Array, "..."]
) -> Float[Array, "T K"]:
    """Log density of a Gaussian in every state; NaN entries are integrated out."""
    seen = ~jnp.isnan(y)
    residuals = jnp.where(seen, y, 0)[:, None] - mean
    squared, log_det, count = quadratic(residuals, seen, scale)
    return -0.5 * (squared + count * _LOG_2_PI) - log_det


def normal(mean: Float[Array, "..."], scale: Float[Array, "..."], *, channels: int) -> Distribution:
    """Gaussian laws by standard deviations, with or without an axis of channels, or by triangular factors."""
    from numpyro.distributions import MultivariateNormal, Normal

    if scale.ndim > mean.ndim:
        return MultivariateNormal(mean, scale_tril=scale)
    return Normal(mean, scale).to_event(channels)


def at_state(scale: Float[Array, "..."], state: Any) -> Float[Array, "..."]:
    """The scale of one state, which may be that of all."""
    return scale[0] if len(scale) == 1 else scale[state]


def require_location(name: str, value: Array) -> None:
    """Refuse what is no location of each state.

    Raises:
        ValueError: naming the argument and its shape.
    """
    if value.ndim not in (1, 2):
        raise ValueError(f"`{name}` must have shape (K,) or (K, m), got {value.shape}.")
    require_finite(name, value)


def require_scales(name: str, value: Array, states: int, channels: int) -> None:
    """Refuse what is no scale of each state, or of all of them.

    Raises:
        ValueError: naming the argument, its shape or values, and how to come by a factor.
    """
    shapes = [(states, channels), (states, channels, channels)]
    shapes += [(states,)] if channels == 1 else []
    if len(value) == 0 or (states, *value.shape[1:]) not in shapes or len(value) not in (1, states):
        raise ValueError(
            f"`{name}` must have shape {' or '.join(map(str, shapes))} (or 1 in place of {states}, for one "
            f"that the states share), got {value.shape}."
        )
    require_finite(name, value)
    if value.ndim < 3:
        require_positive(name, value, zero=False)
    elif known(value) and not np.all(is_lower_with_positive_diagonal(value)):
        raise ValueError(
            f"`{name}` must be lower triangular with a positive diagonal, got\n{np.asarray(value)}\n"
            "From covariance matrices use `jnp.linalg.cholesky(covariances)`."
        )
