"""What is deployed: a row a task."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from onetrunk.deploy.history import History
from onetrunk.protocol.names import MODEL_FILE, head_name
from onetrunk.repository.standing import read_standing


@dataclass(frozen=True)
class ListedTask:
    """A task of a repository.

    Attributes:
        task: the task.
        served: the version that is served; None where it was removed.
        versions: those on disk.
        loaded: those that the server holds.
        candidate: the version that is tried beside it.
        tap: where the served head stands.
        layers: how many layers it has.
        metric: its metric.
        score: its score on the dev data; None where nobody measured it.
        since: since when it is served, as ISO 8601.
    """

    task: str
    served: int | None
    versions: tuple[int, ...]
    loaded: tuple[int, ...]
    candidate: int | None
    tap: int | None
    layers: int | None
    metric: str | None
    score: float | None
    since: str | None


def list_tasks(repository: Path) -> list[ListedTask]:
    """The tasks of a repository, those that were removed too.

    Raises:
        UserError: there is no repository, or it cannot be read.
    """
    standing, history = read_standing(repository), History(repository)
    rows = []
    for task, head in sorted(standing.contents.heads.items()):
        spec = head.specs[head.served] if head.served else None
        since = None
        if head.served:
            file = repository / head_name(task) / str(head.served) / MODEL_FILE
            since = history.served_since(task, head.served) or _written(file)
        rows.append(
            ListedTask(
                task=task,
                served=head.served,
                versions=tuple(sorted(standing.manifest.models[head_name(task)].versions)),
                loaded=head.loaded,
                candidate=head.candidate,
                tap=spec.tap if spec else None,
                layers=spec.layers if spec else None,
                metric=spec.metric if spec else None,
                score=spec.scores.get(spec.metric) if spec else None,
                since=since,
            )
        )
    return rows


def _written(file: Path) -> str | None:
    try:
        return datetime.fromtimestamp(file.stat().st_mtime, timezone.utc).isoformat(timespec="seconds")
    except OSError:
        return None
