"""The posterior of a finite-state model's parameters, by drawing its states and its parameters in turn."""

from __future__ import annotations

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from statespace.chains import finite
from statespace.learners import tuned_moves
from statespace.learners.likelihood import bare, recordings
from statespace.learners.nuts import dispersed, likelihood_and_prior, values_of_draws
from statespace.learners.posterior_result import PosteriorResult
from statespace.learners.priors import Priors, checked_priors
from statespace.learners.problem import Problem, check_start, moved
from statespace.learners.result import FitResult
from statespace.learners.sampling import check_settings, in_blocks, sweeps
from statespace.learners.tuned_moves import Draw, Settings, Tuned
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
        check_settings(self, warmup=0, samples=4, chains=1, steps=1)

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


class Sweep(NamedTuple):
    """A chain under way: its parameters, and the source of randomness."""

    parameters: Tuned
    key: PRNGKeyArray


@eqx.filter_jit
def _begin(z: Array, keys: PRNGKeyArray, settings: Settings) -> Sweep:
    return Sweep(jax.vmap(lambda z: tuned_moves.begin(z, settings))(z), keys)


@eqx.filter_jit
def _advance(
    problem: Problem, state: Sweep, settings: Settings, count: Array
) -> tuple[Sweep, Draw]:
    """``count`` sweeps of every chain, in buffers of a fixed length."""
    step = jax.vmap(lambda s: _sweep(problem, settings, s))
    return sweeps(step, lambda s: s.parameters.last, state, count, _BLOCK)


def _sweep(problem: Problem, settings: Settings, state: Sweep) -> Sweep:
    """Draw the paths given the parameters, then move the parameters given the paths."""
    key, key_paths, key_move = jax.random.split(state.key, 3)
    series, within = recordings(problem.data)
    paths = _paths(problem, state.parameters.z, key_paths)

    def density(z: Array) -> Array:
        model = problem.place(z)
        one = lambda s, path, inside: joint_density(problem.method.lower(model, s), path, inside)
        complete = jnp.sum(jax.vmap(one)(series, paths, within))
        return (complete + problem.log_prior(z, volume=True)).astype(z.dtype)

    return Sweep(tuned_moves.move(key_move, density, state.parameters, settings), key)


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
