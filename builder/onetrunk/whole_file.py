"""Files that are written whole or not at all, and what is said where they cannot be written."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from onetrunk.protocol.errors import OneTrunkError


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Gives a place beside a file to write to, and moves what is there into the file's place at the end.

    Where that fails, the file is as it was before, and nothing half is left.

    Raises:
        OneTrunkError: see ``writing``.
    """
    aside = path.with_suffix(f".{os.getpid()}.part")
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield aside
            os.replace(aside, path)
    finally:
        with suppress(OSError):
            aside.unlink()


def write_text(path: Path, text: str) -> None:
    """Writes a text file whole or not at all. Raises OneTrunkError as ``written_whole`` does."""
    with written_whole(path) as aside:
        aside.write_text(text, encoding="utf-8")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Within it, an error of writing becomes one line about ``path``.

    Raises:
        OneTrunkError: the disk is full, or the file or folder cannot be written for another reason.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = _reason(error)
        if reason is None:
            raise
        raise OneTrunkError(
            f"{path}: cannot be written: {reason}; mend that and give the same command again: it goes on from what is "
            "finished"
        ) from error


def _reason(error: Exception) -> str | None:
    """Why something cannot be written; None where the error is about something else."""
    if isinstance(error, OSError):
        return "the disk is full" if error.errno == errno.ENOSPC else str(error.strerror or error)
    if isinstance(error, SafetensorError):
        return "the disk is full" if "No space left" in str(error) else str(error)
    # torch's writer does not say why a write came out short.
    return "the disk seems to be full" if "inline_container" in str(error) else None
