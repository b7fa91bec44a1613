"""A file of soft labels as a teacher: what a language model or several people said about texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onetrunk.progress import ProgressCallback, silent
from onetrunk.protocol.errors import UserError, counted
from onetrunk.tasks.examples import Examples, Texts, normalized, read_examples
from onetrunk.tasks.formats import read_records
from onetrunk.tasks.formats.tables import column_key
from onetrunk.tasks.kinds import get_kind
from onetrunk.tasks.kinds.base import KindConfig, Offsets
from onetrunk.tasks.records import Reading, Record
from onetrunk.tasks.soft_targets import RawTargets, raw_of_probabilities
from onetrunk.tasks.task import Task
from onetrunk.tasks.text_file import PAIR_FIELDS, TEXT_FIELDS


@dataclass(frozen=True)
class SoftFile:
    """A ``SoftTeacher`` that knows the texts of a file, and says nothing about others.

    Texts that differ only in case or white space are the same. What several rows say about one text is averaged.

    Attributes:
        identity: The hash of the file.
        facts: What the card of a head says about it.
        texts: Its texts, each once.
        notes: What a user should know about how it was read.
    """

    identity: str
    facts: Mapping[str, Any]
    texts: Texts
    notes: tuple[str, ...]
    _raw: RawTargets
    _rows: Mapping[tuple[str, ...], int]

    def raw(
        self,
        texts: Texts,
        config: KindConfig,
        offsets: Offsets | None = None,
        progress: ProgressCallback = silent,
    ) -> RawTargets:
        """See ``SoftTeacher``. The task must be the one that the file was read for."""
        found = np.full((len(texts), self._raw.shape[1]), np.nan, dtype=np.float32)
        some: Sequence[Any] = texts
        for place, text in enumerate(some):
            if (row := self._rows.get(normalized(text))) is not None:
                found[place] = self._raw[row]
        return found


def open_soft_file(path: Path, task: Task, *, skip_bad_rows: bool = False) -> SoftFile:
    """Read a file of soft labels for a task. Certain labels may be among them.

    Args:
        path: The file, in a format that holds task data. The text is in the column of the task, or in one of
            ``TEXT_FIELDS``; the labels in the column of the task, or in ``probabilities`` or ``counts``.
        task: The task.
        skip_bad_rows: Whether rows that cannot be used are left out, with a note, instead of refused.

    Raises:
        UserError: The kind of task takes no soft labels, the file cannot be read, or rows cannot be used.
    """
    kind = get_kind(task.kind)
    if kind.codec.accepts_soft is None:
        raise UserError(f"{path}: a task of kind {task.kind} takes no soft labels; a teacher of it is a model")
    if not path.is_file():
        raise UserError(f"{path}: there is no such file of soft labels")
    place = str(path.resolve())
    examples = read_examples(
        _with_columns(task, path).model_copy(update={"train": place, "dev": place}),
        "train",
        skip_bad_rows=skip_bad_rows,
    )
    rows: dict[tuple[str, ...], int] = {}
    texts: list[Any] = []
    of_text = np.empty(len(examples), dtype=np.int64)
    own: Sequence[Any] = examples.texts
    for row, text in enumerate(own):
        of_text[row] = rows.setdefault(normalized(text), len(rows))
        if len(rows) > len(texts):
            texts.append(text)
    values = _values(examples, task)
    sums = np.zeros((len(texts), values.shape[1]))
    np.add.at(sums, of_text, values)
    means = sums / np.bincount(of_text)[:, None]
    notes = examples.notes
    if (more := len(examples) - len(texts)) > 0:
        are = counted(more, "row is", "rows are")
        notes += (f"{path}: {are} about a text of another row: what they say is averaged",)
    raw = (
        raw_of_probabilities(means, independent=kind.codec.accepts_soft == "several")
        if kind.codec.uses_labels
        else means.astype(np.float32)
    )
    facts = {"name": path.name, "sha256": examples.sha256, "rows": len(examples)}
    return SoftFile(examples.sha256, facts, tuple(texts), notes, raw, rows)


def _values(examples: Examples, task: Task) -> NDArray[np.float64]:
    """Return probabilities. *Shape:* (rows, labels); or for regression numbers from 0 to 1. *Shape:* (rows, 1)."""
    targets = get_kind(task.kind).codec.targets(examples.targets, task)
    if targets.ndim == 2:
        return targets.astype(np.float64)
    if task.labels is None:
        return targets[:, None].astype(np.float64)
    found: NDArray[np.float64] = np.eye(len(task.labels))[targets]
    return found


def _with_columns(task: Task, path: Path) -> Task:
    """Return the task with the columns of the file's texts, if those of the task are not there."""
    records = read_records(path, Reading(encoding=task.encoding, delimiter=task.delimiter, quotes=task.quotes))
    first = next((record for record in records if isinstance(record, Record)), None)
    there = {column_key(name): name for name in (first.values if first is not None else ())}
    changes = {}
    for key, usual in (("text_field", TEXT_FIELDS), ("text_pair_field", PAIR_FIELDS)):
        if column_key(getattr(task, key)) not in there:
            found = next((there[column_key(name)] for name in usual if column_key(name) in there), None)
            if found is not None:
                changes[key] = found
    return task.model_copy(update=changes)
