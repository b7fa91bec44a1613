"""Several labels, or none."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from onetrunk.client.answer import Prediction, short
from onetrunk.client.kinds.reader import Reader, RowRead
from onetrunk.protocol.ensemble_info import TaskInfo


@dataclass(frozen=True)
class LabelsPrediction(Prediction):
    """All labels that hold. ``label`` and ``score`` are the likeliest label's, whether it holds or not.

    Attributes:
        labels: those that hold, likeliest first; empty where none does.
    """

    labels: tuple[str, ...] = ()

    def record(self, top: int | None) -> dict[str, Any]:
        """See Prediction.record; all labels that hold are in it, however many ``top`` asks for."""
        most = len(self.scores) if top is None else top
        shown = [label for at, label in enumerate(self.scores) if at < most or label in self.labels]
        return {"labels": list(self.labels), "scores": {label: short(self.scores[label]) for label in shown}}

    def lines(self, top: int) -> list[tuple[str, str]]:
        """All labels that hold; where none does, it says so."""
        return [(label, f"{self.scores[label]:.3f}") for label in self.labels] or [("(none)", f"{self.score:.3f}")]


class MultilabelReader(Reader):
    """A probability a label, each with a threshold of its own."""

    kind: ClassVar[str] = "multilabel"

    def fault(self, task: TaskInfo) -> str | None:
        """No labels, or not one threshold for each."""
        thresholds = getattr(task, "thresholds", None)
        if not task.labels:
            return f"a {task.kind} task without labels"
        if not isinstance(thresholds, list) or len(thresholds) != len(task.labels):
            return f"a {task.kind} task whose thresholds are not one a label"
        return None

    def shape(self, task: TaskInfo) -> tuple[int | None, ...]:
        """One a label."""
        return (len(task.labels or ()),)

    def read(self, task: TaskInfo, scores: Any, row: RowRead | None = None) -> Prediction:
        """See Reader.read."""
        thresholds: Sequence[float] = task.thresholds  # type: ignore[attr-defined]  # fault has looked
        triples = sorted(zip(task.labels or (), scores, thresholds, strict=True), key=lambda triple: -triple[1])
        holding = tuple(label for label, score, threshold in triples if score >= threshold)
        label, score, _ = triples[0]
        return LabelsPrediction(task.name, label, score, {one: value for one, value, _ in triples}, holding)

    def answers(self, task: TaskInfo) -> str:
        """Its labels."""
        return "any of " + ", ".join(task.labels or ())
