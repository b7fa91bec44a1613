"""Files of texts without labels: formats, columns, and what is told about rows that cannot be used."""

import gzip
import json

import pytest

from onetrunk.protocol.errors import UserError
from onetrunk.tasks import Task
from onetrunk.tasks.text_file import read_texts, read_texts_for


def write(path, text):
    path.write_bytes(gzip.compress(text.encode()) if path.name.endswith(".gz") else text.encode())
    return path


@pytest.mark.parametrize("name", ["t.txt", "t.txt.gz", "T.TXT"])
def test_a_text_a_line(tmp_path, name):
    found = read_texts(write(tmp_path / name, "\ufeffa film\n\n music \r\na film\n"))
    assert found.texts == ("a film", "music")
    assert (found.form, found.fields) == ("single", ())
    assert "1 of 3 texts occur more than once" in found.notes[0]


@pytest.mark.parametrize(
    ("name", "content", "form", "texts"),
    [
        ("t.csv", "id,Text\n1,a film\n2,music\n", "single", ("a film", "music")),
        ("t.tsv", "question1\tquestion2\na\tb\n", "pair", (("a", "b"),)),
        ("t.jsonl", json.dumps({"sentence": "a", "label": "x"}) + "\n", "single", ("a",)),
        ("t.jsonl", json.dumps({"message": "the only column"}) + "\n", "single", ("the only column",)),
        ("t.json", json.dumps([{"tokens": ["a", "film"]}]), "single", ("a film",)),
    ],
)
def test_columns_that_are_usual_are_found(tmp_path, name, content, form, texts):
    found = read_texts(write(tmp_path / name, content))
    assert (found.form, found.texts) == (form, texts)


def test_columns_by_name(tmp_path):
    path = write(tmp_path / "t.csv", "text,message,answer\nx,a,b\n")
    assert read_texts(path, text_field="message").texts == ("a",)
    assert read_texts(path, text_field="message", pair_field="answer").texts == (("a", "b"),)
    pairs = write(tmp_path / "p.csv", "sentence1,sentence2\na,b\n")
    assert read_texts(pairs, form="single").texts == ("a",)


def test_parquet(tmp_path):
    pandas = pytest.importorskip("pyarrow.parquet")
    import pyarrow

    pandas.write_table(pyarrow.table({"text": ["a", "b"]}), tmp_path / "t.parquet")
    assert read_texts(tmp_path / "t.parquet").texts == ("a", "b")


@pytest.mark.parametrize(
    ("name", "content", "options", "message"),
    [
        ("t.txt", "", {}, "it has no text: give a file with one text a line"),
        ("t.csv", "text\n", {}, "it has no text"),
        ("t.txt", "a\n", {"form": "pair"}, "a file of lines has no pairs"),
        ("t.csv", "id,body\n1,a\n", {}, "which column has the texts. there are: id, body: name it by --text-field"),
        ("t.csv", "id,text\n1,a\n", {"form": "pair"}, "which column has the second texts"),
        (
            "t.csv",
            "id,text\n1,a\n",
            {"text_field": "txt"},
            r"'txt' \(did you mean text\?\); there are: id, text",
        ),
        ("t.jsonl", '{"text": 3}\n{"text": "a"}\n', {}, "1 of 2 rows cannot be used"),
        ("t.xlsx", "x", {}, "save it as CSV UTF-8"),
    ],
)
def test_what_cannot_be_read_is_told(tmp_path, name, content, options, message):
    with pytest.raises(UserError, match=message):
        read_texts(write(tmp_path / name, content), **options)


def test_a_file_that_is_not_there(tmp_path):
    for name in ("t.txt", "t.csv", "t.parquet"):
        with pytest.raises(UserError, match=r"t\.(txt|csv|parquet): "):
            read_texts(tmp_path / name)


@pytest.mark.hostile
def test_rows_that_cannot_be_used_are_counted(tmp_path):
    path = tmp_path / "t.txt"
    path.write_bytes(b"a film\n\xff\xfe\xfd\n\xe2\x80\x8b\xef\xbf\xbd\nmusic\n")
    with pytest.raises(
        UserError, match=r"2 of 4 rows cannot be used:(.|\n)*line 2 \(invalid UTF-8\)(.|\n)*--skip-bad-rows"
    ):
        read_texts(path)
    found = read_texts(path, skip_bad_rows=True)
    assert found.texts == ("a film", "music")
    assert found.notes[0].startswith("left out")


@pytest.mark.parametrize("options", [{}, {"skip_bad_rows": True}])
def test_a_quotation_mark_that_is_never_closed_takes_few_rows_at_most(tmp_path, options):
    good, rest = [f"text {one}" for one in range(10)], [f"row {one}" for one in range(300)]
    path = write(tmp_path / "t.csv", "\n".join(["text", *good, '"never closed', *rest]) + "\n")
    with pytest.raises(UserError, match=r"301 of 311 rows cannot be used:(.|\n)*fix the quotation mark"):
        read_texts(path, **options)
    few = write(tmp_path / "few.csv", "\n".join(["text", *rest, '"never closed', *good]) + "\n")
    assert len(read_texts(few, skip_bad_rows=True).texts) == 300


def task(**keys):
    return Task(name="one", labels=("a", "b"), train="", dev=0.2, **keys)


def test_texts_for_a_task_are_read_as_its_data_are(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes("id;text;verbatim\n1;x;Käse\n".encode("latin-1"))
    found = read_texts_for(task(text_field="verbatim", encoding="latin-1"), path)
    assert (found.fields, found.texts) == (("verbatim",), ("Käse",))
    assert read_texts_for(task(text_field="gone", encoding="latin-1"), path).texts == ("x",)
    (tmp_path / "t.txt").write_bytes("Käse\n".encode("latin-1"))
    assert read_texts_for(task(encoding="latin-1"), tmp_path / "t.txt").texts == ("Käse",)


@pytest.mark.parametrize(("form", "key"), [("single", "text_field"), ("pair", "text_pair_field")])
def test_a_task_names_its_columns_by_keys(tmp_path, form, key):
    columns = "id,body" if form == "single" else "text,body"
    path = write(tmp_path / "t.csv", f"{columns}\n1,a\n")
    with pytest.raises(UserError, match=f"there are: {columns.replace(',', ', ')}: name it by {key} in the task file"):
        read_texts_for(task(form=form), path)


@pytest.mark.parametrize("name", ["t.txt", "t.csv"])
def test_an_encoding_is_proposed(tmp_path, name):
    path = tmp_path / name
    path.write_bytes("text\nKäse\n".encode("latin-1"))
    remedy = 'put encoding = "cp1252" into the task file, or convert the file: iconv -f cp1252 -t utf-8'
    with pytest.raises(UserError, match=f"in cp1252 they read 'Käse': if that is right, {remedy}"):
        read_texts(path)
