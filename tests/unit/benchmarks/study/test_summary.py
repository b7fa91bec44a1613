"""The figures of a study, by hand."""

import dataclasses
import json
import math

import pytest

from benchmarks.study.report import write_quality_report
from onetrunk.distill.results import SearchRecords, SearchResults, SeedScores


def summary_of(writer):
    write_quality_report(writer.folder)
    return json.loads((writer.folder / "summary.json").read_text())


def test_the_figures_are_those_computed_by_hand(whole_study):
    found = summary_of(whole_study)
    # blue: full 0.82, student (0.80 + 0.82) / 2 = 0.81; red: full 0.60, student 0.61.
    assert found["retention_average"] == pytest.approx((0.81 + 0.61) / (0.82 + 0.60), abs=1e-6)
    assert found["retention_min"] == pytest.approx(0.81 / 0.82, abs=1e-6)
    assert found["retention_min_task"] == "blue"
    assert found["cost_share"] == pytest.approx(0.25)
    assert found["cost_share_range"] == [0.2, 0.3]
    # blue: 3 + 15 + 8 = 26, red: 3 + 15 + 4 = 22, against 20 + 20; trunk 2 + 2 apart.
    assert found["search_cost_ratio"] == pytest.approx(48 / 40)
    assert found["search_cost_ratio_with_trunk"] == pytest.approx(52 / 40)
    assert (found["search_cpu_seconds"], found["baseline_cpu_seconds"], found["trunk_cpu_seconds"]) == (48, 40, 4)
    assert found["machine"] == ["a processor", "a processor (2 cores), Python 3.11, torch 2.13"]


def test_a_tasks_figures_are_those_computed_by_hand(whole_study):
    tasks = summary_of(whole_study)["tasks"]
    blue, red = tasks["blue"], tasks["red"]
    assert blue["full"] == pytest.approx(0.82)
    assert blue["full_sd"] == pytest.approx(0.02)
    assert blue["student"] == pytest.approx(0.81)
    # Of a sample of two: sqrt((0.01^2 + 0.01^2) / 1).
    assert blue["sd"] == pytest.approx(0.014142, abs=1e-6)
    assert (blue["teacher"], blue["tap"], blue["layers"], blue["seeds"]) == (0.81, 1, 2, 2)
    assert blue["student_new_seeds"] == pytest.approx(0.82)
    assert (red["tap"], red["layers"], red["seeds"], red["sd"], red["teacher"]) == (1, 1, 1, None, 0.62)
    assert red["student_new_seeds"] is None


def test_a_share_of_another_plans_heads_does_not_count(whole_study):
    whole_study.share(((1, 1, "cls"), (2, 1, "cls")))
    assert summary_of(whole_study)["cost_share"] is None


def test_an_average_of_some_of_the_plans_tasks_is_not_given(whole_study):
    (whole_study.runs / "red.baseline.json").unlink()
    found = summary_of(whole_study)
    assert found["retention_average"] is found["retention_min"] is found["search_cost_ratio"] is None
    assert found["tasks"]["red"]["full"] is None
    assert found["tasks"]["blue"]["retention"] == pytest.approx(0.81 / 0.82, abs=1e-6)


def test_a_head_that_learned_from_labels_alone_has_no_teacher(writer):
    writer.task("blue", full=[0.5], teacher=0.5, students=[0.5], seeds=[])
    probe = next(run for run in writer.store if run.spec.role == "fork" and run.spec.recipe.tap == 2)
    writer.plan([(probe, 0.5)])
    blue = summary_of(writer)["tasks"]["blue"]
    assert (blue["student"], blue["teacher"], blue["tap"], blue["layers"]) == (0.5, None, 2, 1)


def test_without_a_plan_the_search_is_reported_alone(whole_study):
    (whole_study.folder / "plan.toml").unlink()
    found = summary_of(whole_study)
    assert found["search_cost_ratio"] == pytest.approx(1.2)
    assert found["retention_average"] is None
    assert found["tasks"]["blue"]["student"] is found["tasks"]["blue"]["tap"] is None
    assert found["tasks"]["blue"]["full"] == pytest.approx(0.82)


def test_an_empty_study_has_nothing(writer):
    writer.folder.mkdir()
    found = summary_of(writer)
    assert found["tasks"] == {}
    assert all(
        found[name] is None for name in ("retention_average", "retention_min", "cost_share", "search_cost_ratio")
    )


def test_a_task_that_keeps_nan_is_the_worst(whole_study):
    results = SearchResults.of(SearchRecords.read(whole_study.folder))
    nan = dataclasses.replace(results.tasks[-1], student=SeedScores((math.nan,)))
    for tasks in ([*results.tasks[:-1], nan], [nan, *results.tasks[:-1]]):
        found = dataclasses.replace(results, tasks=tasks)
        assert found.worst is nan
        assert math.isnan(found.retention_min)
