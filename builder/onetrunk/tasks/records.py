"""Rows of data: JSON lines, CSV and TSV, plain or gzip-compressed, and data sets of a Hugging Face hub.

A row that cannot be read is reported, never dropped silently: ``RowErrors`` counts them by kind.
"""

from __future__ import annotations

import csv
import io
import json
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

from onetrunk.protocol.errors import UserError
from onetrunk.tasks.data_file import MAX_ROW_BYTES, open_data, row_lines, row_too_long

Split = Literal["train", "dev"]
HUB_PREFIX = "hub:"


@dataclass(frozen=True)
class Record:
    """A row of a data file.

    Attributes:
        line: The line on which it begins, from 1; for a hub's data set, the row.
        values: Field or column -> value.
    """

    line: int
    values: dict[str, object]


@dataclass(frozen=True)
class BrokenLine:
    """A row that cannot be read.

    Attributes:
        line: The line on which it begins, from 1.
        why: What is wrong with it.
    """

    line: int
    why: str


Records = Iterator["Record | BrokenLine"]


def read_records(path: Path) -> Records:
    """Yield the rows of a data file, whose format follows from its name.

    CSV is quoted as in RFC 4180. In TSV a quotation mark is a character like any other, as in GLUE's own files. Both
    begin with a header. Blank lines are skipped.

    Raises:
        UserError: The format is unknown, the file cannot be read to its end, it has no header, or a row or what a .gz
            unpacks to is larger than any data.
    """
    name = path.name.removesuffix(".gz")
    reader = next((reader for suffix, reader in _READERS.items() if name.endswith(suffix)), None)
    if reader is None:
        raise UserError(f"{path}: not a known data format; allowed are {', '.join(_READERS)}, each also with .gz")
    line = 0
    try:
        with open_data(path) as stream:
            for record in reader(stream, path):
                line = record.line
                yield record
    except (OSError, EOFError, zlib.error) as error:
        # A truncated file is not one bad row: whatever came after this line is unknown.
        raise UserError(f"{path}: cannot be read beyond line {line}: {error}") from error


def _json_lines(stream: BinaryIO, path: Path) -> Records:
    for number, raw in enumerate(row_lines(stream, path), start=1):
        if not raw.strip():
            continue
        try:
            values = json.loads(raw.decode("utf-8-sig" if number == 1 else "utf-8"))
        except UnicodeDecodeError as error:
            yield BrokenLine(number, f"invalid UTF-8 at byte {error.start + 1}")
        except json.JSONDecodeError as error:
            yield BrokenLine(number, f"invalid JSON: {error.msg} at character {error.pos + 1}")
        except (ValueError, RecursionError) as error:  # a number of thousands of digits, or endless brackets
            yield BrokenLine(number, f"invalid JSON: {error}")
        else:
            if isinstance(values, dict):
                yield Record(number, values)
            else:
                yield BrokenLine(number, f"not a JSON object: {json.dumps(values):.40}")


def _comma_separated(stream: BinaryIO, path: Path) -> Records:
    lines = _TextLines(stream, path)
    # Strict: a misplaced quotation mark is reported instead of guessed about.
    return _table(csv.reader(lines, strict=True), lines)


def _tab_separated(stream: BinaryIO, path: Path) -> Records:
    lines = _TextLines(stream, path)
    return _table(csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE), lines)


class _TextLines:
    """The lines of a table, which may end in CR too. A row may have several; what they have together is bounded.

    Attributes:
        path: The file, for messages.
        row_start: The line on which the row begins, from 1. Whoever reads a row sets it first, by ``begin_row``.
    """

    def __init__(self, stream: BinaryIO, path: Path) -> None:
        # Bytes that are not UTF-8 become lone surrogates, so that the row that contains them can be named.
        self._text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")
        self._left = MAX_ROW_BYTES
        self.path = path
        self.row_start = 1

    def begin_row(self, line: int) -> None:
        """Note that a row begins."""
        self._left, self.row_start = MAX_ROW_BYTES, line

    def __iter__(self) -> _TextLines:
        return self

    def __next__(self) -> str:
        line = self._text.readline(self._left + 1)
        self._left -= len(line)
        if self._left < 0:
            raise row_too_long(self.path, self.row_start)
        if not line:
            raise StopIteration
        return line


