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
from statespace.learners.progress import bar
from statespace.learners.result import FitResult

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
        for name, least in (("warmup", 1), ("samples", 4), ("chains", 1), ("max_tree_depth", 1)):
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
            ValueError: if ``key`` is missing, a free parameter has no prior, or the start is impossible.
        """
        if key is None:
            raise ValueError("NUTS is random: give `fit` a `key`, such as `jax.random.key(0)`.")
        priors = checked_priors(model, priors, every="NUTS")
        problem = Problem(model, bare(data), priors, method)
        check_start(problem, "NUTS")
        key_start, key_run = jax.random.split(key)
        z = self._disperse(problem, key_start, start)
        settings = Settings(
            self.warmup, float(self.target_accept), self.max_tree_depth, self.dense_mass
        )
        state = _begin(problem, z, jax.random.split(key_run, self.chains), settings)
        draws = self._run(problem, state, settings)
        z = jnp.asarray(np.concatenate([d.z for d in draws], axis=1))
        statistics = {
            name: np.concatenate([getattr(d, name) for d in draws], axis=1)
            for name in Draw._fields[1:]
        }
        values = {name: np.asarray(v) for name, v in _values(problem, z).items()}
        at = moved(problem, jnp.mean(z, axis=(0, 1)))
        return PosteriorResult.from_draws(
            problem=at,
            data=data,
            learner=f"NUTS ({self.chains} chains × {self.samples} draws, {self.warmup} warm-up)",
            draws=values,
            unconstrained=np.asarray(z),
            statistics=statistics,
            log_likelihood=float(_likelihood(at)),
            log_prior=float(log_prior(at.model, priors)),
        ).warn_unless_converged()

    def _disperse(
        self, problem: Problem, key: PRNGKeyArray, start: FitResult | None
    ) -> Float[Array, "chains p"]:
        """Starting points at which the posterior density is positive."""
        z = vector(problem)
        if not np.isfinite(float(density(problem, z))):
            raise not_finite("NUTS", density(problem, z))
        width = np.maximum(np.abs(np.asarray(z)), 1.0)
        if start is not None and start.uncertainty is not None:
            known = start.uncertainty.unconstrained
            if list(known) == problem.names:
                errors = np.concatenate([np.ravel(v) for v in known.values()])
                if errors.shape == width.shape:
                    width = np.where(np.isfinite(errors), errors, width)
        noise = self.spread * width * np.asarray(jax.random.normal(key, (self.chains, len(z))))
        points = []
        for row in noise:
            for _ in range(_RETRIES):
                point = z + jnp.asarray(row, z.dtype)
                if np.isfinite(float(density(problem, point))):
                    break
                row = row / 2
            points.append(point)
        return jnp.stack(points)

    def _run(self, problem: Problem, state: Any, settings: Settings) -> list[Draw]:
        """Warm up and sample, block by block; the kept draws, chains first."""
        kept = []
        with bar(self.warmup + self.samples, "NUTS", self.progress) as shown:
            for phase, total in (("warm-up", self.warmup), ("sampling", self.samples)):
                for begin in range(0, total, _BLOCK):
                    count = min(_BLOCK, total - begin)
                    state, block = _advance(problem, state, settings, jnp.asarray(count))
                    block = Draw(*(np.asarray(part)[:, :count] for part in block))
                    kept += [block] if phase == "sampling" else []
                    depth = float(np.mean(block.n_steps))
                    shown.set_postfix_str(f"{phase}, {depth:.1f} steps a draw", refresh=False)
                    shown.update(count)
        return kept


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

    shapes = jax.eval_shape(jax.vmap(look), state)
    empty = jax.tree.map(lambda a: jnp.zeros((a.shape[0], _BLOCK, *a.shape[1:]), a.dtype), shapes)

    def body(i: Array, carry: tuple[Any, Draw]) -> tuple[Any, Draw]:
        state, buffers = carry
        state = jax.vmap(step)(state)
        seen = jax.vmap(look)(state)
        return state, jax.tree.map(lambda b, a: b.at[:, i].set(a), buffers, seen)

    return jax.lax.fori_loop(0, count, body, (state, empty))


@eqx.filter_jit
def _values(problem: Problem, z: Float[Array, "chains draws p"]) -> dict[str, Array]:
    return jax.vmap(jax.vmap(problem.values))(z)


@eqx.filter_jit
def _likelihood(problem: Problem) -> Float[Array, ""]:
    return log_likelihood(problem.model, problem.data, problem.method)
