"""Whether to trust a particle run: effective sizes, lineages, the variance of log Z, tails of weights."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from statespace.chains.particle.variance import from_families
from statespace.posteriors.particle import ParticlePosterior

__all__ = [
    "ParticleReport",
    "lineages",
    "pareto_k",
    "particle_report",
    "unique_ancestors",
    "variance_of_log_likelihood",
]

_TARGET = 1.2
"""Variance of the log likelihood for Metropolis moves of parameters, between 1 and 1.5."""


def lineages(posterior: ParticlePosterior) -> np.ndarray:
    """Of each last particle the number of its ancestor at each moment, shape ``(T, N)``.

    Raises:
        TypeError: if it is no posterior by particles.
        ValueError: if it holds no ancestors.
    """
    ancestors = np.asarray(_checked(posterior).ancestors)
    out = np.empty_like(ancestors)
    out[-1] = np.arange(ancestors.shape[1])
    for t in range(len(ancestors) - 1, 0, -1):
        out[t - 1] = ancestors[t][out[t]]
    return out


def unique_ancestors(posterior: ParticlePosterior) -> np.ndarray:
    """How many particles of each moment have a descendant among the last ones, shape ``(T,)``.

    Where it is small, smoothing by the filter's lineages rests on few paths (path degeneracy).

    Raises:
        TypeError: if it is no posterior by particles.
        ValueError: if it holds no ancestors.
    """
    return np.asarray([len(np.unique(row)) for row in lineages(posterior)])


def variance_of_log_likelihood(posterior: ParticlePosterior) -> float:
    """Variance of the estimate of the log likelihood, from the single run that gave it.

    ``1 - (N / (N - 1))^r sum W_i W_j`` over the pairs of last particles whose first ancestors differ, with r
    the number of resamplings and the start: without bias for the relative variance of the likelihood where
    ancestors are drawn independently at every moment, too large for schemes with less variance. Where few
    first ancestors are left it says little but that the variance is not small.

    Args:
        posterior: of ``filter`` with a particle method.

    Raises:
        TypeError: if it is no posterior by particles.
        ValueError: if it holds no ancestors.

    References:
        Lee & Whiteley (2018), Variance estimation in the particle filter, equation 6; Chan & Lai (2013).
    """
    first = lineages(posterior)[0]
    weights = np.exp(np.asarray(posterior.log_weights[-1], float))
    count = len(weights)
    families = np.bincount(first, weights, minlength=count)
    drawn = int(np.sum(np.asarray(posterior.resampled))) + 1
    return float(from_families(weights.sum() ** 2 - np.sum(families**2), count, drawn))


def pareto_k(log_weights: Any) -> np.ndarray:
    """Shape of the upper tail of importance weights: below 0.7 means over them can be trusted.

    A generalised Pareto law is fitted to the ``min(N / 5, 3 sqrt(N))`` largest weights; with a shape k only
    the moments of order below 1 / k exist.

    Args:
        log_weights: shape ``(N,)``, or ``(T, N)`` for each of T moments.

    Returns:
        Shape ``()`` or ``(T,)``; minus infinity where the largest weights are all the same, NaN for fewer
        than 25 weights.

    References:
        Vehtari, Simpson, Gelman, Yao & Gabry (2024), Pareto smoothed importance sampling; Zhang & Stephens
        (2009) for the fit.
    """
    logs = np.asarray(log_weights, float)
    each = [_tail_shape(row) for row in logs.reshape(-1, logs.shape[-1])]
    return np.asarray(each).reshape(logs.shape[:-1])


def _tail_shape(logs: np.ndarray) -> float:
    size = int(np.ceil(min(len(logs) / 5, 3 * np.sqrt(len(logs)))))
    if size < 5:
        return float("nan")
    ordered = np.exp(np.sort(logs)[-size - 1 :] - logs.max())
    excess = ordered[1:] - ordered[0]
    excess = excess[excess > 0]
    # weights that differ by no more than rounding have no tail
    if len(excess) < 5 or excess[-1] < 1e-12:
        return float("-inf")
    return _generalised_pareto(excess)


def _generalised_pareto(x: np.ndarray) -> float:
    """Shape of a generalised Pareto law by Zhang and Stephens, drawn to 0.5 as by 10 values more."""
    count, grid = len(x), 30 + int(np.sqrt(len(x)))
    rank = np.arange(1, grid + 1) - 0.5
    quartile = x[int(count / 4 + 0.5) - 1]
    theta = 1 / x[-1] + (1 - np.sqrt(grid / rank)) / (3 * quartile)
    shape = np.log1p(-theta[:, None] * x).mean(axis=1)
    profile = count * (np.log(-theta / shape) - shape - 1)
    weight = 1 / np.exp(profile - profile[:, None]).sum(axis=1)
    best = np.sum(theta * weight) / weight.sum()
    k = np.log1p(-best * x).mean()
    return float((count * k + 10 * 0.5) / (count + 10))


@dataclasses.dataclass(frozen=True)
class ParticleReport:
    """How a particle run went. Printing it gives a table with advice.

    Attributes:
        particles: N.
        ess: effective sample size at each moment, shape ``(T,)``.
        unique: particles of each moment with a descendant among the last, shape ``(T,)``.
        resampled: share of the moments at which ancestors were drawn.
        variance: of the log likelihood; see :func:`variance_of_log_likelihood`.
        first_ancestors: how many first ancestors it rests on.
        pareto_k: of the weights at each moment, shape ``(T,)``.
        advised: N that would bring the variance to 1.2, as particle marginal Metropolis wants it; None where
            too few first ancestors are left to say.
    """

    particles: int
    ess: np.ndarray
    unique: np.ndarray
    resampled: float
    variance: float
    first_ancestors: int
    pareto_k: np.ndarray
    advised: int | None

    def __str__(self) -> str:
        k = self.pareto_k[np.isfinite(self.pareto_k)]
        worst = f"{k.max():.2f} ({np.sum(k > 0.7)} moments above 0.7)" if len(k) else "none"
        lines = [
            ("particles", f"{self.particles}"),
            ("effective sample size", f"{np.median(self.ess):.0f} (least {self.ess.min():.0f})"),
            ("moments with resampling", f"{self.resampled:.0%}"),
            ("first ancestors of the last cloud", f"{self.first_ancestors}"),
            ("variance of the log likelihood", f"{self.variance:.3g}"),
            ("Pareto k of the weights, greatest", worst),
        ]
        width = max(len(name) for name, _ in lines)
        table = [f"{name:{width}}  {value}" for name, value in lines]
        return "\n".join([*table, *self.advice])

    @property
    def advice(self) -> list[str]:
        """What to change, in sentences."""
        said = []
        if self.advised is None:
            said.append(
                "Few first ancestors are left: the variance above is a lower bound; use more particles, or "
                'proposal="linearised".'
            )
        elif not 0.8 <= self.variance <= 1.6:
            said.append(
                f"For particle marginal Metropolis, which wants a variance of 1 to 1.5: about {self.advised} "
                "particles."
            )
        if np.any(self.pareto_k > 0.7):
            said.append(
                "Weights have heavy tails: few particles meet the observation; use another proposal, with "
                "heavier tails."
            )
        return said


def particle_report(posterior: ParticlePosterior) -> ParticleReport:
    """Effective sizes, lineages, variance of the log likelihood and tails of the weights of one run.

    Args:
        posterior: of ``filter`` with a particle method.

    Raises:
        TypeError: if it is no posterior by particles.
        ValueError: if it holds no ancestors.
    """
    unique = unique_ancestors(posterior)
    variance = variance_of_log_likelihood(posterior)
    count = posterior.log_weights.shape[1]
    told = unique[0] >= 10
    return ParticleReport(
        particles=count,
        ess=np.asarray(posterior.ess),
        unique=unique,
        resampled=float(np.mean(np.asarray(posterior.resampled))),
        variance=variance,
        first_ancestors=int(unique[0]),
        pareto_k=pareto_k(posterior.log_weights),
        advised=max(2, round(count * max(variance, 0.0) / _TARGET)) if told else None,
    )


def _checked(posterior: Any) -> ParticlePosterior:
    if not isinstance(posterior, ParticlePosterior):
        raise TypeError(
            "this looks at a ParticlePosterior, such as `filter` with ParticleFilter() gives, got "
            f"{type(posterior).__name__}."
        )
    if posterior.ancestors is None:
        raise ValueError(
            "this posterior holds no ancestors: make it with `filter` and a particle method."
        )
    return posterior
