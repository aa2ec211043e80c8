"""What the pictures share: colours, panels, date axes, bands, missing stretches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from statespace.labels import Labels
from statespace.probabilities import tails

MAIN = "#2b6a99"
ACCENT = "#c4572e"
DATA = "#3d3d3d"
FAINT = "#b9b9b9"
TITLE = {"fontsize": "medium", "loc": "left", "color": DATA}
LEGEND: dict[str, Any] = {"frameon": False, "fontsize": "small"}

_WIDTH = 7.4
"""Of a figure, in inches."""

_ENTRY = 0.95
"""Of an entry of a legend, in inches."""


def require_matplotlib() -> Any:
    """``matplotlib.pyplot``.

    Raises:
        ImportError: if it is not installed, with the remedy.
    """
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError(
            "statespace.plot needs matplotlib, which is not installed: "
            '`pip install "statespace-jax[plot]"`, or `pip install matplotlib`.'
        ) from error
    return plt


def panels(count: int, axes: Any, height: float) -> np.ndarray:
    """The Axes given, or new ones below each other over one time axis, as an array ``(count,)``."""
    if axes is not None:
        require_matplotlib()
        return _given(axes, count)
    plt = require_matplotlib()
    tall = max(1.3, height - 0.15 * count) * count + 0.6 if count > 1 else 3.2
    _, made = plt.subplots(
        count, 1, sharex=True, squeeze=False, figsize=(_WIDTH, tall), layout="constrained"
    )
    return made[:, 0]


def grid(shape: tuple[int, int], axes: Any, what: str) -> np.ndarray:
    """The Axes given, or new ones, as an array of this shape."""
    if axes is not None:
        require_matplotlib()
        return _given(axes, shape[0] * shape[1]).reshape(shape)
    plt = require_matplotlib()
    rows, columns = shape
    size = (_WIDTH * 1.15, 5.6) if columns == 2 else (3.4 * columns, 2.9 * rows)
    made = plt.subplots(*shape, squeeze=False, figsize=size, layout="constrained")[1]
    for ax in made.flat:
        ax.spines[["top", "right"]].set_visible(False)
    return made


def _given(axes: Any, count: int) -> np.ndarray:
    flat = np.atleast_1d(np.asarray(axes, dtype=object)).ravel()
    if len(flat) < count:
        raise ValueError(f"`axes` must be {count} Axes, one for each panel, got {len(flat)}.")
    return flat[:count]


def finish(made: np.ndarray, axes: Any) -> Any:
    """What a plotting function returns: one Axes, or an array of them.

    One legend above the first panel serves all; times are named below the last.
    """
    known: dict[str, Any] = {}
    for ax in made:
        for handle, label in zip(*ax.get_legend_handles_labels()):
            known.setdefault(label, handle)
    made[0].legend(
        known.values(),
        known.keys(),
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=max(1, len(known)),
        borderaxespad=0.2,
        **LEGEND,
    )
    if axes is None:
        for ax in made[:-1]:
            ax.set_xlabel("")
    return made[0] if len(made) == 1 else made


def positions(times: Any, labels: Labels | None) -> np.ndarray:
    """Where the moments are on the time axis: dates where there are any, else numbers."""
    index = None if labels is None else labels.index
    if index is None or index.dtype.kind == "m":
        return np.asarray(times)
    if hasattr(index, "to_timestamp"):
        index = index.to_timestamp()
    if getattr(index, "tz", None) is not None:
        index = index.tz_localize(None)
    return index.to_numpy()


def dress(ax: Any, labels: Labels | None, name: str) -> None:
    """Names of the axes, and short dates."""
    index = None if labels is None else labels.index
    dated = index is not None and index.dtype.kind != "m" and ax.xaxis.have_units()
    if dated:
        from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

        locator = AutoDateLocator(minticks=4, maxticks=9)
        ax.xaxis.set_major_locator(locator)
        ax.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    title = None if index is None else index.name
    ax.set_xlabel(str(title) if title else ("" if dated else "time"))
    ax.set_ylabel(name)
    ax.spines[["top", "right"]].set_visible(False)
    ax.margins(x=0.01)


def observations(ax: Any, x: np.ndarray, y: np.ndarray) -> None:
    """Observed values as points joined where they follow each other, and missing stretches shaded."""
    shade_missing(ax, x, np.isnan(y))
    many = len(x) > 400
    ax.plot(x, y, color=DATA, lw=0.6, alpha=0.45, zorder=1.5)
    ax.plot(
        x,
        y,
        "o",
        color=DATA,
        ms=1.4 if many else 2.6,
        mew=0,
        alpha=0.6,
        zorder=1.6,
        label="observed",
    )


def band(
    ax: Any,
    x: np.ndarray,
    mean: np.ndarray,
    bands: Sequence[tuple[tuple[np.ndarray, np.ndarray], float]],
    label: str | None = None,
    color: str = MAIN,
) -> None:
    """A line with central intervals about it, each ``((low, high), level)``, the widest first."""
    for i, (bounds, level) in enumerate(bands):
        name = f"{level:.0%} interval" if len(bands) == 1 else f"{level:.0%}"
        tint = _tint(color, 0.28 if len(bands) == 1 else 0.18 + 0.32 * i / (len(bands) - 1))
        # Not quite opaque, so that the ground of a missing stretch shows through.
        ax.fill_between(x, *bounds, color=tint, alpha=0.9, lw=0, label=name, zorder=1.2)
    single = "o" if len(x) == 1 else ""
    ax.plot(x, mean, color=color, lw=1.6, marker=single, ms=4, label=label, zorder=3)


def _tint(color: str, strength: float) -> tuple[float, ...]:
    """The colour mixed with white."""
    from matplotlib.colors import to_rgb

    return tuple(1 - strength * (1 - part) for part in to_rgb(color))


def shade_missing(ax: Any, x: np.ndarray, missing: np.ndarray) -> None:
    """A grey ground under moments without an observation, half an interval to either side."""
    if not missing.any() or len(x) < 2:
        return
    middle = x[:-1] + (x[1:] - x[:-1]) / 2
    left, right = np.append(x[:1], middle), np.append(middle, x[-1:])
    edges = np.flatnonzero(np.diff(np.concatenate([[0], missing.astype(int), [0]])))
    for number, (start, end) in enumerate(edges.reshape(-1, 2)):
        label = "missing" if number == 0 else None
        ax.axvspan(left[start], right[end - 1], color=FAINT, alpha=0.3, lw=0, zorder=0, label=label)


def strip_below(ax: Any, share: float) -> Any:
    """A strip below an Axes, of this share of its height, for a second quantity over the same abscissa."""
    from mpl_toolkits.axes_grid1 import make_axes_locatable

    below = make_axes_locatable(ax).append_axes("bottom", f"{share:.0%}", pad=0.1, sharex=ax)
    below.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelbottom=False)
    return below


def normal_quantile(p: Any) -> Any:
    """Quantiles of N(0, 1)."""
    from scipy.special import ndtri

    return ndtri(p)


def order_statistics(n: int, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Bounds of the central interval of each order statistic of n uniform values."""
    from scipy.special import betaincinv

    i = np.arange(1, n + 1)
    return tuple(betaincinv(i, n + 1 - i, q) for q in tails(level))
