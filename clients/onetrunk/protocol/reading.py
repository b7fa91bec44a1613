"""Reading files that somebody else may have written: what a file is, and how large, is known before it is read.

Bundles, trunks and repositories are passed on between people. A FIFO in the place of a file would make its reader wait
for ever, a device or a sparse file would fill the memory, and a link or a path with ``..`` would reach files that are
none of the bundle's.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from onetrunk.protocol.errors import UserError

_KINDS = (
    (stat.S_ISFIFO, "a FIFO"),
    (stat.S_ISDIR, "a folder"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
)

_BLOCK_BYTES = 2**20


def open_regular(path: Path, *, max_bytes: int | None = None, inside: Path | None = None) -> BinaryIO:
    """Open a regular file for reading, without ever waiting for it.

    Args:
        path: The file.
        max_bytes: The largest size that is read; None for any.
        inside: The folder that the file must be in once all links are resolved. None follows links anywhere, as the
            caches of a model hub have them.

    Raises:
        FileNotFoundError: There is no such file.
        UserError: It is no regular file, is too large, lies outside of ``inside``, or cannot be opened.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
    if inside is not None:
        # What is opened is what was checked: the resolved path has no link in it, and none may take its place.
        target, flags = resolve_inside(inside, path), flags | os.O_NOFOLLOW
    else:
        target = path
    try:
        descriptor = os.open(target, flags)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            kind = next((name for is_kind, name in _KINDS if is_kind(found.st_mode)), "no regular file")
            raise UserError(f"{path}: found {kind}, allowed is a regular file: put the file itself there")
        if max_bytes is not None and found.st_size > max_bytes:
            raise UserError(f"{path}: found {found.st_size:,} bytes, allowed are {max_bytes:,}: is it the right file?")
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_regular(path: Path, *, max_bytes: int, inside: Path | None = None) -> bytes:
    """Read a regular file whole; see ``open_regular`` for the arguments.

    Raises:
        FileNotFoundError: There is no such file.
        UserError: It is no regular file, is too large, lies outside of ``inside``, or cannot be read.
    """
    with open_regular(path, max_bytes=max_bytes, inside=inside) as stream:
        try:
            content = stream.read(max_bytes + 1)
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    if len(content) > max_bytes:  # it has grown since its size was checked
        raise UserError(f"{path}: found more than {max_bytes:,} bytes, which is what is allowed: is it the right file?")
    return content


def read_json(path: Path, *, max_bytes: int, inside: Path | None = None) -> Any:
    """Read a JSON file whose texts can all be written as UTF-8 again; see ``open_regular`` for the arguments.

    Raises:
        FileNotFoundError: There is no such file.
        UserError: It is no regular file, is too large, lies outside of ``inside``, or cannot be read.
        ValueError: It is not JSON, is nested too deeply, or a text has half of a surrogate pair. The message is one
            line and does not name the file.
    """
    return parse_json(read_regular(path, max_bytes=max_bytes, inside=inside))


def parse_json(content: bytes) -> Any:
    """Parse JSON whose texts can all be written as UTF-8 again.

    Raises:
        ValueError: It is not JSON, is nested too deeply, or a text has half of a surrogate pair. The message is one
            line.
    """
    try:
        values = json.loads(content)
        if b"\\u" in content:
            json.dumps(values, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"a text contains half of a surrogate pair, {error.object[error.start]!r}") from None
    except RecursionError:
        raise ValueError("its brackets are nested too deeply") from None
    return values


def sha256_file(path: Path, *, inside: Path | None = None) -> str:
    """Return the SHA-256 of a regular file as hexadecimal digits. The file is read in blocks.

    Args:
        path: The file.
        inside: The folder that it must be in once all links are resolved; None for anywhere.

    Raises:
        FileNotFoundError: There is no such file.
        UserError: It is no regular file, lies outside of ``inside``, or cannot be read.
    """
    digest, block = hashlib.sha256(), memoryview(bytearray(_BLOCK_BYTES))
    with open_regular(path, inside=inside) as stream:
        try:
            while count := stream.readinto(block):  # type: ignore[attr-defined]
                digest.update(block[:count])
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    return digest.hexdigest()


def resolve_inside(folder: Path, path: Path | str) -> Path:
    """Return a path with all links resolved, which lies inside a folder.

    Args:
        folder: The folder. It may be reached through links itself.
        path: The path. A text is a path below the folder, as a file of the folder gives it.

    Raises:
        UserError: The path is absolute though a file gave it, or leads out of the folder.
    """
    try:
        root = folder.resolve()
        if isinstance(path, str):
            found = None if PurePosixPath(path).is_absolute() or "\0" in path else (root / path).resolve()
        else:
            found = path.resolve()
    except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
        raise UserError(f"{path}: cannot be read: {error}") from error
    if found is None or found == root or not found.is_relative_to(root):
        raise UserError(f"{path}: leads out of {folder}, and only what is inside is used: put the file itself there")
    return found
