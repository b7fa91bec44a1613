"""Tables as spreadsheets and pandas write them are read right, and what a quotation mark swallows is counted."""

import csv
import gzip
import io
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onetrunk.protocol.errors import UserError
from onetrunk.tasks import Task, read_examples
from onetrunk.tasks.formats import read_records
from onetrunk.tasks.records import BrokenLine, Reading, Record

WANTED = {"text": ("sentence",), "label": "label"}
# Neither NUL, which Python 3.10 does not read from a table, nor half of a surrogate pair.
CELL = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tables")


def read(folder, name, content, reading=None):
    path = folder / name
    path.write_bytes(content)
    return list(read_records(path, reading))


def cells(records):
    assert not [record for record in records if isinstance(record, BrokenLine)]
    return [tuple(record.values.values()) for record in records]


@pytest.fixture
def examples(tmp_path):
    """Reads a file of the name and the bytes given as the data of a task with the labels ``bad`` and ``good``."""

    def run(name, content, skip_bad_rows=False, split="train", **changes):
        (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
        settings = {"labels": ("bad", "good"), "train": name, "dev": name, "folder": tmp_path, **changes}
        return read_examples(Task(name="mood", **settings), split, skip_bad_rows=skip_bad_rows)

    return run


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "A.CSV"])
def test_any_separator_is_found_in_the_header(folder, name, delimiter, end, mark):
    rows = [("id", "sentence", "label"), ("1", "a film", "good"), ("2", "so, so", "bad")]
    quoted = [[f'"{cell}"' if delimiter in cell else cell for cell in row] for row in rows]
    content = mark + "".join(delimiter.join(row) + end for row in quoted)
    reading = Reading(**WANTED)
    assert cells(read(folder, name, content.encode(), reading)) == rows[1:]
    usual = delimiter == {"a.tsv": "\t"}.get(name, ",")
    assert bool([note for note in reading.notes if "separated by" in note]) != usual


@pytest.mark.parametrize(
    ("header", "values"),
    [
        # Separators within names do not mislead: those count by which the wanted columns are there.
        ("id;sentence;price (EUR,net);label", {"id": "1", "sentence": "2", "price (EUR,net)": "3", "label": "4"}),
        ("sentence,label (a|b|c),label", {"sentence": "1", "label (a|b|c)": "2", "label": "3"}),
        ("SENTENCE; Label ", {"SENTENCE": "1", " Label ": "2"}),
    ],
)
def test_a_separator_within_a_name_is_none(folder, header, values):
    delimiter = ";" if ";" in header else ","
    content = f"{header}\n{delimiter.join(values.values())}\n"
    assert [record.values for record in read(folder, "a.csv", content.encode(), Reading(**WANTED))] == [values]


def test_the_separator_of_a_task_counts_before_any_other(examples):
    content = "sentence,label;x\na film,good;1\n"
    with pytest.raises(UserError, match=r"no column 'sentence' .*; there are: sentence,label, x"):
        examples("a.csv", content, delimiter=";")
    assert examples("a.csv", "sentence:label\na film:good\n", delimiter=":").texts == ("a film",)


