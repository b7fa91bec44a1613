"""The last deployments of a repository, as anybody may see them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from onetrunk.protocol.names import DEPLOYMENTS_LOG
from onetrunk.protocol.reading import open_regular

MOST = 10
# What is read of the log, from its end. A line is some hundred bytes long.
_TAIL_BYTES = 64 * 1024
# What is shown. The log also names users and machines, and its reasons may name paths: these are for those who may
# read the file.
_SHOWN = ("time", "action", "task", "from", "to", "result")
_ENDED = ("done", "failed")


def last_deployments(repository: Path, most: int = MOST) -> list[dict[str, Any]]:
    """Return the deployments that ended last, the newest first.

    Args:
        repository: The repository's folder.
        most: The greatest number of deployments.

    Raises:
        UserError: The log is no regular file of the repository, or cannot be read.
    """
    try:
        stream = open_regular(repository / DEPLOYMENTS_LOG, inside=repository)
    except FileNotFoundError:
        return []
    with stream:
        size = os.fstat(stream.fileno()).st_size
        stream.seek(max(0, size - _TAIL_BYTES))
        lines = stream.read(_TAIL_BYTES).splitlines()
    found: list[dict[str, Any]] = []
    for line in reversed(lines):
        entry = _entry(line)
        if entry is not None:
            found.append(entry)
        if len(found) == most:
            break
    return found


def _entry(line: bytes) -> dict[str, Any] | None:
    """Return what is shown of a line; None for one that is cut off, is no deployment, or was only begun."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(entry, dict) or entry.get("result") not in _ENDED or not entry.get("task"):
        return None
    shown = {name: entry.get(name) for name in _SHOWN}
    return shown if all(value is None or isinstance(value, str | int) for value in shown.values()) else None
