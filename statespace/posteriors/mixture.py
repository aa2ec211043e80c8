"""The law of regimes and states as mixtures of which joint trajectories can be drawn."""

from __future__ import annotations

import dataclasses
from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array, PRNGKeyArray

from statespace.chains import switching
from statespace.chains.gaussian.mixtures import Components
from statespace.conditionals.switching import RegimeState
from statespace.posteriors.switching import SwitchingPosterior


class MixturePosterior(SwitchingPosterior):
    """The law of regime and state given the data: N normal laws at each moment, each in a regime.

    The fields of :class:`SwitchingPosterior` are here as there, with components in place of particles:
    ``log_likelihood`` is exact where no components were merged, ``ess`` the effective number of components
    before they are. Mean and covariance are of the whole mixture; a component that stands for none has a log
    weight of -inf. The components of two moments do not go together.

    Attributes:
        kernels: the laws of each state given the next one, from which trajectories are drawn; None of a
            filtered law.
        form: of the kernels' arithmetic, "covariance" or "sqrt".
    """

    kernels: Any = None
    form: Any = eqx.field(static=True, default="covariance")

    def sample(self, key: PRNGKeyArray, draws: int = 1) -> RegimeState:
        """Draws of regimes and states, ``regime`` ``(draws, T)`` and ``state`` ``(draws, T, n)``.

        Of a smoothed law these are joint trajectories, drawn backward from the filter's mixtures and exact
        where those are; of a filtered one, which is a law for each moment, they are independent from moment
        to moment.

        Args:
            key: a PRNG key.
            draws: how many.
        """
        if self.kernels is None:
            return super().sample(key, draws)
        parts = (self.regimes, self.means, self.covariances, self.log_weights)
        return RegimeState(*_sample(parts, self.kernels, key, draws, self.form))

    def cut(self, size: int) -> MixturePosterior:
        """The first moments of a padded recording."""
        short: Any = super().cut(size)
        return dataclasses.replace(
            short, kernels=jax.tree.map(lambda x: x[: size - 1], self.kernels)
        )


@eqx.filter_jit
def _sample(
    parts: tuple[Array, ...], kernels: Any, key: PRNGKeyArray, draws: int, form: Any
) -> tuple[Array, Array]:
    last = Components(*(x[-1] for x in parts))
    return switching.sample(last, parts[0], kernels, key, draws, form)
