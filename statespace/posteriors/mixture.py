"""The law of regimes and states as mixtures of which joint trajectories can be drawn."""

from __future__ import annotations

import dataclasses
import warnings
from typing import Any

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from statespace.chains import switching
from statespace.chains.gaussian.mixtures import Components
from statespace.conditionals.switching import RegimeState
from statespace.posteriors.switching import SwitchingPosterior

_ASTRAY = 25.0  # mean squared standardised deviation of draws; of the right law it is one


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
        to moment. Where much was merged and regimes have next to no noise, trajectories can stray from the
        smoothed law: then there is a ``RuntimeWarning``.

        Args:
            key: a PRNG key.
            draws: how many.
        """
        if self.kernels is None:
            return super().sample(key, draws)
        parts = (self.regimes, self.means, self.covariances, self.log_weights)
        drawn = RegimeState(*_sample(parts, self.kernels, key, draws, self.form))
        self._warn_if_astray(drawn.state)
        return drawn

    def _warn_if_astray(self, states: Array) -> None:
        """Tell if draws are not from about the smoothed law; traced ones pass."""
        if isinstance(states, jax.core.Tracer) or isinstance(self.mean, jax.core.Tracer):
            return
        variance = np.asarray(np.diagonal(self.covariance, axis1=1, axis2=2))
        known = np.where(variance > 0, variance, np.inf)
        squares = ((np.asarray(states) - np.asarray(self.mean)) ** 2).mean(axis=0) / known
        if squares.mean() > _ASTRAY:
            moment = int(np.argmax(squares.max(axis=1)))
            warnings.warn(
                f"The draws of states stray from the smoothed law, farthest at moment {moment}: by "
                f"{np.sqrt(squares.max()):.0f} of its standard deviations. Too much was merged to follow "
                "trajectories back. Use the smoothed law itself, or draw with GaussianSum of more "
                "`components` or with RaoBlackwellised.",
                RuntimeWarning,
                stacklevel=3,
            )

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
