"""The no-U-turn sampler on the marginal likelihood: parameters are sampled, states integrated out."""

from __future__ import annotations

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from statespace.learners.likelihood import bare, log_likelihood
from statespace.learners.posterior_result import PosteriorResult
from statespace.learners.priors import Priors, checked_priors, log_prior
from statespace.learners.problem import Problem, check_start, density, moved, not_finite, vector
from statespace.learners.result import FitResult
from statespace.learners.sampling import check_counts, in_blocks, sweeps
from statespace.methods.choice import is_random

_BLOCK = 50  # draws in one call of the compiled loop
_RETRIES = 12


class NUTS(eqx.Module):
    """Draw the parameters from their posterior by NumPyro's no-U-turn sampler.

    The states are integrated out by the Kalman filter, so that the sampler moves in the few dimensions of
    the parameters. Every free parameter needs a prior, on the scale on which the model states it; the
    sampler moves in the unconstrained space of the prior's support, the Jacobian included. All chains
    advance together (`vmap`).

    Args:
        warmup: draws for adaptation, which are discarded.
        samples: draws kept, in each chain.
        chains: number of chains.
        target_accept: acceptance probability that the step size is adapted to; nearer one for a posterior
            that makes trajectories diverge.
        max_tree_depth: at most ``2**max_tree_depth - 1`` leapfrog steps a draw.
        dense_mass: whether to adapt a full mass matrix; False for its diagonal.
        spread: standard deviation of the chains' starting points in the unconstrained space around the
            model as given (around a fitted result, in its standard errors).
        progress: whether to show a progress bar; None: when it takes more than a few seconds.

    References:
        Hoffman & Gelman (2014); Phan, Pradhan & Jankowiak (2019) for the iterative form.
    """

    warmup: int = eqx.field(static=True, default=1000)
    samples: int = eqx.field(static=True, default=1000)
    chains: int = eqx.field(static=True, default=4)
    target_accept: float = eqx.field(static=True, default=0.8)
    max_tree_depth: int = eqx.field(static=True, default=10)
    dense_mass: bool = eqx.field(static=True, default=True)
    spread: float = eqx.field(static=True, default=0.5)
    progress: bool | None = eqx.field(static=True, default=None)

    def __check_init__(self) -> None:
        check_counts(self, warmup=1, samples=4, chains=1, max_tree_depth=1)
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
            TypeError: if the method is random.
            ValueError: if ``key`` is missing, a free parameter has no prior, or the start is impossible.
        """
        if key is None:
            raise ValueError("NUTS is random: give `fit` a `key`, such as `jax.random.key(0)`.")
        if is_random(method):
            raise TypeError(
                f"NUTS needs a log likelihood that can be differentiated and does not change from call to "
                f"call, and that of {type(method).__name__} is a random estimate: use "
                "ParticleMarginalMetropolis() or ParticleGibbsLearner(), which allow for that."
            )
        priors = checked_priors(model, priors, every="NUTS")
        problem = Problem(model, bare(data), priors, method)
        check_start(problem, "NUTS")
        key_start, key_run = jax.random.split(key)
        z = dispersed(problem, key_start, start, self.chains, self.spread, "NUTS")
        settings = Settings(
            self.warmup, float(self.target_accept), self.max_tree_depth, self.dense_mass
        )
        state = _begin(problem, z, jax.random.split(key_run, self.chains), settings)
        draws = in_blocks(
            lambda state, count: _advance(problem, state, settings, count),
            state,
            self.warmup,
            self.samples,
            _BLOCK,
            "NUTS",
            self.progress,
            lambda drawn: f", {float(np.mean(drawn.n_steps)):.1f} steps a draw",
        )
        z = jnp.asarray(draws.z)
        statistics = {name: getattr(draws, name) for name in Draw._fields[1:]}
        at = moved(problem, jnp.mean(z, axis=(0, 1)))
        likelihood, prior = likelihood_and_prior(at)
        return PosteriorResult.from_draws(
            problem=at,
            data=data,
            learner=f"NUTS ({self.chains} chains × {self.samples} draws, {self.warmup} warm-up)",
            draws=values_of_draws(problem, z),
            unconstrained=np.asarray(z),
            statistics=statistics,
            log_likelihood=likelihood,
            log_prior=prior,
        ).warn_unless_converged()


def dispersed(
    problem: Problem,
    key: PRNGKeyArray,
    start: FitResult | None,
    chains: int,
    spread: float,
    learner: str,
) -> Float[Array, "chains p"]:
    """Starting points around the model at which the posterior density is positive.

    Their spread is in standard errors of ``start``, where it has any, else in units of each parameter or of
    its size.
    """
    z = vector(problem)
    if not np.isfinite(float(density(problem, z))):
        raise not_finite(learner, density(problem, z))
    width = np.maximum(np.abs(np.asarray(z)), 1.0)
    if start is not None and start.uncertainty is not None:
        known = start.uncertainty.unconstrained
        if list(known) == problem.names:
            errors = np.concatenate([np.ravel(v) for v in known.values()])
            if errors.shape == width.shape:
                width = np.where(np.isfinite(errors), errors, width)
    noise = spread * width * np.asarray(jax.random.normal(key, (chains, len(z))))
    points = []
    for row in noise:
        for _ in range(_RETRIES):
            point = z + jnp.asarray(row, z.dtype)
            if np.isfinite(float(density(problem, point))):
                break
            row = row / 2
        points.append(point)
    return jnp.stack(points)


class Settings(NamedTuple):
    """What the compiled sampler depends on."""

    warmup: int
    target_accept: float
    max_tree_depth: int
    dense_mass: bool


class Draw(NamedTuple):
    """One draw and what is known of how it came about; the names are those of ArviZ' sample statistics."""

    z: Array
    lp: Array
    n_steps: Array
    acceptance_rate: Array
    diverging: Array
    energy: Array
    step_size: Array


