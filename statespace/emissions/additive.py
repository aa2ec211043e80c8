"""Observations to which each of several independent chains adds its share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from statespace.checks import require_finite, require_positive, require_scale
from statespace.emissions.base import NONE, Emission, pooled, require_channels, visited
from statespace.emissions.counts import Poisson
from statespace.emissions.gaussian import log_normal, normal
from statespace.emissions.regression import regress
from statespace.model import Step
from statespace.parameters import as_array, parameter, replace

if TYPE_CHECKING:
    from numpyro.distributions import Distribution


class _Additive(Emission):
    """Shares ``(K_i,)`` or ``(K_i, m)`` of several chains; a state is a tuple of one state of each."""

    @property
    def shares(self) -> tuple[Array, ...]:
        """What each chain adds in each of its states."""
        raise NotImplementedError

    @property
    def states(self) -> int:
        """Number of tuples of states."""
        return int(np.prod([len(share) for share in self.shares]))

    @property
    def total(self) -> Float[Array, "K *m"]:
        """The sum of the shares in each tuple of states."""
        return jnp.asarray(self._design()) @ jnp.concatenate(self.shares)

    @property
    def _channels(self) -> int:
        return 1 if self.shares[0].ndim == 1 else self.shares[0].shape[1]

    def check(self, y: Any) -> None:
        """Refuse observations of another number of channels."""
        require_channels(self, y, self._channels)

    def _design(self) -> np.ndarray:
        """Which states make up each tuple, ``(K, sum K_i)``, the last chain running fastest."""
        sizes = [len(share) for share in self.shares]
        index = np.indices(sizes).reshape(len(sizes), -1)
        blocks = [np.eye(n)[states] for n, states in zip(sizes, index, strict=True)]
        return np.concatenate(blocks, axis=1)

    def _apart(self, stacked: Float[Array, "d m"]) -> tuple[Array, ...]:
        """The shares of the chains, from all of them one below the other."""
        ends = np.cumsum([len(share) for share in self.shares])[:-1]
        parts = jnp.split(stacked, ends)
        return tuple(p.reshape(s.shape) for p, s in zip(parts, self.shares, strict=True))

    def _movable(self, field: str, frozen: frozenset[str]) -> np.ndarray:
        """Which rows of the stacked shares are not frozen."""
        return np.concatenate(
            [
                np.full(len(share), not {field, f"{field}.{i}"} & frozen)
                for i, share in enumerate(self.shares)
            ]
        )


class AdditiveGaussian(_Additive):
    """``y ~ N(sum_i effects_i[z_i], L L^T)``: each chain adds to the mean.

    A constant may be moved from one chain's effects to another's: only their sums are determined.

    Args:
        effects: for each chain shape ``(K_i, m)``, or ``(K_i,)`` for a single channel.
        scale: ``(m,)`` standard deviations (a number for a single channel), or a ``(m, m)`` lower
            triangular factor of the covariance.

    Raises:
        ValueError: if shapes do not fit, or the scale is not positive or no Cholesky factor.

    References:
        Ghahramani & Jordan (1997), Factorial hidden Markov models, equation 4.
    """

    effects: tuple[Float[Array, "..."], ...] = parameter(converter=None)
    scale: Float[Array, "..."] = parameter(
        lambda value: "lower_cholesky" if jnp.ndim(value) == 2 else "positive"
    )

    def __init__(self, effects: Sequence[Any], scale: Any):
        self.effects = _chains("effects", effects)
        self.scale = as_array(scale)
        if self.scale.ndim == 0 and self._channels == 1:
            require_positive("scale", self.scale, zero=False)
        else:
            require_scale("scale", self.scale, self._channels)

    @property
    def shares(self) -> tuple[Array, ...]:
        """What each chain adds in each of its states."""
        return self.effects

    def __call__(self, state: Any, step: Step) -> Distribution:
        """The distribution of the observation in one tuple of states."""
        mean = self.total[state]
        scale = self.scale if mean.ndim else jnp.ravel(self.scale)[0]
        return normal(mean, scale, channels=mean.ndim)

    def log_probs(self, y: Float[Array, "T m"], steps: Step) -> Float[Array, "T K"]:
        """Log density of every observation in every tuple of states; NaN entries are integrated out."""
        return log_normal(y, self.total.reshape(1, self.states, -1), self._scale())

    def m_step(
        self,
        y: Float[Array, "S T m"],
        steps: Step,
        weights: Float[Array, "S T K"],
        *,
        floor: Any = 0.0,
        frozen: frozenset[str] = NONE,
    ) -> AdditiveGaussian:
        """Regression on the indicators of all chains' states; see :meth:`Emission.m_step`."""
        y, weights = pooled(y, weights)
        design = jnp.asarray(self._design(), y.dtype)
        coefficients, scale = regress(
            jnp.repeat(y, self.states, axis=0),
            jnp.tile(design, (len(y), 1)),
            weights.reshape(-1, 1),
            jnp.concatenate(self.effects).reshape(1, design.shape[1], -1).swapaxes(1, 2),
            self._scale(),
            floor=floor,
            movable=self._movable("effects", frozen),
            learn_scale="scale" not in frozen,
        )
        effects = self._apart(coefficients[0].T)
        new = {f"effects.{i}": value for i, value in enumerate(effects)}
        return replace(self, new | {"scale": scale.reshape(self.scale.shape)})

    def _scale(self) -> Float[Array, "1 *m"]:
        return self.scale[None] if self.scale.ndim else self.scale.reshape(1, 1)


