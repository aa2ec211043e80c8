"""Affine Gaussian conditionals: the structure that makes exact Gaussian inference possible."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from statespace.checks import require_finite, require_positive
from statespace.model import Step

if TYPE_CHECKING:
    from numpyro.distributions import Distribution

Part = Array | Callable[[Step], Array]
"""An array (constant in time), or a function of the step (varying in time or with the inputs)."""


class AffineGaussian(eqx.Module):
    """``x' = F x + b + L e`` with ``e ~ N(0, I)``.

    Each part is an array, constant in time, or a function ``step -> array``. A part that is an array is
    seen as constant by the methods, which then need not recompute what depends on it alone.

    Args:
        matrix: ``F``, shape ``(d_out, d_in)``.
        offset: ``b``, shape ``(d_out,)``; None for zero.
        scale: ``L``, shape ``(d_out, k)`` for a factor of the noise covariance ``L L^T``, or
            ``(d_out,)`` for independent noise with these standard deviations.
        covariance: ``L L^T``, shape ``(d_out, d_out)``, in place of ``scale`` where the product is what
            is known.

    Raises:
        TypeError: unless exactly one of ``scale`` and ``covariance`` is given.
        ValueError: if shapes do not fit, or a covariance is not symmetric positive semi-definite.
    """

    matrix: Part
    offset: Part | None
    scale: Part | None
    covariance: Part | None

    def __init__(
        self, matrix: Any, offset: Any = None, scale: Any = None, *, covariance: Any = None
    ):
        if (scale is None) == (covariance is None):
            raise TypeError(
                "AffineGaussian needs exactly one of `scale` (a factor L (d, k) of the noise "
                "covariance, or (d,) standard deviations) and `covariance` (d, d); zeros for a "
                "conditional without noise."
            )
        self.matrix = _part(matrix)
        self.offset = None if offset is None else _part(offset)
        self.scale = None if scale is None else _part(scale)
        self.covariance = None if covariance is None else _part(covariance)
        _check_affine(self)

    def at(self, step: Step) -> AffineGaussian:
        """The conditional at one step, with every part an array."""
        matrix = _evaluate(self.matrix, step)
        offset = jnp.zeros((), matrix.dtype)
        if self.offset is not None:
            offset = _evaluate(self.offset, step)
        if offset.ndim == 0:
            offset = jnp.broadcast_to(offset, matrix.shape[:1])
        scale = None if self.scale is None else _evaluate(self.scale, step)
        covariance = None if self.covariance is None else _evaluate(self.covariance, step)
        return AffineGaussian(matrix, offset, scale, covariance=covariance)

    def __call__(self, state: Float[Array, " d_in"], step: Step) -> Distribution:
        """The distribution of ``x'`` given the state."""
        here: Any = self.at(step)
        scale = here.scale if here.covariance is None else psd_factor(here.covariance)
        return normal(here.matrix @ state + here.offset, scale)


class Gaussian(eqx.Module):
    """An initial law ``x_0 ~ N(mean, L L^T)``, of which some directions may be exactly diffuse.

    Args:
        mean: shape ``(d,)``.
        scale: ``L``, shape ``(d, k)``, or ``(d,)`` standard deviations.
        diffuse: shape ``(d,)`` booleans: coordinates with an infinite prior variance (their ``scale``
            is then ignored); or a matrix ``(d, q)`` whose columns span the diffuse directions. The
            likelihood is then the one under a flat prior on these directions (de Jong 1991; Durbin &
            Koopman 2012, section 7.2.2).
        covariance: ``L L^T``, shape ``(d, d)``, in place of ``scale`` where the product is what is
            known, as of a stationary law.

    Raises:
        TypeError: unless exactly one of ``scale`` and ``covariance`` is given.
        ValueError: if shapes do not fit, or a covariance is not symmetric positive semi-definite.
    """

    mean: Float[Array, " d"]
    scale: Float[Array, "..."] | None
    diffuse: Float[Array, "d q"] | None
    covariance: Float[Array, "d d"] | None

    def __init__(
        self, mean: Any, scale: Any = None, diffuse: Any = None, *, covariance: Any = None
    ):
        if (scale is None) == (covariance is None):
            raise TypeError(
                "Gaussian needs exactly one of `scale` (a factor L (d, k) of the covariance, or (d,) "
                "standard deviations) and `covariance` (d, d); zeros for a known state."
            )
        self.mean = jnp.asarray(mean)
        self.scale = None if scale is None else jnp.asarray(scale)
        self.covariance = None if covariance is None else jnp.asarray(covariance)
        self.diffuse = None if diffuse is None else _diffuse_directions(diffuse, self.mean.dtype)
        _check_gaussian(self)

    def __call__(self, step: Step) -> Distribution:
        """The distribution of the first state.

        Raises:
            ValueError: if some directions are diffuse, because there is then nothing to draw from.
        """
        if self.diffuse is not None:
            raise ValueError(
                "`initial` is diffuse in some directions, so it is no probability distribution: give "
                "`Gaussian(mean, scale)` a finite scale, or pass `initial_state=` to simulate."
            )
        return normal(
            self.mean, self.scale if self.covariance is None else psd_factor(self.covariance)
        )


