"""The kinds of task that this client can read, by name. A new kind is one new file in this folder and one line here.

A kind whose answers look like those of another one needs neither: its tasks say ``reads_as``.
"""

from __future__ import annotations

from clients.kinds.classification import ClassificationReader
from clients.kinds.multilabel import MultilabelReader
from clients.kinds.reader import Reader, RowRead
from clients.kinds.regression import RegressionReader
from clients.kinds.tagging import TaggingReader
from clients.task_info import TaskInfo

READERS: dict[str, Reader] = {
    reader.kind: reader for reader in (ClassificationReader(), RegressionReader(), MultilabelReader(), TaggingReader())
}


def reader_of(task: TaskInfo) -> Reader | None:
    """The reader of a task's answers; None where this client has none."""
    return READERS.get(task.reads_as or task.kind)


__all__ = ["READERS", "Reader", "RowRead", "reader_of"]
