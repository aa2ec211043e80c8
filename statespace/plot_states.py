"""Pictures of models of a finite state or regime: when, how long, from where to where, and doing what."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from statespace import canvas
from statespace.canvas import DATA, FAINT
from statespace.conditionals.finite import FiniteKernel
from statespace.conditionals.switching import Switching
from statespace.panels import PanelPosterior
from statespace.posteriors.finite import FinitePosterior
from statespace.posteriors.switching import RegimesAndStates


def states(posterior: Any, data: Any = None, *, observed: bool = True, axes: Any = None) -> Any:
    """When the model is in which state: observations in the colour of the most likely path, above its law.

    Of a switching model the states are its regimes. Between the observations and the probabilities of the
    regimes then comes what moves under them: a panel for each coordinate, its mean in the regime's colour
    within a 90 % interval.

    Args:
        posterior: of ``smooth`` or ``filter`` on a model of a finite state, or on a switching model.
        data: the recording, to draw in place of the one that the posterior holds.
        observed: whether to draw the observations, one panel for each channel, above the probabilities.
        axes: one Axes for each panel, the last for the probabilities; default: new ones.

    Returns:
        One Axes, or an array of them.

    Raises:
        ImportError: if matplotlib is not installed.
        TypeError: if ``posterior`` is neither of a finite state nor of a switching model.
        ValueError: if ``axes`` are too few.

    Example:
        >>> ss.plot.states(ss.smooth(model, counts))
    """
    require_finite(posterior)
    switching = isinstance(posterior, RegimesAndStates)
    channels = posterior.channel_names if observed else ()
    moving = posterior.names if switching else ()
    panels = canvas.panels(len(channels) + len(moving) + 1, axes, height=2.1)
    x = canvas.positions(posterior.times, posterior.labels)
    y = np.asarray(posterior.y)
    if data is not None:
        from statespace.series import as_series

        y = np.asarray(as_series(data).channels)
    path, colours = np.asarray(posterior.most_likely), palette(posterior.probs.shape[1])
    for i, (ax, name) in enumerate(zip(panels, channels)):
        canvas.shade_missing(ax, x, np.isnan(y[:, i]))
        _coloured(ax, x, y[:, i], path, colours)
        canvas.dress(ax, posterior.labels, name)
    if switching:
        low, high = map(np.asarray, posterior.interval(0.9))
    for i, (ax, name) in enumerate(zip(panels[len(channels) :], moving)):
        canvas.shade_missing(ax, x, np.isnan(y).all(axis=1))
        ax.fill_between(
            x, low[:, i], high[:, i], color=FAINT, alpha=0.55, lw=0, label="90% interval"
        )
        _coloured(ax, x, np.asarray(posterior.mean)[:, i], path, colours)
        canvas.dress(ax, posterior.labels, name)
    below = panels[-1]
    probs = np.asarray(posterior.probs).T
    below.stackplot(x, probs, colors=colours, labels=_names(posterior), lw=0, alpha=0.85)
    canvas.dress(below, posterior.labels, "probability")
    below.set(ylim=(0, 1), yticks=(0, 0.5, 1))
    below.margins(x=0)
    return canvas.finish(panels, axes)


def transitions(
    model: Any,
    *,
    names: Sequence[str] | None = None,
    threshold: float = 0.005,
    axes: Any = None,
) -> Any:
    """The transition graph: states on a circle, their size by how often they are visited in the long run.

    An arrow's width is the probability of the move; a state's own number is that of staying, which the
    picture says below.

    Args:
        model: a model of a finite state, or a switching one, whose transitions do not vary, a fitted result
            of one, a kernel, or a matrix ``(K, K)``.
        names: of the states; default: those of the model, else 0, 1 …
        threshold: moves less probable are not drawn.
        axes: one Axes; default: a new one.

    Returns:
        The Axes.

    Raises:
        ImportError: if matplotlib is not installed.
        TypeError: if there is no constant transition matrix.

    Example:
        >>> ss.plot.transitions(fitted)
    """
    model = getattr(model, "model", model)
    matrix = _matrix(model)
    count = len(matrix)
    regimes = isinstance(getattr(model, "transition", model), Switching)
    own = None if regimes else getattr(model, "state_names", None)  # those of what moves
    known = own if names is None else names
    names = [str(k) for k in range(count)] if known is None else list(known)
    plt = canvas.require_matplotlib()
    if axes is None:
        _, axes = plt.subplots(figsize=(4.4, 4.4), layout="constrained")
    angle = np.pi / 2 - 2 * np.pi * np.arange(count) / count
    at = np.column_stack([np.cos(angle), np.sin(angle)]) if count > 1 else np.zeros((1, 2))
    radius = 0.1 + 0.17 * np.sqrt(_stationary(matrix))
    colours = palette(count)
    for j in range(count):
        for k in range(count):
            if j != k and matrix[j, k] >= threshold:
                _arrow(axes, at[j], at[k], radius[j], radius[k], matrix[j, k], colours[j])
    for k in range(count):
        axes.add_patch(plt.Circle(at[k], radius[k], color=colours[k], lw=0, zorder=3))
        label = f"{names[k]}\n{matrix[k, k]:.2f}"
        axes.text(*at[k], label, ha="center", va="center", color="white", fontsize=9, zorder=4)
    says = "in a circle: probability to stay" + ("; at an arrow: to move" if count > 1 else "")
    axes.text(0, -1.5, says, ha="center", va="bottom", fontsize=8, color=DATA)
    axes.set(xlim=(-1.5, 1.5), ylim=(-1.5, 1.5), aspect="equal")
    axes.axis("off")
    return axes


def dwell_times(
    posterior: Any, model: Any = None, *, longest: int | None = None, axes: Any = None
) -> Any:
    """How long each state lasts along the most likely path, beside the geometric law of its transitions.

    Stays that the recording cuts off at its ends are left out. Bars are the wider the fewer there are.

    Args:
        posterior: of ``smooth`` on a model of a finite state or a switching model, or a panel of them.
        model: whose transition matrix gives the geometric law; None for none.
        longest: moments on the abscissa; default: of each state its longest stay, and where none is complete
            the moments in which nineteen of twenty end by the geometric law.
        axes: one Axes for each state; default: new ones.

    Returns:
        An array of Axes, one for each state.

    Raises:
        ImportError: if matplotlib is not installed.
        TypeError: if ``posterior`` is neither of a finite state nor of a switching model.
    """
    parts = list(posterior) if isinstance(posterior, PanelPosterior) else [posterior]
    for part in parts:
        require_finite(part)
    count = parts[0].probs.shape[1]
    stays = [stay for part in parts for stay in _stays(np.asarray(part.most_likely))]
    matrix = None if model is None else _matrix(getattr(model, "model", model))
    panels, names = canvas.grid((1, count), axes, "one for each state").ravel(), _names(parts[0])
    for k, (ax, colour) in enumerate(zip(panels, palette(count))):
        lengths = [length for state, length in stays if state == k]
        reach = longest or max(lengths, default=0)
        if lengths:
            bins = _bins(lengths, reach)
            ax.hist(lengths, bins, density=True, color=colour, alpha=0.6, ec="white", lw=0.6)
        if matrix is not None:
            stay = matrix[k, k]
            reach = reach or _most(stay, max(len(part) for part in parts))
            n = np.arange(1, reach + 1)
            ax.plot(n, (1 - stay) * stay ** (n - 1), color=DATA, lw=1.2, label="geometric")
            ax.legend(**canvas.LEGEND)
        elif not lengths:
            ax.set(xticks=[], yticks=[])
        ax.set_ylim(bottom=0)
        ax.set(xlabel="moments", ylabel="density" if k == 0 else "")
        said = f"{len(lengths) or 'no complete'} stay{'s' * (len(lengths) > 1)}"
        ax.set_title(f"{names[k]}: {said}", **canvas.TITLE)
    return panels


def weights(
    model: Any, *, names: Sequence[str] | None = None, channel: int = 0, axes: Any = None
) -> Any:
    """The weights of each state's generalised linear model.

    Weights of inputs are drawn as one line of points a state; of a population's coupling, as one matrix a
    state (to, from): the sum over lags of each pair's filter.

    Args:
        model: a GLM-HMM, or a fitted result of one.
        names: of the inputs; default: 0, 1 …
        channel: the observed channel whose input weights are drawn.
        axes: one Axes, or one for each state where there is coupling; default: new ones.

    Returns:
        One Axes, or an array of them.

    Raises:
        ImportError: if matplotlib is not installed.
        TypeError: if the model's observation has no weights.
    """
    observation = getattr(model, "model", model).observation
    coupling = getattr(observation, "coupling", None)
    if coupling is not None:
        return _coupling(np.asarray(observation.filters).sum(axis=-1), axes)
    given = getattr(observation, "weights", None)
    if given is None:
        raise TypeError(
            "`weights` draws a model whose observation is a GLM with inputs or coupling, got "
            f"{type(observation).__name__}."
        )
    values = np.asarray(given)[:, channel]
    values = values.reshape(len(values), -1)
    plt = canvas.require_matplotlib()
    if axes is None:
        _, axes = plt.subplots(figsize=(6.2, 3.2), layout="constrained")
    at = np.arange(values.shape[1])
    for k, colour in enumerate(palette(len(values))):
        axes.plot(at, values[k], "o-", color=colour, ms=5, lw=1.4, label=f"state {k}")
    axes.axhline(0, color=FAINT, lw=0.8, zorder=0)
    axes.set_xticks(at, names if names is not None else [str(i) for i in at])
    axes.set(ylabel="weight", xlabel="" if names is not None else "input")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(**canvas.LEGEND)
    return axes


def weight_filters(model: Any, pairs: Sequence[tuple[int, int]], *, axes: Any = None) -> Any:
    """How one channel responds to a spike of another over the lags after it, in each state.

    Args:
        model: a GLM-HMM with coupling, or a fitted result of one.
        pairs: (to, from) of the filters to draw, one panel each.
        axes: one Axes for each pair; default: new ones.

    Returns:
        An array of Axes.

    Raises:
        ImportError: if matplotlib is not installed.
        TypeError: if the model has no coupling.
    """
    observation = getattr(model, "model", model).observation
    if getattr(observation, "coupling", None) is None:
        raise TypeError(
            "`weight_filters` draws a model whose observation has coupling, got "
            f"{type(observation).__name__}."
        )
    filters = np.asarray(observation.filters)
    lags = np.arange(1, filters.shape[-1] + 1)
    panels = canvas.grid((1, len(pairs)), axes, "one for each pair").ravel()
    for ax, (to, source) in zip(panels, pairs):
        for k, colour in enumerate(palette(len(filters))):
            ax.plot(lags, filters[k, to, source], color=colour, lw=1.6, label=f"state {k}")
        ax.axhline(0, color=FAINT, lw=0.8, zorder=0)
        ax.set(xlabel="lag", ylabel="effect" if ax is panels[0] else "")
        ax.set_title(f"{source} on {to}", **canvas.TITLE)
    panels[0].legend(**canvas.LEGEND)
    return panels


def palette(count: int) -> list[Any]:
    """Colours of the states, distinct up to ten."""
    first = ["#2b6a99", "#c4572e", "#4b8b3b", "#8a5a9e", "#c9992b", "#3a9c9c", "#9c4a5f", "#6d6d6d"]
    if count <= len(first):
        return first[:count]
    from matplotlib import colormaps

    return [colormaps["viridis"](i) for i in np.linspace(0, 0.95, count)]


def require_finite(posterior: Any) -> None:
    """Refuse what is no posterior of a finite state or of regimes."""
    if not isinstance(posterior, FinitePosterior | RegimesAndStates):
        panel = "; draw its recordings one by one" if isinstance(posterior, PanelPosterior) else ""
        raise TypeError(
            "`posterior` must be what `smooth` or `filter` returns for a model of a finite state or a "
            f"switching model, got {type(posterior).__name__}{panel}."
        )


def _names(posterior: Any) -> list[str]:
    """Of the states, or of the regimes."""
    if isinstance(posterior, RegimesAndStates):
        return [f"regime {k}" for k in range(posterior.probs.shape[1])]
    return [f"state {name}" if name.isdigit() else name for name in posterior.names]


def _coloured(
    ax: Any, x: np.ndarray, values: np.ndarray, path: np.ndarray, colours: list[Any]
) -> None:
    """Values over time as points in the colours of a path."""
    ax.plot(x, values, color=DATA, lw=0.6, alpha=0.35, zorder=1)
    size = 1.6 if len(x) > 400 else 3.2
    ax.scatter(x, values, s=size**2, c=[colours[k] for k in path], lw=0, zorder=2)


def _matrix(model: Any) -> np.ndarray:
    """The constant transition matrix of a model, a kernel or an array."""
    kernel = getattr(model, "transition", model)
    kernel = kernel.kernel if isinstance(kernel, Switching) else kernel
    if isinstance(kernel, FiniteKernel) and not callable(kernel.probs):
        return np.asarray(kernel.probs)
    if not hasattr(kernel, "matrix") and np.ndim(kernel) == 2:
        return np.asarray(kernel)
    raise TypeError(
        f"a constant transition matrix is needed, got {type(kernel).__name__}: give `kernel.matrix(step)` at "
        "the step to be drawn."
    )


def _stationary(matrix: np.ndarray) -> np.ndarray:
    """Shares of time in the long run, from a uniform start where there are several."""
    share = np.full(len(matrix), 1 / len(matrix))
    slow = 0.5 * (np.eye(len(matrix)) + matrix)  # the same law, without periods
    return share @ np.linalg.matrix_power(slow, 2**20)


def _stays(path: np.ndarray) -> list[tuple[int, int]]:
    """State and length of each stay that begins and ends inside the recording."""
    changes = np.flatnonzero(np.diff(path)) + 1
    return [(int(path[a]), int(b - a)) for a, b in pairwise(changes)]


def _bins(lengths: Sequence[int], reach: int) -> np.ndarray:
    """Edges between whole numbers of moments, by Rice's rule for the number of bins."""
    width = max(1, int(np.ceil(reach / np.ceil(2 * len(lengths) ** (1 / 3)))))
    return np.arange(0.5, reach + width, width)


