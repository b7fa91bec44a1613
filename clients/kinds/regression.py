"""A number in a range."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from clients.answer import Prediction, short
from clients.kinds.reader import Reader, RowRead
from clients.task_info import TaskInfo


@dataclass(frozen=True)
class NumberPrediction(Prediction):
    """A number."""

    def record(self, top: int | None) -> dict[str, Any]:
        """See Prediction.record."""
        return {"score": short(self.score)}

    def lines(self, top: int) -> list[tuple[str, str]]:
        """See Prediction.lines."""
        return [("", f"{self.score:.2f}")]


class RegressionReader(Reader):
    """One number."""

    kind: ClassVar[str] = "regression"

    def fault(self, task: TaskInfo) -> str | None:
        """A number can always be read."""
        return None

    def shape(self, task: TaskInfo) -> tuple[int | None, ...]:
        """One."""
        return (1,)

    def read(self, task: TaskInfo, scores: Any, row: RowRead | None = None) -> Prediction:
        """See Reader.read."""
        return NumberPrediction(task.name, None, scores[0], {})

    def answers(self, task: TaskInfo) -> str:
        """Its range."""
        return f"{task.range[0]:g} to {task.range[1]:g}" if task.range else "a number"
