"""Any NumPyro distribution as the observation of each state."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from statespace.densities import log_density, marginal, shape_of
from statespace.emissions.base import NONE, Emission, require_channels
from statespace.model import Step
from statespace.optimisation.climbing import climb
from statespace.parameters import as_array, parameters, replace, supports

if TYPE_CHECKING:
    from numpyro import distributions

_EVALUATIONS = (
    30  # of the expected log density in one M-step, which starts where the last one ended
)


def _argument_supports(owner: Distribution) -> dict[str, Any]:
    """What the distribution says of its arguments; any number where it leaves that open."""
    known = owner.family.arg_constraints
    return {
        name: "real" if getattr(known[name], "is_dependent", False) else known[name]
        for name in owner.arguments
    }


class Distribution(Emission):
    """``y ~ family(**arguments at k)`` in state k, for any family of NumPyro's.

    EM has no closed M-step for it, and takes gradient steps on the expected log density instead, in the
    unconstrained space of the arguments.

    Args:
        family: a class such as ``numpyro.distributions.VonMises``.
        **arguments: of the family, each with a leading axis of the K states, then one of channels if there
            are several. A plain number is shared by all states; whole numbers where the family asks for
            them (``total_count``) are not learned.

    Raises:
        TypeError: if the family is not a distribution class, or does not take these arguments.
        ValueError: if the leading axes differ, or a value is outside of its support.

    Example:
        >>> ss.emissions.Distribution(dist.VonMises, loc=[0.0, 3.1], concentration=[2.0, 5.0])
    """

    family: Any = eqx.field(static=True)
    arguments: dict[str, Array] = eqx.field(
        metadata={"support": _argument_supports, "of_owner": True, "transparent": True}
    )

    def __init__(self, family: Any, **arguments: Any):
        from numpyro import distributions

        known: Any = getattr(family, "arg_constraints", None)
        if not (isinstance(family, type) and issubclass(family, distributions.Distribution)):
            raise TypeError(
                "`family` must be a NumPyro distribution class such as `numpyro.distributions.VonMises`, got "
                f"{family!r}; its arguments are given by name."
            )
        for name in arguments:
            if name not in known:
                raise TypeError(
                    f"{family.__name__} has no argument {name!r}; it has {sorted(known)}."
                )
        self.family = family
        self.arguments = {
            name: jnp.asarray(value) if known[name].is_discrete else as_array(value)
            for name, value in arguments.items()
        }
        lengths = {name: len(a) for name, a in self.arguments.items() if a.ndim}
        if len(set(lengths.values())) != 1:
            raise ValueError(
                f"the arguments of {family.__name__} must have one leading axis of states (or be plain "
                f"numbers), got lengths {lengths}."
            )
        self._check_supports()

    def _check_supports(self) -> None:
        for name, support in supports(self).items():
            value = self.arguments[name]
            if not isinstance(value, jax.core.Tracer) and not np.all(support(value)):
                raise ValueError(
                    f"`{name}` of {self.family.__name__} must be inside its support ({support}), got "
                    f"{np.asarray(value)}."
                )

    @property
    def states(self) -> int:
        """Number K of states."""
        return next(len(a) for a in self.arguments.values() if a.ndim)

    def __call__(self, state: Any, step: Step) -> distributions.Distribution:
        """The distribution of the observation in one state."""
        here = {name: a if a.ndim == 0 else a[state] for name, a in self.arguments.items()}
        law = self.family(**here)
        return law.to_event(len(law.batch_shape))

    def check(self, y: Any) -> None:
        """Refuse what is in no state's support, and rows missing in part where nothing can be left out.

        Raises:
            ValueError: naming the first such entry.
        """
        law = self(0, None)
        width = (shape_of(law) or (1,))[-1]
        require_channels(self, y, width)
        values = np.asarray(y)
        missing = np.isnan(values)
        partly = missing.any(axis=1) & ~missing.all(axis=1)
        if partly.any() and not marginal(law):
            raise ValueError(
                f"the moment in row {np.flatnonzero(partly)[0]} is missing in part, and "
                f"{self.family.__name__} is not known to have marginals: set the whole row to NaN."
            )
        rows = values[~missing.any(axis=1)]
        rows = rows[:, 0] if shape_of(law) == () else rows
        inside = np.any(
            [np.asarray(self(k, None).support(rows)) for k in range(self.states)], axis=0
        )
        if not inside.all():
            first = rows[np.flatnonzero(~inside)[0]]
            raise ValueError(
                f"observations of {self.family.__name__} must be in the support of some state (NaN where "
                f"missing), but {first} is in none ({int((~inside).sum())} such moments)."
            )

    def log_probs(self, y: Float[Array, "T m"], steps: Step) -> Float[Array, "T K"]:
        """Log density of every observation in every state; NaN entries are integrated out."""
        every = jnp.arange(self.states)
        return jax.vmap(lambda y: jax.vmap(lambda k: log_density(self(k, None), y))(every))(y)

    def m_step(
        self,
        y: Float[Array, "S T m"],
        steps: Step,
        weights: Float[Array, "S T K"],
        *,
        floor: Any = 0.0,
        frozen: frozenset[str] = NONE,
    ) -> Distribution:
        """Gradient steps that raise the weighted log density; see :meth:`Emission.m_step`."""
        free = {name: v for name, v in parameters(self).items() if name not in frozen}
        if not free:
            return self
        rows = y.reshape(-1, y.shape[-1])
        shares = weights.reshape(len(rows), -1)

        def expected(values: dict[str, Array]) -> Array:
            each = replace(self, values).log_probs(rows, steps)
            return jnp.sum(jnp.where(shares > 0, shares * each, 0))

        return replace(self, climb(expected, free, supports(self), _EVALUATIONS))