def test_excels_line_about_the_separator_is_none_of_the_table(folder):
    records = read(folder, "a.csv", b"sep=;\r\nsentence;label\r\na film;good\r\n")
    assert records == [Record(3, {"sentence": "a film", "label": "good"})]
    # The quotation marks of a TSV are looked at first, without that line too.
    content = b'\r\nsep=;\r\nsentence;label;id\r\n"so; ""so""";good;1\r\nb;bad;2\r\n'
    records = read(folder, "a.tsv", content)
    assert [record.values["sentence"] for record in records] == ['so; "so"', "b"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
def test_unicode_text_of_excel_is_read(folder, encoding):
    mark = "" if encoding == "utf-16" else "\ufeff"
    content = f"{mark}sentence\tlabel\r\nein Füßchen 🎬\tgood\r\n".encode(encoding)
    assert cells(read(folder, "a.tsv", content)) == [("ein Füßchen 🎬", "good")]
    (folder / "a.csv.gz").write_bytes(gzip.compress(content))
    assert cells(list(read_records(folder / "a.csv.gz", Reading(**WANTED)))) == [("ein Füßchen 🎬", "good")]


def test_utf16_without_its_mark_is_proposed_and_read(examples):
    content = "sentence,label\na film,good\n".encode("utf-16-le")
    with pytest.raises(UserError, match='put encoding = "utf-16-le"'):
        examples("a.csv", content)
    assert examples("a.csv", content, encoding="utf-16-le").texts == ("a film",)


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.json", "a.conll"])
def test_the_encoding_that_fits_is_proposed_and_read(examples, name):
    text = {
        "a.csv": "sentence,label\nun café,good\n",
        "a.jsonl": '{"sentence": "un café", "label": "good"}\n',
        "a.json": '[{"sentence": "un café", "label": "good"}]',
        "a.conll": "un O\ncafé B-good\n",
    }[name]
    kind = {"kind": "tagging"} if name == "a.conll" else {}
    with pytest.raises(UserError) as error:
        examples(name, text.encode("cp1252"), **kind)
    assert "1 of 1 row cannot be used" in str(error.value)
    assert "café" in str(error.value)
    assert 'put encoding = "cp1252"' in str(error.value)
    assert examples(name, text.encode("cp1252"), encoding="cp1252", **kind).texts == ("un café",)
    # It tells the data apart: the same bytes may be other texts.
    hashes = {examples(name, text.encode("cp1252"), encoding=one, **kind).sha256 for one in ("cp1252", "latin-1")}
    assert len(hashes) == 2
    # A file that is UTF-8 would read otherwise than it is meant, and without a fault.
    for encoding in ("cp1252", "latin-1", "ascii"):
        with pytest.raises(
            UserError, match=f"is UTF-8, and in {encoding}, .*café.* would read .*: leave encoding out of it"
        ) as error:
            examples(name, text.encode(), encoding=encoding, **kind)
        assert "\n" not in str(error.value)
    assert examples(name, text.encode(), encoding="utf-8", **kind).texts == ("un café",)


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz"])
def test_ascii_is_in_every_encoding(examples, name):
    content = b"sentence,label\na film,good\n"
    content = gzip.compress(content) if name.endswith(".gz") else content
    assert examples(name, content, encoding="latin-1").texts == ("a film",)


def test_cp1252_is_proposed_only_where_it_fits(examples):
    with pytest.raises(UserError, match='put encoding = "latin-1"'):
        examples("a.csv", b"sentence,label\n\x81\xe9,good\n")
    with pytest.raises(UserError) as error:
        examples("a.csv", "größe,label\nx,good\n".encode("latin-1"))
    assert "header is not UTF-8" in str(error.value)
    assert 'encoding = "cp1252"' in str(error.value)
    with pytest.raises(UserError, match="not shift_jis"):
        examples("a.csv", b"sentence,label\n\x81\x20\xff,good\nb,good\n", encoding="shift_jis")


@pytest.mark.parametrize("encoding", ["klingon", "rot13", "base64", "idna", "unicode_escape", "undefined"])
def test_what_is_no_encoding_is_refused(encoding):
    with pytest.raises(ValueError, match="no such encoding"):
        Task(name="a", labels=("x", "y"), train="a", dev="b", encoding=encoding)


# Quotation marks.


def table(rows, faults, end="\n"):
    """A CSV of rows from line 2 on, of which some lines are replaced."""
    lines = ["sentence,label", *(f"text {line},good" for line in range(2, rows + 2))]
    for line, fault in faults.items():
        lines[line - 1] = fault
    return end.join(lines) + end


@pytest.mark.parametrize(
    ("faults", "lost"),
    [
        # It is never closed.
        ({6: '"a film,good'}, 27),
        # A quoted cell behind it closes it, and what follows is in doubt.
        ({6: '"a film,good', 20: '"so, so",bad'}, 27),
        ({6: '"a film,good', 20: 'he said "no" to it,bad'}, 27),
        # On one line, but open at its end.
        ({6: '"a film"x,"good'}, 27),
    ],
)
def test_rows_that_a_quotation_mark_swallows_are_counted_and_never_skipped(examples, faults, lost):
    content = table(32, faults)
    assert content.count("\n") == 33
    for skip in (False, True):
        with pytest.raises(UserError) as error:
            examples("a.csv", content, skip_bad_rows=skip)
        lines = str(error.value).splitlines()
        assert f"{lost + 1} of 32 rows cannot be used" in lines[0]
        assert lines[1].startswith(f"  broken line: {lost + 1}: line 6 (")
        assert f"{lost} lines" in lines[1]
        assert "fix the quotation mark" in lines[-1]


def test_few_rows_that_are_swallowed_may_be_skipped(examples):
    read = examples("a.csv", table(100, {99: '"a film,good'}), skip_bad_rows=True)
    assert (len(read), read.left_out) == (97, 3)
    assert read.notes[-2].startswith("left out 3 of 100 rows of ")
    with pytest.raises(UserError, match=r"7 of 100 rows cannot be used"):
        examples("a.csv", table(100, {95: '"a film,good'}), skip_bad_rows=True)


def test_a_fault_within_one_line_costs_that_line(examples):
    read = examples("a.csv", table(30, {6: '"a "good" film",good', 9: 'a "good" film,bad'}), skip_bad_rows=True)
    assert (len(read), read.left_out) == (29, 1)
    assert 'a "good" film' in read.texts


def test_no_row_is_read_from_within_a_long_quoted_cell(examples):
    # The csv module's own limit is 131,072 characters.
    inner = "invented row,good\n" * 10_000
    read = examples("a.csv", f'sentence,label\n"{inner}",bad\nthe last,good\n')
    assert read.texts == (inner, "the last")
    assert [note for note in read.notes if "10,001 lines" in note]
    broken = examples("a.csv", table(2000, {1990: '"x', 1999: 'y"z,good'}), skip_bad_rows=True)
    assert (len(broken), broken.texts[-1]) == (1988, "text 1989")


def test_a_cell_of_many_lines_is_noted(examples):
    content = table(30, {7: '"tis late,good', 21: '20",bad'})
    read = examples("a.csv", content)
    assert len(read) == 16
    [note] = [note for note in read.notes if "line breaks" in note]
    assert "1 row has" in note
    assert "15 lines" in note
    assert "line 7" in note


@pytest.mark.parametrize("quoting", [csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC])
@pytest.mark.parametrize(("name", "delimiter"), [("a.csv", ","), ("a.csv", ";"), ("a.csv", "|"), ("a.tsv", "\t")])
@settings(deadline=None, max_examples=30)
@given(rows=st.lists(st.tuples(CELL, CELL), min_size=1))
def test_what_csv_writes_comes_back(folder, name, delimiter, quoting, rows):
    stream = io.StringIO(newline="")
    # As pandas: a cell with any kind of line break is quoted.
    csv.writer(stream, delimiter=delimiter, quoting=quoting).writerows([("sentence", "label"), *rows])
    assert cells(read(folder, name, stream.getvalue().encode(), Reading(**WANTED))) == rows


def test_a_tsv_of_pandas_is_read_as_pandas_reads_it(folder):
    # pandas.DataFrame(...).to_csv(sep="\t", index=False)
    content = b'sentence\tlabel\n"He said ""The parcel..."""\tgood\nplain\tbad\n"a\nb\tc"\tgood\n'
    reading = Reading()
    texts = ['He said "The parcel..."', "plain", "a\nb\tc"]
    assert [text for text, _ in cells(read(folder, "a.tsv", content, reading))] == texts
    assert [note for note in reading.notes if "2 rows" in note and "quotes = false" in note]
    literal = Reading(quotes=False)
    assert cells(read(folder, "a.tsv", content, literal)[:1]) == [('"He said ""The parcel..."""', "good")]


def test_marks_of_a_tsv_that_are_not_those_of_csv_are_text(folder):
    rows = [('"quoted" and "', "1"), ('"Open', "0"), ('""', "1"), ('7" nail', "0"), ('"a ""b"" c"', "1")]
    content = "sentence\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in rows)
    reading = Reading()
    assert cells(read(folder, "a.tsv", content.encode(), reading)) == rows
    [note] = reading.notes
    assert "line 2" in note
    assert "quotes = true" in note
    forced = read(folder, "a.tsv", content.encode(), Reading(quotes=True))
    assert [type(record) for record in forced[:2]] == [BrokenLine, BrokenLine]


def test_marks_of_a_csv_may_be_text_where_the_task_says_so(examples):
    assert examples("a.csv", 'sentence,label\n"open,good\n', quotes=False).texts == ('"open',)


# Headers.


def test_a_table_without_a_header_is_asked_about_its_first_line(examples):
    with pytest.raises(UserError, match=r"names the column; is the first line of the table its header\?"):
        examples("a.csv", b"a film,good\nanother,bad\n")


def test_the_key_for_a_column_that_no_row_has_is_named(examples):
    for header, hint in (("text,label", ""), ("sentense,label", r" \(did you mean sentense\?\)")):
        there = header.replace(",", ", ")
        message = (
            f"/a.csv: no column 'sentence'{hint}; there are: {there}; text_field in the task file names the column$"
        )
        for skip_bad_rows in (False, True):
            with pytest.raises(UserError, match=message):
                examples("a.csv", f"{header}\na film,good\nanother,bad\n", skip_bad_rows=skip_bad_rows)
    with pytest.raises(UserError) as error:
        examples("a.jsonl", '{"sentence": "a", "label": "good"}\n{"sentence": "b"}\n')
    assert "label_field" not in str(error.value)


def test_columns_without_a_name_behind_the_last_are_left_out(examples):
    read = examples("a.csv", "sentence,label,,\na film,good,,\nanother,bad,,x\n")
    assert read.texts == ("a film", "another")
    assert "2 columns without a name" in read.notes[0]
    with pytest.raises(UserError, match="no column has a name"):
        examples("a.csv", ",,\na,b,c\n")


def test_columns_match_without_case_and_blanks(examples):
    assert examples("a.csv", "Sentence, Label\na film,good\n").targets == (1,)
    # The exact name is preferred, and two that are equally near are none.
    assert examples("a.csv", "SENTENCE,sentence,label\nno,yes,good\n").texts == ("yes",)
    with pytest.raises(UserError, match=r"no column 'sentence' .*; there are: SENTENCE, Sentence, label"):
        examples("a.csv", "SENTENCE,Sentence,label\nno,yes,good\n")


def test_a_share_of_the_rows_is_kept_for_dev(examples):
    rows = [f"text {number},{'good' if number % 3 else 'bad'}\n" for number in range(1000)]
    rows += ["Text  7,good\n", "TEXT 7,good\n"] * 20
    parts = {}
    for split in ("train", "dev"):
        parts[split] = examples("a.csv", "sentence,label\n" + "".join(rows), split=split, dev=0.2)
    train, dev = parts["train"], parts["dev"]
    assert len(train) + len(dev) == 1040
    assert 150 < len(set(dev.texts)) < 250
    # Texts that differ only in case and blanks are on one side.
    keys = [{text.casefold().replace("  ", " ") for text in part.texts} for part in (train, dev)]
    assert not keys[0] & keys[1]
    assert train.sha256 != dev.sha256
    # Which one a text is in depends on nothing else: not on its place, nor on other rows.
    fewer = examples("a.csv", "sentence,label\n" + "".join(reversed(rows[:300])), split="dev", dev=0.2)
    assert set(fewer.texts) == set(dev.texts) & {f"text {number}" for number in range(300)}
    # A larger share has all texts of a smaller one.
    more = examples("a.csv", "sentence,label\n" + "".join(rows), split="dev", dev=0.4)
    assert set(dev.texts) < set(more.texts)


def test_a_share_without_rows_is_refused_and_faults_are_told_once(examples):
    with pytest.raises(UserError, match=r"dev = 0.001 leaves no rows for dev"):
        examples("a.csv", "sentence,label\na film,good\n", split="dev", dev=0.001)
    content = "sentence,label\n" + "".join(f"text {number},good\n" for number in range(50)) + ",good\n"
    parts = [examples("a.csv", content, split=split, dev=0.3, skip_bad_rows=True) for split in ("train", "dev")]
    assert [part.left_out for part in parts] == [1, 0]
    assert sum(map(len, parts)) == 50


def test_the_same_text_with_two_labels_is_noted(examples):
    read = examples("a.csv", "sentence,label\na film,good\nplot,bad\na film,bad\na film,good\nplot,bad\n")
    assert [note for note in read.notes if "1 text occurs with different labels: lines 2 and 4" in note]


def test_many_absent_labels_are_one_short_note(examples):
    labels = tuple(f"label {number}" for number in range(3000))
    read = examples("a.csv", "sentence,label\na,label 7\n", labels=labels)
    assert len(read.notes[-1]) < 300
    assert "and 2,989 others" in read.notes[-1]


def test_json_lines_keep_their_hash(examples, tmp_path):
    rows = json.dumps({"sentence": "a film", "label": "good"})
    plain = examples("a.jsonl", rows)
    assert plain.sha256 == examples("a.jsonl", rows, delimiter=None).sha256
    assert plain.sha256 != examples("a.jsonl", rows, fold_labels=True).sha256
