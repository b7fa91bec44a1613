"""A limb is trained on several tasks together, goes on where it was killed, and heads are trained on it alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from onetrunk.nn.bundle import Bundle, load_bundle
from onetrunk.nn.limb import STARTS, load_limb, new_layers
from onetrunk.nn.trunk import Trunk
from onetrunk.progress import silent
from onetrunk.protocol.errors import UserError
from onetrunk.tasks import Recipe, Task
from onetrunk.training import limb as module
from onetrunk.training import train
from onetrunk.training.evaluation import evaluate, raw_outputs
from onetrunk.training.experiment import Experiment
from onetrunk.training.head_teacher import HeadTeacher
from onetrunk.training.limb import LimbRecipe, TrainedLimb, train_limb
from onetrunk.training.loop import DivergedError
from onetrunk.training.models import new_model
from onetrunk.training.runs import RunSpec
from onetrunk.training.trainer import run_key
from tests.fixtures.tasks import mood_rows, write_rows

RECIPE = LimbRecipe(tap=1, layers=1, epochs=2, learning_rate=3e-3, batch_size=16, max_length=32)

NewExperiment = Callable[..., Experiment]


def trained(new_experiment: NewExperiment, folder: Path, *tasks: Task, **options: Any) -> TrainedLimb:
    names = [task.name for task in tasks]
    return train_limb("family", names, options.pop("recipe", RECIPE), new_experiment(*tasks), limbs=folder, **options)


def test_a_limb_learns_its_family_and_a_head_stands_on_it(
    new_experiment: NewExperiment, mood: Task, likeness: Task, tiny_trunk: Trunk, tmp_path: Path
) -> None:
    limbs = tmp_path / "limbs"
    found = trained(new_experiment, limbs, mood, likeness)
    assert set(found.spec.tasks) == {"mood", "likeness"}
    assert found.spec.tasks["mood"].train_rows == 200
    assert found.spec.tasks["mood"].score == max(found.epochs, key=lambda one: sum(one.values()))["mood"]
    limb = load_limb(found.folder)
    assert limb.identity == found.identity
    own = tiny_trunk.layers[1].state_dict()
    assert any(not torch.allclose(limb.weights[f"0.{name}"], tensor, atol=1e-3) for name, tensor in own.items())

    branch = limb.branch(tiny_trunk)
    recipe = Recipe(tap=2, layers=1, epochs=2, learning_rate=3e-3, batch_size=16, max_length=32)
    result = train(mood, branch, recipe=recipe, heads=tmp_path / "heads", cache=tmp_path / "cache")
    assert (result.spec.trunk, result.spec.limb) == (tiny_trunk.identity, str(limb.identity))
    assert f"limb `{limb.identity}`" in (result.bundle / "README.md").read_text()
    tiny = load_bundle(result.bundle, trunk=branch)
    assert tiny.spec == result.spec
    again = train(mood, branch, recipe=recipe, heads=tmp_path / "heads", cache=tmp_path / "cache")
    assert again.already_there


def test_a_head_of_the_family_starts_where_the_joint_training_left_it(
    new_experiment: NewExperiment, mood: Task, second: Task, tiny_trunk: Trunk, tmp_path: Path
) -> None:
    """So it answers as it did there before its first step; a head of another form starts from the trunk."""
    found = trained(new_experiment, tmp_path / "limbs", mood)
    limb = load_limb(found.folder)
    experiment = new_experiment(mood, second)
    on_limb = Experiment(experiment.config, limb.branch(tiny_trunk))

    def fresh(task: str, **changes: Any) -> Any:
        recipe = Recipe(tap=2, layers=1, epochs=1, max_length=32, **changes)
        return new_model(RunSpec(task=task, role="fork", recipe=recipe), on_limb)

    head = fresh("mood")
    for split in ("train", "dev"):
        on_limb.states("mood", split, [2])
    score = evaluate(head.eval(), on_limb.labelled_states("mood", "dev", 2), mood).scores[mood.metric]
    assert score == pytest.approx(found.spec.tasks["mood"].score, abs=0.02)
    trunks = tiny_trunk.layers[2].state_dict()
    part = RunSpec(task="mood", role="fork", recipe=Recipe(tap=2, layers=1, epochs=1, max_length=32), share=0.5)
    swapped = Experiment(new_experiment(mood.model_copy(update={"labels": mood.labels[::-1]})).config, on_limb.trunk)
    others = (fresh("second"), fresh("mood", query="learned"), new_model(part, on_limb))
    for other in (*others, new_model(part.model_copy(update={"share": 1.0}), swapped)):
        assert all(torch.equal(tensor, trunks[name]) for name, tensor in other.layers[0].state_dict().items())
    assert not all(torch.equal(tensor, trunks[name]) for name, tensor in head.layers[0].state_dict().items())


def test_a_limb_is_the_same_without_the_heads_of_its_training(
    new_experiment: NewExperiment, mood: Task, second: Task, tiny_trunk: Trunk, tmp_path: Path
) -> None:
    """So it can be handed on without them; but a run that starts from them is another than one that does not."""
    found = trained(new_experiment, tmp_path / "limbs", mood)
    config = new_experiment(mood, second).config

    def keys() -> dict[str, str]:
        on_limb = Experiment(config, load_limb(found.folder).branch(tiny_trunk))
        recipes = {"head": Recipe(tap=2, epochs=1, max_length=32), "mean": Recipe(tap=2, epochs=1, query="mean")}
        specs = {(task, name): recipes[name] for task in ("mood", "second") for name in recipes}
        return {
            f"{task} {name}": run_key(RunSpec(task=task, role="fork", recipe=recipe), on_limb)
            for (task, name), recipe in specs.items()
        }

    whole = keys()
    recipe = Recipe(tap=2, layers=1, epochs=1, batch_size=16, max_length=32)
    heads = {"recipe": recipe, "heads": tmp_path / "heads", "cache": tmp_path / "cache"}
    started = train(mood, load_limb(found.folder).branch(tiny_trunk), **heads).spec
    (found.folder / STARTS).unlink()
    alone = load_limb(found.folder)
    assert dict(alone.starts) == {}
    assert alone.identity == found.identity
    assert trained(new_experiment, tmp_path / "limbs", mood).epochs == ()
    assert {name for name, key in keys().items() if key != whole[name]} == {"mood head"}, "no other had a start"
    again = train(mood, alone.branch(tiny_trunk), **heads)
    assert not again.already_there, "a head from another start is another head"
    assert set(started.data) - set(again.spec.data) == {"limb_start_sha256"}

    anew = trained(new_experiment, tmp_path / "limbs", mood, force=True)
    assert anew.identity == found.identity
    assert set(load_limb(anew.folder).starts) == {("mood", anew.spec.tasks["mood"].sha256)}
    assert not list((tmp_path / "limbs").glob("family@*")), "the same limb is not kept beside itself"


@pytest.fixture
def tagged(tmp_path: Path) -> Task:
    rows = [{"words": ["the", "red", "film"], "tags": ["O", "B-song", "I-song"]}, {"words": ["who"], "tags": ["O"]}]
    (tmp_path / "tagged.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in 20 * rows))
    return Task(
        name="tagged", kind="tagging", labels=("song",), text_field="words", label_field="tags", train="tagged.jsonl",
        dev="tagged.jsonl", folder=tmp_path,
    )  # fmt: skip


@pytest.fixture
def teacher(mood: Task, tiny_trunk: Trunk, tmp_path: Path) -> Bundle:
    """A head that says of most texts the opposite of their labels, so that what is learned from it can be told."""
    rows = [{**row, "label": {"bad": "good", "good": "bad"}[row["label"]]} for row in mood_rows(200, 5)]
    write_rows(tmp_path / "opposite.jsonl", rows)
    recipe = Recipe(tap=0, layers=2, epochs=6, learning_rate=3e-3, batch_size=16, max_length=32)
    opposite = mood.model_copy(update={"train": "opposite.jsonl", "dev": "opposite.jsonl"})
    result = train(opposite, tiny_trunk, recipe=recipe, heads=tmp_path / "teachers", cache=tmp_path / "cache")
    return load_bundle(result.bundle, trunk=tiny_trunk)


def test_a_teacher_is_asked_about_the_texts_of_all_tasks_of_its_form(
    new_experiment: NewExperiment,
    mood: Task,
    second: Task,
    likeness: Task,
    teacher: Bundle,
    tiny_trunk: Trunk,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What it says is what its head answers; pairs are none of its texts. It is asked once, also if it is killed."""
    experiment = new_experiment(mood, second, likeness)
    head = HeadTeacher(teacher, mood, tiny_trunk, experiment.compute, max_length=32, cache=experiment.config.cache)
    asked = ({"mood": head}, ["mood", "second", "likeness"], experiment, tmp_path / "said")
    said = module._ask_teachers(*asked, silent)
    assert {task: set(found) for task, found in said.items()} == {
        "mood": {"mood"},
        "second": {"mood"},
        "likeness": set(),
    }
    for task in ("mood", "second"):
        states = experiment.states(task, "train", [0]).states[0]
        assert torch.equal(said[task]["mood"], raw_outputs(teacher.head(tiny_trunk), states))
    kept = tmp_path / "said" / "mood of second.safetensors"
    kept.write_bytes(kept.read_bytes()[:100])
    texts: list[int] = []
    outputs = HeadTeacher.outputs
    monkeypatch.setattr(HeadTeacher, "outputs", lambda *a: (texts.append(len(a[1])), outputs(*a))[1])
    again = module._ask_teachers(*asked, silent)
    assert texts == [90], "only what was not kept whole"
    assert all(torch.equal(again[task]["mood"], said[task]["mood"]) for task in ("mood", "second"))


