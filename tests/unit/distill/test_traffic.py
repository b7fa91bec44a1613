"""What a team asks, and what a plan costs by it."""

import dataclasses
import json

import pytest

from onetrunk.distill.costs import Traffic
from onetrunk.distill.frontier import choose
from onetrunk.distill.plan_file import plan_file, read_plan, write_plan
from onetrunk.distill.traffic import read_traffic
from onetrunk.protocol.errors import UserError
from tests.unit.distill.test_costs import bucket, head, table

LENGTHS = (8, 16, 32)


def write(path, rows):
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def test_lengths_and_tasks_are_counted(tiny_trunk, tmp_path):
    short, long = "good film", " ".join(["music"] * 50)
    rows = [
        {"text": short},
        {"text": short, "tasks": ["mood"]},
        {"text": short, "tasks": "mood, other"},
        {"text": long, "tasks": ["mood", "topic"]},
    ]
    found, notes = read_traffic(write(tmp_path / "asked.jsonl", rows), ["mood", "topic"], tiny_trunk, LENGTHS)
    assert found == Traffic(
        source="asked.jsonl", texts=4, lengths={"8": 0.75, "32": 0.25}, asked={"mood": 1.0, "topic": 0.5}
    )
    assert notes == ()


def test_lines_of_text_ask_for_all_tasks(tiny_trunk, tmp_path):
    (tmp_path / "asked.txt").write_text("good film\n\nbad film\n")
    found, _ = read_traffic(tmp_path / "asked.txt", ["mood"], tiny_trunk, LENGTHS)
    assert (found.texts, found.asked) == (2, {"mood": 1.0})


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([{"text": "a", "tasks": ["mood"]}], "no row asks for topic: leave it out of --tasks"),
        ([{"text": "a", "tasks": 3}], "'tasks' is 3: give a list of tasks, or names with commas"),
        ([{"tasks": ["mood", "topic"]}], "it contains no texts"),
    ],
)
def test_what_tells_nothing_is_refused(tiny_trunk, tmp_path, rows, told):
    with pytest.raises(UserError, match=told):
        read_traffic(write(tmp_path / "asked.jsonl", rows), ["mood", "topic"], tiny_trunk, LENGTHS)


def test_lengths_weigh_what_was_measured_there():
    both = table(bucket(32, 1), bucket(128, 1, scale=3))
    traffic = Traffic(source="f", texts=4, lengths={"32": 0.75, "128": 0.25}, asked={"a": 0.5})
    # One whole layer takes 9 ms at 32 tokens and 27 at 128.
    parts = both.by_traffic(traffic)
    assert parts.layer_ms == pytest.approx(0.75 * 9 + 0.25 * 27)
    # The trunk is paid for every text, a head and its single-task model for every second one.
    whole = both.by_traffic(traffic.model_copy(update={"asked": {}}))
    half, full = parts.cost([head(1, 1)]), whole.cost([head(1, 1)])
    assert half.trunk_ms == full.trunk_ms
    assert half.heads_ms == full.heads_ms / 2
    assert half.singles_ms == full.singles_ms / 2
    assert full.overhead_ms - half.overhead_ms == pytest.approx(parts.step_ms / 2)
    with pytest.raises(UserError, match="not in the cost table"):
        both.by_traffic(traffic.model_copy(update={"lengths": {"64": 1.0}}))


def test_a_plan_says_by_which_traffic_it_is_cheap(tmp_path):
    measured = table(bucket(32, 1))
    traffic = Traffic(source="asked.jsonl", texts=9, lengths={"32": 1.0}, asked={"a": 0.01, "b": 1.0})
    # A layer more costs little where it is hardly ever asked for.
    options = [
        dataclasses.replace(head(0, layers, task), score=score)
        for task in "ab"
        for layers, score in ((1, 0.79), (2, 0.8))
    ]
    plan = choose(options, measured.by_traffic(traffic), most_share=0.2, objective="quality")
    assert [(one.task, one.layers) for one in plan.options] == [("a", 2), ("b", 1)]
    written = plan_file(plan, measured, floor_task=0.97, floor_average=0.996, traffic=traffic)
    assert written.cost.single_model_ms == pytest.approx(measured.per_text().single_ms)
    write_plan(tmp_path / "plan.toml", written)
    assert read_plan(tmp_path / "plan.toml") == written
    assert read_plan(tmp_path / "plan.toml").traffic == traffic
