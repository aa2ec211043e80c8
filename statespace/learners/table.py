"""Plain text tables of estimates."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

_WIDTH = 78


def header(title: str, facts: Sequence[tuple[str, str]]) -> list[str]:
    """A title between rules, and facts one a line."""
    widest = max(len(name) for name, _ in facts)
    lines = [title.center(_WIDTH).rstrip(), "=" * _WIDTH]
    return lines + [f"{name + ':':<{widest + 2}}{value}" for name, value in facts]


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of a label and entries below the names of the columns, between rules."""
    widest = max([len(row[0]) for row in rows] + [9])
    widths = [
        max([len(name), *(len(row[i + 1]) for row in rows)]) for i, name in enumerate(columns)
    ]
    rest = max(0, _WIDTH - widest - sum(widths)) // max(1, len(columns))
    widths = [width + max(2, min(4, rest)) for width in widths]
    total = max(_WIDTH, widest + sum(widths))

    def line(label: str, entries: Sequence[str]) -> str:
        return (
            f"{label:<{widest}}" + "".join(f"{e:>{w}}" for e, w in zip(entries, widths))
        ).rstrip()

    body = [line(row[0], row[1:]) for row in rows]
    return ["-" * total, line("", columns), "-" * total, *body, "=" * total]


def entries(name: str, value: np.ndarray) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Label and index of every entry of a parameter, such as ``name``, ``name[0]`` or ``name[0, 1]``."""
    for index in np.ndindex(np.shape(value)):
        yield name + (f"[{', '.join(map(str, index))}]" if index else ""), index


def number(value: Any) -> str:
    """Five significant digits, or in words what is no number."""
    value = float(value)
    return (
        f"{value:.5g}" if np.isfinite(value) else "undetermined" if np.isnan(value) else str(value)
    )
