"""Labels as files have them: numbers, other spellings, columns of their own, tags of other schemes."""

import json

import pytest

from onetrunk.protocol.errors import UserError
from onetrunk.tasks import Task, read_examples
from onetrunk.tasks.kinds.span_tags import bio_tags


@pytest.fixture
def examples(tmp_path):
    """Reads rows as the data of a task: a text is a CSV, a list is JSON lines."""

    def run(rows, skip_bad_rows=False, **changes):
        name = "rows.csv" if isinstance(rows, str) else "rows.jsonl"
        text = rows if isinstance(rows, str) else "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / name).write_text(text, encoding="utf-8")
        settings = {"labels": ("bad", "good"), "train": name, "dev": name, "folder": tmp_path, **changes}
        return read_examples(Task(name="mood", **settings), "train", skip_bad_rows=skip_bad_rows)

    return run


def csv_of(*labels):
    return "sentence,label\n" + "".join(f"text {row},{label}\n" for row, label in enumerate(labels))


def rows_of(*labels):
    return [{"sentence": f"text {row}", "label": label} for row, label in enumerate(labels)]


@pytest.mark.parametrize(
    "rows",
    [csv_of("0", "1", "1"), csv_of("0.0", "1.0", "1.0"), rows_of(0, 1, 1), rows_of(0.0, 1.0, 1), csv_of(0, 1, " 1")],
)
def test_whole_numbers_are_positions_if_no_label_is_so_written(examples, rows):
    read = examples(rows)
    assert read.targets == (0, 1, 1)
    [note] = read.notes
    assert "0 is 'bad', 1 is 'good'" in note


@pytest.mark.parametrize(
    ("labels", "changes"),
    [
        (("0", "1", "2"), {}),  # out of range
        (("0", "-1"), {}),
        (("0", "1.5"), {}),
        (("0", "good"), {}),  # a label is so written
        (("0", "1"), {"labels": ("1", "2")}),
        (("true", "1"), {}),
        (("1", "1"), {}),  # from 0 or from 1?
    ],
)
def test_other_numbers_are_no_positions(examples, labels, changes):
    with pytest.raises(UserError, match="bad label"):
        examples(csv_of(*labels), **changes)


def test_numbers_that_are_no_positions_are_told_what_positions_are(examples):
    with pytest.raises(UserError, match=r"'2' \(1\).*: numbers are read as positions only if all are .* from 0 to 1"):
        examples(csv_of("0", "1", "2"))


@pytest.mark.parametrize(
    ("rows", "labels", "helps"),
    [
        (rows_of(1, 2, 2), ("bad", "good"), True),
        (rows_of(-1, 1), ("bad", "good"), False),
        (rows_of(0, 1, 2), ("bad", "good"), False),
        (rows_of(1, 2, 3), ("bad", "good"), False),
        (rows_of(0, 1, "good"), ("bad", "good"), False),
        (rows_of(0, 1), ("1", "x"), False),
    ],
)
def test_another_first_number_is_proposed_only_where_it_helps(examples, rows, labels, helps):
    with pytest.raises(UserError, match="numbers are read as positions only if") as error:
        examples(rows, labels=labels)
    assert ("labels_from" in str(error.value)) == helps


def test_whole_numbers_with_a_point_are_those_without(examples):
    read = examples(csv_of("1.0", "0.0", "1"), labels=("0", "1"))
    assert read.targets == (1, 0, 1)
    assert "'1.0' as '1' (1)" in read.notes[0]
    # JSON has numbers: 1.0 may have become one when a column had a gap.
    read = examples(rows_of(1.0, 0.0, 1.0), labels=("0", "1"))
    assert (read.targets, len(read.notes)) == ((1, 0, 1), 1)
    assert "1.0 as '1' (2), 0.0 as '0' (1)" in read.notes[0]
    assert examples(rows_of(1, 0), labels=("0", "1")).notes == ()
    # A label that is so written is itself.
    assert examples(csv_of("1.0", "1"), labels=("1", "1.0")).targets == (1, 0)


