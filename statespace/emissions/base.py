"""What all emissions are: laws of the observation, one for each of finitely many states."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from statespace.model import Step
from statespace.parameters import parameters

if TYPE_CHECKING:
    from numpyro.distributions import Distribution

NONE: frozenset[str] = frozenset()


class Emission(eqx.Module):
    """An observation conditional of a finite state, evaluated at all states and all moments at once.

    The array fields of a subclass are its parameters, with a leading axis of the K states. An observation of
    a single channel may leave out the axis of channels. Missing entries (NaN) are integrated out; a moment
    at which nothing was observed has log density 0 in every state.
    """

    @property
    def states(self) -> int:
        """Number K of states."""
        return max(len(value) for value in parameters(self).values())

    @property
    def lags(self) -> int:
        """How many past observations the law depends on."""
        return 0

    def check(self, y: Any) -> None:
        """Refuse observations that no state can make, before anything is traced.

        Raises:
            ValueError: naming the first such entry.
        """

    def __call__(self, state: Any, step: Step) -> Distribution:
        """The distribution of the observation in one state."""
        raise NotImplementedError

    def log_probs(self, y: Float[Array, "T m"], steps: Step) -> Float[Array, "T K"]:
        """Log density of every observation in every state.

        Args:
            y: observations, NaN where missing.
            steps: the steps of the T moments, stacked.
        """
        raise NotImplementedError

    def m_step(
        self,
        y: Float[Array, "S T m"],
        steps: Step,
        weights: Float[Array, "S T K"],
        *,
        floor: Any = 0.0,
        frozen: frozenset[str] = NONE,
    ) -> Emission:
        """The emission that maximises the sum of ``weights * log_probs``, or raises it.

        A state whose weights vanish keeps its parameters.

        Args:
            y: observations of S recordings, NaN where missing and in the padding.
            steps: their steps, stacked.
            weights: nonnegative; zero in the padding.
            floor: the least variance that is learned, or eigenvalue of a covariance.
            frozen: names of fields that stay at their values.
        """
        raise NotImplementedError


class IndependentChannels(Emission):
    """Channels that are independent given the state: a missing one is left out of a sum."""

    def law(self, states: Any) -> Distribution:
        """The distributions of the channels: ``(K, m)`` of them for all states, ``(m,)`` for one."""
        raise NotImplementedError

    def __call__(self, state: Any, step: Step) -> Distribution:
        """The distribution of the observation in one state."""
        law = self.law(state)
        return law.to_event(len(law.batch_shape))

    def log_probs(self, y: Float[Array, "T m"], steps: Step) -> Float[Array, "T K"]:
        """Log density of every observation in every state; NaN entries are left out."""
        seen = ~jnp.isnan(y)
        law = self.law(slice(None))
        value = jnp.where(seen, y, self.possible_value(y.dtype))[:, None]
        if len(law.batch_shape) == 1:
            value, each = value[..., 0], law.log_prob(value[..., 0])[..., None]
        else:
            each = law.log_prob(value)
        return jnp.sum(jnp.where(seen[:, None], each, 0), axis=-1)

    def possible_value(self, dtype: Any) -> Float[Array, ""]:
        """A value with a finite density, to stand where none was observed."""
        return jnp.zeros((), dtype)


def by_channel(value: Float[Array, "..."]) -> Float[Array, "K m ..."]:
    """A parameter ``(K,)`` or ``(K, m, ...)`` with the axis of channels."""
    return value[:, None] if value.ndim == 1 else value


def pooled(
    y: Float[Array, "S T m"], weights: Float[Array, "S T K"]
) -> tuple[Float[Array, "N m"], Float[Array, "N K"]]:
    """All moments of all recordings, one after the other."""
    return y.reshape(-1, y.shape[-1]), weights.reshape(-1, weights.shape[-1])


def weighted_mean(
    y: Float[Array, "N m"], weights: Float[Array, "N K"], old: Float[Array, "K m"]
) -> Float[Array, "K m"]:
    """Mean of what was observed of each channel in each state; where that is nothing, the old value."""
    seen = ~jnp.isnan(y)
    total = weights.T @ jnp.where(seen, y, 0)
    count = weights.T @ seen.astype(y.dtype)
    some = visited(count)
    return jnp.where(some, total / jnp.where(some, count, 1), old)


def visited(count: Float[Array, "*b"]) -> Any:
    """Whether the weights of a state sum to more than rounding leaves of nothing."""
    return count > jnp.finfo(count.dtype).eps


def require_channels(emission: Any, y: Any, channels: int) -> None:
    """Refuse observations of another number of channels.

    Raises:
        ValueError: naming both.
    """
    if y.shape[-1] != channels:
        raise ValueError(
            f"the emission {type(emission).__name__} is of {channels} "
            f"channel{'s' if channels != 1 else ''}, but `y` has {y.shape[-1]}: its parameters must have "
            f"shape (K, {y.shape[-1]}, ...)."
        )


def require_values(name: str, y: Any, inside: Any, description: str) -> None:
    """Refuse values outside of an emission's support; NaN passes, and so does what is traced.

    Args:
        name: of the emission.
        y: observations.
        inside: function of them that says which are possible.
        description: what they must be.

    Raises:
        ValueError: naming the first entry that is not possible.
    """
    if isinstance(y, jax.core.Tracer):
        return
    values = np.asarray(y)
    bad = np.argwhere(~(np.isnan(values) | inside(values)))
    if len(bad):
        first = tuple(bad[0].tolist())
        raise ValueError(
            f"observations of {name} must be {description} (NaN where missing), but y"
            f"[{', '.join(map(str, first))}] is {values[first]:g} ({len(bad)} such entries)."
        )


def whole(values: np.ndarray) -> np.ndarray:
    """Which values are integers."""
    return values == np.round(values)


def lagged(y: Float[Array, "T m"], lags: int) -> Float[Array, "T p m"]:
    """The p rows before each row, newest first; NaN before the beginning."""
    past = [
        jnp.pad(y, ((j, 0), (0, 0)), constant_values=jnp.nan)[: len(y)] for j in range(1, lags + 1)
    ]
    return jnp.stack(past, axis=1)