def test_a_limb_learns_what_a_teacher_says_of_texts_that_have_no_label_of_its_task(
    new_experiment: NewExperiment, mood: Task, second: Task, teacher: Bundle, tiny_trunk: Trunk, tmp_path: Path
) -> None:
    def distance(limb: TrainedLimb) -> float:
        experiment = new_experiment(mood, second)
        on_limb = Experiment(experiment.config, load_limb(limb.folder).branch(tiny_trunk))
        recipe = Recipe(tap=2, layers=1, epochs=1, max_length=32)
        head = new_model(RunSpec(task="mood", role="fork", recipe=recipe), on_limb)
        answers = raw_outputs(head, on_limb.states("second", "train", [2]).states[2]).softmax(dim=-1)
        theirs = raw_outputs(teacher.head(tiny_trunk), experiment.states("second", "train", [0]).states[0])
        return float((answers - theirs.softmax(dim=-1)).abs().mean())

    longer = RECIPE.model_copy(update={"epochs": 8})
    alone = trained(new_experiment, tmp_path / "alone", mood, second, recipe=longer)
    taught = trained(new_experiment, tmp_path / "taught", mood, second, recipe=longer, teachers={"mood": teacher})
    assert distance(taught) < 0.7 * distance(alone)
    digest = hashlib.sha256((teacher.folder / "head.safetensors").read_bytes()).hexdigest()
    assert {name: one.teacher_sha256 for name, one in taught.spec.tasks.items()} == {"mood": digest, "second": None}
    assert "Finished heads taught mood, beside the labels." in (taught.folder / "README.md").read_text()
    assert "taught" not in (alone.folder / "README.md").read_text()
    again = trained(new_experiment, tmp_path / "taught", mood, second, recipe=longer, teachers={"mood": teacher})
    assert (again.identity, again.epochs) == (taught.identity, ())
    without = trained(new_experiment, tmp_path / "taught", mood, second, recipe=longer)
    assert without.identity == alone.identity, "other teachers are another training"


