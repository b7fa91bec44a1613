"""A number in a range."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

from builder.model.kinds.base import AnswerSpace, Kind

# torch itself is imported where it computes: whoever only reads what a head answers need not wait for it.
if TYPE_CHECKING:
    from torch import Tensor


class Regression(Kind):
    """One number a text.

    A head learns it scaled to 0..1; scores are in the task's own range, and may lie a little outside.
    """

    name: ClassVar[str] = "regression"
    uses_labels: ClassVar[bool] = False
    uses_range: ClassVar[bool] = True

    def outputs(self, space: AnswerSpace) -> int:
        """One."""
        return 1

    def encode(self, label: object, space: AnswerSpace) -> float:
        """The number, scaled to 0..1."""
        low, high = _range(space)
        try:
            number = math.nan if isinstance(label, bool) else float(label)  # type: ignore[arg-type]
        except (TypeError, ValueError):
            number = math.nan
        if not low <= number <= high:
            raise ValueError(f"label {label!r} is not a number from {low:g} to {high:g}")
        return (number - low) / (high - low)

    def loss(self, raw: Tensor, targets: Tensor) -> Tensor:
        """Mean squared error on the 0..1 scale."""
        from torch.nn import functional

        return functional.mse_loss(raw.squeeze(-1), targets)

    def soft_loss(self, raw: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        """Mean squared error to the teacher's number; there is nothing to soften."""
        from torch.nn import functional

        return functional.mse_loss(raw, teacher)

    def scores(self, raw: Tensor, space: AnswerSpace) -> Tensor:
        """The number in the task's range."""
        low, high = _range(space)
        return raw * (high - low) + low


def _range(space: AnswerSpace) -> tuple[float, float]:
    if space.range is None:
        raise ValueError("a regression task needs a range")
    return space.range
