"""One label of several."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from typing import Any, ClassVar

from onetrunk.client.answer import Prediction, short
from onetrunk.client.kinds.reader import Reader, RowRead
from onetrunk.protocol.ensemble_info import TaskInfo


@dataclass(frozen=True)
class LabelPrediction(Prediction):
    """The likeliest label, and the probabilities of all.

    Attributes:
        none_of_these: whether even the likeliest is less likely than the task wants an answer to be.
    """

    none_of_these: bool = False

    def record(self, top: int | None) -> dict[str, Any]:
        """See Prediction.record."""
        scores = {label: short(score) for label, score in islice(self.scores.items(), top)}
        none = {"none_of_these": True} if self.none_of_these else {}
        return {"label": self.label, "score": short(self.score), **none, "scores": scores}

    def lines(self, top: int) -> list[tuple[str, str]]:
        """See Prediction.lines."""
        ranked = [(label, f"{score:.3f}") for label, score in islice(self.scores.items(), top)]
        return [("(none of these)", ""), *ranked] if self.none_of_these else ranked


class ClassificationReader(Reader):
    """Probabilities over the labels."""

    kind: ClassVar[str] = "classification"

    def fault(self, task: TaskInfo) -> str | None:
        """No labels."""
        return None if task.labels else f"a {task.kind} task without labels"

    def shape(self, task: TaskInfo) -> tuple[int | None, ...]:
        """One a label."""
        return (len(task.labels or ()),)

    def read(self, task: TaskInfo, scores: Any, row: RowRead | None = None) -> Prediction:
        """See Reader.read."""
        ranked = dict(sorted(zip(task.labels or (), scores, strict=True), key=lambda pair: -pair[1]))
        label, score = next(iter(ranked.items()))
        return LabelPrediction(task.name, label, score, ranked, score < (getattr(task, "none_below", None) or 0))

    def answers(self, task: TaskInfo) -> str:
        """Its labels."""
        return ", ".join(task.labels or ())
