"""Pictures of results, with matplotlib (``pip install "statespace-jax[plot]"``).

Each function draws into new axes, or into those given, and returns them: one Axes, or an array of them when
there are several panels. Moments without an observation are shaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from statespace import canvas
from statespace.arviz import require_arviz
from statespace.canvas import ACCENT, DATA, FAINT, MAIN
from statespace.chains.gaussian import Sites
from statespace.diagnostics import autocorrelation, ljung_box, standardised_errors, trim
from statespace.forecasts.sampled import SampledForecast
from statespace.labels import channel_names
from statespace.panels import PanelPosterior
from statespace.plot_particles import particles, update_rates
from statespace.plot_states import dwell_times, states, transitions, weight_filters, weights
from statespace.posteriors.gaussian import Forecast, GaussianPosterior
from statespace.posteriors.particle import ParticlePosterior
from statespace.posteriors.switching import RegimesAndStates
from statespace.series import as_series

__all__ = [
    "components",
    "diagnostics",
    "draws",
    "dwell_times",
    "filtered",
    "forecast",
    "particles",
    "smoothed",
    "states",
    "transitions",
    "update_rates",
    "weight_filters",
    "weights",
]


def smoothed(
    posterior: Any,
    data: Any = None,
    *,
    level: float | Sequence[float] = 0.9,
    states: bool | Sequence[str] = False,
    axes: Any = None,
) -> Any:
    """The smoothed signal of each channel, as bands over the data.

    Args:
        posterior: of ``smooth``.
        data: the recording, to draw in place of the one that the posterior holds.
        level: probability of the band, or of several nested ones.
        states: draw the states in place of the channels: all of them, or those named. Where the states say
            the observations by no linear signal (counts, switching models, particles) they are drawn in any
            case, by default below the channels of ``data`` where it is given.
        axes: one Axes for each panel; default: new ones, one below the other.

    Returns:
        One Axes, or an array of them.

    Raises:
        ImportError: if matplotlib is not installed.
        TypeError: if ``posterior`` is no posterior.
        ValueError: if a name is not that of a state, or ``axes`` are too few.

    Example:
        >>> ss.plot.smoothed(ss.smooth(model, nile), nile)
    """
    return _bands(posterior, data, level, states, axes, "smoothed")


def filtered(
    posterior: Any,
    data: Any = None,
    *,
    level: float | Sequence[float] = 0.9,
    states: bool | Sequence[str] = False,
    axes: Any = None,
) -> Any:
    """The filtered signal of each channel, as bands over the data; arguments as in :func:`smoothed`."""
    return _bands(posterior, data, level, states, axes, "filtered")


def forecast(
    forecast: Any,
    data: Any = None,
    *,
    levels: Sequence[float] = (0.5, 0.8, 0.95),
    actual: Any = None,
    last: int | None = None,
    axes: Any = None,
) -> Any:
    """A forecast as a fan of central intervals, after the data.

    Args:
        forecast: of ``forecast``.
        data: what it was made from.
        levels: probabilities of the intervals.
        actual: what came, shape ``(h,)`` or ``(h, m)``, drawn as open circles.
        last: how many moments of the data to show; default: all.
        axes: one Axes for each channel; default: new ones.

    Returns:
        One Axes, or an array of them, one for each channel.

    Raises:
        ImportError: if matplotlib is not installed.
        TypeError: if ``forecast`` is no forecast.
        ValueError: if ``axes`` are too few.

    Example:
        >>> ss.plot.forecast(ss.forecast(model, train, steps=10), train, actual=test)
    """
    _require(forecast, Forecast | SampledForecast, "forecast")
    names = forecast.names
    panels = canvas.panels(len(names), axes, height=2.6)
    x = canvas.positions(forecast.times, forecast.labels)
    mean = np.asarray(forecast.mean)
    series = None if data is None else as_series(data)
    for i, (ax, name) in enumerate(zip(panels, names)):
        if series is not None:
            before = canvas.positions(series.times, series.labels)[-(last or 0) :]
            observed = np.asarray(series.channels)[-(last or 0) :, i]
            canvas.observations(ax, before, observed)
            ax.axvline(before[-1], color=FAINT, lw=0.8, zorder=1)
        canvas.band(ax, x, mean[:, i], _nested(forecast, i, levels), "forecast", ACCENT)
        if actual is not None:
            came = np.asarray(as_series(actual).channels)[:, i]
            ax.plot(x, came, "o", mfc="white", mec=DATA, ms=4, label="held out", zorder=4)
        canvas.dress(ax, forecast.labels, name)
    return canvas.finish(panels, axes)


def components(posterior: Any, *, level: float = 0.9, axes: Any = None) -> Any:
    """What each named part of a structural model contributes to the observations.

    Args:
        posterior: of ``smooth`` or ``filter`` of a model whose parts have names.
        level: probability of the bands.
        axes: one Axes for each part; default: new ones, one below the other.

    Returns:
        One Axes, or an array of them, one for each part.

    Raises:
        ImportError: if matplotlib is not installed.
        TypeError: if ``posterior`` is no posterior.
        ValueError: if the model names no parts, or ``axes`` are too few.
    """
    _require(posterior, GaussianPosterior, "posterior")
    if not posterior.components:
        raise ValueError(
            "the model names no components to plot; a sum of structural parts, such as "
            "`LocalLevel(...) + Seasonal(...)`, does."
        )
    panels = canvas.panels(len(posterior.components), axes, height=1.9)
    x = canvas.positions(posterior.times, posterior.labels)
    missing = _missing(posterior)
    z = canvas.normal_quantile(0.5 + level / 2)
    for ax, (name, part) in zip(panels, posterior.components.items()):
        mean, std = (np.asarray(v, float).reshape(len(x), -1)[:, 0] for v in (part.mean, part.std))
        canvas.shade_missing(ax, x, missing)
        canvas.band(ax, x, mean, [((mean - z * std, mean + z * std), level)])
        # The same unit in every panel: a part that varies about zero shows where zero is.
        if mean.min() < 0 < mean.max():
            ax.axhline(0, color=FAINT, lw=0.8, zorder=0)
        canvas.dress(ax, posterior.labels, name)
    return canvas.finish(panels, axes)


def diagnostics(posterior: Any, *, lags: int | None = None, axes: Any = None) -> Any:
    """Standardised one-step prediction errors: what a right model would leave is white, normal and steady.

    Four panels for each channel: the errors over time; their histogram with the standard normal density;
    their quantiles against normal ones with a 95 % band; their autocorrelation with the 95 % band of white
    noise, and the Ljung–Box p value up to each lag.

    Args:
        posterior: of ``filter`` or ``smooth`` of a linear Gaussian model, or of a switching one by
            ``GaussianSum`` or ``InteractingMultipleModel``; the result of a learner, of any model (of finite
            states, normal pseudo-residuals); or standardised errors, ``(T,)`` or ``(T, m)``.
        lags: the largest lag; default the smaller of 20 and a quarter of the errors.
        axes: four Axes for each channel; default: new ones.

    Returns:
        An array of Axes, shape ``(2, 2)`` for one channel and ``(m, 4)`` for several.

    Raises:
        ImportError: if matplotlib is not installed.
        TypeError: if the posterior is of finite states, which does not hold the law of the observations.
        ValueError: if there are fewer than three errors, or ``axes`` are too few.
    """
    errors, names = standardised_errors(posterior)
    m = errors.shape[1]
    shape = (2, 2) if m == 1 else (m, 4)
    panels = canvas.grid(shape, axes, "one channel" if m == 1 else f"{m} channels")
    labels = getattr(posterior, "labels", None)
    times = getattr(posterior, "times", np.arange(len(errors)))
    x = canvas.positions(times, labels)
    for i, (name, row) in enumerate(zip(names, panels.reshape(m, 4))):
        kept = trim(errors[:, i])
        seen = kept[~np.isnan(kept)]
        if len(seen) < 3:
            raise ValueError(
                f"channel {name!r} has {len(seen)} prediction errors; a picture needs at least 3."
            )
        _over_time(row[0], x, errors[:, i], labels, name if m > 1 else "standardised error")
        _histogram(row[1], seen)
        _quantiles(row[2], seen)
        _correlogram(row[3], kept, lags or max(1, min(20, len(kept) // 4)))
        for ax in row if i else ():
            ax.set_title("", loc="left")
    return panels if axes is None else axes


def draws(result: Any, names: Sequence[str] | None = None, **kwargs: Any) -> Any:
    """Traces and marginal densities of draws, through ArviZ.

    Args:
        result: anything with ``to_arviz()``, or ArviZ's own inference data.
        names: which variables; default: all.
        **kwargs: passed on to ArviZ (``plot_trace``; from ArviZ 1.0 ``plot_trace_dist``).

    Returns:
        What ArviZ returns: an array of Axes, from ArviZ 1.0 a PlotCollection.

    Raises:
        ImportError: if ArviZ or matplotlib is not installed.
    """
    canvas.require_matplotlib()
    az = require_arviz()
    data = result.to_arviz() if hasattr(result, "to_arviz") else result
    if hasattr(az, "plot_trace_dist"):
        return az.plot_trace_dist(data, var_names=names, **kwargs)
    # Without it the titles of one row lie on the ticks of the row above.
    kwargs.setdefault("backend_kwargs", {"layout": "constrained"})
    return az.plot_trace(data, var_names=names, **kwargs)


def _bands(
    posterior: Any, data: Any, level: Any, states: bool | Sequence[str], axes: Any, word: str
) -> Any:
    """Bands of the signal over the data, or of the states."""
    _require(posterior, GaussianPosterior | ParticlePosterior | RegimesAndStates, "posterior")
    # particles, mixtures and sites in place of observations know of no linear signal
    sites = isinstance(getattr(getattr(posterior, "chain", None), "potentials", None), Sites)
    signal = isinstance(posterior, GaussianPosterior) and not sites
    above = data is not None and states is False and not signal
    states = states or not signal
    levels = np.atleast_1d(level)
    law = posterior if states else posterior.signal
    chosen = list(range(len(law.names)))
    if states is not False and states is not True:
        chosen = [_position(name, law.names) for name in states]
    x = canvas.positions(posterior.times, posterior.labels)
    y, at, labels = posterior.y, x, posterior.labels
    if data is not None:
        series = as_series(data)
        y, at, labels = (
            series.channels,
            canvas.positions(series.times, series.labels),
            series.labels,
        )
    channels = channel_names(labels, y.shape[1]) if above else ()
    panels = canvas.panels(len(channels) + len(chosen), axes, height=2.6)
    for i, (ax, name) in enumerate(zip(panels, channels)):
        canvas.observations(ax, at, np.asarray(y)[:, i])
        canvas.dress(ax, labels, name)
    for ax, i in zip(panels[len(channels) :], chosen):
        if y is not None and not states:
            canvas.observations(ax, at, np.asarray(y)[:, i])
        elif y is not None:
            canvas.shade_missing(ax, at, np.isnan(np.asarray(y)).all(axis=1))
        canvas.band(ax, x, _columns(law.mean)[:, i], _nested(law, i, levels), word)
        canvas.dress(ax, posterior.labels, law.names[i])
    return canvas.finish(panels, axes)


def _require(result: Any, kind: Any, name: str) -> None:
    if not isinstance(result, kind):
        verb = "`forecast`" if name == "forecast" else "`smooth` or `filter`"
        panel = "; draw its recordings one by one" if isinstance(result, PanelPosterior) else ""
        raise TypeError(
            f"`{name}` must be what {verb} returns, got {type(result).__name__}{panel}."
        )


def _nested(law: Any, i: int, levels: Any) -> list[tuple[Any, float]]:
    """Bounds of coordinate i and level of each interval, the widest first."""
    out = []
    for level in sorted((float(q) for q in levels), reverse=True):
        low, high = law.interval(level)
        # Where a law is still diffuse there is no band to draw.
        bounds = tuple(_columns(b)[:, i] for b in (low, high))
        bounds = tuple(np.where(np.isfinite(b), b, np.nan) for b in bounds)
        out.append((bounds, level))
    return out


def _columns(values: Any) -> np.ndarray:
    """Values over time with an axis of coordinates."""
    return np.asarray(values).reshape(len(values), -1)


def _position(name: str, names: Sequence[str]) -> int:
    if name not in names:
        raise ValueError(f"`states`: no state is called {name!r}; there are {list(names)}.")
    return list(names).index(name)


def _missing(posterior: Any) -> np.ndarray:
    if posterior.y is None:
        return np.zeros(len(posterior), bool)
    return np.isnan(np.asarray(posterior.y)).all(axis=1)


def _over_time(ax: Any, x: np.ndarray, errors: np.ndarray, labels: Any, name: str) -> None:
    canvas.shade_missing(ax, x, np.isnan(errors))
    for bound in (-1.96, 1.96):
        ax.axhline(bound, color=FAINT, lw=0.8, ls=(0, (4, 3)), zorder=0)
    ax.axhline(0, color=FAINT, lw=0.8, zorder=0)
    ax.plot(x, errors, color=MAIN, lw=0.9, marker="o", ms=2.2 if len(x) < 400 else 0)
    canvas.dress(ax, labels, name)
    ax.set_title("errors of one-step predictions", **canvas.TITLE)


def _histogram(ax: Any, seen: np.ndarray) -> None:
    bins = np.histogram_bin_edges(seen, "fd")
    bins = bins if 6 <= len(bins) <= 80 else np.histogram_bin_edges(seen, 20)
    ax.hist(seen, bins, density=True, color=MAIN, alpha=0.35, ec="white", lw=0.6)
    reach = max(3.5, np.abs(seen).max() * 1.05)
    grid = np.linspace(-reach, reach, 300)
    density = np.exp(-(grid**2) / 2) / np.sqrt(2 * np.pi)
    ax.plot(grid, density, color=DATA, lw=1.2, label="N(0, 1)")
    ax.legend(**canvas.LEGEND)
    ax.set(xlabel="standardised error", ylabel="density")
    ax.set_title("distribution", **canvas.TITLE)


def _quantiles(ax: Any, seen: np.ndarray) -> None:
    n = len(seen)
    normal = canvas.normal_quantile((np.arange(1, n + 1) - 0.5) / n)
    # Each order statistic of a uniform sample has a beta law, of which this is the 95 % interval.
    low, high = (canvas.normal_quantile(p) for p in canvas.order_statistics(n, 0.95))
    ax.fill_between(normal, low, high, color=FAINT, alpha=0.35, lw=0, label="95% of normal samples")
    ax.plot(normal, normal, color=DATA, lw=1.0)
    ax.plot(normal, np.sort(seen), "o", color=MAIN, ms=2.6, mew=0)
    ax.legend(**canvas.LEGEND)
    ax.set(xlabel="normal quantile", ylabel="quantile of the errors")
    ax.set_title("normal quantiles", **canvas.TITLE)


def _correlogram(ax: Any, errors: np.ndarray, lags: int) -> None:
    lags = min(lags, len(errors) - 1)
    r = autocorrelation(errors, lags)[1:]
    at = np.arange(1, lags + 1)
    bound = 1.96 / np.sqrt((~np.isnan(errors)).sum())
    ax.axhspan(-bound, bound, color=FAINT, alpha=0.35, lw=0)
    ax.axhline(0, color=DATA, lw=0.8)
    ax.vlines(at, 0, r, color=MAIN, lw=2.2)
    reach = max(0.3, 1.15 * np.abs(r).max(), 1.3 * bound)
    ax.set_ylim(-reach, reach)
    ax.set(ylabel="autocorrelation")
    ax.set_title("autocorrelation, and Ljung–Box p values", **canvas.TITLE)
    below = canvas.strip_below(ax, 0.5)
    below.axhline(0.05, color=FAINT, lw=0.8, ls=(0, (4, 3)))
    below.plot(at, [t.p_value for t in ljung_box(errors, lags)], "o", color=ACCENT, ms=3.2)
    below.set(ylim=(-0.06, 1.06), yticks=(0, 0.5, 1), xlabel="lag", ylabel="p value")