def _kernel(problem: Problem, settings: Settings) -> tuple[Any, Any]:
    """NumPyro's sampler for this problem: ``begin(position, key)`` and ``step(state)``."""
    from numpyro.infer.hmc import hmc

    init, step = hmc(lambda z: -problem.log_density(z, volume=True), algo="NUTS")

    def begin(position: Any, key: PRNGKeyArray) -> Any:
        return init(
            position,
            num_warmup=settings.warmup,
            target_accept_prob=settings.target_accept,
            max_tree_depth=settings.max_tree_depth,
            dense_mass=settings.dense_mass,
            rng_key=key,
        )

    return begin, step


@eqx.filter_jit
def _begin(problem: Problem, z: Array, keys: PRNGKeyArray, settings: Settings) -> Any:
    return jax.vmap(_kernel(problem, settings)[0])(z, keys)


@eqx.filter_jit
def _advance(problem: Problem, state: Any, settings: Settings, count: Array) -> tuple[Any, Draw]:
    """``count`` draws of every chain, in buffers of a fixed length."""
    from numpyro.infer.util import ParamInfo

    begin, step = _kernel(problem, settings)
    # The kernel learns its schedule in `begin`; the state made here is not used.
    first = jax.tree.map(lambda a: a[0], state)
    begin(ParamInfo(first.z, first.potential_energy, first.z_grad), first.rng_key)

    def look(s: Any) -> Draw:
        return Draw(
            s.z,
            -s.potential_energy,
            s.num_steps,
            s.accept_prob,
            s.diverging,
            s.energy,
            s.adapt_state.step_size,
        )

    return sweeps(jax.vmap(step), look, state, count, _BLOCK)


def values_of_draws(problem: Problem, z: Float[Array, "chains draws p"]) -> dict[str, np.ndarray]:
    """Draws on the parameters' own scale."""
    return {name: np.asarray(v) for name, v in _values(problem, z).items()}


@eqx.filter_jit
def _values(problem: Problem, z: Float[Array, "chains draws p"]) -> dict[str, Array]:
    return jax.vmap(jax.vmap(problem.values))(z)


def likelihood_and_prior(problem: Problem) -> tuple[float, float]:
    """Log likelihood and log prior of the model as it stands."""
    return float(_likelihood(problem)), float(log_prior(problem.model, problem.priors))


@eqx.filter_jit
def _likelihood(problem: Problem) -> Float[Array, ""]:
    return log_likelihood(problem.model, problem.data, problem.method)
