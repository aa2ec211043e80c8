"""PaRIS: smoothed expectations while the filter runs."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from statespace.chains import particle
from statespace.chains.particle.paris import Genealogy, estimate, paris, recorder, smoothing_weights
from statespace.functionals import Additive
from statespace.methods.backward_sampling import BackwardMethod
from statespace.methods.functional_lowering import sums_of
from statespace.methods.particle_filter import posterior_of
from statespace.posteriors.particle import ParticlePosterior
from statespace.series import Series

if TYPE_CHECKING:
    from statespace.expectation import Expectation


class DegenerateStatisticsWarning(UserWarning):
    """PaRIS with one backward draw, whose statistics degenerate."""


class PaRIS(BackwardMethod):
    """Particle-based, rapid incremental smoother (Olsson & Westerborn 2017, algorithm 2).

    With each observation every particle draws a few of the previous ones that it may have come from, and its
    statistic of an additive functional is the mean of theirs. For :func:`statespace.expect` and
    :func:`statespace.online` memory is O(N) however long the recording; cost is O(N) for each observation
    with "rejection" (where transitions mix well) and "metropolis". :func:`statespace.smooth` keeps the draws,
    of which one pass backwards makes smoothing weights of all particles. Needs a transition with a density.

    Args:
        particles: N, how many.
        proposal: how particles are moved: see :class:`~statespace.ParticleFilter`.
        resampling: the scheme by which particles are drawn anew.
        threshold: draw anew when the effective sample size is below this share of N.
        gradient: how the log likelihood is differentiated.
        key: source of randomness; the verbs put theirs here.
        backward: how previous particles are drawn: "exact", "rejection", "metropolis" or "auto": see
            :class:`~statespace.BackwardSampling`.
        draws: how many for each particle, at least 2: with a single one each statistic is copied whole, as a
            lineage is, all come to share one past, and the variance grows with the square of the length of
            the recording in place of the length. Warned of.
        functional: what :func:`statespace.online` is to expect.

    Raises:
        ValueError: for fewer than two particles, no draw, a threshold outside [0, 1], or an unknown name.

    Example:
        >>> lag_one = ss.Additive(lambda previous, state, step, y: previous * state)
        >>> ss.expect(model, y, lag_one, method=ss.PaRIS(particles=500), key=key).value
    """

    draws: int = eqx.field(static=True, default=2)
    functional: Additive | None = None

    def __check_init__(self) -> None:
        name = type(self).__name__
        if self.draws < 1:
            raise ValueError(f"`draws` of {name} must be positive, 2 as a rule, got {self.draws}.")
        if self.draws == 1:
            warnings.warn(
                f"`draws` of {name} is 1: the statistics then degenerate as lineages do, and the variance "
                "grows with the square of the length of the recording. Two draws are enough to keep it "
                "linear (Olsson & Westerborn 2017).",
                DegenerateStatisticsWarning,
                stacklevel=3,
            )
        if self.functional is not None and not isinstance(self.functional, Additive):
            raise TypeError(
                f"`functional` of {name} must be an Additive, got {type(self.functional).__name__}."
            )

    def with_key(self, key: PRNGKeyArray) -> PaRIS:
        """The same method with this source of randomness, not warned of again."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DegenerateStatisticsWarning)
            return super().with_key(key)

    def expect(self, model: Any, series: Series, functional: Additive) -> Expectation:
        """The expectation of an additive functional, in memory that does not grow with the recording."""
        from statespace.expectation import Expectation

        run = self._observed(model, series, sums_of(functional, model))
        return Expectation(estimate(run.last, run.state))

    def expectations(self, model: Any, series: Series, functional: Additive) -> Any:
        """The expectation of the functional up to each moment given the observations up to it, T of them."""
        return self._observed(model, series, sums_of(functional, model)).out

    def posterior(self, model: Any, series: Series, kind: Any) -> ParticlePosterior:
        """The law of the states: "filtered", or "smoothed": the filter's particles with smoothing weights."""
        if kind == "filtered":
            return self.filtered(model, series)
        run, kept = self.genealogy(model, series)
        weights = smoothing_weights(kept)
        positive = weights > 0
        logs = jnp.where(positive, jnp.log(jnp.where(positive, weights, 1)), -jnp.inf)
        cloud = particle.Cloud(kept.clouds.particles, logs)
        return posterior_of(model, series, run, cloud, "smoothed")

    def genealogy(self, model: Any, series: Series) -> tuple[particle.Run, Genealogy]:
        """The filter's run with all of its particles, and the previous ones that each has drawn."""
        chain, kernel = self.lower_with_density(model, series)
        run = self._run(chain, len(series), recorder(chain, kernel, self.draws))
        return run, run.out

    def online(self, model: Any, dt: float) -> Any:
        """The filter one observation at a time, with the expectation of ``functional`` if there is one."""
        from statespace.methods.online_paris import ParisOnline

        return (
            super().online(model, dt) if self.functional is None else ParisOnline(model, self, dt)
        )

    def _observed(self, model: Any, series: Series, sums: Any) -> particle.Run:
        chain, kernel = self.lower_with_density(model, series)
        return self._run(chain, len(series), paris(chain, sums, kernel, self.draws))

    def _run(self, chain: particle.Chain, steps: int, observer: Any) -> particle.Run:
        return particle.run(
            chain,
            particle.keys(self._key(), steps, observe=True),
            self.particles,
            resample=self.resampling,
            threshold=self.threshold,
            observer=observer,
        )
