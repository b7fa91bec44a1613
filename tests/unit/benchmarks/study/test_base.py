"""The base-size trunk's page: what is finished counts, what is missing is named and never filled in."""

import json

import pytest
from click.testing import CliRunner

from benchmarks.base.__main__ import chosen_tasks, main
from benchmarks.base.report import hours, write_base_report, write_plan_of
from onetrunk.distill.plan_file import read_plan
from onetrunk.distill.trials import read_trials, save_trials
from onetrunk.protocol.errors import UserError

TASKS = ("rte", "mrpc", "cola")


@pytest.fixture
def under_way(writer):
    """Two tasks that are finished, of three."""
    writer.task("rte", full=[0.80, 0.84], teacher=0.81, students=[0.70, 0.81], seeds=[])
    writer.task("mrpc", full=[0.60], teacher=0.62, students=[0.61], seeds=[])
    writer.costs()
    costs = writer.folder / "costs.json"
    costs.write_text(costs.read_text().replace('"tokens": 32', '"tokens": 128'))
    write_plan_of(writer.folder, floor_task=0.97, floor_average=0.97)
    return writer


def summary_of(writer, tasks):
    write_base_report(writer.folder, tasks)
    return json.loads((writer.folder / "summary.json").read_text())


def test_figures_of_all_tasks_are_null_until_all_are_finished(under_way):
    found = summary_of(under_way, TASKS)
    assert not found["complete"]
    assert found["tasks_missing"] == {"cola": "full fine-tuning and search"}
    assert found["retention_average"] is found["retention_min"] is found["glue_average"] is None
    # rte: full 0.82, its cheapest head above the floor 0.81; mrpc: full 0.60, the teacher's 0.62 costs more than 0.61.
    finished = found["finished"]
    assert finished["tasks"] == ["rte", "mrpc"]
    assert finished["retention_average"] == pytest.approx((0.81 + 0.61) / (0.82 + 0.60), abs=1e-6)
    assert finished["retention_min"] == pytest.approx(0.81 / 0.82, abs=1e-6)
    assert finished["glue_average"] == pytest.approx(0.71)
    assert finished["search_cost_ratio"] == pytest.approx(48 / 40)
    assert finished["cost_share"] is None
    assert found["tasks"]["cola"]["full"] is found["tasks"]["cola"]["student"] is None
    page = (under_way.folder / "README.md").read_text()
    assert "**2 of 3** (rte, mrpc)" in page
    assert "- cola: full fine-tuning and search" in page
    assert "unknown: 1 tasks are missing" in page
    assert "| **missed**" not in page
    assert "python -m benchmarks.base --tasks cola" in page


def test_figures_are_those_of_all_tasks_once_all_are_finished(under_way):
    plan = read_plan(under_way.folder / "plan.toml")
    under_way.share(tuple((head.tap, head.layers, head.query) for head in plan.tasks.values()), shares=(0.15,))
    found = summary_of(under_way, TASKS[:2])
    assert found["complete"]
    assert found["tasks_missing"] == {}
    assert found["retention_average"] == pytest.approx((0.81 + 0.61) / (0.82 + 0.60), abs=1e-6)
    assert found["cost_share"] == pytest.approx(0.15)
    # Two single-task models take 1 ms, and so does the plan.
    assert found["against_one_model"] == pytest.approx(0.5)
    page = (under_way.folder / "README.md").read_text()
    assert "Nothing: all tasks are finished." in page


def test_heads_on_a_limb_stand_beside_those_on_the_trunk(under_way):
    page = under_way.folder / "README.md"
    assert summary_of(under_way, TASKS)["on_limb"] is None
    assert "Heads on a limb: not measured yet" in page.read_text()
    one = {"metric": "accuracy", "plan": 0.81, "full_fine_tuning": 0.82, "kept": 1.0, "seeds": 1}
    tasks = {"rte": {**one, "on_limb": 0.82}, "cola": {**one, "plan": None, "on_limb": 0.5}}
    limb = {"tap": 3, "layers": 4, "tasks": tasks, "retention_average": 0.996, "retention_min": 0.96}
    limb["train_seconds"] = 100.0
    known = {"limbs": {"base": {**limb, "cost_share": 0.09, "against_one_model": None}}}
    limbs = under_way.folder.parent / "limbs" / "summary.json"
    limbs.parent.mkdir()
    limbs.write_text(json.dumps(known))
    found = summary_of(under_way, TASKS)["on_limb"]
    assert (found["retention_min"], found["cost_share"], found["against_one_model"]) == (0.96, 0.09, None)
    assert found["glue_average"] == pytest.approx(0.66)
    lines = page.read_text().splitlines()
    verdicts = {line.split("|")[1].strip(): line.split("|")[-2].strip() for line in lines if line.startswith("| ")}
    assert verdicts["kept on average over the eight tasks"] == "met"
    assert verdicts["kept by the task that keeps least"] == "**missed**"
    assert verdicts["measured cost of all eight, against eight single-task models"] == "met"
    assert verdicts["throughput of all eight, against ONE single-task model, 128 tokens"] == "not measured yet"
    assert (
        verdicts["the search (of a limb: its training and that of its heads), against one full fine-tuning of each"]
        == "–"
    )
    assert "| cola | 82.0 | not measured yet | 50.0 (1) | 100.0% |" in lines
    known["limbs"]["base"]["retention_average"] = None
    limbs.write_text(json.dumps(known))
    assert summary_of(under_way, TASKS)["on_limb"] is None, "a limb of which some heads are missing says nothing of all"


