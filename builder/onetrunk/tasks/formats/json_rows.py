"""JSON: an object a line, or one array of objects, which is read object by object, so that it is never held whole."""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from onetrunk.protocol.errors import UserError
from onetrunk.tasks.data_file import MAX_ROW_BYTES, row_lines
from onetrunk.tasks.formats.exports import Exports
from onetrunk.tasks.records import BrokenLine, JsonReader, Reading, Record, Records, Unit, is_not_utf8

_CHUNK = 2**16
_BLANK = " \t\r\n"
_MARK = b"\xef\xbb\xbf"


def json_objects(stream: BinaryIO, path: Path, reading: Reading) -> Records:
    """Yield the objects of a file of JSON lines, or of an array.

    Raises:
        UserError: An array is broken, a row is larger than any data, or an export has nothing of what is wanted.
    """
    first = stream.peek(_CHUNK)[:_CHUNK].removeprefix(_MARK).lstrip()  # type: ignore[attr-defined]
    rows = _array(stream, path, reading) if first.startswith(b"[") else _lines(stream, path, reading)
    exports = Exports(reading)
    for record in rows:
        if isinstance(record, Record):
            yield replace(record, values=exports.row(record.values))
        else:
            yield record
    exports.finish(path)


def _lines(stream: BinaryIO, path: Path, reading: Reading) -> Records:
    reader = JsonReader()
    for number, raw in enumerate(row_lines(stream, path), start=1):
        if not raw.strip():
            continue
        try:
            reader.repeated = None
            values = reader.decode(raw.decode("utf-8-sig" if number == 1 else "utf-8"))
        except UnicodeDecodeError as error:
            yield reading.not_decoded(number, raw, error.start + 1)
        except json.JSONDecodeError as error:
            if raw.strip() == b"{" and ".json" in path.suffixes:
                raise UserError(
                    f"{path}: its first line is only the beginning of an object; allowed are an object a line, or one "
                    "array of objects: jq -c . writes the one, jq -s . the other"
                ) from None
            yield BrokenLine(number, f"invalid JSON: {error.msg} at character {error.pos + 1}")
        except (ValueError, RecursionError) as error:  # a number of thousands of digits, or endless brackets
            yield BrokenLine(number, f"invalid JSON: {error}")
        else:
            yield _row(number, values, reader.repeated)


def _row(line: int, value: object, repeated: str | None, unit: Unit = "line") -> Record | BrokenLine:
    if not isinstance(value, dict):
        return BrokenLine(line, f"not a JSON object: {json.dumps(value):.40}", unit=unit)
    if repeated is not None:
        return BrokenLine(line, f"it has the key {repeated!r:.40} twice", unit=unit)
    return Record(line, value, unit)


def _array(stream: BinaryIO, path: Path, reading: Reading) -> Records:
    reader = JsonReader()
    elements = _elements(stream, path, reader)
    ahead = list(itertools.islice(elements, 2))
    # Where two objects are on one line, lines tell nothing.
    unit: Unit = "row" if len(ahead) == 2 and ahead[0][0] == ahead[1][0] else "line"
    for row, (line, source, value, repeated) in enumerate(itertools.chain(ahead, elements), start=1):
        number = row if unit == "row" else line
        if is_not_utf8(source):
            yield replace(reading.not_decoded(number, source.encode("utf-8", "surrogateescape")), unit=unit)
        else:
            yield _row(number, value, repeated, unit)


def _elements(stream: BinaryIO, path: Path, reader: JsonReader) -> Iterator[tuple[int, str, object, str | None]]:
    """Yield the elements of an array, each with its line, its own JSON, and a key that it has twice."""
    window = _Window(stream)
    window.skip_blanks()
    window.take(1)
    first = True
    while (mark := window.skip_blanks()) != "]":
        if not first:
            if mark != ",":
                raise UserError(f"{path}: line {window.line}: not JSON: between two objects of an array stands a comma")
            window.take(1)
            window.skip_blanks()
        first = False
        value, end = _element(window, path, reader)
        line, source = window.line, window.text[window.place : end]
        window.take(end - window.place)
        yield line, source, value, reader.repeated
    window.take(1)
    if window.skip_blanks():
        raise UserError(
            f"{path}: line {window.line}: more stands behind the array that ends here; allowed are an object a line, "
            "or one array of objects"
        )


def _element(window: _Window, path: Path, reader: JsonReader) -> tuple[object, int]:
    """Return the element that begins at the window's place, and where it ends."""
    while True:
        reader.repeated = None
        try:
            value, end = reader.raw_decode(window.text, window.place)
        except (ValueError, RecursionError) as error:
            why = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        else:
            # A number at the end of what is read so far may go on.
            if end < len(window.text) or not window.more():
                return value, end
            continue
        if len(window.text) - window.place > MAX_ROW_BYTES:
            why = f"no object that ends within {MAX_ROW_BYTES:,} characters ({why})"
        elif window.more():
            continue
        # What comes behind is unknown, so this is not one bad row.
        raise UserError(f"{path}: cannot be read beyond line {window.line}: invalid JSON: {why}")


class _Window:
    """The part of a text that is read but not yet used.

    Attributes:
        text: The part, and perhaps some of what is used.
        place: Where in it the part begins.
        line: The line on which it begins, from 1.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")
        self.text, self.place, self.line = "", 0, 1

    def more(self) -> bool:
        """Forget what is used, read as much again as is not, and return whether there was any."""
        found = self._stream.read(max(_CHUNK, len(self.text) - self.place))
        if found:
            self.text, self.place = self.text[self.place :] + found, 0
        return bool(found)

    def take(self, count: int) -> None:
        """Use some characters."""
        self.line += self.text.count("\n", self.place, self.place + count)
        self.place += count

    def skip_blanks(self) -> str:
        """Use all blanks, and return the character behind them; nothing at the end."""
        while True:
            while self.place < len(self.text) and self.text[self.place] in _BLANK:
                self.take(1)
            if self.place < len(self.text):
                return self.text[self.place]
            if not self.more():
                return ""