def test_numbers_of_tags_are_positions_among_the_tags(examples):
    rows = [{"sentence": ["a", "film", "b"], "label": [0, 3, 4]}, {"sentence": ["x"], "label": [1]}]
    labels = ("PER", "ORG")
    assert bio_tags(labels) == ("O", "B-PER", "I-PER", "B-ORG", "I-ORG")
    read = examples(rows, kind="tagging", labels=labels)
    assert [tag for _, _, tag in read.targets[0]] == [0, 3, 4]
    assert "3 is 'B-ORG'" in read.notes[0]
    as_text = examples("sentence,label\na film b,0 3 4\n", kind="tagging", labels=labels)
    assert as_text.targets == read.targets[:1]
    with pytest.raises(UserError) as error:
        examples([{"sentence": ["a", "b"], "label": [1, 7]}], kind="tagging", labels=labels)
    assert "tag 1: 1 is not a tag, as O and B-PER are" in str(error.value)
    assert "only if all are from 0 to 4, for O and then B- and I- of each label in turn (4 is 'I-" in str(error.value)
    assert "labels_from" not in str(error.value)
    with pytest.raises(UserError, match="only in BIO"):
        examples(rows, kind="tagging", labels=labels, options={"scheme": "BILOU"})


def test_other_spellings_are_counted_and_the_key_reads_them(examples):
    rows = csv_of("GOOD", "GOOD", "Good ", "bad", "very  good", "goood")
    with pytest.raises(UserError) as error:
        examples(rows)
    line = next(line for line in str(error.value).splitlines() if "with their rows" in line)
    assert "'GOOD' (2), 'Good ' (1)" in line
    assert "did you mean good?" in line
    assert "fold_labels = true" in line
    with pytest.raises(UserError, match=r"did you mean Good, good\?\): write them so") as error:
        examples(csv_of("GOOD", "bad"), labels=("good", "Good", "bad"))
    assert "fold_labels" not in str(error.value)
    labels = ("bad", "good", "Very Good")
    read = examples(csv_of("GOOD", "Good ", "bad", "very  good"), labels=labels, fold_labels=True)
    assert read.targets == (1, 1, 0, 2)
    assert "'GOOD' as 'good' (1)" in read.notes[0]
    for kind in ("classification", "multilabel"):
        with pytest.raises(ValueError, match="differ only in case"):
            Task(name="a", kind=kind, labels=("x", "X "), train="a", dev="b", fold_labels=True)


def test_a_label_that_is_misspelled_is_proposed(examples):
    with pytest.raises(UserError, match=r"'goood' \(4\) \(did you mean good\?\)"):
        examples(csv_of("goood", "goood", "goood", "goood"))


def test_letters_that_look_equal_are_equal(examples):
    # "é" as one character, and as "e" with an accent.
    read = examples(csv_of("cafe\u0301", "th\u00e9"), labels=("caf\u00e9", "the\u0301"))
    assert read.targets == (0, 1)
    [note] = read.notes
    assert "accents are composed in another way than in the task file (Unicode NFC or NFD) are read" in note
    assert note.endswith("with their rows: 'caf\u00e9' (1), 'the\u0301' (1)")


def test_labels_of_a_task_that_look_equal_are_one():
    with pytest.raises(ValueError, match=r"twice: they look equal.* \(Unicode NFC and NFD\)"):
        Task(name="a", labels=("\u00e9", "e\u0301"), train="a", dev="b")


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"text_field": "label"}, "text_field and label_field name one column, 'label'"),
        ({"form": "pair", "text_pair_field": "sentence"}, "text_field and text_pair_field name one column"),
        ({"form": "pair", "label_field": "sentence2"}, "text_pair_field and label_field name one column"),
    ],
)
def test_each_field_has_a_column_of_its_own(fields, why):
    with pytest.raises(ValueError, match=why):
        Task(name="a", labels=("x", "y"), train="a", dev="b", **fields)
    assert Task(name="a", labels=("x", "y"), train="a", dev="b", text_pair_field="sentence")


