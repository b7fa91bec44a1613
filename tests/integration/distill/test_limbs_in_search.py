"""A search that also looks at limbs, a plan that takes one, and the head that is made of it."""

from __future__ import annotations

import pytest
import torch

from onetrunk.distill.pipeline import current_costs, make_plan, servable_options
from onetrunk.distill.plan_file import read_plan
from onetrunk.distill.planned_heads import make_head
from onetrunk.distill.settings import SearchSettings
from onetrunk.distill.task_search import run_baseline, save_baselines, search_task
from onetrunk.nn.bundle import load_bundle
from onetrunk.protocol.errors import UserError
from onetrunk.tasks import Recipe
from onetrunk.training.distillation import training_data
from onetrunk.training.evaluation import teacher_outputs
from onetrunk.training.models import new_model, trained_head
from onetrunk.training.runs import Distillation, RunSpec
from onetrunk.training.trainer import execute
from tests.fixtures.limbs import random_limb

SMALL = {"epochs": 1, "probe_epochs": 1, "fork_epochs": 2, "folded_epochs": 1.0, "depths": 1, "batch_size": 16}


@pytest.fixture
def limb(tiny_trunk, tmp_path, monkeypatch):
    """The identity of a limb on tap 1."""
    monkeypatch.setattr(tiny_trunk, "limbs", (tmp_path / "limbs",))
    return str(random_limb(tiny_trunk, tmp_path / "limbs" / "pairs", tap=1).identity)


@pytest.fixture
def searched(new_experiment, mood, limb):
    experiment = new_experiment(mood)
    settings = SearchSettings(**SMALL, limbs=(limb,))
    run_baseline("mood", experiment, settings)
    trials = search_task("mood", experiment, settings)
    save_baselines("mood", experiment, settings)
    return experiment, trials, settings


def test_each_limb_gets_a_head_which_is_found_again(searched, limb, new_experiment, mood):
    _, trials, settings = searched
    [on_limb] = [trial for trial in trials.trials if trial.spec.limb]
    assert (on_limb.stage, on_limb.what) == ("student", "limb pairs, layers 1")
    assert on_limb.spec.distillation.start == "trunk"
    teacher = max((trial for trial in trials.trials if trial.stage == "teacher"), key=lambda trial: trial.score)
    assert on_limb.spec.distillation.teacher == teacher.key
    assert (on_limb.spec.limb, on_limb.spec.recipe.tap, on_limb.spec.recipe.layers) == (limb, 2, 1)
    # The same head on the trunk is another run.
    assert len({trial.key for trial in trials.trials}) == len(trials.trials)
    again = search_task("mood", new_experiment(mood), settings)
    assert again == trials


def test_a_search_without_limbs_has_the_keys_that_it_always_had(searched, new_experiment, mood):
    _, trials, settings = searched
    plain = search_task("mood", new_experiment(mood), settings.model_copy(update={"limbs": ()}))
    assert [trial.key for trial in plain.trials] == [trial.key for trial in trials.trials if not trial.spec.limb]


def test_the_plan_names_the_limb_and_its_head_is_made_on_it(searched, limb, tmp_path, tiny_trunk):
    experiment, _, _ = searched
    options = servable_options(experiment.config.runs, ["mood"])
    [chosen] = [option for option in options if option.limb]
    assert chosen.where == "limb pairs"
    costs = current_costs(tmp_path / "costs.json", experiment)
    plan = make_plan(tmp_path / "plan.toml", [chosen], costs, floor_task=0.1, floor_average=0.1, most_share=None)
    assert plan.tasks["mood"].limb == limb
    assert plan.cost.limbs_ms > 0
    assert read_plan(tmp_path / "plan.toml") == plan
    plan.check_trunk(tiny_trunk)
    result = make_head("mood", plan, experiment, heads=tmp_path / "heads")
    spec = load_bundle(tmp_path / "heads" / "mood", trunk=tiny_trunk).spec
    assert (spec.limb, spec.tap, spec.layers, spec.trunk) == (limb, 2, 1, tiny_trunk.identity)
    assert result.score == pytest.approx(chosen.score, abs=0.02)


def test_a_plan_whose_limb_is_gone_says_so(searched, tmp_path, tiny_trunk, monkeypatch):
    experiment, _, _ = searched
    [chosen] = [option for option in servable_options(experiment.config.runs, ["mood"]) if option.limb]
    costs = current_costs(tmp_path / "costs.json", experiment)
    plan = make_plan(tmp_path / "plan.toml", [chosen], costs, floor_task=0.1, floor_average=0.1, most_share=None)
    monkeypatch.setattr(tiny_trunk, "limbs", (tmp_path / "elsewhere",))
    monkeypatch.setattr(tiny_trunk, "_branches", {})
    with pytest.raises(UserError, match="elsewhere has no folder pairs: give --limbs FOLDER"):
        make_head("mood", plan, experiment, heads=tmp_path / "heads")


def test_a_student_on_a_limb_learns_what_its_teacher_says_of_the_same_texts(
    searched, limb, new_experiment, mood, second, tiny_trunk
):
    """The teacher reads them on its own tap, the texts of other tasks too."""
    experiment = new_experiment(mood, second)
    teacher = execute(
        RunSpec(task="mood", role="teacher", recipe=Recipe(tap=0, layers=4, epochs=1, max_length=32)), experiment
    )
    spec = RunSpec(
        task="mood",
        role="student",
        recipe=Recipe(tap=2, layers=1, epochs=1, max_length=32),
        distillation=Distillation(teacher=teacher.key, start="trunk", other_texts=0.2),
        limb=limb,
    )
    on_limb = experiment.branch(limb)
    data, objective = training_data(spec, on_limb, new_model(spec, on_limb))
    assert len(data.states.lengths) == 240, "a fifth of 200 are those of the other task"
    own = teacher_outputs(trained_head(teacher, experiment), experiment.states("mood", "train", [0]).states[0])
    assert torch.allclose(objective._teacher[:200], own.raw, atol=1e-5)
    assert not torch.isnan(objective._teacher).any()
    record = execute(spec, experiment)
    assert record.spec.limb == limb
