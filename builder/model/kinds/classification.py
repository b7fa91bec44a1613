"""One label of several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from builder.model.kinds.base import AnswerSpace, Kind, Scores, known_label, labels_of

_SUM_TOLERANCE = 1e-3

# torch itself is imported where it computes: whoever only reads what a head answers need not wait for it.
if TYPE_CHECKING:
    from torch import Tensor


class Classification(Kind):
    """One label a text; scores are probabilities over the labels."""

    name: ClassVar[str] = "classification"
    uses_labels: ClassVar[bool] = True
    metrics: ClassVar[tuple[str, ...]] = ("accuracy", "f1", "macro_f1", "matthews", "f1_accuracy")

    def outputs(self, space: AnswerSpace) -> int:
        """One a label."""
        return len(labels_of(space))

    def describe(self, space: AnswerSpace) -> str:
        """Its labels."""
        return ", ".join(f"`{label}`" for label in labels_of(space))

    def encode(self, label: object, space: AnswerSpace) -> int:
        """The label's index."""
        return known_label(label, space)

    def targets(self, encoded: Sequence[int], space: AnswerSpace) -> NDArray[np.int64]:
        """Indices of labels. *Shape:* (rows,)."""
        return np.array(encoded, dtype=np.int64)

    def absent(self, encoded: Sequence[int], space: AnswerSpace) -> list[str]:
        """The labels that no row has."""
        present = set(encoded)
        return [label for index, label in enumerate(labels_of(space)) if index not in present]

    def loss(self, raw: Tensor, targets: Tensor) -> Tensor:
        """Cross entropy."""
        from torch.nn import functional

        return functional.cross_entropy(raw, targets)

    def soft_loss(self, raw: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        """T^2 times the cross entropy with the teacher's softened probabilities (section 2 of the paper)."""
        import torch
        from torch.nn import functional

        wanted = torch.softmax(teacher / temperature, dim=-1)
        return temperature**2 * functional.cross_entropy(raw / temperature, wanted)

    def scores(self, raw: Tensor, space: AnswerSpace) -> Tensor:
        """Probabilities that sum to 1."""
        import torch

        return torch.softmax(raw, dim=-1)

    def predictions(self, scores: Scores, space: AnswerSpace) -> NDArray[np.int64]:
        """Indices of the likeliest labels. *Shape:* (rows,)."""
        return np.asarray(scores.argmax(axis=-1), dtype=np.int64)

    def fault(self, scores: Scores, space: AnswerSpace) -> str | None:
        """Not finite, or no probabilities."""
        fault = super().fault(scores, space)
        if fault is None and (scores.min() < 0 or np.abs(scores.sum(axis=-1) - 1).max() > _SUM_TOLERANCE):
            return "its scores are not probabilities that sum to 1: export it with its softmax"
        return fault

    def shown(self, scores: Scores, space: AnswerSpace) -> str:
        """The likeliest label and its probability."""
        return f"{labels_of(space)[int(scores.argmax())]} {scores.max():.2f}"
