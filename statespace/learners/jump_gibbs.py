"""The posterior of the rates of a jump process, by drawing its paths and its rates in turn."""

from __future__ import annotations

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from statespace.chains.finite.jumps import sample_between
from statespace.conditionals.jump import RateMatrix
from statespace.learners.likelihood import bare, log_likelihood, recordings
from statespace.learners.nuts import likelihood_and_prior
from statespace.learners.posterior_result import PosteriorResult
from statespace.learners.priors import checked_priors
from statespace.learners.problem import (
    Problem,
    check_start,
    density,
    not_finite,
    vector,
    with_values,
)
from statespace.learners.rate_priors import HierarchicalGamma, Rates, numbered_pairs
from statespace.learners.result import FitResult
from statespace.learners.sampling import check_counts, in_blocks, sweeps
from statespace.methods.lowering import steps_of
from statespace.parameters import freeze, parameters, replace, unconstrain

RATES = "transition.rates"
_BLOCK = 50  # sweeps in one call of the compiled loop
_MISSED = (
    1e-9  # probability of a path that there was no room for, above which a block is drawn again
)


class JumpGibbs(eqx.Module):
    """Draw the rates of a Markov jump process from their posterior by Gibbs sampling.

    A sweep has two steps, both exact draws: the path of the process, in continuous time, given the rates and
    the data; and the rates given how often it jumps and how long it stays, by conjugacy. The path is drawn as
    a whole, by backward sampling of the states at the moments of observation and by uniformisation between
    them, independent of the path before. (The sampler of Rao & Teh 2013 redraws it on the jump times of the
    path before; that is needed for observations that never pause, and mixes more slowly.)

    The rates need a prior: ``priors={"transition.rates": ...}`` with a NumPyro ``Gamma``, or with
    :class:`HierarchicalGamma`. Other parameters must be held (``ss.freeze``); to learn them as well use
    ``NUTS()``.

    The ``model`` of the result has the posterior means of the rates. Its ``statistics`` hold, with a
    hierarchical prior, the draws of ``rate_shape``, ``rate_mean`` and ``linked``, the share of pairs of
    states with jumps.

    Args:
        warmup: sweeps that are discarded.
        samples: sweeps kept, in each chain.
        chains: number of chains, which advance together.
        spread: standard deviation of the logarithms of the rates at which the chains start, around the model.
        progress: whether to show a progress bar; None: when it takes more than a few seconds.

    References:
        Fearnhead & Sherlock (2006), An exact Gibbs sampler for the Markov-modulated Poisson process; Bladt &
        Sørensen (2005), section 3.
    """

    warmup: int = eqx.field(static=True, default=200)
    samples: int = eqx.field(static=True, default=1000)
    chains: int = eqx.field(static=True, default=4)
    spread: float = eqx.field(static=True, default=0.5)
    progress: bool | None = eqx.field(static=True, default=None)

    def __check_init__(self) -> None:
        check_counts(self, warmup=0, samples=4, chains=1)
        if not self.spread >= 0:
            raise ValueError(f"`spread` must not be negative, got {self.spread}.")

    def fit(
        self,
        model: Any,
        data: Any,
        *,
        priors: Any = None,
        key: PRNGKeyArray | None = None,
        method: Any = None,
        start: FitResult | None = None,
    ) -> PosteriorResult:
        """Draws from the posterior; see :func:`statespace.fit`.

        Raises:
            TypeError: if the transition of the model is no ``RateMatrix``, or the prior not of a kind that is
                conjugate to it.
            ValueError: if ``key`` is missing, another parameter than the rates is free, they have no prior,
                or the start is impossible.
        """
        if key is None:
            raise ValueError(
                "JumpGibbs is random: give `fit` a `key`, such as `jax.random.key(0)`."
            )
        model = _only_rates(model)
        prior, priors = _conjugate(model, priors)
        problem = Problem(model, bare(data), priors, method)
        check_start(problem, "JumpGibbs")
        z = vector(problem)
        if not np.isfinite(float(density(problem, z))):
            raise not_finite("JumpGibbs", density(problem, z))
        key_start, key_run = jax.random.split(key)
        noise = jax.random.normal(key_start, (self.chains, len(z)), z.dtype)
        rates = jax.vmap(prior.begin)(jnp.exp(z + self.spread * noise))
        draws = self._run(problem, prior, rates, jax.random.split(key_run, self.chains))
        values = draws.rates
        at = with_values(problem, {RATES: jnp.asarray(values.mean(axis=(0, 1)), z.dtype)})
        statistics: dict[str, Any] = {name: getattr(draws, name) for name in prior.reported}
        likelihood, log_prior = likelihood_and_prior(at)
        statistics["diverging"] = np.zeros(values.shape[:2], bool)
        return PosteriorResult.from_draws(
            problem=at,
            data=data,
            learner=f"Gibbs sampling ({self.chains} chains × {self.samples} draws, {self.warmup} warm-up)",
            draws={RATES: values},
            # a rate of exactly zero has no logarithm
            unconstrained=np.log(np.maximum(values, np.finfo(values.dtype).tiny)),
            statistics=statistics,
            log_likelihood=likelihood,
            log_prior=log_prior if priors else None,
        ).warn_unless_converged()

    def _run(self, problem: Problem, prior: Any, rates: Rates, keys: PRNGKeyArray) -> Any:
        """The kept draws, chains first.

        A block in which a path may have had more jumps than there was room for is drawn again with more.
        """
        room = _room(problem, rates)

        series, inside = recordings(problem.data)
        total = jnp.sum(jnp.where(inside, series.intervals, 0)[:, 1:])
        exposure = (total / problem.model.transition.states).astype(rates.values.dtype)

        def advance(state: Sweep, count: Array) -> tuple[Sweep, Draw]:
            nonlocal room
            while True:
                after, drawn = _advance(problem, prior, state, exposure, count, room)
                if not float(jnp.max(after.missed)) > _MISSED:
                    return after, drawn
                room *= 2

        state = _begin(problem, rates, keys)
        return in_blocks(
            advance, state, self.warmup, self.samples, _BLOCK, "Gibbs sampling", self.progress
        )


