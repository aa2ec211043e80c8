"""Switching linear Gaussian chains: particles are paths of regimes, and the states are integrated out.

Given the regimes a chain is linear and Gaussian, so each particle carries a Kalman filter in place of a state
(Rao–Blackwellisation; Doucet, de Freitas, Murphy & Russell 2000). Regimes are few, so none is drawn: all K
successors of each particle are kept as candidates, and N of these K N are chosen without bias and without
repeats (Fearnhead & Clifford 2003). While there are no more paths than particles the result is exact.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy.special import ndtr
from jaxtyping import Array, Float, Int, PRNGKeyArray

from statespace.chains import gaussian
from statespace.chains.gaussian import algebra as la
from statespace.chains.gaussian.covariances import predict, update
from statespace.chains.gaussian.mixtures import covariances, mixture_moments
from statespace.chains.gaussian.step import evidence, gains, move
from statespace.chains.gaussian.types import Form, Sites


class Regimes(NamedTuple):
    """What the K regimes are at one moment, each array with a leading axis of K.

    ``noise`` and ``observation_noise`` are covariances or factors, as the form says.

    Attributes:
        logs: log probabilities of the regime (columns) given the previous one (rows), ``(K, K)``.
        matrix: ``F``, into this moment.
        offset: ``b``.
        noise: of the state.
        design: ``H``.
        level: ``d``.
        observation_noise: of the observation.
    """

    logs: Float[Array, "K K"]
    matrix: Float[Array, "K n n"]
    offset: Float[Array, "K n"]
    noise: Float[Array, "K n k"]
    design: Float[Array, "K m n"]
    level: Float[Array, "K m"]
    observation_noise: Float[Array, "K m l"]


class SwitchingChain(NamedTuple):
    """A switching linear Gaussian model and its data.

    Attributes:
        log_probs: of the first regime, ``(K,)``.
        mean: of the first state, ``(K, n)``.
        noise: of the first state, ``(K, n, n)``.
        constant: what of the :class:`Regimes` is the same at all moments; None elsewhere.
        varying: the rest, with a leading axis of T.
        y: ``(T, m)``, NaN where missing.
    """

    log_probs: Float[Array, " K"]
    mean: Float[Array, "K n"]
    noise: Float[Array, "K n n"]
    constant: Regimes
    varying: Regimes
    y: Float[Array, "T m"]

    def at(self, t: Any) -> tuple[Regimes, Float[Array, " m"]]:
        """The regimes and the observation of one moment."""
        row = jax.tree.map(lambda x: x[t], self.varying)
        return eqx.combine(self.constant, row), self.y[t]


class Paths(NamedTuple):
    """Weighted particles: regimes, and the law of the state given each path of them.

    Attributes:
        regime: the present one, shape ``(N,)``.
        mean: shape ``(N, n)``.
        spread: covariances or factors, shape ``(N, n, n)``.
        log_weights: normalised, shape ``(N,)``.
    """

    regime: Int[Array, " N"]
    mean: Float[Array, "N n"]
    spread: Float[Array, "N n n"]
    log_weights: Float[Array, " N"]


class SwitchingRun(NamedTuple):
    """A filter's results at all moments.

    Attributes:
        paths: with a leading axis of T.
        probs: of the regimes given the observations so far, ``(T, K)``, from all candidates.
        mean: of the state, ``(T, n)``, likewise.
        covariance: ``(T, n, n)``, likewise.
        ess: effective number of candidates, ``(T,)``.
        pointwise: log of the estimate of ``p(y_t | y_{<t})``, ``(T,)``.
    """

    paths: Paths
    probs: Float[Array, "T K"]
    mean: Float[Array, "T n"]
    covariance: Float[Array, "T n n"]
    ess: Float[Array, " T"]
    pointwise: Float[Array, " T"]


def run(chain: SwitchingChain, key: PRNGKeyArray, particles: int, form: Form) -> SwitchingRun:
    """The filter; the product of ``exp(pointwise)`` is an unbiased estimate of the likelihood."""
    steps = len(chain.y)
    uniforms = jax.random.uniform(key, (steps,), chain.y.dtype)
    count = len(chain.log_probs)
    first = narrow(beginnings(chain, form), uniforms[0], particles, count, form)

    def step(before: Paths, at: tuple[Regimes, Array, Array]) -> tuple[Paths, tuple]:
        row, y, u = at
        regimes = eqx.combine(chain.constant, row)
        candidates = successors(before, regimes, y, form)
        return narrow(candidates, u, particles, count, form)

    later = jax.tree.map(lambda x: x[1:], (chain.varying, chain.y, uniforms))
    _, rest = jax.lax.scan(step, first[0], later)
    paths, *summaries = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), first[1], rest)
    return SwitchingRun(paths, *summaries)


def beginnings(chain: SwitchingChain, form: Form) -> Paths:
    """One particle for each first regime, with joint log weights."""
    regimes, y = chain.at(0)
    every = jnp.arange(len(chain.log_probs))
    seen = jax.vmap(lambda m, p, k: _see(m, p, regimes, k, y, form))
    mean, spread, log_density = seen(chain.mean, chain.noise, every)
    return Paths(every, mean, spread, chain.log_probs + log_density)


def successors(before: Paths, regimes: Regimes, y: Float[Array, " m"], form: Form) -> Paths:
    """All K successors of N particles, with joint log weights, which are not normalised: ``(N K,)``."""
    count = regimes.logs.shape[1]
    every = jnp.arange(count)

    def one(regime: Array, mean: Array, spread: Array, log_weight: Array, k: Array) -> Paths:
        ahead = move(mean[:, None], regimes.matrix[k], regimes.offset[k])[:, 0]
        wide = predict(spread, regimes.matrix[k], regimes.noise[k], form)
        mean, spread, log_density = _see(ahead, wide, regimes, k, y, form)
        return Paths(k, mean, spread, log_weight + regimes.logs[regime, k] + log_density)

    both = jax.vmap(jax.vmap(one, (None, None, None, None, 0)), (0, 0, 0, 0, None))(*before, every)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), both)


def _see(
    mean: Array, spread: Array, regimes: Regimes, k: Array, y: Array, form: Form
) -> tuple[Array, Array, Array]:
    """Filtered mean and covariance (or factor), and log density of the observation, in regime k."""
    mask = ~jnp.isnan(y)
    seen = gains(spread, regimes.design[k], regimes.observation_noise[k], mask, form)
    residual = jnp.where(mask, y - regimes.level[k], 0)
    columns, constant, gram = evidence(mean[:, None], residual, seen)
    return columns[:, 0], seen.filtered, constant - 0.5 * gram[0, 0]


def narrow(
    candidates: Paths, u: Float[Array, ""], particles: int, regimes: int, form: Form
) -> tuple[Paths, tuple]:
    """N of the candidates, and what all of them together say: the fields of a :class:`SwitchingRun`."""
    total = jax.nn.logsumexp(candidates.log_weights)
    weights = jnp.exp(candidates.log_weights - total)
    probs = jnp.zeros(regimes, weights.dtype).at[candidates.regime].add(weights)
    spread = covariances(candidates.spread, form)
    mean, covariance = mixture_moments(weights, candidates.mean, spread)
    numbers, log_weights = choose(u, candidates.log_weights - total, particles)
    paths = jax.tree.map(lambda x: x[numbers], candidates)._replace(log_weights=log_weights)
    return paths, (paths, probs, mean, covariance, 1 / jnp.sum(weights**2), total)


def choose(
    u: Float[Array, ""], log_weights: Float[Array, " M"], count: int
) -> tuple[Int[Array, " N"], Float[Array, " N"]]:
    """N of M weighted points, none twice, with new weights of the same expectation as the old.

    With ``sum_i min(w_i / c, 1) = N``, a point of weight above c is kept with its weight; of the others some
    are drawn systematically, and weigh c. No other unbiased choice of N changes the weights less (Fearnhead &
    Clifford 2003, theorem 1). If N points or fewer have a weight, all are kept, and the slots that remain
    weigh nothing.

    Args:
        u: uniform on [0, 1).
        log_weights: normalised, shape ``(M,)``.
        count: N.

    Returns:
        Numbers of points in increasing order, and their log weights, which are normalised.
    """
    weights = jnp.exp(log_weights)
    if len(weights) < count:
        weights = jnp.pad(weights, (0, count - len(weights)))
    order = jnp.sort(weights, descending=True)
    tails = jnp.cumsum(order[::-1])[::-1][:count]
    levels = tails / (count - jnp.arange(count))
    level = levels[jnp.argmax(order[:count] <= levels)]

    kept = weights > level
    share = jnp.where(kept | (weights == 0), 0, weights / jnp.where(level > 0, level, 1))
    running = jnp.cumsum(share)
    whole = jnp.round(running[-1])
    # the rest are a whole number of points, but for rounding
    scaled = running * (whole / jnp.where(running[-1] > 0, running[-1], 1))
    running = jnp.where(running >= running[-1], whole, scaled)
    passed = jnp.floor(running + u)
    drawn = jnp.diff(passed, prepend=0) > 0
    chosen = kept | (drawn & ~kept)
    (numbers,) = jnp.nonzero(chosen, size=count, fill_value=0)
    filled = jnp.arange(count) < jnp.sum(chosen)
    new = jnp.where(kept[numbers], weights[numbers], level)
    log_new = jnp.where(filled, jnp.log(jnp.where(filled, new, 1)), -jnp.inf)
    return jnp.minimum(numbers, len(log_weights) - 1), log_new


class Future(NamedTuple):
    """What later observations say of a state: ``exp(-x' precision x / 2 + shift' x)``, up to a factor."""

    precision: Float[Array, "n n"]
    shift: Float[Array, " n"]


def backward_sample(
    chain: SwitchingChain, paths: Paths, key: PRNGKeyArray, draws: int, form: Form
) -> Int[Array, "draws T"]:
    """Paths of regimes given all observations, the states integrated out.

    From the end, ``P(r_t = i | r_{t+1}, ..., y)`` is proportional to the filter's weight of particle i, times
    the probability of ``r_{t+1}``, times the likelihood of the later observations given the particle and the
    regimes already drawn: the integral of the particle's normal law against a Gaussian function of the state,
    which is carried backward with the path (Whiteley, Andrieu & Doucet 2010; Lindsten, Bunch, Godsill & Schön
    2013).
    """
    steps = len(chain.y)
    keys = jax.random.split(key, (steps, draws))
    last = jax.tree.map(lambda x: x[-1], paths)
    ends = jax.vmap(lambda k: last.regime[jax.random.categorical(k, last.log_weights)])(keys[-1])
    n = chain.mean.shape[1]
    nothing = Future(
        jnp.zeros((draws, n, n), chain.mean.dtype), jnp.zeros((draws, n), chain.mean.dtype)
    )

    def step(carry: tuple[Array, Future], at: tuple) -> tuple[tuple[Array, Future], Array]:
        here, row, y, keys = at
        regimes = eqx.combine(chain.constant, row)

        def one(after: Array, future: Future, key: Array) -> tuple[Array, Future]:
            future = pull_back(future, regimes, after, y, form)
            log_weights = here.log_weights + regimes.logs[here.regime, after]
            log_weights += jax.vmap(lambda m, p: log_integral(m, p, future, form))(
                here.mean, here.spread
            )
            return here.regime[jax.random.categorical(key, log_weights)], future

        drawn, future = jax.vmap(one)(*carry, keys)
        return (drawn, future), drawn

    before = jax.tree.map(lambda x: x[:-1], paths)
    later = jax.tree.map(lambda x: x[1:], (chain.varying, chain.y))
    _, drawn = jax.lax.scan(step, (ends, nothing), (before, *later, keys[:-1]), reverse=True)
    return jnp.concatenate([drawn, ends[None]]).T


def pull_back(
    future: Future, regimes: Regimes, k: Int[Array, ""], y: Float[Array, " m"], form: Form
) -> Future:
    """What an observation and all later ones say of the state one moment before, in regime k.

    The joint law of observation and state given the state before is written as that of the observation
    times that of the state given both, so that observations without noise need no care.
    """
    f, b = regimes.matrix[k], regimes.offset[k]
    mask = ~jnp.isnan(y)
    seen = gains(regimes.noise[k], regimes.design[k], regimes.observation_noise[k], mask, form)
    residual = jnp.where(mask, y - regimes.level[k], 0) - seen.design @ b
    design = la.solve_lower(seen.factor, la.matmul(seen.design, f))
    white = la.solve_lower(seen.factor, residual[:, None])[:, 0]

    closed = f - la.matmul(seen.gain, la.matmul(seen.design, f))
    shifted = b + seen.gain @ residual
    _, gain, _ = update(Sites, form)(seen.filtered, future.precision, None)
    inside = la.symmetric(
        future.precision - la.matmul(future.precision, la.matmul(gain, future.precision))
    )
    shift = future.shift - future.precision @ (gain @ future.shift) - inside @ shifted
    precision = la.t_matmul(design, design) + la.t_matmul(closed, la.matmul(inside, closed))
    return Future(la.symmetric(precision), design.T @ white + closed.T @ shift)


def log_integral(
    mean: Float[Array, " n"], spread: Float[Array, "n n"], future: Future, form: Form
) -> Float[Array, ""]:
    """``log int N(x; mean, covariance) exp(-x' precision x / 2 + shift' x) dx``."""
    _, gain, factor = update(Sites, form)(spread, future.precision, None)
    pull = future.precision @ mean
    innovation = future.shift - pull
    return (
        mean @ (future.shift - 0.5 * pull)
        + 0.5 * innovation @ (gain @ innovation)
        - la.log_diagonal(factor)
    )


def along_path(
    chain: SwitchingChain, path: Int[Array, " T"], key: PRNGKeyArray, form: Form
) -> tuple[Float[Array, "T n"], Float[Array, "T n n"], Float[Array, "T n"]]:
    """Smoothed means and covariances of the states given a path of regimes, and a joint draw of them."""
    of = lambda t, k: jax.tree.map(lambda x: x[k], tuple(chain.at(t)[0])[1:])
    rows = jax.vmap(of)(jnp.arange(len(path)), path)
    matrix, offset, noise, design, level, observation_noise = rows
    mask = ~jnp.isnan(chain.y)
    linear = gaussian.Chain(
        gaussian.Initial(chain.mean[path[0]], chain.noise[path[0]]),
        gaussian.Transitions(matrix[1:], offset[1:], noise[1:]),
        gaussian.Observed(design, level, observation_noise, jnp.where(mask, chain.y, 0), mask),
    )
    smoothed = gaussian.smooth(linear, form=form, parallel=False)
    drawn = gaussian.sample(linear, key, 1, form=form, parallel=False)
    return smoothed.mean, smoothed.covariance, drawn[0]


def predictive_probabilities(
    chain: SwitchingChain, paths: Paths, form: Form
) -> Float[Array, "T m"]:
    """``P(Y_t <= y_t | y_{<t})`` of each channel by itself; what is missing counts as zero."""
    y = jnp.where(jnp.isnan(chain.y), 0, chain.y)

    def below(log_weights: Array, mean: Array, spread: Array, k: Array, at: tuple) -> Array:
        regimes, y = at
        centre = jax.vmap(lambda m, k: regimes.design[k] @ m + regimes.level[k])(mean, k)

        def variance(spread: Array, k: Array) -> Array:
            wide = predict(spread, regimes.design[k], regimes.observation_noise[k], form)
            return jnp.diagonal(wide if form == "covariance" else wide @ wide.T)

        deviation = jnp.sqrt(jax.vmap(variance)(spread, k))
        return jnp.exp(log_weights) @ ndtr((y - centre) / deviation)

    def later(before: Paths, t: Array) -> Array:
        regimes, _ = chain.at(t)
        unseen = successors(before, regimes, jnp.full_like(y[0], jnp.nan), form)
        now = unseen.log_weights, unseen.mean, unseen.spread, unseen.regime
        return below(*now, (regimes, y[t]))

    every = jnp.arange(len(chain.log_probs))
    first = below(chain.log_probs, chain.mean, chain.noise, every, (chain.at(0)[0], y[0]))
    before = jax.tree.map(lambda x: x[:-1], paths)
    return jnp.concatenate([first[None], jax.vmap(later)(before, jnp.arange(1, len(y)))])
