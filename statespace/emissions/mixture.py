"""Mixtures of Gaussians as observations of each state."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float

from statespace.checks import require_shape
from statespace.conditionals.finite import check_probabilities, pattern, sparse_simplex
from statespace.emissions.base import NONE, Emission, pooled, require_channels, visited
from statespace.emissions.gaussian import Gaussian, normal
from statespace.model import Step
from statespace.parameters import as_array, parameter, replace

if TYPE_CHECKING:
    from numpyro.distributions import Distribution


def component_scale_support(value: Array) -> str:
    """Of standard deviations ``(K, C, m)`` or triangular factors ``(K, C, m, m)``."""
    return "lower_cholesky" if jnp.ndim(value) == 4 else "positive"


class Mixture(Emission):
    """``y ~ sum_c weights_kc N(mean_kc, L_kc L_kc^T)`` in state k.

    Args:
        weights: shape ``(K, C)``, rows summing to one; zero for a component that a state does not have.
        mean: shape ``(K, C, m)``, or ``(K, C)`` for a single channel.
        scale: ``(K, C, m)`` standard deviations of independent channels (``(K, C)`` for a single one), or
            ``(K, C, m, m)`` lower triangular factors of full covariances.

    Raises:
        ValueError: if shapes do not fit, weights do not sum to one, or a scale is not positive or no
            Cholesky factor.
    """

    possible: Any = eqx.field(static=True)
    weights: Float[Array, "K C"] = parameter(sparse_simplex, of_owner=True)
    mean: Float[Array, "..."] = parameter()
    scale: Float[Array, "..."] = parameter(component_scale_support)

    def __init__(self, weights: Any, mean: Any, scale: Any):
        self.weights, self.mean, self.scale = (as_array(a) for a in (weights, mean, scale))
        if self.weights.ndim != 2:
            raise ValueError(f"`weights` must have shape (K, C), got {self.weights.shape}.")
        check_probabilities("weights", self.weights)
        shape = self.weights.shape
        if self.mean.ndim not in (2, 3):
            raise ValueError(
                f"`mean` must have shape {shape} or {(*shape, 'm')}, got {self.mean.shape}."
            )
        require_shape("mean", self.mean, shape + self.mean.shape[2:])
        require_shape("scale", self.scale[..., 0] if self._full else self.scale, self.mean.shape)
        self.possible = pattern(self.weights)
        self._components()

    @property
    def _full(self) -> bool:
        return self.scale.ndim == 4

    def check(self, y: Any) -> None:
        """Refuse observations of another number of channels."""
        require_channels(self, y, 1 if self.mean.ndim == 2 else self.mean.shape[2])

    def __call__(self, state: Any, step: Step) -> Distribution:
        """The distribution of the observation in one state."""
        from numpyro.distributions import CategoricalProbs, MixtureSameFamily

        chosen = CategoricalProbs(self.weights[state], validate_args=False)
        law = normal(self.mean[state], self.scale[state], channels=self.mean.ndim - 2)
        return MixtureSameFamily(chosen, law)

    def log_probs(self, y: Float[Array, "T m"], steps: Step) -> Float[Array, "T K"]:
        """Log density of every observation in every state; NaN entries are integrated out."""
        return logsumexp(self._joint(y, steps), axis=2)

    def m_step(
        self,
        y: Float[Array, "S T m"],
        steps: Step,
        weights: Float[Array, "S T K"],
        *,
        floor: Any = 0.0,
        frozen: frozenset[str] = NONE,
    ) -> Mixture:
        """One step of EM over the components; see :meth:`Emission.m_step`."""
        y, weights = pooled(y, weights)
        shares = jax.nn.softmax(self._joint(y, steps), axis=2) * weights[:, :, None]
        flat = shares.reshape(1, len(y), -1)
        parts = self._components().m_step(y[None], steps, flat, floor=floor, frozen=frozen)
        new = {
            "mean": parts.mean.reshape(self.mean.shape),
            "scale": parts.scale.reshape(self.scale.shape),
        }
        if "weights" not in frozen:
            counts = jnp.sum(shares, axis=0)
            total = jnp.sum(counts, axis=1, keepdims=True)
            some = visited(total)
            new["weights"] = jnp.where(some, counts / jnp.where(some, total, 1), self.weights)
        return replace(self, new)

    def _components(self) -> Gaussian:
        """All components of all states as an emission of K C states."""
        flat = lambda a: a.reshape(-1, *a.shape[2:])
        return Gaussian(flat(self.mean), flat(self.scale))

    def _joint(self, y: Float[Array, "T m"], steps: Step) -> Float[Array, "T K C"]:
        """Log density of observation and component."""
        each = self._components().log_probs(y, steps).reshape(len(y), *self.weights.shape)
        positive = self.weights > 0
        logs = jnp.log(jnp.where(positive, self.weights, 1))
        return jnp.where(positive, each + logs, -jnp.inf)
