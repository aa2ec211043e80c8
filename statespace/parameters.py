"""Parameters: the array fields of a model, their supports, and what is frozen.

A field declares its support with :func:`parameter`; undeclared floating-point array fields are real.
Learners move in the unconstrained space through ``numpyro.distributions.transforms.biject_to``.
NumPyro takes as long to import as JAX, so supports are named, and NumPyro is loaded when one is asked for.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from statespace.reading import to_jax

if TYPE_CHECKING:
    from numpyro.distributions.constraints import Constraint


def as_array(value: Any) -> Array:
    """A floating-point array; integers become the default float type."""
    value = to_jax(value)
    return value if jnp.issubdtype(value.dtype, jnp.inexact) else value.astype(float)


# Of NumPyro's constraints, those that a continuous parameter can have: with a bijection from the reals.
NAMED_BY_NUMPYRO = frozenset(
    {
        "circular",
        "corr_cholesky",
        "corr_matrix",
        "l1_ball",
        "lower_cholesky",
        "nonnegative",
        "ordered_vector",
        "positive",
        "positive_definite",
        "positive_ordered_vector",
        "positive_semidefinite",
        "real",
        "real_matrix",
        "real_vector",
        "scaled_unit_lower_cholesky",
        "simplex",
        "softplus_lower_cholesky",
        "softplus_positive",
        "unit_interval",
    }
)
NAMED_HERE = frozenset(
    {
        "correlation",
        "invertible",
        "lower_trapezoidal",
        "period",
        "stationary",
        "stationary_vector",
    }
)

Support = str | Callable[[Array], Any]
"""The name of a constraint; a constraint; or a function of the parameter's value that gives either."""


def parameter(support: Support = "real", *, of_owner: bool = False, **kwargs: Any) -> Any:
    """Declare a dataclass field of an ``equinox.Module`` as a parameter with this support.

    Args:
        support: the name of one of ``numpyro.distributions.constraints``, such as ``"positive"``,
            ``"unit_interval"`` or ``"lower_cholesky"``, or of :mod:`statespace.constraints`, such as
            ``"stationary"``; or a NumPyro constraint; or a function of the value that gives either, where the
            support depends on the shape (standard deviations or a triangular factor).
        of_owner: whether such a function takes the module that holds the field, in place of its value.
        **kwargs: passed to ``equinox.field``.

    Raises:
        ValueError: if there is no constraint of this name.
        TypeError: if the support is neither a name nor a constraint nor a function.

    Example:
        >>> class Drift(eqx.Module):
        ...     rate: Array = ss.parameter("positive")
        ...     phase: Array = ss.parameter(constraints.interval(0.0, 1.0))
    """
    _check_support(support)
    kwargs.setdefault("converter", as_array)
    return eqx.field(metadata={"support": support, "of_owner": of_owner}, **kwargs)


def _check_support(support: Any) -> None:
    if isinstance(support, str):
        names = NAMED_BY_NUMPYRO | NAMED_HERE
        if support not in names:
            raise ValueError(
                f"`support` of a parameter: there is no constraint named {support!r}; the names are "
                f"{', '.join(sorted(names))}. For any other give the constraint itself, such as "
                "`numpyro.distributions.constraints.interval(0.0, 1.0)`."
            )
    elif isinstance(support, type) or not callable(support):
        raise TypeError(
            "`support` of a parameter must be the name of a constraint, a NumPyro constraint or a function "
            f"of the value that gives one, got {support!r}."
        )


def _resolve(support: Support, value: Array) -> Constraint:
    """The constraint that a support stands for."""
    from numpyro.distributions import constraints

    from statespace import constraints as own

    while not isinstance(support, constraints.Constraint):
        _check_support(support)
        if isinstance(support, str):
            support = getattr(own if support in NAMED_HERE else constraints, support)
        else:
            support = support(value)
    return support


def constant(**kwargs: Any) -> Any:
    """Declare a dataclass field that holds an array which no learner may move."""
    kwargs.setdefault("converter", jnp.asarray)
    return eqx.field(metadata={"constant": True}, **kwargs)


class Frozen(eqx.Module):
    """A model of which some parameters are not to be learned. Made by :func:`freeze`."""

    model: Any
    names: frozenset[str] = eqx.field(static=True)

    def __getattr__(self, name: str) -> Any:
        if name == "model":
            raise AttributeError(name)
        return getattr(self.model, name)

    @property
    def initial(self) -> Any:
        """Law of the state at the first moment."""
        return self.model.initial

    @property
    def transition(self) -> Any:
        """Law of the next state."""
        return self.model.transition

    @property
    def observation(self) -> Any:
        """Law of the observation."""
        return self.model.observation


