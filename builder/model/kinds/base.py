"""What a kind of task is: how labels become numbers, how outputs are trained, and what a user gets to read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor


class AnswerSpace(Protocol):
    """What a task can answer. Tasks and bundles both have it."""

    @property
    def labels(self) -> tuple[str, ...] | None:
        """The labels in the order of their indices, where the kind has labels."""

    @property
    def range(self) -> tuple[float, float] | None:
        """Lowest and highest number, where the kind answers with one."""


class Kind(ABC):
    """A kind of task. It has no state: what differs between tasks comes in as an AnswerSpace."""

    name: ClassVar[str]
    uses_labels: ClassVar[bool]
    uses_range: ClassVar[bool]

    @abstractmethod
    def outputs(self, space: AnswerSpace) -> int:
        """How many numbers a head of this kind gives for a text."""

    @abstractmethod
    def encode(self, label: object, space: AnswerSpace) -> int | float:
        """A label of the data as the number that the loss takes.

        Raises ValueError with what is wrong and what is allowed.
        """

    @abstractmethod
    def loss(self, raw: Tensor, targets: Tensor) -> Tensor:
        """Mean loss over the batch.

        Args:
            raw: a head's raw outputs. *Shape:* (batch_size, outputs)
            targets: encoded labels. *Shape:* (batch_size,)
        """

    @abstractmethod
    def soft_loss(self, raw: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        """How far a student's answers are from its teacher's: mean over the batch.

        Args:
            raw: the student's raw outputs. *Shape:* (batch_size, outputs)
            teacher: the teacher's raw outputs. *Shape:* (batch_size, outputs)
            temperature: how much both are softened, where the kind has something to soften.
        """

    @abstractmethod
    def scores(self, raw: Tensor, space: AnswerSpace) -> Tensor:
        """What is served: numbers that a user can read. *Shape:* (batch_size, outputs), in and out."""

    def fault(self, scores: NDArray[np.float32], space: AnswerSpace) -> str | None:
        """What is wrong with scores that a head of unknown origin gives for real texts; None where nothing is.

        Args:
            scores: what it gave. *Shape:* (batch_size, outputs)
            space: what it may answer.
        """
        return None if np.isfinite(scores).all() else "NaN or infinity among its scores"
