"""Binary observations that say nothing one by one: the mixture of Bernoulli models of script 43.

Burkhart, Brandman, Franco, Hochberg & Harrison (2020), section "Independent Bernoulli mixtures". Each of ten
coordinates has n channels of its own and n intervals of equal probability under its standard normal law; c_i
is where the i-th begins (the first at minus infinity). Of two models one is drawn for each coordinate at each
moment: channel i is 1 with probability 1 - a if the coordinate is above c_i, and a if not; or the other way
about. Each channel alone is a fair coin. Mean f and covariance Q are sums over intervals of moments of the
truncated normal law. The dynamics are those of script 42.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.scipy.special import ndtri

import statespace as ss
from benchmarks import decoding
from benchmarks.decoding import RULES, STATES, Problem, latent, tabulated

CHANNELS = (3, 10, 32, 100, 316)  # of each coordinate; one alone is a fair coin
A = 0.01


def log_likelihoods(y: Any, n: int) -> Any:
    """Log probability of n channels of each coordinate given the interval it is in, shape ``(d, n)``.

    In interval i the coordinate is above the thresholds of channels 0 to i.
    """
    y = y.reshape(-1, n)
    hit, miss = jnp.log1p(-A), jnp.log(A)
    up = jnp.where(y == 1, hit, miss)  # where the coordinate is above the threshold, first model
    down = hit + miss - up  # below it; and above it in the second model
    ahead = jnp.cumsum(up, axis=1), jnp.cumsum(down, axis=1)
    rest = [part[:, -1:] - part for part in ahead]
    return jnp.logaddexp(ahead[0] + rest[1], ahead[1] + rest[0]) - jnp.log(2.0)


def thresholds(n: int) -> Any:
    """Where the intervals begin, but for the first."""
    return ndtri(jnp.arange(1, n) / n)


def interval_moments(n: int) -> tuple[Any, Any]:
    """First and second moments of a standard normal number in each interval, shape ``(n,)``."""
    ends = jnp.concatenate([jnp.array([-jnp.inf]), thresholds(n), jnp.array([jnp.inf])])
    density = jnp.exp(-0.5 * ends**2) / jnp.sqrt(2 * jnp.pi)
    slope = jnp.where(jnp.isfinite(ends), ends, 0) * density
    return n * (density[:-1] - density[1:]), 1 + n * (slope[:-1] - slope[1:])


def exact_regression(n: int) -> Any:
    """Mean and covariance of the state given one observation; the coordinates are independent."""
    first, second = interval_moments(n)

    def regression(y: Any) -> tuple[Any, Any]:
        weights = jax.nn.softmax(log_likelihoods(y, n), axis=1)  # intervals have equal probability
        mean = weights @ first
        return mean, jnp.diag(weights @ second - mean**2)

    return regression


class Coins(dist.Distribution):
    """All channels of all coordinates, given the state."""

    support = dist.constraints.independent(dist.constraints.boolean, 1)

    def __init__(self, x: Any, n: int):
        self.x, self.n = x, n
        super().__init__((), (x.shape[-1] * n,), validate_args=False)

    def log_prob(self, value: Any) -> Any:
        """Log probability, by the interval of each coordinate."""
        interval = jnp.searchsorted(thresholds(self.n), self.x, side="right")
        table = log_likelihoods(value, self.n)
        return jnp.sum(jnp.take_along_axis(table, interval[:, None], axis=1))

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Any:
        """Channels drawn from the model that each coordinate is given."""
        which, coins = jax.random.split(key)
        begins = jnp.concatenate([jnp.array([-jnp.inf]), thresholds(self.n)])
        chance = jnp.where(self.x[:, None] >= begins, 1 - A, A)
        other = jax.random.bernoulli(which, 0.5, (*sample_shape, len(self.x), 1))
        chance = jnp.where(other, 1 - chance, chance)
        return jax.random.bernoulli(coins, chance).astype(int).reshape(*sample_shape, -1)


def problem(n: int, length: int, seed: int) -> Problem:
    """A recording with n channels for each coordinate."""
    states = latent(length, jax.random.key(seed))
    keys = jax.random.split(jax.random.key(1_000 + seed), length)
    y = jax.vmap(lambda x, key: Coins(x, n).sample(key))(jnp.asarray(states), keys)
    dynamics = ss.AffineGaussian(decoding.A, covariance=decoding.NOISE)
    return Problem(states, np.asarray(y, float), np.zeros((0, STATES)), dynamics)


def errors(n: int, length: int, seed: int, particles: int) -> dict[str, float]:
    """Of the regression, of every rule with it, and of particles; and how often Q is not below S."""
    one = problem(n, length, seed)
    mean, covariance = jax.vmap(exact_regression(n))(jnp.asarray(one.y))
    pairs = jnp.concatenate([mean, covariance.reshape(length, -1)], axis=1)
    found = {rule: ss.filter(one.decoder(tabulated, rule), pairs) for rule in RULES}
    truth = one.model(lambda x, step: Coins(x, n))
    cloud = ss.ParticleFilter(particles=particles)
    weighed = ss.filter(truth, one.y, method=cloud, key=jax.random.key(seed)).mean
    scores = {"alone": one.error(mean)}
    scores |= {rule: one.error(by.mean) for rule, by in found.items()}
    return scores | {"particles": one.error(weighed), "flagged": float(found["clip"].flag_rate)}


def table(quick: bool, seeds: int) -> list[dict]:
    """Means over recordings."""
    length, particles = (300, 1_000) if quick else (1_000, 10_000)
    print("\n== decoding | Bernoulli mixtures: RMSE relative to decoding zero, and share flagged")
    columns = ("alone", *RULES, "particles", "flagged")
    print(f"{'n':>6s}" + "".join(f"{name:>10s}" for name in columns))
    rows = []
    for n in CHANNELS[:2] if quick else CHANNELS:
        every = [errors(n, length, seed, particles) for seed in range(1 if quick else seeds)]
        each = {name: [one[name] for one in every] for name in columns}
        print(f"{n:6d}" + "".join(f"{np.mean(each[c]):10.3f}" for c in columns), flush=True)
        rows.append({"table": "bernoulli", "T": length, "n": n} | each)
    return rows
