"""Smoothing by paths drawn backwards through the clouds of a filter."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from statespace.chains import particle
from statespace.chains.particle.backward import Backward, check_kernel, kernel_named
from statespace.chains.particle.parisian import Trajectories, backward_paths
from statespace.functionals import Additive
from statespace.methods.particle_filter import ParticleMethod, posterior_of
from statespace.methods.particle_lowering import states_of
from statespace.posteriors.particle import ParticlePosterior
from statespace.series import Series

if TYPE_CHECKING:
    from statespace.expectation import Expectation


class BackwardMethod(ParticleMethod):
    """What the methods share that draw backwards: the kernel, and that it needs a density."""

    backward: Any = eqx.field(static=True, default="auto")

    def __check_init__(self) -> None:
        check_kernel(self.backward)

    def lower_with_density(self, model: Any, series: Series) -> tuple[particle.Chain, Backward]:
        """The chain, whose transition has a density, and the backward kernel."""
        chain = self.lower(model, series)
        return chain, self.kernel_of(model, chain)

    def kernel_of(self, model: Any, chain: particle.Chain) -> Backward:
        """The backward kernel for the chain of a model.

        Raises:
            TypeError: if the transition of the model has no density.
            ValueError: if the kernel needs the density's greatest value and it is not known.
        """
        name = type(model.transition).__name__
        if chain.transition is None:
            raise TypeError(
                f"{type(self).__name__} needs the density of the next state, and `transition` of the model "
                f"({name}) has none: its noise may have fewer dimensions than the state, or its distribution "
                "no log_prob. FixedLag and ParticleFilter do without; or add noise to every coordinate."
            )
        kernel = kernel_named(self.backward, chain, self.particles)
        if isinstance(kernel, particle.backward.Rejection) and chain.bound is None:
            raise ValueError(
                f"`backward` of {type(self).__name__} is rejection, for which the greatest density of "
                f"`transition` of the model ({name}) must be known, as it is of Gaussian ones, Student's and "
                "others that are highest at their location: use 'metropolis' or 'exact'."
            )
        return kernel

    def drawn(
        self, model: Any, series: Series, draws: int
    ) -> tuple[particle.Run, particle.Particles]:
        """The filter's run, and paths ``(T, draws, ...)`` of the chain drawn backwards from it."""
        chain, kernel = self.lower_with_density(model, series)
        own, rest = jax.random.split(self._key())
        run = particle.run(
            chain,
            particle.keys(own, len(series)),
            self.particles,
            resample=self.resampling,
            threshold=self.threshold,
            observer=particle.history,
        )
        paths, _ = backward_paths(rest, chain, Trajectories(*run.out), kernel, draws)
        return run, paths

    def sample_states(self, model: Any, series: Series, key: PRNGKeyArray, draws: int) -> Array:
        """Joint draws of all states given all observations, shape ``(draws, T, ...)``."""
        _, paths = self.with_key(key).drawn(model, series, draws)
        return jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), states_of(model, paths))


class BackwardSampling(BackwardMethod):
    """Forward filter, backward sampling of joint paths (Godsill, Doucet & West 2004).

    Each path is drawn from its last state to its first, at each moment among all particles of the filter by
    how likely they lead to the next state. The paths are independent given the filter's particles and stay
    different at all moments, as lineages do not. Needs a transition with a density.

    Args:
        particles: N, how many in the filter.
        proposal: how particles are moved: see :class:`~statespace.ParticleFilter`.
        resampling: the scheme by which particles are drawn anew.
        threshold: draw anew when the effective sample size is below this share of N.
        gradient: how the log likelihood is differentiated.
        key: source of randomness; the verbs put theirs here.
        backward: "exact": sums over all particles, O(N) for each draw; "rejection": O(1) where transitions
            mix well, exact too; "metropolis": 5 Metropolis steps from the ancestor (Dau & Chopin 2022), the
            quickest; or a kernel of ``statespace.chains.particle.backward``; "auto": exact up to 300
            particles, else rejection where the transition's greatest density is known, else metropolis.
        paths: how many; None for as many as particles.

    Raises:
        ValueError: for fewer than two particles or one path, a threshold outside [0, 1], or an unknown name.

    Example:
        >>> posterior = ss.smooth(model, y, method=ss.BackwardSampling(particles=500), key=key)
    """

    paths: int | None = eqx.field(static=True, default=None)

    def __check_init__(self) -> None:
        if self.paths is not None and self.paths < 1:
            raise ValueError(f"`paths` of BackwardSampling must be positive, got {self.paths}.")

    def posterior(self, model: Any, series: Series, kind: Any) -> ParticlePosterior:
        """The law of the states: "filtered", or "smoothed": paths."""
        if kind == "filtered":
            return self.filtered(model, series)
        count = self.paths or self.particles
        run, paths = self.drawn(model, series, count)
        like = run.last.log_weights
        weights = jnp.full((len(series), count), -math.log(count), like.dtype)
        cloud = particle.Cloud(paths, weights)
        return posterior_of(model, series, run, cloud, "smoothed", paths=True)

    def expect(self, model: Any, series: Series, functional: Additive) -> Expectation:
        """The expectation of an additive functional: the mean over the paths."""
        from statespace.expectation import Expectation

        return Expectation(self.posterior(model, series, "smoothed").expectation(functional))
