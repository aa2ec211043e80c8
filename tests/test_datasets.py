"""Data sets: their values, where their files are looked for, and what is said when they are missing."""

import hashlib
import importlib.util
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import minimize
from scipy.stats import binom, norm, poisson

from statespace import datasets
from statespace.series import as_series

needs_statsmodels = pytest.mark.skipif(
    importlib.util.find_spec("statsmodels") is None, reason="the file is statsmodels'"
)


@needs_statsmodels
def test_nile_is_that_of_statsmodels():
    from statsmodels.datasets import nile

    ours, theirs = datasets.load("nile"), nile.load_pandas().data
    np.testing.assert_array_equal(ours.to_numpy(), theirs["volume"].to_numpy())
    np.testing.assert_array_equal(ours.index, theirs["year"])


def test_earthquakes_have_the_published_likelihoods():
    """-log L of stationary Poisson HMMs with one and two states (Zucchini & MacDonald, table 3.1)."""
    counts = datasets.load("earthquakes")
    assert (counts.index[0], counts.index[-1]) == (1900, 2006)
    y = counts.to_numpy()
    assert -poisson.logpmf(y, y.mean()).sum() == pytest.approx(391.9189, abs=5e-5)

    def two_states(p):
        rates, (a, b) = np.exp(p[:2]), 1 / (1 + np.exp(-p[2:]))
        kernel, law, total = np.array([[1 - a, a], [b, 1 - b]]), np.array([b, a]) / (a + b), 0.0
        for count in y:
            joint = law * poisson.pmf(count, rates)
            total += np.log(joint.sum())
            law = joint @ kernel / joint.sum()
        return -total

    found = minimize(
        two_states, [2.7, 3.2, -2.0, -2.0], method="Nelder-Mead", options={"fatol": 1e-8}
    )
    assert found.fun == pytest.approx(342.3183, abs=5e-5)


def test_rat_decisions_say_the_same_in_all_columns():
    data = datasets.load("rat_decisions")
    assert data.shape == (20_000, 8)
    assert data.index.get_level_values("session").nunique() == 80
    first_is_larger = data["first sound"] > data["second sound"]
    np.testing.assert_array_equal(data["correct"] == 1, data["choice"] == first_is_larger)
    before = data.groupby("session").shift(1)
    follows = data["previous choice"] != 0  # 0 where a trial was left out, or at the beginning
    assert follows.mean() > 0.89
    same = data["previous choice"] == 2 * before["choice"] - 1
    assert same[follows & before["choice"].notna()].all()
    assert not follows[data.index.get_level_values("trial") == 0][1:].any()


@needs_statsmodels
@pytest.mark.parametrize(
    ("name", "shape", "first", "value", "missing"),
    [
        ("macrodata", (203, 12), pd.Period("1959Q1"), 2710.349, 0),
        ("co2", (2284,), pd.Timestamp("1958-03-29"), 316.1, 59),
        ("sunspots", (309,), 1700, 5.0, 0),
        ("elnino", (732,), pd.Period("1950-01"), 23.11, 0),
    ],
)
def test_files_of_statsmodels(name, shape, first, value, missing):
    data = datasets.load(name)
    assert data.shape == shape
    assert data.index[0] == first
    assert data.to_numpy().flat[0] == value
    assert int(np.isnan(data.to_numpy()).sum()) == missing
    assert data.attrs["title"] in datasets.describe(name)
    series = as_series(data)
    assert series.dt == 1.0


@needs_statsmodels
def test_elnino_runs_through_the_years():
    data = datasets.load("elnino")
    assert data["1950-12"] == 21.8
    assert data["1951-01"] == 24.19
    assert data.index[-1] == pd.Period("2010-12")


@pytest.mark.skipif(importlib.util.find_spec("ratinabox") is None, reason="the file is ratinabox'")
def test_path_of_the_rat_stays_in_its_box():
    data = datasets.load("sargolini")
    assert data.shape == (29800, 2)
    steps = np.diff(data.index)
    np.testing.assert_allclose(steps.min(), 0.02, rtol=1e-9)
    assert (steps < 0.021).mean() > 0.99  # it drops out now and then
    assert data.to_numpy().min() > 0
    assert data.to_numpy().max() < 1


needs_particles = pytest.mark.skipif(
    importlib.util.find_spec("particles") is None,
    reason="the file is that of the package particles",
)


