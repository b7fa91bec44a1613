"""Files: the folder of caches, atomic writes, and one message for whatever the disk refuses."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from onetrunk.protocol.cache import CACHE_VARIABLE as CACHE_VARIABLE
from onetrunk.protocol.cache import cache_root as cache_root
from onetrunk.protocol.errors import OneTrunkError, UserError


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside a file, and move what was written there into the file's place at the end.

    If anything fails, the file stays as it is and the temporary file is removed.

    Raises:
        OneTrunkError: The file cannot be written; see ``translate_os_errors``.
    """
    # Neither threads nor containers, which may have the same process ids, write into each other's.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")
    try:
        with translate_os_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            os.replace(temporary, path)
    finally:
        with suppress(OSError):
            temporary.unlink()


def atomic_write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically.

    Raises:
        OneTrunkError: The file cannot be written; see ``translate_os_errors``.
    """
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def replaced_folder(folder: Path, mark: str) -> Iterator[Path]:
    """Yield an empty folder beside a folder, and move it into the folder's place at the end: a reader never sees half.

    A crash between the two renames of a replacement leaves the old folder beside its place, as ``.<name>.*.old``.

    Args:
        folder: The folder.
        mark: The file that each folder of this kind has; see ``check_replaceable``.

    Raises:
        UserError: There is something of another kind in its place.
        OneTrunkError: The disk is full, or the folder cannot be written for another reason.
    """
    check_replaceable(folder, mark)
    with translate_os_errors(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            yield staging
            # Temporary files are readable by their owner only; the folder by everybody who may read the one above it.
            staging.chmod(0o755)
            for file in staging.iterdir():
                file.chmod(0o644)
            if folder.exists():
                retired = staging.with_name(staging.name + ".old")
                os.replace(folder, retired)
                os.replace(staging, folder)
                shutil.rmtree(retired)
            else:
                os.replace(staging, folder)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def check_replaceable(folder: Path, mark: str) -> None:
    """Check that a folder may be replaced: it is not there, is empty, or holds the file that its kind has.

    Raises:
        UserError: It holds something else, which would be lost, or is no folder.
    """
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise UserError(f"{folder} is in the way: it is no folder; remove it, or write to another place")
    if folder.is_dir() and not (folder / mark).exists() and any(folder.iterdir()):
        raise UserError(
            f"{folder} is in the way: it has no {mark}, and what is in it would be lost; remove it, or write to "
            "another place"
        )


@contextmanager
def translate_os_errors(path: Path) -> Iterator[None]:
    """Turn write errors raised inside the block into one line about ``path``.

    Raises:
        OneTrunkError: The disk is full, or the file or folder cannot be written for another reason.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = _write_failure(error)
        if reason is None:
            raise
        # A folder that was given by an option needs no naming of the option.
        other = f", or name another folder by {CACHE_VARIABLE}, or by --cache where the command has it,"
        elsewhere = other if path.is_relative_to(cache_root()) else ""
        raise OneTrunkError(
            f"{path}: cannot be written: {reason}; fix that{elsewhere} and run the same command again: it resumes from "
            "what is finished"
        ) from error


def _write_failure(error: Exception) -> str | None:
    """Return why a write failed, or None if the error is not about writing."""
    if isinstance(error, OSError):
        return "the disk is full" if error.errno == errno.ENOSPC else str(error.strerror or error)
    if isinstance(error, SafetensorError):
        return "the disk is full" if "No space left" in str(error) else str(error)
    # torch reports a short write without its reason.
    return "the disk seems to be full" if "inline_container" in str(error) else None