def test_fields_whose_names_differ_in_case_are_found_by_their_exact_names(examples):
    fields = {"text_field": "Label", "label_field": "label"}
    read = examples("Label,label\na film,good\n", **fields)
    assert (read.texts, read.targets) == (("a film",), (1,))
    with pytest.raises(
        UserError,
        match=r"no column 'Label' \(did you mean label\?\); there are: label; text_field in the task file names",
    ):
        examples("label\ngood\n", **fields)
    with pytest.raises(UserError, match=r"no column 'Label' \(did you mean LABEL\?\); there are: LABEL"):
        examples("LABEL\ngood\n", **fields)


THREE = ("bad", "fair", "good")


def test_numbers_of_which_none_is_0_are_not_guessed_about(examples):
    with pytest.raises(UserError) as error:
        examples(csv_of("1", "2", "1"), labels=THREE)
    assert "counted from 0 or from 1, as none is 0: labels_from = 0 or labels_from = 1" in str(error.value)
    assert examples(csv_of("1", "2", "1"), labels=THREE, labels_from=0).targets == (1, 2, 1)
    read = examples(csv_of("1", "2", "1"), labels=THREE, labels_from=1)
    assert read.targets == (0, 1, 0)
    assert "1 is 'bad', 2 is 'fair'" in read.notes[0]
    with pytest.raises(UserError, match=r"from 0 to 2; labels_from = 1 counts from 1"):
        examples(csv_of("1", "2", "3"), labels=THREE)
    assert examples(csv_of("1", "2", "3"), labels=THREE, labels_from=1).targets == (0, 1, 2)
    with pytest.raises(UserError, match=r"from 1 to 3; labels_from = 0 counts from 0"):
        examples(csv_of("0", "2"), labels=THREE, labels_from=1)


@pytest.mark.parametrize("blank", ["", " ", None])
def test_an_empty_label_does_not_turn_positions_off(examples, blank):
    rows = rows_of("0", "2", blank)
    assert examples(rows, labels=THREE, empty_label="fair").targets == (0, 2, 1)
    with pytest.raises(UserError, match="1 of 3 rows"):
        examples(rows, labels=THREE)
    assert examples(rows, labels=THREE, skip_bad_rows=True).targets == (0, 2)


@pytest.mark.parametrize("empty", [None, "", "  ", float("nan"), []])
def test_an_empty_label_stands_for_the_label_that_the_task_says(examples, empty):
    rows = rows_of("good", empty)
    with pytest.raises(UserError, match=r"1 of 2 rows"):
        examples(rows)
    changes = {"labels": ("bad", "good", "none of these"), "empty_label": "none of these"}
    assert examples(rows, **changes).targets == (1, 2)


def test_the_key_for_empty_labels_is_proposed_and_checked(examples):
    with pytest.raises(UserError, match=r'empty_label = "\.\.\."'):
        examples(csv_of("good", ""))
    with pytest.raises(ValueError, match="add it to labels"):
        Task(name="a", labels=("x", "y"), train="a", dev="b", empty_label="z")
    with pytest.raises(UserError, match=r"label '' is not one of(.|\n)*'' \(1\).*empty_label = "):
        examples(rows_of("good", []))
    # A tag without a type is none of a text without a label.
    with pytest.raises(UserError, match=r"'B-' is not known") as error:
        examples([{"sentence": "a", "label": "B-"}], kind="tagging")
    assert "empty_label =" not in str(error.value)
    for kind, labels in (("multilabel", ("x", "y")), ("tagging", ("x", "y"))):
        with pytest.raises(ValueError, match=f"labels of a classification task; not for kind {kind}: leave it out"):
            Task(name="a", kind=kind, labels=labels, train="a", dev="b", empty_label="x")
    # A column that is not there is no empty label.
    with pytest.raises(UserError, match="no column 'label'; there are: sentence"):
        examples([{"sentence": "x"}], empty_label="good")


