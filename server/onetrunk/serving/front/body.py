"""Reads a request's body within the limits of size and time, and decompresses it."""

from __future__ import annotations

import re
import zlib

import anyio
from starlette.requests import Request

from onetrunk.serving.front.admission import Admission, RefusedError
from onetrunk.serving.front.settings import MOST_TEXTS, Limits

_DECOMPRESS = {"gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
# Of one body in gzip, as of files that were joined. Empty ones would be work without end.
_MOST_MEMBERS = 1000
# Lists and objects of a body in JSON. A row is one of them at most.
MOST_PARTS = 2 * MOST_TEXTS
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)


async def read_body(request: Request, admission: Admission, limits: Limits) -> bytes:
    """Return the body of a request, decompressed.

    Args:
        request: The request.
        admission: Counts its bytes while they come.
        limits: The limits of size and time.

    Raises:
        RefusedError: It is too large, compressed in an unknown way, or does not come in time.
    """
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", *_DECOMPRESS):
        raise RefusedError(400, f"Content-Encoding {encoding[:40]!r} is unknown: send gzip, deflate, or none")
    announced = request.headers.get("content-length", "")
    known = _number(announced, limits.max_body_bytes)
    if known is not None and known > limits.max_body_bytes:
        raise _too_large(limits.max_body_bytes)
    inflate = _Inflate(encoding, limits.max_body_bytes) if encoding in _DECOMPRESS else None
    # A body without an announced size may become as large as is allowed.
    size = known if known is not None and inflate is None else limits.max_body_bytes
    with admission.holding(size if _has_body(request) else 0):
        try:
            with anyio.fail_after(limits.body_timeout_s):
                return await _read(request, inflate, limits.max_body_bytes)
        except TimeoutError:
            raise RefusedError(408, f"the body did not come within {limits.body_timeout_s:g} s") from None
        except zlib.error as error:
            raise RefusedError(400, f"the body is not in {encoding}: {error}") from None


def check_parts(body: bytes) -> None:
    """Check how many lists and objects a body in JSON has, before it is read: two bytes may become a hundred.

    Raises:
        RefusedError: They are more than any request has.
    """
    if _parts(body) > MOST_PARTS and _parts(_STRING.sub(b"", body)) > MOST_PARTS:  # texts may have brackets
        raise RefusedError(413, f"the body has more than {MOST_PARTS:,} lists and objects: send fewer at a time")


def _parts(body: bytes) -> int:
    return body.count(b"[") + body.count(b"{")


def _number(announced: str, most: int) -> int | None:
    """Return a size, or one more than is allowed if it has too many digits to be made a number; None if it is none."""
    if not announced.isdecimal():
        return None
    digits = announced.lstrip("0")
    return int(digits or "0") if len(digits) < 19 else most + 1


def _has_body(request: Request) -> bool:
    return "content-length" in request.headers or "transfer-encoding" in request.headers


class _Inflate:
    """A body that is decompressed as it comes. One in gzip may be of several members, one after another."""

    def __init__(self, encoding: str, most: int) -> None:
        self._encoding, self._left, self._members = encoding, most + 1, 1
        self._member = zlib.decompressobj(_DECOMPRESS[encoding])

    def decompress(self, chunk: bytes) -> bytes:
        """Return what a chunk adds, up to one byte more than is allowed of all.

        Raises:
            zlib.error: It is not in that encoding.
        """
        parts = []
        while chunk and self._left:
            if self._member.eof:
                if self._encoding != "gzip" or self._members == _MOST_MEMBERS:
                    raise zlib.error("something comes after its end")
                self._members += 1
                self._member = zlib.decompressobj(_DECOMPRESS[self._encoding])
            parts.append(self._member.decompress(chunk, self._left))
            self._left -= len(parts[-1])
            chunk = self._member.unused_data
        return b"".join(parts)

    @property
    def is_complete(self) -> bool:
        """Whether it has ended where a member ends."""
        return self._member.eof


async def _read(request: Request, inflate: _Inflate | None, most: int) -> bytes:
    """Read a body, and inflate it as it comes.

    Raises:
        RefusedError: It is larger than allowed.
    """
    parts, size = [], 0
    async for chunk in request.stream():
        part = chunk if inflate is None else inflate.decompress(chunk)
        size += len(part)
        if size > most:
            raise _too_large(most)
        parts.append(part)
    if inflate is not None and not inflate.is_complete:
        raise RefusedError(400, "the compressed body ends too early")
    return b"".join(parts)


def _too_large(most: int) -> RefusedError:
    return RefusedError(413, f"the body is too large: at most {most:,} bytes are allowed, also after decompression")
