"""What a call gives back: one answer a row, one prediction a task."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Prediction(ABC):
    """What one head says about one row. Each kind of task has its own (onetrunk.client.kinds), which may say more.

    Attributes:
        task: the task.
        label: the likeliest label; None where a kind has no such thing, as regression.
        score: that label's probability, or the number.
        scores: label -> probability, likeliest first; empty where there are no labels.
    """

    task: str
    label: str | None
    score: float
    scores: Mapping[str, float]

    @abstractmethod
    def record(self, top: int | None) -> dict[str, Any]:
        """As JSON, with the scores of at most ``top`` labels; None gives all."""

    def marks(self) -> list[tuple[int, int, str]]:
        """Parts of the text that it is about: first character, the one after the last, and what they are."""
        return []

    @abstractmethod
    def lines(self, top: int) -> list[tuple[str, str]]:
        """As lines of a table: label and score, the ``top`` likeliest; where there are marks, a line a mark."""


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


def short(score: float) -> float:
    """Six digits: what a 32-bit float is good for."""
    return float(f"{score:.6g}")
