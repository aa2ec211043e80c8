"""The posterior of a finite-state model's parameters, by drawing its states and its parameters in turn."""

from __future__ import annotations

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from statespace.chains import finite
from statespace.learners.likelihood import bare, recordings
from statespace.learners.nuts import dispersed, likelihood_and_prior, values_of_draws
from statespace.learners.posterior_result import PosteriorResult
from statespace.learners.priors import Priors, checked_priors
from statespace.learners.problem import Problem, check_start, moved
from statespace.learners.result import FitResult
from statespace.learners.sampling import in_blocks, sweeps
from statespace.methods.forward_backward import ForwardBackward

_BLOCK = 50  # sweeps in one call of the compiled loop


class Gibbs(eqx.Module):
    """Draw states and parameters of a finite-state model in turn (blocked Gibbs sampling).

    A sweep draws the whole path of each recording from its exact law given the parameters, by forward
    filtering and backward sampling, and then moves the parameters by Hamiltonian Monte Carlo on their density
    given the path, whose step size and scales are tuned in the warm-up. That density needs no sum over
    states, so a sweep is cheap where the likelihood is not; but it holds the path, so successive draws are
    more alike than those of ``NUTS()``, which moves in the parameters alone. Every emission and every prior
    will do.

    States have no order of their own: draws of different chains may number them differently. Start all chains
    near one mode, by fitting first (``ss.fit(result, data, learner=ss.Gibbs())``), or relabel the draws.

    Args:
        warmup: sweeps that tune the sampler and are discarded.
        samples: sweeps kept, in each chain.
        chains: number of chains, which advance together.
        steps: leapfrog steps of each move of the parameters.
        target_accept: acceptance rate that the step size is tuned to.
        spread: how far apart the chains start, in standard errors of ``start`` where it has any, else in
            units of the unconstrained parameters.
        progress: whether to show a progress bar; None: when it takes more than a few seconds.

    References:
        Scott (2002), Bayesian methods for hidden Markov models, JASA 97; Neal (2011), MCMC using Hamiltonian
        dynamics.
    """

    warmup: int = eqx.field(static=True, default=500)
    samples: int = eqx.field(static=True, default=1000)
    chains: int = eqx.field(static=True, default=4)
    steps: int = eqx.field(static=True, default=8)
    target_accept: float = eqx.field(static=True, default=0.8)
    spread: float = eqx.field(static=True, default=0.1)
    progress: bool | None = eqx.field(static=True, default=None)

    def __check_init__(self) -> None:
        for name, least in (("warmup", 0), ("samples", 4), ("chains", 1), ("steps", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"`{name}` must be at least {least}, got {getattr(self, name)}.")
        if not 0 < self.target_accept < 1:
            raise ValueError(f"`target_accept` must be between 0 and 1, got {self.target_accept}.")
        if not self.spread >= 0:
            raise ValueError(f"`spread` must not be negative, got {self.spread}.")

    def fit(
        self,
        model: Any,
        data: Any,
        *,
        priors: Priors | None = None,
        key: PRNGKeyArray | None = None,
        method: Any = None,
        start: FitResult | None = None,
    ) -> PosteriorResult:
        """Draws from the posterior; see :func:`statespace.fit`.

        Raises:
            TypeError: if the model's state is not finite.
            ValueError: if ``key`` is missing, a free parameter has no prior, or the start is impossible.
        """
        if key is None:
            raise ValueError("Gibbs is random: give `fit` a `key`, such as `jax.random.key(0)`.")
        if not isinstance(method, ForwardBackward):
            raise TypeError(
                f"Gibbs draws the states of a finite-state model, got one for "
                f"{type(method).__name__}; use NUTS()."
            )
        priors = checked_priors(model, priors, every="Gibbs")
        problem = Problem(model, bare(data), priors, method)
        check_start(problem, "Gibbs")
        key_start, key_run = jax.random.split(key)
        z = dispersed(problem, key_start, start, self.chains, self.spread, "Gibbs")
        settings = Settings(self.warmup, self.steps, float(self.target_accept))
        state = _begin(z, jax.random.split(key_run, self.chains), settings)
        advance = lambda state, count: _advance(problem, state, settings, count)
        draws = in_blocks(
            advance, state, self.warmup, self.samples, _BLOCK, "Gibbs sampling", self.progress
        )
        z = jnp.asarray(draws.z)
        at = moved(problem, jnp.mean(z, axis=(0, 1)))
        likelihood, prior = likelihood_and_prior(at)
        return PosteriorResult.from_draws(
            problem=at,
            data=data,
            learner=f"Gibbs sampling ({self.chains} chains × {self.samples} draws, {self.warmup} warm-up)",
            draws=values_of_draws(problem, z),
            unconstrained=np.asarray(z),
            statistics={name: getattr(draws, name) for name in Draw._fields[1:]},
            log_likelihood=likelihood,
            log_prior=prior,
        ).warn_unless_converged()


class Settings(NamedTuple):
    """What the compiled sampler depends on."""

    warmup: int
    steps: int
    target_accept: float


class Draw(NamedTuple):
    """One draw and what is known of how it came about; the names are those of ArviZ' sample statistics."""

    z: Array
    lp: Array
    acceptance_rate: Array
    diverging: Array
    step_size: Array


class Sweep(NamedTuple):
    """A chain under way.

    Attributes:
        z: the unconstrained parameters.
        scale: variance of each, as far as the warm-up has found.
        tuning: of the step size.
        mean: of the draws of the warm-up that ``scale`` is being learned from.
        square: sum of their squared deviations.
        index: sweeps made.
        last: what is known of the last move.
        key: source of randomness.
    """

    z: Float[Array, " p"]
    scale: Float[Array, " p"]
    tuning: Any
    mean: Float[Array, " p"]
    square: Float[Array, " p"]
    index: Int[Array, ""]  # type: ignore[assignment]  # not the method of tuples
    last: Draw
    key: PRNGKeyArray


def _tuner(settings: Settings) -> Any:
    from blackjax.adaptation.step_size import dual_averaging_adaptation

    return dual_averaging_adaptation(settings.target_accept)


@eqx.filter_jit
def _begin(z: Array, keys: PRNGKeyArray, settings: Settings) -> Sweep:
    def one(z: Array, key: PRNGKeyArray) -> Sweep:
        zero = jnp.zeros((), z.dtype)
        last = Draw(z, zero, zero, jnp.zeros((), bool), zero)
        tuning = _tuner(settings)[0](jnp.asarray(0.1, z.dtype))
        scale, nothing = jnp.ones_like(z), jnp.zeros_like(z)
        return Sweep(z, scale, tuning, nothing, nothing, jnp.asarray(0), last, key)

    return jax.vmap(one)(z, keys)


@eqx.filter_jit
def _advance(
    problem: Problem, state: Sweep, settings: Settings, count: Array
) -> tuple[Sweep, Draw]:
    """``count`` sweeps of every chain, in buffers of a fixed length."""
    return sweeps(
        jax.vmap(lambda s: _sweep(problem, settings, s)), lambda s: s.last, state, count, _BLOCK
    )


def _sweep(problem: Problem, settings: Settings, state: Sweep) -> Sweep:
    """Draw the paths given the parameters, then move the parameters given the paths."""
    from blackjax.mcmc import hmc

    key, key_paths, key_move, key_jitter = jax.random.split(state.key, 4)
    series, within = recordings(problem.data)
    paths = _paths(problem, state.z, key_paths)

    def density(z: Array) -> Array:
        model = problem.place(z)
        one = lambda s, path, inside: joint_density(problem.method.lower(model, s), path, inside)
        complete = jnp.sum(jax.vmap(one)(series, paths, within))
        return (complete + problem.log_prior(z, volume=True)).astype(z.dtype)

    _, update, final = _tuner(settings)
    tuned = state.index >= settings.warmup
    size = jnp.where(tuned, final(state.tuning), jnp.exp(state.tuning.log_step_size))
    # A random length of the trajectory keeps it from returning to where it began.
    jittered = size * jax.random.uniform(key_jitter, minval=0.8, maxval=1.2, dtype=state.z.dtype)
    move = hmc.build_kernel()
    begin = hmc.init(state.z, density)
    after, known = move(key_move, begin, density, jittered, state.scale, settings.steps)
    z = after.position
    last = Draw(z, after.logdensity, known.acceptance_rate, known.is_divergent, size)

    # The scales are those of the second quarter of the warm-up; the step size is then tuned anew.
    half = settings.warmup // 2
    learning = (state.index >= half // 2) & (state.index < half)
    seen = jnp.where(learning, state.index - half // 2 + 1, 1).astype(z.dtype)
    mean = jnp.where(learning, state.mean + (z - state.mean) / seen, state.mean)
    square = jnp.where(learning, state.square + (z - state.mean) * (z - mean), state.square)
    switch = state.index == half - 1
    learned = half - half // 2
    variance = (square + 1e-3 * 5) / (learned + 5)  # as Stan: towards 1e-3 while draws are few
    tuning = update(state.tuning, known.acceptance_rate)
    again = _tuner(settings)[0](jnp.asarray(0.5, z.dtype))
    keep = lambda new, old: jnp.where(tuned, old, jnp.where(switch, new, old))
    tuning = jax.tree.map(lambda t, old: jnp.where(tuned, old, t), tuning, state.tuning)
    tuning = jax.tree.map(lambda a, t: keep(jnp.asarray(a, jnp.result_type(t)), t), again, tuning)
    return Sweep(z, keep(variance, state.scale), tuning, mean, square, state.index + 1, last, key)


def _paths(problem: Problem, z: Array, key: PRNGKeyArray) -> Int[Array, "S T"]:
    """A path of each recording, from its law given the parameters and the data."""
    model, (series, within) = problem.place(z), recordings(problem.data)
    draw = lambda s, k: finite.sample(problem.method.lower(model, s), k, 1)[0]
    return jax.vmap(draw)(series, jax.random.split(key, len(within)))


def joint_density(chain: finite.Chain, path: Int[Array, " T"], within: Array) -> Float[Array, ""]:
    """``log p(z, y)`` of a path; ``within`` is False after the end of a padded recording."""
    log = lambda p, used: jnp.where(used, jnp.log(jnp.where(used, p, 1.0)), 0.0)
    moves = jnp.broadcast_to(chain.transitions, (len(path) - 1, *chain.transitions.shape[1:]))
    taken = moves[jnp.arange(len(path) - 1), path[:-1], path[1:]]
    seen = jnp.take_along_axis(chain.potentials, path[:, None], axis=1)[:, 0]
    return (
        jnp.log(chain.initial[path[0]])
        + jnp.sum(log(taken, within[1:]))
        + jnp.sum(jnp.where(within, seen, 0.0))
    )