def test_several_labels_in_a_cell(examples):
    rows = 'sentence,label\na,"late,ok"\nb,ok\nc,\n'
    many = {"kind": "multilabel", "labels": ("late", "ok")}
    with pytest.raises(UserError, match=r'label_separator = ","'):
        examples(rows, **many)
    assert examples(rows, **many, label_separator=",").targets == ((0, 1), (1,), ())
    with pytest.raises(UserError, match='kind = "multilabel"'):
        examples('sentence,label\na,"late,ok"\nb,ok\n', labels=("late", "ok"))
    with pytest.raises(ValueError, match="is for kind multilabel"):
        Task(name="a", labels=("x", "y"), train="a", dev="b", label_separator=",")


@pytest.mark.parametrize("cell", ["['late', 'ok']", '["late", "ok"]', "['late', \"ok\"]"])
def test_a_cell_may_hold_a_list(examples, cell):
    def table(*cells):
        quoted = ['"{}"'.format(one.replace('"', '""')) for one in cells]
        return "sentence,label\n" + "".join(f"a b,{one}\n" for one in quoted)

    labels = ("late", "ok", "['late'")
    many = {"kind": "multilabel", "labels": labels}
    assert examples(table(cell, "[]", "['late'"), **many).targets == ((0, 1), (), (2,))
    assert examples(table("['ok']", "late"), labels=labels).targets == (1, 0)
    with pytest.raises(UserError, match='kind = "multilabel"'):
        examples(table(cell, "ok"), labels=labels)
    tagged = "sentence,label\n\"['Ann', 'Lee']\",\"['B-PER', 'I-PER']\"\n"
    read = examples(tagged, kind="tagging", labels=("PER", "ORG"))
    assert (read.texts, tags_of(read)) == (("Ann Lee",), [["B-PER", "I-PER"]])
    spans = 'sentence,label\nAnn Lee,"[[0, 7, ""PER""]]"\nno one,[]\n'
    assert tags_of(examples(spans, kind="tagging", labels=("PER", "ORG"))) == [["B-PER", "I-PER"], ["O", "O"]]


def test_positions_of_several_labels(examples):
    many = {"kind": "multilabel", "labels": ("late", "ok")}
    assert examples(rows_of([0, 1], [], [1]), **many).targets == ((0, 1), (), (1,))
    assert examples("sentence,label\na,0|1\nb,\n", **many).targets == ((0, 1), ())


@pytest.mark.parametrize(
    ("labels", "rows", "targets"),
    [
        (("late", "ok"), ([0, 1], [1, 0], [1, 1], [0, 0]), ((1,), (0,), (0, 1), ())),
        (("late", "ok"), ([True, False], [False, True]), ((0,), (1,))),
        (("late", "ok", "no"), ([0, 1, 1], [1.0, 0.0, 0.0], [True, False, True]), ((1, 2), (0,), (0, 2))),
    ],
)
def test_a_list_of_0_and_1_for_each_label_in_every_row_says_which_hold(examples, labels, rows, targets):
    read = examples(rows_of(*rows), kind="multilabel", labels=labels)
    assert read.targets == targets
    assert "lists of 0 and 1, one for each label" in read.notes[0]
    cells = csv_of(*(f'"{json.dumps(row)}"' for row in rows))
    assert examples(cells, kind="multilabel", labels=labels).targets == targets
    # With one row of another form they are positions, as everywhere else; and labels may be so written.
    with pytest.raises(UserError, match="bad label") as error:
        examples(rows_of(*rows, [0, 0, 0, 0]), kind="multilabel", labels=labels)
    assert f"only if every row has one, with {len(labels)} numbers" in str(error.value)
    if len(labels) == 2:
        assert examples(rows_of([0, 1], [0, 1]), kind="multilabel", labels=("1", "0")).targets == ((0, 1), (0, 1))


