"""What a call gives back: one answer a row, one prediction a task."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from clients.catalogue import TaskInfo


@dataclass(frozen=True)
class Prediction:
    """What one head says about one row.

    Attributes:
        task: the task.
        label: the likeliest label, or None for regression.
        score: that label's probability, or the number for regression.
        scores: label -> probability, likeliest first; empty for regression.
    """

    task: str
    label: str | None
    score: float
    scores: Mapping[str, float]


@dataclass(frozen=True)
class Answer:
    """What all asked heads say about one row.

    Attributes:
        predictions: task -> prediction, in the order the tasks were asked for.
        truncated: whether the row was longer than the last bucket, so that its end was not read.
        ms: time from sending the row's request to its answer, all tries together. No part of equality.
    """

    predictions: Mapping[str, Prediction]
    truncated: bool
    ms: float = field(compare=False, default=0.0)

    def __getitem__(self, task: str) -> Prediction:
        return self.predictions[task]


def _read_classification(task: TaskInfo, scores: Sequence[float]) -> Prediction:
    assert task.labels is not None  # TaskInfo refuses a classification without
    ranked = dict(sorted(zip(task.labels, scores, strict=True), key=lambda pair: -pair[1]))
    label, score = next(iter(ranked.items()))
    return Prediction(task.name, label, score, ranked)


def _read_regression(task: TaskInfo, scores: Sequence[float]) -> Prediction:
    return Prediction(task.name, None, scores[0], {})


# A new kind of task is one more reader here.
READERS: Mapping[str, Callable[[TaskInfo, Sequence[float]], Prediction]] = {
    "classification": _read_classification,
    "regression": _read_regression,
}