def normal(mean: Float[Array, " d"], scale: Float[Array, "..."]) -> Distribution:
    """``N(mean, L L^T)`` as a NumPyro distribution; ``scale`` is ``(d,)`` or ``(d, k)``."""
    from numpyro.distributions import MultivariateNormal, Normal

    if scale.ndim == 1:
        return Normal(mean, scale).to_event(1)
    return MultivariateNormal(mean, scale_tril=square_factor(scale))


def square_factor(scale: Float[Array, "d k"]) -> Float[Array, "d d"]:
    """A lower triangular ``(d, d)`` factor of ``scale @ scale.T``."""
    d, k = scale.shape
    padded = jnp.pad(scale, ((0, 0), (0, max(d - k, 0))))
    factor = jnp.linalg.qr(padded.T, mode="r").T
    return factor * jnp.where(jnp.diagonal(factor) < 0, -1, 1)


@jax.custom_jvp
def psd_factor(covariance: Float[Array, "d d"]) -> Float[Array, "d d"]:
    """A lower triangular factor of a positive semi-definite matrix, singular ones included.

    Rows are scaled to unit variance first, so that coordinates in very different units keep their
    relative accuracy. The derivative is that of one of the factors, ``dL = (I - L L^+ / 2) dC L^{+T}``: right
    for whatever depends on ``L L^T`` alone, and finite where eigenvalues coincide or vanish.
    """
    variance = jnp.diagonal(covariance)
    positive = variance > 0
    sd = jnp.sqrt(jnp.where(positive, variance, 1.0))
    values, vectors = jnp.linalg.eigh(covariance / (sd[:, None] * sd[None, :]))
    root = vectors * jnp.sqrt(jnp.maximum(values, 0.0))
    return square_factor(jnp.where(positive, sd, 0.0)[:, None] * root)


@psd_factor.defjvp
def _psd_factor_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    factor = psd_factor(primals[0])
    rows = jnp.sqrt(jnp.sum(factor**2, axis=1))
    inverse = 1 / jnp.where(rows > 0, rows, 1.0)
    pseudo = jnp.linalg.pinv(factor * inverse[:, None]) * inverse
    outer = tangents[0] @ pseudo.T
    return factor, outer - 0.5 * factor @ (pseudo @ outer)


def _part(value: Any) -> Part:
    return value if callable(value) else jnp.asarray(value)


def _evaluate(part: Part, step: Step) -> Array:
    return jnp.asarray(part(step)) if callable(part) else part


def _diffuse_directions(diffuse: Any, dtype: Any) -> Array:
    """Columns that span the diffuse directions. A mask decides a shape, so it must be known."""
    if isinstance(diffuse, jax.core.Tracer) and diffuse.dtype == bool:
        raise TypeError(
            "`diffuse` of Gaussian decides how many states are diffuse, so it cannot be traced: give the "
            "mask as a tuple or a NumPy array."
        )
    if isinstance(diffuse, jax.core.Tracer) or np.asarray(diffuse).dtype != bool:
        return jnp.asarray(diffuse)
    mask = np.asarray(diffuse)
    return jnp.asarray(np.eye(len(mask))[:, mask], dtype if dtype.kind == "f" else float)


