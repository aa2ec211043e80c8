"""Additive functionals of a path of states: what is to be expected of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx


class Additive(eqx.Module):
    """``h(x_{0:T}) = h_0(x_0) + sum_t h_t(x_{t-1}, x_t)``.

    Args:
        later: ``(previous, state, step, y) ->`` an array or a pytree of arrays; ``previous`` and ``state``
            are single states, ``step`` a :class:`~statespace.Step`, ``y`` the observation ``(m,)`` with NaN
            where missing.
        first: ``(state, step, y) ->`` the same for the first moment; None for zero.

    Example:
        >>> lag_one = ss.Additive(lambda previous, state, step, y: previous * state)
        >>> ss.expect(model, y, lag_one, method=ss.PaRIS(particles=500), key=key).value
    """

    later: Callable[..., Any]
    first: Callable[..., Any] | None = None
