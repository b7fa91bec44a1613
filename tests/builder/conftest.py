"""Small tasks that a tiny random trunk can learn, and an experiment for them."""

import json
import random
from types import SimpleNamespace

import pytest

from onetrunk.tasks import Recipe, Task
from onetrunk.training.compute import ComputeConfig
from onetrunk.training.experiment import Experiment, ExperimentConfig

FILLING = ["the", "a", "film", "music", "was", "very", "scene", "and", "plot", "who", "it"]


def mood_rows(count, seed):
    """Texts of many lengths with the label ``good`` or ``bad``, decided by one word."""
    generator = random.Random(seed)
    rows = []
    for _ in range(count):
        label = generator.choice(["bad", "good"])
        words = [*generator.choices(FILLING, k=generator.randint(1, 20)), label]
        generator.shuffle(words)
        rows.append({"sentence": " ".join(words), "label": label})
    return rows


def write_rows(path, rows):
    """Rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def mood(tmp_path):
    """The task, is there good or bad in a text, with 200 train rows and 60 dev rows on disk."""
    for name, count, seed in (("train", 200, 1), ("dev", 60, 2)):
        write_rows(tmp_path / f"{name}.jsonl", mood_rows(count, seed))
    return Task(
        name="mood",
        labels=("bad", "good"),
        metrics=("accuracy", "f1"),
        train="train.jsonl",
        dev="dev.jsonl",
        folder=tmp_path,
        recipe=Recipe(tap=1, layers=1, epochs=3, batch_size=16, learning_rate=3e-3, max_length=32),
    )


@pytest.fixture
def second(tmp_path):
    """Another task on single texts, of other rows than ``mood``."""
    for name, count, seed in (("train", 90, 3), ("dev", 20, 4)):
        write_rows(tmp_path / f"second-{name}.jsonl", mood_rows(count, seed))
    return Task(
        name="second", labels=("bad", "good"), train="second-train.jsonl", dev="second-dev.jsonl", folder=tmp_path
    )


@pytest.fixture
def likeness(tmp_path):
    """A task on pairs of texts that is answered with a number."""
    words = ["film", "music", "red", "light", "scene"]
    rows = [
        {"sentence": f"the {first} and {other}", "sentence2": judgement, "label": number}
        for first in words
        for other in words
        for judgement, number in (("bad", 0), ("not good", 1.5), ("very good", 4))
    ]
    write_rows(tmp_path / "likeness.jsonl", rows)
    return Task(
        name="likeness",
        kind="regression",
        form="pair",
        range=(0, 4),
        train="likeness.jsonl",
        dev="likeness.jsonl",
        folder=tmp_path,
    )


@pytest.fixture
def new_experiment(tiny_trunk, tmp_path):
    """Makes an experiment of some tasks. It has read nothing yet, as in a process that has just started."""

    def make(*tasks):
        config = ExperimentConfig(tasks=tasks, cache=tmp_path / "cache", runs=tmp_path / "runs", max_length=32)
        return Experiment(config, tiny_trunk, ComputeConfig("cpu", "fp32"))

    return make


@pytest.fixture
def fits(monkeypatch):
    """The trainings that recorded runs have begun.

    Each has ``start``, the epochs that were done before, and ``state`` at its end, None where it did not come so far.
    """
    import onetrunk.training.trainer as module

    real, begun = module.fit, []

    def fit(model, *args, resume, **kwargs):
        begun.append(SimpleNamespace(start=len(resume.losses) if resume else 0, state=None))
        begun[-1].state = real(model, *args, resume=resume, **kwargs)
        return begun[-1].state

    monkeypatch.setattr(module, "fit", fit)
    return begun
