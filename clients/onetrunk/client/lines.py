"""The input of ``ask-repo``: JSON lines or plain text, one row per line, of any length, with bounded memory."""

from __future__ import annotations

import gzip
import json
import queue
import threading
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from onetrunk.client.answer import Answer
from onetrunk.client.client import Client
from onetrunk.protocol.errors import BadInput

# More than any server accepts as a text. A longer line, as in a file without line breaks, is never held whole.
MAX_LINE_BYTES = 64 * 2**20

TEXT_FIELDS = ("text", "sentence")
WORDS_FIELD = "tokens"
PAIR_FIELDS = ("text_pair", "sentence2")
_EXPECTED = f"{', '.join(TEXT_FIELDS)} or {WORDS_FIELD}"
PLAIN_SUFFIXES = (".txt",)


@dataclass(frozen=True)
class Line:
    """A row of the input. Lines count from 1."""

    number: int
    text: str
    pair: str | None = None


@dataclass(frozen=True)
class BadLine:
    """A line that cannot be answered, with the reason."""

    number: int
    reason: str


def open_lines(path: Path) -> tuple[BinaryIO, BinaryIO]:
    """Open a file; return it as it is on disk, whose ``tell`` shows the progress, and its unpacked content."""
    raw = path.open("rb")
    return raw, gzip.GzipFile(fileobj=raw) if path.suffix == ".gz" else raw  # type: ignore[return-value]


def is_plain(path: Path) -> bool:
    """Return whether a file's lines are texts and not JSON, according to its name."""
    return path.with_suffix("").suffix in PLAIN_SUFFIXES if path.suffix == ".gz" else path.suffix in PLAIN_SUFFIXES


def read_lines(content: BinaryIO, *, plain: bool | None) -> Iterator[Line | BadLine]:
    """Read line by line, never more than one in memory. Blank lines are skipped.

    Args:
        content: UTF-8, with or without a byte order mark.
        plain: Whether a line is a text (True) or a JSON object (False). If None, the first line decides: JSON starts
            with ``{``.
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
        yield read_line(number, line, plain=plain)


def _raw_lines(content: BinaryIO) -> Iterator[bytes | str]:
    """Yield each line, or why it cannot be read."""
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


def read_line(number: int, raw: bytes, *, plain: bool) -> Line | BadLine:
    """Read one line.

    Args:
        number: Its number.
        raw: The line.
        plain: Whether it is a text (True) or a JSON object (False).
    """
    try:
        text = raw.decode().rstrip("\r\n")
        if plain:
            return Line(number, text)
        row = json.loads(text)
        if not isinstance(row, dict):
            return BadLine(number, f"a JSON {type(row).__name__}, expected an object with {_EXPECTED}")
        first = _field(row, TEXT_FIELDS)
        # A row may have its tokens beside its text, for other readers.
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
    """Return a text that is given as a list of words: joined by blanks, as in training."""
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


T = TypeVar("T")

# The rows of one call: enough batches to keep the server busy, few enough to hold in memory.
CHUNK_ROWS = 512


def answer_lines(
    client: Client, lines: Iterable[Line | BadLine], tasks: Sequence[str] | None
) -> Iterator[tuple[Line, Answer] | BadLine]:
    """Answer lines in order as they come in, without waiting for a slow input to fill a chunk.

    Lines that cannot be answered are yielded as `BadLine`, before the answers of their chunk, and do not affect others.

    Args:
        client: The client.
        lines: The lines.
        tasks: The names of the tasks; None asks every task that fits.

    Raises:
        OneTrunkError: Any error of `Client.predict`, except for faults of single rows.
    """
    for chunk in chunks(lines, CHUNK_ROWS):
        yield from (line for line in chunk if isinstance(line, BadLine))
        good = [line for line in chunk if isinstance(line, Line)]
        while good:
            try:
                answers = client.predict([line.text for line in good], [line.pair for line in good], tasks)
            except BadInput as error:
                reasons = {problem.row: problem.message for problem in error.problems}
                if None in reasons:
                    raise
                yield from (BadLine(good[row].number, reason) for row, reason in reasons.items() if row is not None)
                good = [line for row, line in enumerate(good) if row not in reasons]
            else:
                yield from zip(good, answers, strict=True)
                break


def chunks(items: Iterable[T], most: int) -> Iterator[list[T]]:
    """Cut an iterable into lists of the items that are there: at least one and at most ``most``.

    A thread reads the next items while the caller works on a chunk.

    Args:
        items: The items.
        most: The most items in one list.

    Raises:
        Exception: The iterable's own error, after the items before it.
    """
    waiting: queue.Queue[Any] = queue.Queue(maxsize=most)
    stopped = threading.Event()
    end = object()

    def put(item: Any) -> None:
        while not stopped.is_set():
            try:
                waiting.put(item, timeout=0.1)
                return
            except queue.Full:
                continue

    def read() -> None:
        try:
            for item in items:
                put((item, None))
                if stopped.is_set():
                    return
        except Exception as error:
            put((end, error))
        else:
            put((end, None))

    # A daemon, since a read from a terminal or a pipe cannot be interrupted.
    threading.Thread(target=read, name="read-ahead", daemon=True).start()
    try:
        while True:
            taken = [waiting.get()]
            while len(taken) < most and taken[-1][0] is not end:
                try:
                    taken.append(waiting.get_nowait())
                except queue.Empty:
                    break
            if items_taken := [item for item, _ in taken if item is not end]:
                yield items_taken
            last, error = taken[-1]
            if last is end:
                if error is not None:
                    raise error
                return
    finally:
        stopped.set()
