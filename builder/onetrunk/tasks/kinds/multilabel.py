"""Several labels, or none."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from onetrunk.tasks.kinds.base import AnswerSpace, Kind, Offsets, Scores, known_label, labels_of

# In a table, where a cell is one text.
SEPARATOR = "|"
_USUAL_THRESHOLD = 0.5
# The sigmoids of two runtimes differ by up to 2e-7 in float32: scores nearer than this are told apart by neither. So a
# threshold of seven digits, half-way between scores that are further apart, is on the same side of both everywhere.
_APART = 1e-6
_THRESHOLD_DIGITS = 7

# torch itself is imported where it computes: whoever only reads what a head answers need not wait for it.
if TYPE_CHECKING:
    from torch import Tensor, nn


class Multilabel(Kind):
    """Any number of labels a text; scores are a probability a label, each by itself.

    A label holds where its score reaches the label's threshold. Thresholds are chosen on the dev data, each for the
    best F1 of its label, and kept in the bundle.
    """

    name: ClassVar[str] = "multilabel"
    uses_labels: ClassVar[bool] = True
    fewest_labels: ClassVar[int] = 1
    metrics: ClassVar[tuple[str, ...]] = ("mean_average_precision", "micro_f1", "macro_f1")

    def check(self, space: AnswerSpace) -> None:
        """Labels as of any kind, and where thresholds are given, one a label, above 0 and below 1."""
        super().check(space)
        if "thresholds" not in space.fitted:
            return
        thresholds = space.fitted["thresholds"]
        if not isinstance(thresholds, list) or not all(isinstance(one, float) and 0 < one < 1 for one in thresholds):
            raise ValueError(f"fitted.thresholds must be numbers above 0 and below 1; found {thresholds!r:.60}")
        if len(thresholds) != len(labels_of(space)):
            raise ValueError(f"fitted has {len(thresholds)} thresholds for {len(labels_of(space))} labels")

    def outputs(self, space: AnswerSpace) -> int:
        """One a label."""
        return len(labels_of(space))

    def describe(self, space: AnswerSpace) -> str:
        """Its labels."""
        return "any of " + ", ".join(f"`{label}`" for label in labels_of(space))

    def served(self, space: AnswerSpace) -> dict[str, Any]:
        """The thresholds, in the order of the labels."""
        return {"thresholds": self.thresholds(space).tolist()}

    def thresholds(self, space: AnswerSpace) -> NDArray[np.float64]:
        """From which score on a label holds. *Shape:* (labels,)."""
        usual = [_USUAL_THRESHOLD] * len(labels_of(space))
        return np.array(space.fitted.get("thresholds", usual), dtype=np.float64)

    def encode(self, label: object, space: AnswerSpace, text: str = "") -> tuple[int, ...]:
        """Indices of the labels that hold, of a list or of a text with ``|`` between them; empty for none."""
        if isinstance(label, str):
            label = _split(label)
        if not isinstance(label, list):
            raise ValueError(f"label {label!r:.60} is no list of labels, nor a text with {SEPARATOR} between them")
        found = [known_label(one, space) for one in label]
        if len(set(found)) < len(found):
            raise ValueError(f"label {label!r:.60} has one twice")
        return tuple(sorted(found))

    def targets(
        self, encoded: Sequence[tuple[int, ...]], space: AnswerSpace, offsets: Offsets | None = None
    ) -> NDArray[np.float32]:
        """1 for a label that holds. *Shape:* (rows, labels)."""
        found = np.zeros((len(encoded), len(labels_of(space))), dtype=np.float32)
        for row, indices in enumerate(encoded):
            found[row, list(indices)] = 1
        return found

    def absent(self, encoded: Sequence[tuple[int, ...]], space: AnswerSpace) -> list[str]:
        """The labels that no row has."""
        present = {index for indices in encoded for index in indices}
        return [label for index, label in enumerate(labels_of(space)) if index not in present]

    def loss(
        self, raw: Tensor, targets: Tensor, output: nn.Module | None = None, weights: Tensor | None = None
    ) -> Tensor:
        """Binary cross entropy, the mean over texts and labels."""
        from torch.nn import functional

        return functional.binary_cross_entropy_with_logits(raw, targets)

    def soft_loss(self, raw: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        """T^2 times the binary cross entropy with the teacher's softened probabilities."""
        import torch
        from torch.nn import functional

        wanted = torch.sigmoid(teacher / temperature)
        return temperature**2 * functional.binary_cross_entropy_with_logits(raw / temperature, wanted)

    def fit(self, raw: Tensor, targets: NDArray[np.float32], space: AnswerSpace) -> dict[str, Any]:
        """A threshold for each label, above 0 and below 1: where the label's F1 on these data is best."""
        scores = self.scores(raw, space).numpy().astype(np.float64)
        columns = range(scores.shape[1])
        return {"thresholds": [_best_threshold(scores[:, column], targets[:, column]) for column in columns]}

    def scores(self, raw: Tensor, space: AnswerSpace, output: nn.Module | None = None) -> Tensor:
        """A probability a label."""
        import torch

        return torch.sigmoid(raw)

    def predictions(self, scores: Scores, space: AnswerSpace) -> NDArray[np.float64]:
        """By how much a label's score exceeds its threshold: a label holds from 0 on. *Shape:* (rows, labels).

        Within a label the texts keep their order, which is all that average precision looks at.
        """
        found: NDArray[np.float64] = scores.astype(np.float64) - self.thresholds(space)
        return found

    def right(self, targets: NDArray[Any]) -> NDArray[np.float64]:
        """Above nought where a label holds, below where it does not."""
        return targets.astype(np.float64) - _USUAL_THRESHOLD

    def fault(self, scores: Scores, space: AnswerSpace) -> str | None:
        """Not finite, or no probabilities."""
        fault = super().fault(scores, space)
        if fault is None and (scores.min() < 0 or scores.max() > 1):
            return "its scores are not probabilities from 0 to 1: export it with its sigmoid"
        return fault

    def shown(self, scores: Scores, space: AnswerSpace) -> str:
        """The labels that hold."""
        holds = self.predictions(scores[None], space)[0] >= 0
        return ", ".join(label for label, held in zip(labels_of(space), holds, strict=True) if held) or "(none)"

    def _same(self, first: Scores, second: Scores, space: AnswerSpace) -> NDArray[np.bool_]:
        one, other = (self.predictions(scores, space) >= 0 for scores in (first, second))
        same: NDArray[np.bool_] = (one == other).all(axis=-1)
        return same


