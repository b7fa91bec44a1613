"""How the scores of one kind of task become a prediction."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from onetrunk.client.answer import Prediction
from onetrunk.protocol.ensemble_info import TaskInfo


@dataclass(frozen=True)
class RowRead:
    """A row as the server read it.

    Attributes:
        text: the text.
        truncated: whether its end was not read.
        words: word, first character and the one after the last, of each token; -1 for what is no part of the text.
            *Shape:* (tokens, 3)
    """

    text: str
    truncated: bool
    words: NDArray[np.int64]


class Reader(ABC):
    """Reads the answers of one kind of task.

    Attributes:
        kind: the kind's name, as servers give it.
        about_words: whether it needs the text and where its tokens stand in it.
    """

    kind: ClassVar[str]
    about_words: ClassVar[bool] = False

    @abstractmethod
    def fault(self, task: TaskInfo) -> str | None:
        """What a task of this kind lacks to be read; None where it lacks nothing."""

    @abstractmethod
    def shape(self, task: TaskInfo) -> tuple[int | None, ...]:
        """The shape of a row's scores; None stands for any size."""

    @abstractmethod
    def read(self, task: TaskInfo, scores: Any, row: RowRead | None = None) -> Prediction:
        """What a row's scores say.

        Args:
            task: the task.
            scores: nested lists of numbers, of the shape that ``shape`` says.
            row: the row itself, for a kind that is ``about_words``.
        """

    @abstractmethod
    def answers(self, task: TaskInfo) -> str:
        """What the task may answer, for people."""
