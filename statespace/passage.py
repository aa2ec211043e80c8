"""First passages: how long until a failure, a state or a threshold is reached, and how sure that is."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from statespace.labels import Labels, moments
from statespace.model import check_key
from statespace.panels import PanelPosterior
from statespace.posteriors.finite import FinitePosterior
from statespace.probabilities import probabilities, tails
from statespace.series import as_series
from statespace.verbs import filter, forecast

_LONGEST = 20_000  # moments ahead, where no horizon is given
_SURE = 1e-6  # how much of the law may be left then


@dataclasses.dataclass(frozen=True)
class FirstPassage:
    """The law of the number of moments until the first passage, as seen from each of T moments.

    Zero means that it is there already, one that it comes with the next moment. Remaining useful life is the
    first passage of a failure.

    Attributes:
        survival: ``P(passage after more than n moments | data up to t)`` for n = 0 … N, shape ``(T, N + 1)``.
        mean: expected number of moments, shape ``(T,)``; infinite where it may never come, and where a
            simulation ended before it came.
        times: the moments from which it is seen, shape ``(T,)``.
        labels: names of those moments, or None.
    """

    survival: Float[np.ndarray, "T N+1"]
    mean: Float[np.ndarray, " T"]
    times: Float[np.ndarray, " T"]
    labels: Labels | None = None

    def __len__(self) -> int:
        return len(self.times)

    @property
    def probs(self) -> Float[np.ndarray, "T N+1"]:
        """``P(passage after n moments)`` for n = 0 … N."""
        before = np.concatenate([np.ones((len(self), 1)), self.survival[:, :-1]], axis=1)
        return before - self.survival

    def quantile(self, q: Any) -> Float[np.ndarray, "*Q T"]:
        """The least number of moments within which it has come with probability ``q``.

        Infinite where that probability is not reached within N moments.

        Args:
            q: a probability in (0, 1), or an array of them.

        Raises:
            ValueError: if a probability is not inside (0, 1).
        """
        levels = probabilities("q", q)
        # Rounding of the sums must not put off a quantile by a moment.
        come = 1 - self.survival >= levels[..., None, None] * (1 - 1e-12)
        return np.where(come.any(axis=-1), come.argmax(axis=-1), np.inf)

    def interval(self, level: float = 0.9) -> tuple[np.ndarray, np.ndarray]:
        """Bounds of the central interval with this probability, each ``(T,)``."""
        low, high = self.quantile(tails(level))
        return low, high

    def to_pandas(self, level: float = 0.9) -> Any:
        """A DataFrame over the moments: mean, median and the bounds of the central interval."""
        import pandas as pd

        low, high = self.interval(level)
        columns = {"mean": self.mean, "median": self.quantile(0.5), "low": low, "high": high}
        return pd.DataFrame(columns, index=moments(self.times, self.labels))


def first_passage(
    model: Any,
    data: Any,
    states: Any = None,
    *,
    crossing: Callable[[Array], Any] | None = None,
    of: Literal["y", "states"] = "y",
    horizon: int | None = None,
    inputs: Any = None,
    draws: int = 4000,
    key: PRNGKeyArray | None = None,
    method: Any = None,
) -> FirstPassage | list[FirstPassage]:
    """The number of moments until some states are entered, or until a threshold is crossed.

    With ``states``, for models with finitely many states and constant transitions, it is exact, and seen from
    every moment of the recording: a discrete phase-type law, ``P(N > n | y_{0:t}) = a A^n 1`` with the
    filtered probabilities ``a`` of all other states and the transitions ``A`` among these, and of mean
    ``a (I - A)^{-1} 1``. With ``crossing``, for any model that can be forecast, it is that of simulated
    continuations, seen from the last moment, and comes with the next moment at the earliest.

    Args:
        model: a model that the method fits.
        data: a recording; with ``states`` also a list of independent ones.
        states: the states in which the passage ends: numbers or names, one or several.
        crossing: in place of ``states``: a function of simulated paths ``(draws, h, m)`` that says where the
            threshold is crossed, ``(draws, h)``.
        of: what it is a function of: "y" for observations, "states" for hidden states, ``(draws, h, n)`` or
            of a finite state ``(draws, h)``.
        horizon: how many moments to look ahead; needed with ``crossing``, and else as many as it takes.
        inputs: with ``crossing``, those of the moments ahead, ``(horizon, k)``, where the model uses any.
        draws: how many paths to simulate.
        key: a PRNG key for them; default: a fixed one.
        method: if None, the exact one for the model.

    Returns:
        A FirstPassage; of a panel, a list of them.

    Raises:
        TypeError: if the method does not fit the model, or ``states`` is given and the state is not finite.
        ValueError: unless exactly one of ``states`` and ``crossing`` is given; if a state does not exist, the
            transitions vary, or there is no horizon for a crossing.

    References:
        Neuts (1981), Matrix-geometric solutions in stochastic models, chapter 2.

    Example:
        >>> life = ss.first_passage(model, y, states="failed")
        >>> life.mean[-1], life.interval(0.9)
        >>> ss.first_passage(model, y, crossing=lambda y: y[..., 0] > 4.0, horizon=200)
    """
    if (states is None) == (crossing is None):
        raise ValueError("`first_passage` needs either `states` or `crossing`.")
    if horizon is not None and horizon < 1:
        raise ValueError(f"`horizon` must be at least 1, got {horizon}.")
    if crossing is not None:
        key = jax.random.key(0) if key is None else key
        return _simulated(model, data, crossing, of, horizon, inputs, draws, key, method)
    posterior = filter(model, data, method=method)
    if isinstance(posterior, PanelPosterior):
        # Slices of every length would each be compiled; NumPy's are not.
        padded = jax.tree.map(np.asarray, posterior.padded)
        labels = posterior.labels or (None,) * len(posterior)
        return [
            _exact(jax.tree.map(lambda x, i=i: x[i], padded).labelled(names), states, horizon, size)
            for i, (size, names) in enumerate(zip(posterior.lengths, labels, strict=True))
        ]
    return _exact(posterior, states, horizon)


def _exact(
    posterior: Any, states: Any, horizon: int | None, size: int | None = None
) -> FirstPassage:
    if not isinstance(posterior, FinitePosterior):
        raise TypeError(
            "`states` of first_passage are those of a finite state, which this model does not have: give "
            "`crossing`."
        )
    ends = _chosen(states, posterior)
    own = posterior if posterior.parts is None else posterior.parts
    if len(own.chain.transitions) > 1:
        raise ValueError(
            "the transitions of this model vary from moment to moment, so that the law has no closed form: "
            "give `crossing` with of='states', a `horizon`, and `inputs` where it uses any."
        )
    if posterior.aggregate is not None:
        ends = ends[np.asarray(posterior.aggregate)]
    moves = np.asarray(own.chain.transitions[0], float)[np.ix_(~ends, ~ends)]
    into = np.asarray(own.chain.transitions[0], float)[np.ix_(~ends, ends)].sum(axis=1)
    law = np.asarray(own.probs, float)[:size, ~ends]
    mean, never = _mean(moves, into)
    lasting = np.isinf(mean)
    expected = law @ np.where(lasting, 0, mean)
    return FirstPassage(
        survival=_survival(law, moves, never, horizon),
        mean=np.where((law[:, lasting] > 0).any(axis=1), np.inf, expected),
        times=np.asarray(posterior.times)[:size],
        labels=posterior.labels,
    )


def _chosen(states: Any, posterior: FinitePosterior) -> Bool[np.ndarray, " K"]:
    """Which states are meant by numbers or names."""
    count = posterior.probs.shape[1]
    several = isinstance(states, Sequence | np.ndarray) and not isinstance(states, str)
    chosen = np.zeros(count, bool)
    for state in states if several else [states]:
        index = posterior.names.index(state) if state in posterior.names else state
        if not isinstance(index, int | np.integer) or not 0 <= index < count:
            raise ValueError(
                f"`states` of first_passage: there is no state {state!r}; they are "
                f"0 … {count - 1}, called {', '.join(posterior.names)}."
            )
        chosen[index] = True
    if not chosen.any():
        raise ValueError("`states` of first_passage is empty: name the states to be entered.")
    return chosen


def _mean(moves: np.ndarray, into: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Expected number of moments from each state, and the probability that it never ends."""
    arrives = _leads_to(moves, into > 0)
    sure = ~_leads_to(moves, ~arrives) & arrives
    mean, never = np.full(len(moves), np.inf), np.ones(len(moves))
    among = lambda where: np.eye(where.sum()) - moves[np.ix_(where, where)]
    mean[sure] = np.linalg.solve(among(sure), np.ones(sure.sum()))
    never[arrives] = 1 - np.linalg.solve(among(arrives), into[arrives])
    never[sure] = 0
    return mean, never


