"""A finished head teaches another one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from onetrunk.nn.bundle import Bundle, load_bundle
from onetrunk.nn.trunk import Trunk
from onetrunk.protocol.errors import UserError
from onetrunk.tasks import Recipe, Task
from onetrunk.tasks.kinds import get_kind
from onetrunk.training import train
from onetrunk.training.bundles import Lesson
from onetrunk.training.evaluation import raw_outputs
from onetrunk.training.experiment import Experiment
from onetrunk.training.head_teacher import HeadTeacher
from tests.fixtures.tasks import mood_rows, write_rows

NewExperiment = Callable[..., Experiment]


@pytest.fixture
def finished(mood: Task, tiny_trunk: Trunk, tmp_path: Path) -> Bundle:
    recipe = Recipe(tap=0, layers=3, epochs=4, learning_rate=3e-3, batch_size=16, max_length=32)
    result = train(mood, tiny_trunk, recipe=recipe, heads=tmp_path / "teachers", cache=tmp_path / "cache")
    return load_bundle(result.bundle, trunk=tiny_trunk)


def test_a_shorter_head_learns_what_a_finished_one_says(
    new_experiment: NewExperiment, finished: Bundle, mood: Task, tiny_trunk: Trunk, tmp_path: Path
) -> None:
    """From texts without labels alone: the task names no train data."""
    experiment = new_experiment(mood)
    teacher = HeadTeacher(finished, mood, tiny_trunk, experiment.compute, max_length=32, cache=experiment.config.cache)
    texts = experiment.examples("mood", "train").texts
    states = experiment.states("mood", "train", [0]).states[0]
    own = raw_outputs(finished.head(tiny_trunk), states)
    assert torch.equal(teacher.outputs(texts, experiment.compute), own)
    served = own / finished.spec.fitted.get("temperature", 1.0)
    assert np.allclose(teacher.raw(texts, mood), served.numpy(), atol=1e-6)

    bare = mood.model_copy(update={"train": "", "dev": 0.2})
    recipe = Recipe(tap=0, layers=2, epochs=10, learning_rate=3e-3, batch_size=16, max_length=32)
    result = train(
        bare, tiny_trunk, recipe=recipe, heads=tmp_path / "heads", cache=tmp_path / "cache", device="cpu",
        lesson=Lesson(teacher, texts),
    )  # fmt: skip
    assert result.score > 0.8, "it agrees with its teacher"
    card = (result.bundle / "README.md").read_text()
    assert "a head of 3 layers on tap 0" in card
    assert teacher.sha256[:12] in card


def test_a_teacher_reads_what_it_learned_from_and_says_what_it_serves(
    new_experiment: NewExperiment, finished: Bundle, mood: Task, tiny_trunk: Trunk
) -> None:
    """Whatever its student reads; and its probabilities are the calibrated ones."""
    experiment = new_experiment(mood)
    where = {"cache": experiment.config.cache}
    texts = experiment.examples("mood", "train").texts
    spec = finished.spec.model_copy(update={"fitted": {**finished.spec.fitted, "temperature": 1.7}})
    bundle = dataclasses.replace(finished, spec=spec)
    teachers = [
        HeadTeacher(one, mood, tiny_trunk, experiment.compute, max_length=length, **where)
        for one, length in ((finished, 32), (finished, 5), (bundle, 32))
    ]
    own, short, warm = (teacher.raw(texts, mood) for teacher in teachers)
    assert np.array_equal(own, short)
    fitted = finished.spec.fitted.get("temperature", 1.0)
    assert np.allclose(warm * 1.7, own * fitted, atol=1e-4)
    power = spec.model_copy(update={"fitted": {**spec.fitted, "entropy_power": 0.5}})
    follows = HeadTeacher(
        dataclasses.replace(finished, spec=power), mood, tiny_trunk, experiment.compute, max_length=32, **where
    )
    said = torch.from_numpy(follows.raw(texts, mood))
    outputs = follows.outputs(texts, experiment.compute)
    served = get_kind("classification").output.scores(outputs, power)
    torch.testing.assert_close(torch.softmax(said, dim=-1), served, atol=1e-6, rtol=1e-5)
    assert not np.allclose(said, warm, atol=1e-3)
    assert follows.identity != teachers[2].identity
    assert teachers[0].identity == teachers[1].identity != teachers[2].identity


def test_labels_that_hold_are_those_that_the_teacher_serves(
    new_experiment: NewExperiment, mood: Task, tiny_trunk: Trunk, tmp_path: Path
) -> None:
    """By its thresholds, not by one half."""
    rows = [{"sentence": row["sentence"], "label": [row["label"]]} for row in mood_rows(120, 7)]
    write_rows(tmp_path / "many.jsonl", rows)
    many = Task(
        name="many", kind="multilabel", labels=("bad", "good"), train="many.jsonl", dev="many.jsonl", folder=tmp_path
    )
    recipe = Recipe(tap=0, layers=2, epochs=2, learning_rate=3e-3, batch_size=16, max_length=32)
    result = train(many, tiny_trunk, recipe=recipe, heads=tmp_path / "teachers", cache=tmp_path / "cache")
    found = load_bundle(result.bundle, trunk=tiny_trunk)
    bundle = dataclasses.replace(found, spec=found.spec.model_copy(update={"fitted": {"thresholds": [0.9, 0.1]}}))
    experiment = new_experiment(many)
    teacher = HeadTeacher(bundle, many, tiny_trunk, experiment.compute, max_length=32, cache=experiment.config.cache)
    raw = teacher.raw(experiment.examples("many", "train").texts, many)
    states = experiment.states("many", "train", [0]).states[0]
    served = torch.sigmoid(raw_outputs(bundle.head(tiny_trunk), states)).numpy() >= [0.9, 0.1]
    assert np.array_equal(raw >= 0, served)
    assert served[:, 1].any()
    assert not served[:, 0].all()
    assert "thresholds" in teacher.facts


def test_options_that_change_no_output_are_no_other_answers(
    new_experiment: NewExperiment, finished: Bundle, mood: Task, tiny_trunk: Trunk
) -> None:
    weighted = mood.model_copy(update={"options": {"class_weights": "balanced"}})
    HeadTeacher(finished, weighted, tiny_trunk, new_experiment(mood).compute, max_length=32)


def test_a_head_of_other_answers_teaches_nothing(
    new_experiment: NewExperiment, finished: Bundle, mood: Task, likeness: Task, tiny_trunk: Trunk
) -> None:
    compute = new_experiment(mood).compute
    with pytest.raises(UserError, match="mood: trained for kind 'classification', but the task file says 'regression'"):
        HeadTeacher(finished, likeness, tiny_trunk, compute, max_length=32)
    swapped = mood.model_copy(update={"labels": mood.labels[::-1]})
    with pytest.raises(UserError, match="mood: trained for labels"):
        HeadTeacher(finished, swapped, tiny_trunk, compute, max_length=32)
