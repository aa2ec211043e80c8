"""What every family shares: one pinned core, timing, side-by-side tables, result lines.

A family is a module with ``run(options)``. Those that time calls make a :class:`Suite`, give it one function
per column, and hand it their problems::

    suite = Suite("kalman", ops=("loglik", "filter"))

    @suite.column("dynamax", needs="dynamax")
    def dynamax(problem, op):
        return Call(lambda: f(y), float)   # or None where the column does not do this op

`Call.check` turns what was computed into one number, which must agree between columns.
"""

from __future__ import annotations

import dataclasses
import gc
import importlib.util
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).parent
RESULTS = HERE / "results"
FUSED = " [fused loops]"


@dataclasses.dataclass(frozen=True)
class Options:
    """What the command line asks for."""

    families: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    ops: tuple[str, ...] = ()
    dims: tuple[tuple[int, int], ...] = ()
    lengths: tuple[int, ...] = ()
    quick: bool = False
    extra: bool = False
    fused: bool = True
    save: bool = True
    core: str = "1"
    platform: str = "cpu"
    budget: float = 0.3
    seeds: int = 5
    worker: str | None = None


def prepare(options: Options) -> None:
    """Pin this process and set JAX up; to be called before NumPy or JAX is imported."""
    if options.core != "all" and hasattr(os, "sched_setaffinity"):
        allowed = sorted(os.sched_getaffinity(0))
        core = int(options.core)
        os.sched_setaffinity(0, {core if core in allowed else allowed[-1]})
        for name in ("OMP", "OPENBLAS", "MKL", "NUMBA"):
            os.environ[f"{name}_NUM_THREADS"] = "1"
    os.environ["JAX_PLATFORMS"] = "" if options.platform == "gpu" else options.platform
    os.environ["JAX_ENABLE_X64"] = "1"  # float32 is then a matter of each problem's arrays
    os.environ.pop(
        "JAX_COMPILATION_CACHE_DIR", None
    )  # or there would be no compile time to measure
    if options.worker:
        import statespace as ss

        ss.config.cpu_fused_loops()


class Call(NamedTuple):
    """A piece of work that is ready to run.

    Attributes:
        run: does the work once.
        check: one number from what it returned, compared across columns; None where there is none.
        per: how many units of work (iterations, say) one run does; times are per unit.
    """

    run: Callable[[], Any]
    check: Callable[[Any], Any] | None = None
    per: int = 1


class Skip(Exception):
    """Raised by a column that could do the work but should not, with the reason."""


class Column(NamedTuple):
    """One library, or one way of using it."""

    name: str
    kind: str  # "peer", "ours" or "bound"
    build: Callable[[Any, str], Call | None]
    needs: str | None
    fused: bool
    extra: bool


