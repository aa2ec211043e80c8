"""The model protocol: three conditionals, and the step they may depend on.

A state-space model is ``p(x_0) prod_t p(x_t | x_{t-1}) prod_t p(y_t | x_t)``. Anything with the three
attributes of :class:`StateSpaceModel` is one; there is no base class to inherit from.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import equinox as eqx
from jaxtyping import Array, Float, Int


class Step(NamedTuple):
    """Everything besides the state that a conditional may depend on at one moment.

    Attributes:
        index: position of the moment in the recording, 0 … T-1.
        time: the moment, in the recording's unit of time.
        dt: time since the previous moment (at the first moment: the recording's first interval).
        inputs: covariates at this moment, shape ``(k,)``, or None.
        history: the last p observations, shape ``(p, m)``, newest first, or None.
    """

    index: Int[Array, ""] | int  # type: ignore[assignment]  # not the method of tuples
    time: Float[Array, ""] | float
    dt: Float[Array, ""] | float
    inputs: Float[Array, " k"] | None = None
    history: Float[Array, "p m"] | None = None


Conditional = Callable[..., Any]
"""``(state, step) -> numpyro Distribution``; for an initial law ``(step) -> Distribution``.

A plain function is a valid conditional. A structured one (``AffineGaussian``, ``LinearDiffusion`` …)
says more of itself by its type, and thereby allows more methods.
"""


@runtime_checkable
class StateSpaceModel(Protocol):
    """``p(x_0) prod_t p(x_t | x_{t-1}) prod_t p(y_t | x_t)``: T states for T observations.

    ``initial(step)`` is the law of the state at the first observation, ``transition(state, step)`` the
    law of the state at ``step`` given the previous state, and ``observation(state, step)`` the law of
    the observation at ``step``.
    """

    @property
    def initial(self) -> Conditional:
        """Law of the state at the first moment."""

    @property
    def transition(self) -> Conditional:
        """Law of the next state."""

    @property
    def observation(self) -> Conditional:
        """Law of the observation."""


class Model(eqx.Module):
    """The plain record of three conditionals.

    Example:
        >>> model = ss.Model(
        ...     initial=ss.Gaussian(mean=jnp.zeros(1), scale=jnp.ones(1)),
        ...     transition=ss.AffineGaussian(matrix=jnp.array([[0.9]]), scale=jnp.array([1.0])),
        ...     observation=ss.AffineGaussian(matrix=jnp.array([[1.0]]), scale=jnp.array([0.5])),
        ... )
    """

    initial: Conditional
    transition: Conditional
    observation: Conditional


def check_model(model: Any) -> None:
    """Refuse what is no model.

    Raises:
        TypeError: naming what is missing, and the remedy.
    """
    if isinstance(model, type):
        raise TypeError(
            f"`model` must be a model, got the class {model.__name__}: call it with its parameters to make "
            "one."
        )
    for name in ("initial", "transition", "observation"):
        # the class first: a property need not be computed to be there
        if not (hasattr(type(model), name) or hasattr(model, name)):
            held = "; it holds a model: pass its `.model`" if hasattr(model, "model") else ""
            raise TypeError(
                f"`model` must have the three attributes initial, transition and observation; "
                f"{type(model).__name__} has no `{name}`{held}."
            )


def check_key(key: Any) -> None:
    """Refuse what is no PRNG key.

    Raises:
        TypeError: if it is not an array, such as a plain number.
    """
    if not hasattr(key, "dtype"):
        raise TypeError(f"`key` must be a PRNG key such as `jax.random.key(0)`, got {key!r}.")


def state_names(model: Any) -> tuple[str, ...] | None:
    """Names of the states, where the model gives them."""
    names = getattr(model, "state_names", None)
    return None if names is None else tuple(names)
