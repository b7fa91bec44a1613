"""A file of soft labels in the place of a model: what a language model or several people said about texts."""

from __future__ import annotations

import dataclasses
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onetrunk.adopt.classifier import Adoptable
from onetrunk.protocol.errors import UserError
from onetrunk.tasks import Task
from onetrunk.tasks.formats import read_records, sha256_of
from onetrunk.tasks.formats.tables import column_key
from onetrunk.tasks.kinds import get_kind
from onetrunk.tasks.kinds.multilabel import MULTILABEL, SEPARATOR, split_labels
from onetrunk.tasks.kinds.soft import SOFT_COLUMNS, SoftLabel, read_soft
from onetrunk.tasks.records import BrokenLine, Reading, is_not_utf8
from onetrunk.tasks.soft_file import SoftFile, open_soft_file
from onetrunk.tasks.task import folded

FAMILY = "soft labels"
_MOST_LABELS = 1000


@dataclass(frozen=True, kw_only=True)
class SaidFile(Adoptable):
    """A file of soft labels. Its notes are those of its teacher, which has read it.

    Attributes:
        label_field: The column of labels that are certain, or soft.
    """

    label_field: str

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
    found: tuple[str, ...] | None = None
    if get_kind(kind).codec.uses_labels:
        found = tuple(labels) if labels is not None else _labels_of(path, kind, label_field)
    digest = sha256_of(path, Reading())
    return SaidFile(
        name=name,
        folder=path,
        source=str(path),
        sha256=digest,
        model_type=FAMILY,
        kind=kind,
        outputs=found or ("number",),
        labels=found,
        label_field=label_field,
    )


def _labels_of(path: Path, kind: str, label_field: str) -> tuple[str, ...]:
    """Return the labels that occur. What else is wrong with a row is told when all are read for the task."""
    one_of = get_kind(kind).codec.accepts_soft == "one"
    found: set[str] = set()
    faults: list[str] = []
    columns = 0
    for record in read_records(path, Reading(label=label_field)):
        if isinstance(record, BrokenLine):
            faults.append(f"{record.place}: {record.why}")
            continue
        column = _column(record.values, label_field)
        if column is None:
            continue
        columns += 1
        try:
            found |= set(_labels_in(record.values[column], column, kind, one_of=one_of))
        except ValueError as error:
            faults.append(f"{record.place}: {error}")
        if len(found) > _MOST_LABELS:
            raise UserError(
                f"{path}: more than {_MOST_LABELS:,} labels in column {column!r:.40}: give --kind regression if these "
                "are numbers"
            )
    if not columns and not faults:
        raise UserError(
            f"{path}: no column of labels: give {label_field!r:.40}, or {' or '.join(map(repr, SOFT_COLUMNS))}"
        )
    if len(found) < 1 + one_of:
        why = f" ({faults[0]})" if faults else ""
        raise UserError(
            f"{path}: labels are found in it: {len(found)}{why}; a task needs {1 + one_of} at least: mend the file, or "
            "give --labels"
        )
    alike: dict[str, str] = {}
    for label in sorted(found):
        if (other := alike.setdefault(folded(label), label)) != label:
            raise UserError(
                f"{path}: {other!r:.40} and {label!r:.40} differ only in case, blanks or accents: spell them alike, or "
                "give --labels"
            )
    return tuple(sorted(found))


def _labels_in(value: object, column: str, kind: str, *, one_of: bool) -> Iterator[str]:
    """Yield the labels of a row.

    Raises:
        ValueError: It has something else, which might be a label only if the task said so.
    """
    if isinstance(value, str) and kind == MULTILABEL.name and column.strip().casefold() not in SOFT_COLUMNS:
        value = split_labels(value, SEPARATOR)
    value = read_soft(value, column, one_of=one_of)
    for label in value.weights if isinstance(value, SoftLabel) else value if isinstance(value, list) else [value]:
        if label is None or label == "":
            continue
        if not isinstance(label, str):
            raise ValueError(f"{column!r:.40} has {label!r:.40}, which is no text: give --labels")
        if is_not_utf8(label):
            raise ValueError(f"{column!r:.40} contains half of a surrogate pair")
        # As labels of task data are read.
        yield unicodedata.normalize("NFC", label.strip())


def _column(values: Mapping[str, Any], label_field: str) -> str | None:
    there = {column_key(name): name for name in values}
    columns = [there[key] for one in (label_field, *SOFT_COLUMNS) if (key := column_key(one)) in there]
    # A row without a label may have probabilities beside the empty column.
    return next((one for one in columns if values[one] is not None), columns[0] if columns else None)
