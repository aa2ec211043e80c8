"""Which method a verb uses: the given one, or else the exact one for the model, or else particles."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import jax
from jaxtyping import Array, Float, PRNGKeyArray

from statespace.conditionals.affine import Gaussian
from statespace.conditionals.discriminative import Discriminative
from statespace.conditionals.finite import FiniteTransition
from statespace.methods.discriminative_kalman import DiscriminativeKalman
from statespace.methods.forward_backward import ForwardBackward
from statespace.methods.kalman import Kalman
from statespace.model import check_key, check_model
from statespace.series import Panel, Series


@runtime_checkable
class Method(Protocol):
    """What the verbs and the learners ask of a method. All but ``check`` may be traced.

    A random method has a ``key`` besides, and ``with_key(key)`` gives one with another.
    """

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


def method_for(model: Any, method: Any = None, *, smooths: bool = False) -> Any:
    """The given method; or by the model's conditionals: exact where there is an exact one, else particles.

    Args:
        model: a model.
        method: what was asked for.
        smooths: whether states are wanted given all observations.

    Raises:
        TypeError: if the model is no model, or the method no method.
    """
    check_model(model)
    if method is None:
        return _DEFAULTS[_kind(model)](smooths)
    if isinstance(method, type) or not isinstance(method, Method):
        raise TypeError(
            "`method` must be a method such as Kalman(), ForwardBackward() or ParticleFilter(), got "
            f"{method!r}{'; call it to make one' if isinstance(method, type) else ''}."
        )
    return method


def with_key(method: Any, model: Any, key: Any) -> Any:
    """A random method with its source of randomness; any other as it is.

    Raises:
        TypeError: if ``key`` is no PRNG key.
        ValueError: if a random method has none.
    """
    if key is not None:
        check_key(key)
    if not is_random(method):
        return method
    if key is not None:
        return method.with_key(key)
    if method.key is None:
        raise ValueError(
            f"{type(method).__name__} draws at random: give `key=`, a PRNG key such as "
            f"`jax.random.key(0)`.{_why(model)}"
        )
    return method


def is_random(method: Any) -> bool:
    """Whether a method needs a source of randomness."""
    return hasattr(method, "with_key")


def _particles(smooths: bool) -> Any:
    from statespace.methods.particle_filter import ParticleFilter

    if not smooths:
        return ParticleFilter()
    from statespace.methods.backward_sampling import BackwardSampling

    return BackwardSampling()


_DEFAULTS = {
    "finite": lambda smooths: ForwardBackward(),
    "linear": lambda smooths: Kalman(),
    "discriminative": lambda smooths: DiscriminativeKalman(),
    "other": _particles,
}
_KINDS: dict[Any, str] = {}
"""By the structure of a model, of which kind it is: nothing of it is then built in a later call."""


def _kind(model: Any) -> str:
    structure = jax.tree.structure(model)
    # no pytree, or functions among its leaves: the structure says too little of what is inside
    told = not jax.tree_util.treedef_is_leaf(structure) and not any(
        callable(leaf) for leaf in jax.tree.leaves(model)
    )
    if not told:
        return _found(model)
    if structure not in _KINDS:
        _KINDS[structure] = _found(model)
    return _KINDS[structure]


def _found(model: Any) -> str:
    if isinstance(model.transition, FiniteTransition):
        return "finite"
    if isinstance(model.observation, Discriminative):
        return "discriminative"
    return "other" if not_linear(model) else "linear"


def not_linear(model: Any) -> str | None:
    """The name of the first conditional that is not linear Gaussian; None where all are."""
    for name in ("transition", "observation"):
        if not hasattr(getattr(model, name), "at"):
            return name
    return None if _is_gaussian(model.initial) else "initial"


def _is_gaussian(initial: Any) -> bool:
    """Whether an initial law is Gaussian by its type; what a function gives is left to the method."""
    if isinstance(initial, Gaussian):
        return True
    from numpyro.distributions import Distribution, Independent, MultivariateNormal, Normal

    while isinstance(initial, Independent):
        initial = initial.base_dist
    return not isinstance(initial, Distribution) or isinstance(initial, Normal | MultivariateNormal)


def _why(model: Any) -> str:
    """Why a model whose method was not asked for has no exact one."""
    if isinstance(model.transition, FiniteTransition):
        return ""
    name = not_linear(model)
    if name is None:
        return ""
    kind = type(getattr(model, name)).__name__
    return f" (The `{name}` of this model is a {kind}, for which there is no exact method.)"
