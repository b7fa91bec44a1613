"""Data that can be trained on, but about which a user should know something: a note says so."""

from types import SimpleNamespace

import pytest
import torch

from onetrunk.tasks import Task
from onetrunk.training import train
from onetrunk.training.bundles import _unfinished_note
from onetrunk.training.evaluation import commonest_score
from tests.fixtures.tasks import mood_rows, write_rows


@pytest.fixture
def notes(tiny_trunk, tmp_path):
    def call(task):
        places = {"heads": tmp_path / "heads", "cache": tmp_path / "cache", "device": "cpu", "trunk_dtype": "fp32"}
        return train(task, tiny_trunk, **places).notes

    return call


def test_label_that_never_occurs_in_train(mood, notes, tmp_path):
    write_rows(tmp_path / "train.jsonl", [row for row in mood_rows(80, 1) if row["label"] == "good"])
    found = notes(mood)
    assert found[0] == "no row of the train data has the label 'bad'"
    assert "--epochs" not in "".join(found)


@pytest.mark.parametrize("metric", ["accuracy", "matthews"])
def test_dev_set_of_one_row(mood, notes, tmp_path, metric):
    write_rows(tmp_path / "dev.jsonl", [{"sentence": "who was it that turned the light off", "label": "good"}])
    expected = ["no row of the dev data has the label 'bad'"]
    if metric == "matthews":
        expected.append("matthews is undefined and counts as 0: a correlation needs two rows or more")
    assert list(notes(mood.model_copy(update={"metrics": (metric,)}))) == expected


def curve(losses, scores, dev_rows=100):
    """The record of a training whose scores after each epoch are in points."""
    scores = [{"accuracy": one / 100} for one in scores]
    best = max(range(len(scores)), key=lambda epoch: scores[epoch]["accuracy"]) + 1
    data = {"dev_rows": dev_rows}
    return SimpleNamespace(metric="accuracy", losses=losses, epoch_scores=scores, best_epoch=best, data=data)


# Those of one-layer heads on tap 4 of the default trunk, on 500 rows of SST-2 with 56 of 100 dev rows of one label.
SST2 = {
    "1 epoch": ((0.686,), (56,), "commonest"),
    "2 epochs": ((0.69, 0.659), (56, 56), "commonest"),
    "3 epochs": ((0.69, 0.643, 0.563), (56, 57, 68), "12%"),
    "3 epochs, --lr 1e-5": ((0.711, 0.7, 0.703), (44, 44, 44), "commonest"),
    "4 epochs": ((0.688, 0.635, 0.464, 0.35), (56, 66, 80, 79), "25%"),
    "6 epochs": ((0.685, 0.63, 0.414, 0.286, 0.236, 0.207), (56, 70, 80, 81, 82, 83), "12%"),
    "10 epochs": (
        (0.684, 0.652, 0.435, 0.28, 0.21, 0.162, 0.097, 0.087, 0.066, 0.055),
        (56, 69, 80, 83, 87, 85, 79, 85, 82, 84),
        None,
    ),
}


@pytest.mark.parametrize(("losses", "scores", "said"), SST2.values(), ids=SST2)
def test_a_training_that_ended_too_early(losses, scores, said):
    found = list(_unfinished_note(curve(losses, scores), 0.56))
    best = curve(losses, scores).best_epoch
    expected = {
        None: [],
        "commonest": [f"accuracy {max(scores)}.0 is no better than the commonest answer alone, 56.0"],
    }.get(
        said,
        [f"still fell by {said} in the last epoch, and the dev score was best after epoch {best} of {len(losses)}"],
    )
    assert len(found) == len(expected)
    assert all(part in note and "more epochs (--epochs)" in note for part, note in zip(expected, found, strict=True))


def test_where_labels_are_missing_no_other_training_is_advised():
    (note,) = _unfinished_note(curve((0.686,), (56,)), 0.56, few_labels=True)
    assert note == "accuracy 56.0 is no better than the commonest answer alone, 56.0"


@pytest.mark.parametrize(
    ("losses", "scores"),
    [
        ((0.9, 0.6, 0.59), (60, 70, 80)),  # the loss hardly falls
        ((0.9, 0.6, 0.45, 0.3), (60, 70, 90, 70)),  # it got worse
        ((0.0, 0.0), (60, 100)),
        (
            (0.693, 0.665, 0.597, 0.501, 0.396, 0.318, 0.224, 0.169, 0.133, 0.105),
            (58, 59, 63, 60, 58, 61, 60, 61, 62, 61),
        ),
    ],
)
def test_a_training_that_came_to_its_end(losses, scores):
    assert list(_unfinished_note(curve(losses, scores), 0.56)) == []


def test_the_score_of_the_commonest_answer(mood, likeness):
    assert commonest_score(mood, torch.tensor([0, 1, 1, 1])) == 0.75
    soft = torch.tensor([[0.9, 0.1], [0.4, 0.6], [0.1, 0.9]])
    assert commonest_score(mood, soft) == pytest.approx(2 / 3)
    assert commonest_score(likeness, torch.tensor([0.1, 0.5, 0.5])) == 0
    several = Task(name="m", kind="multilabel", labels=("a", "b"), metrics=("micro_f1",), train="", dev=0.1)
    assert commonest_score(several, torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])) == pytest.approx(2 / 3)
    # All rows have one answer, so no score is better.
    assert commonest_score(mood, torch.tensor([1, 1])) < 0
