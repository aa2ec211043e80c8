"""Additive functionals of a path of states: what is to be expected of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array

from statespace.densities import log_density
from statespace.model import Step
from statespace.parameters import constrain, parameters, unconstrain


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


def score(model: Any, names: Iterable[str] | None = None) -> Additive:
    """The gradient of ``log p(x_{0:T}, y_{0:T})`` in the parameters, as an additive functional.

    Its expectation given the data is the gradient of the log likelihood (Fisher's identity). It is derived
    from the densities of the model's own conditionals and gives a dictionary over the free parameters *in
    their unconstrained space*, as :func:`statespace.unconstrain` does.

    Args:
        model: a model whose ``initial``, ``transition`` and ``observation`` have densities.
        names: of parameters, or prefixes of them; None for all that are free.

    Raises:
        ValueError: if a name is not a free parameter, or the model has none.

    Example:
        >>> gradient = ss.expect(model, y, ss.functionals.score(model), method=ss.PaRIS(), key=key).value
    """
    free = parameters(model, frozen=False)
    chosen = tuple(free) if names is None else _below(tuple(free), names)
    if not chosen:
        raise ValueError("`model` has no free parameter to take a score in.")
    return Additive(_Later(model, chosen), _First(model, chosen))


class _Score(eqx.Module):
    model: Any
    names: tuple[str, ...] = eqx.field(static=True)

    def gradient(self, log_density: Callable[[Any], Array]) -> dict[str, Array]:
        """Of ``model -> log density``, in the unconstrained parameters."""
        free = {name: x for name, x in unconstrain(self.model).items() if name in self.names}
        return jax.grad(lambda free: log_density(constrain(self.model, free)))(free)


class _Later(_Score):
    def __call__(self, previous: Any, state: Any, step: Step, y: Array) -> dict[str, Array]:
        def log_density_of(model: Any) -> Array:
            moved = _log_prob(model.transition(previous, step), state)
            return moved + log_density(model.observation(state, step), y)

        return self.gradient(log_density_of)


class _First(_Score):
    def __call__(self, state: Any, step: Step, y: Array) -> dict[str, Array]:
        def log_density_of(model: Any) -> Array:
            law = model.initial if hasattr(model.initial, "log_prob") else model.initial(step)
            return _log_prob(law, state) + log_density(model.observation(state, step), y)

        return self.gradient(log_density_of)


def _log_prob(law: Any, value: Any) -> Array:
    return jnp.sum(law.log_prob(value))


def _below(free: tuple[str, ...], names: Iterable[str]) -> tuple[str, ...]:
    chosen = []
    for name in [names] if isinstance(names, str) else names:
        found = [key for key in free if key == name or key.startswith(name + ".")]
        if not found:
            raise ValueError(
                f"`names`: {name!r} is not a free parameter of the model; it has {list(free)}."
            )
        chosen.extend(found)
    return tuple(dict.fromkeys(chosen))
