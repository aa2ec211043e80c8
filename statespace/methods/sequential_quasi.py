"""Sequential quasi-Monte Carlo: a particle filter whose random numbers are evenly spread."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from statespace.chains import particle
from statespace.chains.particle.backward import kernel_named
from statespace.chains.particle.parisian import Trajectories, backward_paths
from statespace.chains.particle.quasi import curve_order, scrambled, sobol
from statespace.methods.particle_filter import ParticleMethod, posterior_of
from statespace.methods.particle_lowering import states_of
from statespace.methods.quantiles import uniform_chain
from statespace.model import Step
from statespace.posteriors.particle import ParticlePosterior
from statespace.series import Panel, Series


class SequentialQuasiMonteCarlo(ParticleMethod):
    """A bootstrap filter driven by scrambled Sobol points (Gerber & Chopin 2015).

    At each moment one point ``(N, 1 + d)`` a particle: its first coordinate chooses the ancestor among the
    particles, which are put in order along a Hilbert curve, the others the move, by the inverse distribution
    function of the transition. The estimate of the likelihood stays unbiased and its error falls faster than
    ``1 / sqrt(N)``, for states of few coordinates much faster. Ancestors are drawn at every moment.

    Needs an initial law and a transition with an inverse distribution function: normal ones, categorical
    ones, and those of NumPyro's with ``icdf``. Smoothing draws paths backward and needs a transition with a
    density.

    Args:
        particles: N; a power of two is best.
        key: source of randomness; the verbs put theirs here.

    Raises:
        ValueError: for fewer than two particles, or a setting of other particle methods that this one does
            not have.

    Example:
        >>> method = ss.SequentialQuasiMonteCarlo(particles=1024)
        >>> ss.log_likelihood(model, y, method=method, key=key)
    """

    particles: int = eqx.field(static=True, default=1024)

    def __check_init__(self) -> None:
        plain = ParticleMethod.__dataclass_fields__
        for name in ("proposal", "resampling", "threshold", "gradient"):
            if getattr(self, name) != plain[name].default:
                raise ValueError(
                    f"SequentialQuasiMonteCarlo has no `{name}`: particles move by the transition, and "
                    "ancestors are drawn along the Hilbert curve at every moment."
                )

    def check(self, model: Any, data: Series | Panel) -> None:
        """Refuse what cannot be run, before anything is traced."""
        super().check(model, data)
        series = data.series[0] if isinstance(data, Panel) else data
        eqx.filter_eval_shape(lambda m, s: m.filtered(model, s), self, series)

    def lower(self, model: Any, series: Series, steps: Step | None = None) -> particle.Chain:
        """The chain whose random input at each moment is a key, from which points are scrambled."""
        chain, (first, later) = uniform_chain(model, series, steps)
        dtype = series.y.dtype
        size = self.particles

        def start(key: PRNGKeyArray, count: int, moment: Any) -> Any:
            particles = chain.start(scrambled(key, sobol(size, first), dtype), count, moment)
            return _arranged(particles)

        def propose(key: PRNGKeyArray, previous: Any, moment: Any) -> Any:
            points = _points(key, size, later, dtype)
            return _arranged(chain.propose(points[:, 1:], previous, moment))

        return dataclasses.replace(chain, start=start, propose=propose)

    def run(
        self, model: Any, series: Series, observer: particle.types.Observer | None = None
    ) -> particle.Run:
        """The filter, from the method's own key."""
        chain = self.lower(model, series)
        later = uniform_chain(model, series)[1][1]
        keys = jax.random.split(self._key(), len(series))
        size, dtype = self.particles, series.y.dtype

        def ancestors(key: PRNGKeyArray, log_weights: Float[Array, " N"]) -> Int[Array, " N"]:
            # the same points as those that move the particles
            u = _points(key, size, later, dtype)[:, 0]
            total = jnp.cumsum(jnp.exp(log_weights))
            place = jnp.searchsorted(total, u * total[-1], method="sort")
            return jnp.minimum(place, size - 1)

        random = particle.Random(keys, keys, None if observer is None else keys)
        return particle.run(
            chain, random, size, resample=ancestors, threshold=1.0, observer=observer
        )

    def filtered(self, model: Any, series: Series) -> ParticlePosterior:
        """The law of each state given the observations up to its moment."""
        run = self.run(model, series, particle.history)
        return posterior_of(model, series, run, run.out[0], "filtered")

    def posterior(self, model: Any, series: Series, kind: Any) -> ParticlePosterior:
        """The law of the states: "filtered", or "smoothed": paths drawn backward."""
        if kind == "filtered":
            return self.filtered(model, series)
        run, paths = self._drawn(model, series, self.particles)
        weights = jnp.full(
            (len(series), self.particles), -math.log(self.particles), run.pointwise.dtype
        )
        cloud = particle.Cloud(paths, weights)
        return posterior_of(model, series, run, cloud, "smoothed", paths=True)

    def sample_states(self, model: Any, series: Series, key: PRNGKeyArray, draws: int) -> Array:
        """Joint draws of all states given all observations, shape ``(draws, T, ...)``."""
        _, paths = self.with_key(key)._drawn(model, series, draws)
        return jax.tree.map(lambda x: jnp.moveaxis(x, 1, 0), states_of(model, paths))

    def online(self, model: Any, dt: float) -> Any:
        """None: each moment's points are put in order together with the particles.

        Raises:
            TypeError: always, naming the method to use.
        """
        raise TypeError(
            "SequentialQuasiMonteCarlo runs over whole recordings: for observations one at a time use "
            "`online` with ParticleFilter()."
        )

    def _drawn(self, model: Any, series: Series, draws: int) -> tuple[particle.Run, Any]:
        """The filter's run, and paths drawn backward from it."""
        chain = self.lower(model, series)
        if chain.transition is None:
            raise TypeError(
                "SequentialQuasiMonteCarlo smooths by paths drawn backward, which needs the density of the "
                f"next state, and `transition` of the model ({type(model.transition).__name__}) has none."
            )
        run = self.run(model, series, particle.history)
        kernel = kernel_named("exact", chain, self.particles)
        key = jax.random.fold_in(self._key(), len(series))
        paths, _ = backward_paths(key, chain, Trajectories(*run.out), kernel, draws)
        return run, paths


def _points(key: PRNGKeyArray, count: int, dimension: int, dtype: Any) -> Float[Array, "N d+1"]:
    """Scrambled points in the order of their first coordinate."""
    points = scrambled(key, sobol(count, 1 + dimension), dtype)
    return points[jnp.argsort(points[:, 0])]


def _arranged(particles: Any) -> Any:
    """Particles in the order in which ancestors are drawn from them."""
    order = curve_order(particles)
    return jax.tree.map(lambda x: x[order], particles)
