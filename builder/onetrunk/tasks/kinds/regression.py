"""Regression: one number in a range."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from onetrunk.protocol.reference import Reference
from onetrunk.tasks.kinds.base import (
    AnswerSpec,
    Kind,
    KindConfig,
    LabelCodec,
    Offsets,
    OutputSpec,
    Scores,
    TrainingSpec,
)
from onetrunk.tasks.kinds.soft import SoftLabel
from onetrunk.tasks.kinds.summary import histogram

# torch is imported where it computes: reading what a head answers does not need it.
if TYPE_CHECKING:
    from torch import Tensor, nn

# A range must have at least this many 32-bit floats: one for each tenth of a percent.
_MIN_STEPS = 1000


class RegressionCodec(LabelCodec):
    """Numbers are encoded on a scale from 0 to 1."""

    uses_range: ClassVar[bool] = True
    accepts_soft: ClassVar[Literal["one", "several"] | None] = "one"

    def encode(self, label: object, config: KindConfig, text: str = "") -> float:
        """Return the number, scaled to 0..1; of a soft label, the mean of its numbers.

        Raises:
            ValueError: The label is not a number in the task's range.
        """
        if isinstance(label, SoftLabel):
            return sum(weight * self.encode(number, config) for number, weight in label.weights.items())
        low, high = _range(config)
        try:
            # Python reads 1_0 as 10; data that have it mean something else.
            no_number = isinstance(label, bool) or (isinstance(label, str) and "_" in label)
            number = math.nan if no_number else float(label)  # type: ignore[arg-type]
        except (TypeError, ValueError, OverflowError):
            number = math.nan
        if not low <= number <= high:
            raise ValueError(f"label {label!r:.60} is not a number from {low:.10g} to {high:.10g}")
        return (number - low) / (high - low)

    def targets(
        self, encoded: Sequence[float], config: KindConfig, offsets: Offsets | None = None
    ) -> NDArray[np.float32]:
        """Return numbers from 0 to 1. *Shape:* (rows,)."""
        return np.array(encoded, dtype=np.float32)

    def encoded_of(
        self,
        raw: NDArray[np.float32],
        config: KindConfig,
        text: str = "",
        offsets: Sequence[tuple[int, int]] | None = None,
    ) -> float:
        """See ``LabelCodec.encoded_of``: the number, within the scale from 0 to 1."""
        return float(np.clip(raw[0], 0, 1))


class RegressionTraining(TrainingSpec):
    """Mean squared error on the 0..1 scale."""

    # There is no softmax to soften.
    supports_temperature: ClassVar[bool] = False

    def loss(
        self, raw: Tensor, targets: Tensor, output: nn.Module | None = None, weights: Tensor | None = None
    ) -> Tensor:
        """Return the mean squared error."""
        from torch.nn import functional

        return functional.mse_loss(raw.squeeze(-1), targets)

    def soft_loss(self, raw: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        """Return the mean squared error to the teacher's number; the temperature has no effect."""
        from torch.nn import functional

        return functional.mse_loss(raw, teacher)


class RegressionOutput(OutputSpec):
    """The number in the task's range. It is not clipped, so it may lie slightly outside."""

    def check(self, config: KindConfig) -> None:
        """Check that 32-bit floats can tell the numbers of the range apart.

        Raises:
            ValueError: They cannot.
        """
        low, high = _range(config)
        greatest = max(abs(low), abs(high))
        if greatest > np.finfo(np.float32).max or (high - low) < _MIN_STEPS * np.spacing(np.float32(greatest)):
            raise ValueError(
                f"range {[low, high]}: answers are 32-bit floats, which have too few numbers in it; "
                "subtract a number from the labels, or give them in another unit"
            )

    def num_outputs(self, config: KindConfig) -> int:
        """Return 1."""
        return 1

    def scores(self, raw: Tensor, config: KindConfig, output: nn.Module | None = None) -> Tensor:
        """Return the number in the task's range."""
        low, high = _range(config)
        return raw * (high - low) + low

    def describe(self, config: KindConfig) -> str:
        """Name the range."""
        return "a number from {:.10g} to {:.10g}".format(*_range(config))


class RegressionAnswers(AnswerSpec):
    """The answer is the number."""

    agreement_measure: ClassVar[Literal["share", "correlation"]] = "correlation"

    def predictions(self, scores: Scores, config: KindConfig) -> NDArray[np.float64]:
        """Return the number, scaled back to 0..1. *Shape:* (rows, 1) to (rows,)."""
        low, high = _range(config)
        return np.asarray((scores[:, 0].astype(np.float64) - low) / (high - low))

    def format(self, scores: Scores, config: KindConfig) -> str:
        """Return the number, to a five-hundredth of its range or better."""
        low, high = _range(config)
        return f"{scores[0]:.{max(2, 2 - math.floor(math.log10(high - low)))}f}"

    def reference(self, scores: Scores, config: KindConfig) -> Reference:
        """Return how often the number lies in each tenth of the range."""
        return Reference(rows=len(scores), numbers=histogram(self.predictions(scores, config)))

    def difference(self, found: Scores, expected: Scores, config: KindConfig) -> float:
        """Return the greatest difference as a share of the range."""
        low, high = _range(config)
        return super().difference(found, expected, config) / (high - low)

    def agreement(
        self, first: Scores, second: Scores, config: KindConfig, other: KindConfig | None = None
    ) -> float | None:
        """See `AnswerSpec.agreement`: the correlation of both, or None if one of them is constant."""
        one, two = self.predictions(first, config), self.predictions(second, other or config)
        if len(one) < 2 or one.std() == 0 or two.std() == 0:
            return None
        return float(np.corrcoef(one, two)[0, 1])

    def distance(
        self, first: Scores, second: Scores, config: KindConfig, other: KindConfig | None = None
    ) -> NDArray[np.float32]:
        """See `AnswerSpec.distance`: the absolute difference of the numbers."""
        found: NDArray[np.float32] = np.abs(first - second)[:, 0]
        return found


def _range(config: KindConfig) -> tuple[float, float]:
    if config.range is None:
        raise ValueError("a regression task needs a range")
    return config.range


REGRESSION = Kind(
    name="regression",
    codec=RegressionCodec(),
    training=RegressionTraining(),
    output=RegressionOutput(),
    answers=RegressionAnswers(),
    metrics=("pearson_spearman", "pearson", "spearman"),
)
