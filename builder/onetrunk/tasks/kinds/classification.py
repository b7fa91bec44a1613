"""One label of several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator

from onetrunk.tasks.kinds.base import AnswerSpace, Kind, Offsets, Scores, known_label, labels_of
from onetrunk.tasks.kinds.calibration import LEAST, MOST, calibrate
from onetrunk.tasks.kinds.options import Options

_SUM_TOLERANCE = 1e-3

# torch itself is imported where it computes: whoever only reads what a head answers need not wait for it.
if TYPE_CHECKING:
    from torch import Tensor, nn


# Strict, so that neither a text nor true is taken for a number.
_Weight = Annotated[float, Field(gt=0, allow_inf_nan=False, strict=True)]


class ClassificationOptions(Options):
    """Options of a classification task.

    Attributes:
        class_weights: how much a row of a label counts in training: ``balanced`` for as much as makes all labels
            count alike together, or label -> weight, 1 for those that are not named.
        none_below: where the best label's probability is lower, the answer is "none of these"; more than 1 / labels,
            which it always has.
    """

    class_weights: Literal["balanced"] | dict[str, _Weight] | None = None
    none_below: float | None = Field(default=None, gt=0, lt=1, strict=True)

    @field_validator("class_weights", mode="before")
    @classmethod
    def _balanced_or_a_table(cls, given: object) -> object:
        if given not in (None, "balanced") and not isinstance(given, dict):
            raise ValueError("must be 'balanced', or a table of labels as in {alarm = 3, play = 0.5}")
        return given


class Classification(Kind):
    """One label a text; scores are probabilities over the labels."""

    name: ClassVar[str] = "classification"
    uses_labels: ClassVar[bool] = True
    options: ClassVar[type[Options]] = ClassificationOptions
    metrics: ClassVar[tuple[str, ...]] = ("accuracy", "f1", "macro_f1", "matthews", "f1_accuracy")

    def check(self, space: AnswerSpace) -> None:
        """Labels as of any kind, weights for none but those, and a temperature that calibrate could have come to."""
        super().check(space)
        options, labels = ClassificationOptions.read(space.options), labels_of(space)
        weights, least = options.class_weights, 1 / len(labels)
        if isinstance(weights, dict) and (unknown := sorted(set(weights) - set(labels))):
            raise ValueError(f"options.class_weights names {', '.join(unknown):.60}, which labels has not")
        if options.none_below is not None and options.none_below <= least:
            raise ValueError(
                f"options.none_below = {options.none_below:g} can never be: the likeliest of {len(labels)} labels has "
                f"{least:.3g} or more"
            )
        temperature = space.fitted.get("temperature", 1.0)
        # JSON's true is a number to Python.
        if type(temperature) not in (int, float) or not LEAST <= temperature <= MOST:
            raise ValueError(
                f"fitted.temperature must be a number from {LEAST:g} to {MOST:g}; found {temperature!r:.60}"
            )

    def outputs(self, space: AnswerSpace) -> int:
        """One a label."""
        return len(labels_of(space))

    def describe(self, space: AnswerSpace) -> str:
        """Its labels."""
        return ", ".join(f"`{label}`" for label in labels_of(space))

    def served(self, space: AnswerSpace) -> dict[str, Any]:
        """From which probability on the answer is one of the labels."""
        none_below = ClassificationOptions.read(space.options).none_below
        return {} if none_below is None else {"none_below": none_below}

    def encode(self, label: object, space: AnswerSpace, text: str = "") -> int:
        """The label's index."""
        return known_label(label, space)

    def targets(self, encoded: Sequence[int], space: AnswerSpace, offsets: Offsets | None = None) -> NDArray[np.int64]:
        """Indices of labels. *Shape:* (rows,)."""
        return np.array(encoded, dtype=np.int64)

    def absent(self, encoded: Sequence[int], space: AnswerSpace) -> list[str]:
        """The labels that no row has."""
        present = set(encoded)
        return [label for index, label in enumerate(labels_of(space)) if index not in present]

    def weights(self, targets: NDArray[np.int64], space: AnswerSpace) -> NDArray[np.float32] | None:
        """By the option ``class_weights``."""
        wanted, labels = ClassificationOptions.read(space.options).class_weights, labels_of(space)
        if wanted is None:
            return None
        if wanted == "balanced":
            counts = np.bincount(targets, minlength=len(labels))
            # A label that no row has weighs nothing anyway.
            of_label = len(targets) / (np.count_nonzero(counts) * np.maximum(counts, 1))
        else:
            of_label = np.array([wanted.get(label, 1.0) for label in labels])
        return of_label[targets].astype(np.float32)

    def loss(
        self, raw: Tensor, targets: Tensor, output: nn.Module | None = None, weights: Tensor | None = None
    ) -> Tensor:
        """Cross entropy; the mean by the rows' weights."""
        from torch.nn import functional

        if weights is None:
            return functional.cross_entropy(raw, targets)
        each = functional.cross_entropy(raw, targets, reduction="none")
        return (weights * each).sum() / weights.sum()

    def soft_loss(self, raw: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        """T^2 times the cross entropy with the teacher's softened probabilities (section 2 of the paper)."""
        import torch
        from torch.nn import functional

        wanted = torch.softmax(teacher / temperature, dim=-1)
        return temperature**2 * functional.cross_entropy(raw / temperature, wanted)

    def fit(self, raw: Tensor, targets: NDArray[np.int64], space: AnswerSpace) -> dict[str, Any]:
        """The temperature by which the probabilities mean what they say; see calibrate."""
        return calibrate(raw.numpy(), targets)

    def scores(self, raw: Tensor, space: AnswerSpace, output: nn.Module | None = None) -> Tensor:
        """Probabilities that sum to 1, calibrated where a temperature was fitted."""
        import torch

        temperature = space.fitted.get("temperature")
        return torch.softmax(raw / temperature if temperature else raw, dim=-1)

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
