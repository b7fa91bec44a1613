"""Labelled texts at the door: what is wrong is counted and named, and nothing is left out in silence."""

import hashlib
import json

import pytest

from onetrunk.protocol.errors import UserError
from onetrunk.tasks import Task, read_examples
from onetrunk.tasks.task_file import locate


@pytest.fixture
def make_task(tmp_path):
    def run(rows, **changes):
        if rows is not None:
            text = "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
            (tmp_path / "rows.jsonl").write_text(text)
        settings = {"labels": ("bad", "good"), "train": "rows.jsonl", "dev": "rows.jsonl", "folder": tmp_path}
        return Task(**{"name": "mood", **settings, **changes})

    return run


GOOD = {"sentence": "a film", "label": "good"}
BAD = {"sentence": "a plot", "label": "bad"}


def test_rows_are_read_as_they_are(make_task, tmp_path):
    examples = read_examples(make_task([GOOD, BAD]), "train")
    assert examples.texts == ("a film", "a plot")
    assert examples.targets == (1, 0)
    assert examples.sha256 == hashlib.sha256((tmp_path / "rows.jsonl").read_bytes()).hexdigest()
    assert (examples.left_out, examples.notes) == (0, ())


def test_pairs_and_numbers_are_read_from_the_fields_named(make_task):
    rows = [{"a": "one", "b": "two", "score": 5}, {"a": "three", "b": "four", "score": "2.5"}]
    changes = {"text_field": "a", "text_pair_field": "b", "label_field": "score", "form": "pair"}
    examples = read_examples(
        make_task(rows, kind="regression", labels=None, range=(0, 5), metrics=("pearson",), **changes), "train"
    )
    assert examples.texts == (("one", "two"), ("three", "four"))
    assert examples.targets == (1.0, 0.5)


FAULTS = [
    ("{", "broken line: 1: line 2 (invalid JSON"),
    ({"label": "good"}, "missing field: 1: line 2 (no 'sentence'; there are: label)"),
    ({"sentence": None, "label": "good"}, "missing field: 1: line 2 ('sentence' is null)"),
    ({"sentence": "x"}, "missing field: 1: line 2 (no 'label'; there are: sentence)"),
    ({"sentence": 5, "label": "good"}, "not a text: 1: line 2 ('sentence' is 5)"),
    ({"sentence": "\ud800", "label": "good"}, "not a text: 1: line 2 ('sentence' contains half of a surrogate pair)"),
    ({"sentence": "", "label": "good"}, "empty text: 1: line 2 ('sentence' is '')"),
    ({"sentence": " \t\u00a0\u200b\0", "label": "good"}, "empty text: 1: line 2"),
    ({"sentence": "\ufffd\u2060", "label": "good"}, "empty text: 1: line 2 ('sentence' is '\\ufffd\\u2060')"),
    ({"sentence": "\u0301", "label": "good"}, "empty text: 1: line 2"),
    ({"sentence": "\ufe0f", "label": "good"}, "empty text: 1: line 2"),
    ({"sentence": "x", "label": "fine"}, "bad label: 1: line 2 (label 'fine' is not one of: bad, good)"),
]


@pytest.mark.parametrize(("row", "fault"), FAULTS)
def test_row_that_cannot_be_used_stops_and_is_named(make_task, tmp_path, row, fault):
    with pytest.raises(UserError) as error:
        read_examples(make_task([GOOD, row, BAD]), "train")
    message = str(error.value)
    assert message.startswith(f"{tmp_path}/rows.jsonl: 1 of 3 rows cannot be used:\n  {fault}")
    assert "--skip-bad-rows" in message


@pytest.mark.parametrize("label", ["nan", "inf", "-0.1", 5.1, True, "", [1, 9], [[1]], "1" * 400, "1_0", "0_1"])
def test_number_out_of_range_is_refused(make_task, label):
    changes = {"kind": "regression", "labels": None, "range": (0, 5), "metrics": ("pearson",)}
    with pytest.raises(UserError, match=r"bad label: 1: line 1 .* is not a number from 0 to 5"):
        read_examples(make_task([{"sentence": "x", "label": label}], **changes), "train")


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ({"sentence": ["great", "so awful"], "label": ["good", "bad"]}, "classification"),
        ({"Sentence": ["a great film", "awful"], "label": [["good"], ["bad"]]}, "multilabel"),
        ({"sentence": {"0": "great", "1": "awful"}, "label": {"0": "good", "1": "bad"}}, "classification"),
        ({"sentence": ["a film", "awful"], "label": ["O B-good", "O"]}, "tagging"),
        ({"sentence": [["a", "film"], ["awful"]], "label": [["O", "B-good"], ["O"]]}, "tagging"),
    ],
)
def test_a_file_whose_only_object_has_whole_columns_is_refused(make_task, row, kind):
    with pytest.raises(UserError, match=r'line 1 \(its fields are whole columns.*orient="records", lines=True'):
        read_examples(make_task([row], kind=kind), "train")


