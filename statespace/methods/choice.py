"""Which method a verb uses: the given one, or the exact one for the model."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import jax
from jaxtyping import Array, Float, PRNGKeyArray

from statespace.conditionals.finite import FiniteTransition
from statespace.methods.forward_backward import ForwardBackward
from statespace.methods.kalman import Kalman
from statespace.model import check_model
from statespace.series import Panel, Series


@runtime_checkable
class Method(Protocol):
    """What the verbs and the learners ask of a method. All but ``check`` may be traced."""

    def check(self, model: Any, data: Series | Panel) -> None:
        """Refuse data that the model cannot produce, before anything is traced."""

    def log_likelihood(self, model: Any, series: Series) -> Float[Array, ""]:
        """``log p(y)``."""

    def pointwise(self, model: Any, series: Series) -> Float[Array, " T"]:
        """``log p(y_t | y_0 … y_{t-1})`` of each moment."""

    def standardised_errors(self, model: Any, series: Series) -> Float[Array, "T m"]:
        """Errors of the one-step predictions, made standard normal; NaN where missing."""

    def posterior(self, model: Any, series: Series, kind: Any) -> Any:
        """The law of the states: "filtered" or "smoothed"."""

    def sample_states(self, model: Any, series: Series, key: PRNGKeyArray, draws: int) -> Array:
        """Joint draws of all states given all observations."""

    def forecast(self, model: Any, series: Series, rows: Array) -> Any:
        """The law of observations at some moments of a recording, of which they are not part."""

    def online(self, model: Any, dt: float) -> Any:
        """The filter one observation at a time."""

    def recordings_at_once(self, model: Any, series: Series) -> bool:
        """Whether a panel is to be smoothed by `vmap`; if not, one recording after the other."""


def method_for(model: Any, method: Any = None) -> Any:
    """The given method; or by the model's transition: sums over finitely many states, else Kalman.

    Raises:
        TypeError: if the model is no model, or the method no method.
    """
    check_model(model)
    if method is None:
        return ForwardBackward() if _is_finite(model) else Kalman()
    if isinstance(method, type) or not isinstance(method, Method):
        raise TypeError(
            "`method` must be a method such as Kalman() or ForwardBackward(), got "
            f"{method!r}{'; call it to make one' if isinstance(method, type) else ''}."
        )
    return method


_FINITE: dict[Any, bool] = {}
"""By the structure of a model, whether its states are finite: nothing of it is then built in a later call."""


def _is_finite(model: Any) -> bool:
    structure = jax.tree.structure(model)
    if jax.tree_util.treedef_is_leaf(structure):  # no pytree, which says nothing of what is inside
        return isinstance(model.transition, FiniteTransition)
    if structure not in _FINITE:
        _FINITE[structure] = isinstance(model.transition, FiniteTransition)
    return _FINITE[structure]
