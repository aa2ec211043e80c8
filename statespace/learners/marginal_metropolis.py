"""Particle marginal Metropolis–Hastings: the posterior of the parameters by estimates of the likelihood."""

from __future__ import annotations

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from statespace.learners.estimates import beginning, estimates, needed_key
from statespace.learners.filter_noise import Correlated, Fresh
from statespace.learners.nuts import dispersed, values_of_draws
from statespace.learners.posterior_result import PosteriorResult
from statespace.learners.priors import Priors
from statespace.learners.problem import Problem, moved
from statespace.learners.result import FitResult
from statespace.learners.sampling import check_settings, in_blocks, sweeps
from statespace.methods.choice import is_random
from statespace.methods.particle_filter import ParticleFilter

_BLOCK = 50  # draws in one call of the compiled loop
_STICKS = 4.0  # variance of the log likelihood's estimate beyond which chains hardly move
_AIM = 2.0  # the variance to aim at: between 1 (Pitt et al. 2012) and 3.3 (Sherlock et al. 2015)


class ParticleMarginalMetropolis(eqx.Module):
    """Draw the parameters from their exact posterior, with the likelihood estimated by a particle filter.

    A random walk in the unconstrained space, accepted by the ratio of estimated posterior densities; the
    estimate of where the chain stands is kept until it moves, which makes the draws exact whatever the
    number of particles (Andrieu & Roberts 2009). Its covariance and size are learned in the warm-up, from
    all chains together. Only the filter is needed, so that the transition may be one that can only be drawn
    from.

    With few particles the estimate varies much, and a chain that got a high one by chance stays: choose
    their number such that the variance of the log likelihood at the posterior's middle is about 1 to 3. It
    is reported (``result.log_likelihood_variance``).

    The correlated version (``correlation=0.99``) proposes new random numbers of the filter that are near the
    old ones, so that the noise of the ratio of estimates is much smaller than that of each: on long
    recordings it does with far fewer particles, where the state has few coordinates. The noise itself then
    moves slowly: the higher the correlation, the longer the chains must be. It needs an initial law and a
    transition with an inverse distribution function.

    Args:
        warmup: draws for adaptation, which are discarded.
        samples: draws kept, in each chain.
        chains: number of chains, which advance together.
        correlation: of the filter's random numbers with those of the next proposal; 0: new ones each time.
        target_accept: acceptance rate that the size of the steps is tuned to.
        spread: how far apart the chains start, in standard errors of ``start`` where it has any, else in
            units of the unconstrained parameters.
        progress: whether to show a progress bar; None: when it takes more than a few seconds.

    References:
        Andrieu, Doucet & Holenstein (2010), Particle Markov chain Monte Carlo methods, JRSS B 72, section
        2.4.2; Deligiannidis, Doucet & Pitt (2018), The correlated pseudomarginal method, JRSS B 80; Haario,
        Saksman & Tamminen (2001) and Andrieu & Thoms (2008), algorithm 4, for the adaptation.
    """

    warmup: int = eqx.field(static=True, default=1000)
    samples: int = eqx.field(static=True, default=2000)
    chains: int = eqx.field(static=True, default=4)
    correlation: float = eqx.field(static=True, default=0.0)
    target_accept: float = eqx.field(static=True, default=0.2)
    spread: float = eqx.field(static=True, default=0.1)
    progress: bool | None = eqx.field(static=True, default=None)

    def __check_init__(self) -> None:
        check_settings(self, warmup=0, samples=4, chains=1)
        if not 0 <= self.correlation < 1:
            raise ValueError(f"`correlation` must be in [0, 1), got {self.correlation}.")

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
            TypeError: if the method computes the likelihood exactly; with a correlation, if it is not a
                bootstrap filter, or a conditional of the model has no inverse distribution function.
            ValueError: if ``key`` is missing, a free parameter has no prior, or the start is impossible.
        """
        learner = "ParticleMarginalMetropolis"
        keys = jax.random.split(needed_key(key, learner), 4)
        if not is_random(method):
            raise TypeError(
                f"{learner} is for a likelihood that is estimated, and {type(method).__name__} computes it: "
                "use NUTS(), or give `fit` `method=ss.ParticleFilter()`."
            )
        noise = self._noise(method)
        problem = beginning(model, data, priors, method, learner, keys[0], sampler=True)
        z = dispersed(problem, keys[1], start, self.chains, self.spread, learner)
        settings = Settings(self.warmup, float(self.target_accept), noise)
        state = _begin(problem, settings, z, keys[2])
        draws = in_blocks(
            lambda state, count: _advance(problem, settings, state, count),
            state,
            self.warmup,
            self.samples,
            _BLOCK,
            "PMMH",
            self.progress,
            lambda drawn: f", {float(np.mean(drawn.accepted)):.0%} accepted",
        )
        z = jnp.asarray(draws.z)
        middle = jnp.mean(z, axis=(0, 1))
        found = estimates(problem, middle[None], keys[3], repeats=32)
        return PosteriorResult.from_draws(
            problem=moved(problem, middle),
            data=data,
            learner=f"PMMH ({self.chains} chains × {self.samples} draws, {self.warmup} warm-up)",
            draws=values_of_draws(problem, z),
            unconstrained=np.asarray(z),
            statistics={name: getattr(draws, name) for name in Draw._fields[1:]},
            log_likelihood=float(found.log_likelihood[0]),
            log_prior=float(found.log_prior[0]),
            log_likelihood_variance=float(found.variance[0]),
            complaint=self._complaint(float(found.variance[0]), method.particles),
        ).warn_unless_converged()

    def _noise(self, method: Any) -> Fresh | Correlated:
        """How the filter's randomness is proposed."""
        if self.correlation == 0:
            return Fresh()
        if type(method) is not ParticleFilter or method.proposal != "bootstrap":
            raise TypeError(
                "ParticleMarginalMetropolis(correlation=...) is for the bootstrap filter, "
                "`method=ss.ParticleFilter(particles)`: other methods draw what has no inverse distribution "
                "function."
            )
        return Correlated(method.particles, float(self.correlation))

    def _complaint(self, variance: float, particles: int) -> str | None:
        """What to say where the estimates vary so much that the chains stick, or None."""
        if self.correlation > 0 or not variance > _STICKS:
            return None
        advice = "raise `particles`"
        if np.isfinite(variance):
            advice = f"raise `particles` to about {int(np.ceil(particles * variance / _AIM))}"
        return (
            f"the estimate of the log likelihood has a variance of {variance:.3g} in the middle of the "
            f"posterior, where 1 to 3 is good: chains stick; {advice}"
        )


