"""A number in a range."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from onetrunk.tasks.kinds.base import AnswerSpace, Kind, Offsets, Scores

# torch itself is imported where it computes: whoever only reads what a head answers need not wait for it.
if TYPE_CHECKING:
    from torch import Tensor, nn


# Answers shall be as exact as a percentage with a digit behind its point.
_FEWEST_STEPS = 1000


class Regression(Kind):
    """One number a text.

    A head learns it scaled to 0..1; scores are in the task's own range, and may lie a little outside.
    """

    name: ClassVar[str] = "regression"
    uses_range: ClassVar[bool] = True
    # A number has no softmax.
    softens: ClassVar[bool] = False
    metrics: ClassVar[tuple[str, ...]] = ("pearson_spearman", "pearson", "spearman")
    agreement_is: ClassVar[str] = "correlation"

    def check(self, space: AnswerSpace) -> None:
        """See Kind.check. Answers are 32-bit floats, which must tell the numbers of the range apart."""
        super().check(space)
        low, high = _range(space)
        greatest = max(abs(low), abs(high))
        if greatest > np.finfo(np.float32).max or (high - low) < _FEWEST_STEPS * np.spacing(np.float32(greatest)):
            raise ValueError(
                f"range {[low, high]}: answers are 32-bit floats, which have too few numbers in it; "
                "subtract a number from the labels, or give them in another unit"
            )

    def outputs(self, space: AnswerSpace) -> int:
        """One."""
        return 1

    def describe(self, space: AnswerSpace) -> str:
        """Its range."""
        return "a number from {:.10g} to {:.10g}".format(*_range(space))

    def encode(self, label: object, space: AnswerSpace, text: str = "") -> float:
        """The number, scaled to 0..1."""
        low, high = _range(space)
        try:
            number = math.nan if isinstance(label, bool) else float(label)  # type: ignore[arg-type]
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not low <= number <= high:
            raise ValueError(f"label {label!r:.60} is not a number from {low:.10g} to {high:.10g}")
        return (number - low) / (high - low)

    def targets(
        self, encoded: Sequence[float], space: AnswerSpace, offsets: Offsets | None = None
    ) -> NDArray[np.float32]:
        """Numbers from 0 to 1. *Shape:* (rows,)."""
        return np.array(encoded, dtype=np.float32)

    def loss(
        self, raw: Tensor, targets: Tensor, output: nn.Module | None = None, weights: Tensor | None = None
    ) -> Tensor:
        """Mean squared error on the 0..1 scale."""
        from torch.nn import functional

        return functional.mse_loss(raw.squeeze(-1), targets)

    def soft_loss(self, raw: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        """Mean squared error to the teacher's number; there is nothing to soften."""
        from torch.nn import functional

        return functional.mse_loss(raw, teacher)

    def scores(self, raw: Tensor, space: AnswerSpace, output: nn.Module | None = None) -> Tensor:
        """The number in the task's range."""
        low, high = _range(space)
        return raw * (high - low) + low

    def predictions(self, scores: Scores, space: AnswerSpace) -> NDArray[np.float64]:
        """The number, scaled back to 0..1. *Shape:* (rows,)."""
        low, high = _range(space)
        return np.asarray((scores[:, 0].astype(np.float64) - low) / (high - low))

    def agreement(self, first: Scores, second: Scores, space: AnswerSpace) -> float | None:
        """The correlation of both; None where one of them never changes."""
        one, other = self.predictions(first, space), self.predictions(second, space)
        if len(one) < 2 or one.std() == 0 or other.std() == 0:
            return None
        return float(np.corrcoef(one, other)[0, 1])

    def distance(self, first: Scores, second: Scores, space: AnswerSpace) -> NDArray[np.float32]:
        """How far the numbers are apart."""
        found: NDArray[np.float32] = np.abs(first - second)[:, 0]
        return found

    def difference(self, found: Scores, expected: Scores, space: AnswerSpace) -> float:
        """The greatest difference of two numbers, as a share of the range."""
        low, high = _range(space)
        return super().difference(found, expected, space) / (high - low)

    def shown(self, scores: Scores, space: AnswerSpace) -> str:
        """The number, to a five-hundredth of its range or better."""
        low, high = _range(space)
        return f"{scores[0]:.{max(2, 2 - math.floor(math.log10(high - low)))}f}"


def _range(space: AnswerSpace) -> tuple[float, float]:
    if space.range is None:
        raise ValueError("a regression task needs a range")
    return space.range