@pytest.mark.parametrize("rows", [([0, 1], [1, 0]), ([0, 1], [0, 1]), ([1.0, 0.0],)])
def test_lists_of_two_labels_that_may_be_positions_are_refused(examples, rows):
    many = {"kind": "multilabel", "labels": ("late", "ok")}
    with pytest.raises(UserError, match=r"some row has \[0, 0\] or \[1, 1\]: write the names .* or labels_from = 0"):
        examples(rows_of(*rows), **many)
    positions = tuple((0, 1) for _ in rows)
    assert examples(rows_of(*rows), **many, labels_from=0).targets == positions


def test_numbers_are_positions_where_labels_from_says_so_or_there_is_one_label(examples):
    one = {"kind": "multilabel", "labels": ("spam",)}
    assert examples(rows_of([0], []), **one).targets == ((0,), ())
    assert examples(rows_of([0], [0]), **one).targets == ((0,), (0,))
    with pytest.raises(UserError, match=r"read as positions only if .* all are from 0 to 0"):
        examples(rows_of([0], [1]), **one)
    assert examples(rows_of([1], [1]), **one, labels_from=1).targets == ((0,), (0,))
    with pytest.raises(UserError, match="say which labels hold only without labels_from"):
        examples(rows_of([0, 1, 1], [1, 0, 0]), kind="multilabel", labels=("late", "ok", "no"), labels_from=0)


def test_such_lists_are_no_votes_where_one_label_holds(examples):
    with pytest.raises(UserError, match="write the name of the label that has the 1, or its number from 0"):
        examples(rows_of([0, 1], [1, 0]))
    with pytest.raises(UserError, match="2 of 2 rows"):
        examples(rows_of([0, 0, 1], [0, 1, 0]), labels=("bad", "good", "fair"))
    assert len(examples(rows_of([0, 0, 1], [0, 1, 1]), labels=("bad", "good", "fair"))) == 2


def test_labels_with_columns_of_their_own(examples):
    table = "sentence,late,ok\na,1,0\nb,0.0,1.0\nc,1,1\nd,0,\n"
    read = examples(table, kind="multilabel", labels=("late", "ok"))
    assert read.targets == ((0,), (1,), (0, 1), ())
    assert "no column 'label'" in read.notes[0]
    with pytest.raises(UserError) as error:
        examples(table, labels=("late", "ok"))
    assert "2 of 4 rows cannot be used" in str(error.value)
    assert "bad label: 2: line 4 (2 of the labels' columns have a 1" in str(error.value)
    booleans = [{"sentence": "a", "late": True, "ok": False}]
    assert examples(booleans, labels=("late", "ok")).targets == (0,)
    # They are found as all columns are.
    for header in ("sentence,Late,OK", "sentence, late ,ok"):
        assert examples(f"{header}\na,1,0\nb,0,1\n", labels=("late", "ok")).targets == (0, 1)
    assert examples("sentence,OK,ok\na,1,0\nb,0,1\n", labels=("ok", "OK")).targets == (1, 0)


@pytest.mark.parametrize("kind", ["classification", "multilabel"])
@pytest.mark.parametrize(
    ("header", "why"),
    [
        ("good,other", "'good' is one of a label, and 'Good' has none"),
        ("GOOD,other", "no column 'label'; there are: sentence, GOOD, other; label_field"),
    ],
)
def test_a_column_is_that_of_one_label(examples, kind, header, why):
    with pytest.raises(UserError, match=why):
        examples(f"sentence,{header}\na,1,0\nb,0,1\n", kind=kind, labels=("Good", "good"))


