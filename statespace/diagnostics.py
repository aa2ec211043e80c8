"""Tests of the residuals: what a right model would leave is independent, normal, and of constant variance."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from statespace.latency import Latency, latency
from statespace.particle_diagnostics import (
    ParticleReport,
    lineages,
    pareto_k,
    particle_report,
    unique_ancestors,
    variance_of_log_likelihood,
)
from statespace.series import as_series

__all__ = [
    "HypothesisTest",
    "Latency",
    "ParticleReport",
    "ResidualTests",
    "autocorrelation",
    "heteroskedasticity",
    "jarque_bera",
    "latency",
    "lineages",
    "ljung_box",
    "pareto_k",
    "particle_report",
    "residual_tests",
    "unique_ancestors",
    "variance_of_log_likelihood",
]


class HypothesisTest(NamedTuple):
    """A statistic, and the probability of one at least as extreme when the model is right."""

    statistic: float
    p_value: float


def autocorrelation(values: Any, lags: int) -> np.ndarray:
    """Sample autocorrelations at lags 0 … ``lags``; NaN is missing and leaves out the pairs it is in.

    Parzen's amplitude-modulated estimator (1963, On spectral analysis with missing observations); without
    missing values the usual one, with the sum of all squares below.

    Args:
        values: shape ``(T,)``.
        lags: the largest lag, less than T.

    Raises:
        ValueError: if ``values`` is not of shape ``(T,)`` or is too short.
    """
    x = _one_channel(values)
    if not 0 <= lags < len(x):
        raise ValueError(f"`lags` must be from 0 to {len(x) - 1} for {len(x)} values, got {lags}.")
    deviation = np.where(np.isnan(x), 0.0, x - np.nanmean(x))
    products = [deviation[k:] @ deviation[: len(x) - k] for k in range(lags + 1)]
    return np.array(products) / products[0]


def ljung_box(values: Any, lags: int | Sequence[int] = 10, fitted: int = 0) -> list[HypothesisTest]:
    """Test of no autocorrelation up to each lag (Ljung & Box 1978).

    ``Q = n (n + 2) sum_k r_k^2 / n_k``, with ``n_k`` pairs observed at lag k (``n - k`` when nothing is
    missing; Stoffer & Toloi 1992 for when something is), against a chi-squared law.

    Args:
        values: residuals, shape ``(T,)``, NaN where missing.
        lags: the largest lag, for a test up to each one; or a list of those to report.
        fitted: degrees of freedom lost to estimation (p + q of an ARMA model); p values at lags up to this
            number are NaN.

    Returns:
        A statistic and its p value for each lag.

    Raises:
        ValueError: if a lag is less than 1, or too large for the series.
    """
    from scipy.special import chdtrc  # here, since it takes as long to import as the whole package

    x = _one_channel(values)
    reported = np.arange(1, lags + 1) if isinstance(lags, (int, np.integer)) else np.asarray(lags)
    if reported.size == 0 or reported.min() < 1 or reported.max() >= len(x):
        raise ValueError(f"`lags` must be from 1 to {len(x) - 1} for {len(x)} values, got {lags}.")
    largest = int(reported.max())
    seen = (~np.isnan(x)).astype(float)
    n = seen.sum()
    pairs = np.array([seen[k:] @ seen[: len(x) - k] for k in range(1, largest + 1)])
    r = autocorrelation(x, largest)[1:]
    q = n * (n + 2) * np.cumsum(np.where(pairs > 0, r**2 / np.maximum(pairs, 1), 0.0))
    freedom = np.where(reported > fitted, reported - fitted, np.nan)
    return [
        HypothesisTest(float(s), float(p))
        for s, p in zip(q[reported - 1], chdtrc(freedom, q[reported - 1]))
    ]


def jarque_bera(values: Any) -> HypothesisTest:
    """Test of normality by skewness and kurtosis (Jarque & Bera 1987).

    ``n (S^2 + (K - 3)^2 / 4) / 6`` against a chi-squared law with two degrees of freedom.

    Args:
        values: residuals, shape ``(T,)``, NaN where missing.
    """
    from scipy.special import chdtrc

    x = _one_channel(values)
    x = x[~np.isnan(x)]
    skewness, kurtosis = _shape(x)
    statistic = len(x) / 6 * (skewness**2 + (kurtosis - 3) ** 2 / 4)
    return HypothesisTest(float(statistic), float(chdtrc(2, statistic)))


def heteroskedasticity(
    values: Any, alternative: Literal["two-sided", "increasing", "decreasing"] = "two-sided"
) -> HypothesisTest:
    """Test of constant variance: the last third's mean square over the first's.

    ``H(h)`` of Harvey (1989) and Durbin & Koopman (2012, section 2.12.1), against an F law with
    the numbers of observed values as degrees of freedom. The thirds are of the moments, missing ones
    included.

    Args:
        values: residuals, shape ``(T,)``, NaN where missing.
        alternative: how the variance changes when it is not constant.

    Raises:
        ValueError: if ``alternative`` is unknown.
    """
    from scipy.special import fdtr, fdtrc

    x = _one_channel(values)
    h = round(len(x) / 3)
    first, last = x[:h], x[len(x) - h :]
    first, last = first[~np.isnan(first)], last[~np.isnan(last)]
    if len(first) < 2 or len(last) < 2:
        return HypothesisTest(float("nan"), float("nan"))
    statistic = float(np.mean(last**2) / np.mean(first**2))
    below = fdtr(len(last), len(first), statistic)
    above = fdtrc(len(last), len(first), statistic)
    p_values = {"two-sided": 2 * min(below, above), "increasing": above, "decreasing": below}
    if alternative not in p_values:
        raise ValueError(f"`alternative` must be one of {list(p_values)}, got {alternative!r}.")
    return HypothesisTest(statistic, float(p_values[alternative]))


@dataclasses.dataclass(frozen=True)
class ResidualTests:
    """Tests of the standardised one-step prediction errors, by channel. Printing it gives a table.

    Attributes:
        channels: names of the m channels.
        counts: how many residuals each channel has.
        lags: lags up to which autocorrelation was tested.
        autocorrelation: Ljung–Box, for each channel.
        normality: Jarque–Bera, for each channel.
        heteroskedasticity: H, for each channel.
        mean: of the residuals of each channel; 0 when the model is right.
        variance: of the residuals of each channel; 1 when the model is right.
        skewness: of the residuals of each channel; 0 when the model is right.
        kurtosis: of the residuals of each channel; 3 when the model is right.
    """

    channels: tuple[str, ...]
    counts: tuple[int, ...]
    lags: int
    autocorrelation: tuple[HypothesisTest, ...]
    normality: tuple[HypothesisTest, ...]
    heteroskedasticity: tuple[HypothesisTest, ...]
    mean: tuple[float, ...]
    variance: tuple[float, ...]
    skewness: tuple[float, ...]
    kurtosis: tuple[float, ...]

    def __str__(self) -> str:
        tests = [
            (f"no autocorrelation up to lag {self.lags} (Ljung–Box)", self.autocorrelation),
            ("normality (Jarque–Bera)", self.normality),
            ("constant variance (H)", self.heteroskedasticity),
        ]
        width = max(len(name) for name, _ in tests)
        lines = []
        for i, channel in enumerate(self.channels):
            lines.append(f"{channel}: {self.counts[i]} standardised prediction errors")
            lines.append(f"  {'':{width}}  statistic   p value")
            for name, results in tests:
                statistic, p = results[i]
                lines.append(f"  {name:{width}}  {statistic:>9.3f}  {_p_value(p):>8}")
            lines.append(
                f"  mean {self.mean[i]:.3f} (0), variance {self.variance[i]:.3f} (1), "
                f"skewness {self.skewness[i]:.3f} (0), kurtosis {self.kurtosis[i]:.3f} (3)"
            )
        return "\n".join(lines)


def residual_tests(posterior: Any, lags: int | None = None, fitted: int = 0) -> ResidualTests:
    """Tests whether the standardised one-step prediction errors are what a right model would leave.

    Args:
        posterior: of ``filter`` or ``smooth``; or standardised errors themselves, shape ``(T,)`` or
            ``(T, m)``, NaN where missing. Moments before the first prediction that is not diffuse are left
            out.
        lags: lags up to which autocorrelation is tested; default the smaller of 10 and a fifth of the errors.
        fitted: degrees of freedom lost to estimation, for the test of autocorrelation.

    Raises:
        ValueError: if a channel has fewer than three errors, or the posterior holds no predictions.
    """
    errors, names = standardised_errors(posterior)
    columns = [trim(errors[:, i]) for i in range(errors.shape[1])]
    seen = [column[~np.isnan(column)] for column in columns]
    for name, x in zip(names, seen):
        if len(x) < 3:
            raise ValueError(
                f"channel {name!r} has {len(x)} prediction errors; the tests need at least 3."
            )
    if lags is None:
        lags = max(1, min(10, min(len(column) for column in columns) // 5))
    return ResidualTests(
        channels=names,
        counts=tuple(len(x) for x in seen),
        lags=lags,
        autocorrelation=tuple(ljung_box(c, [lags], fitted)[0] for c in columns),
        normality=tuple(jarque_bera(c) for c in columns),
        heteroskedasticity=tuple(heteroskedasticity(c) for c in columns),
        mean=tuple(float(x.mean()) for x in seen),
        variance=tuple(float(x.var()) for x in seen),
        skewness=tuple(_shape(x)[0] for x in seen),
        kurtosis=tuple(_shape(x)[1] for x in seen),
    )


def standardised_errors(posterior: Any) -> tuple[np.ndarray, tuple[str, ...]]:
    """Standardised one-step prediction errors ``(T, m)`` with the channels' names.

    Raises:
        TypeError: if a posterior of finite states or regimes never holds them.
        ValueError: if another does not.
    """
    if hasattr(posterior, "residuals"):  # the result of a learner
        posterior = posterior.residuals()
    elif hasattr(posterior, "probs") and not hasattr(type(posterior), "innovations"):
        raise TypeError(
            f"a {type(posterior).__name__} holds the law of the states and not that of the observations, "
            "which prediction errors need: give the result of `ss.fit` instead, or its `residuals()`."
        )
    if hasattr(posterior, "innovations"):
        return np.asarray(posterior.innovations, float), tuple(posterior.channel_names)
    series = as_series(posterior)
    names = series.labels.channels if series.labels else None
    m = series.channels.shape[1]
    default = ("y",) if m == 1 else tuple(f"y{i}" for i in range(m))
    return np.asarray(series.channels, float), names or default


def trim(errors: np.ndarray) -> np.ndarray:
    """The errors of one channel from the first that there is."""
    seen = np.flatnonzero(~np.isnan(errors))
    return errors[seen[0] :] if seen.size else errors[:0]


def _one_channel(values: Any) -> np.ndarray:
    x = np.asarray(values, float)
    if x.ndim != 1 or not x.size or np.isnan(x).all():
        raise ValueError(
            f"`values` must be the residuals of one channel, shape (T,), not all NaN; got {x.shape}."
        )
    return x


def _shape(x: np.ndarray) -> tuple[float, float]:
    """Skewness and kurtosis, 0 and 3 for a normal law."""
    z = (x - x.mean()) / x.std()
    return float(np.mean(z**3)), float(np.mean(z**4))


def _p_value(p: float) -> str:
    return "<0.001" if p < 0.001 else f"{p:.3f}"