def test_a_teacher_of_words_teaches_those_of_its_own_texts(
    new_experiment: NewExperiment, mood: Task, tagged: Task, tiny_trunk: Trunk, tmp_path: Path
) -> None:
    recipe = Recipe(tap=1, layers=1, epochs=1, batch_size=16, max_length=32)
    result = train(tagged, tiny_trunk, recipe=recipe, heads=tmp_path / "teachers", cache=tmp_path / "cache")
    teachers = {tagged.name: load_bundle(result.bundle, trunk=tiny_trunk)}
    experiment = new_experiment(mood, tagged)
    head = HeadTeacher(
        teachers[tagged.name], tagged, tiny_trunk, experiment.compute, max_length=32, cache=experiment.config.cache
    )
    said = module._ask_teachers({tagged.name: head}, ["mood", tagged.name], experiment, tmp_path / "said", silent)
    assert {task: set(found) for task, found in said.items()} == {"mood": set(), tagged.name: {tagged.name}}
    found = trained(new_experiment, tmp_path / "limbs", mood, tagged, teachers=teachers)
    assert found.spec.tasks[tagged.name].teacher_sha256 is not None


def test_a_teacher_of_another_task_is_refused(
    new_experiment: NewExperiment, mood: Task, teacher: Bundle, tmp_path: Path
) -> None:
    turned = mood.model_copy(update={"labels": mood.labels[::-1]})
    with pytest.raises(UserError, match=r"mood: trained for labels .* but the task file says"):
        trained(new_experiment, tmp_path / "limbs", turned, teachers={"mood": teacher})