class Settings(NamedTuple):
    """What the compiled sampler depends on."""

    warmup: int
    target_accept: float
    noise: Fresh | Correlated


class Draw(NamedTuple):
    """One draw and what is known of how it came about; the names are those of ArviZ' sample statistics."""

    z: Array
    lp: Array
    acceptance_rate: Array
    accepted: Array


class Tuning(NamedTuple):
    """What the warm-up learns from the draws of all chains, the same for each.

    Attributes:
        mean: of the draws.
        covariance: of the draws.
        log_size: how much larger the steps are than the draws' spread.
        index: draws made.
    """

    mean: Float[Array, " p"]
    covariance: Float[Array, "p p"]
    log_size: Float[Array, ""]
    index: Int[Array, ""]  # type: ignore[assignment]  # not the method of tuples


class State(NamedTuple):
    """A chain under way: BlackJAX' state, the last draw, the tuning and the source of randomness."""

    walk: Any
    last: Draw
    tuning: Tuning
    key: PRNGKeyArray


@eqx.filter_jit
def _begin(
    problem: Problem, settings: Settings, z: Float[Array, "chains p"], key: PRNGKeyArray
) -> State:
    from blackjax.mcmc import random_walk

    chains, p = z.shape
    keys = jax.random.split(key, (2, chains))
    density = lambda position: _density(problem, settings, position)
    noise = settings.noise
    begun = lambda z, k: random_walk.init((z, noise.draw(problem, k)), density)
    walk = jax.vmap(begun)(z, keys[0])
    mean = jnp.mean(z, axis=0)
    # the optimal size for a normal law in p dimensions (Roberts & Rosenthal 2001)
    size = jnp.log(2.38 / jnp.sqrt(jnp.asarray(p, z.dtype)))
    covariance = jnp.diag((jnp.maximum(jnp.abs(mean), 1.0) / 10) ** 2)
    tuning = Tuning(mean, covariance, size, jnp.asarray(0))
    tuning = jax.tree.map(lambda a: jnp.broadcast_to(a, (chains, *a.shape)), tuning)
    zero = jnp.zeros(chains, z.dtype)
    return State(walk, Draw(z, walk.logdensity, zero, zero > 0), tuning, keys[1])


