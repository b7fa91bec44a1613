"""Files of other tools: JSON arrays, annotation tools, CoNLL, Parquet, Arrow and folders of data sets."""

import json
import sys
import types

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onetrunk.protocol.errors import UserError
from onetrunk.tasks import Task, read_examples
from onetrunk.tasks.formats import arrow, json_rows, read_hub, read_records
from onetrunk.tasks.kinds import get_kind
from onetrunk.tasks.kinds.span_tags import bio_tags
from onetrunk.tasks.records import BrokenLine, Reading, Record
from onetrunk.tasks.task_file import locate

TYPES = ("PER", "ORG")
VALUE = st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists, max_leaves=4)
JSON_ROWS = st.lists(st.dictionaries(st.text(), VALUE, max_size=3), max_size=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("formats")


def read(folder, name, content, reading=None):
    (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return list(read_records(folder / name, reading))


def tagged(examples):
    names = bio_tags(TYPES)
    rows = zip(examples.texts, examples.targets, strict=True)
    return [[(text[start:end], names[tag]) for start, end, tag in words] for text, words in rows]


def tagging(folder, name, **changes):
    fields = {"text_field": "text", **changes}
    return read_examples(
        Task(name="a", kind="tagging", labels=TYPES, train=name, dev=name, folder=folder, **fields), "train"
    )


# JSON.


@settings(deadline=None)
@given(rows=JSON_ROWS, indent=st.sampled_from([None, 0, 2]), plain=st.booleans())
@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_an_array_of_objects_comes_back(folder, name, rows, indent, plain):
    content = json.dumps(rows, indent=indent, ensure_ascii=plain).encode("utf-8", "surrogatepass")
    records = read(folder, name, content)
    expected = json.loads(json.dumps(rows))
    if plain or not any("\\ud" in json.dumps(row) for row in rows):
        assert [record.values for record in records] == expected


@settings(deadline=None)
@given(rows=st.lists(st.dictionaries(st.text(max_size=9), st.text(max_size=9), max_size=3), max_size=9))
def test_an_array_is_read_in_pieces_of_any_size(folder, rows):
    # However the pieces fall, also within a number or an escape.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_rows, "_CHUNK", 3)
        records = read(folder, "a.json", json.dumps([*rows, 1234567, {"end": "\u20ac"}], indent=1))
    *objects, number, last = records
    assert [record.values for record in objects] == rows
    assert isinstance(number, BrokenLine)
    assert number.why == "not a JSON object: 1234567"
    assert last.values == {"end": "€"}


def test_objects_of_an_array_have_their_lines(folder):
    assert read(folder, "a.json", '\n[\n {"a": 1},\n {"a":\n 2}, {"a": 3},\n 7\n]\n') == [
        Record(3, {"a": 1}),
        Record(4, {"a": 2}),
        Record(5, {"a": 3}),
        BrokenLine(6, "not a JSON object: 7"),
    ]


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ('[{"a": 1},\n{"a": 2}', 2),
        ('[{"a": 1}\n{"a": 2}]', 2),
        ('[{"a": 1},\n\n{"a" 2}]', 3),
        ("[", 1),
        ('[{"a": 1},]', 1),
        ('[{"a": 1}]\n{"a": 2}', 2),
        ('[{"a": 1}]\n\n[{"a": 2}]', 3),
        ("[]]", 1),
    ],
)
def test_a_broken_array_is_refused_with_the_line(folder, content, line):
    with pytest.raises(UserError, match=rf"line {line}: ") as error:
        read(folder, "a.json", content)
    assert "\n" not in str(error.value)


def test_an_endless_object_of_an_array_is_not_held(folder, monkeypatch):
    monkeypatch.setattr(json_rows, "MAX_ROW_BYTES", 2**20)
    with pytest.raises(UserError, match="no object that ends within 1,048,576 characters"):
        read(folder, "a.json", '[{"a": "' + "x" * 2**23)


def test_one_object_over_many_lines_is_no_data(folder):
    with pytest.raises(UserError, match="allowed are an object a line, or one array of objects"):
        read(folder, "a.json", json.dumps({"data": [{"a": 1}]}, indent=2))
    assert read(folder, "a.json", '{"a": 1}\n{"a": 2}\n') == [Record(1, {"a": 1}), Record(2, {"a": 2})]


# Annotation tools.


