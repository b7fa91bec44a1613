"""CoNLL-2003 and its like: a word a line, its tag in the last column, and a blank line behind each sentence.

Columns are separated by tabs, or else by spaces. In CoNLL-U and its like, the first one counts the words.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from onetrunk.tasks.data_file import MAX_ROW_BYTES, row_lines, row_too_long
from onetrunk.tasks.records import BrokenLine, Reading, Record, Records

WORDS, TAGS = "tokens", "tags"
_DOCUMENT = b"-DOCSTART-"
# Some data sets number their sentences, others say more of them. "#" alone may be a word.
_COMMENT = re.compile(rb"# ?(id|newdoc|newpar|\S+ =)")
_MARK = b"\xef\xbb\xbf"
_HEAD = 2**16
# In these the first column of a sentence's first line is a number, and there are a word and a tag behind it.
_COUNTED = re.compile(r"1(-\d+)?[ \t]+\S+[ \t]+\S")


def conll_sentences(stream: BinaryIO, path: Path, reading: Reading) -> Records:
    """Yield the sentences: words and tags, in the columns of the task, or else in ``tokens`` and ``tags``.

    Raises:
        UserError: A sentence is larger than any data.
    """
    words_field, tags_field = reading.text[0] if reading.text else WORDS, reading.label or TAGS
    word = int(_is_counted(stream.peek(_HEAD)[:_HEAD]))  # type: ignore[attr-defined]
    if word:
        reading.notes.append("its first column counts the words of each sentence, which are read from the second")
    for start, lines in _sentences(stream, path):
        try:
            rows = [_cells(line.decode()) for line in lines]
        except UnicodeDecodeError:
            yield reading.not_decoded(start, b"".join(lines))
            continue
        short = next((place for place, row in enumerate(rows) if len(row) < word + 2), None)
        if short is not None:
            yield BrokenLine(start, f"line {start + short} has no tag: {' '.join(rows[short])!r:.40}")
            continue
        if word:  # "3-4" counts a contraction, whose words follow it, and "3.1" a word that is not in the text.
            rows = [row for row in rows if row[0].isdigit()]
        yield Record(start, {words_field: [row[word] for row in rows], tags_field: [row[-1] for row in rows]})


def _cells(line: str) -> list[str]:
    """Return the columns of a line. Other white space than tabs and spaces is a part of words."""
    line = line.strip(" \t\r\n")
    if "\t" in line:
        return [cell.strip(" ") for cell in line.split("\t")]
    return [cell for cell in line.split(" ") if cell]


def _is_counted(head: bytes) -> bool:
    """Return whether every sentence in the first part of a file begins with 1, and some go on with 2."""
    text = head.removeprefix(_MARK).decode(errors="replace").replace("\r\n", "\n")
    sentences = [
        lines
        for part in text.split("\n\n")
        if (lines := [line for line in part.split("\n") if line and not _COMMENT.match(line.encode())])
    ]
    return (
        bool(sentences)
        and all(lines[0].startswith("1") for lines in sentences)
        and all(_COUNTED.match(lines[0]) for lines in sentences[:-1] or sentences)  # the last one may be cut
        and any(re.match(r"2[ \t]", line) for lines in sentences for line in lines[1:3])
    )


def _sentences(stream: BinaryIO, path: Path) -> Iterator[tuple[int, list[bytes]]]:
    """Yield the lines of each sentence, and the number of the first one."""
    start, size = 1, 0
    lines: list[bytes] = []
    for number, raw in enumerate(row_lines(stream, path), start=1):
        line = raw.removeprefix(_MARK) if number == 1 else raw
        if not line.strip() or line.startswith(_DOCUMENT) or (not lines and _COMMENT.match(line)):
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
