"""CoNLL-2003 and its like: a word a line, its tag in the last column, and a blank line behind each sentence."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from onetrunk.tasks.data_file import MAX_ROW_BYTES, row_lines, row_too_long
from onetrunk.tasks.records import BrokenLine, Reading, Record, Records

WORDS, TAGS = "tokens", "tags"
_DOCUMENT = b"-DOCSTART-"
# Some data sets number their sentences so. "#" alone may be a word.
_COMMENT = b"# id"
_MARK = b"\xef\xbb\xbf"


def conll_sentences(stream: BinaryIO, path: Path, reading: Reading) -> Records:
    """Yield the sentences: words and tags, in the columns of the task, or else in ``tokens`` and ``tags``.

    Raises:
        UserError: A sentence is larger than any data.
    """
    words_field, tags_field = reading.text[0] if reading.text else WORDS, reading.label or TAGS
    for start, lines in _sentences(stream, path):
        try:
            rows = [line.decode().split() for line in lines]
        except UnicodeDecodeError:
            yield reading.not_decoded(start, b"".join(lines))
            continue
        short = next((place for place, row in enumerate(rows) if len(row) < 2), None)
        if short is not None:
            yield BrokenLine(start, f"line {start + short} has no tag: {' '.join(rows[short])!r:.40}")
        else:
            yield Record(start, {words_field: [row[0] for row in rows], tags_field: [row[-1] for row in rows]})


def _sentences(stream: BinaryIO, path: Path) -> Iterator[tuple[int, list[bytes]]]:
    """Yield the lines of each sentence, and the number of the first one."""
    start, size = 1, 0
    lines: list[bytes] = []
    for number, raw in enumerate(row_lines(stream, path), start=1):
        line = raw.removeprefix(_MARK) if number == 1 else raw
        if not line.strip() or line.startswith(_DOCUMENT) or (not lines and line.startswith(_COMMENT)):
            if lines:
                yield start, lines
            start, size, lines = number + 1, 0, []
            continue
        lines.append(line)
        size += len(line)
        if size > MAX_ROW_BYTES:
            raise row_too_long(path, start)
    if lines:
        yield start, lines
