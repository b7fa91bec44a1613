"""The kinds of task that this client can read, by name. A new kind is one new file in this folder and one line here.

A kind whose answers look like those of another one needs neither: its tasks say ``reads_as``.
"""

from __future__ import annotations

from onetrunk.client.kinds.classification import ClassificationReader
from onetrunk.client.kinds.multilabel import MultilabelReader
from onetrunk.client.kinds.reader import Reader, RowRead
from onetrunk.client.kinds.regression import RegressionReader
from onetrunk.client.kinds.tagging import TaggingReader
from onetrunk.protocol.ensemble_info import TaskInfo

READERS: dict[str, Reader] = {
    reader.kind: reader for reader in (ClassificationReader(), RegressionReader(), MultilabelReader(), TaggingReader())
}


def reader_of(task: TaskInfo) -> Reader | None:
    """The reader of a task's answers; None where this client has none."""
    return READERS.get(task.reads_as or task.kind)


__all__ = ["READERS", "Reader", "RowRead", "reader_of"]
