"""Rows of data, and what may be wrong with them.

A row that cannot be read is reported, never dropped silently: ``RowErrors`` counts them by kind.
``onetrunk.tasks.formats`` reads files into rows.
"""

from __future__ import annotations

import codecs
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from onetrunk.protocol.errors import UserError, counted

Split = Literal["train", "dev", "test"]
Unit = Literal["line", "row"]
"""What a file's rows are counted by: its lines, or for a file without lines the rows themselves."""

SPLITS: tuple[Split, ...] = ("train", "dev")
"""The splits that a training reads. Test data are only read once it is over."""
HUB_PREFIX = "hub:"

_SHOWN = 3
_SAMPLE_CHARACTERS = 60
# So many of the rows may be lost by a quotation mark that is not closed, with --skip-bad-rows.
_MOST_SWALLOWED = 0.05
# In this order they are proposed. All bytes are latin-1, but some of them only as control characters.
_SINGLE_BYTE = ("cp1252", "latin-1")


@dataclass(frozen=True)
class Record:
    """A row of a data file.

    Attributes:
        line: The line on which it begins, from 1; for a file without lines, the row.
        values: Field or column -> value.
        unit: Which of them ``line`` is.
    """

    line: int
    values: dict[str, object]
    unit: Unit = field(default="line", compare=False)

    @property
    def place(self) -> str:
        """Where it is, for messages."""
        return f"{self.unit} {self.line}"


@dataclass(frozen=True)
class BrokenLine:
    """A row that cannot be read.

    Attributes:
        line: The line on which it begins, from 1; for a file without lines, the row.
        why: What is wrong with it.
        swallowed: The number of further lines that are lost with it, since nobody can tell where the next row begins.
        unit: Which of them ``line`` is.
    """

    line: int
    why: str
    swallowed: int = 0
    unit: Unit = field(default="line", compare=False)

    @property
    def place(self) -> str:
        """Where it is, for messages."""
        return f"{self.unit} {self.line}"


Records = Iterator["Record | BrokenLine"]


