"""Rows that cannot be used: all of them counted, the first few of each sort shown."""

from __future__ import annotations

from collections import Counter
from typing import Literal

Sort = Literal["broken line", "missing field", "not a text", "empty text", "bad label"]
_SHOWN = 3


class RowError(Exception):
    """A row cannot be used."""

    def __init__(self, sort: Sort, why: str) -> None:
        super().__init__(why)
        self.sort: Sort = sort
        self.why = why


class Faults:
    """The faults of one file.

    Attributes:
        counts: how many rows have each sort of fault.
    """

    def __init__(self) -> None:
        self.counts: Counter[Sort] = Counter()
        self._first: dict[Sort, list[str]] = {}

    def add(self, line: int, sort: Sort, why: str) -> None:
        """Counts a row."""
        self.counts[sort] += 1
        first = self._first.setdefault(sort, [])
        if len(first) < _SHOWN:
            first.append(f"line {line} ({why})")

    @property
    def total(self) -> int:
        """How many rows cannot be used."""
        return sum(self.counts.values())

    def lines(self) -> list[str]:
        """One line a sort: its count, and the first few."""
        return [
            f"  {sort}: {count:,}: {'; '.join(self._first[sort])}{'; ...' if count > _SHOWN else ''}"
            for sort, count in self.counts.most_common()
        ]
