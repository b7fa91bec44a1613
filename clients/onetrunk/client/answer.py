"""What a call returns: one answer a row, one prediction a task, and how scores become predictions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from onetrunk.protocol.ensemble_info import TaskInfo


@dataclass(frozen=True)
class Prediction(ABC):
    """What one head predicts for one row. Each kind of task has a class of its own, which may have more attributes.

    Attributes:
        task: The task.
        label: The most likely label; None for kinds without one, such as regression.
        score: The probability of that label, or the number.
        scores: Label -> probability, the most likely first; empty if there are no labels.
        windows: The number of windows in which the text was read: 1, unless it was long and the task reads windows.
    """

    task: str
    label: str | None
    score: float
    scores: Mapping[str, float]
    windows: int = field(default=1, kw_only=True)

    @abstractmethod
    def record(self, top: int | None) -> dict[str, Any]:
        """Return the prediction as JSON values, with the scores of at most ``top`` labels, or of all if it is None."""

    def marks(self) -> list[tuple[int, int, str]]:
        """Return the parts of the text that it is about: first character, the one after the last, and a name."""
        return []

    @abstractmethod
    def lines(self, top: int) -> list[tuple[str, str]]:
        """Return lines of a table: label and score, the ``top`` most likely; with marks, one line for each of them."""


@dataclass(frozen=True)
class Answer(Mapping[str, Prediction]):
    """What all heads that were asked predict for one row: a mapping from task to prediction.

    Attributes:
        predictions: Task -> prediction, in the order in which the tasks were asked for.
        truncated: Whether the row was longer than the largest bucket, and some task did not read its end.
        ms: The time from sending the row's first request to its last response, all retries included. Not part of
            equality.
        tokens: The tokens that were read of the row, special tokens included, in all its windows; None if the server
            does not count them.
    """

    predictions: Mapping[str, Prediction]
    truncated: bool
    ms: float = 0.0
    tokens: int | None = None

    def __eq__(self, other: object) -> bool:
        """Return whether an answer is the same but for its time, or another mapping has the same predictions."""
        if isinstance(other, Answer):
            ours, theirs = ((one.predictions, one.truncated, one.tokens) for one in (self, other))
            return ours == theirs
        return Mapping.__eq__(self, other)

    def __getitem__(self, task: str) -> Prediction:
        return self.predictions[task]

    def __iter__(self) -> Iterator[str]:
        return iter(self.predictions)

    def __len__(self) -> int:
        return len(self.predictions)


@dataclass(frozen=True)
class TokenizedText:
    """A text as the server's tokenizer split it.

    Attributes:
        text: The text.
        truncated: Whether its end was not read.
        words: Word, first character, and the character after the last, of each token; -1 for special tokens and
            padding. *Shape:* (tokens, 3)
    """

    text: str
    truncated: bool
    words: NDArray[np.int64]


@dataclass(frozen=True)
class Reading:
    """What the server read of one row, or of one window of a long text.

    Attributes:
        tasks: The tasks that were asked.
        scores: Task -> scores. *Shape:* the task's own
        words: The tokens' words, as in `TokenizedText`; None if no task needs them. *Shape:* (tokens, 3)
        truncated: Whether its end was not read.
        tokens: The tokens that were read; None if the server does not count them.
        sent_s: The clock's reading when it was first sent.
        answered_s: The clock's reading when it was answered.
    """

    tasks: tuple[TaskInfo, ...]
    scores: Mapping[str, NDArray[Any]]
    words: NDArray[np.int64] | None
    truncated: bool
    tokens: int | None
    sent_s: float
    answered_s: float


class Reader(ABC):
    """Turns the scores of one kind of task into predictions.

    Attributes:
        kind: The name of the kind, as servers give it.
        needs_words: Whether it needs the text and the place of each token in it.
    """

    kind: ClassVar[str]
    needs_words: ClassVar[bool] = False

    @abstractmethod
    def missing(self, task: TaskInfo) -> str | None:
        """Return what a task of this kind lacks to be read, or None if it lacks nothing."""

    @abstractmethod
    def shape(self, task: TaskInfo) -> tuple[int | None, ...]:
        """Return the shape of a row's scores; None stands for any size."""

    @abstractmethod
    def read(self, task: TaskInfo, scores: Any, text: TokenizedText | None = None) -> Prediction:
        """Read the scores of a row.

        Args:
            task: The task.
            scores: Nested lists of numbers. *Shape:* see `shape`.
            text: The row itself, for a kind that `needs_words`.
        """

    def pool(self, scores: Sequence[NDArray[Any]], tokens: Sequence[int]) -> NDArray[Any]:
        """Return the scores of a long text: the mean over its windows, unless a kind knows better.

        Args:
            scores: The scores of each window. *Shape:* see `shape`
            tokens: The number of tokens of each window.
        """
        mean: NDArray[Any] = np.mean(scores, axis=0, dtype=np.float64)
        return mean

    @abstractmethod
    def answers(self, task: TaskInfo) -> str:
        """Return what the task may answer, for people."""


def six_digits(score: float) -> float:
    """Round a score to the six digits that a 32-bit float is good for."""
    return float(f"{score:.6g}")