def test_a_single_text_of_words_is_a_row(make_task):
    row = {"sentence": ["a", "film"], "label": ["O", "B-good"]}
    assert len(read_examples(make_task([row], kind="tagging"), "train")) == 1
    for label in ("good", ["good", "bad"]):
        assert read_examples(make_task([{**row, "label": label}]), "train").texts == ("a film",)
    many = make_task([{**row, "label": ["good", "bad"]}], kind="multilabel", metrics=("micro_f1",))
    assert read_examples(many, "train").targets == ((0, 1),)
    assert len(read_examples(make_task([{**row, "label": ["good", "good", "bad"]}]), "train")) == 1


@pytest.mark.parametrize("array", [False, True])
def test_a_key_that_an_object_has_twice_is_a_fault_of_its_row(make_task, array):
    rows = ['{"sentence": "a", "label": "good"}', '{"sentence": "b", "label": "good", "label": "bad"}']
    task = make_task(["[" + ",\n".join(rows) + "]"] if array else rows)
    with pytest.raises(UserError, match=r"broken line: 1: line 2 \(it has the key 'label' twice\)"):
        read_examples(task, "train")
    nested = '{"sentence": "b", "label": {"good": 1, "bad": 0, "good": 2}}'
    with pytest.raises(UserError, match="the key 'good' twice"):
        read_examples(make_task([nested, *rows[:1]]), "train")


def test_rows_of_an_array_on_one_line_are_counted_by_rows(make_task):
    rows = [GOOD] * 37 + [{**GOOD, "label": "fine"}, {**GOOD, "label": "bad"}, 7]
    with pytest.raises(UserError, match=r"broken line: 1: row 40 (.|\n)*bad label: 1: row 38 \("):
        read_examples(make_task([json.dumps(rows)]), "train")
    read = read_examples(make_task([json.dumps(rows)]), "train", skip_bad_rows=True)
    assert any("different labels: rows 1 and 39" in note for note in read.notes)
    # With line breaks between them, by lines.
    with pytest.raises(UserError, match=r"bad label: 1: line 40 \("):
        read_examples(make_task(["", "["] + [json.dumps(row) + "," for row in rows[:-1]] + ["7]"]), "train")


def test_all_faults_are_counted_and_the_first_of_each_sort_named(make_task):
    rows = [{"sentence": "x", "label": "?"}] * 5 + [{"sentence": "", "label": "good"}] * 2 + [GOOD]
    with pytest.raises(UserError) as error:
        read_examples(make_task(rows), "dev")
    lines = str(error.value).splitlines()
    assert lines[0].endswith("7 of 8 rows cannot be used:")
    assert lines[1].startswith("  bad label: 5: line 1 (")
    assert lines[1].count("line ") == 3
    assert lines[1].endswith("; ...")
    assert lines[2].startswith("  empty text: 2: line 6 (")


def test_skipping_says_how_many_of_how_many(make_task):
    examples = read_examples(make_task([GOOD, "{", BAD]), "train", skip_bad_rows=True)
    assert examples.texts == ("a film", "a plot")
    assert examples.left_out == 1
    assert examples.notes[0].startswith(f"left out 1 of 3 rows of {examples.source}:\n")


def test_nothing_left_is_refused_even_when_skipping(make_task):
    with pytest.raises(UserError, match="1 of 1 row cannot be used") as error:
        read_examples(make_task(["{"]), "train", skip_bad_rows=True)
    assert "--skip-bad-rows" not in str(error.value)
    with pytest.raises(UserError, match="it has no rows that can be used"):
        read_examples(make_task([]), "train")


def test_label_that_never_occurs_is_noted(make_task):
    assert read_examples(make_task([GOOD]), "train").notes == ("no row of the train data has the label 'bad'",)


def test_data_are_looked_for_in_the_order_promised(make_task, tmp_path, monkeypatch):
    task = make_task([GOOD], folder=tmp_path / "project" / "tasks")
    below_shared = tmp_path / "shared" / "rows.jsonl"
    beside_task = tmp_path / "project" / "tasks" / "rows.jsonl"
    in_variable = tmp_path / "variable" / "rows.jsonl"
    given = tmp_path / "given" / "rows.jsonl"
    monkeypatch.setenv("ONETRUNK_DATA", str(in_variable.parent))
    with pytest.raises(UserError, match=r"task mood: no train data 'rows.jsonl'; looked for .*--data or ONETRUNK_DATA"):
        locate(task, "train")
    for place in (below_shared, beside_task, in_variable):
        place.parent.mkdir(parents=True)
        place.touch()
        assert locate(task, "train") == place
    given.parent.mkdir()
    given.touch()
    assert locate(task, "train", given.parent) == given
    assert locate(task, "train", tmp_path / "elsewhere") == beside_task


def test_absolute_place_and_hub_address_stay_as_they_are(make_task, tmp_path):
    task = make_task([GOOD], train=str(tmp_path / "rows.jsonl"), dev="hub:glue/cola", folder=tmp_path / "elsewhere")
    assert locate(task, "train") == tmp_path / "rows.jsonl"
    assert locate(task, "dev") == "hub:glue/cola"


@pytest.mark.parametrize("place", ["~nobody_has_this_name/t.jsonl", f"{'x' * 300}/t.jsonl"])
def test_a_place_that_can_be_none(mood, place):
    with pytest.raises(UserError, match=r"task mood: train '[~x].*: no path of a file: "):
        locate(mood.model_copy(update={"train": place}), "train")
