"""Data files that unpack to far more than they are, or have no line breaks, are refused before they fill the memory."""

import gzip
import os
import tracemalloc

import pytest

from onetrunk.protocol.errors import UserError
from onetrunk.repository.length_sample import _plain_lines
from onetrunk.tasks import data_file
from onetrunk.tasks.formats import read_records, tables

pytestmark = [pytest.mark.hostile, pytest.mark.timeout(60)]

MIB = 2**20


def bomb(path, line, mib):
    """Writes a file that unpacks to this many MiB of one line, with its header."""
    block = line * (MIB // len(line))
    with gzip.open(path, "wb", compresslevel=1) as stream:
        stream.write(b"text,label\n")
        for _ in range(mib):
            stream.write(block)
    return path


def peak_of(call):
    tracemalloc.start()
    try:
        with pytest.raises(UserError) as raised:
            call()
        assert "\n" not in str(raised.value)
        return str(raised.value), tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def drain(rows):
    for _ in rows:
        pass


@pytest.mark.parametrize("name", ["a.csv.gz", "a.tsv.gz", "a.jsonl.gz", "a.txt.gz"])
def test_a_file_of_one_endless_line_is_not_held(tmp_path, name):
    path = bomb(tmp_path / name, b"x" * 1024, 64)
    read = _plain_lines if ".txt" in name else read_records
    message, peak = peak_of(lambda: drain(read(path)))
    assert "has more than 16,777,216 bytes" in message
    assert peak < 128 * MIB


def test_a_row_of_many_lines_is_bounded_as_a_whole(tmp_path, monkeypatch):
    # Lowered, as tracing the memory of millions of cells takes seconds.
    monkeypatch.setattr(tables, "MAX_ROW_BYTES", MIB)
    path = tmp_path / "a.csv"
    path.write_bytes(b"text,label\n" + b'"a\n",' * MIB)
    message, peak = peak_of(lambda: drain(read_records(path)))
    assert "the row on line 2 has more than" in message
    assert peak < 64 * MIB


@pytest.mark.parametrize("name", ["a.csv.gz", "a.jsonl.gz", "a.txt.gz"])
def test_a_file_of_endless_short_rows_ends(tmp_path, monkeypatch, name):
    # The bound is lowered, so that the test needs no hundreds of megabytes.
    monkeypatch.setattr(data_file, "_EXPANSION_BYTES", 4 * MIB)
    path = bomb(tmp_path / name, b"a,b\n", 8)
    read = _plain_lines if ".txt" in name else read_records
    message, _ = peak_of(lambda: drain(read(path)))
    assert "unpacks to rows that take more than" in message
    assert "name it without .gz" in message


def test_an_array_of_endless_rows_on_one_line_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(data_file, "_EXPANSION_BYTES", 4 * MIB)
    path = tmp_path / "a.json.gz"
    with gzip.open(path, "wb", compresslevel=1) as stream:
        stream.write(b"[" + b'{"a":1},' * (MIB // 4) + b"{}]")
    message, _ = peak_of(lambda: drain(read_records(path)))
    assert "unpacks to rows that take more than" in message


@pytest.mark.parametrize("form", ["parquet", "arrow"])
def test_rows_that_share_one_huge_text_are_not_unpacked(tmp_path, monkeypatch, form):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import ipc, parquet

    monkeypatch.setattr(data_file, "_EXPANSION_BYTES", 4 * MIB)
    shared = pyarrow.array(["x" * MIB]).take(pyarrow.array([0]))
    column = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 4096, pyarrow.int32()), shared)
    table, path = pyarrow.table({"text": column, "label": pyarrow.array([1] * 4096)}), tmp_path / f"a.{form}"
    if form == "parquet":
        parquet.write_table(table, path, compression="zstd")
    else:
        with ipc.new_file(path, table.schema, options=ipc.IpcWriteOptions(compression="zstd")) as writer:
            writer.write_table(table)
    assert path.stat().st_size < MIB
    message, peak = peak_of(lambda: drain(read_records(path)))
    assert "unpacks to rows that take more than" in message
    assert "save them as CSV" in message
    assert peak < 64 * MIB


def test_what_takes_too_much_memory_to_unpack_is_refused(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import ipc

    # The buffer says how long it is unpacked, and is unpacked as a whole.
    table, path = pyarrow.table({"text": pyarrow.array(["x" * MIB])}), tmp_path / "a.arrow"
    with ipc.new_file(path, table.schema, options=ipc.IpcWriteOptions(compression="zstd")) as writer:
        writer.write_table(table)
    content, frame = path.read_bytes(), bytes.fromhex("28b52ffd")
    stored, claimed = (size.to_bytes(8, "little") + frame for size in (MIB, 2**40))
    assert content.count(stored) == 1
    path.write_bytes(content.replace(stored, claimed))
    message, peak = peak_of(lambda: drain(read_records(path)))
    assert "cannot be read as Arrow: it takes more than 4.0 GiB of memory" in message
    assert peak < 64 * MIB


def test_a_repetitive_file_of_usual_size_is_read(tmp_path):
    path = bomb(tmp_path / "a.csv.gz", b"a text that repeats,yes\n", 8)
    assert sum(1 for _ in read_records(path)) == 8 * (MIB // 24)


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz", "a.jsonl"])
def test_a_fifo_is_no_data_file(tmp_path, name):
    os.mkfifo(tmp_path / name)
    message, _ = peak_of(lambda: drain(read_records(tmp_path / name)))
    assert "found a FIFO" in message
