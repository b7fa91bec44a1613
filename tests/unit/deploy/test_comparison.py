"""What a comparison measures: the texts as they are served, whatever the head was trained on."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

from onetrunk.deploy.comparison import compare
from onetrunk.protocol.errors import UserError
from onetrunk.repository.state import HeadVersion, HeadVersions
from onetrunk.tasks.head_spec import HeadSpec

WORDS, SERVED = 20, 32


def tagger(max_length):
    return HeadSpec(
        task="names",
        kind="tagging",
        form="single",
        labels=("person",),
        tap=1,
        layers=1,
        trunk="bert-4x32@000000000000",
        width=32,
        max_length=max_length,
        metric="token_accuracy",
        scores={},
        created="",
        onetrunk_version="",
    )


class OutsideEverywhere:
    """A server whose heads tag every word of a text as outside of all spans."""

    def ask(self, ensemble, rows, outputs):
        scores = np.zeros((len(rows), WORDS + 2, 2), dtype=np.float32)  # two special tokens
        scores[..., 1] = 1.0
        return dict.fromkeys(outputs, scores)


@pytest.mark.parametrize("trained", [8, SERVED])
def test_words_beyond_the_training_length_are_measured(tiny_trunk_folder, tmp_path, trained):
    tags = ["O"] * (WORDS - 2) + ["B-person", "I-person"]
    (tmp_path / "texts.jsonl").write_text(json.dumps({"tokens": ["film"] * WORDS, "tags": tags}))
    version = HeadVersion(tagger(trained))
    head = HeadVersions({1: version, 2: version}, served=1, loaded=(1, 2), candidate=2)
    state = SimpleNamespace(heads={"names": head}, max_length=SERVED)
    found = compare(state, OutsideEverywhere(), "names", tmp_path / "texts.jsonl", tiny_trunk_folder / "tokenizer.json")
    assert found.labelled == 1
    assert found.live_score == found.candidate_score == pytest.approx(1 - 2 / WORDS)


class NaNOnTheLast:
    """A server whose candidate answers the last text with NaN, and each text before it a little further off."""

    def ask(self, ensemble, rows, outputs):
        numbers = np.arange(len(rows), dtype=np.float32)[:, None]
        return {output: _with_nan(2 * numbers) if "candidate" in output else numbers for output in outputs}


def _with_nan(scores):
    if len(scores) > 1:  # not where latency is measured, one text at a time
        scores[-1] = np.nan
    return scores


def test_a_text_that_is_answered_with_nan_differs_most(tiny_trunk_folder, tmp_path):
    texts = ["same", "near", "far", "no number"]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    spec = tagger(SERVED).model_copy(
        update={"kind": "regression", "labels": None, "range": (0.0, 5.0), "metric": "pearson"}
    )
    head = HeadVersions({1: HeadVersion(spec), 2: HeadVersion(spec)}, served=1, loaded=(1, 2), candidate=2)
    state = SimpleNamespace(heads={"names": head}, max_length=SERVED)
    found = compare(state, NaNOnTheLast(), "names", tmp_path / "texts.jsonl", tiny_trunk_folder / "tokenizer.json")
    assert [text for text, _, _ in found.disagreements] == ["no number", "far", "near"]


class Alike:
    """A server whose heads give the first label each time, by thresholds of their own."""

    def ask(self, ensemble, rows, outputs):
        scores = {"names": [0.9, 0.3], "names_candidate": [0.3, 0.1]}
        return {output: np.array([scores[output]] * len(rows), dtype=np.float32) for output in outputs}


def test_each_head_is_read_by_its_own_thresholds(tiny_trunk_folder, tmp_path):
    (tmp_path / "texts.jsonl").write_text(json.dumps({"text": "a text", "label": ["a"]}) + "\n")
    fields = {"kind": "multilabel", "labels": ("a", "b"), "metric": "micro_f1"}
    live, candidate = (
        HeadVersion(tagger(SERVED).model_copy(update={**fields, "fitted": {"thresholds": [one, one]}}))
        for one in (0.5, 0.2)
    )
    head = HeadVersions({1: live, 2: candidate}, served=1, loaded=(1, 2), candidate=2)
    state = SimpleNamespace(heads={"names": head}, max_length=SERVED)
    found = compare(state, Alike(), "names", tmp_path / "texts.jsonl", tiny_trunk_folder / "tokenizer.json")
    assert (found.live_score, found.candidate_score, found.agreement) == (1.0, 1.0, 1.0)
    assert found.disagreements == ()


def compare_alike(file, tokenizer, **changes):
    """The comparison of a head for which everything is "a" with another one, on a file."""
    fields = {"kind": "classification", "labels": ("a", "b"), "metric": "accuracy", **changes}
    version = HeadVersion(tagger(SERVED).model_copy(update=fields))
    head = HeadVersions({1: version, 2: version}, served=1, loaded=(1, 2), candidate=2)
    state = SimpleNamespace(heads={"names": head}, max_length=SERVED)
    return compare(state, Alike(), "names", file, tokenizer)


COLUMNS = {"text_field": "message", "label_field": "urgent"}


@pytest.mark.parametrize(
    ("header", "changes", "labelled", "notes"),
    [
        ("text,label", {}, 2, ()),
        ("message,urgent", {"data": COLUMNS}, 2, ()),
        ("text,label", {"data": COLUMNS}, 2, ()),
        ("text,urgent", {}, 0, ("note: no label column (found text, urgent), so no metric; name it label",)),
        ("text,x", {"data": COLUMNS}, 0, ("note: no label column (found text, x), so no metric; name it urgent",)),
    ],
)
def test_columns_are_those_of_the_task_or_the_usual_ones(tiny_trunk_folder, tmp_path, header, changes, labelled, notes):
    (tmp_path / "dev.csv").write_text(f"{header}\none,a\ntwo,b\n")
    found = compare_alike(tmp_path / "dev.csv", tiny_trunk_folder / "tokenizer.json", **changes)
    assert (found.rows, found.labelled, found.notes) == (2, labelled, notes)
    assert found.live_score == (0.5 if labelled else None)


@pytest.mark.parametrize(
    ("name", "content", "changes", "message"),
    [
        (
            *("dev.csv", "message,urgent\none,a\n", {}),
            "line 2: no text; found message, urgent: rename the column of the texts to text",
        ),
        (
            *("dev.csv", "note,urgent\none,a\n", {"data": COLUMNS}),
            "line 2: no text; found note, urgent: rename the column of the texts to message",
        ),
        ("dev.csv", "text,label\n ,a\n", {}, "line 2: no text; its text is empty: fill it, or leave the row out"),
        (
            *("dev.csv", "text,second\none,two\n", {"form": "pair"}),
            "line 2: no second text, and names reads pairs; found text, second: rename the column of the second texts "
            "to text_pair",
        ),
        (
            "dev.txt",
            "one\n",
            {},
            '.txt is not read: give JSON lines with "text" in each, and "label" where it is known',
        ),
    ],
)
def test_a_file_without_texts_is_told_with_what_it_has(tmp_path, name, content, changes, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError) as error:
        compare_alike(tmp_path / name, tmp_path, **changes)
    assert str(error.value).removeprefix(str(tmp_path / name)).lstrip(":, ") == message
