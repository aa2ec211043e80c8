"""Basis functions over lags: how a recording's own past enters a generalised linear model."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


class Basis(eqx.Module):
    """B functions of the lags 1 … L. Subclass it with a property ``functions`` to make one of your own.

    Attributes:
        lags: L, how many bins into the past the functions reach.
    """

    lags: int = eqx.field(static=True)

    def __check_init__(self) -> None:
        if self.lags < 1:
            raise ValueError(
                f"`lags` of {type(self).__name__} must be at least 1, got {self.lags}."
            )

    @property
    def functions(self) -> Float[np.ndarray, "L B"]:
        """Each function at lags 1 … L."""
        raise NotImplementedError

    @property
    def count(self) -> int:
        """The number B of functions."""
        return self.functions.shape[1]

    def filters(self, weights: Float[Array, "*n B"]) -> Float[Array, "*n L"]:
        """Filters over the lags 1 … L from their weights on the functions."""
        return weights @ jnp.asarray(self.functions.T, weights.dtype)

    def features(self, y: Float[Array, "T m"]) -> Float[Array, "T m B"]:
        """Of each channel's past, its product with each function: past bins only.

        Bins before the beginning, and missing ones, count as zero: as bins without a spike.
        """
        past = jnp.pad(jnp.nan_to_num(y), ((self.lags, 0), (0, 0)))[:-1]
        kernel = jnp.asarray(
            self.functions[::-1].T, y.dtype
        )  # a convolution slides, it does not flip
        out = jax.lax.conv(past.T[:, None], kernel[:, None], window_strides=(1,), padding="VALID")
        return jnp.transpose(out, (2, 0, 1))

    def newest(self, history: Float[Array, "p m"]) -> Float[Array, "m B"]:
        """The features of one bin from the bins before it, newest first; NaN counts as zero."""
        past = jnp.nan_to_num(history[: self.lags])
        return past.T @ jnp.asarray(self.functions[: len(past)], history.dtype)


class Exponential(Basis):
    """Decaying exponentials ``exp(-k / decay)`` over lags ``k = 1 … L``, each summing to one.

    Args:
        lags: L, in bins.
        decays: time constants in bins, one for each function.

    Raises:
        ValueError: if a decay is not positive, or there is no lag.

    References:
        Li et al. (2024), One-hot generalized linear model for switching brain state discovery, ICLR, with one
        function of decay 1 over 5 lags.
    """

    decays: tuple[float, ...] = eqx.field(
        static=True, default=(1.0,), converter=lambda d: tuple(map(float, np.atleast_1d(d)))
    )

    def __check_init__(self) -> None:
        if not self.decays or min(self.decays) <= 0:
            raise ValueError(f"`decays` of Exponential must be positive, got {self.decays}.")

    @property
    def functions(self) -> Float[np.ndarray, "L B"]:
        """Each function at lags 1 … L."""
        k = np.arange(1, self.lags + 1)[:, None]
        return _normalised(np.exp(-(k - 1) / np.asarray(self.decays)))


class RaisedCosine(Basis):
    """Raised cosine bumps, evenly spaced in the logarithm of the lag, each summing to one.

    Narrow bumps at short lags and wide ones at long lags: fine where the past matters most.

    Args:
        lags: L, in bins.
        bumps: the number B of functions.
        offset: added to the lag before its logarithm is taken, in bins: the larger, the more even the bumps.

    Raises:
        ValueError: if there is no lag or no bump, more bumps than lags, or the offset is not positive.

    References:
        Pillow et al. (2008), Spatio-temporal correlations and visual signalling in a complete neuronal
        population, Nature 454, 995-999, supplement.
    """

    bumps: int = eqx.field(static=True, default=4)
    offset: float = eqx.field(static=True, default=1.0)

    def __check_init__(self) -> None:
        if not 1 <= self.bumps <= self.lags:
            raise ValueError(
                f"`bumps` of RaisedCosine must lie between 1 and the number of lags {self.lags}, got "
                f"{self.bumps}."
            )
        if self.offset <= 0:
            raise ValueError(f"`offset` of RaisedCosine must be positive, got {self.offset}.")

    @property
    def functions(self) -> Float[np.ndarray, "L B"]:
        """Each function at lags 1 … L."""
        place = np.log(np.arange(1, self.lags + 1) + self.offset)
        # centres from the first lag to where the last bump ends at the last lag
        spacing = (place[-1] - place[0]) / (self.bumps + 1)
        centres = place[0] + spacing * np.arange(self.bumps)
        phase = (
            (place[:, None] - centres) * np.pi / (2 * spacing) if spacing else 0 * place[:, None]
        )
        return _normalised((1 + np.cos(np.clip(phase, -np.pi, np.pi))) / 2)


def _normalised(functions: np.ndarray) -> np.ndarray:
    return functions / functions.sum(axis=0)
