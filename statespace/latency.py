"""How long an online filter takes for one observation."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import jax
import numpy as np

_WARM = 20  # updates that are made and not counted


class Latency(NamedTuple):
    """Wall-clock time of single updates of an online filter, in seconds.

    Attributes:
        median: of all updates that were timed.
        percentile_99: which one in a hundred exceeds.
        updates: how many were timed.
    """

    median: float
    percentile_99: float
    updates: int

    def __str__(self) -> str:
        median, slow = 1e6 * self.median, 1e6 * self.percentile_99
        return f"median {median:.0f} µs, 99th percentile {slow:.0f} µs of {self.updates} updates"


def latency(decoder: Any, y: Any, *, inputs: Any = None, times: Any = None) -> Latency:
    """Feed a recording to an online filter, and time each update until its result is there.

    Each time runs from an observation in NumPy to a state that has been computed, as a closed loop meets it.
    Compilation and the first 20 updates do not count. What else the machine does at the time does: measure on
    the machine that is to decode, while it is as busy as it will be.

    Args:
        decoder: from :func:`statespace.online`.
        y: observations, shape ``(T, m)`` or ``(T,)``, of more than 20 moments.
        inputs: shape ``(T, k)``, where the model uses inputs.
        times: shape ``(T,)``, where they are not regular.

    Raises:
        TypeError: if ``decoder`` is no online filter.
        ValueError: if there are too few observations, or not as many inputs or times.

    Example:
        >>> print(ss.diagnostics.latency(ss.online(model), counts))
        median 46 µs, 99th percentile 61 µs of 980 updates
    """
    if not (hasattr(decoder, "init") and hasattr(decoder, "update")):
        raise TypeError(
            f"`decoder` of latency must be an online filter, such as `ss.online(model)`, got "
            f"{type(decoder).__name__}."
        )
    rows = np.asarray(y)
    if rows.ndim not in (1, 2) or len(rows) <= _WARM:
        raise ValueError(
            f"`y` of latency must be more than {_WARM} observations (T, m), got shape {rows.shape}."
        )
    more = {"inputs": inputs, "times": times}
    for name, values in more.items():
        if values is not None and len(values) != len(rows):
            raise ValueError(
                f"`{name}` of latency must be as many as the {len(rows)} observations, got {len(values)}."
            )
    covariates = [None] * len(rows) if inputs is None else np.asarray(inputs)
    moments = [None] * len(rows) if times is None else np.asarray(times)
    state, taken = decoder.init(), []
    for row, covariate, moment in zip(rows, covariates, moments, strict=True):
        begin = time.perf_counter()
        state = jax.block_until_ready(decoder.update(state, row, covariate, moment))
        taken.append(time.perf_counter() - begin)
    median, slow = np.quantile(taken[_WARM:], [0.5, 0.99])
    return Latency(float(median), float(slow), len(taken) - _WARM)
