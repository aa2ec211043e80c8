"""Checks of a model's parameters: shapes always, values wherever they are known."""

from __future__ import annotations

import inspect
import numbers
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from statespace.parameters import as_array


def optional_array(value: Any) -> Array | None:
    """A floating-point array, or None: the converter of a parameter that may be absent."""
    return None if value is None else as_array(value)


def optional_scale(value: Any) -> Array | None:
    """A standard deviation, or None for no noise; a 0 that is known to be one means None as well.

    A standard deviation of 0 has no unconstrained counterpart, so as a parameter it could not be learned.
    """
    if value is None:
        return None
    value = as_array(value)
    return None if known(value) and value.ndim == 0 and float(value) == 0 else value


def known(value: Any) -> bool:
    """Whether the values can be looked at: under ``jit``, ``grad`` and ``vmap`` they cannot."""
    return isinstance(value, (jax.Array, np.ndarray)) and not isinstance(value, jax.core.Tracer)


def require_shape(name: str, value: Array, shape: tuple[int, ...], remedy: str = "") -> None:
    """Refuse an array of another shape.

    Raises:
        ValueError: naming the argument, its shape and the one expected.
    """
    if jnp.shape(value) != shape:
        raise ValueError(
            f"`{name}` must have shape {shape}, got {jnp.shape(value)}.{_also(remedy)}"
        )


def require_finite(name: str, value: Array, owner: str = "") -> None:
    """Refuse NaN and infinities, where the values are known.

    Raises:
        ValueError: naming the argument.
    """
    if known(value) and not np.all(np.isfinite(value)):
        raise ValueError(f"`{name}`{_of(owner)} must be finite, got {np.asarray(value)}.")


def require_positive(
    name: str, value: Array, owner: str = "", *, zero: bool = True, remedy: str = ""
) -> None:
    """Refuse negative numbers (and zeros unless ``zero``), where the values are known.

    Raises:
        ValueError: naming the argument and its value.
    """
    require_finite(name, value, owner)
    if known(value) and not np.all(np.asarray(value) >= 0 if zero else np.asarray(value) > 0):
        kind = "not be negative" if zero else "be positive"
        raise ValueError(
            f"`{name}`{_of(owner)} must {kind}, got {np.asarray(value)}.{_also(remedy)}"
        )


def require_standard_deviation(name: str, value: Array | None) -> None:
    """Refuse a standard deviation that is not a scalar, negative or not finite.

    Raises:
        ValueError: naming the argument and its value.
    """
    if value is not None:
        require_shape(name, value, (), "It is one standard deviation, of one series.")
        require_positive(name, value)


def require_support(
    name: str, value: Array, inside: Callable[[Array], Array], description: str
) -> None:
    """Refuse values outside a support, where they are known.

    Raises:
        ValueError: naming the argument, what it must be, and its value.
    """
    require_finite(name, value)
    if known(value) and not np.all(inside(value)):
        raise ValueError(f"`{name}` must {description}, got {np.asarray(value)}.")


def require_arguments(name: str, function: Callable[..., Any], arguments: tuple[str, ...]) -> None:
    """Refuse a function that cannot be called with so many arguments.

    Raises:
        TypeError: naming the function, the arguments it takes and those expected.
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # of some functions written in C nothing is known
        return
    try:
        signature.bind(*arguments)
    except TypeError:
        raise TypeError(
            f"{name} must be a function of ({', '.join(arguments)}), but its arguments are {signature}."
        ) from None


def require_whole(name: str, owner: str, value: Any, least: int = 1) -> None:
    """Refuse a setting that is no whole number, or too small.

    Raises:
        ValueError: naming the setting, its owner and its value.
    """
    if not isinstance(value, numbers.Integral) or value < least:
        raise ValueError(
            f"`{name}` of {owner} must be a whole number of at least {least}, got {value!r}."
        )


def is_lower_with_positive_diagonal(x: Float[Array, "*b m k"]) -> Bool[Array, "*b"]:
    """Whether matrices are zero above the diagonal and positive on it."""
    diagonal = jnp.diagonal(x, axis1=-2, axis2=-1)
    return jnp.all(jnp.tril(x) == x, axis=(-2, -1)) & jnp.all(diagonal > 0, axis=-1)


def scale_support(value: Array) -> str:
    """Support of a noise scale: a vector of standard deviations, or a lower triangular factor."""
    return "positive" if jnp.ndim(value) == 1 else "lower_cholesky"


def require_scale(name: str, value: Array, d: int) -> None:
    """Refuse a noise scale that is neither ``(d,)`` positive nor a ``(d, d)`` Cholesky factor.

    Raises:
        ValueError: naming the argument, its shape or values, and how to come by a factor.
    """
    if jnp.shape(value) not in ((d,), (d, d)):
        raise ValueError(
            f"`{name}` must have shape ({d},), standard deviations of independent noise, or "
            f"({d}, {d}), a lower triangular factor of the covariance; got {jnp.shape(value)}."
        )
    if jnp.ndim(value) == 1:
        require_positive(name, value, zero=False)
        return
    require_finite(name, value)
    if known(value) and not is_lower_with_positive_diagonal(value):
        raise ValueError(
            f"`{name}` must be lower triangular with a positive diagonal, got\n"
            f"{np.asarray(value)}\nFrom a covariance matrix use `jnp.linalg.cholesky(covariance)`."
        )


def require_reverting(model: Any) -> None:
    """Refuse parameters of a hidden first-order autoregression that are no scalars or not possible.

    Raises:
        ValueError: naming the argument.
    """
    for name in ("mean", "persistence", "scale"):
        value = getattr(model, name)
        if value is not None:
            require_shape(name, value, ())
            require_finite(name, value)
    require_support(
        "persistence", model.persistence, lambda r: (r > 0) & (r < 1), "lie between 0 and 1"
    )
    require_positive("scale", model.scale, zero=False)


def _of(owner: str) -> str:
    return f" of {owner}" if owner else ""


def _also(remedy: str) -> str:
    return f" {remedy}" if remedy else ""
