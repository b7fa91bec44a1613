"""A small task that a tiny random trunk can learn: is there more good or bad in a text?"""

import json
import random

import pytest

from builder.tasks import Recipe, Task

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


@pytest.fixture
def mood(tmp_path):
    """The task, with 200 train rows and 60 dev rows on disk."""
    for name, count, seed in (("train", 200, 1), ("dev", 60, 2)):
        lines = [json.dumps(row) + "\n" for row in mood_rows(count, seed)]
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    return Task(
        name="mood",
        labels=("bad", "good"),
        metrics=("accuracy", "f1"),
        train="train.jsonl",
        dev="dev.jsonl",
        folder=tmp_path,
        recipe=Recipe(tap=1, layers=1, epochs=3, batch_size=16, learning_rate=3e-3, max_length=32),
    )
