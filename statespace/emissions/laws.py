"""Laws of counts by their natural parameters, whose log densities are smooth in them.

Methods that follow slopes and curvatures of an observation's log density need this. NumPyro's own laws clip
the logit at zero, where automatic derivatives are then wrong, and take the logarithm of a rate that may have
underflowed. The module loads NumPyro: import it where a law is made.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.scipy.special import betainc, gammaln
from jaxtyping import Array, Float


class LogPoisson(dist.Poisson):
    """Counts of rate ``exp(log_rate)``.

    Args:
        log_rate: any shape.
    """

    pytree_data_fields = ("log_rate",)

    def __init__(self, log_rate: Float[Array, "*b"], *, validate_args: bool | None = None):
        self.log_rate = log_rate
        super().__init__(jnp.exp(log_rate), validate_args=validate_args)

    def log_prob(self, value: Any) -> Float[Array, "..."]:
        """``y log λ - λ - log y!``."""
        y = jnp.asarray(value, self.log_rate.dtype)
        return y * self.log_rate - jnp.exp(self.log_rate) - gammaln(y + 1)


class LogitBernoulli(dist.BernoulliLogits):
    """0 or 1, with log odds ``logits`` of 1."""

    def log_prob(self, value: Any) -> Float[Array, "..."]:
        """``y η - log(1 + exp η)``."""
        return jnp.asarray(value, self.logits.dtype) * self.logits - jax.nn.softplus(self.logits)

    def cdf(self, value: Any) -> Float[Array, "..."]:
        """Probability of at most this value."""
        return jnp.where(value < 0, 0.0, jnp.where(value < 1, jax.nn.sigmoid(-self.logits), 1.0))


class LogitBinomial(dist.BinomialLogits):
    """Number of successes in ``total_count`` trials, each with log odds ``logits``."""

    def log_prob(self, value: Any) -> Float[Array, "..."]:
        """``y η - n log(1 + exp η) + log (n choose y)``."""
        y = jnp.asarray(value, self.logits.dtype)
        n = jnp.asarray(self.total_count, self.logits.dtype)
        choices = gammaln(n + 1) - gammaln(y + 1) - gammaln(n - y + 1)
        return y * self.logits - n * jax.nn.softplus(self.logits) + choices

    def cdf(self, value: Any) -> Float[Array, "..."]:
        """Probability of at most this many successes: a regularised incomplete beta function."""
        n = jnp.asarray(self.total_count, self.logits.dtype)
        y = jnp.clip(jnp.floor(jnp.asarray(value, n.dtype)), 0, n)
        inside = betainc(jnp.maximum(n - y, 0.5), y + 1, jax.nn.sigmoid(-self.logits))
        return jnp.where(value < 0, 0.0, jnp.where(value >= n, 1.0, inside))
