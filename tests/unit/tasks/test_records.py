"""Data files line by line: what is whole is read as it is, and what is broken is reported with its line."""

import csv
import gzip
import io
import json
import sys
import types

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onetrunk.protocol.errors import UserError
from onetrunk.tasks.formats import read_hub, read_records
from onetrunk.tasks.records import BrokenLine, Record

# Any text that UTF-8 can hold.
TEXT = st.text(st.characters(exclude_categories=["Cs"]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("records")


def read(folder, name, content):
    path = folder / name
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return list(read_records(path))


@settings(deadline=None)
@given(rows=st.lists(st.dictionaries(TEXT, st.none() | st.booleans() | st.integers() | TEXT, max_size=3)))
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_any_json_rows_come_back(folder, rows, suffix):
    content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    assert read(folder, "a.jsonl" + suffix, content) == [Record(n, row) for n, row in enumerate(rows, start=1)]


@settings(deadline=None)
@given(rows=st.lists(st.tuples(TEXT, TEXT), min_size=1))
def test_any_csv_rows_come_back(folder, rows):
    stream = io.StringIO(newline="")
    # A NUL is no character of a CSV to Python 3.10; that it is reported there, and not dropped, is tested below.
    rows = [tuple(cell.replace("\0", "0") for cell in row) for row in rows]
    csv.writer(stream, quoting=csv.QUOTE_ALL).writerows([("text", "label"), *rows])
    records = read(folder, "a.csv", stream.getvalue().encode())
    assert [record.values for record in records] == [dict(zip(("text", "label"), row, strict=True)) for row in rows]


@settings(deadline=None)
@given(content=st.binary())
@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.tsv", "a.conll"])
def test_no_bytes_make_the_reader_fail_in_another_way(folder, name, content):
    try:
        records = read(folder, name, content)
    except UserError:
        return
    # The rows of a JSON array on one line have numbers of their own.
    most = sum(content.count(one) for one in (b"\n", b"\r", b","))
    assert all(1 <= record.line <= most + 1 for record in records)


def test_rows_of_an_array_on_one_line_are_numbered(folder):
    assert [record.line for record in read(folder, "a.jsonl", b"[0,0]")] == [1, 2]


@settings(deadline=None)
@given(content=st.binary(), cut=st.integers(1, 40))
def test_cut_off_gzip_is_refused(folder, content, cut):
    path = folder / "cut.jsonl.gz"
    whole = gzip.compress(content)
    path.write_bytes(whole[: -min(cut, len(whole) - 1)])
    with pytest.raises(UserError, match=r"cannot be read beyond line"):
        list(read_records(path))


def test_broken_json_lines_are_named_and_the_others_read(folder):
    deep = b"[" * 100_000
    lines = [b'{"a": 1}', b"", b"{", b"[1, 2]", b'{"a": "\xff"}', deep, b"1" * 5000, b'{"a": 2}']
    good = {1: {"a": 1}, 8: {"a": 2}}
    records = read(folder, "a.jsonl", b"\n".join(lines))
    assert {record.line: record.values for record in records if isinstance(record, Record)} == good
    broken = {record.line: record.why for record in records if isinstance(record, BrokenLine)}
    assert sorted(broken) == [3, 4, 5, 6, 7]
    assert broken[3].startswith("invalid JSON: Expecting property name")
    assert broken[4] == "not a JSON object: [1, 2]"
    assert broken[5] == "invalid UTF-8 at byte 8"


def test_broken_table_rows_are_named_and_the_others_read(folder):
    lines = [
        b"text,label",
        b"one,1",
        b'"two,\nlines",2',
        b"three",
        b"four,4,4",
        b"\xff,5",
        b'a"b"c"x,"6"x',
        b"",
        b"seven,7",
    ]
    records = read(folder, "a.csv", b"\r\n".join(lines))
    assert {r.line: r.values["text"] for r in records if isinstance(r, Record)} == {
        2: "one",
        3: "two,\nlines",
        10: "seven",
    }
    assert {r.line: r.why for r in records if isinstance(r, BrokenLine)} == {
        5: "1 column, but the header has 2",
        6: "3 columns, but the header has 2",
        7: "invalid UTF-8",
        8: "',' expected after '\"'",
    }


def test_quote_that_never_closes_is_reported(folder):
    records = read(folder, "a.csv", b'text,label\n"one,1\ntwo,2\n')
    assert records == [BrokenLine(2, records[0].why, swallowed=1)]


def test_nul_in_a_table_is_read_or_reported(folder):
    [record] = read(folder, "a.csv", b"text,label\na\0b,1\n")
    assert record == Record(2, {"text": "a\0b", "label": "1"}) or isinstance(record, BrokenLine)


def test_quotation_marks_of_a_tsv_are_text(folder):
    assert read(folder, "a.tsv", b'sentence\tlabel\n"quoted" and "\t1\n') == [
        Record(2, {"sentence": '"quoted" and "', "label": "1"})
    ]


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_byte_order_mark_is_no_text(folder, name):
    content = {"a.jsonl": '\ufeff{"text": "1"}', "a.csv": "\ufefftext\n1"}[name]
    [record] = read(folder, name, content.encode())
    assert record.values == {"text": "1"}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "a.xlsx",
            b"",
            r"not a known data format: save it as CSV UTF-8; allowed are .jsonl, .ndjson, .json, .csv, .tsv",
        ),
        ("a.txt.gz", b"", r"not a known data format: if it is a table"),
        ("empty.csv", b"", r"empty: the first line names the columns"),
        ("a.csv", b"text,text\n", r"names a column twice: text"),
        ("plain.jsonl.gz", None, r"cannot be read beyond line 0: Not a gzipped file"),
    ],
)
def test_files_that_are_no_data_are_refused(folder, name, content, message):
    path = folder / name
    path.write_bytes(content if content is not None else b"{}")
    with pytest.raises(UserError, match=message):
        list(read_records(path))


