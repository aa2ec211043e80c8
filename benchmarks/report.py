"""Markdown of what was measured: ``python -m benchmarks report [family …] [--write]``."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import sys
from itertools import groupby

from benchmarks.goals import GOALS
from benchmarks.harness import HERE, RESULTS, compare, duration

PACKAGES = (
    "jax",
    "numpy",
    "dynamax",
    "cuthbert",
    "statsmodels",
    "pykalman",
    "filterpy",
    "simdkalman",
)
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
TIMED = ("kalman", "batch", "em", "start", "scaling")
# sizes that share these facts make one table
GROUPS = {"kalman": ("T",), "batch": ("shared", "gaps"), "scaling": ("varying", "dtype")}
KINDS = ("ours", "peer", "reference", "bound")


def main(arguments: list[str]) -> None:
    write = "--write" in arguments
    families = [a for a in arguments if not a.startswith("--")] or list(TIMED)
    text = "\n\n".join([machine(), goal_table(), *(tables(f) for f in families if load(f))])
    if not write:
        print(text)
        return
    readme = HERE / "README.md"
    old = readme.read_text()
    before, rest = old.split(BEGIN)
    readme.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.split(END)[1]}")


def load(family: str) -> list[dict]:
    """The latest row of each column, op and size."""
    path = RESULTS / f"{family}.jsonl"
    if not path.exists():
        return []
    rows = (json.loads(line) for line in path.read_text().splitlines())
    return list({(row["op"], row["size"], row["column"]): row for row in rows}.values())


def machine() -> str:
    """Where and with what it was measured."""
    stamps = sorted(row["when"] for family in TIMED for row in load(family))
    when = f"{stamps[0][:10]} to {stamps[-1][:10]}" if stamps else "never"
    versions = ", ".join(f"{name} {_version(name)}" for name in PACKAGES)
    where = f"{os.cpu_count()} cores of {_processor()}"
    python = platform.python_version()
    return f"Measured {when} on {where}; Python {python}, {versions}. float64 unless said."


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "(absent)"


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            return next(
                line.split(":")[1].strip() for line in lines if line.startswith("model name")
            )
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def goal_table() -> str:
    """Goal, measured, met."""
    lines = ["| goal | at most | measured | met |", "|---|---|---|---|"]
    for goal in GOALS:
        measured, met = goal.outcome(load(goal.family))
        limit = f"{goal.limit:g} {goal.unit}".strip()
        lines.append(f"| {goal.words} | {limit} | {measured} | {met} |")
    return "\n".join(lines)


def tables(family: str) -> str:
    """One table for each op and group of sizes: libraries down, sizes across."""
    parts = [f"### {family}"]
    rows = load(family)
    for op in dict.fromkeys(row["op"] for row in rows):
        chosen = [row for row in rows if row["op"] == op]

        def group(row: dict) -> tuple:
            return tuple(row[fact] for fact in GROUPS.get(family, ()))

        for _, part in groupby(sorted(chosen, key=group), group):
            parts.append(table(op, list(part)))
    return "\n\n".join(parts)


def table(op: str, rows: list[dict]) -> str:
    sizes = list(dict.fromkeys(row["size"] for row in sorted(rows, key=_order)))
    for size in sizes:
        compare([row for row in rows if row["size"] == size])
    columns = dict.fromkeys(
        row["column"]
        for row in sorted(rows, key=lambda row: (KINDS.index(row["kind"]), row["column"]))
    )
    lines = [f"| {op} | {' | '.join(sizes)} | compile |", "|---" * (len(sizes) + 2) + "|"]
    for column in columns:
        own = {row["size"]: row for row in rows if row["column"] == column}
        cells = [_cell(own[size]) if size in own else "" for size in sizes]
        lines.append(f"| {column} | {' | '.join(cells)} | {_compile(list(own.values()))} |")
    return "\n".join(lines)


def _order(row: dict) -> tuple:
    return row.get("n", 0), row.get("m", 0), row.get("T", 0)


def _cell(row: dict) -> str:
    shown = duration(row["key"])
    return f"{shown} ({row['ratio']:.2g})" if row["ratio"] == row["ratio"] else shown


def _compile(rows: list[dict]) -> str:
    times = [row["compile"] for row in rows if row["compile"] == row["compile"]]
    if not times or max(times) < 0.05:
        return ""
    return f"{min(times):.1f}–{max(times):.1f} s" if len(times) > 1 else f"{times[0]:.1f} s"


if __name__ == "__main__":
    main(sys.argv[1:])