def _check_gaussian(law: Gaussian) -> None:
    if law.mean.ndim != 1:
        raise ValueError(f"`mean` of Gaussian must have shape (d,), got {law.mean.shape}.")
    d = law.mean.shape[0]
    require_finite("mean", law.mean, "Gaussian")
    if law.covariance is not None:
        _check_covariance(law.covariance, d, "Gaussian")
    elif law.scale.ndim not in (1, 2) or law.scale.shape[0] != d:
        raise ValueError(
            f"`scale` of Gaussian must have shape ({d},) or ({d}, k) to go with a mean of shape ({d},), "
            f"got {law.scale.shape}."
        )
    else:
        _check_scale(law.scale, "Gaussian")
    if law.diffuse is not None and (law.diffuse.ndim != 2 or law.diffuse.shape[0] != d):
        raise ValueError(
            f"`diffuse` of Gaussian must be a mask of shape ({d},) or directions of shape ({d}, q) to go "
            f"with a mean of shape ({d},), got {law.diffuse.shape}."
        )


def _check_affine(kernel: AffineGaussian) -> None:
    """Shapes that can be checked without a step."""
    if not callable(kernel.matrix) and jnp.ndim(kernel.matrix) != 2:
        raise ValueError(
            f"`matrix` of AffineGaussian must have shape (d_out, d_in), got {jnp.shape(kernel.matrix)}; "
            "for one that varies in time give a function of the step."
        )
    if callable(kernel.matrix):
        return
    require_finite("matrix", kernel.matrix, "AffineGaussian")
    d_out = kernel.matrix.shape[0]
    known = kernel.offset is not None and not callable(kernel.offset)
    if known and jnp.shape(kernel.offset) != () and jnp.shape(kernel.offset) != (d_out,):
        raise ValueError(
            f"`offset` of AffineGaussian must have shape ({d_out},) to go with a matrix of shape "
            f"{kernel.matrix.shape}, got {jnp.shape(kernel.offset)}."
        )
    if known:
        require_finite("offset", kernel.offset, "AffineGaussian")
    if kernel.covariance is not None:
        if not callable(kernel.covariance):
            _check_covariance(kernel.covariance, d_out, "AffineGaussian")
    elif not callable(kernel.scale):
        shape = jnp.shape(kernel.scale)
        if len(shape) not in (1, 2) or shape[0] != d_out:
            raise ValueError(
                f"`scale` of AffineGaussian must have shape ({d_out},) or ({d_out}, k) to go with a "
                f"matrix of shape {kernel.matrix.shape}, got {shape}."
            )
        _check_scale(kernel.scale, "AffineGaussian")


def _check_scale(scale: Array, owner: str) -> None:
    """Standard deviations are not negative; a factor's columns may have any sign."""
    require_finite("scale", scale, owner)
    if scale.ndim == 1:
        require_positive("scale", scale, owner)


def _check_covariance(covariance: Array, d_out: int, owner: str) -> None:
    if jnp.shape(covariance) != (d_out, d_out):
        raise ValueError(
            f"`covariance` of {owner} must have shape ({d_out}, {d_out}), got "
            f"{jnp.shape(covariance)}."
        )
    if isinstance(covariance, jax.core.Tracer):
        return
    require_finite("covariance", covariance, owner)
    value = np.asarray(covariance, float)
    size = np.abs(value).max(initial=0.0)
    tolerance = 100 * float(jnp.finfo(covariance.dtype).eps) * max(size, 1e-300)
    if not np.allclose(value, value.T, atol=tolerance):
        raise ValueError(f"`covariance` of {owner} is not symmetric; use (C + C.T) / 2.")
    if d_out and np.linalg.eigvalsh(value).min() < -d_out * tolerance:
        raise ValueError(
            f"`covariance` of {owner} is not positive semi-definite (smallest eigenvalue "
            f"{np.linalg.eigvalsh(value).min():.3g}); check its construction, or give a factor "
            "as `scale`."
        )
