"""The benchmark runner: what it measures, compares and judges, on made-up columns."""

import json

import pytest

from benchmarks import harness
from benchmarks.__main__ import FAMILIES, parse
from benchmarks.goals import GOALS, Goal, ratios
from benchmarks.harness import Call, Options, Suite


class Problem:
    label, facts = "2x1 T=10", {"n": 2, "m": 1, "T": 10}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(harness, "RESULTS", tmp_path)
    return tmp_path


def row(column, key, **more):
    return {
        "column": column,
        "key": key,
        "kind": "peer",
        "op": "loglik",
        "size": "a",
        "n": 2,
    } | more


def test_a_suite_times_its_columns_and_stores_ratios(folder, capsys):
    suite = Suite("made up", ops=("loglik", "grad"))

    @suite.column("statespace", kind="ours")
    def ours(problem, op):
        return Call(lambda: sum(range(2_000)), lambda _: 1.0)

    @suite.column("slow")
    def slow(problem, op):
        return Call(lambda: sum(range(200_000)), lambda _: 1.0) if op == "loglik" else None

    @suite.column("absent", needs="no_package_has_this_name")
    def absent(problem, op):
        raise AssertionError("built without its package")

    @suite.column("broken")
    def broken(problem, op):
        raise ValueError("does not work")

    suite.run([Problem()], Options(budget=0.01))
    rows = [json.loads(line) for line in (folder / "made up.jsonl").read_text().splitlines()]
    assert [(r["column"], r["op"]) for r in rows] == [
        ("statespace", "loglik"),
        ("slow", "loglik"),
        ("statespace", "grad"),
    ]
    assert rows[0]["ratio"] < 0.2
    assert rows[1]["ratio"] == 1
    printed = capsys.readouterr().out
    assert "not installed: no_package_has_this_name" in printed
    assert "FAILED ValueError: does not work" in printed


def test_values_that_differ_are_shown():
    rows = [row("a", 1.0, value=2.0), row("b", 2.0, value=2.0), row("c", 4.0, value=3.0)]
    harness.compare(rows)
    assert [r["difference"] for r in rows] == [0, 0, 0.5]
    assert [r["ratio"] for r in rows] == [1, 2, 4]


def test_a_goal_names_what_misses_it():
    rows = [
        row("statespace", 1.0, kind="ours"),
        row("peer", 2.0),
        row("other", 9.0),
        row("statespace", 3.0, kind="ours", size="b"),
        row("peer", 4.0, size="b"),
    ]
    goal = Goal("made up", "fast", 0.6, "x", ratios(("loglik",), lambda r: True))
    assert goal.outcome(rows) == ("0.50–0.75 x", "**no** in 1 of 2 (loglik b: 0.75)")
    assert goal.outcome(rows[:3]) == ("0.50 x", "yes")
    assert goal.outcome([]) == ("not measured", "")


def test_every_goal_is_of_a_family_that_there_is():
    assert {goal.family for goal in GOALS} <= set(FAMILIES)


def test_command_line():
    options = parse(["kalman", "--dims", "4x4,2x1", "--T", "1000,1e4", "--no-fused"])
    assert options.dims == ((4, 4), (2, 1))
    assert options.lengths == (1000, 10_000)
    assert options.families == ("kalman",)
    assert not options.fused
    assert parse([]).families == tuple(FAMILIES)


def test_unknown_families_are_refused(capsys):
    with pytest.raises(SystemExit):
        parse(["kalmann"])
    assert "no family called kalmann" in capsys.readouterr().err