@eqx.filter_jit
def _advance(
    problem: Problem, settings: Settings, state: State, count: Array
) -> tuple[State, Draw]:
    """``count`` draws of every chain, in buffers of a fixed length."""

    def step(state: State) -> State:
        moved = jax.vmap(lambda s: _move(problem, settings, s))(state)
        tuning = jax.tree.map(lambda a: a[0], state.tuning)
        tuning = _tune(tuning, moved.last, settings)
        every = jax.tree.map(lambda a, b: jnp.broadcast_to(a, b.shape), tuning, state.tuning)
        return moved._replace(tuning=every)

    return sweeps(step, lambda s: s.last, state, count, _BLOCK)


def _density(problem: Problem, settings: Settings, position: tuple[Array, Any]) -> Float[Array, ""]:
    """The estimated log posterior density at unconstrained parameters; what makes it random is given."""
    value = settings.noise.log_density(problem, *position)
    return jnp.where(jnp.isnan(value), -jnp.inf, value)


def _move(problem: Problem, settings: Settings, state: State) -> State:
    """One step of one chain. Parameters and the filter's randomness are proposed, and kept, together."""
    from blackjax.mcmc import random_walk

    key, key_step = jax.random.split(state.key)
    p = len(state.last.z)
    size, spread = jnp.exp(state.tuning.log_size), state.tuning.covariance
    root = size * jnp.linalg.cholesky(
        spread + 1e-10 * jnp.trace(spread) * jnp.eye(p, dtype=spread.dtype)
    )

    def propose(key: PRNGKeyArray, position: tuple[Array, Any]) -> tuple[Array, Any]:
        key_z, key_noise = jax.random.split(key)
        z, noise = position
        step = root @ jax.random.normal(key_z, z.shape, z.dtype)
        return z + step, settings.noise.move(noise, key_noise)

    density = lambda position: _density(problem, settings, position)
    walk, known = random_walk.build_rmh()(key_step, state.walk, density, propose)
    last = Draw(walk.position[0], walk.logdensity, known.acceptance_rate, known.is_accepted)
    return State(walk, last, state.tuning, key)


def _tune(tuning: Tuning, drawn: Draw, settings: Settings) -> Tuning:
    """The draws' mean and covariance, and the size of the steps, by Robbins and Monro (in the warm-up)."""
    index = tuning.index + 1
    weight = (index + 10.0) ** -0.6
    error = drawn.z - tuning.mean
    spread = jnp.mean(error[:, :, None] * error[:, None, :], axis=0)
    accepted = jnp.mean(drawn.acceptance_rate)
    learned = Tuning(
        tuning.mean + weight * jnp.mean(error, axis=0),
        tuning.covariance + weight * (spread - tuning.covariance),
        tuning.log_size + weight * (accepted - settings.target_accept),
        index,
    )
    learned = jax.tree.map(lambda new, old: new.astype(old.dtype), learned, tuning)
    learning = index <= settings.warmup
    frozen = tuning._replace(index=index)
    return jax.tree.map(lambda new, old: jnp.where(learning, new, old), learned, frozen)