def _leads_to(moves: np.ndarray, goal: Bool[np.ndarray, " K"]) -> Bool[np.ndarray, " K"]:
    """From which states a path leads to some states, these included."""
    while True:
        wider = goal | ((moves > 0) @ goal)
        if (wider == goal).all():
            return goal
        goal = wider


def _survival(
    law: np.ndarray, moves: np.ndarray, never: np.ndarray, horizon: int | None
) -> Float[np.ndarray, "T N+1"]:
    """``a A^n 1`` for n = 0 … horizon, or until the rest of the law counts for nothing."""
    left = np.ones(len(moves))
    rows = [law @ left]
    longest = _LONGEST if horizon is None else horizon
    while len(rows) <= longest:
        if horizon is None and np.all(rows[-1] - law @ never < _SURE):
            break
        left = moves @ left
        rows.append(law @ left)
    return np.clip(np.stack(rows, axis=1), 0, 1)


def _simulated(
    model: Any,
    data: Any,
    crossing: Callable[[Array], Any],
    of: str,
    horizon: int | None,
    inputs: Any,
    draws: int,
    key: PRNGKeyArray,
    method: Any,
) -> FirstPassage:
    if horizon is None:
        raise ValueError("`first_passage` needs a `horizon` to simulate up to a `crossing`.")
    if of not in ("y", "states"):
        raise ValueError(f"`of` must be 'y' or 'states', got {of!r}.")
    check_key(key)
    ahead = forecast(model, data, steps=horizon, inputs=inputs, method=method)
    if of == "y":
        paths = ahead.sample(key, draws)
    elif hasattr(ahead, "posterior"):
        paths = ahead.posterior.sample(key, draws)[:, ahead.rows]
    else:
        paths = ahead.state.sample(key, draws)
    crossed = np.asarray(crossing(paths))
    if crossed.shape != (draws, horizon):
        raise ValueError(
            f"`crossing` must give shape ({draws}, {horizon}), one answer for each path and moment, of paths "
            f"of shape {paths.shape}; it gave {crossed.shape}."
        )
    first = np.where(crossed.any(axis=1), crossed.argmax(axis=1) + 1.0, np.inf)
    survival = (first[:, None] > np.arange(horizon + 1)).mean(axis=0)
    series = as_series(data)
    index = None if series.labels is None else series.labels.index
    return FirstPassage(
        survival=survival[None],
        mean=np.array([first.mean()]),
        times=np.asarray(series.times)[-1:],
        labels=None if index is None else Labels(index[-1:]),
    )
