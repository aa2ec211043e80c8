"""The law of a finite state given the data."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from statespace.arviz import require_arviz, time_coordinate, to_inference_data
from statespace.chains import finite
from statespace.conditionals import aggregates
from statespace.labels import Labels, channel_names, moments
from statespace.probabilities import probabilities


class FinitePosterior(eqx.Module):
    """The law of a finite state given the data, K probabilities at each moment.

    Attributes:
        probs: ``P(z_t = k | data)``, shape ``(T, K)``.
        times: shape ``(T,)``.
        log_likelihood: log density of all observations; minus infinity where the model cannot produce them
            (a moment that is impossible is then passed over).
        pointwise: log density of the observations at each moment given those before, shape ``(T,)``.
        filtered: ``P(z_t = k | y_0 … y_t)``, shape ``(T, K)``.
        predicted: ``P(z_t = k | y_0 … y_{t-1})``, shape ``(T, K)``.
        ratios: smoothed over predicted probabilities, shape ``(T, K)``; None for a filtered posterior.
        y: the observations, shape ``(T, m)``, NaN where missing.
        chain: the finite chain behind it.
        parts: where a state stands for several states of the chain, the posterior of those; else None.
        kind: "filtered" (given the data up to each moment) or "smoothed" (given all data).
        labels: names of moments and channels, or None.
        state_names: names of the K states, or None.
        aggregate: then of which state each state of the chain is a part; else None.
        factors: how many states each of several independent chains has, where the states are products.
        parallel: whether its arithmetic is an associative scan; None for by platform.
    """

    probs: Float[Array, "T K"]
    times: Float[Array, " T"]
    log_likelihood: Float[Array, ""]
    pointwise: Float[Array, " T"]
    filtered: Float[Array, "T K"]
    predicted: Float[Array, "T K"]
    ratios: Float[Array, "T K"] | None
    y: Float[Array, "T m"]
    chain: finite.Chain
    parts: FinitePosterior | None = None
    kind: Literal["filtered", "smoothed"] = eqx.field(static=True, default="smoothed")
    labels: Labels | None = eqx.field(static=True, default=None)
    state_names: tuple[str, ...] | None = eqx.field(static=True, default=None)
    aggregate: tuple[int, ...] | None = eqx.field(static=True, default=None)
    factors: tuple[int, ...] | None = eqx.field(static=True, default=None)
    parallel: bool | None = eqx.field(static=True, default=None)

    def __len__(self) -> int:
        return self.probs.shape[0]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the states; 0, 1 … where the model gives none."""
        if self.state_names is not None:
            return self.state_names
        return tuple(str(k) for k in range(self.probs.shape[1]))

    @property
    def channel_names(self) -> tuple[str, ...]:
        """Names of the observed channels; y0, y1 … (y for a single one) where the data has none."""
        return channel_names(self.labels, self.y.shape[1])

    @property
    def mean(self) -> Float[Array, "T K"]:
        """Expected indicator of each state: its probability."""
        return self.probs

    @property
    def std(self) -> Float[Array, "T K"]:
        """Standard deviation of each state's indicator."""
        return jnp.sqrt(self.probs * (1 - self.probs))

    def quantile(self, q: Any) -> Int[Array, "*Q T"]:
        """Quantiles of the state's number: the least state whose cumulative probability reaches ``q``.

        Means something where the states are ordered. Shape ``(T,)``, or ``(Q, T)`` for Q probabilities.

        Raises:
            ValueError: if a probability is not inside (0, 1).
        """
        levels = probabilities("q", q)
        below = (
            jnp.cumsum(self.probs, axis=1) < jnp.asarray(levels, self.probs.dtype)[..., None, None]
        )
        return jnp.minimum(below.sum(axis=-1), self.probs.shape[1] - 1)

    @property
    def pairs(self) -> Float[Array, "T-1 K K"]:
        """``P(z_t = j, z_{t+1} = k | data)``.

        Raises:
            ValueError: if the posterior is a filtered one, which has no law of pairs.
        """
        if self.ratios is None:
            raise ValueError("a filtered posterior has no pairs of states: use `smooth`.")
        if self.parts is not None:
            return aggregates.fold_pairs(self.aggregate, self.parts.pairs)
        return _pairs(self.filtered, self.chain.transitions, self.ratios)

    @property
    def most_likely(self) -> Int[Array, " T"]:
        """The most likely path (Viterbi); of a filtered posterior the best state of each moment.

        Where states stand for several states of the chain, it is the most likely path of those.
        """
        if self.kind == "filtered":
            return jnp.argmax(self.probs, axis=1)
        return aggregates.whole(self.aggregate, _viterbi(self.chain))

    def sample(self, key: PRNGKeyArray, draws: int = 1) -> Int[Array, "draws T"]:
        """Draws of the states.

        Of a smoothed posterior these are joint paths; of a filtered one, which is a law for each moment, they
        are independent from moment to moment.

        Args:
            key: a PRNG key.
            draws: how many.
        """
        if self.kind == "filtered":
            return jax.random.categorical(key, jnp.log(self.probs), shape=(draws, len(self)))
        paths = _paths(self.chain, key, draws, self.parallel)
        return aggregates.whole(self.aggregate, paths)

    def fold(self, aggregate: Sequence[int], names: Sequence[str] | None = None) -> FinitePosterior:
        """The posterior of fewer states, each of which stands for several of these.

        Args:
            aggregate: for each of the K states the new one, 0, 1, …, that it is a part of.
            names: of the new states.

        Raises:
            ValueError: if there is not one new state for each state, or a new one has no part.
        """
        merged = tuple(int(k) for k in aggregate)
        states = self.probs.shape[-1]
        if len(merged) != states or set(merged) != set(range(max(merged) + 1)):
            raise ValueError(
                f"`aggregate` must give each of the {states} states the number of a new one, and use all "
                f"numbers from 0, got {merged}."
            )
        own = self
        if self.parts is not None and self.aggregate is not None:
            own, merged = self.parts, tuple(merged[k] for k in self.aggregate)
        probs, filtered, predicted = (
            aggregates.fold(merged, p) for p in (own.probs, own.filtered, own.predicted)
        )
        there = predicted > 0
        return dataclasses.replace(
            own,
            probs=probs,
            filtered=filtered,
            predicted=predicted,
            ratios=None
            if own.ratios is None
            else jnp.where(there, probs / jnp.where(there, predicted, 1), 0),
            parts=own,
            labels=self.labels,
            state_names=None if names is None else tuple(names),
            aggregate=merged,
            factors=None,
        )

    def factor(self, index: int) -> FinitePosterior:
        """The posterior of one of several independent chains, of which the states are products.

        Args:
            index: which chain.

        Raises:
            ValueError: if the states are no products, or there is no such chain.
        """
        if self.factors is None or not -len(self.factors) <= index < len(self.factors):
            count = "is a single one" if self.factors is None else f"has {len(self.factors)}"
            raise ValueError(f"there is no chain {index}: the model {count}.")
        return self.fold(np.indices(self.factors)[index].ravel())

    def labelled(self, labels: Labels | None) -> FinitePosterior:
        """The same with names of moments and channels."""
        return dataclasses.replace(self, labels=labels)

    def cut(self, size: int) -> FinitePosterior:
        """The first moments of a padded recording."""
        moves = self.chain.transitions
        chain = self.chain._replace(
            transitions=moves if len(moves) == 1 else moves[: size - 1],
            potentials=self.chain.potentials[:size],
        )
        parts = {
            name: None if value is None else value[:size]
            for name in ("probs", "times", "pointwise", "filtered", "predicted", "ratios", "y")
            for value in [getattr(self, name)]
        }
        return dataclasses.replace(
            self,
            **parts,
            chain=chain,
            log_likelihood=parts["pointwise"].sum(),
            parts=None if self.parts is None else self.parts.cut(size),
        )

    def to_pandas(self) -> Any:
        """A DataFrame over the moments: the probability of each state, and the most likely one."""
        import pandas as pd

        columns: dict[str, Any] = {
            name: np.asarray(self.probs)[:, k] for k, name in enumerate(self.names)
        }
        columns["most_likely"] = np.asarray(self.names)[np.asarray(self.most_likely)]
        return pd.DataFrame(columns, index=moments(self.times, self.labels))

    def to_arviz(self, key: PRNGKeyArray | None = None, draws: int = 500) -> Any:
        """For ArviZ: InferenceData (ArviZ < 1) or a DataTree (ArviZ >= 1).

        Groups: ``posterior`` with draws of ``states`` (chain, draw, time); ``observed_data`` with ``y``
        (time, channel); ``log_likelihood`` with the one-step predictive log density of ``y`` (time);
        ``constant_data`` with ``probs`` (time, state).

        Args:
            key: a PRNG key for the draws; default: a fixed one.
            draws: how many.

        Raises:
            ImportError: if ArviZ is not installed.
        """
        require_arviz()
        key = jax.random.key(0) if key is None else key
        groups = {
            "posterior": {"states": (("chain", "draw", "time"), self.sample(key, draws)[None])},
            "log_likelihood": {"y": (("time",), self.pointwise)},
            "observed_data": {"y": (("time", "channel"), self.y)},
            "constant_data": {"probs": (("time", "state"), self.probs)},
        }
        coords = {
            "time": time_coordinate(self.times, self.labels),
            "state": list(self.names),
            "channel": list(self.channel_names),
        }
        return to_inference_data(groups, coords)


@eqx.filter_jit
def _viterbi(chain: finite.Chain) -> Array:
    return finite.viterbi(chain)[0]


@eqx.filter_jit
def _paths(chain: finite.Chain, key: PRNGKeyArray, draws: int, parallel: bool | None) -> Array:
    return finite.sample(chain, key, draws, parallel=parallel)


@jax.jit
def _pairs(filtered: Array, transitions: Array, ratios: Array) -> Array:
    """Probabilities of states one after the other, ``(T-1, K, K)``."""
    return filtered[:-1, :, None] * transitions * ratios[1:, None, :]
