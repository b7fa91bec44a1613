"""The goals' ratios, worked out by hand for made-up measurements."""

import json
import math

import pytest

from benchmarks.compare import names
from benchmarks.compare.goals import find_goals
from benchmarks.compare.measure import Measured, Sample
from benchmarks.compare.report import load_results, write_report
from benchmarks.compare.result import Point, Result
from benchmarks.precision_loss import greatest_loss
from benchmarks.speed import is_lost
from onetrunk.protocol.manifest import GateResult


def point(system, throughputs, tokens=128, concurrency=4, tasks=8, memory=100.0, weights=10.0, cpu=3.0):
    samples = [Sample(value, 1.0, 2.0, cpu) for value in throughputs]
    return Point(
        system, "a system", tokens, concurrency, tasks, Measured(samples, memory, {"trunk_00_02": 60.0}), weights
    )


def result(name, *points, **figures):
    machine = {"when": "2026-01-01", "processor": "one", "cores": "2"}
    return Result(name, "a title", {"seconds": 1, "repeats": 2}, machine, list(points), figures)


RESULTS = {
    "base": result(
        "base",
        point(names.GROUPED, [20, 22]),
        point(names.INT8_HEADS, [24, 24]),
        point(names.INT8, [60, 60]),
        point(f"{names.SINGLE} (1 x 2 threads)", [10, 12], tasks=1),
        point(f"{names.SINGLE} (2 x 1 thread)", [16, 16], tasks=1),
        point(f"{names.TRUNK} (1 thread)", [30, 30], tasks=0),
        point(names.SINGLES, [2, 2]),
    ),
    "tasks": result(
        "tasks",
        point(f"{names.INT8_HEADS}: 8", [24, 24], memory=110, weights=10),
        point(f"{names.INT8_HEADS}: 64", [12, 16], tasks=64, memory=230, weights=80),
    ),
    "shipped": result(
        "shipped",
        point(names.GROUPED, [18, 18], tokens=32),
        point(names.INT8, [36, 30], tokens=32),
        point(f"{names.SINGLE} (1 x 2 threads)", [20, 20], tokens=32, tasks=1),
        point(names.GROUPED, [8, 8]),
        point(f"{names.SINGLE} (1 x 2 threads)", [10, 10], tasks=1),
    ),
    "understanding": result(
        "understanding",
        point(f"{names.GROUPED}: 8", [30, 33], tokens=32, cpu=20.0),
        point(f"{names.GROUPED}: 10", [20, 30], tokens=32, tasks=10, cpu=21.0),
        tasks=10,
    ),
    "subset": result(
        "subset",
        *(point("one task on tap 2", [70, 70], tasks=1, concurrency=n, cpu=22.0) for n in (1, 4)),
        point("all eight tasks", [20, 20], concurrency=1),
        point("all eight tasks", [30, 30], cpu=70.0),
        shallow_tap=2,
        deep_tap=7,
    ),
    "peers": result(
        "peers",
        point("base: ours (beside bert-base: a)", [20, 20]),
        point("bert-base: a", [2, 2]),
        point("base: ours (beside bert-base: b)", [18, 18]),
        point("bert-base: b", [6, 6]),
    ),
}


@pytest.fixture
def goals(tmp_path):
    (tmp_path / "padding.json").write_text(json.dumps({"padding_share": 0.1}))
    (tmp_path / "precision.json").write_text(json.dumps({"int8_metric_loss": 0.6, "bf16_metric_loss": None}))
    return {goal.name: goal for goal in find_goals(RESULTS, tmp_path)}


def test_one_ordinary_model_counts_in_its_faster_setting(goals):
    assert goals["vs_one"].value == (1.5, 1.5, 1.5)
    assert goals["vs_one_fp32"].value == pytest.approx((1.3125, 1.25, 1.375))
    assert goals["vs_one"].reached


def test_ratios_against_the_others(goals):
    assert goals["vs_eight"].value == (12, 12, 12)
    assert goals["vs_trunk"].value == (0.8, 0.8, 0.8)
    assert goals["vs_trunk"].reached is False
    assert goals["vs_best_peer"].value == (3, 3, 3)


