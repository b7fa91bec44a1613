"""Tables: CSV and TSV, with a header, and with whatever separator a spreadsheet put between the columns.

Quotation marks are those of RFC 4180. One that is never closed takes in all that follows, and a row that looks whole
behind it may be the middle of a text. So nothing is read behind it: what is lost is counted instead.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from onetrunk.protocol.errors import UserError, counted
from onetrunk.tasks.data_file import MAX_ROW_BYTES, open_data, row_too_long
from onetrunk.tasks.records import BrokenLine, Reading, Record, Records, is_not_utf8

DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}
# Excel's own first line, which is none of the table.
_DIRECTIVE = re.compile(r'"?sep=(.)"?\s*')
_QUOTE = '"'


def comma_separated(stream: BinaryIO, path: Path, reading: Reading) -> Records:
    """Yield the rows of a CSV file.

    Raises:
        UserError: It has no header, or a row is larger than any data.
    """
    lines = _TextLines(stream, path)
    return _table(lines, _delimiter(lines, ",", reading), reading.quotes is not False, reading)


def tab_separated(stream: BinaryIO, path: Path, reading: Reading) -> Records:
    """Yield the rows of a TSV file.

    Pandas and spreadsheets quote its cells as in CSV; others write quotation marks as any other character. Which it is
    follows from all marks of the file together.

    Raises:
        UserError: It has no header, or a row is larger than any data.
    """
    lines = _TextLines(stream, path)
    delimiter, quotes = _delimiter(lines, "\t", reading), reading.quotes
    if quotes is None:
        with open_data(path, reading.encoding) as again:
            lines_again = _TextLines(again, path)
            _take_directive(lines_again)
            quotes = _is_quoted(lines_again, delimiter, reading)
    return _table(lines, delimiter, quotes, reading)


class _TextLines:
    """The lines of a table, which may end in CR too. A row may have several; what they have together is bounded.

    Attributes:
        path: The file, for messages.
        row: The lines of the row that is being read. Whoever reads a row calls ``begin_row`` first.
    """

    def __init__(self, stream: BinaryIO, path: Path) -> None:
        # Bytes that are not UTF-8 become lone surrogates, so that the row that contains them can be named.
        self._text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")
        self._left = MAX_ROW_BYTES
        self._ahead: deque[str] = deque()
        self._row_start = 1
        self.path = path
        self.row: list[str] = []

    def begin_row(self, line: int) -> None:
        """Note that a row begins."""
        self._left, self._row_start, self.row = MAX_ROW_BYTES, line, []

    def header_ahead(self) -> str:
        """Return the first line that is not blank, without taking it."""
        line = self._ahead[-1] if self._ahead else "\n"
        while line and not line.strip():
            line = self._read()
            self._ahead.append(line)
        self.begin_row(1)
        return line

    def blank_ahead(self) -> None:
        """Put a blank line in the place of the one that ``header_ahead`` has returned."""
        self._ahead[-1] = "\n"

    def count_rest(self) -> int:
        """Read to the end, and return the number of lines that are not blank."""
        count = 0
        while True:
            self.begin_row(self._row_start)
            line = next(self, "")
            if not line:
                return count
            count += bool(line.strip())

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._ahead.popleft() if self._ahead else self._read()
        if not line:
            raise StopIteration
        self.row.append(line)
        return line

    def _read(self) -> str:
        line = self._text.readline(self._left + 1)
        self._left -= len(line)
        if self._left < 0:
            raise row_too_long(self.path, self._row_start, quoted=True)
        return line


def _reader(lines: Iterable[str], delimiter: str, quotes: bool) -> Any:
    # The limit is one of the process. It need not be lower than that of a whole row, which is checked before.
    csv.field_size_limit(max(csv.field_size_limit(), MAX_ROW_BYTES))
    if not quotes:
        return csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_NONE)
    # Strict: a misplaced quotation mark is reported instead of guessed about.
    return csv.reader(lines, delimiter=delimiter, strict=True)


def _delimiter(lines: _TextLines, usual: str, reading: Reading) -> str:
    """Return the character between the columns: the one by which the header has the columns that are wanted."""
    directive = _take_directive(lines)
    if reading.delimiter is not None:
        return reading.delimiter
    found = directive or _of_header(lines.header_ahead(), usual, reading.wanted)
    if found != usual:
        reading.notes.append(f"its columns are separated by {DELIMITERS.get(found, repr(found))}")
    return found


def _take_directive(lines: _TextLines) -> str | None:
    """Take Excel's own first line from a table that has one, and return the separator in it."""
    directive = _DIRECTIVE.fullmatch(lines.header_ahead())
    if directive is None:
        return None
    lines.blank_ahead()
    return directive[1]


