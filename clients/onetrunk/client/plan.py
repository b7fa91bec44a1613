"""Which rows go to the server in one request."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from onetrunk.protocol.ensemble_info import TaskInfo

# Rows are sorted by length among this many batches: enough for equal buckets to meet, and the first
# rows of a long list are still among the first to be answered.
WINDOW_BATCHES = 16

# A request is kept below this, unless a single row is larger: the server's own limit on a text is
# there to name that text, and should not be met by the sum of its neighbours.
MAX_BATCH_BYTES = 8 * 2**20


@dataclass(frozen=True)
class Group:
    """Rows that ask the same tasks, and may share a request."""

    rows: tuple[int, ...]
    tasks: tuple[TaskInfo, ...]


@dataclass(frozen=True, eq=False)
class Batch:
    """The rows of one request, as indices into the caller's list, and the tasks they ask."""

    rows: tuple[int, ...]
    tasks: tuple[TaskInfo, ...]


def plan_batches(groups: Sequence[Group], sizes: Sequence[int], *, max_rows: int) -> list[Batch]:
    """Cuts every group into batches of rows of about one length.

    Args:
        groups: each row in at most one of them.
        sizes: row -> its size in bytes, which stands for its length.
        max_rows: most rows in one batch.

    Returns:
        Batches in which every row of every group is exactly once.
    """
    return [Batch(rows, group.tasks) for group in groups for rows in _cut(group.rows, sizes, max_rows)]


def _cut(rows: Sequence[int], sizes: Sequence[int], max_rows: int) -> Iterator[tuple[int, ...]]:
    window = max_rows * WINDOW_BATCHES
    for start in range(0, len(rows), window):
        batch: list[int] = []
        total = 0
        for row in sorted(rows[start : start + window], key=lambda row: sizes[row]):
            if batch and (len(batch) == max_rows or total + sizes[row] > MAX_BATCH_BYTES):
                yield tuple(batch)
                batch, total = [], 0
            batch.append(row)
            total += sizes[row]
        yield tuple(batch)