def test_what_ships_against_one_ordinary_model(goals):
    assert goals["shipped_vs_one"].value == pytest.approx((0.9, 0.9, 0.9))
    assert goals["shipped_vs_one"].reached
    assert goals["shipped_vs_one_128"].value == pytest.approx((0.8, 0.8, 0.8))
    assert goals["shipped_vs_one_128"].reached is False
    assert goals["shipped_int8_vs_one_fp32"].value == pytest.approx((1.65, 1.5, 1.8))
    assert goals["int8_metric_loss"].reached is False
    assert {goals[name].value for name in ("bf16_speedup", "bf16_metric_loss")} == {None}, (
        "where no processor computes in bf16"
    )


def test_more_tasks(goals):
    assert goals["tasks64_time"].value == pytest.approx((1.75, 1.5, 2.0))
    assert goals["tasks64_memory"].value == pytest.approx((1.5, 1.5, 1.5))


def test_tasks_that_understand_utterances_beside_those_of_glue(goals):
    assert goals["ten_vs_eight"].value == pytest.approx((1.3, 1.1, 1.5))
    assert goals["ten_vs_eight"].reached is False
    assert goals["ten_vs_eight_cpu"].value == pytest.approx((1.05, 1.05, 1.05))
    assert goals["ten_vs_eight_cpu"].reached
    assert goals["ten_vs_eight_int8"].value is None


def test_share_of_a_shallow_task(goals):
    # A part of 20/70 of the time for a part of 2/7 of the layers.
    assert goals["subset_error"].value == pytest.approx((0, 0, 0), abs=1e-9)
    assert goals["subset_error_4"].value == pytest.approx((0.5, 0.5, 0.5))
    # While it takes 3/7 of the time, it takes 22/70 of the processor time.
    assert goals["subset_error_4_cpu"].value == pytest.approx((0.1, 0.1, 0.1))
    assert goals["subset_error_4_cpu"].reached
    assert goals["padding_share"].value == (0.1, 0.1, 0.1)


def test_what_was_not_measured_is_open(goals):
    assert goals["small_vs_one"].value is None
    assert goals["small_vs_one"].reached is None


def test_files_come_back_as_they_were_and_the_report_has_them_all(tmp_path):
    for made in RESULTS.values():
        made.save(tmp_path)
    assert load_results(tmp_path) == RESULTS
    write_report(tmp_path)
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["vs_one"] == 1.5
    assert "small_vs_one" not in summary
    text = (tmp_path / "README.md").read_text()
    for made in RESULTS.values():
        for row in made.points:
            assert f"| {row.system} | {row.tokens} |" in text
    assert "| small_vs_one |" in text
    assert "not measured" in text
    assert "| bert-base: b | 128 | 4 | 6.0 | 3.00 (3.00-3.00) |" in text
    assert (tmp_path / "base.png").stat().st_size > 1000


def test_a_ratio_that_is_nan_is_the_least(tmp_path):
    ours, peer = point("base: ours (beside bert-base: c)", [math.nan] * 2), point("bert-base: c", [2, 2])
    peers = result("peers", *RESULTS["peers"].points, ours, peer)
    (goal,) = (goal for goal in find_goals({**RESULTS, "peers": peers}, tmp_path) if goal.name == "vs_best_peer")
    assert math.isnan(goal.value[0])
    assert goal.reached is False


def test_a_bound_is_not_kept_by_nan():
    assert [is_lost(found, 0.7) for found in (0.7, 0.8, math.nan)] == [False, True, True]


def test_the_greatest_loss_is_nan_where_one_is():
    losses = {
        name: GateResult(metric="accuracy", rows=1, fp32=0.9, reduced=reduced, key="")
        for name, reduced in [("a", 0.8), ("b", math.nan), ("c", 0.7)]
    }
    assert math.isnan(greatest_loss(losses))
    assert greatest_loss({"a": losses["a"], "c": losses["c"]}) == pytest.approx(20)