def freeze(model: Any, *names: str) -> Frozen:
    """The same model with the named parameters held at their values by every learner.

    Args:
        model: any model.
        names: names as :func:`parameters` gives them; a prefix such as ``"trend"`` freezes all below it.

    Raises:
        ValueError: if a name is not a parameter of the model.
    """
    known = list(_leaves(model))
    chosen = set()
    for name in names:
        below = [key for key in known if key == name or key.startswith(name + ".")]
        if not below:
            raise ValueError(f"`freeze`: {name!r} is not a parameter of the model; it has {known}.")
        chosen.update(below)
    already = model.names if isinstance(model, Frozen) else frozenset()
    inner = model.model if isinstance(model, Frozen) else model
    return Frozen(inner, already | chosen)


def parameters(model: Any, *, frozen: bool = True) -> dict[str, Array]:
    """The parameters by name (dotted paths of fields).

    Args:
        model: any model.
        frozen: whether to include the frozen ones.
    """
    held = model.names if isinstance(model, Frozen) else frozenset()
    return {k: leaf.value for k, leaf in _leaves(model).items() if frozen or k not in held}


def supports(model: Any) -> dict[str, Constraint]:
    """The support of each parameter by name."""
    return {name: _resolve(leaf.support, leaf.value) for name, leaf in _leaves(model).items()}


def replace(model: Any, values: Mapping[str, Any]) -> Any:
    """The model with some parameters replaced.

    Raises:
        ValueError: if a name is not a parameter, or a value has another shape.
    """
    leaves = _leaves(model)
    for name, value in values.items():
        if name not in leaves:
            raise ValueError(f"{name!r} is not a parameter of the model; it has {list(leaves)}.")
        if jnp.shape(value) != jnp.shape(leaves[name].value):
            raise ValueError(
                f"parameter {name!r} has shape {jnp.shape(leaves[name].value)}, got {jnp.shape(value)}."
            )
    names = list(values)

    def where(m: Any) -> list[Any]:
        return [leaves[name].get(m) for name in names]

    return eqx.tree_at(where, model, [jnp.asarray(values[name]) for name in names])


def unconstrain(model: Any) -> dict[str, Array]:
    """The free (not frozen) parameters, mapped to the unconstrained space."""
    from numpyro.distributions import biject_to

    s = supports(model)
    return {k: biject_to(s[k]).inv(v) for k, v in parameters(model, frozen=False).items()}


def constrain(model: Any, free: Mapping[str, Array]) -> Any:
    """The model with its free parameters set from unconstrained values; inverse of :func:`unconstrain`."""
    from numpyro.distributions import biject_to

    s = supports(model)
    return replace(model, {k: biject_to(s[k])(v) for k, v in free.items()})


class _Leaf(NamedTuple):
    value: Any
    support: Support
    get: Callable[[Any], Any]


def _leaves(model: Any) -> dict[str, _Leaf]:
    """Parameter leaves by dotted path, in the order of the fields."""
    out: dict[str, _Leaf] = {}
    _walk(model, (), "real", lambda m: m, out)
    return out


def _walk(node: Any, path: tuple[str, ...], support: Any, get: Callable, out: dict) -> None:
    if isinstance(node, Frozen):
        _walk(node.model, path, support, lambda m: get(m).model, out)
    elif dataclasses.is_dataclass(node) and isinstance(node, eqx.Module):
        for field in dataclasses.fields(node):
            if field.metadata.get("static") or field.metadata.get("constant"):
                continue
            name = () if field.metadata.get("transparent") else (field.name,)
            support = field.metadata.get("support", "real")
            if field.metadata.get("of_owner"):
                support = support(node)
            _walk(
                getattr(node, field.name),
                path + name,
                support,
                lambda m, f=field.name: getattr(get(m), f),
                out,
            )
    elif isinstance(node, dict):
        for key in node:
            own = support[key] if isinstance(support, Mapping) else support
            _walk(node[key], (*path, str(key)), own, lambda m, k=key: get(m)[k], out)
    elif isinstance(node, (tuple, list)):
        for i in range(len(node)):
            _walk(node[i], (*path, str(i)), support, lambda m, i=i: get(m)[i], out)
    elif isinstance(node, jax.Array) and jnp.issubdtype(node.dtype, jnp.inexact):
        out[".".join(path)] = _Leaf(node, support, get)
