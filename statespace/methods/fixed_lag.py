"""Fixed-lag smoothing."""

from __future__ import annotations

from typing import Any

import equinox as eqx
from jaxtyping import Array, PRNGKeyArray

from statespace.chains.particle.fixed_lag import fixed_lag, smoothed
from statespace.methods.particle_filter import ParticleMethod, posterior_of
from statespace.posteriors.particle import ParticlePosterior
from statespace.series import Series


class FixedLag(ParticleMethod):
    """Each state given the observations up to ``lag`` moments after it (Kitagawa 1996; Olsson et al. 2008).

    The ancestors of the filter's particles are followed back for ``lag`` moments and no further, before they
    become few. A short lag leaves out what later observations say, a long one has the variance of lineages;
    where the model forgets quickly something between is good and cheap. Needs no transition density.

    Args:
        particles: N, how many.
        proposal: how particles are moved: see :class:`~statespace.ParticleFilter`.
        resampling: the scheme by which particles are drawn anew.
        threshold: draw anew when the effective sample size is below this share of N.
        gradient: how the log likelihood is differentiated.
        key: source of randomness; the verbs put theirs here.
        lag: how many moments.

    Raises:
        ValueError: for fewer than two particles, a negative lag, a threshold outside [0, 1], or an unknown
            name.

    Example:
        >>> posterior = ss.smooth(model, y, method=ss.FixedLag(lag=20), key=key)
    """

    lag: int = eqx.field(static=True, default=10)

    def __check_init__(self) -> None:
        if self.lag < 0:
            raise ValueError(f"`lag` of FixedLag must not be negative, got {self.lag}.")

    def posterior(self, model: Any, series: Series, kind: Any) -> ParticlePosterior:
        """The law of the states: "filtered", or "smoothed" up to the lag."""
        if kind == "filtered":
            return self.filtered(model, series)
        lag = min(self.lag, len(series) - 1)
        run = self.run(model, series, fixed_lag(lag))
        return posterior_of(model, series, run, smoothed(run.state, run.out, lag), "smoothed")

    def sample_states(self, model: Any, series: Series, key: PRNGKeyArray, draws: int) -> Array:
        """Refused: the law of single states is no law of paths."""
        raise TypeError(
            "FixedLag smooths each state by itself and has no joint draws: use BackwardSampling."
        )
