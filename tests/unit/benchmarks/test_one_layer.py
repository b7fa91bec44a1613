"""The page of heads of one layer: means over seeds, gains over labels alone, and nothing filled in."""

import pytest

from benchmarks.limbs.shapes import Records
from benchmarks.one_layer import BASIS, TASKS, WAYS, key, page, summary

PLAN = {task: {"metric": "accuracy", "student": 0.9, "layers": 2} for task in TASKS}


def test_each_way_has_its_own_records_and_what_was_not_measured_says_so(tmp_path):
    records = Records(tmp_path)
    for seed, score in enumerate((0.5, 0.6)):
        records.add(key("cola", "taught", seed), {"score": score, "cpu_seconds": 10.0})
    records.add(key("cola", BASIS, 0), {"score": 0.4, "cpu_seconds": 5.0})
    records.add(key("cola", "taught, twice as long", 0), {"score": 0.8, "cpu_seconds": 20.0})
    found = summary(Records(tmp_path), PLAN)
    ways = found["tasks"]["cola"]["ways"]
    assert list(ways) == list(WAYS)
    assert ways["taught"]["score"] == pytest.approx(0.55)
    assert (ways["taught"]["seeds"], ways[BASIS]["deviation"]) == (2, None)
    lines = page(found).splitlines()
    missing = "not measured yet | not measured yet"
    assert f"| {BASIS} | 40.0 (5 s) | {missing} |" in lines
    assert f"| taught | 55.0 ± 7.1, +15.0 (10 s) | {missing} |" in lines
    assert f"| taught, 10 changed copies | not measured yet | {missing} |" in lines
    assert "| head of the plan (layers), the teacher | 90.0 (2) | 90.0 (2) | 90.0 (2) |" in lines
