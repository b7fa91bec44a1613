"""Data that can be trained on, but about which a user should know something: a note says so."""

from types import SimpleNamespace

import pytest

from onetrunk.training import train
from onetrunk.training.bundles import _unfinished_note
from tests.fixtures.tasks import mood_rows, write_rows


@pytest.fixture
def notes(tiny_trunk, tmp_path):
    def call(task):
        places = {"heads": tmp_path / "heads", "cache": tmp_path / "cache", "device": "cpu", "trunk_dtype": "fp32"}
        return train(task, tiny_trunk, **places).notes

    return call


def test_label_that_never_occurs_in_train(mood, notes, tmp_path):
    write_rows(tmp_path / "train.jsonl", [row for row in mood_rows(80, 1) if row["label"] == "good"])
    assert notes(mood)[0] == "no row of the train data has the label 'bad'"


@pytest.mark.parametrize("metric", ["accuracy", "matthews"])
def test_dev_set_of_one_row(mood, notes, tmp_path, metric):
    write_rows(tmp_path / "dev.jsonl", [{"sentence": "who was it that turned the light off", "label": "good"}])
    expected = ["no row of the dev data has the label 'bad'"]
    if metric == "matthews":
        expected.append("matthews is undefined and counts as 0: a correlation needs two rows or more")
    assert list(notes(mood.model_copy(update={"metrics": (metric,)}))) == expected


@pytest.mark.parametrize(
    ("losses", "best", "said"),
    [
        ((0.9, 0.6, 0.45), 3, "the loss still fell by 25% in the last epoch, which was the best"),
        ((0.9, 0.6, 0.59), 3, None),
        ((0.9, 0.6, 0.45), 2, None),  # more epochs would go on from a worse place
        ((0.9,), 1, None),
        ((0.0, 0.0), 2, None),
    ],
)
def test_a_training_that_ended_too_early(losses, best, said):
    found = list(_unfinished_note(SimpleNamespace(losses=losses, best_epoch=best)))
    assert found == ([f"{said}: more epochs (--epochs) may be better"] if said else [])