def label_studio(text, results, **more):
    annotation = {"id": 1, "was_cancelled": False, "result": results}
    return {"id": 7, "data": {"text": text, "source": "mail"}, "annotations": [annotation], "predictions": [], **more}


def marked(text, start, end, label):
    value = {"start": start, "end": end, "text": text[start:end], "labels": [label]}
    return {"value": value, "id": "x", "from_name": "label", "to_name": "text", "type": "labels"}


def test_spans_of_label_studio_are_read(folder):
    text = "Ann works at Acme."
    rows = [
        label_studio(text, [marked(text, 0, 3, "PER"), marked(text, 13, 17, "ORG")]),
        label_studio("Nobody does.", []),
    ]
    (folder / "export.json").write_text(json.dumps(rows, indent=1))
    one = [("Ann", "B-PER"), ("works", "O"), ("at", "O"), ("Acme", "B-ORG"), (".", "O")]
    assert tagged(tagging(folder, "export.json")) == [one, [("Nobody", "O"), ("does", "O"), (".", "O")]]
    # The short form.
    spans = [result["value"] for result in rows[0]["annotations"][0]["result"]]
    (folder / "short.json").write_text(json.dumps([{"id": 7, "text": text, "label": spans}]))
    assert tagged(tagging(folder, "short.json")) == [one]


def test_choices_of_label_studio_are_read(folder):
    cancelled = label_studio("third", [])
    cancelled["annotations"] = [{"was_cancelled": True, "result": [chosen("bad")]}, {"result": [chosen("good")]}]
    skipped = {"id": 9, "data": {"text": "fourth"}, "annotations": []}
    rows = [label_studio("first", [chosen("good")]), label_studio("second", [chosen("bad")]), cancelled]
    (folder / "choices.json").write_text(json.dumps([*rows, skipped]))
    settings = {"train": "choices.json", "dev": "choices.json", "folder": folder, "text_field": "text"}
    task = Task(name="a", labels=("bad", "good"), label_field="mood", **settings)
    assert read_examples(task, "train", skip_bad_rows=True).targets == (1, 0, 1)
    with pytest.raises(UserError, match=r"missing field: 1: row 4 \(no 'mood'; there are: text\)"):
        read_examples(task, "train")
    several = [label_studio("first", [chosen("good", "R|B")]), label_studio("second", [])]
    # One choice alone is not taken for a cell with several labels, in the short form neither.
    several += [label_studio("third", [chosen("R|B")]), {"text": "fourth", "mood": {"choices": ["R|B"]}}]
    (folder / "choices.json").write_text(json.dumps(several))
    task = Task(name="a", kind="multilabel", labels=("R|B", "good"), label_field="mood", **settings)
    assert read_examples(task, "train").targets == ((0, 1), (), (0,), (0,))
    (folder / "choices.json").write_text(json.dumps([label_studio("first", [chosen("4")])]))
    task = Task(name="a", kind="regression", range=(0, 5), label_field="mood", **settings)
    assert read_examples(task, "train").targets == (0.8,)


def chosen(*choices, control="mood"):
    return {"value": {"choices": list(choices)}, "from_name": control, "to_name": "text", "type": "choices"}


def said_by(text, *people):
    return {"data": {"text": text}, "annotations": [{"result": results} for results in people]}


@pytest.mark.parametrize("kind", ["tagging", "multilabel", "classification"])
def test_an_export_without_the_control_of_the_task_is_refused_and_its_controls_named(folder, kind):
    rows = [label_studio("Ann works.", [marked("Ann works.", 0, 3, "PER"), chosen("good")]), label_studio("No.", [])]
    (folder / "other.json").write_text(json.dumps(rows))
    settings = {"labels": TYPES, "train": "other.json", "dev": "other.json", "folder": folder, "text_field": "text"}
    task = Task(name="a", kind=kind, label_field="ner", **settings)
    with pytest.raises(UserError, match=r"no text has anything from a control 'ner'; there are: label, mood: label_f"):
        read_examples(task, "train")
    # Of dev data it is told.
    dev = read_examples(task, "dev", skip_bad_rows=True) if kind != "classification" else None
    assert dev is None or "no text has anything from a control 'ner'; there are: label, mood" in dev.notes[0]
    # Without case it is that control.
    named = task.model_copy(update={"label_field": "LABEL", "kind": "tagging"})
    assert tagged(read_examples(named, "train"))[0][0] == ("Ann", "B-PER")


