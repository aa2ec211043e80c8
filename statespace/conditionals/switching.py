"""Switching between conditionals: a finite regime that chooses which of them applies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from statespace.conditionals.finite import Categorical, FiniteTransition
from statespace.conditionals.recurrent import RecurrentKernel


class RegimeState(NamedTuple):
    """A state with the regime that it is in.

    Attributes:
        regime: 0 … K-1.
        state: what moves under the regime's conditional, shape ``(n,)``.
    """

    regime: Int[Array, ""]
    state: Any


class Switching(eqx.Module):
    """One conditional for each of K regimes, of which the present regime's applies.

    It serves in all three places of a model whose state is a :class:`RegimeState`. As ``transition`` the
    kernel moves the regime, and the conditional of the *new* regime the state; as ``initial`` the kernel is
    the law of the first regime; as ``observation`` there is no kernel.

    Args:
        kernel: a :class:`~statespace.FiniteKernel` or another transition between finitely many states; a
            :class:`~statespace.RecurrentKernel`, by which the regime depends on the state before; a
            :class:`~statespace.Categorical` for an initial law; None for an observation.
        conditionals: one for each regime, or a single one for all. They give distributions of one family.

    Raises:
        TypeError: if the kernel is of another kind, or a conditional is none.
        ValueError: if there are not as many conditionals as regimes.

    Example:
        >>> model = ss.Model(
        ...     initial=ss.Switching(ss.Categorical([0.5, 0.5]), [start]),
        ...     transition=ss.Switching(ss.FiniteKernel(probs), [calm, wild]),
        ...     observation=ss.Switching(None, [seen]),
        ... )
    """

    kernel: Any
    conditionals: tuple[Any, ...]

    def __init__(self, kernel: Any, conditionals: Sequence[Any]):
        kinds = (FiniteTransition, RecurrentKernel, Categorical)
        if not (kernel is None or isinstance(kernel, kinds)):
            raise TypeError(
                "`kernel` of Switching must be a transition between finitely many states such as "
                "FiniteKernel or RecurrentKernel, or a Categorical for an initial law, or None for an "
                f"observation, got {type(kernel).__name__}."
            )
        self.kernel = kernel
        self.conditionals = tuple(conditionals)
        for k, conditional in enumerate(self.conditionals):
            if not callable(conditional):
                raise TypeError(
                    f"`conditionals` of Switching: the one of regime {k} is no conditional, got "
                    f"{type(conditional).__name__}."
                )
        regimes = regimes_of(kernel)
        count = len(self.conditionals)
        if count == 0 or (regimes is not None and count not in (1, regimes)):
            raise ValueError(
                f"`conditionals` of Switching must be one for each of the {regimes or 'K'} regimes of the "
                f"kernel, or a single one for all, got {count}."
            )

    @property
    def regimes(self) -> int:
        """Number K of regimes, as far as this conditional tells."""
        return regimes_of(self.kernel) or len(self.conditionals)

    @property
    def recurrent(self) -> bool:
        """Whether the regime depends on the previous state: the regimes are then no chain by themselves."""
        return isinstance(self.kernel, RecurrentKernel)

    def of(self, regime: int) -> Any:
        """The conditional of one regime."""
        return self.conditionals[regime if len(self.conditionals) > 1 else 0]

    def __call__(self, *args: Any) -> Any:
        """The law: of regime and state, or, as an observation, of the observation alone.

        Called as ``(state, step)``, or as ``(step)`` for an initial law.
        """
        *state, step = args
        if self.kernel is None:
            here: RegimeState = state[0]
            return pick([c(here.state, step) for c in self.conditionals], here.regime)
        if isinstance(self.kernel, Categorical):
            return RegimeLaw(self.kernel.probs, tuple(c(step) for c in self.conditionals))
        here = state[0]
        laws = tuple(c(here.state, step) for c in self.conditionals)
        if isinstance(self.kernel, RecurrentKernel):
            return RegimeLaw(self.kernel.probs(here.regime, here.state, step), laws)
        return RegimeLaw(self.kernel.matrix(step)[here.regime], laws)


class RegimeLaw(eqx.Module):
    """A regime with given probabilities, and the state by the law that belongs to it.

    Attributes:
        probs: of the regimes, shape ``(K,)``.
        laws: of the state, one for each regime, or one for all.
    """

    probs: Float[Array, " K"]
    laws: tuple[Any, ...]

    def sample(self, key: PRNGKeyArray) -> RegimeState:
        """A draw of regime and state."""
        one, two = jax.random.split(key)
        regime = jax.random.categorical(one, self._logs())
        return RegimeState(regime, pick(self.laws, regime).sample(two))

    def log_prob(self, value: RegimeState) -> Float[Array, ""]:
        """Log probability of the regime plus log density of the state."""
        return self._logs()[value.regime] + pick(self.laws, value.regime).log_prob(value.state)

    def _logs(self) -> Float[Array, " K"]:
        possible = self.probs > 0
        return jnp.where(possible, jnp.log(jnp.where(possible, self.probs, 1)), -jnp.inf)


def pick(laws: Sequence[Any], regime: Int[Array, ""]) -> Any:
    """One of several distributions of the same family.

    Raises:
        TypeError: if they are of different families or shapes.
    """
    if len(laws) == 1:
        return laws[0]
    try:
        return jax.tree.map(lambda *leaves: jnp.stack(leaves)[regime], *laws)
    except ValueError as error:
        families = [f"{type(law).__name__}{getattr(law, 'event_shape', '')}" for law in laws]
        raise TypeError(
            "`conditionals` of Switching must give distributions of one family and shape, got "
            f"{', '.join(families)}."
        ) from error


def regimes_of(kernel: Any) -> int | None:
    """Number of regimes, where the kernel tells it without a step."""
    if isinstance(kernel, Categorical):
        return len(kernel.probs)
    if isinstance(kernel, RecurrentKernel):
        return kernel.regimes
    for name in ("probs", "logits", "rates"):
        value = getattr(kernel, name, None)
        if getattr(value, "ndim", 0) == 2:
            return len(value)
    return None
