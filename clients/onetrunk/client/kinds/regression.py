"""A number in a range."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

from onetrunk.client.answer import Prediction, short
from onetrunk.client.kinds.reader import Reader, RowRead
from onetrunk.protocol.ensemble_info import TaskInfo


@dataclass(frozen=True)
class NumberPrediction(Prediction):
    """A number.

    Attributes:
        decimals: how many a reader is shown.
    """

    decimals: int = 2

    def record(self, top: int | None) -> dict[str, Any]:
        """See Prediction.record."""
        return {"score": short(self.score)}

    def lines(self, top: int) -> list[tuple[str, str]]:
        """See Prediction.lines."""
        return [("", f"{self.score:.{self.decimals}f}")]


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
        return NumberPrediction(task.name, None, scores[0], {}, _decimals(task))

    def answers(self, task: TaskInfo) -> str:
        """Its range."""
        return "{:.10g} to {:.10g}".format(*task.range) if task.range else "a number"


def _decimals(task: TaskInfo) -> int:
    """For a five-hundredth of the range or better, and at least two."""
    size = task.range[1] - task.range[0] if task.range else 1.0
    return max(2, 2 - math.floor(math.log10(size))) if 0 < size < math.inf else 2
