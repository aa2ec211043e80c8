"""Two-filter smoothing."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from statespace.chains import particle
from statespace.chains.particle.two_filter import two_filter
from statespace.methods.backward_sampling import BackwardMethod
from statespace.methods.particle_filter import posterior_of
from statespace.methods.particle_lowering import lower
from statespace.posteriors.particle import ParticlePosterior
from statespace.series import Series


class TwoFilter(BackwardMethod):
    """A filter forwards, one backwards, and their pairs (Briers, Doucet & Maskell 2010).

    The smoothed particles are those of the backward filter, drawn where all *later* observations are
    explained, and not only where the filter went: good where the future says much that the past does not. The
    artificial prior and the proposals that it needs are taken from the forward filter. O(N²) for each moment.
    Needs states that are arrays of reals and a transition with a density.

    Args:
        particles: N, how many in each filter.
        proposal: how the forward filter's particles are moved: see :class:`~statespace.ParticleFilter`.
        resampling: the scheme by which particles are drawn anew.
        threshold: draw anew when the effective sample size is below this share of N (forwards; backwards
            always).
        gradient: how the log likelihood is differentiated.
        key: source of randomness; the verbs put theirs here.
        backward: how joint draws are made: see :class:`~statespace.BackwardSampling`.

    Raises:
        ValueError: for fewer than two particles, a threshold outside [0, 1], or an unknown name.

    Example:
        >>> posterior = ss.smooth(model, y, method=ss.TwoFilter(particles=500), key=key)
    """

    def posterior(self, model: Any, series: Series, kind: Any) -> ParticlePosterior:
        """The law of the states: "filtered", or "smoothed"."""
        if kind == "filtered" or len(series) == 1:
            return self.filtered(model, series)
        own, rest = jax.random.split(self._key())
        chain, _ = self.lower_with_density(model, series)
        run = self.with_key(own).run(model, series, particle.history)
        clouds, ancestors = run.out
        _check_states(model, clouds.particles)
        # of a bootstrap chain a pair weighs what the observation says
        bootstrap = lower(model, series, "bootstrap")
        potential = lambda x, moment: bootstrap.weigh(x, x, moment._replace(proposal=None))
        smoothed, _ = two_filter(rest, chain, potential, clouds, ancestors, self.resampling)
        return posterior_of(model, series, run, smoothed, "smoothed")


def _check_states(model: Any, particles: Any) -> None:
    """Refuse states without a Gaussian prior.

    Raises:
        TypeError: if states are not arrays ``(n,)`` of reals.
    """
    leaves = jax.tree.leaves(particles)
    real = len(leaves) == 1 and jnp.issubdtype(leaves[0].dtype, jnp.inexact)
    if not real or leaves[0].ndim != 3:
        raise TypeError(
            "TwoFilter needs states that are arrays (n,) of reals, but `initial` of the model "
            f"({type(model.initial).__name__}) gives others: use BackwardSampling."
        )