@dataclass
class Reading:
    """How a data file is to be read, and what turned out on the way.

    Attributes:
        encoding: The encoding of a text file; None is UTF-8, or UTF-16 where the file begins with its mark.
        delimiter: The character between the columns of a table; None finds it in the header.
        quotes: Whether cells of a table may be quoted; None is yes for CSV, and for TSV if all its quotation marks fit.
        split: The split that is read, of a data set that holds several.
        text: The columns of the texts, as far as they are known.
        label: The column of the label, if it is known.
        notes: What a user should know about how the file was read.
    """

    encoding: str | None = None
    delimiter: str | None = None
    quotes: bool | None = None
    split: Split = "train"
    text: tuple[str, ...] = ()
    label: str | None = None
    notes: list[str] = field(default_factory=list)
    _candidates: tuple[str, ...] = _SINGLE_BYTE
    _undecoded: bytes = b""

    @property
    def wanted(self) -> tuple[str, ...]:
        """The columns that are known to be needed."""
        return (*self.text, *((self.label,) if self.label is not None else ()))

    def not_decoded(self, line: int, content: bytes, place: int | None = None) -> BrokenLine:
        """Return the broken line for bytes that are not in the file's encoding.

        Args:
            line: The line on which the row begins, from 1.
            content: The row.
            place: The first byte that is not, from 1; None does not tell it.
        """
        if self.encoding is not None:
            return BrokenLine(line, f"not {self.encoding}")
        self._undecoded = self._undecoded or content
        self._candidates = tuple(one for one in self._candidates if _decodes(content, one))
        return BrokenLine(line, "invalid UTF-8" + (f" at byte {place}" if place is not None else ""))

    def encoding_hint(self) -> str | None:
        """Return which encoding all rows would have that are not UTF-8, with a sample; None if there is none."""
        if not self._undecoded or not self._candidates:
            return None
        encoding = self._candidates[0]
        first = next(place for place, byte in enumerate(self._undecoded) if byte >= 0x80)
        start = max(0, first - _SAMPLE_CHARACTERS // 2)
        sample = self._undecoded[start : start + _SAMPLE_CHARACTERS].decode(encoding).strip()
        return f"in {encoding} they read {sample!r}: if that is right, {encoding_remedy(encoding)}"


def encoding_remedy(encoding: str) -> str:
    """Return what to do about a file in an encoding that is not expected. Not every command has a task file."""
    # The names of Python's codecs have a hyphen that iconv does not know.
    name = codecs.lookup(encoding).name.replace("utf-16-", "utf-16")
    return f'put encoding = "{encoding}" into the task file, or convert the file: iconv -f {name} -t utf-8'


class JsonReader(json.JSONDecoder):
    """Reads JSON, and notes a key that an object has twice: of the two, only the last value is in what is read.

    Attributes:
        repeated: The key; None if there is none. Whoever reads the next text resets it.
    """

    def __init__(self) -> None:
        super().__init__(object_pairs_hook=self._object)
        self.repeated: str | None = None

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            self.repeated = Counter(key for key, _ in pairs).most_common(1)[0][0]
        return found


def _decodes(content: bytes, encoding: str) -> bool:
    try:
        content.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True


def is_not_utf8(text: str) -> bool:
    """Return whether a text contains a lone surrogate, which UTF-8 cannot encode and no tokenizer accepts."""
    return any("\ud800" <= character <= "\udfff" for character in text) if not text.isascii() else False


RowFault = Literal["broken line", "missing field", "not a text", "empty text", "bad label"]


class RowError(Exception):
    """A row cannot be used."""

    def __init__(self, fault: RowFault, why: str) -> None:
        super().__init__(why)
        self.fault: RowFault = fault
        self.why = why


class RowErrors:
    """The rows of one file that cannot be used: all are counted, and the first few of each kind are kept.

    Attributes:
        counts: The number of rows by kind of fault; of rows that cannot be told apart, the number of their lines.
        swallowed: The number of lines among them that are lost by a quotation mark that is not closed.
    """

    def __init__(self) -> None:
        self.counts: Counter[RowFault] = Counter()
        self.swallowed = 0
        self._first: dict[RowFault, list[str]] = {}

    def add(self, place: str, fault: RowFault, why: str) -> None:
        """Count a row, and keep where it is and what is wrong with it."""
        self.counts[fault] += 1
        first = self._first.setdefault(fault, [])
        if len(first) < _SHOWN:
            first.append(f"{place} ({why})")

    def add_broken(self, broken: BrokenLine) -> None:
        """Count a row that cannot be read, with the lines that are lost with it."""
        self.add(broken.place, "broken line", broken.why)
        self.counts["broken line"] += broken.swallowed
        self.swallowed += broken.swallowed

    @property
    def total(self) -> int:
        """The number of rows that cannot be used."""
        return sum(self.counts.values())

    def summary(self, place: Path | str, *, used: int, hints: Iterable[str | None], skip_bad_rows: bool) -> str:
        """Return a note on the rows that are left out since they cannot be used.

        Args:
            place: The file or hub address, for the message.
            used: The number of rows that can be used.
            hints: What may be done about them; None is no hint.
            skip_bad_rows: Whether they are to be left out.

        Raises:
            UserError: They are not to be, no other row is there, or too many of them are lost by a quotation mark.
        """
        total = used + self.total
        what = "\n".join([*self.lines(), *(f"  {hint}" for hint in hints if hint is not None)])
        summary = f"{place}: {self.total:,} of {counted(total, 'row', 'rows')} cannot be used:\n{what}"
        if self.swallowed > _MOST_SWALLOWED * total:
            raise UserError(
                f"{summary}\nfix the quotation mark: --skip-bad-rows leaves out at most {_MOST_SWALLOWED:.0%} of the "
                "rows because of one"
            )
        if not used:
            raise UserError(f"{summary}\nfix them: without them there is no row")
        if not skip_bad_rows:
            raise UserError(f"{summary}\nfix them, or give --skip-bad-rows to continue without them")
        return f"left out {self.total:,} of {counted(total, 'row', 'rows')} of {place}:\n{what}"

    def lines(self) -> list[str]:
        """Return one line for each kind of fault, with its count and its first rows."""
        found = []
        for fault, count in self.counts.most_common():
            first = self._first[fault]
            more = "; ..." if count - (self.swallowed if fault == "broken line" else 0) > len(first) else ""
            found.append(f"  {fault}: {count:,}: {'; '.join(first)}{more}")
        return found