class Draw(NamedTuple):
    """One draw and what is known of it."""

    rates: Float[Array, " E"]
    lp: Float[Array, ""]
    rate_shape: Float[Array, ""]
    rate_mean: Float[Array, ""]
    linked: Float[Array, ""]


class Conjugate(eqx.Module):
    """Independent Gamma priors, seen as a prior that has nothing to learn."""

    shape: Float[Array, " E"]
    rate: Float[Array, " E"]

    reported = ("lp",)

    def begin(self, values: Float[Array, " E"]) -> Rates:
        """Everything linked."""
        zero = jnp.zeros((), values.dtype)
        return Rates(values, zero, zero, zero + 1, jnp.ones(values.shape, bool))

    def update(
        self, rates: Rates, jumps: Array, dwell: Array, pairs: Any, key: PRNGKeyArray
    ) -> Rates:
        """Draw the rates given how often each jump happened, and for how long it could have."""
        gamma = jax.random.gamma(key, self.shape + jumps)
        return rates._replace(values=gamma / (self.rate + dwell))

    def switch(self, rates: Rates, likelihood: Array, *_: Any) -> tuple[Rates, Array]:
        """Everything stays linked."""
        return rates, likelihood

    def log_prob(self, rates: Rates, pairs: Any) -> Float[Array, ""]:
        """Log density of the rates."""
        from numpyro.distributions import Gamma

        return jnp.sum(Gamma(self.shape, self.rate).log_prob(rates.values))


class Sweep(NamedTuple):
    """A chain under way.

    Attributes:
        rates: the current ones, and what their prior knows.
        key: source of randomness.
        likelihood: the log likelihood at the rates.
        missed: largest probability so far of a path that there was no room for.
        last: what is known of the last sweep.
    """

    rates: Rates
    key: PRNGKeyArray
    likelihood: Float[Array, ""]
    missed: Float[Array, ""]
    last: Draw


@eqx.filter_jit
def _begin(problem: Problem, rates: Rates, keys: PRNGKeyArray) -> Sweep:
    def one(rates: Rates, key: PRNGKeyArray) -> Sweep:
        zero = jnp.zeros((), rates.values.dtype)
        likelihood = _log_likelihood(problem, rates.values)
        return Sweep(rates, key, likelihood, zero, Draw(rates.values, zero, zero, zero, zero))

    return jax.vmap(one)(rates, keys)


@eqx.filter_jit
def _advance(
    problem: Problem, prior: Any, state: Sweep, exposure: Array, count: Array, room: int
) -> tuple[Sweep, Draw]:
    """``count`` sweeps of every chain, in buffers of a fixed length."""
    pairs = numbered_pairs(problem.model.transition.edges)

    def sweep(state: Sweep) -> Sweep:
        key, key_switch, key_path, key_rates = jax.random.split(state.key, 4)
        evaluate = lambda values: _log_likelihood(problem, values)
        rates, _ = prior.switch(
            state.rates, state.likelihood, evaluate, exposure, pairs, key_switch
        )
        model = replace(problem.model, {RATES: rates.values})
        between = _paths(model, problem, key_path, room)
        statistics = model.transition.along(between.statistics)
        rates = prior.update(rates, *statistics, pairs, key_rates)
        likelihood = evaluate(rates.values)
        last = Draw(
            rates.values,
            likelihood + prior.log_prob(rates, pairs),
            jnp.exp(rates.log_shape),
            jnp.exp(rates.log_mean),
            jnp.mean(rates.linked, dtype=rates.values.dtype),
        )
        missed = jnp.maximum(state.missed, between.missed)
        return Sweep(rates, key, likelihood, missed, last)

    return sweeps(jax.vmap(sweep), lambda s: s.last, state, count, _BLOCK)


