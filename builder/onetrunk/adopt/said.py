"""A file of soft labels in the place of a model: what a language model or several people said about texts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onetrunk.protocol.errors import UserError
from onetrunk.tasks import Task
from onetrunk.tasks.formats import read_records, sha256_of
from onetrunk.tasks.formats.tables import column_key
from onetrunk.tasks.kinds import get_kind
from onetrunk.tasks.kinds.soft import SOFT_COLUMNS, SoftLabel, read_soft
from onetrunk.tasks.records import Reading, Record
from onetrunk.tasks.soft_file import SoftFile, open_soft_file

FAMILY = "soft labels"
_MOST_LABELS = 1000


@dataclass(frozen=True)
class SaidFile:
    """A file of soft labels; it has what adoption asks of a ``Classifier``.

    Attributes:
        name: The name of its task, and of its bundle.
        folder: The file.
        source: What was asked for.
        sha256: The hash of the file.
        kind: The kind of its task.
        outputs: The labels, in their order.
        labels: The same; None for regression.
        label_field: The column of labels that are certain, or soft.
        notes: Empty; it is read, with its notes, by ``teacher``.
    """

    name: str
    folder: Path
    source: str
    sha256: str
    kind: str
    outputs: tuple[str, ...]
    labels: tuple[str, ...] | None
    label_field: str
    model_type: str = FAMILY
    thresholds: None = None
    size_bytes: int = 0
    notes: tuple[str, ...] = ()

    @property
    def by_token(self) -> bool:
        """No: soft labels are of whole texts."""
        return False

    def teacher(self, task: Task, *, skip_bad_rows: bool = False) -> SoftFile:
        """Read what the file says. Its texts are not the teacher's own: they are those of the request.

        Args:
            task: The task that was made of it.
            skip_bad_rows: Whether rows that cannot be used are left out.

        Raises:
            UserError: Rows cannot be used.
        """
        columns = task.model_copy(update={"label_field": self.label_field})
        return dataclasses.replace(open_soft_file(self.folder, columns, skip_bad_rows=skip_bad_rows), texts=())


def open_said_file(
    path: Path,
    *,
    name: str,
    kind: str | None = None,
    labels: Sequence[str] | None = None,
    label_field: str = "label",
) -> SaidFile:
    """Read which labels a file of soft labels has.

    Args:
        path: The file, in a format that holds task data.
        name: The name of its task.
        kind: The kind of its task; None is ``classification``.
        labels: Its labels in their order; None takes those that occur, sorted.
        label_field: The column of labels, where it has no ``probabilities`` or ``counts``.

    Raises:
        UserError: The file cannot be read, or has no labels.
    """
    kind = kind or "classification"
    codec = get_kind(kind).codec
    found: tuple[str, ...] | None = None
    if codec.uses_labels:
        found = tuple(labels) if labels is not None else _labels(path, label_field, one_of=codec.accepts_soft == "one")
    digest = sha256_of(path, Reading())
    return SaidFile(name, path, str(path), digest, kind, found or ("number",), found, label_field)


def _labels(path: Path, label_field: str, *, one_of: bool) -> tuple[str, ...]:
    found: set[str] = set()
    for record in read_records(path, Reading()):
        if not isinstance(record, Record):
            continue
        column = _column(record.values, label_field)
        if column is None:
            raise UserError(
                f"{path}: no column of labels: give {label_field!r:.40}, or {' or '.join(map(repr, SOFT_COLUMNS))}"
            )
        try:
            value = read_soft(record.values[column], column, one_of=one_of)
        except ValueError:
            continue  # told with its line when all rows are read
        several = value.weights if isinstance(value, SoftLabel) else value if isinstance(value, list) else [value]
        found |= {str(one) for one in several if one is not None and one != ""}
        if len(found) > _MOST_LABELS:
            raise UserError(
                f"{path}: more than {_MOST_LABELS:,} labels in column {column!r:.40}: give --kind regression if these "
                "are numbers"
            )
    if len(found) < 1 + one_of:
        raise UserError(f"{path}: it has {len(found)} labels; a task of it needs two at least, or give --labels")
    return tuple(sorted(found))


def _column(values: Mapping[str, Any], label_field: str) -> str | None:
    there = {column_key(name): name for name in values}
    columns = [there[key] for one in (label_field, *SOFT_COLUMNS) if (key := column_key(one)) in there]
    # A row without a label may have probabilities beside the empty column.
    return next((one for one in columns if values[one] is not None), columns[0] if columns else None)
