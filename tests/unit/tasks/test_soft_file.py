"""A file of soft labels as a teacher."""

import json

import numpy as np
import pytest
from scipy.special import expit, softmax

from onetrunk.protocol.errors import UserError
from onetrunk.tasks import Task
from onetrunk.tasks.soft_file import open_soft_file

LABELS = ("bug", "question")


@pytest.fixture
def open_file(tmp_path):
    """Opens rows as a teacher of a task."""

    def run(rows, skip_bad_rows=False, **changes):
        path = tmp_path / "said.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        task = Task(name="ticket", train="train.jsonl", dev=0.2, **{"labels": LABELS, **changes})
        return open_soft_file(path, task, skip_bad_rows=skip_bad_rows), task

    return run


def test_the_distribution_of_a_text_is_found_however_it_is_written(open_file):
    rows = [
        {"text": "It crashes.", "probabilities": {"question": 0.25, "bug": 0.75}},
        {"text": "How do I save?", "counts": {"question": 4}},
        {"text": "Why?", "label": "question"},
    ]
    teacher, task = open_file(rows)
    assert teacher.texts == ("It crashes.", "How do I save?", "Why?")
    raw = teacher.raw(["it  CRASHES.", "never seen", "Why?"], task)
    np.testing.assert_allclose(softmax(raw[0]), [0.75, 0.25], atol=1e-5)
    assert np.isnan(raw[1]).all()
    np.testing.assert_allclose(softmax(raw[2]), [0, 1], atol=1e-5)
    assert teacher.facts["name"] == "said.jsonl"
    assert teacher.identity == teacher.facts["sha256"]
    other, _ = open_file([*rows, rows[0]])
    assert other.identity != teacher.identity


def test_rows_about_one_text_are_averaged(open_file):
    rows = [{"text": "Hm.", "label": label} for label in ("bug", "bug", "question", "bug")]
    teacher, task = open_file(rows)
    np.testing.assert_allclose(softmax(teacher.raw(["Hm."], task)[0]), [0.75, 0.25], atol=1e-5)
    assert any("3 rows are about a text of another row" in note for note in teacher.notes)


def test_several_labels_and_numbers_and_pairs(open_file):
    teacher, task = open_file([{"text": "a", "probabilities": {"bug": 0.9, "question": 0.6}}], kind="multilabel")
    np.testing.assert_allclose(expit(teacher.raw(["a"], task)[0]), [0.9, 0.6], atol=1e-5)
    pair = {"text": "a", "text2": "b", "label": [1, 2, 3]}
    teacher, task = open_file([pair], kind="regression", form="pair", labels=None, range=(0, 4))
    assert teacher.texts == (("a", "b"),)
    assert teacher.raw([("a", "b")], task).tolist() == [[0.5]]


def test_columns_of_the_task_come_first(open_file):
    row = {"text": "not this", "message": "this", "probabilities": {"question": 1}, "votes": {"bug": 3}}
    teacher, task = open_file([row], text_field="message", label_field="votes")
    assert teacher.texts == ("this",)
    assert teacher.raw(["this"], task).argmax() == 0


def test_what_cannot_be_used_is_told_by_the_row(open_file, tmp_path):
    rows = [{"text": "a", "counts": {"bug": 1}}, {"text": "b", "probabilities": {"bug": 0.2}}]
    with pytest.raises(UserError, match=r"said.jsonl: 1 of 2 rows.*\n.*line 2 .*sum to 0.2"):
        open_file(rows)
    teacher, _ = open_file(rows, skip_bad_rows=True)
    assert teacher.texts == ("a",)
    with pytest.raises(UserError, match="a task of kind tagging takes no soft labels"):
        open_file(rows, kind="tagging")
    with pytest.raises(UserError, match="no such file of soft labels"):
        open_soft_file(tmp_path / "none.jsonl", Task(name="a", labels=LABELS, train="a", dev="b"))