def test_cost_of_other_heads_does_not_count(under_way):
    under_way.share(((0, 1, "cls"), (0, 3, "cls")))
    assert summary_of(under_way, TASKS)["finished"]["cost_share"] is None


def test_search_under_way_is_missing_and_not_in_the_plan(under_way):
    path = under_way.runs / "rte.search.json"
    save_trials(under_way.runs, read_trials(path).model_copy(update={"complete": False}))
    plan = write_plan_of(under_way.folder, floor_task=0.97, floor_average=0.97)
    assert list(plan.tasks) == ["mrpc"]
    found = summary_of(under_way, TASKS)
    assert found["tasks_missing"] == {"rte": "search", "cola": "full fine-tuning and search"}
    assert found["tasks"]["rte"]["full"] == pytest.approx(0.82)
    assert found["tasks"]["rte"]["student"] is None


def test_no_plan_without_costs_or_finished_tasks(writer):
    assert write_plan_of(writer.folder, floor_task=0.97, floor_average=0.97) is None
    writer.task("rte", full=[0.80], teacher=0.81, students=[0.80], seeds=[])
    assert write_plan_of(writer.folder, floor_task=0.97, floor_average=0.97) is None
    assert summary_of(writer, TASKS)["tasks_missing"]["rte"] == "measured costs, and so a plan"


def test_hours_follow_from_tokens_and_measured_speed():
    size = {"train_tokens": 120_000, "dev_tokens": 30_000}
    sizes = {
        "cpu_seconds_per_step": 2.0,
        "cpu_seconds_per_token": 0.01,
        "tasks": {"rte": {"train_rows": 2490, **size}, "mnli": {"train_rows": 10_471, **size}},
    }
    full, trunk, search = hours("rte", sizes)
    # Three epochs of 78 steps, of 120,000 tokens forwards and backwards and of 30,000 forwards.
    assert full == pytest.approx(3 * (78 * 2 + 130_000 / 100) / 3600)
    assert trunk == pytest.approx(50_000 / 100 / 3600)
    assert search == pytest.approx(1.76 * full)
    # A large task has an epoch less.
    assert hours("mnli", sizes)[0] == pytest.approx(2 * (328 * 2 + 130_000 / 100) / 3600)


def test_hours_that_are_left_do_not_count_what_is_done(under_way):
    size = {"train_rows": 32, "train_tokens": 3_600_000, "dev_tokens": 0}
    speed = {"cpu_seconds_per_step": 0, "cpu_seconds_per_token": 0.001, "load": 1, "machine": "a processor"}
    (under_way.folder / "sizes.json").write_text(json.dumps({**speed, "tasks": dict.fromkeys(TASKS, size)}))
    save_trials(under_way.runs, read_trials(under_way.runs / "rte.search.json").model_copy(update={"complete": False}))
    write_plan_of(under_way.folder, floor_task=0.97, floor_average=0.97)
    write_base_report(under_way.folder, TASKS)
    page = (under_way.folder / "README.md").read_text()
    # Three hours of full fine-tuning, a third of one for the trunk's pass, 1.76 times three for the search.
    assert "| rte | 3,600,000 | 3.0 | 0.3 | 5.3 | 5.6 |" in page
    assert "| cola | 3,600,000 | 3.0 | 0.3 | 5.3 | 8.6 |" in page
    assert "| all |  |  |  |  | 14.2 |" in page


def test_tasks_come_in_the_studys_order_and_unknown_ones_are_refused():
    assert chosen_tasks("cola, rte") == ["rte", "cola"]
    assert len(chosen_tasks("all")) == 8
    assert chosen_tasks(None) == []
    with pytest.raises(UserError, match="--tasks wnli: allowed are rte, mrpc"):
        chosen_tasks("rte,wnli")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "nothing to do: give --tasks"),
        (["--tasks", "rte", "--steps", "guess"], "--steps guess: allowed are full, search"),
    ],
)
def test_mistakes_end_the_command_in_one_line(arguments, message, tmp_path):
    result = CliRunner().invoke(main, [*arguments, "--study", str(tmp_path)])
    assert result.exit_code != 0
    assert message in result.output
    assert len(result.output.strip().splitlines()) == 1


def test_what_eight_heads_would_cost_follows_from_the_parts_of_twelve_layers(under_way):
    costs = under_way.folder / "costs.json"
    values = json.loads(costs.read_text())
    for bucket in values["buckets"]:
        one = bucket["trunk_ms"][1]
        bucket["trunk_ms"] = [{name: tap * ms for name, ms in one.items()} for tap in range(13)]
    costs.write_text(json.dumps(values))
    write_base_report(under_way.folder, TASKS)
    page = (under_way.folder / "README.md").read_text()
    assert "| 8 heads of one layer on tap 8 |" in page
    assert "| 7 heads of two layers on tap 6, one of five on tap 3 |" in page