def _of_header(header: str, usual: str, wanted: Sequence[str]) -> str:
    names = {column_key(name) for name in wanted}
    columns = {one: _columns(header, one) for one in (usual, *DELIMITERS)}
    known = {one: len(names & {column_key(name) for name in found}) for one, found in columns.items()}
    if any(known.values()):
        return max(known, key=lambda one: known[one])
    if len(columns[usual]) > 1:
        return usual
    return max(columns, key=lambda one: len(columns[one]))


def _columns(header: str, delimiter: str) -> list[str]:
    try:
        found: list[str] = next(_reader([header], delimiter, quotes=True), [])
    except csv.Error:
        found = header.split(delimiter)
    return found


def column_key(name: str) -> str:
    """Return a column's name without case and outer blanks, by which it is found."""
    return name.strip().casefold()


def _is_quoted(lines: _TextLines, delimiter: str, reading: Reading) -> bool:
    """Return whether the quotation marks of a TSV are those of CSV, and note it where it matters."""
    reader, width = _reader(lines, delimiter, quotes=True), 0
    quoted, certain, misfits, first = 0, 0, 0, 0
    while True:
        line = int(reader.line_num) + 1
        lines.begin_row(line)
        try:
            row = next(reader, None)
        except csv.Error:
            row = []
        except UserError:  # If it is not due to a mark that takes in what follows, the reader will meet it again.
            misfits, first = misfits + 1, first or line
            break
        if row is None:
            break
        width = width or len(row)
        text = "".join(lines.row)
        if _QUOTE not in text:
            continue
        if row and len(row) == width:
            opened = text.startswith(_QUOTE) or f"{delimiter}{_QUOTE}" in text
            quoted += opened
            # Nobody would write these but for the marks around them.
            certain += opened and (_QUOTE * 2 in text or len(lines.row) > 1 or text.count(delimiter) > len(row) - 1)
        elif row or text.strip():
            misfits, first = misfits + 1, first or line
    if not misfits or certain > misfits:
        if quoted:
            reading.notes.append(
                f"{counted(quoted, 'row has', 'rows have')} cells in quotation marks, which are read as in CSV; quotes "
                "= false in the task file keeps the marks"
            )
        return True
    if certain:
        reading.notes.append(
            f"quotation marks are read as text, since those of line {first} are not ones of CSV; {certain:,} rows look "
            "as if theirs were: quotes = true in the task file reads them so"
        )
    return False


def _table(lines: _TextLines, delimiter: str, quotes: bool, reading: Reading) -> Records:
    reader = _reader(lines, delimiter, quotes)
    header: _Header | None = None
    spread = _Spread()
    while True:
        line = int(reader.line_num) + 1
        lines.begin_row(line)
        try:
            row = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            broken = _broken(line, str(error), lines, delimiter)
            yield broken
            if len(lines.row) != 1 or broken.swallowed:
                break
            continue
        if not row:
            continue
        spread.add(line, len(lines.row))
        if header is None:
            header = _Header(row, lines.path, reading)
        elif any(is_not_utf8(cell) for cell in row):
            yield reading.not_decoded(line, "".join(lines.row).encode("utf-8", "surrogateescape"))
        elif len(row) != header.width:
            yield BrokenLine(line, f"{counted(len(row), 'column', 'columns')}, but the header has {header.width}")
        else:
            yield Record(line, header.values(row))
    if header is None:
        raise UserError(f"{lines.path}: empty: the first line names the columns")
    reading.notes += spread.notes()