def _log_likelihood(problem: Problem, values: Float[Array, " E"]) -> Float[Array, ""]:
    model = replace(problem.model, {RATES: values})
    return log_likelihood(model, problem.data, problem.method).astype(values.dtype)


def _paths(model: Any, problem: Problem, key: PRNGKeyArray, room: int) -> Any:
    """The path of each recording, drawn given the data: its statistics, summed."""
    key_states, key_between = jax.random.split(key)
    series, inside = recordings(problem.data)
    draw = lambda s, k: problem.method.sample_states(model, s, k, 1)[0]
    states = jax.vmap(draw)(series, jax.random.split(key_states, len(inside)))
    within = inside[:, 1:]
    first, last = states[:, :-1], jnp.where(within, states[:, 1:], states[:, :-1])
    dt = jax.vmap(lambda s: jnp.asarray(steps_of(s)[0].dt))(series)
    intervals = jnp.where(within, dt[:, 1:], 0)
    generator = model.transition.generator
    flat = intervals.astype(generator.dtype).reshape(-1)
    return sample_between(generator, flat, first.reshape(-1), last.reshape(-1), key_between, room)


def _room(problem: Problem, rates: Rates) -> int:
    """Jumps of the uniformised chain in one interval for which there is room at first."""
    series, inside = recordings(problem.data)
    intervals = np.where(inside, np.asarray(series.intervals), 0)[:, 1:]
    longest = float(intervals.max(initial=0.0))
    kernel = problem.model.transition
    each = jax.vmap(lambda v: jnp.max(-jnp.diagonal(kernel.with_rates(v).generator)))(rates.values)
    mean = float(jnp.max(each)) * longest
    return int(np.ceil(mean + 6 * np.sqrt(mean) + 10))


def _only_rates(model: Any) -> Any:
    """The model with the rates as its only parameter that is free.

    Raises:
        TypeError: if the transition is no rate matrix.
        ValueError: naming what else is free, or that the rates are not.
    """
    kernel = getattr(model, "transition", None)
    if not isinstance(kernel, RateMatrix) or RATES not in parameters(model):
        raise TypeError(
            f"JumpGibbs draws the rates of a RateMatrix that is the `transition` of the model, got "
            f"{type(kernel).__name__}; for rates that follow from other parameters use NUTS()."
        )
    free = {name: value.size for name, value in unconstrain(model).items()}
    others = [name for name, size in free.items() if name != RATES and size]
    if others:
        raise ValueError(
            f"JumpGibbs draws the rates only, but {others} are free as well: hold them at their values "
            f"with `ss.freeze(model, {', '.join(map(repr, others))})`, or use NUTS()."
        )
    if RATES not in free:
        raise ValueError(f"JumpGibbs: {RATES!r} is frozen; nothing is to learn.")
    without = [name for name in free if name != RATES]
    return freeze(model, *without) if without else model


def _conjugate(model: Any, priors: Any) -> tuple[Any, dict[str, Any]]:
    """The prior of the rates as the sampler uses it, and as NumPyro knows it, if it does."""
    from numpyro.distributions import ExpandedDistribution, Gamma, Independent

    given = dict(priors or {})
    rates = parameters(model)[RATES]
    if isinstance(given.get(RATES), HierarchicalGamma):
        prior = given.pop(RATES)
        checked_priors(model, given)
        return prior.centred(rates), {}
    if RATES not in given:
        raise ValueError(
            f"JumpGibbs needs a prior for {RATES!r}: `priors={{{RATES!r}: ss.HierarchicalGamma()}}`, or "
            "`numpyro.distributions.Gamma(shape, rate)`."
        )
    known = checked_priors(model, given)
    base = known[RATES]
    while isinstance(base, (Independent, ExpandedDistribution)):
        base = base.base_dist
    if not isinstance(base, Gamma):
        raise TypeError(
            f"JumpGibbs: the prior of {RATES!r} must be a NumPyro Gamma or ss.HierarchicalGamma, got "
            f"{type(base).__name__}; NUTS() takes any."
        )
    shape, rate = (jnp.broadcast_to(v, rates.shape) for v in (base.concentration, base.rate))
    return Conjugate(shape.astype(rates.dtype), rate.astype(rates.dtype)), known