class HubData(list):
    features = types.MappingProxyType(
        {"sentence": object(), "label": types.SimpleNamespace(names=["unacceptable", "acceptable"])}
    )


@pytest.fixture
def hub(monkeypatch):
    asked = []
    names = types.SimpleNamespace(names=["film", "music"])

    def load_dataset(dataset, config, split):
        asked.append((dataset, config, split))
        if dataset == "none":
            raise ConnectionError("no route\nto the hub")
        if dataset == "topics":
            found = HubData([{"text": "a", "topics": [1, 0]}, {"text": "b", "topics": []}])
            found.features = {"text": object(), "topics": types.SimpleNamespace(feature=names)}
            return found
        return HubData([{"sentence": "a", "label": 1}, {"sentence": "b", "label": -1}])

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    return asked


def test_hub_labels_come_by_their_names(hub):
    assert list(read_hub("hub:glue/cola", "dev")) == [
        Record(1, {"sentence": "a", "label": "acceptable"}),
        Record(2, {"sentence": "b", "label": -1}),
    ]
    list(read_hub("hub:nyu-mll/glue/mnli#validation_matched", "dev"))
    list(read_hub("hub:glue/cola", "train"))
    assert hub == [
        ("glue", "cola", "validation"),
        ("nyu-mll/glue", "mnli", "validation_matched"),
        ("glue", "cola", "train"),
    ]


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("hub:", "give hub:DATASET/CONFIG"),
        ("hub:glue", "give hub:DATASET/CONFIG"),
        ("hub:a/b/c/d", "give hub:DATASET/CONFIG"),
        ("hub:none/x", "hub:none/x: the hub did not return it: no route$"),
    ],
)
def test_hub_errors_are_one_line(hub, address, message):
    with pytest.raises(UserError, match=message):
        list(read_hub(address, "train"))


def test_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"needs the package datasets: pip install .*\[hub\]"):
        list(read_hub("hub:glue/cola", "train"))


def test_a_hubs_lists_of_labels_come_by_their_names(hub):
    assert [record.values["topics"] for record in read_hub("hub:topics/default", "train")] == [["music", "film"], []]
