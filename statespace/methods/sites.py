"""Gaussian sites: what one observation says of the state, as ``exp(shift' z - z' precision z / 2)``.

Where an observation looks at the state through linear predictors, one for each channel, there is a site for
each; any other observation has one site in the whole state. Laplace's method, variational inference and
expectation propagation are one rule. With ``f(z) = log p(y | z) - log site(z)`` and the law ``N(m, V)`` of
``z`` that the other factors and the site make, it takes the law tilted by ``exp(power f)``,

    g = E[f'],  M = E[f''] + power Cov[f'],   mean  m + power V g,   covariance  V + power V M V,

and changes the site so that the law would be the tilted one (for a power to 0: as it changes at first):

    precision - K,   shift + g - K mean,   K = M (I + power V M)^{-1}.

Power 1 is expectation propagation (Minka 2001), any other its generalisation (Minka 2004); power 0 is the
natural gradient of variational inference (Khan & Lin 2017), of which a single point at the mean makes
Newton's step, Laplace's method. All fixed points have ``g = 0`` and ``M = 0``. The evidence is that of the
chain with sites times ``E[exp(power f)]^{1 / power}``, or ``exp E[f]``, of each.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from statespace.densities import log_densities, log_density
from statespace.linearisation import Cubature, GaussHermite, SigmaPoints, lower_factor
from statespace.model import Step

_POINTS = 250  # of the default rule, at most
_ORDER = 20  # points of the default rule in one dimension


class Site(NamedTuple):
    """``exp(shift' z - z' precision z / 2)`` for each of c arguments z of k coordinates."""

    precision: Float[Array, "*T c k k"]
    shift: Float[Array, "*T c k"]

    def log_value(self, z: Float[Array, "c k"]) -> Float[Array, " c"]:
        """The site's logarithm."""
        square = jnp.einsum("ca,cab,cb->c", z, self.precision, z)
        return jnp.sum(self.shift * z, axis=-1) - 0.5 * square


class View(NamedTuple):
    """What an observation looks at: ``z = matrix x + offset``, c times."""

    matrix: Float[Array, "*T c k n"]
    offset: Float[Array, "*T c k"]

    def law(self, mean: Float[Array, " n"], covariance: Float[Array, "n n"]) -> Law:
        """The law of each argument, from that of the state."""
        return Law(
            self.matrix @ mean + self.offset,
            jnp.einsum("cai,ij,cbj->cab", self.matrix, covariance, self.matrix),
        )

    def potential(self, site: Site) -> tuple[Array, Array, Array]:
        """The sites as one potential of the state: precision ``(n, n)``, shift ``(n,)`` and constant."""
        precision = jnp.einsum("cai,cab,cbj->ij", self.matrix, site.precision, self.matrix)
        pull = site.shift - jnp.einsum("cab,cb->ca", site.precision, self.offset)
        shift = jnp.einsum("cai,ca->i", self.matrix, pull)
        return 0.5 * (precision + precision.T), shift, jnp.sum(site.log_value(self.offset))


class Law(NamedTuple):
    """Normal laws of the arguments."""

    mean: Float[Array, "*T c k"]
    covariance: Float[Array, "*T c k k"]


LogDensities = Callable[[Float[Array, "c k"]], Float[Array, " c"]]
"""Log densities of an observation, entry j a function of argument j alone."""


def view_of(observation: Any, step: Step, n: int, dtype: Any) -> View:
    """What an observation looks at: its linear predictors if it has any, else the state."""
    if hasattr(observation, "predictor"):
        matrix, offset = observation.predictor(step)
        return View(matrix[:, None].astype(dtype), offset[:, None].astype(dtype))
    return View(jnp.eye(n, dtype=dtype)[None], jnp.zeros((1, n), dtype))


def log_densities_of(observation: Any, step: Step, y: Float[Array, " m"]) -> LogDensities:
    """The log densities of one observation, missing entries left out."""
    if hasattr(observation, "predictor"):
        return lambda z: log_densities(observation.law_of(z[:, 0], step), y)
    return lambda z: log_density(observation(z[0], step), y)[None]