def _broken(line: int, why: str, lines: _TextLines, delimiter: str) -> BrokenLine:
    """Return the row that cannot be read, with all that follows if a quotation mark of it may still be open."""
    row = list(lines.row)
    if len(row) == 1 and not _is_open(row[0], delimiter):
        return BrokenLine(line, why)
    rest = lines.count_rest()
    lines.row = row
    lost = sum(bool(one.strip()) for one in row[1:]) + rest
    if why.startswith("unexpected end"):
        found = "a quotation mark that opens here is never closed"
    elif len(row) > 1:
        last = line + len(row) - 1
        found = f"a quotation mark that opens here is closed in the middle of a cell on line {last:,}"
    else:
        found = "its quotation marks leave one open"
    behind = f": what follows, {lost:,} lines, cannot be told apart" if lost else ""
    return BrokenLine(line, f"{found}{behind}", lost)


def _is_open(line: str, delimiter: str) -> bool:
    """Return whether a quotation mark is open at the end of a line, if text behind a closing one is read as it is."""
    place, length = 0, len(line.rstrip("\r\n"))
    while place < length:
        if line[place] == _QUOTE:
            place += 1
            while (place := line.find(_QUOTE, place)) >= 0 and line.startswith(_QUOTE * 2, place):
                place += 2
            if place < 0:
                return True
        place = line.find(delimiter, place)
        if place < 0:
            return False
        place += 1
    return False


class _Header:
    """The columns of a table.

    Attributes:
        width: The number of columns, also of those without a name.
    """

    def __init__(self, row: list[str], path: Path, reading: Reading) -> None:
        if any(is_not_utf8(name) for name in row):
            reading.not_decoded(1, "".join(row).encode("utf-8", "surrogateescape"))
            hint = reading.encoding_hint()
            raise UserError(f"{path}: the header is not {reading.encoding or 'UTF-8'}" + (f"; {hint}" if hint else ""))
        unnamed = [place for place, name in enumerate(row) if not name.strip()]
        # One is an index without a name; several are the commas behind a spreadsheet's last column.
        self._left_out = set(unnamed) if len(unnamed) > 1 else set()
        self._names = [(place, name) for place, name in enumerate(row) if place not in self._left_out]
        self.width = len(row)
        twice = sorted(name for name, count in Counter(name for _, name in self._names).items() if count > 1)
        if twice:
            raise UserError(f"{path}: the header names a column twice: {', '.join(twice)!s:.200}")
        if not self._names:
            raise UserError(f"{path}: no column has a name: the first line names the columns")
        if self._left_out:
            reading.notes.append(f"{len(self._left_out):,} columns without a name are left out")

    def values(self, row: list[str]) -> dict[str, object]:
        """Return the cells by their columns' names."""
        return {name: row[place] for place, name in self._names}


class _Spread:
    """Rows that have several lines, which may be due to a quotation mark that was not meant as one."""

    def __init__(self) -> None:
        self._rows = self._lines = 0
        self._longest = (1, 0)

    def add(self, line: int, lines: int) -> None:
        """Count a row, from its first line and its number of lines."""
        if lines > 1:
            self._rows += 1
            self._lines += lines
            self._longest = max(self._longest, (lines, -line))

    def notes(self) -> list[str]:
        """Return a note if there are any."""
        if not self._rows:
            return []
        lines, line = self._longest
        have = counted(self._rows, "row has", "rows have")
        return [
            f"{have} line breaks within quotation marks, {self._lines:,} lines together; the longest, of {lines:,} "
            f"lines, begins on line {-line:,}: is that one text?"
        ]