class AdditivePoisson(_Additive):
    """Counts that are sums of independent counts, one of each chain: of mean ``sum_i rates_i[z_i]``.

    Args:
        rates: expected counts of each chain, shape ``(K_i, m)``, or ``(K_i,)`` for a single channel.

    Raises:
        ValueError: if shapes do not fit, or a rate is not positive.
    """

    rates: tuple[Float[Array, "..."], ...] = parameter("positive", converter=None)

    def __init__(self, rates: Sequence[Any]):
        self.rates = _chains("rates", rates)
        for i, rate in enumerate(self.rates):
            require_positive(f"rates[{i}]", rate, zero=False)

    @property
    def shares(self) -> tuple[Array, ...]:
        """What each chain adds in each of its states."""
        return self.rates

    def check(self, y: Any) -> None:
        """Refuse what is no count."""
        self._all().check(y)

    def __call__(self, state: Any, step: Step) -> Distribution:
        """The distribution of the observation in one tuple of states."""
        return self._all()(state, step)

    def log_probs(self, y: Float[Array, "T m"], steps: Step) -> Float[Array, "T K"]:
        """Log probability of every observation in every tuple of states; NaN entries are left out."""
        return self._all().log_probs(y, steps)

    def m_step(
        self,
        y: Float[Array, "S T m"],
        steps: Step,
        weights: Float[Array, "S T K"],
        *,
        floor: Any = 0.0,
        frozen: frozenset[str] = NONE,
    ) -> AdditivePoisson:
        """One step of EM over the chains' own counts, of which only the sums are seen."""
        y, weights = pooled(y, weights)
        seen = ~jnp.isnan(y)
        design = jnp.asarray(self._design(), y.dtype)
        rates = jnp.concatenate(self.rates).reshape(design.shape[1], -1)
        # Of each tuple's counts a chain has its share of the tuple's rate.
        events = (weights.T @ jnp.where(seen, y, 0)) / (design @ rates)
        time = design.T @ (weights.T @ seen.astype(y.dtype))
        some = visited(time) & self._movable("rates", frozen)[:, None]
        grown = rates * (design.T @ events) / jnp.where(some, time, 1)
        tiny = jnp.finfo(y.dtype).eps
        new = self._apart(jnp.where(some, jnp.maximum(grown, tiny), rates))
        return replace(self, {f"rates.{i}": value for i, value in enumerate(new)})

    def _all(self) -> Poisson:
        """The same as an emission of tuples of states."""
        return Poisson(self.total)


def _chains(name: str, values: Sequence[Any]) -> tuple[Array, ...]:
    """Shares of the chains as arrays.

    Raises:
        ValueError: if there is none, or they are not of the same channels.
    """
    arrays = tuple(as_array(value) for value in values)
    if not arrays:
        raise ValueError(f"`{name}` is empty: give an array for each chain.")
    for i, array in enumerate(arrays):
        if array.ndim not in (1, 2) or array.shape[1:] != arrays[0].shape[1:]:
            raise ValueError(
                f"`{name}[{i}]` must have shape (K_{i},) or (K_{i}, m), of the same channels for all chains, "
                f"got {array.shape}; `{name}[0]` has {arrays[0].shape}."
            )
        require_finite(f"{name}[{i}]", array)
    return arrays