@pytest.mark.parametrize(
    ("table", "why"),
    [
        (
            "sentence,late,ok\na,yes,no\n",
            "there are: sentence, late, ok; 'late' has 'yes', and a label's own column has",
        ),
        ("sentence,late,ok\na,0,2\nb,1,0\n", r"1 of 2 rows(.|\n)*'ok' has '2', and a label's own column has 0 or 1"),
        ("sentence,late\na,1\n", "there are: sentence, late; 'late' is one of a label, and 'ok' has none"),
        ("sentence,other\na,1\n", "no column 'label'; there are: sentence, other; label_field"),
    ],
)
@pytest.mark.parametrize("kind", ["classification", "multilabel"])
def test_columns_of_labels_that_are_no_marks_are_named(examples, kind, table, why):
    with pytest.raises(UserError, match=f"missing field: 1: line 2 .no 'label'; (.|\n)*{why}|{why}") as error:
        examples(table, kind=kind, labels=("late", "ok"))
    # Where some row is marked by its columns, label_field is not at fault.
    assert ("label_field in the task file" in str(error.value)) == ("b,1" not in table)


def test_booleans_are_named_as_json_writes_them(examples):
    for rows, named in (
        (rows_of(True), r'\["false", "true"\]'),
        (csv_of("True", "False"), r'\["False", "True"\]'),
    ):
        with pytest.raises(
            UserError, match=rf"label '?[tT]rue'? is not one of: bad, good(.|\n)*task file: labels = {named}"
        ):
            examples(rows)
    assert examples(rows_of(True, False), labels=("false", "true")).targets == (1, 0)
    assert examples(csv_of("TRUE", "FALSE"), labels=("false", "true"), fold_labels=True).targets == (1, 0)


def test_one_label_in_a_list_is_that_label(examples):
    assert examples(rows_of(["good"], ["bad"])).targets == (1, 0)


def tags_of(read):
    names = bio_tags(("PER", "ORG"))
    return [[names[tag] for _, _, tag in row] for row in read.targets]


def test_iob1_is_read(examples):
    rows = [
        {"sentence": "a b c d", "label": "I-PER I-PER O I-ORG"},
        {"sentence": "a b c", "label": ["I-PER", "B-PER", "I-ORG"]},
    ]
    read = examples(rows, kind="tagging", labels=("PER", "ORG"))
    assert tags_of(read) == [["B-PER", "I-PER", "O", "B-ORG"], ["B-PER", "B-PER", "B-ORG"]]
    assert [note for note in read.notes if "IOB1" in note]


def test_a_fault_in_bio_is_not_taken_for_iob1(examples):
    rows = [{"sentence": "a b", "label": "B-PER I-PER"}, {"sentence": "a b", "label": "O I-PER"}]
    with pytest.raises(UserError, match=r"line 2 \(tag 2: 'I-PER' after 'O'"):
        examples(rows, kind="tagging", labels=("PER", "ORG"))


def test_types_of_tags_are_folded_too(examples):
    rows = [{"sentence": "a b c", "label": "B-per I-per B-Org"}]
    with pytest.raises(UserError, match="did you mean ORG, PER"):
        examples(rows, kind="tagging", labels=("PER", "ORG"))
    read = examples(rows, kind="tagging", labels=("PER", "ORG"), fold_labels=True)
    assert tags_of(read) == [["B-PER", "I-PER", "B-ORG"]]


# Spans by characters.

TEXT = "Ann Lee joined Acme-Labs."


def spans_read(examples, spans, text=TEXT, **changes):
    row = {"sentence": text, "spans": spans}
    return examples([row], kind="tagging", labels=("PER", "ORG"), label_field="spans", **changes)


def found(read, row=0):
    names = bio_tags(("PER", "ORG"))
    return [(read.texts[row][start:end], names[tag]) for start, end, tag in read.targets[row] if tag]


WHOLE = [("Ann", "B-PER"), ("Lee", "I-PER"), ("Acme", "B-ORG"), ("-", "I-ORG"), ("Labs", "I-ORG")]