def test_a_control_may_be_named_as_the_text_in_another_case(folder):
    row = {"data": {"Mood": "a film"}, "annotations": [{"result": [chosen("good")]}]}
    (folder / "case.json").write_text(json.dumps([row]))
    settings = {"train": "case.json", "dev": "case.json", "folder": folder, "text_field": "Mood"}
    read = read_examples(Task(name="a", labels=("bad", "good"), label_field="mood", **settings), "train")
    assert (read.texts, read.targets) == (("a film",), (1,))


def test_choices_of_several_people_are_soft_labels(folder):
    def read_as(kind, *rows, **changes):
        (folder / "people.json").write_text(json.dumps(rows))
        settings = {"train": "people.json", "dev": "people.json", "folder": folder, "text_field": "text"}
        task = Task(name="a", kind=kind, label_field="mood", **{"labels": ("bad", "good"), **settings, **changes})
        read = read_examples(task, "train")
        return get_kind(kind).codec.targets(read.targets, task).tolist(), read.notes

    good, bad = [chosen("good")], [chosen("bad")]
    targets, notes = read_as("classification", said_by("a", good, bad, good, good), said_by("b", bad, []))
    assert targets == [[0.25, 0.75], [1.0, 0.0]]
    assert "1 of 2 rows have the labels of several annotators" in "".join(notes)
    # The vote of one who gave two choices is divided among them.
    targets, _ = read_as("classification", said_by("a", [chosen("good", "bad")], good), said_by("b", [chosen("bad")]))
    assert targets == [[0.25, 0.75], [1.0, 0.0]]
    # For several labels, whoever chose none has said that none holds.
    targets, _ = read_as("multilabel", said_by("a", [chosen("good", "bad")], good), said_by("b", bad, []))
    assert targets == [[0.5, 1.0], [0.5, 0.0]]
    stars = [[{"value": {"rating": number}, "from_name": "mood"}] for number in (3, 5)]
    targets, _ = read_as("regression", said_by("a", *stars), labels=None, range=(0, 5))
    assert targets == pytest.approx([0.8])


def test_of_one_person_the_last_annotation_counts(folder):
    def by(person, choice):
        return {"completed_by": person, "result": [chosen(choice)]}

    again = {"data": {"text": "a"}, "annotations": [by(1, "bad"), by({"id": 2}, "bad"), by({"id": 1}, "good")]}
    alone = {"data": {"text": "b"}, "annotations": [by(1, "bad"), by(1, "good")]}
    unknown = {"data": {"text": "c"}, "annotations": [by(None, "good"), by({}, "good"), by(0, "bad"), by(0, "good")]}
    (folder / "again.json").write_text(json.dumps([again, alone, unknown]))
    settings = {"train": "again.json", "dev": "again.json", "folder": folder, "text_field": "text"}
    task = Task(name="a", labels=("bad", "good"), label_field="mood", **settings)
    targets = get_kind(task.kind).codec.targets(read_examples(task, "train").targets, task)
    assert targets.tolist() == [[0.5, 0.5], [0.0, 1.0], [0.0, 1.0]]


def test_spans_of_several_people_are_those_of_the_first_and_it_is_told(folder):
    text = "Ann works."
    ann = [marked(text, 0, 3, "PER")]
    works = [marked(text, 4, 9, "ORG")]
    rows = [said_by(text, ann, works), said_by(text, [], ann), said_by(text, ann)]
    # Nothing that anybody marked is left out of these.
    rows += [said_by(text, ann, []), said_by(text, [], []), said_by(text, ann, ann)]
    (folder / "people.json").write_text(json.dumps(rows))
    read = tagging(folder, "people.json", text_field="text")
    assert [row[0][1] for row in tagged(read)] == ["B-PER", "O", "B-PER", "B-PER", "O", "B-PER"]
    assert "of 6 texts, several people marked 2: what the first one marked is read" in read.notes[0]


