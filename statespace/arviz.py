"""To ArviZ, of both generations: InferenceData up to 0.23, xarray's DataTree from 1.0."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from statespace.labels import Labels


def to_inference_data(
    groups: Mapping[str, Mapping[str, tuple[Sequence[str], Any]]],
    coords: Mapping[str, Any] | None = None,
) -> Any:
    """Groups of named arrays as whatever the installed ArviZ calls inference data.

    Args:
        groups: group name (``"posterior"``, ``"log_likelihood"``, ``"observed_data"`` …) to variable name to
            ``(dims, array)``, the dims of draws beginning with ``"chain", "draw"``.
        coords: values along the dims, for those that have any; the others are counted from 0.

    Returns:
        ``arviz.InferenceData`` (ArviZ < 1) or ``xarray.DataTree`` (ArviZ >= 1).

    Raises:
        ImportError: if ArviZ is not installed.

    Example:
        >>> draws = {"scale": (("chain", "draw"), scale), "states": (("chain", "draw", "time", "state"), x)}
        >>> to_inference_data({"posterior": draws}, {"time": dates, "state": ["level", "slope"]})
    """
    az = require_arviz()
    import xarray as xr

    datasets = {}
    for group, variables in groups.items():
        arrays = {
            name: (tuple(dims), np.asarray(value)) for name, (dims, value) in variables.items()
        }
        sizes = {dim: n for dims, value in arrays.values() for dim, n in zip(dims, value.shape)}
        along = {dim: (coords or {}).get(dim, np.arange(n)) for dim, n in sizes.items()}
        datasets[group] = xr.Dataset(arrays, coords=along)
    if int(az.__version__.split(".")[0]) >= 1:
        return xr.DataTree.from_dict(datasets)
    return az.InferenceData(**datasets)


def predictions(forecast: Any, key: Any, draws: int) -> Any:
    """Drawn paths of a forecast, as ``y`` (chain, draw, time, channel) of the group ``predictions``.

    Args:
        forecast: with ``sample``, ``times``, ``labels`` and ``names``.
        key: a PRNG key; None for a fixed one.
        draws: how many.
    """
    require_arviz()
    import jax

    drawn = forecast.sample(jax.random.key(0) if key is None else key, draws)
    paths = (("chain", "draw", "time", "channel"), drawn[None])
    time = time_coordinate(forecast.times, forecast.labels)
    coords = {"time": time, "channel": list(forecast.names)}
    return to_inference_data({"predictions": {"y": paths}}, coords)


def require_arviz() -> Any:
    """The installed ArviZ.

    Raises:
        ImportError: if it is not installed, with the remedy.
    """
    try:
        import arviz
    except ImportError as error:
        raise ImportError(
            "`to_arviz` needs ArviZ, which is not installed: `pip install arviz`."
        ) from error
    return arviz


def time_coordinate(times: Any, labels: Labels | None) -> np.ndarray:
    """The moments as xarray takes them: dates without a zone (UTC) where there are any, else numbers."""
    if labels is None or labels.index is None:
        return np.asarray(times)
    index = labels.index
    if hasattr(index, "to_timestamp"):
        index = index.to_timestamp()
    if getattr(index, "tz", None) is not None:
        index = index.tz_convert("UTC").tz_localize(None)
    return index.to_numpy()
