"""Real data: ``load(name)`` gives a pandas Series or DataFrame whose index is the time.

Short published series are part of this package. Others are files inside other packages, which are read
without importing those; or public files, which are looked for in the folder named by the environment
variable ``STATESPACE_DATA``, then in the user's cache, and then downloaded into it. Nothing is ever
unpickled.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from statespace.dataset_files import PackageFile, PageFile, PublicFile, locate
from statespace.dataset_values import BEARINGS_SHA256, EARTHQUAKES, NILE

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["describe", "load", "names"]


class Dataset(NamedTuple):
    """What ``load`` knows of a data set.

    Attributes:
        title: what it is, in a line.
        source: who published it, and under which licence where it has one.
        read: makes the pandas object from the paths of the files.
        files: what it reads, by path below the folder of the public files.
    """

    title: str
    source: str
    read: Callable[..., pd.Series | pd.DataFrame]
    files: dict[str, PackageFile | PublicFile | PageFile] = {}


def load(name: str) -> pd.Series | pd.DataFrame:
    """A data set by name: a Series (one channel) or a DataFrame over its times.

    ``data.attrs`` says under ``"title"`` and ``"source"`` what it is and where it comes from.

    Args:
        name: one of :func:`names`.

    Raises:
        ValueError: if there is no such data set, or a file is not the one that was published.
        ImportError: if the package that holds the file, or pooch for a download, is not installed.
        ConnectionError: if a download fails.
        FileNotFoundError: if a file that has to be fetched by hand is not in the user's folder.

    Example:
        >>> nile = ss.datasets.load("nile")
        >>> ss.smooth(ss.LocalLevel(level_scale=40.0, noise_scale=120.0), nile)
    """
    if name not in DATASETS:
        raise ValueError(f"no data set is called {name!r}; there are {', '.join(names())}.")
    dataset = DATASETS[name]
    data = dataset.read(*(locate(name, file, where) for file, where in dataset.files.items()))
    data.attrs.update(title=dataset.title, source=dataset.source)
    return data


def names() -> list[str]:
    """The names of all data sets."""
    return sorted(DATASETS)


def describe(name: str) -> str:
    """What a data set is and where it comes from, without loading it.

    Raises:
        ValueError: if there is no such data set.
    """
    if name not in DATASETS:
        raise ValueError(f"no data set is called {name!r}; there are {', '.join(names())}.")
    return f"{DATASETS[name].title}\nSource: {DATASETS[name].source}"


def _statsmodels(name: str) -> dict[str, PackageFile | PublicFile]:
    file = f"{name}.csv"
    return {file: PackageFile("statsmodels", f"datasets/{name}/{file}", "statsmodels")}


def _github(repository: str, commit: str, path: str, sha256: str) -> PublicFile:
    return PublicFile(f"https://raw.githubusercontent.com/{repository}/{commit}/{path}", sha256)


def _yearly(values: tuple[int, ...], first: int, name: str) -> pd.Series:
    import pandas as pd

    years = pd.RangeIndex(first, first + len(values), name="year")
    return pd.Series(np.array(values, float), years, name=name)


def _read_nile() -> pd.Series:
    return _yearly(NILE, 1871, "flow (10⁸ m³)")


def _read_earthquakes() -> pd.Series:
    return _yearly(EARTHQUAKES, 1900, "earthquakes")


def _read_macrodata(path: Path) -> pd.DataFrame:
    import pandas as pd

    data = pd.read_csv(path)
    quarters = pd.PeriodIndex.from_fields(year=data.pop("year"), quarter=data.pop("quarter"))
    return data.set_index(quarters.rename("quarter")).astype(float)


def _read_co2(path: Path) -> pd.Series:
    import pandas as pd

    data = pd.read_csv(path)
    weeks = pd.date_range(str(data["date"].iloc[0]), periods=len(data), freq="W-SAT", name="week")
    return pd.Series(data["co2"].to_numpy(float), weeks, name="CO₂ (ppm)")


def _read_sunspots(path: Path) -> pd.Series:
    import pandas as pd

    data = pd.read_csv(path)
    years = pd.Index(data["YEAR"].astype(int), name="year")
    return pd.Series(data["SUNACTIVITY"].to_numpy(float), years, name="sunspots")


def _read_elnino(path: Path) -> pd.Series:
    import pandas as pd

    data = pd.read_csv(path).set_index("YEAR")
    first = f"{data.index[0]}-01"
    months = pd.period_range(first, periods=data.size, freq="M", name="month")
    return pd.Series(data.to_numpy(float).ravel(), months, name="temperature (°C)")


def _read_flint(counts: Path, velocity: Path) -> pd.DataFrame:
    import pandas as pd

    x = np.loadtxt(counts, delimiter=",")
    z = np.loadtxt(velocity, delimiter=",")
    columns = [f"pc{i}" for i in range(x.shape[1])] + ["velocity_x", "velocity_y"]
    seconds = pd.Index(np.arange(len(x)) / 10, name="time (s)")
    return pd.DataFrame(np.hstack([x, z]), seconds, columns)


def _read_rat_decisions(path: Path) -> pd.DataFrame:
    import pandas as pd

    data = pd.read_csv(path)
    trials = data.groupby("session").cumcount().rename("trial")
    names = {
        "s1": "first sound",
        "s2": "second sound",
        "s_avg": "previous sounds",
        "h": "previous answer",
        "c": "previous choice",
        "r": "previous reward",
    }
    data = data.rename(columns=names).astype({"choice": float, "correct": float})
    return data.set_index([data.pop("session"), trials])


def _read_thalamus(path: Path) -> pd.Series:
    import pandas as pd

    counts = np.loadtxt(path, delimiter=",")
    if counts.shape != (3000,) or counts.min() < 0 or counts.max() > 50:
        raise ValueError(f"{path} is no file of the data set 'thalamus': not 3000 counts of 50.")
    milliseconds = pd.RangeIndex(len(counts), name="time (ms)")
    return pd.Series(counts, milliseconds, name="spikes")


def _read_gbp_usd(path: Path) -> pd.Series:
    import pandas as pd

    rows = [line.split() for line in path.read_text().splitlines()]
    rows = [row for row in rows if len(row) == 4 and row[0].isdigit()]
    if len(rows) != 751:
        raise ValueError(f"{path} is no file of the data set 'gbp_usd': not 751 days.")
    days = pd.DatetimeIndex([row[1] for row in rows], name="day")
    return pd.Series([float(row[3]) for row in rows], days, name="pounds per dollar")


def _read_motorcycle(path: Path) -> pd.Series:
    import pandas as pd

    _, time, acceleration = np.loadtxt(path, delimiter=",").T
    return pd.Series(acceleration, pd.Index(time, name="time (ms)"), name="acceleration (g)")


def _read_bearings(*paths: Path) -> pd.DataFrame:
    import pandas as pd

    runs = []
    for path in paths:
        with np.load(path, allow_pickle=False) as held:
            runs.append(held["data"])
    index = pd.MultiIndex.from_product(
        [range(1, len(runs) + 1), range(len(runs[0]))], names=["run", "moment"]
    )
    return pd.DataFrame(np.concatenate(runs), index, ["bearing0", "bearing1"])


def _read_turbofan(train: Path, test: Path, rest: Path) -> pd.DataFrame:
    import pandas as pd

    columns = ["engine", "cycle"] + [f"setting{i + 1}" for i in range(3)]
    columns += [f"sensor{i + 1}" for i in range(21)]

    def numbers(path: Path, width: int) -> np.ndarray:
        lines = (line.split() for line in path.read_text().splitlines())
        # some copies begin with a line of names
        found = [row for row in lines if row and not row[0][0].isalpha()]
        if not found or any(len(row) != width for row in found):
            raise ValueError(f"{path} is no file of the data set 'turbofan': not {width} columns.")
        return np.array(found, float)

    after = numbers(rest, 1)[:, 0]
    parts = {}
    for kind, path in (("train", train), ("test", test)):
        part = pd.DataFrame(numbers(path, 26), columns=columns)
        part = part.astype({"engine": int, "cycle": int})
        cycles = part.groupby("engine")["cycle"].transform("max")
        end = 0 if kind == "train" else after[part["engine"].to_numpy() - 1]
        part["remaining"] = (cycles - part["cycle"] + end).astype(float)
        parts[kind] = part.set_index(["engine", "cycle"])
    return pd.concat(parts, names=["set"])


def _read_sargolini(path: Path) -> pd.DataFrame:
    import pandas as pd

    with np.load(path, allow_pickle=False) as held:
        seconds, metres = held["t"], held["pos"]
    return pd.DataFrame(metres, pd.Index(seconds, name="time (s)"), ["x (m)", "y (m)"])


_DKF = ("burkh4rt/DKF-implementations", "876d451db70af1a538e671be48b2e99ad1b8b4a5")
_BAYESNEWTON = ("AaltoML/BayesNewton", "bc6885f7d0c3291f828b0fcc9ebd9de0111c3ddb")
_SMOOTHERS = ("EEA-sensors/sqrt-parallel-smoothers", "bca2a62ad61ba8c94a9baf8089e6ab24cc6609ab")

DATASETS = {
    "nile": Dataset(
        "Yearly flow of the Nile at Aswan, 1871–1970.",
        "Cobb (1978), The problem of the Nile, Biometrika 65, 243–251; Durbin & Koopman (2012).",
        _read_nile,
    ),
    "earthquakes": Dataset(
        "Number of earthquakes of magnitude 7 or more in the world, yearly, 1900–2006.",
        "Zucchini & MacDonald (2009), Hidden Markov Models for Time Series, table 1.1.",
        _read_earthquakes,
    ),
    "macrodata": Dataset(
        "United States macroeconomic series, quarterly, 1959–2009.",
        "Federal Reserve Bank of St. Louis, Bureau of Labor Statistics; in statsmodels (BSD).",
        _read_macrodata,
        _statsmodels("macrodata"),
    ),
    "co2": Dataset(
        "Atmospheric CO₂ at Mauna Loa, weekly, 1958–2001, with gaps.",
        "Keeling & Whorf (2004), Carbon Dioxide Information Analysis Center; in statsmodels (BSD).",
        _read_co2,
        _statsmodels("co2"),
    ),
    "sunspots": Dataset(
        "Yearly number of sunspots, 1700–2008.",
        "National Geophysical Data Center; in statsmodels (BSD).",
        _read_sunspots,
        _statsmodels("sunspots"),
    ),
    "elnino": Dataset(
        "Sea-surface temperature of the eastern tropical Pacific (Niño 1+2), monthly, 1950–2010.",
        "National Oceanic and Atmospheric Administration; in statsmodels (BSD).",
        _read_elnino,
        _statsmodels("elnino"),
    ),
    "flint_run1": Dataset(
        "Reaching of a monkey: 10 principal components of the motor cortex's spike counts in 100 ms, "
        "and the hand's velocity; rows are already shifted by the neural lag.",
        "Flint et al. (2012), Journal of Neural Engineering 9, 046006; as prepared by Burkhart (MIT).",
        _read_flint,
        {
            "flint_run1/x.csv": _github(
                *_DKF,
                "data/x.csv",
                "9bd0d05589750cbfdaaacb0f848b4ed73ff42e2cf1aa17671e49a22d9ce5006d",
            ),
            "flint_run1/z.csv": _github(
                *_DKF,
                "data/z.csv",
                "dc93cd54f4188b731e4323307505a2004fcf7347c67561624af04f3a1ce4518f",
            ),
        },
    ),
    "sargolini": Dataset(
        "Path of a rat that forages in a box of 1 m × 1 m, ten minutes at 50 Hz, with short drop-outs.",
        "Sargolini et al. (2006), Science 312, 758–762; in ratinabox (MIT).",
        _read_sargolini,
        {"sargolini.npz": PackageFile("ratinabox", "data/sargolini.npz", "ratinabox==1.15.3")},
    ),
    "rat_decisions": Dataset(
        "Choices of a rat that compares two sounds: 20,000 trials in 80 sessions.",
        "Akrami et al. (2018), Nature 554, 368–372 (rat W053); in PsyTrack (MIT), Roy et al. (2021), "
        "Neuron 109.",
        _read_rat_decisions,
        {
            "rat_decisions.csv.gz": PackageFile(
                "statespace", "data/rat_decisions.csv.gz", "statespace-jax"
            )
        },
    ),
    "motorcycle": Dataset(
        "Head acceleration after a simulated motorcycle impact; irregular times with repeats.",
        "Silverman (1985), Journal of the Royal Statistical Society B 47, 1–52; in BayesNewton (Apache-2.0).",
        _read_motorcycle,
        {
            "bayesnewton/mcycle.csv": _github(
                *_BAYESNEWTON,
                "data/mcycle.csv",
                "4f2e476d877576b72928eae324709503d6b2f2dadf8e6adfb58f8dfbfbbf3c20",
            )
        },
    ),
    "thalamus": Dataset(
        "Spikes of a neuron in the thalamus of a rat while its whiskers are moved: in how many of 50 "
        "repetitions it fired, in each of 3000 ms.",
        "Temereanca, Brown & Simons (2008), Journal of Neuroscience 28, 11153–11164; in particles (MIT).",
        _read_thalamus,
        {"thaldata.csv": PackageFile("particles", "datasets/thaldata.csv", "particles==0.4")},
    ),
    "gbp_usd": Dataset(
        "Exchange rate of the pound against the dollar on 751 trading days, 1997–1999.",
        "Pacific Exchange Rate Service, W. Antweiler, University of British Columbia; in particles (MIT).",
        _read_gbp_usd,
        {
            "GBP_vs_USD_9798.txt": PackageFile(
                "particles", "datasets/GBP_vs_USD_9798.txt", "particles==0.4"
            )
        },
    ),
    "turbofan": Dataset(
        "Sensors of 100 simulated turbofan engines until they fail (train), and of 100 others until some "
        "cycles before (test); column 'remaining' counts the cycles to failure (C-MAPSS, FD001).",
        "Saxena, Goebel, Simon & Eklund (2008), PHM08; NASA Prognostics Data Repository (public domain).",
        _read_turbofan,
        {
            f"cmapss/{part}_FD001.txt": PageFile(
                "https://data.nasa.gov/dataset/cmapss-jet-engine-simulated-data"
            )
            for part in ("train", "test", "RUL")
        },
    ),
    "bearings_only": Dataset(
        "Simulated bearings of a turning target from two sensors: 100 runs of 8000 moments, 0.01 apart.",
        "Yaghoobi, Corenflos, Hassan & Särkkä (2022), sqrt-parallel-smoothers (MIT).",
        _read_bearings,
        {
            f"bearings_only/data-T8000-Run{run}.npz": _github(
                *_SMOOTHERS, f"notebooks/robustness_data/data-T8000-Run{run}.npz", sha256
            )
            for run, sha256 in enumerate(BEARINGS_SHA256, 1)
        },
    ),
}
"""The table of data sets: to add one, add a line."""