def test_exports_of_doccano_are_read(folder):
    text = "Ann works at Acme."
    one = [("Ann", "B-PER"), ("works", "O"), ("at", "O"), ("Acme", "B-ORG"), (".", "O")]
    rows = [{"id": 1, "text": text, "label": [[13, 17, "ORG"], [0, 3, "PER"]], "Comments": []}]
    (folder / "all.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert tagged(tagging(folder, "all.jsonl")) == [one]
    entities = [
        {"id": 4, "label": "PER", "start_offset": 0, "end_offset": 3},
        {"id": 5, "label": "ORG", "start_offset": 13, "end_offset": 17},
    ]
    (folder / "new.jsonl").write_text(json.dumps({"id": 1, "text": text, "entities": entities, "relations": []}))
    assert tagged(tagging(folder, "new.jsonl", label_field="entities")) == [one]
    (folder / "class.jsonl").write_text('{"id": 1, "text": "a film", "label": ["good"]}\n')
    task = Task(name="a", labels=("bad", "good"), train="class.jsonl", dev="b", folder=folder, text_field="text")
    assert read_examples(task, "train").targets == (1,)


# CoNLL.

CONLL = """\ufeff-DOCSTART- -X- -X- O

EU NNP B-NP I-ORG
rejects VBZ B-VP O
Ann NNP B-NP I-PER
Lee NNP I-NP I-PER

# id 7 domain=en
#\tB-ORG
x\tI-ORG


last O"""


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("name", ["a.conll", "A.BIO", "a.iob"])
def test_sentences_of_conll_are_read(folder, name, end):
    (folder / name).write_bytes(CONLL.replace("\n", end).replace("#\tB-ORG", "#\tI-ORG").encode())
    read = tagging(folder, name, text_field="words")
    assert tagged(read) == [
        [("EU", "B-ORG"), ("rejects", "O"), ("Ann", "B-PER"), ("Lee", "I-PER")],
        [("#", "B-ORG"), ("x", "I-ORG")],
        [("last", "O")],
    ]
    assert "IOB1" in read.notes[0]


def test_lines_of_conll_without_a_tag_are_named(folder):
    records = read(folder, "a.conll", "a O\n\nb O\nc\n\nd O\n")
    assert records == [
        Record(1, {"tokens": ["a"], "tags": ["O"]}),
        BrokenLine(3, "line 4 has no tag: 'c'"),
        Record(6, {"tokens": ["d"], "tags": ["O"]}),
    ]


def test_only_tabs_and_spaces_divide_the_columns_of_conll(folder):
    records = read(folder, "a.conll", "10\u00a0000\tCD\tB-ORG\nNew York\tNN\tI-ORG \n\n東\u3000京 NN O\n")
    assert records == [
        Record(1, {"tokens": ["10\u00a0000", "New York"], "tags": ["B-ORG", "I-ORG"]}),
        Record(4, {"tokens": ["東\u3000京"], "tags": ["O"]}),
    ]
    # What is no word is refused as in any other file, and nothing of it is lost.
    with pytest.raises(UserError, match=r"'10\\xa0000' as word 1: it is empty or contains a space"):
        tagging(folder, "a.conll", text_field="tokens")


CONLL_U = """# sent_id = 1
# text = Au fait, 2
1-2\tAu\t_\t_
1\tA\tADP\tO
2\tle\tDET\tO
2.1\t_\t_\t_
3\tfait\tNOUN\tB-ORG

# sent_id = 2
1\t2\tNUM\tO
"""


@pytest.mark.parametrize("separator", ["\t", "  "])
def test_a_column_that_counts_the_words_is_none_of_them(folder, separator):
    reading = Reading()
    assert read(folder, "a.conll", CONLL_U.replace("\t", separator), reading) == [
        Record(3, {"tokens": ["A", "le", "fait"], "tags": ["O", "O", "B-ORG"]}),
        Record(10, {"tokens": ["2"], "tags": ["O"]}),
    ]
    assert "counts the words" in reading.notes[0]


@pytest.mark.parametrize("content", ["1 CD O\n2 CD O\n\nOne NN O\n", "1 O\n2 O\n", "1 CD O\n"])
def test_words_that_are_numbers_are_words(folder, content):
    words = [record.values["tokens"] for record in read(folder, "a.conll", content)]
    assert words[0][0] == "1"


# Parquet, Arrow, folders.


@pytest.fixture
def stored(tmp_path):
    """A table with labels and tags as numbers, whose names are stored as ``datasets`` stores them."""
    pyarrow = pytest.importorskip("pyarrow")
    named = {"names": ["bad", "good"], "_type": "ClassLabel"}
    tags = {"feature": {"names": list(bio_tags(TYPES)), "_type": "ClassLabel"}, "_type": "List"}
    features = {"sentence": {"dtype": "string", "_type": "Value"}, "label": named, "ner_tags": tags}
    rows = {
        "sentence": ["a film", "Ann Lee", "no label"],
        "label": [1, 0, -1],
        "ner_tags": [[0, 3], [1, 2], [0, 0]],
        "other": [1.5, None, 2.5],
    }
    table = pyarrow.table(rows)
    metadata = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    return table.replace_schema_metadata(metadata), features, tmp_path


def test_names_of_labels_are_those_stored_in_parquet(stored):
    from pyarrow import parquet

    table, _, place = stored
    parquet.write_table(table, place / "a.parquet", row_group_size=2)
    first, second, third = read_records(place / "a.parquet")
    assert first == Record(1, {"sentence": "a film", "label": "good", "ner_tags": ["O", "B-ORG"], "other": 1.5})
    assert (second.values["label"], second.values["ner_tags"]) == ("bad", ["B-PER", "I-PER"])
    assert (third.line, third.values["label"]) == (3, -1)
    wanted = Reading(text=("sentence",), label="label")
    assert [set(record.values) for record in read_records(place / "a.parquet", wanted)] == [{"sentence", "label"}] * 3
    assert tagged(tagging(place, "a.parquet", text_field="sentence", label_field="ner_tags"))[1] == [
        ("Ann", "B-PER"),
        ("Lee", "I-PER"),
    ]
    # Columns are found without case here too.
    read = tagging(place, "a.parquet", text_field="Sentence", label_field="NER_tags")
    assert len(read) == 3


def test_rows_of_parquet_are_counted_by_rows(stored):
    from pyarrow import parquet

    table, _, place = stored
    parquet.write_table(table, place / "a.parquet")
    task = Task(name="a", labels=("bad", "good"), train="a.parquet", dev="a.parquet", folder=place)
    with pytest.raises(UserError, match=r"bad label: 1: row 3 \("):
        read_examples(task, "train")


@pytest.mark.parametrize("name", ["a.arrow", "a.feather"])
@pytest.mark.parametrize("form", ["new_file", "new_stream"])
def test_both_forms_of_arrow_are_read(stored, name, form):
    from pyarrow import ipc

    table, _, place = stored
    with (place / name).open("wb") as stream, getattr(ipc, form)(stream, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    records = list(read_records(place / name))
    assert [record.line for record in records] == [1, 2, 3]
    assert [record.values["label"] for record in records] == ["good", "bad", -1]


def save(folder, table, features, files=2):
    """Writes what ``datasets.save_to_disk`` writes, as far as it is read."""
    from pyarrow import ipc

    folder.mkdir(parents=True)
    names = [f"data-{number:05}-of-{files:05}.arrow" for number in range(files)]
    for number, name in enumerate(names):
        part = table.replace_schema_metadata(None).slice(2 * number, 2)
        with (folder / name).open("wb") as stream, ipc.new_stream(stream, part.schema) as writer:
            writer.write_table(part)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    (folder / "dataset_info.json").write_text(json.dumps({"features": features}))


def test_a_folder_of_save_to_disk_is_read(stored):
    table, features, place = stored
    save(place / "plain", table, features)
    records = list(read_records(place / "plain"))
    assert [record.line for record in records] == [1, 2, 3]
    assert [record.values["label"] for record in records] == ["good", "bad", -1]
    task = Task(name="a", labels=("bad", "good"), train="plain", dev=0.9, folder=place)
    assert locate(task, "train") == locate(task, "dev") == place / "plain"
    parts = [read_examples(task, split, skip_bad_rows=True) for split in ("train", "dev")]
    assert sum(map(len, parts)) == 2


def test_a_folder_with_splits_has_the_one_that_is_asked_for(stored):
    table, features, place = stored
    for split, rows in (("train", 2), ("validation", 1), ("test", 2)):
        save(place / "whole" / split, table.slice(0, rows), features, files=1)
    (place / "whole" / "dataset_dict.json").write_text('{"splits": ["train", "validation", "test"]}')
    task = Task(name="a", labels=("bad", "good"), train="whole", dev="whole", folder=place)
    assert [len(read_examples(task, split)) for split in ("train", "dev")] == [2, 1]
    tested = task.model_copy(update={"dev": "whole/test"})
    assert len(read_examples(tested, "dev")) == 2
    (place / "whole" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    with pytest.raises(UserError, match=r"no split for dev; there are train, test: name one, as in whole/train"):
        read_examples(task, "dev")


@pytest.mark.hostile
def test_a_folder_that_leads_out_of_itself_is_refused(stored):
    table, features, place = stored
    save(place / "folder", table, features)
    save(place / "secret", table, features)
    for name in ("../secret/data-00000-of-00002.arrow", str(place / "secret" / "data-00000-of-00002.arrow")):
        (place / "folder" / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))
        with pytest.raises(UserError, match="leads out of"):
            list(read_records(place / "folder"))
    (place / "folder" / "dataset_dict.json").write_text('{"splits": ["train"]}')
    (place / "folder" / "train").symlink_to(place / "secret")
    with pytest.raises(UserError, match="leads out of"):
        list(read_records(place / "folder"))


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("data-00001-of-00002.arrow", "state.json names the file 'data-00001-of-00002.arrow', and it is missing: copy"),
        ("dataset_info.json", "and dataset_info.json is missing"),
        ("state.json", "and state.json is missing"),
    ],
)
def test_a_folder_without_one_of_its_files_is_refused_in_one_line(stored, name, why):
    table, features, place = stored
    save(place / "plain", table, features)
    (place / "plain" / name).unlink()
    task = Task(name="a", labels=("bad", "good"), train="plain", dev=0.5, folder=place)
    with pytest.raises(UserError, match=why) as error:
        read_examples(task, "train")
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=why):
        list(read_records(place / "plain"))


