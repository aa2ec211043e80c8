"""Stochastic volatility: returns whose variance is a hidden process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from statespace.checks import (
    optional_array,
    require_reverting,
    require_shape,
    require_support,
)
from statespace.conditionals.affine import Gaussian
from statespace.conditionals.reverting import Reverting
from statespace.model import Step
from statespace.parameters import parameter

if TYPE_CHECKING:
    from numpyro.distributions import Distribution


def _correlation(value: Array) -> Any:
    from numpyro.distributions import constraints

    return constraints.interval(-1.0, 1.0)


def _degrees(value: Array) -> Any:
    from numpyro.distributions import constraints

    return constraints.greater_than(2.0)


class StochasticVolatility(eqx.Module):
    """``y_t = exp(x_t / 2) e_t``, ``x_{t+1} = mean + persistence (x_t - mean) + scale u_t``.

    Taylor (1982); with leverage, ``corr(e_t, u_t) = leverage``, Harvey & Shephard (1996): the return of a day
    and the move of the log variance to the next day are correlated (negative for stocks, whose volatility
    rises after a loss). Given the return, the move is then normal with mean
    ``scale leverage y_t exp(-x_t / 2)`` and variance ``scale^2 (1 - leverage^2)``, so the transition reads
    the previous observation (``step.history``); where that is missing, it is the plain one. With heavy tails
    the shocks ``e_t`` follow Student's t with the given degrees of freedom, scaled to unit variance, so that
    ``exp(x_t)`` is the variance of the return in any case.

    State: the log variance, shape ``(1,)``, stationary at the start. The correlation over an interval
    ``dt`` is ``persistence^dt``; the variance of a return is not multiplied by ``dt``.

    Args:
        mean: of the log variance.
        persistence: correlation of the log variance over one unit of time, between 0 and 1.
        scale: standard deviation of its move in one unit of time, positive.
        leverage: correlation between -1 and 1; None for none.
        degrees: degrees of freedom, above 2; None for normal shocks.

    Raises:
        ValueError: if a parameter is no scalar or outside its support; if both leverage and degrees are
            given.

    Example:
        >>> model = ss.StochasticVolatility(mean=-1.0, persistence=0.95, scale=0.3)
        >>> ss.filter(model, returns, method=ss.ParticleFilter(particles=1000), key=key)

    References:
        Harvey & Shephard (1996), Journal of Business & Economic Statistics 14, 429–434; Omori, Chib,
        Shephard & Nakajima (2007), Journal of Econometrics 140, 425–449.
    """

    mean: Float[Array, ""] = parameter()
    persistence: Float[Array, ""] = parameter("unit_interval")
    scale: Float[Array, ""] = parameter("positive")
    leverage: Float[Array, ""] | None = parameter(
        _correlation, converter=optional_array, default=None
    )
    degrees: Float[Array, ""] | None = parameter(_degrees, converter=optional_array, default=None)

    def __check_init__(self) -> None:
        require_reverting(self)
        if self.leverage is not None and self.degrees is not None:
            raise ValueError(
                "StochasticVolatility takes `leverage` or `degrees`, not both: given a heavy-tailed return, "
                "the move of the log variance has no closed law."
            )
        if self.leverage is not None:
            require_shape("leverage", self.leverage, ())
            require_support("leverage", self.leverage, lambda r: abs(r) < 1, "lie between -1 and 1")
        if self.degrees is not None:
            require_shape("degrees", self.degrees, ())
            require_support(
                "degrees", self.degrees, lambda d: d > 2, "be above 2, for a variance to exist"
            )

    @property
    def state_names(self) -> tuple[str, ...]:
        """Name of the state."""
        return ("log_variance",)

    @property
    def initial(self) -> Gaussian:
        """The stationary law."""
        return self._plain().stationary

    @property
    def transition(self) -> Any:
        """Law of the next log variance."""
        return self._plain() if self.leverage is None else Leverage(self._plain(), self.leverage)

    @property
    def observation(self) -> Any:
        """Law of the return."""
        return Returns(self.degrees, lags=0 if self.leverage is None else 1)

    def _plain(self) -> Reverting:
        return Reverting(self.mean, self.persistence, self.scale)


class Leverage(eqx.Module):
    """The move of the log variance given the return of the moment before."""

    plain: Reverting
    correlation: Float[Array, ""]

    def __call__(self, state: Float[Array, " 1"], step: Step) -> Distribution:
        """The distribution of the next log variance; without a history the plain one."""
        from numpyro.distributions import Normal

        if step.history is None:
            return self.plain(state, step)
        here: Any = self.plain.at(step)
        y = step.history[0]
        seen = ~jnp.isnan(y)
        shock = jnp.where(seen, y, 0) * jnp.exp(-0.5 * state)
        mean = here.matrix[0] * state + here.offset + here.scale * self.correlation * shock
        rest = jnp.where(seen, jnp.sqrt((1 - self.correlation) * (1 + self.correlation)), 1)
        return Normal(mean, here.scale * rest).to_event(1)


class Returns(eqx.Module):
    """Returns of the variance ``exp(x)``.

    Args:
        degrees: of freedom; None for normal returns.
        lags: how many previous observations a step carries: 1 where the transition reads the last one.
    """

    degrees: Float[Array, ""] | None
    lags: int = eqx.field(static=True, default=0)

    def __call__(self, state: Float[Array, " 1"], step: Step) -> Distribution:
        """The distribution of a return."""
        from numpyro.distributions import Normal, StudentT

        deviation = jnp.exp(0.5 * state)
        if self.degrees is None:
            return Normal(0.0, deviation).to_event(1)
        unit = jnp.sqrt((self.degrees - 2) / self.degrees)
        return StudentT(self.degrees, 0.0, unit * deviation).to_event(1)
