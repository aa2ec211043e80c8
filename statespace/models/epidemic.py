"""Epidemics in a closed population, seen through reported cases."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy.special import gammaln, xlog1py, xlogy
from jaxtyping import Array, Float, PRNGKeyArray

from statespace.checks import (
    optional_array,
    require_positive,
    require_shape,
    require_support,
)
from statespace.model import Step
from statespace.models.spikes import InputDrive
from statespace.parameters import parameter

if TYPE_CHECKING:
    from numpyro.distributions import Distribution


class SIR(eqx.Module):
    """Susceptible, infected, recovered: a chain of binomial counts (Bailey 1975; Bretó & Ionides 2011).

    From one moment to the next each of S susceptibles escapes infection with probability
    ``exp(-transmission dt I / population)`` and each of I infected recovers with probability
    ``1 - exp(-recovery dt)``, all independently. Numbers are whole and never negative, and the transition has
    an exact probability, for intervals short against ``1 / recovery``; for finer steps give the recording
    more moments, with NaN there. Of the new infections of a step each is reported with probability
    ``reporting``: the observation is binomial, or, with ``concentration``, negative binomial with the same
    mean and the variance ``mean + mean^2 / concentration``.

    State: ``(S, I, C)``, C the infections since the moment before; at the first moment ``C = I``.

    Args:
        population: number of individuals.
        transmission: infections by one infected among susceptibles, 1 / time, positive. The basic
            reproduction number is ``transmission / recovery``.
        recovery: 1 / time, positive.
        reporting: probability that a case is reported, between 0 and 1.
        initial_fraction: probability of each individual to be infected at the start.
        concentration: of negative binomial reports; None for binomial ones.
        input_weights: log-linear effect of the recording's inputs on the transmission, shape ``(k,)``; None
            for a constant one.

    Raises:
        ValueError: if a parameter has the wrong shape or is outside its support.
    """

    population: int = eqx.field(static=True)
    transmission: Float[Array, ""] = parameter("positive")
    recovery: Float[Array, ""] = parameter("positive")
    reporting: Float[Array, ""] = parameter("unit_interval")
    initial_fraction: Float[Array, ""] = parameter("unit_interval", default=0.01)
    concentration: Float[Array, ""] | None = parameter(
        "positive", converter=optional_array, default=None
    )
    input_weights: Float[Array, " k"] | None = parameter(converter=optional_array, default=None)

    def __check_init__(self) -> None:
        if not (isinstance(self.population, int) and self.population >= 2):
            raise ValueError(
                f"`population` must be a whole number of at least 2, got {self.population!r}."
            )
        for name in ("transmission", "recovery", "concentration"):
            if getattr(self, name) is not None:
                require_shape(name, getattr(self, name), ())
                require_positive(name, getattr(self, name), zero=False)
        for name in ("reporting", "initial_fraction"):
            value = getattr(self, name)
            require_shape(name, value, ())
            require_support(name, value, lambda p: (p > 0) & (p < 1), "lie between 0 and 1")
        if self.input_weights is not None and self.input_weights.ndim != 1:
            raise ValueError(
                f"`input_weights` must have shape (k,), got {self.input_weights.shape}."
            )

    @property
    def state_names(self) -> tuple[str, ...]:
        """Names of the states."""
        return ("susceptible", "infected", "new_cases")

    @property
    def initial(self) -> Outbreak:
        """Law of the first numbers."""
        return Outbreak(self.initial_fraction, self.population)

    @property
    def transition(self) -> Infection:
        """Law of the next numbers."""
        drive = None if self.input_weights is None else InputDrive(self.input_weights)
        return Infection(self.transmission, self.recovery, drive, self.population)

    @property
    def observation(self) -> Reports:
        """Law of the reported cases."""
        return Reports(self.reporting, self.concentration)


class Outbreak(eqx.Module):
    """How many are infected at the start."""

    fraction: Float[Array, ""]
    population: int = eqx.field(static=True)

    def __call__(self, step: Step) -> SplitLaw:
        """The law of the first numbers."""
        everyone = jnp.asarray(self.population, self.fraction.dtype)
        nobody = jnp.zeros_like(everyone)
        return SplitLaw(everyone, nobody, self.fraction, nobody)


class Infection(eqx.Module):
    """One step of the epidemic."""

    transmission: Float[Array, ""]
    recovery: Float[Array, ""]
    drive: Any
    population: int = eqx.field(static=True)

    def __call__(self, state: Float[Array, " 3"], step: Step) -> SplitLaw:
        """The law of the next numbers."""
        susceptible, infected = state[0], state[1]
        dt = jnp.asarray(step.dt, state.dtype)
        rate = self.transmission * infected / self.population
        if self.drive is not None:
            rate = rate * jnp.exp(self.drive(step))
        return SplitLaw(
            susceptible, infected, -jnp.expm1(-rate * dt), -jnp.expm1(-self.recovery * dt)
        )


class SplitLaw(eqx.Module):
    """``(S - C, I + C - R, C)`` with binomial new cases C of S and recoveries R of I.

    Attributes:
        susceptible: S.
        infected: I.
        infection: probability of a case.
        recovery: probability of a recovery.
    """

    susceptible: Float[Array, ""]
    infected: Float[Array, ""]
    infection: Float[Array, ""]
    recovery: Float[Array, ""]

    def sample(self, key: PRNGKeyArray) -> Float[Array, " 3"]:
        """A draw of the numbers."""
        one, two = jax.random.split(key)
        dtype = self.infection.dtype
        cases = jax.random.binomial(one, self.susceptible, self.infection, dtype=dtype)
        recovered = jax.random.binomial(two, self.infected, self.recovery, dtype=dtype)
        return jnp.stack([self.susceptible - cases, self.infected + cases - recovered, cases])

    def log_prob(self, value: Float[Array, " 3"]) -> Float[Array, ""]:
        """Log probability; minus infinity of numbers that do not add up."""
        cases = value[2]
        recovered = self.infected + cases - value[1]
        adds_up = value[0] == self.susceptible - cases
        both = log_binomial(cases, self.susceptible, self.infection) + log_binomial(
            recovered, self.infected, self.recovery
        )
        return jnp.where(adds_up, both, -jnp.inf)


class Reports(eqx.Module):
    """Reported cases of the new ones."""

    reporting: Float[Array, ""]
    concentration: Float[Array, ""] | None

    def __call__(self, state: Float[Array, " 3"], step: Step) -> Distribution:
        """The distribution of the number of reports."""
        from numpyro.distributions import BinomialProbs, NegativeBinomial2

        if self.concentration is None:
            return BinomialProbs(self.reporting[None], state[2:].astype(int)).to_event(1)
        # a mean of zero has no negative binomial law: its limit, in which reports are next to impossible
        mean = jnp.maximum(self.reporting * state[2:], 1e-6)
        return NegativeBinomial2(mean, self.concentration).to_event(1)


def log_binomial(
    count: Float[Array, ""], trials: Float[Array, ""], probability: Float[Array, ""]
) -> Float[Array, ""]:
    """Log probability of a binomial count; minus infinity where it is not between 0 and the trials."""
    possible = (count >= 0) & (count <= trials)
    k = jnp.where(possible, count, 0)
    ways = gammaln(trials + 1) - gammaln(k + 1) - gammaln(trials - k + 1)
    log_prob = ways + xlogy(k, probability) + xlog1py(trials - k, -probability)
    return jnp.where(possible, log_prob, -jnp.inf)
