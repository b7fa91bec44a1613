"""One label of several."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from builder.model.kinds.base import AnswerSpace, Kind

_SUM_TOLERANCE = 1e-3

# torch itself is imported where it computes: whoever only reads what a head answers need not wait for it.
if TYPE_CHECKING:
    from torch import Tensor


class Classification(Kind):
    """One label a text; scores are probabilities over the labels."""

    name: ClassVar[str] = "classification"
    uses_labels: ClassVar[bool] = True
    uses_range: ClassVar[bool] = False

    def outputs(self, space: AnswerSpace) -> int:
        """One a label."""
        return len(_labels(space))

    def encode(self, label: object, space: AnswerSpace) -> int:
        """The label's index."""
        labels = _labels(space)
        # CSV gives every label as text, JSON may give a number or a bool: both name a label by how it is written.
        text = label if isinstance(label, str) else str(label)
        if text not in labels:
            shown = ", ".join(labels[:10]) + (", ..." if len(labels) > 10 else "")
            raise ValueError(f"label {label!r} is not one of: {shown}")
        return labels.index(text)

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

    def fault(self, scores: NDArray[np.float32], space: AnswerSpace) -> str | None:
        """Not finite, or no probabilities."""
        fault = super().fault(scores, space)
        if fault is None and (scores.min() < 0 or np.abs(scores.sum(axis=-1) - 1).max() > _SUM_TOLERANCE):
            return "its scores are not probabilities that sum to 1: export it with its softmax"
        return fault


def _labels(space: AnswerSpace) -> tuple[str, ...]:
    if not space.labels:
        raise ValueError("a classification task needs labels")
    return space.labels
