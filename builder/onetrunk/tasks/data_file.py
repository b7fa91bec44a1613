"""Data files as streams of UTF-8, plain or unpacked from gzip, with bounds on what a row and a whole file may take."""

from __future__ import annotations

import codecs
import gzip
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from onetrunk.protocol.errors import UserError
from onetrunk.protocol.reading import open_regular
from onetrunk.tasks.records import encoding_remedy

MAX_ROW_BYTES = 16 * 2**20
"""Far more than a text that a server reads. A file without line breaks is never held whole."""

# Text shrinks to a third or a tenth in gzip, and rarely to a sixtieth. A small file may shrink more, if it repeats.
_EXPANSION = 64
_EXPANSION_BYTES = 256 * 2**20
# What a row takes in memory besides its text, so that millions of empty rows count too.
_BYTES_A_ROW = 64


# A mark at the beginning of a file, and its encoding. Excel writes "Unicode text" so.
_UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_HEAD_BYTES = 64
_SAMPLE = re.compile(r"[^\r\n]{0,10}[^\x00-\x7f][^\r\n]{0,10}")
# Python calls these encodings too, but no file of data is written in them.
_NO_FILES = {"idna", "punycode", "unicode_escape", "raw_unicode_escape", "undefined", "mbcs", "oem"}


def check_encoding(encoding: str) -> str:
    """Return the encoding, if there is such a one.

    Raises:
        ValueError: There is none.
    """
    try:
        name = codecs.lookup(encoding).name.replace("-", "_")
        known = name not in _NO_FILES and "a".encode(encoding).decode(encoding) == "a"
    except (LookupError, ValueError):
        known = False
    if not known:
        raise ValueError("there is no such encoding; most used are utf-8, latin-1, cp1252, utf-16")
    return encoding


@contextmanager
def open_data(path: Path, encoding: str | None = None) -> Iterator[BinaryIO]:
    """Open a data file; one whose name ends in .gz is unpacked as it is read.

    Reading raises a ``UserError`` once the file unpacks to far more than any text does.

    Args:
        path: The file.
        encoding: Its encoding. What is read is UTF-8 whatever it is; bytes that it does not have are lone surrogates.
            None is UTF-8, or UTF-16 if the file begins with its mark.

    Raises:
        UserError: It is no regular file, is UTF-16 without its mark, or is UTF-8 though another encoding is given.
        OSError: There is no such file.
    """
    if encoding is not None and not codecs.lookup(encoding).name.startswith("utf"):
        _refuse_utf8(path, encoding)
    with _unpacked(path) as stream:
        yield _as_utf8(stream, path, encoding)


def _refuse_utf8(path: Path, encoding: str) -> None:
    """Refuse a file that is UTF-8: the bytes of a text in another encoding are not so by chance.

    Raises:
        UserError: It is UTF-8, and not only ASCII.
    """
    decoder, sample = codecs.getincrementaldecoder("utf-8")(), ""
    with _unpacked(path) as stream:
        while content := stream.read(2**16):
            try:
                text = decoder.decode(content)
            except UnicodeDecodeError:
                return
            if not sample and (first := _SAMPLE.search(text)):
                sample = first[0].strip()
    if sample and not decoder.getstate()[0]:
        raise UserError(
            f"{path}: is UTF-8, and in {encoding}, as the task file says, {sample!r} would read "
            f"{sample.encode().decode(encoding, 'replace')!r}: leave encoding out of it, and convert files that are in "
            f"{encoding}: iconv -f {encoding} -t utf-8"
        )


@contextmanager
def _unpacked(path: Path) -> Iterator[io.BufferedReader]:
    with open_regular(path) as stream:
        if not path.name.lower().endswith(".gz"):
            yield cast(io.BufferedReader, stream)
            return
        packed = stream.seek(0, io.SEEK_END)
        stream.seek(0)
        with gzip.GzipFile(fileobj=stream) as unpacked:
            remedy = "unpack the file yourself and name it without .gz"
            yield metered(cast(BinaryIO, unpacked), packed, path, remedy)


def metered(stream: BinaryIO, packed: int, path: Path, remedy: str) -> io.BufferedReader:
    """Return the unpacked stream of a file; reading raises a ``UserError`` once it is more than any text unpacks to.

    Args:
        stream: The unpacked stream.
        packed: The bytes of the file.
        path: The file, for messages.
        remedy: What to do if the data are like that.
    """
    return io.BufferedReader(_Metered(stream, _EXPANSION * packed + _EXPANSION_BYTES, path, remedy), 2**16)


def _as_utf8(stream: io.BufferedReader, path: Path, encoding: str | None) -> BinaryIO:
    head = stream.peek(_HEAD_BYTES)[:_HEAD_BYTES]
    if encoding is None:
        if head.startswith(_UTF16_MARKS):
            encoding = "utf-16"
        elif len(head) >= 4 and not head.startswith(codecs.BOM_UTF8):
            for name, zeros in (("utf-16-le", head[1:8:2]), ("utf-16-be", head[0:8:2])):
                if not any(zeros):
                    raise UserError(f"{path}: looks like UTF-16: if so, {encoding_remedy(name)}")
    if encoding is None or codecs.lookup(encoding).name == "utf-8":
        return stream
    return cast(BinaryIO, io.BufferedReader(_Recoded(stream, encoding, path), 2**16))


class _Recoded(io.RawIOBase):
    """A stream in another encoding, as UTF-8."""

    def __init__(self, stream: BinaryIO, encoding: str, path: Path) -> None:
        super().__init__()
        self._text = io.TextIOWrapper(stream, encoding=encoding, errors="surrogateescape", newline="")
        self._encoding, self._path, self._rest = encoding, path, b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._rest:
            try:
                self._rest = self._text.read(len(buffer)).encode("utf-8", "surrogateescape")
            except UnicodeError as error:  # some encodings have no single bytes that could be left as they are
                raise UserError(f"{self._path}: not {self._encoding}: {error}") from error
        content, self._rest = self._rest[: len(buffer)], self._rest[len(buffer) :]
        buffer[: len(content)] = content
        return len(content)


class _Metered(io.RawIOBase):
    """A stream that ends in an error once it has returned more than a limit."""

    def __init__(self, stream: BinaryIO, limit: int, path: Path, remedy: str) -> None:
        super().__init__()
        self._stream, self._limit, self._left, self._path, self._remedy = stream, limit, limit, path, remedy

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        content = self._stream.read(len(buffer))
        # The objects of an array may be on one line.
        self._left -= len(content) + _BYTES_A_ROW * sum(map(content.count, (b"\n", b"\r", b"}")))
        if self._left < 0:
            raise UserError(
                f"{self._path}: unpacks to rows that take more than {self._limit / 2**20:,.0f} MiB, over {_EXPANSION} "
                f"times its size: if the data are like that, {self._remedy}"
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


def row_too_long(path: Path, line: int, *, quoted: bool = False) -> UserError:
    """Return the error for a row that is longer than `MAX_ROW_BYTES`.

    Args:
        path: The file.
        line: The line on which the row begins, from 1.
        quoted: Whether a row may have several lines, in quotation marks.
    """
    ask = "is a quotation mark on that line never closed?" if quoted else "are there line breaks in the file?"
    return UserError(
        f"{path}: the row on line {line} has more than {MAX_ROW_BYTES:,} bytes; a row is one text, or two, with its "
        f"label: {ask}"
    )