class SiteRule(eqx.Module):
    """How an observation is replaced by sites: see the module's text.

    Args:
        power: 1 for expectation propagation, 0 for its limit.
        points: rule of points for expectations; None for one that goes with the number of dimensions.
        at_mean: whether in place of expectations there are values at the mean.
    """

    power: float = eqx.field(static=True, default=0.0)
    points: SigmaPoints | None = eqx.field(static=True, default=None)
    at_mean: bool = eqx.field(static=True, default=False)

    def nodes(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Points ``(p, k)`` for ``N(0, I)`` and weights ``(p,)``."""
        if self.at_mean:
            return np.zeros((1, k)), np.ones(1)
        return (self.points or default_points(k)).points(k)[:2]

    def update(
        self, log_densities: LogDensities, law: Law, site: Site
    ) -> tuple[Site, Bool[Array, " c"]]:
        """The next sites, and which of them would have had a precision that is not positive.

        Such a one is replaced by the nearest that is, so that the chain stays a normal law whatever the
        others are; its shift is then the one that gives the tilted mean.
        """
        slope, curvature, weights, _ = self._values(log_densities, law, site)
        g = _mean(weights, slope)
        m = _mean(weights, curvature)
        if self.power:
            spread = _mean(weights, slope[..., :, None] * slope[..., None, :])
            m = m + self.power * (spread - g[..., :, None] * g[..., None, :])
        tilted = law.mean + self.power * jnp.einsum("cab,cb->ca", law.covariance, g)
        wanted = site.precision - (self._change(m, law.covariance) if self.power else m)
        precision = positive_part(0.5 * (wanted + jnp.swapaxes(wanted, -1, -2)))
        more = jnp.einsum("cab,cb->ca", precision - site.precision, tilted)
        new = Site(precision, site.shift + g + more)
        # where an expectation is not finite the site stays as it was
        fine = jnp.isfinite(new.shift).all(-1) & jnp.isfinite(new.precision).all((-1, -2))
        kept = Site(
            jnp.where(fine[:, None, None], new.precision, site.precision),
            jnp.where(fine[:, None], new.shift, site.shift),
        )
        size = jnp.abs(precision).max((-1, -2)) + jnp.abs(wanted).max((-1, -2))
        bent = jnp.abs(precision - wanted).max((-1, -2)) > 1e-4 * size
        return kept, bent | ~fine

    def surplus(self, log_densities: LogDensities, law: Law, site: Site) -> Float[Array, " c"]:
        """What each argument adds to the log evidence of the chain with sites."""
        return self._values(log_densities, law, site)[-1]

    def _values(self, log_densities: LogDensities, law: Law, site: Site) -> tuple:
        """Slope and curvature of f at the points, their tilted weights, and the log of the tilt's mean."""
        standard, w = self.nodes(law.mean.shape[-1])
        dtype = law.mean.dtype
        z, weights = law.mean[None], jnp.asarray(w, dtype)[:, None]
        if standard.any():
            factor = jax.vmap(lower_factor)(law.covariance)
            z = z + jnp.einsum("pb,cab->pca", jnp.asarray(standard, dtype), factor)
        f = lambda z: log_densities(z) - site.log_value(z)
        value, slope, curvature = jax.vmap(lambda z: derivatives(f, z))(z)
        if not self.power:
            return slope, curvature, weights, jnp.sum(weights * value, axis=0)
        scaled = self.power * value
        top = jax.lax.stop_gradient(jnp.max(scaled, axis=0))
        tilted = weights * jnp.exp(scaled - top)
        total = jnp.sum(tilted, axis=0)
        return slope, curvature, tilted / total, (top + jnp.log(total)) / self.power

    def _change(self, m: Float[Array, "c k k"], covariance: Float[Array, "c k k"]) -> Array:
        """``M (I + power V M)^{-1}``."""
        k = m.shape[-1]
        if k == 1:
            return m / (1 + self.power * covariance * m)
        inner = jnp.eye(k, dtype=m.dtype) + self.power * jnp.einsum("cab,cbd->cad", m, covariance)
        return jnp.linalg.solve(inner, m)


def default_points(k: int) -> SigmaPoints:
    """Gauss–Hermite with as many points as are cheap; for many dimensions cubature."""
    order = min(_ORDER, int(_POINTS ** (1 / k)))
    return GaussHermite(order) if order >= 3 else Cubature()


def derivatives(f: LogDensities, z: Float[Array, "c k"]) -> tuple[Array, Array, Array]:
    """Value ``(c,)``, gradient ``(c, k)`` and Hessian ``(c, k, k)`` of each entry in its own argument."""
    slope = jax.grad(lambda z: jnp.sum(f(z)))
    along = lambda direction: jax.jvp(slope, (z,), (jnp.broadcast_to(direction, z.shape),))
    gradient, columns = jax.vmap(along, out_axes=(None, -1))(jnp.eye(z.shape[1], dtype=z.dtype))
    return f(z), gradient, columns


def _mean(weights: Float[Array, "p c"], values: Float[Array, "p c *k"]) -> Float[Array, "c *k"]:
    """The weighted mean over points; one without weight counts for nothing, also where it is not finite."""
    w = weights.reshape(weights.shape + (1,) * (values.ndim - 2))
    return jnp.sum(jnp.where(w != 0, w * values, 0), axis=0)


@jax.custom_jvp
def positive_part(matrices: Float[Array, "c k k"]) -> Float[Array, "c k k"]:
    """Symmetric matrices with their negative eigenvalues set to zero.

    The derivative is that of a function of a symmetric matrix (Daleckii & Krein 1965), which is finite where
    eigenvalues coincide.
    """
    if matrices.shape[-1] == 1:
        return jnp.maximum(matrices, 0)
    values, vectors = jnp.linalg.eigh(matrices)
    return jnp.einsum("cik,ck,cjk->cij", vectors, jnp.maximum(values, 0), vectors)


@positive_part.defjvp
def _positive_part_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    (matrices,), (d,) = primals, tangents
    out = positive_part(matrices)
    if matrices.shape[-1] == 1:
        return out, jnp.where(matrices > 0, d, 0)
    values, vectors = jnp.linalg.eigh(matrices)
    kept = jnp.maximum(values, 0)
    both = kept[:, :, None] + kept[:, None, :]
    size = jnp.abs(values)[:, :, None] + jnp.abs(values)[:, None, :]
    share = jnp.where(size > 0, both / jnp.where(size > 0, size, 1), 0)
    inner = jnp.einsum("cik,cij,cjl->ckl", vectors, d, vectors) * share
    return out, jnp.einsum("cik,ckl,cjl->cij", vectors, inner, vectors)