def _split(text: str) -> object:
    """The labels of a cell: JSON's own list, as a table may hold it, or labels with the separator between them."""
    if text.lstrip().startswith("["):
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            pass  # a label may begin so, brackets without end too
    return [label.strip() for label in text.split(SEPARATOR)] if text.strip() else []


def _best_threshold(scores: NDArray[np.float64], targets: NDArray[np.float32]) -> float:
    """Of all thresholds half-way between two scores, the one with the best F1; of equal ones, the one nearest to 0.5.

    Scores that cannot be told apart as they are served have no threshold between them. Where there is none, it is 0.5.

    Args:
        scores: of one label, from 0 to 1. *Shape:* (rows,)
        targets: whether it holds. *Shape:* (rows,)
    """
    if not targets.any():
        return _USUAL_THRESHOLD
    order = np.argsort(-scores, kind="stable")
    ranked, held = scores[order], np.cumsum(targets[order])
    count = np.arange(1, len(ranked) + 1)
    f1 = 2 * held / (count + held[-1])
    below = np.append(ranked[1:], 0.0)
    possible = ranked - below > _APART
    if not possible.any():
        return _USUAL_THRESHOLD
    middles = (ranked + below) / 2
    best = f1[possible].max()
    candidates = middles[possible & (f1 >= best - 1e-12)]
    return round(float(candidates[np.abs(candidates - _USUAL_THRESHOLD).argmin()]), _THRESHOLD_DIGITS)