class Suite:
    """The columns of a family, run over its problems.

    Args:
        name: of the family.
        ops: what is measured, in order.
    """

    def __init__(self, name: str, ops: Sequence[str]):
        self.name, self.ops = name, tuple(ops)
        self.columns: list[Column] = []

    def column(
        self,
        name: str,
        *,
        kind: str = "peer",
        needs: str | None = None,
        fused: bool = False,
        extra: bool = False,
    ) -> Callable:
        """Register a function ``(problem, op) -> Call | None`` as a column.

        Args:
            name: heads the row.
            kind: "peer"; "ours"; "bound" for a hand-written limit, which is nobody's competitor.
            needs: package without which the column is left out.
            fused: also measure it in a process with ``statespace.config.cpu_fused_loops()``.
            extra: leave it out unless asked for by ``--extra``.
        """

        def register(build: Callable) -> Callable:
            self.columns.append(Column(name, kind, build, needs, fused, extra))
            return build

        return register

    def run(self, problems: Iterable[Any], options: Options) -> list[dict]:
        """Measure every column on every problem, print a table for each, and store the rows.

        Problems have ``label`` (a size in words) and ``facts`` (a dict of what to store with it).
        """
        columns, absent = self._chosen(options)
        if absent and not options.worker:
            print(f"{self.name}: left out, not installed: {', '.join(sorted(absent))}")
        ops = [op for op in self.ops if not options.ops or op in options.ops]
        fused = self._fused_rows(options) if not options.worker else {}
        everything = []
        for problem in problems:
            for op in ops:
                rows = []
                for column in columns:
                    row = self._row(column, problem, op, options)
                    if row is not None:
                        rows.append(row)
                        extra = fused.get((column.name, op, problem.label))
                        rows += [] if extra is None else [extra]
                if not rows:
                    continue
                compare(rows)
                if not options.worker:
                    print_table(f"{self.name} | {op} | {problem.label}", rows)
                everything += rows
                if options.save:
                    store(self.name, rows, options)
        return everything

    def _chosen(self, options: Options) -> tuple[list[Column], set[str]]:
        chosen, absent = [], set()
        for column in self.columns:
            if options.worker and not column.fused:
                continue
            if column.extra and not options.extra:
                continue
            if options.only and not any(part in column.name for part in options.only):
                continue
            if column.needs and importlib.util.find_spec(column.needs) is None:
                absent.add(column.needs)
                continue
            chosen.append(column)
        return chosen, absent

    def _row(self, column: Column, problem: Any, op: str, options: Options) -> dict | None:
        label = f"{column.name}, {op}, {problem.label}"
        try:
            call = column.build(problem, op)
            if call is None:
                return None
            row, out = measure(call, options)
            value = math.nan if call.check is None else float(call.check(out))
        except Skip as reason:
            print(f"   ({label}: skipped: {reason})", flush=True)
            return None
        except Exception as error:  # a peer that fails is a finding, not the end of the run
            print(f"   ({label}: FAILED {type(error).__name__}: {str(error)[:300]})", flush=True)
            return None
        if sys.stderr.isatty() or os.environ.get("BENCH_VERBOSE"):
            cost = f"{duration(row['cpu_min'])}, compile {duration(row['compile'])}"
            print(f"   .. {label}: {cost}", file=sys.stderr, flush=True)
        _clear_jax_caches()
        name = column.name + (FUSED if options.worker else "")
        known = {"family": self.name, "op": op, "size": problem.label, "column": name}
        return known | {"kind": column.kind, "value": value} | problem.facts | row

    def _fused_rows(self, options: Options) -> dict[tuple[str, str, str], dict]:
        """Our columns once more, in a process where XLA:CPU may fuse larger loops."""
        ours = [c for c in self._chosen(options)[0] if c.fused]
        if not options.fused or not ours or options.platform != "cpu":
            return {}
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "rows.jsonl"
            again = dataclasses.replace(options, families=(self.name,), worker=str(path))
            command = [
                sys.executable,
                "-m",
                "benchmarks",
                "--options",
                json.dumps(dataclasses.asdict(again)),
            ]
            done = subprocess.run(command, cwd=HERE.parent)
            if done.returncode or not path.exists():
                print(f"   (fused loops: the process ended with status {done.returncode})")
                return {}
            rows = [json.loads(line) for line in path.read_text().splitlines()]
        return {(row["column"].removesuffix(FUSED), row["op"], row["size"]): row for row in rows}


# Measuring


def measure(call: Call, options: Options) -> tuple[dict, Any]:
    """Time a call: the first run (with compilation), one to warm up, then repeats.

    On a shared machine wall time says little. The process CPU time of a pinned process does not count the
    time others held the core, and its minimum is what the code needs; ratios are taken on it (on an
    accelerator, on the minimum of wall time).
    """
    gc.collect()
    first, out = _timed(call.run)
    warm, out = _timed(call.run)
    cost = max(warm.cpu, 1e-9) if options.platform == "cpu" else max(warm.wall, 1e-9)
    repeats = 1 if cost > 15 else 3 if cost > 2.5 else int(min(40, max(5, options.budget / cost)))
    inner = int(min(1000, max(1, 1e-3 / cost))) if cost < 2e-4 else 1  # the clock's resolution
    before = _compilations.count
    times = [_timed(call.run, inner)[0] for _ in range(repeats)]
    wall, cpu = zip(*times)
    key = cpu if options.platform == "cpu" and options.core != "all" else wall
    scale = 1 / call.per
    return {
        "key": min(key) * scale,
        "cpu_min": min(cpu) * scale,
        "cpu_median": statistics.median(cpu) * scale,
        "wall_min": min(wall) * scale,
        "wall_median": statistics.median(wall) * scale,
        "compile": max(0.0, first.cpu - statistics.median(cpu)),
        "compile_wall": max(0.0, first.wall - statistics.median(wall)),
        "recompilations": (_compilations.count - before) / (repeats * inner),
        "repeats": repeats,
        "load": os.getloadavg()[0],
        "core": options.core,
        "platform": options.platform,
        "per": call.per,
    }, out