def test_what_is_finished_is_not_repeated(
    new_experiment: NewExperiment, second: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = trained(new_experiment, tmp_path / "limbs", second)
    monkeypatch.setattr(module._Training, "run", lambda *arguments: pytest.fail("trained again"))
    again = trained(new_experiment, tmp_path / "limbs", second)
    assert (again.identity, again.epochs) == (first.identity, ())
    other = RECIPE.model_copy(update={"learning_rate": 1e-3})
    with pytest.raises(pytest.fail.Exception, match="trained again"):
        trained(new_experiment, tmp_path / "limbs", second, recipe=other)


def test_a_killed_training_goes_on_to_the_same_weights(
    new_experiment: NewExperiment, mood: Task, second: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = trained(new_experiment, tmp_path / "whole", mood, second)
    real, steps = module._Training._step, []

    def step(self: Any, *arguments: Any) -> None:
        steps.append(arguments[2])
        if len(steps) == 30:
            raise KeyboardInterrupt
        real(self, *arguments)

    monkeypatch.setattr(module._Training, "_step", step)
    monkeypatch.setattr(module, "_CHECKPOINT_SECONDS", 0.0)  # after each step
    with pytest.raises(KeyboardInterrupt):
        trained(new_experiment, tmp_path / "killed", mood, second)
    resumed = trained(new_experiment, tmp_path / "killed", mood, second)
    assert steps[30] == steps[29], "nothing that was done is done again"
    assert resumed.identity == whole.identity
    assert resumed.epochs == whole.epochs
    assert not list((tmp_path / "cache" / "runs").glob("limb-*")), "the checkpoint is gone"


@pytest.mark.parametrize("broken", ["optimizer", "weights", "all"])
def test_a_broken_checkpoint_is_as_none(
    new_experiment: NewExperiment, second: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    """What could be loaded of it is not where the training starts."""
    whole = trained(new_experiment, tmp_path / "whole", second)
    monkeypatch.setattr(module, "save_limb", lambda *arguments: pytest.fail("killed"))
    with pytest.raises(pytest.fail.Exception, match="killed"):
        trained(new_experiment, tmp_path / "broken", second)
    monkeypatch.undo()
    (checkpoint,) = (tmp_path / "cache" / "runs").glob("limb-*")
    if broken == "all":
        checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    else:
        fields = torch.load(checkpoint, weights_only=True)
        fields[broken].popitem()
        torch.save(fields, checkpoint)
    assert trained(new_experiment, tmp_path / "broken", second).identity == whole.identity


def test_a_weight_that_is_no_number_after_the_last_step_is_found(
    new_experiment: NewExperiment, second: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No loss shows it any more, and an accuracy is a number for any answers."""
    real = module._Training._step

    def step(self: Any, task: str, rows: Any, number: int, steps: int) -> None:
        real(self, task, rows, number, steps)
        if number == steps - 1:
            next(self.model.limb.parameters()).data[0] = torch.nan

    monkeypatch.setattr(module._Training, "_step", step)
    with pytest.raises(DivergedError, match="limb: a weight does not fit fp16 after epoch 2: train with a lower --lr"):
        trained(new_experiment, tmp_path / "limbs", second)
    assert not (tmp_path / "limbs" / "family").exists()


@pytest.mark.parametrize("family", ["mpnet", "modernbert", "albert"])
def test_a_limb_of_another_family_is_trained_and_read_back(
    new_experiment: NewExperiment, second: Task, family: str, family_trunk: Callable[[str], Trunk], tmp_path: Path
) -> None:
    """Layers share a bias, differ in form, or have one set of weights. The trunk stays as it is."""
    experiment = new_experiment(second)
    trunk = experiment.trunk = family_trunk(family)
    before = {name: tensor.clone() for name, tensor in trunk.state_dict().items()}
    recipe = RECIPE.model_copy(update={"tap": 0, "layers": 2, "epochs": 1})
    found = train_limb("family", ["second"], recipe, experiment, limbs=tmp_path / "limbs")
    branch = load_limb(found.folder).branch(trunk)
    assert all(torch.equal(tensor, before[name]) for name, tensor in trunk.state_dict().items())
    assert not any(parameter.requires_grad for parameter in trunk.parameters())
    moved = [
        not torch.equal(one, other)
        for one, other in zip(branch.layers[:2].parameters(), trunk.layers[:2].parameters(), strict=True)
    ]
    assert sum(moved) > len(moved) / 2


def test_what_is_no_limb_is_not_replaced(new_experiment: NewExperiment, second: Task, tmp_path: Path) -> None:
    (tmp_path / "family").mkdir()
    (tmp_path / "family" / "mine.txt").write_text("mine")
    missing = second.model_copy(update={"train": "nothing.jsonl"})
    with pytest.raises(UserError, match=r"family is in the way: it has no limb.json, and what is in it would be lost"):
        trained(new_experiment, tmp_path, missing)
    assert (tmp_path / "family" / "mine.txt").read_text() == "mine"


def test_texts_by_which_another_task_is_judged_are_left_out(
    new_experiment: NewExperiment, mood: Task, second: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever the blanks are. Which these are belongs to what the limb was trained from: test texts may change."""
    dev = [json.loads(line) for line in (tmp_path / "dev.jsonl").read_text().splitlines()]
    mine = [
        {"sentence": f"{row['sentence']} {number}", "label": row["label"]}
        for number, row in enumerate(mood_rows(90, 3))
    ]
    shared = [{**row, "sentence": row["sentence"] + " ."} for row in dev if row["sentence"].count(" ") > 5][:7]
    write_rows(tmp_path / "second-train.jsonl", [*mine[:40], *shared, *mine[40:]])
    seen: set[int] = set()
    step = module._Training._step

    def watched(self: Any, task: str, rows: Any, *rest: Any) -> None:
        seen.update(rows if task == "second" else ())
        step(self, task, rows, *rest)

    monkeypatch.setattr(module._Training, "_step", watched)
    found = trained(new_experiment, tmp_path / "limbs", mood, second)
    one = found.spec.tasks["second"]
    assert (one.train_rows, one.train_rows_left_out) == (90, 7)
    assert found.spec.tasks["mood"].train_rows_left_out == 0
    assert seen == {*range(40), *range(47, 97)}
    assert "second: left out as dev or test texts of another task: 7 of the train texts" in found.notes
    assert (
        "as dev or test texts of another task of the family: train rows 7 of second."
        in (found.folder / "README.md").read_text()
    )

    moved = [{**row, "sentence": mine[0]["sentence"]} for row in dev[:1]]
    write_rows(tmp_path / "held-out.jsonl", moved)
    with_test = mood.model_copy(update={"test": "held-out.jsonl"})
    more = trained(new_experiment, tmp_path / "limbs", with_test, second)
    assert more.spec.tasks["second"].train_rows_left_out == 8, "of the test data, too"
    write_rows(tmp_path / "held-out.jsonl", [{**moved[0], "sentence": mine[1]["sentence"]}])
    other = trained(new_experiment, tmp_path / "limbs", with_test, second)
    assert other.epochs, "as many texts are left out, and others"
    write_rows(tmp_path / "second-train.jsonl", shared)
    with pytest.raises(UserError, match=r"task second: all of its train texts are dev or test texts .* \(mood\)"):
        trained(new_experiment, tmp_path / "limbs", mood, second)


@pytest.mark.parametrize(("sampling", "batches"), [(1.0, {"mood": 13, "second": 6}), (0.0, {"mood": 13, "second": 13})])
def test_small_tasks_are_passed_as_often_as_asked(
    new_experiment: NewExperiment, mood: Task, second: Task, tmp_path: Path, sampling: float, batches: dict[str, int]
) -> None:
    experiment = new_experiment(mood, second)
    recipe = RECIPE.model_copy(update={"sampling": sampling})
    layers = new_layers(experiment.trunk, 1, 1)
    learned = {"mood": np.arange(5, 200), "second": np.arange(90)}
    training = module._Training(learned, recipe, experiment, layers, tmp_path / "checkpoint.pt", {})
    found = training.batches(0)
    assert {name: sum(task == name for task, _ in found) for name in batches} == batches
    seen = [row for task, rows in found if task == "mood" for row in rows]
    assert sorted(seen) == list(range(5, 200)), "each row of the largest once that is learned from"


def test_a_training_that_diverges_says_so_and_leaves_nothing(
    new_experiment: NewExperiment, second: Task, tmp_path: Path
) -> None:
    recipe = RECIPE.model_copy(update={"learning_rate": 1e30})
    with pytest.raises(DivergedError, match="train with a lower --lr"):
        trained(new_experiment, tmp_path / "limbs", second, recipe=recipe)
    assert not (tmp_path / "limbs" / "family").exists()
    assert not list((tmp_path / "cache" / "runs").glob("limb-*"))


def test_a_tap_without_room_is_told_before_data_are_read(
    new_experiment: NewExperiment, second: Task, tmp_path: Path
) -> None:
    missing = second.model_copy(update={"train": "nothing.jsonl"})
    recipe = RECIPE.model_copy(update={"tap": 3})
    with pytest.raises(UserError, match="has fewer than 2 layers above it on this trunk: give 0 to 2"):
        trained(new_experiment, tmp_path / "limbs", missing, recipe=recipe)


def test_a_head_on_a_limb_that_has_learned_from_other_data_of_its_task_says_so(
    new_experiment: NewExperiment, mood: Task, tiny_trunk: Trunk, tmp_path: Path
) -> None:
    found = trained(new_experiment, tmp_path / "limbs", mood)
    write_rows(tmp_path / "other.jsonl", mood_rows(60, 9))
    recipe = Recipe(tap=2, layers=1, epochs=1, max_length=32)
    places = {"heads": tmp_path / "heads", "cache": tmp_path / "cache"}
    said = "was trained on other data of mood"
    branch = load_limb(found.folder).branch(tiny_trunk)
    assert said not in " ".join(train(mood, branch, recipe=recipe, **places).notes)
    other = mood.model_copy(update={"dev": str(tmp_path / "other.jsonl")})
    result = train(other, branch, recipe=recipe, **places)
    assert said in " ".join(result.notes)
    assert said in result.spec.data["overlap"]
    assert said in (result.bundle / "README.md").read_text()
    assert train(other, branch, recipe=recipe, **places).already_there