@needs_particles
def test_thalamus_counts_have_the_known_likelihood():
    """By quadrature on a grid (the grid's error is far below the last digit)."""
    counts = datasets.load("thalamus")
    assert (len(counts), counts.index[0], int(counts.sum())) == (3000, 0, 3056)
    grid, width = np.linspace(-30.0, 15.0, 451, retstep=True)
    move = norm.pdf(grid[:, None], 0.9981 * grid, np.sqrt(0.1089)) * width
    seen = binom.pmf(np.arange(51)[:, None], 50, 1 / (1 + np.exp(-grid)))
    for scale, want in ((1.0, -3080.53885), (np.sqrt(0.1089), -3099.31616)):
        law, total = norm.pdf(grid, 0, scale) * width, 0.0
        for t, y in enumerate(counts.astype(int)):
            law = seen[y] * (move @ law if t else law)
            total += np.log(law.sum())
            law /= law.sum()
        assert total == pytest.approx(want, abs=1e-4)


@needs_particles
def test_exchange_rate():
    rate = datasets.load("gbp_usd")
    assert len(rate) == 751
    assert (rate.index[0], rate.iloc[0]) == (pd.Timestamp("1997-01-02"), 0.59296)
    assert (rate.index[-1], rate.iloc[-1]) == (pd.Timestamp("1999-12-31"), 0.61907)


def test_packages_are_not_imported():
    code = (
        "import sys; from statespace import datasets; datasets.load('sunspots'); "
        "assert 'statsmodels' not in sys.modules"
    )
    if importlib.util.find_spec("statsmodels") is None:
        pytest.skip("the file is statsmodels'")
    subprocess.run([sys.executable, "-c", code], check=True)


def test_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"'co2'.*not installed: `pip install statsmodels`"):
        datasets.load("co2")


def test_unknown_name_lists_the_known():
    with pytest.raises(ValueError, match=r"called 'nil'; there are .*nile"):
        datasets.load("nil")
    with pytest.raises(ValueError, match="there are"):
        datasets.describe("nil")


def test_turbofan_counts_the_cycles_to_failure(tmp_path, monkeypatch):
    """With and without a line of names; two engines in each set."""
    folder = tmp_path / "cmapss"
    folder.mkdir()
    row = lambda engine, cycle: f"{engine} {cycle} " + " ".join(["0.5"] * 24) + "  \n"
    names = " ".join(["unit_number", "time", *("x" * 24)]) + "\n"
    three = row(1, 1) + row(1, 2) + row(2, 1)
    (folder / "train_FD001.txt").write_text(names + three)
    (folder / "test_FD001.txt").write_text(three)
    (folder / "RUL_FD001.txt").write_text("RUL\n7\n9\n")
    monkeypatch.setenv("STATESPACE_DATA", str(tmp_path))
    data = datasets.load("turbofan")
    assert data.shape == (6, 25)
    assert data.index.names == ["set", "engine", "cycle"]
    assert data.loc["train", "remaining"].tolist() == [1, 0, 0]
    assert data.loc["test", "remaining"].tolist() == [8, 7, 9]
    (folder / "RUL_FD001.txt").write_text("7 8\n")
    with pytest.raises(ValueError, match="no file of the data set 'turbofan': not 1 columns"):
        datasets.load("turbofan")


def test_what_has_to_be_fetched_by_hand_is_explained(tmp_path, monkeypatch):
    monkeypatch.setenv("STATESPACE_DATA", str(tmp_path))
    with pytest.raises(
        FileNotFoundError, match=r"'turbofan' .*https://data.nasa.gov.* STATESPACE_DATA"
    ):
        datasets.load("turbofan")


@pytest.fixture
def motorcycle(tmp_path, monkeypatch):
    """A public file of two rows in the user's folder, with its own hash in the table."""
    text = b"1,2.4,0\n2,2.6,-1.3\n"
    folder = tmp_path / "motorcycle"
    folder.mkdir()
    (folder / "mcycle.csv").write_bytes(text)
    monkeypatch.setenv("STATESPACE_DATA", str(tmp_path))
    where = datasets.PublicFile("https://example.org/mcycle.csv", hashlib.sha256(text).hexdigest())
    entry = datasets.DATASETS["motorcycle"]._replace(files={"motorcycle/mcycle.csv": where})
    monkeypatch.setitem(datasets.DATASETS, "motorcycle", entry)
    return folder / "mcycle.csv"


def test_public_file_in_the_users_folder(motorcycle):
    data = datasets.load("motorcycle")
    np.testing.assert_array_equal(data.index, [2.4, 2.6])
    np.testing.assert_array_equal(data, [0.0, -1.3])