class _Time(NamedTuple):
    wall: float
    cpu: float


def _timed(run: Callable[[], Any], inner: int = 1) -> tuple[_Time, Any]:
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(inner):
        out = run()
        _wait(out)
    return _Time((time.perf_counter() - wall) / inner, (time.process_time() - cpu) / inner), out


def _wait(out: Any) -> None:
    if "jax" in sys.modules:
        sys.modules["jax"].block_until_ready(out)


class _Compilations:
    """How many programs JAX has compiled since it was imported."""

    def __init__(self) -> None:
        self._count, self._listening = 0, False

    @property
    def count(self) -> int:
        if not self._listening and "jax" in sys.modules:
            from jax import monitoring

            monitoring.register_event_duration_secs_listener(self._heard)
            self._listening = True
        return self._count

    def _heard(self, event: str, duration: float, **_: Any) -> None:
        self._count += event == "/jax/core/compile/backend_compile_duration"


_compilations = _Compilations()


def _clear_jax_caches() -> None:
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()


# Showing


def compare(rows: list[dict]) -> None:
    """Add to each row its ratio to the best peer and to the limit, and how far its value is from theirs."""
    peers = [row["key"] for row in rows if row["kind"] == "peer"]
    bounds = [
        row["key"] for row in rows if row["kind"] == "bound" and "steady" not in row["column"]
    ]
    values = [row["value"] for row in rows if math.isfinite(row["value"])]
    middle = statistics.median_low(values) if values else math.nan
    for row in rows:
        row["ratio"] = row["key"] / min(peers) if peers else math.nan
        row["to_bound"] = row["key"] / min(bounds) if bounds else math.nan
        row["difference"] = abs(row["value"] - middle) / max(abs(middle), 1e-300)


def print_table(title: str, rows: list[dict]) -> None:
    print(f"\n== {title}   (core {rows[0]['core']}, load {rows[0]['load']:.1f})")
    heads = ("cpu min", "cpu med", "wall med", "compile", "x best", "x C", "reldiff", "recomp.")
    print(f"{'':38s}" + "".join(f"{head:>10s}" for head in heads))
    for row in sorted(rows, key=lambda row: row["key"]):
        times = [duration(row[k]) for k in ("cpu_min", "cpu_median", "wall_median", "compile")]
        ratios = [f"{row['ratio']:.2f}", f"{row['to_bound']:.2f}", f"{row['difference']:.0e}"]
        again = f"{row['recompilations']:.0f}" if row["recompilations"] else ""
        print(f"{row['column']:38s}" + "".join(f"{cell:>10s}" for cell in [*times, *ratios, again]))
    sys.stdout.flush()


def duration(seconds: float | None) -> str:
    if seconds is None or not math.isfinite(seconds):
        return "-"
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f} us"
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.2f} s"


# Storing


def store(family: str, rows: list[dict], options: Options) -> None:
    """Append rows to the family's results, one JSON object a line."""
    path = Path(options.worker) if options.worker else RESULTS / f"{family}.jsonl"
    path.parent.mkdir(exist_ok=True)
    stamp = time.strftime("%Y-%m-%d %H:%M")
    with path.open("a") as file:
        for row in rows:
            file.write(json.dumps({"when": stamp} | row) + "\n")
