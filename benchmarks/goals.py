"""What the project wants to reach, and what was measured of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

from benchmarks.harness import FUSED

OURS = "statespace"
Rows = list[dict]


class Measured(NamedTuple):
    """One number of a goal: where it was taken, and what it is."""

    where: str
    value: float


class Goal(NamedTuple):
    """A bound on numbers that come out of the results of one family."""

    family: str
    words: str
    limit: float
    unit: str  # "x" for a ratio, "s", or "" for a count
    measure: Callable[[Rows], Iterable[Measured]]

    def outcome(self, rows: Rows) -> tuple[str, str]:
        """What was measured, and whether it is within the limit, in words."""
        numbers = sorted(self.measure(rows), key=lambda number: number.value)
        if not numbers:
            return "not measured", ""
        low, high = numbers[0], numbers[-1]
        shown = f"{high.value:.2f}{self.unit and ' ' + self.unit}".strip()
        if len(numbers) > 1:
            shown = f"{low.value:.2f}–{shown}"
        missed = [f"{n.where}: {n.value:.2f}" for n in numbers if n.value > self.limit]
        if not missed:
            return shown, "yes"
        return shown, f"**no** in {len(missed)} of {len(numbers)} ({'; '.join(reversed(missed))})"


def ratios(
    ops: Iterable[str],
    fits: Callable[[dict], bool],
    column: str = OURS,
    against: str | None = None,
) -> Callable[[Rows], Iterable[Measured]]:
    """Our time over that of the best peer, or of a named one, for each op and size that fits."""

    def measure(rows: Rows) -> Iterable[Measured]:
        for ours in rows:
            if ours["column"] != column or ours["op"] not in ops or not fits(ours):
                continue
            same = [r for r in rows if (r["op"], r["size"]) == (ours["op"], ours["size"])]
            if against is None:
                others = [r["key"] for r in same if r["kind"] == "peer"]
            else:
                others = [r["key"] for r in same if r["column"] == against]
            if others:
                yield Measured(f"{ours['op']} {ours['size']}", ours["key"] / min(others))

    return measure


def recompilations(rows: Rows) -> Iterable[Measured]:
    for row in rows:
        if row["column"] == OURS and row["op"] == "second fit":
            yield Measured(row["size"], row["recompilations"])


def seconds(op: str, over: str | None = None) -> Callable[[Rows], Iterable[Measured]]:
    """CPU seconds of our column, over those of another."""

    def measure(rows: Rows) -> Iterable[Measured]:
        by_column = {row["column"]: row["key"] for row in rows if row["op"].startswith(op)}
        for column, value in by_column.items():
            if column in (OURS, f"{OURS} (associative)"):
                yield Measured(column, value - by_column.get(over, 0.0))

    return measure


def multiples(op: str, of: str) -> Callable[[Rows], Iterable[Measured]]:
    """Our time for one op in units of our time for another."""

    def measure(rows: Rows) -> Iterable[Measured]:
        ours = {(r["op"], r["size"]): r["key"] for r in rows if r["column"] == OURS}
        for (name, size), value in ours.items():
            if name == op and (of, size) in ours:
                yield Measured(size, value / ours[of, size])

    return measure


def states(low: int, high: int) -> Callable[[dict], bool]:
    return lambda row: low <= row["n"] <= high


def length(steps: int) -> Callable[[dict], bool]:
    return lambda row: row["T"] == steps


def particles(count: int) -> Callable[[dict], bool]:
    return lambda row: row["N"] == count


def case(shared: bool, gaps: bool) -> Callable[[dict], bool]:
    return lambda row: row["shared"] is shared and row["gaps"] is gaps


_ANY = states(1, 10**6)
_FORWARD = ("loglik", "filter")
_STEADY = "statsmodels (steady state)"
_COMPLETE = "dynamax on complete data"

GOALS = (
    Goal(
        "kalman", "log likelihood and filter, ≤ 2 states", 0.2, "x", ratios(_FORWARD, states(1, 2))
    ),
    Goal("kalman", "the same, 4–8 states", 0.9, "x", ratios(_FORWARD, states(4, 8))),
    Goal(
        "kalman",
        "the same, 4–8 states, fused loops",
        0.25,
        "x",
        ratios(_FORWARD, states(4, 8), OURS + FUSED),
    ),
    Goal("kalman", "the same, 16 states", 1.0, "x", ratios(_FORWARD, states(16, 16))),
    Goal("kalman", "the same, 64 states", 1.05, "x", ratios(_FORWARD, states(64, 64))),
    Goal(
        "kalman",
        "the same, T = 10,000, against statsmodels' steady state",
        1.0,
        "x",
        ratios(_FORWARD, lambda row: row["T"] >= 10_000, against=_STEADY),
    ),
    Goal("kalman", "gradient, ≤ 4 states", 0.5, "x", ratios(("grad",), states(1, 4))),
    Goal(
        "kalman",
        "gradient, ≤ 4 states, fused loops",
        0.1,
        "x",
        ratios(("grad",), states(1, 4), OURS + FUSED),
    ),
    Goal("kalman", "smoother, ≤ 4 states", 0.5, "x", ratios(("smoother",), states(1, 4))),
    Goal(
        "kalman",
        "smoother, ≤ 4 states, fused loops",
        0.25,
        "x",
        ratios(("smoother",), states(1, 4), OURS + FUSED),
    ),
    Goal("batch", "1,000 × 100, shared parameters", 0.6, "x", ratios(_FORWARD, case(True, False))),
    Goal("batch", "1,000 × 100, own parameters", 0.15, "x", ratios(_FORWARD, case(False, False))),
    Goal("batch", "shared, values missing", 0.6, "x", ratios(_FORWARD, case(True, True))),
    Goal("batch", "own, values missing", 0.15, "x", ratios(_FORWARD, case(False, True))),
    Goal(
        "batch",
        "own, values missing, against dynamax with nothing missing",
        0.15,
        "x",
        ratios(_FORWARD, case(False, True), against=_COMPLETE),
    ),
    Goal("hmm", "log likelihood and smoother", 1.0, "x", ratios(("loglik", "smoother"), _ANY)),
    Goal("hmm", "most probable path", 1.1, "x", ratios(("viterbi",), _ANY)),
    Goal("hmm", "gradient", 0.7, "x", ratios(("grad",), _ANY)),
    Goal("hmm", "E-steps of 20 starts, in single ones", 5.0, "x", multiples("starts", "counts")),
    Goal(
        "em", "EM iteration", 0.4, "x", ratios(("iteration",), lambda row: True, against="dynamax")
    ),
    Goal("em", "programs compiled by a second `fit`", 0, "", recompilations),
    Goal(
        "particles", "log likelihood, 100 particles", 0.1, "x", ratios(("loglik",), particles(100))
    ),
    Goal("particles", "the same, 1,000", 0.3, "x", ratios(("loglik",), particles(1_000))),
    Goal("particles", "the same, 10,000", 0.7, "x", ratios(("loglik",), particles(10_000))),
    Goal(
        "nonlinear",
        "extended filter, 4 states, T = 1,000",
        0.4,
        "x",
        ratios(("ekf", "ekf filter"), length(1_000)),
    ),
    Goal("nonlinear", "unscented filter", 0.6, "x", ratios(("ukf", "ukf filter"), length(1_000))),
    Goal(
        "nonlinear",
        "extended filter, fused loops",
        0.1,
        "x",
        ratios(("ekf", "ekf filter"), length(1_000), OURS + FUSED),
    ),
    Goal(
        "nonlinear",
        "unscented filter, fused loops",
        0.25,
        "x",
        ratios(("ukf", "ukf filter"), length(1_000), OURS + FUSED),
    ),
    Goal("start", "import, over the import of jax", 0.3, "s", seconds("import", "jax alone")),
    Goal("start", "first filtered result in a cold process", 2.0, "s", seconds("first filter")),
    Goal("start", "compile an associative filter, T = 10,000", 5.0, "s", seconds("associative")),
)
