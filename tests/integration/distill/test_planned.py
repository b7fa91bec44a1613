"""A search's heads as a plan's options, and the plan that is written."""

import math

import pytest

from onetrunk.distill import pipeline
from onetrunk.distill.costs import BucketCosts, CostTable, Quartiles
from onetrunk.distill.pipeline import make_plan, servable_options
from onetrunk.distill.plan_file import read_plan
from onetrunk.distill.trials import Trial, Trials, save_trials
from onetrunk.protocol.errors import UserError
from onetrunk.tasks import Recipe
from onetrunk.training.runs import RunSpec

HEADS = {"probe": (3, 1, 0.9), "fork": (1, 1, 0.6), "teacher": (1, 3, 0.8), "student": (1, 2, 0.7)}


@pytest.fixture
def runs(tmp_path):
    """A baseline of 0.8, and a run of each stage of a search; the teacher on tap 0 was stopped."""

    def trial(stage, tap, layers, score, **more):
        spec = RunSpec(task="one", role="fork", recipe=Recipe(tap=tap, layers=layers))
        values = {"key": f"{stage}{tap}", "epochs": 3, "stopped": False, "cpu_seconds": 1, **more}
        return Trial(stage=stage, spec=spec, score=score, **values)

    found = [trial(stage, *head) for stage, head in HEADS.items()] + [trial("teacher", 0, 4, 0.75, stopped=True)]
    save_trials(tmp_path, Trials(study="search", task="one", metric="accuracy", trials=tuple(found)))
    baselines = tuple(trial("baseline", 0, 4, score, key=str(score)) for score in (0.75, 0.85))
    save_trials(tmp_path, Trials(study="baseline", task="one", metric="accuracy", trials=baselines))
    return tmp_path


def table():
    def spread(ms):
        return Quartiles(median=ms, low=ms, high=ms)

    costs = BucketCosts(
        tokens=8,
        batch_size=1,
        trunk_ms=tuple(spread(float(tap)) for tap in range(5)),
        layer_ms=spread(1.0),
        folded_ms=spread(0.1),
        step_ms=spread(0.01),
        single_ms=spread(5.0),
        folded_single_ms=spread(4.0),
    )
    return CostTable(trunk="bert-4x32@0", machine="", versions={}, threads=1, repeats=1, buckets=(costs,))


def test_options_are_what_can_be_served_and_was_trained_to_its_end(runs):
    options = servable_options(runs, ["one"])
    assert {(option.run, option.tap, option.layers, option.score) for option in options} == {
        ("fork1", 1, 1, 0.6),
        ("teacher1", 1, 3, 0.8),
        ("student1", 1, 2, 0.7),
    }
    assert [option.full for option in options] == pytest.approx([0.8] * 3)


def test_plan_of_other_heads_is_kept_beside_the_new_one(runs, tmp_path):
    path, options = tmp_path / "plan.toml", servable_options(runs, ["one"])
    cheap = make_plan(path, options, table(), floor_task=0.5, floor_average=0.5, most_share=None)
    make_plan(path, options, table(), floor_task=0.5, floor_average=0.5, most_share=None)
    assert not path.with_name("plan.toml.old").exists()
    good = make_plan(path, options, table(), floor_task=0.97, floor_average=0.996, most_share=None)
    assert cheap.tasks["one"].run == "fork1"
    assert good.tasks["one"].run == "teacher1"
    assert read_plan(path).tasks == good.tasks
    assert read_plan(path.with_name("plan.toml.old").rename(tmp_path / "old.toml")).tasks == cheap.tasks


def test_a_baseline_that_is_nan_leaves_nothing_to_keep(runs, monkeypatch):
    monkeypatch.setattr(pipeline, "fmean", lambda scores: math.nan)
    with pytest.raises(UserError, match="task one: full fine-tuning scores nan by accuracy"):
        servable_options(runs, ["one"])


def test_a_plan_that_was_changed_by_hand_into_none_is_kept_beside_the_new_one(runs, tmp_path):
    path, options = tmp_path / "plan.toml", servable_options(runs, ["one"])
    path.write_text("[tasks.one\n")
    made = make_plan(path, options, table(), floor_task=0.97, floor_average=0.996, most_share=None)
    assert read_plan(path).tasks == made.tasks
    assert path.with_name("plan.toml.old").read_text() == "[tasks.one\n"
