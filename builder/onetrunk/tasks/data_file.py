"""Data files as streams of bytes, plain or unpacked from gzip, with bounds on what a row and a whole file may take."""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from onetrunk.protocol.errors import UserError
from onetrunk.protocol.reading import open_regular

MAX_ROW_BYTES = 16 * 2**20
"""Far more than a text that a server reads. A file without line breaks is never held whole."""

# Text shrinks to a third or a tenth in gzip, and rarely to a sixtieth. A small file may shrink more, if it repeats.
_EXPANSION = 64
_EXPANSION_BYTES = 256 * 2**20
# What a row takes in memory besides its text, so that millions of empty rows count too.
_BYTES_A_ROW = 64


@contextmanager
def open_data(path: Path) -> Iterator[BinaryIO]:
    """Open a data file; one whose name ends in .gz is unpacked as it is read.

    Reading raises a ``UserError`` once the file unpacks to far more than any text does.

    Raises:
        UserError: It is no regular file.
        OSError: There is no such file.
    """
    with open_regular(path) as stream:
        if not path.name.endswith(".gz"):
            yield stream
            return
        packed = stream.seek(0, io.SEEK_END)
        stream.seek(0)
        with gzip.GzipFile(fileobj=stream) as unpacked:
            limit = _EXPANSION * packed + _EXPANSION_BYTES
            yield cast(BinaryIO, io.BufferedReader(_Metered(cast(BinaryIO, unpacked), limit, path), 2**16))


class _Metered(io.RawIOBase):
    """A stream that ends in an error once it has returned more than a limit."""

    def __init__(self, stream: BinaryIO, limit: int, path: Path) -> None:
        super().__init__()
        self._stream, self._limit, self._left, self._path = stream, limit, limit, path

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        content = self._stream.read(len(buffer))
        self._left -= len(content) + _BYTES_A_ROW * (content.count(b"\n") + content.count(b"\r"))
        if self._left < 0:
            raise UserError(
                f"{self._path}: unpacks to rows that take more than {self._limit / 2**20:,.0f} MiB, over {_EXPANSION} "
                "times its size: if the data are like that, unpack the file yourself and name it without .gz"
            )
        buffer[: len(content)] = content
        return len(content)


def row_lines(stream: BinaryIO, path: Path) -> Iterator[bytes]:
    """Yield the lines of a stream, of which none is longer than a row may be.

    Args:
        stream: The stream.
        path: The file, for messages.

    Raises:
        UserError: A line is longer.
    """
    number = 0
    while line := stream.readline(MAX_ROW_BYTES + 1):
        number += 1
        if len(line) > MAX_ROW_BYTES:
            raise row_too_long(path, number)
        yield line


def row_too_long(path: Path, line: int) -> UserError:
    """Return the error for a row that is longer than `MAX_ROW_BYTES`.

    Args:
        path: The file.
        line: The line on which the row begins, from 1.
    """
    return UserError(
        f"{path}: the row on line {line} has more than {MAX_ROW_BYTES:,} bytes; a row is one text, or two, with its "
        "label: are there line breaks in the file?"
    )