def _table(reader: Any, lines: _TextLines) -> Records:
    header: list[str] | None = None
    while True:
        line = reader.line_num + 1
        lines.begin_row(line)
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
            header = _checked_header(row, lines.path)
        elif any(is_not_utf8(cell) for cell in row):
            yield BrokenLine(line, "invalid UTF-8")
        elif len(row) != len(header):
            yield BrokenLine(line, f"{len(row)} columns, but the header has {len(header)}")
        else:
            yield Record(line, dict(zip(header, row, strict=True)))
    if header is None:
        raise UserError(f"{lines.path}: empty: the first line names the columns")


def _checked_header(row: list[str], path: Path) -> list[str]:
    twice = sorted(name for name, count in Counter(row).items() if count > 1)
    if twice:
        raise UserError(f"{path}: the header names a column twice: {', '.join(twice)!s:.200}")
    return row


_READERS: dict[str, Callable[[BinaryIO, Path], Records]] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".csv": _comma_separated,
    ".tsv": _tab_separated,
}


def is_not_utf8(text: str) -> bool:
    """Return whether a text contains a lone surrogate, which UTF-8 cannot encode and no tokenizer accepts."""
    return any("\ud800" <= character <= "\udfff" for character in text) if not text.isascii() else False


_HUB_ADDRESS = re.compile(r"(?P<dataset>[\w.-]+(/[\w.-]+)?)(/(?P<config>[\w.-]+))(#(?P<split>[\w.-]+))?")
_HUB_SPLITS = {"train": "train", "dev": "validation"}


def read_hub(address: str, split: Split) -> Iterator[Record]:
    """Yield the rows of a hub's data set, with the names of labels in place of their numbers if the data set has names.

    Args:
        address: ``hub:DATASET/CONFIG`` or ``hub:OWNER/DATASET/CONFIG``, followed by ``#SPLIT`` unless the split is
            called ``train`` or ``validation``. The configuration of a data set without any is called ``default``.
        split: The split of the task.

    Raises:
        UserError: The address is malformed, ``datasets`` is not installed, or the hub did not return the data.
    """
    match = _HUB_ADDRESS.fullmatch(address.removeprefix(HUB_PREFIX))
    if match is None:
        raise UserError(f"{address}: give hub:DATASET/CONFIG or hub:OWNER/DATASET/CONFIG, with #SPLIT if necessary")
    try:
        import datasets
    except ImportError:
        raise UserError(f"{address}: needs the package datasets: pip install 'onetrunk[hub]'") from None
    try:
        rows = datasets.load_dataset(match["dataset"], match["config"], split=match["split"] or _HUB_SPLITS[split])
    except Exception as error:  # the package raises many types, from network errors to unknown names
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{address}: the hub did not return it: {reason}") from error
    names = {field: found for field, feature in rows.features.items() if (found := _label_names(feature))}
    for number, row in enumerate(rows, start=1):
        yield Record(number, {field: _named(value, names.get(field)) for field, value in row.items()})


def _label_names(feature: Any) -> list[str] | None:
    """Return the names of a ``ClassLabel``, or of a list of them, as a multilabel data set has it."""
    return getattr(feature, "names", None) or getattr(getattr(feature, "feature", None), "names", None)


def _named(value: Any, names: list[str] | None) -> object:
    if names is not None and isinstance(value, list):
        return [_named(one, names) for one in value]
    # A hub marks rows without a label by -1, which stays as it is and is reported as an unknown label.
    is_index = names is not None and isinstance(value, int) and 0 <= value < len(names)
    return names[value] if names is not None and is_index else value


RowFault = Literal["broken line", "missing field", "not a text", "empty text", "bad label"]
_SHOWN = 3


class RowError(Exception):
    """A row cannot be used."""

    def __init__(self, fault: RowFault, why: str) -> None:
        super().__init__(why)
        self.fault: RowFault = fault
        self.why = why


class RowErrors:
    """The rows of one file that cannot be used: all are counted, and the first few of each kind are kept.

    Attributes:
        counts: The number of rows by kind of fault.
    """

    def __init__(self) -> None:
        self.counts: Counter[RowFault] = Counter()
        self._first: dict[RowFault, list[str]] = {}

    def add(self, line: int, fault: RowFault, why: str) -> None:
        """Count a row."""
        self.counts[fault] += 1
        first = self._first.setdefault(fault, [])
        if len(first) < _SHOWN:
            first.append(f"line {line} ({why})")

    @property
    def total(self) -> int:
        """The number of rows that cannot be used."""
        return sum(self.counts.values())

    def lines(self) -> list[str]:
        """Return one line for each kind of fault, with its count and its first rows."""
        return [
            f"  {fault}: {count:,}: {'; '.join(self._first[fault])}{'; ...' if count > _SHOWN else ''}"
            for fault, count in self.counts.most_common()
        ]
