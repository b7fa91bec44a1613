"""A file of soft labels in the place of a model: what is read of it before anything is trained."""

from __future__ import annotations

import json

import numpy as np
import pytest

from onetrunk.adopt.said import open_said_file
from onetrunk.protocol.errors import UserError
from onetrunk.tasks import Task
from onetrunk.tasks.soft_targets import is_given


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("rows", "kind", "labels"),
    [
        ([{"text": "a", "probabilities": {"spam": 0.8, "ham": 0.2}}], None, ("ham", "spam")),
        ([{"text": "a", "counts": {"x": 3, "y": 1}}, {"text": "b", "label": "z"}], None, ("x", "y", "z")),
        ([{"text": "a", "label": ["x", "y", "x"]}], None, ("x", "y")),
        ([{"text": "a", "label": None, "probabilities": {"x": 1.0, "y": 0.0}}], None, ("x", "y")),
        ([{"text": "a", "probabilities": {"x": 0.9, "y": 0.8}}], "multilabel", ("x", "y")),
        ([{"text": "a", "label": 3.5}], "regression", None),
        ([{"text": "a", "label": one} for one in (" good ", "good", "bad")], None, ("bad", "good")),
        (
            [{"text": "a", "label": one} for one in ("\u00e9t\u00e9", "e\u0301te\u0301", "x")],
            None,
            ("x", "\u00e9t\u00e9"),
        ),
        ([{"text": "a", "label": "good|long"}, {"text": "b", "label": "bad"}], "multilabel", ("bad", "good", "long")),
        ([{"text": "a"}, {"text": "b", "label": "x"}, {"text": "c", "label": "y"}], None, ("x", "y")),
    ],
)
def test_labels_are_those_that_occur(tmp_path, rows, kind, labels):
    found = open_said_file(write(tmp_path / "said.jsonl", rows), name="one", kind=kind)
    assert (found.kind, found.labels) == (kind or "classification", labels)


def test_labels_of_the_command_line_have_their_order(tmp_path):
    path = write(tmp_path / "said.jsonl", [{"text": "a", "probabilities": {"ham": 0.2, "spam": 0.8}}])
    assert open_said_file(path, name="one", labels=("spam", "ham")).labels == ("spam", "ham")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"text": "a"}], "no column of labels: give 'label', or 'probabilities' or 'counts'"),
        ([{"text": "a", "label": "x"}], "labels are found in it: 1; a task needs 2 at least"),
        (
            [{"text": "a", "probabilities": {"x": 80, "y": 20}}],
            r"found in it: 0 \(line 1: the probability of 'x' is 80",
        ),
        ([{"text": "a", "probabilities": [0.2, 0.8]}], r"'probabilities' is \[0.2, 0.8\], not a table of labels"),
        ([{"text": "a", "label": one} for one in (1, 1.0)], "'label' has 1, which is no text: give --labels"),
        ([{"text": "a", "label": one} for one in (True, False)], "'label' has True, which is no text"),
        ([{"text": "a", "label": "g\ud800"}], "half of a surrogate pair"),
        ([{"text": "a", "label": one} for one in ("Good", "good", "bad")], "'Good' and 'good' differ only in case"),
        ([{"text": "a", "label": str(one)} for one in range(1100)], "more than 1,000 labels in column 'label'"),
    ],
)
def test_what_is_no_file_of_soft_labels(tmp_path, rows, message):
    with pytest.raises(UserError, match=message):
        open_said_file(write(tmp_path / "said.jsonl", rows), name="one")


def test_the_teacher_knows_the_texts_of_the_file_and_brings_none(tmp_path):
    rows = [{"text": f"text {one}", "probabilities": {"ham": 0.2, "spam": 0.8}} for one in range(3)]
    said = open_said_file(write(tmp_path / "said.jsonl", rows), name="one")
    columns = {"text_field": "text", "train": str(said.folder), "dev": 0.5}
    task = Task(name="one", kind="classification", form="single", labels=said.labels, **columns)
    teacher = said.teacher(task)
    raw = teacher.raw(["text 1", "another one"], task)
    assert teacher.texts == ()
    assert is_given(raw).tolist() == [True, False]
    assert np.exp(raw[0]) == pytest.approx([0.2, 0.8])
