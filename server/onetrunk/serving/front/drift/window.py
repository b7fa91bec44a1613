"""The last answers of one task."""

from __future__ import annotations

from collections import deque

from onetrunk.serving.front.drift.counts import Counts

MOST_ANSWERS = 2000
MAX_AGE_S = 24 * 3600.0
# Answers come and go in parts of at most so many.
PART = 250


class Window:
    """Counts over the last answers: at most `MOST_ANSWERS`, of at most `MAX_AGE_S`."""

    def __init__(self) -> None:
        self._parts: deque[tuple[float, Counts]] = deque()
        self._sum = Counts()

    def add(self, part: Counts, now: float) -> None:
        """Add answers, at most `PART`.

        Args:
            part: The answers.
            now: The time, by the clock of all calls.
        """
        self._parts.append((now, part))
        self._sum.add(part)
        while self._sum.answers > MOST_ANSWERS:
            self._drop()

    def counts(self, now: float) -> Counts:
        """Return the counts over the answers that are not too old. They change with the next answer."""
        while self._parts and now - self._parts[0][0] > MAX_AGE_S:
            self._drop()
        return self._sum

    def _drop(self) -> None:
        self._sum.remove(self._parts.popleft()[1])
