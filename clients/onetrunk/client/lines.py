"""Input of ``ask-repo``: JSON lines or plain text, one row a line, each line read on its own."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

# Above what any server takes as a text. A longer line, as in a file without line breaks, is never held whole.
MAX_LINE_BYTES = 64 * 2**20

TEXT_FIELDS = ("text", "sentence")
WORDS_FIELD = "tokens"
PAIR_FIELDS = ("text_pair", "sentence2")
_EXPECTED = f"{', '.join(TEXT_FIELDS)} or {WORDS_FIELD}"
PLAIN_SUFFIXES = (".txt",)


@dataclass(frozen=True)
class Line:
    """A row as it stands in the input; lines count from 1."""

    number: int
    text: str
    pair: str | None = None


@dataclass(frozen=True)
class BadLine:
    """A line that cannot be answered, and why."""

    number: int
    reason: str


def open_lines(path: Path) -> tuple[BinaryIO, BinaryIO]:
    """The file as it is on disk, whose ``tell`` shows the progress, and its content, unpacked if it is ``.gz``."""
    raw = path.open("rb")
    return raw, gzip.GzipFile(fileobj=raw) if path.suffix == ".gz" else raw  # type: ignore[return-value]


def is_plain(path: Path) -> bool:
    """Whether a file's name says that its lines are texts and not JSON."""
    return path.with_suffix("").suffix in PLAIN_SUFFIXES if path.suffix == ".gz" else path.suffix in PLAIN_SUFFIXES


def read_lines(content: BinaryIO, *, plain: bool | None) -> Iterator[Line | BadLine]:
    """Reads line by line, never more than one in memory. Blank lines are no rows.

    Args:
        content: UTF-8, with or without a byte order mark.
        plain: whether a line is a text (True) or a JSON object (False); None lets the first line decide:
            JSON begins with ``{``.
    """
    for number, raw in enumerate(_raw_lines(content), start=1):
        if isinstance(raw, str):
            yield BadLine(number, raw)
            continue
        line = raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw
        if not line.strip():
            continue
        if plain is None:
            plain = not line.lstrip().startswith(b"{")
        yield _read_line(number, line, plain=plain)


def _raw_lines(content: BinaryIO) -> Iterator[bytes | str]:
    """Each line, or why it cannot be had."""
    try:
        while raw := content.readline(MAX_LINE_BYTES + 1):
            if len(raw) <= MAX_LINE_BYTES:
                yield raw
                continue
            while raw and not raw.endswith(b"\n"):
                raw = content.readline(MAX_LINE_BYTES)
            yield f"longer than {MAX_LINE_BYTES:,} bytes"
    except (OSError, EOFError, zlib.error) as error:
        yield f"cannot be read, nor anything after it: {error}"


def _read_line(number: int, raw: bytes, *, plain: bool) -> Line | BadLine:
    try:
        text = raw.decode().rstrip("\r\n")
        if plain:
            return Line(number, text)
        row = json.loads(text)
        if not isinstance(row, dict):
            return BadLine(number, f"a JSON {type(row).__name__}, expected an object with {_EXPECTED}")
        first = _field(row, TEXT_FIELDS)
        # A row may have its text and, for others to read, its tokens too.
        first = _joined_words(row) if first is None else first
        if first is None:
            nulls = [name for name in (*TEXT_FIELDS, WORDS_FIELD) if name in row]
            what = f"field {nulls[0]} is null" if nulls else f"no field {_EXPECTED}"
            return BadLine(number, f"{what}; found {', '.join(row) or 'none'}")
        return Line(number, first, _field(row, PAIR_FIELDS))
    except UnicodeDecodeError as error:
        return BadLine(number, f"not UTF-8: byte {raw[error.start]:#04x} at {error.start}")
    except json.JSONDecodeError as error:
        return BadLine(number, f"not JSON: {error.msg} at {error.pos}")
    except (RecursionError, ValueError) as error:
        return BadLine(number, str(error))


def _field(row: dict[str, object], names: tuple[str, ...]) -> str | None:
    found = [name for name in names if row.get(name) is not None]
    if len(found) > 1:
        raise ValueError(f"fields {' and '.join(found)} both given, expected one of them")
    if not found:
        return None
    value = row[found[0]]
    if not isinstance(value, str):
        raise ValueError(f"field {found[0]} is {type(value).__name__}, expected a string")
    return value


def _joined_words(row: dict[str, object]) -> str | None:
    """A text that is given as a list of words: these with a blank between them, as training reads it."""
    value = row.get(WORDS_FIELD)
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise ValueError(f"field {WORDS_FIELD} is {type(value).__name__}, expected a list of words")
    for place, word in enumerate(value, start=1):
        if not isinstance(word, str):
            raise ValueError(f"field {WORDS_FIELD} has {word!r:.40} as word {place}, expected a string")
        if word.split() != [word]:
            raise ValueError(f"field {WORDS_FIELD} has {word!r:.40} as word {place}: empty, or with a blank in it")
    return " ".join(value)