@pytest.mark.parametrize(
    "spans",
    [
        [{"start": 0, "end": 7, "label": "PER"}, {"start": 15, "end": 24, "label": "ORG"}],
        [[15, 24, "ORG"], [0, 7, "PER"]],  # Doccano
        [{"start_offset": 0, "end_offset": 7, "label": "PER"}, {"start_offset": 15, "end_offset": 24, "label": "ORG"}],
        [{"start": 0, "end": 8, "labels": ["PER"]}, {"start": 14, "end": 24, "labels": ["ORG"]}],  # with a blank
    ],
)
def test_spans_by_characters_are_put_on_words(examples, spans):
    read = spans_read(examples, spans)
    assert found(read) == WHOLE
    assert [TEXT[start:end] for start, end, _ in read.targets[0]] == ["Ann", "Lee", "joined", "Acme", "-", "Labs", "."]
    assert read.notes == ()


def test_spans_within_words_are_widened_counted_and_shown(examples):
    read = spans_read(examples, [[0, 6, "PER"], [16, 24, "ORG"]])
    assert found(read) == WHOLE
    [note] = read.notes
    assert "2 of 2 spans" in note
    assert "line 1 ('Ann Le' to 'Ann Lee')" in note


@pytest.mark.parametrize(
    ("spans", "why"),
    [
        ([[0, 99, "PER"]], "no part of a text of 25 characters"),
        ([[5, 5, "PER"]], "no part of a text"),
        ([[-3, 5, "PER"]], "no part of a text"),
        ([["0", 3, "PER"]], "is not start, end and label"),
        ([[0, 3]], "is not start, end and label"),
        ([{"start": 0, "end": 3, "label": "PER", "text": "Bob"}], "are not 'Bob'"),
        ([[0, 5, "PER"], [5, 14, "ORG"]], "shares a word"),
        ([[3, 4, "PER"]], "has no word in it"),
        ([[0, 3, "DOG"]], "a span of 'DOG', which is not one of: PER, ORG"),
    ],
)
def test_spans_that_fit_no_text_are_bad_labels(examples, spans, why):
    with pytest.raises(UserError) as error:
        spans_read(examples, spans)
    assert "bad label: 1: line 1 (" in str(error.value)
    assert why in str(error.value)


def test_a_row_without_spans_has_none(examples):
    rows = [{"sentence": "Ann Lee", "label": [[0, 7, "PER"]]}, {"sentence": "no one", "label": []}]
    read = examples(rows, kind="tagging", labels=("PER", "ORG"))
    assert (found(read, 0), found(read, 1)) == (WHOLE[:2], [])
    assert len(read.targets[1]) == 2


def test_rows_of_which_none_has_a_span_are_read(examples):
    rows = [{"sentence": "Ann-Lee", "label": []}, {"sentence": "no one", "label": []}]
    assert [len(words) for words in examples(rows, kind="tagging", labels=("PER",)).targets] == [3, 2]


def test_characters_counted_in_utf16_are_told_by_the_text_of_the_span(examples):
    text = "🎬🎬 Ann Lee"
    spans = [{"start": 5, "end": 12, "text": "Ann Lee", "labels": ["PER"]}]
    assert text.encode("utf-16-le")[10:24].decode("utf-16-le") == "Ann Lee"
    assert found(spans_read(examples, spans, text)) == WHOLE[:2]


def test_numbers_with_a_comma_are_read_if_all_are_so_written(examples):
    numbers = {"kind": "regression", "labels": None, "range": (0, 5), "metrics": ("pearson",)}
    read = examples('sentence,label\na,"2,5"\nb,5\nc,"0,25"\n', **numbers)
    assert read.targets == (0.5, 1.0, 0.05)
    assert "3,5 is read as 3.5" in read.notes[0]
    many = {**numbers, "range": (0, 5000)}
    with pytest.raises(UserError, match=r"1,200 may be 1\.200 or 1200: write all numbers with a point"):
        examples('sentence,label\na,"1,200"\nb,3\n', **many)
    assert examples('sentence,label\na,"1,200"\nb,"2,5"\n', **numbers).targets == (0.24, 0.5)
    assert examples('sentence,label\na,"0,125"\n', **numbers).targets == (0.025,)
    with pytest.raises(UserError, match="'2,5' is not a number from 0 to 5"):
        examples('sentence,label\na,"2,5"\nb,2.5\n', **numbers)
