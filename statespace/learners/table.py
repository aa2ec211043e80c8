"""Plain text tables of estimates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

_WIDTH = 78


class Row(NamedTuple):
    """One entry of a parameter; ``None`` where there is nothing to say."""

    label: str
    estimate: float
    error: float | None
    limits: tuple[float, float] | None
    note: str


def header(title: str, facts: Sequence[tuple[str, str]]) -> list[str]:
    """A title between rules, and facts one a line."""
    widest = max(len(name) for name, _ in facts)
    lines = [title.center(_WIDTH).rstrip(), "=" * _WIDTH]
    return lines + [f"{name + ':':<{widest + 2}}{value}" for name, value in facts]


def rows_table(rows: Sequence[Row], level: float) -> list[str]:
    """Estimates, standard errors and limits in columns."""
    widest = max([len(row.label) for row in rows] + [9])
    lower, upper = f"{50 * (1 - level):g} %", f"{50 * (1 + level):g} %"
    head = f"{'':<{widest}} {'estimate':>13} {'std. error':>12} {lower:>12} {upper:>12}"
    lines = ["-" * _WIDTH, head.rstrip(), "-" * _WIDTH]
    for row in rows:
        line = f"{row.label:<{widest}} {number(row.estimate):>13}"
        line += f" {number(row.error):>12}" if row.error is not None else f" {row.note:>12}"
        if row.limits is not None:
            line += f" {number(row.limits[0]):>12} {number(row.limits[1]):>12}"
        lines.append(line.rstrip())
    return [*lines, "=" * _WIDTH]


def entries(name: str, value: np.ndarray) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Label and index of every entry of a parameter: ``name``, ``name[0]``, ``name[0, 1]`` …"""
    for index in np.ndindex(np.shape(value)):
        yield name + (f"[{', '.join(map(str, index))}]" if index else ""), index


def number(value: Any) -> str:
    """Five significant digits."""
    value = float(value)
    return (
        f"{value:.5g}" if np.isfinite(value) else "undetermined" if np.isnan(value) else str(value)
    )