def test_another_file_than_the_published_is_refused(motorcycle):
    motorcycle.write_text("1,2.4,0\n")
    with pytest.raises(ValueError, match="not the published file of the data set 'motorcycle'"):
        datasets.load("motorcycle")


def test_public_file_in_the_cache(motorcycle, tmp_path, monkeypatch):
    """Nothing is downloaded when the cache has it: the address does not exist."""
    pooch = pytest.importorskip("pooch")
    cache = tmp_path / "cache"
    monkeypatch.setattr(pooch, "os_cache", lambda name: cache / name)
    (cache / "statespace" / "motorcycle").mkdir(parents=True)
    motorcycle.rename(cache / "statespace" / "motorcycle" / "mcycle.csv")
    assert len(datasets.load("motorcycle")) == 2


def test_failed_download_is_explained(motorcycle, tmp_path, monkeypatch):
    pooch = pytest.importorskip("pooch")

    def fail(*args, **kwargs):
        raise OSError("no route")

    monkeypatch.setattr(pooch, "os_cache", lambda name: tmp_path / "empty")
    monkeypatch.setattr(pooch, "retrieve", fail)
    motorcycle.unlink()
    with pytest.raises(ConnectionError, match=r"downloaded \(no route\).* STATESPACE_DATA"):
        datasets.load("motorcycle")


def test_without_pooch_the_remedy_is_named(motorcycle, monkeypatch):
    motorcycle.unlink()
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(ImportError, match=r"`pip install pooch`; or put https://.* at motorcycle/"):
        datasets.load("motorcycle")


def test_what_was_found_in_the_public_files():
    """Where a folder with the public files is at hand: their shapes and known values."""
    import os
    from pathlib import Path

    folder = Path(os.environ.get("STATESPACE_DATA", ""))
    if not (folder / "flint_run1" / "x.csv").is_file():
        pytest.skip("STATESPACE_DATA names no folder with flint_run1")
    data = datasets.load("flint_run1")
    assert data.shape == (7792, 12)
    assert data.iloc[0]["pc0"] == 2.7462
    assert data.iloc[-1]["velocity_y"] == -0.0316
    assert as_series(data).dt == 0.1


def test_runs_of_bearings_are_in_their_order(tmp_path, monkeypatch):
    """Two files of three moments with hashes of their own: the tenth run comes after the second."""
    whole = datasets.DATASETS["bearings_only"]
    assert len(whole.files) == 100
    runs = {run: np.float32([[run, -run], [0.1, 0.2], [0.3, 0.4]]) for run in (2, 10)}
    (tmp_path / "bearings_only").mkdir()
    files = {}
    for path in whole.files:
        for run, values in runs.items():
            if path.endswith(f"Run{run}.npz"):
                np.savez(tmp_path / path, data=values)
                digest = hashlib.sha256((tmp_path / path).read_bytes()).hexdigest()
                files[path] = whole.files[path]._replace(sha256=digest)
    monkeypatch.setenv("STATESPACE_DATA", str(tmp_path))
    monkeypatch.setitem(datasets.DATASETS, "bearings_only", whole._replace(files=files))
    data = datasets.load("bearings_only")
    assert list(data.columns) == ["bearing0", "bearing1"]
    assert data.index.names == ["run", "moment"]
    assert data.index.tolist() == [(run, moment) for run in (1, 2) for moment in range(3)]
    np.testing.assert_array_equal(data, np.concatenate(list(runs.values())))


def test_bearings_have_the_published_noise():
    """Half a radian in both sensors of all runs, by differences of neighbours 0.01 apart."""
    import os
    from pathlib import Path

    folder = Path(os.environ.get("STATESPACE_DATA", ""))
    if not (folder / "bearings_only" / "data-T8000-Run1.npz").is_file():
        pytest.skip("STATESPACE_DATA names no folder with bearings_only")
    data = datasets.load("bearings_only")
    assert data.shape == (800_000, 2)
    assert data.index[-1] == (100, 7999)
    assert np.isfinite(data.to_numpy()).all()
    runs = data.to_numpy().reshape(100, 8000, 2)
    spread = np.median(np.abs(np.diff(runs, axis=1)), axis=(0, 1)) / norm.ppf(0.75) / np.sqrt(2)
    np.testing.assert_allclose(spread, 0.5, rtol=0.02)
    with np.load(folder / "bearings_only" / "data-T8000-Run37.npz") as held:
        np.testing.assert_array_equal(data.loc[37], held["data"])
