"""Data files line by line: JSON lines, CSV and TSV, plain or gzip-compressed. A broken line is told, not dropped."""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from onetrunk.protocol.errors import UserError


@dataclass(frozen=True)
class Record:
    """A row of a data file.

    Attributes:
        line: the line it begins on, from 1; of a hub's data set, the row.
        values: field or column -> value.
    """

    line: int
    values: dict[str, object]


@dataclass(frozen=True)
class BrokenLine:
    """A row that cannot be read.

    Attributes:
        line: the line it begins on, from 1.
        why: what is wrong with it.
    """

    line: int
    why: str


Records = Iterator["Record | BrokenLine"]


def read_records(path: Path) -> Records:
    """The rows of a data file, in its order; its form is told by its name.

    CSV is quoted as in RFC 4180; in TSV, as in GLUE's own files, a quotation mark is a character like any other. Both
    begin with a header. Blank lines are no rows.

    Raises:
        UserError: the name ends in none of the known ways, the file cannot be read to its end, or it has no header.
    """
    form = path.name.removesuffix(".gz")
    reader = next((reader for suffix, reader in _READERS.items() if form.endswith(suffix)), None)
    if reader is None:
        raise UserError(f"{path}: not a known form of data; known are {', '.join(_READERS)}, each also with .gz")
    line = 0
    try:
        with gzip.open(path) if path.name.endswith(".gz") else path.open("rb") as stream:
            for record in reader(cast(BinaryIO, stream), path):
                line = record.line
                yield record
    except (OSError, EOFError, zlib.error) as error:
        # A cut-off file is no matter of one bad row: whatever came after line so-and-so is unknown.
        raise UserError(f"{path}: cannot be read beyond line {line}: {error}") from error


def _json_lines(stream: BinaryIO, path: Path) -> Records:
    for number, raw in enumerate(stream, start=1):
        if not raw.strip():
            continue
        try:
            values = json.loads(raw.decode("utf-8-sig" if number == 1 else "utf-8"))
        except UnicodeDecodeError as error:
            yield BrokenLine(number, f"invalid UTF-8 at byte {error.start + 1}")
        except json.JSONDecodeError as error:
            yield BrokenLine(number, f"invalid JSON: {error.msg} at character {error.pos + 1}")
        except (ValueError, RecursionError) as error:  # a number of thousands of digits, brackets without end
            yield BrokenLine(number, f"invalid JSON: {error}")
        else:
            if isinstance(values, dict):
                yield Record(number, values)
            else:
                yield BrokenLine(number, f"holds no JSON object but {json.dumps(values):.40}")


def _comma_separated(stream: BinaryIO, path: Path) -> Records:
    text = _decoded(stream)
    # Strict: a quotation mark out of place is told instead of being guessed about.
    return _table(csv.reader(text, strict=True), path)


def _tab_separated(stream: BinaryIO, path: Path) -> Records:
    text = _decoded(stream)
    return _table(csv.reader(text, delimiter="\t", quoting=csv.QUOTE_NONE), path)


def _decoded(stream: BinaryIO) -> io.TextIOWrapper:
    # Bytes that are not UTF-8 become lone surrogates, by which the row they are in is known later.
    return io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")


def _table(reader: Any, path: Path) -> Records:
    header: list[str] | None = None
    while True:
        line = reader.line_num + 1
        try:
            row = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            yield BrokenLine(line, str(error))
            continue
        if not row:
            continue
        if header is None:
            header = _checked_header(row, path)
        elif any(is_not_utf8(cell) for cell in row):
            yield BrokenLine(line, "invalid UTF-8")
        elif len(row) != len(header):
            yield BrokenLine(line, f"{len(row)} columns, but the header has {len(header)}")
        else:
            yield Record(line, dict(zip(header, row, strict=True)))
    if header is None:
        raise UserError(f"{path}: empty: the first line names the columns")


def _checked_header(row: list[str], path: Path) -> list[str]:
    twice = sorted({name for name in row if row.count(name) > 1})
    if twice:
        raise UserError(f"{path}: the header names a column twice: {', '.join(twice)}")
    return row


def is_not_utf8(text: str) -> bool:
    """Whether a text has a lone surrogate in it, which no UTF-8 can hold and no tokenizer takes."""
    return any("\ud800" <= character <= "\udfff" for character in text) if not text.isascii() else False


_READERS: dict[str, Callable[[BinaryIO, Path], Records]] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".csv": _comma_separated,
    ".tsv": _tab_separated,
}
