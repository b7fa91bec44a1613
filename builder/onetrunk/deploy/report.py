"""What a deployment did, or would do."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from onetrunk.deploy.change import Change


@dataclass(frozen=True)
class DeploymentReport:
    """A deployment.

    Attributes:
        action: what was asked for: deploy, candidate, promote, discard, rollback, remove, prune, sync.
        task: the task; empty where it is about all.
        from_version: the version that was served before, None where none was; of a discard, the candidate's.
        to_version: the version that is served now; for a candidate, the candidate's.
        written: files that were written, or with a dry run would be, below the repository.
        removed: folders that were removed.
        diff: of a dry run, how configs and label files would change.
        settled: what an earlier deployment had left undone and this one finished first.
        seconds: step -> seconds; ``all`` is the whole.
        changed: whether anything was, or would be, changed.
        notes: what a user should know of the head that came in, and of files that were left out.
    """

    action: str
    task: str
    from_version: int | None = None
    to_version: int | None = None
    written: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    diff: str = ""
    settled: tuple[str, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    changed: bool = True
    notes: tuple[str, ...] = ()


def dry_run(change: Change, repository: Path, report: DeploymentReport) -> DeploymentReport:
    """The report of a change that is not carried out."""
    texts = change.texts(repository)
    files = [name for model in change.arrivals if model.fresh for name in model.files]
    diff = "".join(
        _diff(repository / name, name, text) for name, text in texts.items() if name.endswith((".pbtxt", ".txt"))
    )
    values = {**vars(report), "written": (*files, *texts), "removed": tuple(change.gone), "diff": diff}
    return DeploymentReport(**values)


def _diff(path: Path, name: str, text: str) -> str:
    before = path.read_text(encoding="utf-8") if path.is_file() else ""
    lines = difflib.unified_diff(
        before.splitlines(keepends=True), text.splitlines(keepends=True), f"now/{name}" if before else "/dev/null", name
    )
    return "".join(lines)
