"""How the scores of one kind of task become a prediction."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from clients.answer import Prediction
from clients.task_info import TaskInfo


class Reader(ABC):
    """Reads the answers of one kind of task.

    Attributes:
        kind: the kind's name, as servers give it.
    """

    kind: ClassVar[str]

    @abstractmethod
    def fault(self, task: TaskInfo) -> str | None:
        """What a task of this kind lacks to be read; None where it lacks nothing."""

    @abstractmethod
    def outputs(self, task: TaskInfo) -> int:
        """How many scores a row has."""

    @abstractmethod
    def read(self, task: TaskInfo, scores: Sequence[float]) -> Prediction:
        """What a row's scores say. *Shape of the scores:* (outputs,)."""

    @abstractmethod
    def answers(self, task: TaskInfo) -> str:
        """What the task may answer, for people."""
