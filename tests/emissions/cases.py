"""Emissions of three states, what they have observed, and their log densities by SciPy."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from scipy import stats

from statespace import emissions
from statespace.model import Step

K, T = 3, 14


class Case(NamedTuple):
    """An emission, observations with missing entries, and `oracle(k, seen, row, past) -> log density`."""

    emission: emissions.Emission
    y: np.ndarray
    oracle: object


def steps(length, *batch):
    """Stacked steps with two inputs."""
    index = np.broadcast_to(np.arange(length), (*batch, length))
    inputs = np.random.default_rng(9).normal(size=(*batch, length, 2))
    return Step(*map(jnp.asarray, (index, index * 1.0, np.ones(index.shape), inputs)))


def with_gaps(y, rng, share=0.25):
    """Some entries missing in part, some rows entirely; the first rows are complete."""
    y = np.array(y, float)
    gaps = rng.random(y.shape) < share
    gaps[:4] = False
    y[gaps] = np.nan
    y[-3] = np.nan
    return y


def factors(rng, m, count=K):
    """Cholesky factors of random covariances."""
    return np.array(
        [
            np.linalg.cholesky(np.cov(rng.normal(size=(m, 3 * m))) + 0.1 * np.eye(m))
            for _ in range(count)
        ]
    )


def per_channel(law):
    """Oracle of independent channels: `law(k, i)` is a frozen SciPy distribution."""

    def oracle(k, seen, row, past):
        one = lambda i: getattr(law(k, i), "logpmf", getattr(law(k, i), "logpdf", None))(row[i])
        return sum(one(i) for i in np.flatnonzero(seen))

    return oracle


def gaussian(mean, square):
    """Oracle of a full covariance, of which only what was seen is kept."""
    return lambda k, seen, row, past: stats.multivariate_normal.logpdf(
        row[seen], mean[k][seen], square(k)[np.ix_(seen, seen)]
    )


def cases():
    """One of every kind."""
    rng = np.random.default_rng(0)
    out = {}
    for name, m in (("gaussian full", 3), ("gaussian full of ten channels", 10)):
        mean, scale = rng.normal(size=(K, m)), factors(rng, m)
        out[name] = Case(
            emissions.Gaussian(mean, scale),
            with_gaps(rng.normal(size=(T, m)), rng),
            gaussian(mean, lambda k, scale=scale: scale[k] @ scale[k].T),
        )
    mean, scale = rng.normal(size=(K, 3)), rng.uniform(0.5, 2, (K, 3))
    y = with_gaps(rng.normal(size=(T, 3)), rng)
    out["gaussian diagonal"] = Case(
        emissions.Gaussian(mean, scale),
        y,
        per_channel(lambda k, i: stats.norm(mean[k, i], scale[k, i])),
    )
    shared = factors(rng, 3, 1)
    out["gaussian tied"] = Case(
        emissions.Gaussian(mean, shared), y, gaussian(mean, lambda k: shared[0] @ shared[0].T)
    )
    out["gaussian tied diagonal"] = Case(
        emissions.Gaussian(mean, scale[:1]),
        y,
        per_channel(lambda k, i: stats.norm(mean[k, i], scale[0, i])),
    )
    out["gaussian of one channel"] = Case(
        emissions.Gaussian(mean[:, 0], scale[:, 0]),
        y[:, :1],
        per_channel(lambda k, i: stats.norm(mean[k, 0], scale[k, 0])),
    )
    degrees, tri = np.array([2.5, 4.0, 30.0]), factors(rng, 3)
    student = lambda factor: (
        lambda k, seen, row, past: stats.multivariate_t.logpdf(
            row[seen], mean[k][seen], (factor(k) @ factor(k).T)[np.ix_(seen, seen)], degrees[k]
        )
    )
    out["t full"] = Case(emissions.StudentT(degrees, mean, tri), y, student(lambda k: tri[k]))
    out["t diagonal"] = Case(
        emissions.StudentT(degrees, mean, scale), y, student(lambda k: np.diag(scale[k]))
    )
    out["t of one channel"] = Case(
        emissions.StudentT(degrees, mean[:, 0], scale[:, 0]),
        y[:, :1],
        per_channel(lambda k, i: stats.t(degrees[k], mean[k, 0], scale[k, 0])),
    )
    out |= counts(rng) | autoregressive(rng, y) | mixtures(rng, y)
    return out


def counts(rng):
    """Counts, events and labels."""
    y = with_gaps(rng.poisson(3, size=(T, 2)), rng)
    rate, concentration = rng.uniform(1, 5, (K, 2)), rng.uniform(0.5, 5, (K, 2))
    probs = rng.uniform(0.1, 0.9, (K, 2))
    table = rng.dirichlet(np.ones(4), (K, 2))
    table[0, 0, 1], table[0, 0, 0] = 0.0, table[0, 0, 0] + table[0, 0, 1]
    label = lambda law: lambda k, i: stats.rv_discrete(values=(np.arange(4), law(k, i)))
    return {
        "poisson": Case(
            emissions.Poisson(rate), y, per_channel(lambda k, i: stats.poisson(rate[k, i]))
        ),
        "poisson of one channel": Case(
            emissions.Poisson(rate[:, 0]),
            y[:, :1],
            per_channel(lambda k, i: stats.poisson(rate[k, 0])),
        ),
        "bernoulli": Case(
            emissions.Bernoulli(probs),
            np.where(np.isnan(y), np.nan, y > 2),
            per_channel(lambda k, i: stats.bernoulli(probs[k, i])),
        ),
        "negative binomial": Case(
            emissions.NegativeBinomial(rate, concentration),
            y,
            per_channel(
                lambda k, i: stats.nbinom(
                    concentration[k, i], concentration[k, i] / (concentration[k, i] + rate[k, i])
                )
            ),
        ),
        "categorical": Case(
            emissions.Categorical(table),
            np.minimum(y, 3),
            per_channel(label(lambda k, i: table[k, i])),
        ),
        "categorical of one channel": Case(
            emissions.Categorical(table[:, 1]),
            np.minimum(y, 3)[:, :1],
            per_channel(label(lambda k, i: table[k, 1])),
        ),
    }


def autoregressive(rng, y):
    """Two lags and two inputs; an unknown past leaves nothing to say."""
    a, b, offset = (
        0.3 * rng.normal(size=(K, 2, 3, 3)),
        rng.normal(size=(K, 3, 2)),
        rng.normal(size=(K, 3)),
    )
    tri, u = factors(rng, 3), np.asarray(steps(T).inputs)
    y = y.copy()
    y[4:8] = np.nan_to_num(y[4:8])
    y[6, 1] = np.nan

    def oracle(k, seen, row, past):
        if len(past) < 2 or np.isnan(past[-2:]).any():
            return 0.0
        mean = offset[k] + a[k, 0] @ past[-1] + a[k, 1] @ past[-2] + b[k] @ u[len(past)]
        square = (tri[k] @ tri[k].T)[np.ix_(seen, seen)]
        return stats.multivariate_normal.logpdf(row[seen], mean[seen], square)

    def of_one_channel(k, seen, row, past):
        if len(past) < 1 or np.isnan(past[-1, 0]):
            return 0.0
        return stats.norm.logpdf(row[0], offset[k, 0] + a[k, 0, 0, 0] * past[-1, 0], tri[k, 0, 0])

    return {
        "autoregressive": Case(emissions.Autoregressive(a, offset, tri, b), y, oracle),
        "autoregressive of one channel": Case(
            emissions.Autoregressive(a[:, :1, 0, 0], offset[:, 0], tri[:, 0, 0]),
            y[:, :1],
            of_one_channel,
        ),
    }


def mixtures(rng, y):
    """Mixtures, of which one state lacks a component, and wrapped distributions."""
    weights = rng.dirichlet(np.ones(2), K)
    weights[1] = [0.0, 1.0]
    mean, tri = rng.normal(size=(K, 2, 3)), factors(rng, 3, 2 * K).reshape(K, 2, 3, 3)

    def mixture(k, seen, row, past):
        each = [
            weights[k, c]
            * stats.multivariate_normal.pdf(
                row[seen], mean[k, c][seen], (tri[k, c] @ tri[k, c].T)[np.ix_(seen, seen)]
            )
            for c in range(2)
        ]
        return np.log(sum(each))

    loc, scale = rng.normal(size=(K, 3)), rng.uniform(0.5, 2, (K, 3))
    return {
        "mixture": Case(emissions.Mixture(weights, mean, tri), y, mixture),
        "laplace": Case(
            emissions.Distribution(dist.Laplace, loc=loc, scale=scale),
            y,
            per_channel(lambda k, i: stats.laplace(loc[k, i], scale[k, i])),
        ),
        "laplace of one channel": Case(
            emissions.Distribution(dist.Laplace, loc=loc[:, 0], scale=1.5),
            y[:, :1],
            per_channel(lambda k, i: stats.laplace(loc[k, 0], 1.5)),
        ),
        "binomial": Case(
            emissions.Distribution(dist.BinomialProbs, probs=[0.2, 0.5, 0.7], total_count=6),
            np.round(np.abs(y[:, :1])),
            per_channel(lambda k, i: stats.binom(6, [0.2, 0.5, 0.7][k])),
        ),
    }


CASES = cases()
