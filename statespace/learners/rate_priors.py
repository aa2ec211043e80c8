"""Priors of the rates of a jump process that learn from all rates what one may be."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import gammaln
from jaxtyping import Array, Bool, Float, PRNGKeyArray

_PROPOSALS = 10  # Metropolis steps of the two hyperparameters in a sweep, of a few operations each
_SWITCHES = 2  # pairs of states that a sweep tries to link or to part, each for one log likelihood


class Rates(NamedTuple):
    """Rates and what their prior knows of them.

    Attributes:
        values: along the possible jumps, shape ``(E,)``; zero where a pair of states is not linked.
        log_shape: logarithm of the shape of the Gamma law that rates come from.
        log_mean: logarithm of its mean.
        link: probability that two states are linked.
        linked: which jumps are between linked states.
    """

    values: Float[Array, " E"]
    log_shape: Float[Array, ""]
    log_mean: Float[Array, ""]
    link: Float[Array, ""]
    linked: Bool[Array, " E"]


class HierarchicalGamma(eqx.Module):
    """Rates of one jump process, which are alike: drawn from one Gamma law that is learned with them.

    Shape ``a`` and mean ``m`` of the law are unknown: ``log a ~ N(log shape, shape_spread^2)`` and ``log m ~
    N(log mean, mean_spread^2)``. With ``sparse`` two states are linked with an unknown probability, uniform
    on (0, 1), and the rates between states that are not linked are exactly zero, in both directions. So few
    data say where there are no jumps at all, and how large the others may be.

    Args:
        sparse: whether pairs of states may be without jumps.
        shape: median of the shape; 1 makes the law of the rates an exponential one.
        shape_spread: standard deviation of its logarithm.
        mean: median of the mean, per unit of time; None: that of the rates at which learning starts.
        mean_spread: standard deviation of its logarithm.

    Raises:
        ValueError: if a number is not positive.
    """

    sparse: bool = eqx.field(static=True, default=True)
    shape: Any = 1.0
    shape_spread: Any = 1.0
    mean: Any = None
    mean_spread: Any = 2.0

    @property
    def reported(self) -> tuple[str, ...]:
        """What is told of each draw."""
        more = ("linked",) if self.sparse else ()
        return ("lp", "rate_shape", "rate_mean", *more)

    def __check_init__(self) -> None:
        for name in ("shape", "shape_spread", "mean", "mean_spread"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"`{name}` of HierarchicalGamma must be positive, got {value}.")

    def centred(self, rates: Any) -> HierarchicalGamma:
        """The prior in the precision of these rates, with its mean given: as it was, or theirs."""
        rates = jnp.asarray(rates)
        mean = jnp.mean(rates) if self.mean is None else self.mean
        numbers = (self.shape, self.shape_spread, mean, self.mean_spread)
        return HierarchicalGamma(self.sparse, *(jnp.asarray(v, rates.dtype) for v in numbers))

    def begin(self, values: Float[Array, " E"]) -> Rates:
        """Everything linked, the law at its medians."""
        dtype = values.dtype
        link = jnp.asarray(0.5 if self.sparse else 1.0, dtype)
        shape, mean = (
            jnp.log(jnp.asarray(self.shape, dtype)),
            jnp.log(jnp.asarray(self.mean, dtype)),
        )
        return Rates(values, shape, mean, link, jnp.ones(values.shape, bool))

    def update(
        self,
        rates: Rates,
        jumps: Float[Array, " E"],
        dwell: Float[Array, " E"],
        pairs: np.ndarray,
        key: PRNGKeyArray,
    ) -> Rates:
        """Draw rates and law given how often each jump happened, and for how long it could have.

        The rates themselves are integrated out while the law and the links are drawn.

        Args:
            rates: the current ones.
            jumps: how often each possible jump happened.
            dwell: time spent where it starts.
            pairs: number of the pair of states that each possible jump is between.
            key: source of randomness.
        """
        keys = jax.random.split(key, 4)
        here = jnp.stack([rates.log_shape, rates.log_mean])

        def density(law: Array) -> Array:
            each = _log_marginal(law, jumps, dwell)
            return jnp.sum(jnp.where(rates.linked, each, 0)) + self._log_law(law)

        def propose(i: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
            here, value = carry
            size, way, u = jax.random.split(jax.random.fold_in(keys[0], i), 3)
            width = 0.3 * jnp.exp(jax.random.normal(size, dtype=here.dtype))
            there = here + width * jax.random.normal(way, here.shape, here.dtype)
            other = density(there)
            accept = jnp.log(jax.random.uniform(u, dtype=here.dtype)) < other - value
            return jnp.where(accept, there, here), jnp.where(accept, other, value)

        law, _ = jax.lax.fori_loop(0, _PROPOSALS, propose, (here, density(here)))
        link, linked = rates.link, rates.linked
        if self.sparse:
            count = int(pairs.max(initial=-1)) + 1
            first = np.array([np.flatnonzero(pairs == p)[0] for p in range(count)], int)
            many = jnp.sum(linked[first])
            link = jax.random.beta(keys[1], 1.0 + many, 1.0 + count - many).astype(law.dtype)
            sums = jnp.zeros((2, count), law.dtype)
            sums = sums.at[:, pairs].add(jnp.stack([_log_marginal(law, jumps, dwell), jumps]))
            odds = jnp.log(link) - jnp.log1p(-link) + sums[0]
            u = jax.random.uniform(keys[2], (count,), law.dtype)
            linked = ((sums[1] > 0) | (jnp.log(u) - jnp.log1p(-u) < odds))[pairs]
        shape = jnp.exp(law[0])
        gamma = jax.random.gamma(keys[3], shape + jumps)
        values = jnp.where(linked, gamma / (shape / jnp.exp(law[1]) + dwell), 0)
        return Rates(values, law[0], law[1], link, linked)

    def switch(
        self,
        rates: Rates,
        likelihood: Float[Array, ""],
        evaluate: Callable[[Array], Array],
        exposure: Float[Array, ""],
        pairs: np.ndarray,
        key: PRNGKeyArray,
    ) -> tuple[Rates, Float[Array, ""]]:
        """Try to link or to part pairs of states, with the paths integrated out.

        Given a path no link can go on which the path jumps, and a link with little use would stay for long.
        Steps of Metropolis and Hastings between different numbers of rates (Green 1995).

        Args:
            rates: the current ones.
            likelihood: the log likelihood at them.
            evaluate: the log likelihood at other values.
            exposure: a time; new rates are proposed as if no jump had been seen for so long.
            pairs: number of the pair of states that each possible jump is between.
            key: source of randomness.
        """
        if not self.sparse or not len(pairs):
            return rates, likelihood
        shape = jnp.exp(rates.log_shape)
        rate = shape / jnp.exp(rates.log_mean)
        odds = jnp.log(rates.link) - jnp.log1p(-rates.link)

        def propose(i: Array, carry: tuple[Rates, Array]) -> tuple[Rates, Array]:
            rates, likelihood = carry
            key_pair, key_value, key_accept = jax.random.split(jax.random.fold_in(key, i), 3)
            here = pairs == jax.random.randint(key_pair, (), 0, int(pairs.max()) + 1)
            on = jnp.any(rates.linked & here)
            fresh = jax.random.gamma(key_value, shape, rates.values.shape, rates.values.dtype)
            other = jnp.where(here, jnp.where(on, 0, fresh / (rate + exposure)), rates.values)
            joined = jnp.where(on, rates.values, other)
            # prior of being linked, with these rates, over the density of proposing them
            each = shape * -jnp.log1p(exposure / rate) + exposure * joined
            gain = odds + jnp.sum(jnp.where(here, each, 0))
            value = evaluate(other)
            ratio = value - likelihood + jnp.where(on, -gain, gain)
            accept = jnp.log(jax.random.uniform(key_accept, dtype=rate.dtype)) < ratio
            linked = rates.linked ^ (here & accept)
            values = jnp.where(accept, other, rates.values)
            return rates._replace(values=values, linked=linked), jnp.where(
                accept, value, likelihood
            )

        return jax.lax.fori_loop(0, _SWITCHES, propose, (rates, likelihood))

    def log_prob(self, rates: Rates, pairs: np.ndarray) -> Float[Array, ""]:
        """Joint log density of rates, links and law."""
        law = jnp.stack([rates.log_shape, rates.log_mean])
        shape = jnp.exp(law[0])
        rate = shape / jnp.exp(law[1])
        values = jnp.maximum(rates.values, jnp.finfo(law.dtype).tiny)
        each = (
            shape * jnp.log(rate) - gammaln(shape) + (shape - 1) * jnp.log(values) - rate * values
        )
        total = jnp.sum(jnp.where(rates.linked, each, 0)) + self._log_law(law)
        if self.sparse:
            first = np.unique(pairs, return_index=True)[1]
            many = jnp.sum(rates.linked[first])
            total = total + many * jnp.log(rates.link)
            total = total + (len(first) - many) * jnp.log1p(-rates.link)
        return total

    def _log_law(self, law: Float[Array, "2"]) -> Float[Array, ""]:
        a = (law[0] - jnp.log(self.shape)) / self.shape_spread
        m = (law[1] - jnp.log(self.mean)) / self.mean_spread
        return -0.5 * (a**2 + m**2)


def _log_marginal(
    law: Float[Array, "2"], jumps: Float[Array, " E"], dwell: Float[Array, " E"]
) -> Float[Array, " E"]:
    """Log density of what each jump did, its rate integrated out over the Gamma law."""
    shape = jnp.exp(law[0])
    rate = shape / jnp.exp(law[1])
    # log(rate / (rate + dwell)) without cancellation where the dwell time is short
    shrink = -jnp.log1p(dwell / rate)
    return gammaln(shape + jumps) - gammaln(shape) + shape * shrink - jumps * jnp.log(rate + dwell)


def numbered_pairs(edges: tuple[tuple[int, int], ...]) -> np.ndarray:
    """For each jump the number of the pair of states that it is between, whichever way."""
    known: dict[frozenset[int], int] = {}
    return np.array([known.setdefault(frozenset(edge), len(known)) for edge in edges], int)
