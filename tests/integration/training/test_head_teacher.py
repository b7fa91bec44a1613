"""A finished head teaches another one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from onetrunk.nn.bundle import Bundle, load_bundle
from onetrunk.nn.trunk import Trunk
from onetrunk.protocol.errors import UserError
from onetrunk.tasks import Recipe, Task
from onetrunk.training import train
from onetrunk.training.bundles import Lesson
from onetrunk.training.evaluation import raw_outputs
from onetrunk.training.experiment import Experiment
from onetrunk.training.head_teacher import HeadTeacher

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
    head = finished.head(tiny_trunk)
    assert isinstance(head, torch.nn.Module)
    assert torch.equal(torch.from_numpy(teacher.raw(texts, mood)), raw_outputs(head, states))

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


def test_a_head_of_other_answers_teaches_nothing(
    new_experiment: NewExperiment, finished: Bundle, mood: Task, likeness: Task, tiny_trunk: Trunk
) -> None:
    compute = new_experiment(mood).compute
    with pytest.raises(UserError, match="mood: trained for kind 'classification', but the task file says 'regression'"):
        HeadTeacher(finished, likeness, tiny_trunk, compute, max_length=32)
    swapped = mood.model_copy(update={"labels": mood.labels[::-1]})
    with pytest.raises(UserError, match="mood: trained for labels"):
        HeadTeacher(finished, swapped, tiny_trunk, compute, max_length=32)
