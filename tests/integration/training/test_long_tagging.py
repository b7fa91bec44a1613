"""Rows of tagging that are longer than the longest text: trained in windows where the task reads windows."""

import random

import pytest

from onetrunk.tasks import Recipe, Task
from onetrunk.training import refit, train
from onetrunk.training.experiment import Experiment, ExperimentConfig
from tests.fixtures.tasks import FILLING, write_rows

LENGTH = 16


def song_rows(count, seed):
    """Rows of 20 to 40 words. The only span is among the last four, behind the 14 words that one text has room for."""
    generator = random.Random(seed)
    rows = []
    for _ in range(count):
        words = generator.choices(FILLING, k=generator.randint(20, 40))
        tags = ["O"] * len(words)
        place = len(words) - generator.randint(1, 4)
        words[place], tags[place] = "blue", "B-song"
        rows.append({"words": words, "tags": tags})
    return rows


@pytest.fixture
def song(tmp_path):
    for name, count, seed in (("train", 150, 1), ("dev", 40, 2)):
        write_rows(tmp_path / f"{name}.jsonl", song_rows(count, seed))
    recipe = Recipe(tap=1, layers=1, epochs=6, batch_size=16, learning_rate=1e-2, max_length=LENGTH)
    return Task(
        name="song", kind="tagging", labels=("song",), text_field="words", label_field="tags", train="train.jsonl",
        dev="dev.jsonl", folder=tmp_path, recipe=recipe, long_texts="windows",
        options={"output": "softmax"},
    )  # fmt: skip


@pytest.fixture
def places(tmp_path):
    return {"heads": tmp_path / "heads", "cache": tmp_path / "cache", "device": "cpu"}


def test_spans_behind_the_longest_text_are_learned_and_measured(song, tiny_trunk, places):
    result = train(song, tiny_trunk, trunk_dtype="fp32", **places)
    assert result.score > 0.5
    assert any(
        note.startswith("150 of 150 train texts are longer than 16 tokens, and read in") for note in result.notes
    )
    assert not any("were cut" in note for note in result.notes)
    experiment = Experiment(ExperimentConfig((song,), cache=places["cache"], device="cpu", max_length=16), tiny_trunk)
    dev = experiment.examples("song", "dev")
    # Every word is measured once, and whole.
    assert sum(len(words) for words in dev.targets) == sum(len(row["words"]) for row in song_rows(40, 2))
    assert sum(tag for words in dev.targets for _, _, tag in words) == 40
    again = refit(song, tiny_trunk, **places)
    assert again.spec.scores == result.spec.scores


def test_a_task_that_cuts_does_not_see_them_and_says_so(song, tiny_trunk, places):
    cut = song.model_copy(update={"long_texts": "cut"})
    result = train(cut, tiny_trunk, trunk_dtype="fp32", **places)
    assert result.score == 0
    assert "150 of 150 train texts were cut at 16 tokens" in result.notes