@pytest.mark.hostile
@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_what_is_no_arrow_is_refused_in_one_line(tmp_path, name):
    pytest.importorskip("pyarrow")
    for content in (b"", b"PAR1", b"\0" * 100, b"ARROW1" + b"\xff" * 64):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match="cannot be read as") as error:
            list(read_records(tmp_path / name))
        assert "\n" not in str(error.value)


def test_a_folder_that_is_no_data_set_is_named(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.csv").touch()
    task = Task(name="a", labels=("x", "y"), train="data", dev=0.5, folder=tmp_path)
    with pytest.raises(UserError, match=r"data: a folder is read if datasets.save_to_disk wrote it"):
        read_examples(task, "train")
    # It is not in the way of a file that is found later.
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "data").touch()
    assert locate(task, "train") == tmp_path / "shared" / "data"


@pytest.mark.parametrize(
    ("name", "package"), [("a.parquet", "pyarrow"), ("a.arrow", "pyarrow"), ("hub:a/b", "datasets")]
)
def test_a_package_that_is_not_there_is_told_from_a_broken_one(folder, monkeypatch, name, package):
    def read_it():
        return list(read_hub(name, "train")) if name.startswith("hub:") else read(folder, name, b"")

    for module in ("pyarrow", "datasets"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=rf"needs the package {package}: pip install 'onetrunk\[hub\]'"):
        read_it()

    def broken(module):
        raise ImportError(f"{package} requires NumPy 2.0 or newer, found 1.26.4\nand more")

    monkeypatch.setattr(arrow, "importlib", types.SimpleNamespace(import_module=broken))
    with pytest.raises(UserError) as error:
        read_it()
    assert f"{package} is installed, but cannot be imported: {package} requires NumPy 2.0" in str(error.value)
    assert "\n" not in str(error.value)

    def without(module):
        raise ModuleNotFoundError("No module named 'xxhash'", name="xxhash")

    monkeypatch.setattr(arrow, "importlib", types.SimpleNamespace(import_module=without))
    with pytest.raises(UserError, match="cannot be imported: No module named 'xxhash'"):
        read_it()


def test_a_hubs_tags_come_by_their_names(monkeypatch):
    names = types.SimpleNamespace(names=list(bio_tags(TYPES)))
    for feature in (types.SimpleNamespace(feature=names), [names]):

        class Data(list):
            features = types.MappingProxyType({"tokens": [object()], "ner_tags": feature})

        rows = Data([{"tokens": ["Ann", "Lee"], "ner_tags": [1, 2]}])
        datasets = types.ModuleType("datasets")
        datasets.load_dataset = lambda *where, rows=rows, **which: rows
        monkeypatch.setitem(sys.modules, "datasets", datasets)
        assert [row.values["ner_tags"] for row in read_hub("hub:a/b", "train")] == [["B-PER", "I-PER"]]
