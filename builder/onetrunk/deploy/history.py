"""What was deployed: the log, to which every deployment adds lines, and the list of tasks."""

from __future__ import annotations

import getpass
import json
import os
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from onetrunk.protocol.errors import OneTrunkError
from onetrunk.protocol.names import DEPLOYMENTS_LOG, MODEL_FILE, head_name
from onetrunk.protocol.reading import open_regular
from onetrunk.protocol.traffic_split import TrafficSplit
from onetrunk.repository.state import read_state

# A line lists the files of one deployment. What is longer is read in pieces, none of which is JSON.
_MAX_LINE_BYTES = 2**20
_SWITCHES = ("deploy", "rollback", "promote", "remove")


class History:
    """``deployments.jsonl`` of a repository. Lines are only ever added."""

    def __init__(self, repository: Path) -> None:
        self.path = repository / DEPLOYMENTS_LOG

    def add(self, **fields: Any) -> None:
        """Add a line, with the time and the user.

        Raises:
            OneTrunkError: The log cannot be written.
        """
        line = json.dumps({"time": _now(), "who": _user(), **fields}) + "\n"
        try:
            # One write in append mode keeps lines whole, even if two processes on one machine write at once.
            descriptor = os.open(self.path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o644)
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
        """Yield the lines, oldest first. A line that a crash cut off is skipped, and so is one that nothing here wrote.

        Raises:
            UserError: The log is no regular file.
        """
        try:
            stream = open_regular(self.path, inside=self.path.parent)
        except FileNotFoundError:
            return
        with stream:
            while line := stream.readline(_MAX_LINE_BYTES):
                try:
                    entry = json.loads(line)
                except (ValueError, RecursionError):
                    continue
                if isinstance(entry, dict):
                    yield entry

    def unfinished(self) -> dict[str, Any] | None:
        """Return the last deployment if it began and did not end, as one that was killed; None otherwise."""
        last: dict[str, Any] | None = None
        for entry in self.entries():
            last = entry
        return last if last is not None and last.get("result") == "begun" else None

    def served_since(self, task: str, version: int) -> str | None:
        """Return the time at which a task began to be served from a version; None if the log does not say."""
        since = None
        for entry in self.entries():
            if entry.get("task") == task and entry.get("result") == "done" and entry.get("action") in _SWITCHES:
                since = entry.get("time") if entry.get("to") == version else None
        return since


@dataclass(frozen=True)
class ListedTask:
    """A task of a repository.

    Attributes:
        task: The task.
        served: The version that is served; None if the task was removed.
        versions: The versions on disk.
        loaded: The versions that a server of these files holds.
        candidate: The version that is tried beside the served one.
        tap: The tap of the served head.
        limb: The identity of the limb that it stands on; None for the trunk itself.
        layers: The number of its layers.
        metric: Its metric.
        score: Its score on the dev data; None if it was not measured.
        since: The time since which it is served, as ISO 8601.
        drift: How far the server's answers of late are from those on the dev data, as ``/v1/tasks`` tells it; None if
            no server was asked, or it does not know.
        split: The share of the traffic that the candidate answers, and its bounds; None if it answers none.
        trials: Address of a server -> how the candidate does there that answers a share of the traffic.
    """

    task: str
    served: int | None
    versions: tuple[int, ...]
    loaded: tuple[int, ...]
    candidate: int | None
    tap: int | None
    limb: str | None
    layers: int | None
    metric: str | None
    score: float | None
    since: str | None
    drift: Mapping[str, Any] | None = None
    split: TrafficSplit | None = None
    trials: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def list_tasks(
    repository: Path,
    drifts: Mapping[str, Any] | None = None,
    trials: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[ListedTask]:
    """Return the tasks of a repository, including those that were removed.

    Args:
        repository: The repository.
        drifts: Task -> its drift as the server tells it.
        trials: Address of a server -> task -> how its candidate does, as the server tells it.

    Raises:
        UserError: There is no repository, or it cannot be read.
    """
    state, history = read_state(repository), History(repository)
    rows = []
    for task, head in sorted(state.heads.items()):
        spec = head.spec(head.served) if head.served else None
        since = None
        if head.served:
            file = repository / head_name(task) / str(head.served) / MODEL_FILE
            since = history.served_since(task, head.served) or _modified(file)
        rows.append(
            ListedTask(
                task=task,
                served=head.served,
                versions=tuple(sorted(state.on_disk[head_name(task)])),
                loaded=head.loaded,
                candidate=head.candidate,
                tap=spec.tap if spec else None,
                limb=spec.limb if spec else None,
                layers=spec.layers if spec else None,
                metric=spec.metric if spec else None,
                score=spec.scores.get(spec.metric) if spec else None,
                since=since,
                drift=(drifts or {}).get(task) if head.served else None,
                split=head.split,
                # For some seconds after a trial has ended, a front still tells of it.
                trials={
                    address: found[task]
                    for address, found in (trials or {}).items()
                    if task in found and found[task].get("version") == head.candidate
                },
            )
        )
    return rows


def _modified(file: Path) -> str | None:
    try:
        return datetime.fromtimestamp(file.stat().st_mtime, timezone.utc).isoformat(timespec="seconds")
    except OSError:
        return None


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _user() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a user id without a name, as in a container
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"