def _most(stay: float, most: int) -> int:
    """In how many moments nineteen of twenty stays end, from 10 to the length of the recording."""
    if not 0 < stay < 1:
        return 10 if stay <= 0 else most
    return max(10, min(most, int(np.ceil(np.log(0.05) / np.log(stay)))))


def _arrow(
    ax: Any, start: Any, end: Any, gap0: float, gap1: float, weight: float, colour: Any
) -> None:
    from matplotlib.patches import FancyArrowPatch

    along = (end - start) / np.linalg.norm(end - start)
    across = np.array([-along[1], along[0]])
    a, b = start + along * gap0 + 0.05 * across, end - along * (gap1 + 0.03) + 0.05 * across
    width = 0.6 + 4.5 * np.sqrt(weight)
    ax.add_patch(
        FancyArrowPatch(
            a,
            b,
            connectionstyle="arc3,rad=-0.14",
            arrowstyle="-|>",
            mutation_scale=8 + 10 * np.sqrt(weight),
            lw=width,
            color=colour,
            alpha=0.55,
            shrinkA=0,
            shrinkB=0,
            zorder=2,
        )
    )
    middle = (a + b) / 2 + 0.17 * across
    ax.text(*middle, f"{weight:.2f}", ha="center", va="center", fontsize=8, color=DATA, zorder=5)


def _coupling(total: np.ndarray, axes: Any) -> np.ndarray:
    panels = canvas.grid((1, len(total)), axes, "one for each state").ravel()
    reach = max(np.abs(total).max(), 1e-12)
    for k, ax in enumerate(panels):
        image = ax.imshow(total[k], cmap="RdBu_r", vmin=-reach, vmax=reach)
        ax.set_title(f"state {k}", **canvas.TITLE)
        ax.set(xlabel="from", ylabel="to" if k == 0 else "")
    panels[-1].figure.colorbar(image, ax=list(panels), shrink=0.8, label="weight")
    return panels
