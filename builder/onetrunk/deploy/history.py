"""The log of deployments: one line a step, only ever added to."""

from __future__ import annotations

import getpass
import json
import os
import socket
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from onetrunk.protocol.errors import OneTrunkError
from onetrunk.protocol.names import DEPLOYMENTS_LOG


class History:
    """``deployments.jsonl`` of a repository."""

    def __init__(self, repository: Path) -> None:
        self.path = repository / DEPLOYMENTS_LOG

    def add(self, **fields: Any) -> None:
        """Adds a line with the time and who it is.

        Raises:
            OneTrunkError: it cannot be written.
        """
        line = json.dumps({"time": _now(), "who": _who(), **fields}) + "\n"
        try:
            # One write in append mode: whole lines, also where two processes on one machine wrote at once.
            descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                size = os.fstat(descriptor).st_size
                # A line that a full disk or a crash cut off must not swallow this one.
                whole = size == 0 or os.pread(descriptor, 1, size - 1) == b"\n"
                os.write(descriptor, (line if whole else "\n" + line).encode())
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise OneTrunkError(f"{self.path}: cannot be written: {error.strerror}") from error

    def entries(self) -> Iterator[dict[str, Any]]:
        """The lines, oldest first; one that a crash cut off is left out."""
        try:
            lines = self.path.read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return
        for line in lines:
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if isinstance(entry, dict):
                yield entry

    def served_since(self, task: str, version: int) -> str | None:
        """When a task began to be served from this version; None where the log does not say."""
        since = None
        for entry in self.entries():
            if entry.get("task") == task and entry.get("result") == "done" and entry.get("action") in _SWITCHES:
                since = entry.get("time") if entry.get("to") == version else None
        return since


_SWITCHES = ("deploy", "rollback", "promote", "remove")


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _who() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a user id without a name, as in a container
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"
