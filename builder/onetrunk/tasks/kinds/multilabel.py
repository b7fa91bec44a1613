"""Multilabel classification: any number of labels, each with a threshold of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

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
    label_index,
    labels_of,
    listed,
)
from onetrunk.tasks.kinds.soft import SoftLabel, Sparse, dense, sparse
from onetrunk.tasks.kinds.summary import histogram, mean_share, rounded

# torch is imported where it computes: reading what a head answers does not need it.
if TYPE_CHECKING:
    from torch import Tensor, nn

SEPARATOR = "|"
"""Between the labels of a table's cell, which holds one text."""

_DEFAULT_THRESHOLD = 0.5
# In float32, the sigmoids of two runtimes differ by up to 2e-7, so scores that are closer than this cannot be told
# apart. A threshold of seven digits, half-way between scores that are further apart, divides them in every runtime.
_MIN_GAP = 1e-6
_THRESHOLD_DIGITS = 7


class MultilabelCodec(LabelCodec):
    """Sets of labels are encoded as sorted indices, and soft ones as the probabilities of indices."""

    uses_labels: ClassVar[bool] = True
    min_labels: ClassVar[int] = 1
    accepts_soft: ClassVar[Literal["one", "several"] | None] = "several"

    def encode(self, label: object, config: KindConfig, text: str = "") -> tuple[int, ...] | Sparse:
        """Return the indices of the labels that hold: of a list, or of a text with ``|`` between them.

        Of a soft label, return the indices and probabilities.

        Raises:
            ValueError: It is none of these, or one label is unknown or given twice.
        """
        if isinstance(label, SoftLabel):
            return sparse(label, lambda one: label_index(one, config))
        if isinstance(label, str):
            label = split_labels(label)
        if not isinstance(label, list):
            raise ValueError(f"label {label!r:.60} is not a list of labels, nor a text with {SEPARATOR} between them")
        found = [label_index(one, config) for one in label]
        if len(set(found)) < len(found):
            raise ValueError(f"label {label!r:.60} has one twice")
        return tuple(sorted(found))

    def targets(
        self, encoded: Sequence[tuple[int, ...] | Sparse], config: KindConfig, offsets: Offsets | None = None
    ) -> NDArray[np.float32]:
        """Return 1 for each label that holds, else 0; of soft labels, the probability. *Shape:* (rows, labels)."""
        return dense([_as_sparse(one) for one in encoded], len(labels_of(config)))

    def hard(self, targets: NDArray[Any]) -> NDArray[np.float32]:
        """Return 1 for each label that holds, or whose probability is 0.5 or more, else 0. *Shape:* (rows, labels)."""
        return (targets >= _DEFAULT_THRESHOLD).astype(np.float32)

    def encoded_of(
        self,
        raw: NDArray[np.float32],
        config: KindConfig,
        text: str = "",
        offsets: Sequence[tuple[int, int]] | None = None,
    ) -> tuple[int, ...]:
        """See ``LabelCodec.encoded_of``: the labels whose probability reaches one half."""
        return tuple(np.flatnonzero(raw >= 0).tolist())

    def unused_labels(self, encoded: Sequence[tuple[int, ...] | Sparse], config: KindConfig) -> list[str]:
        """Return the labels that no row has."""
        present = {index for one in encoded for index, weight in _as_sparse(one) if weight > 0}
        return [label for index, label in enumerate(labels_of(config)) if index not in present]


class MultilabelTraining(TrainingSpec):
    """Binary cross entropy, and thresholds fitted on the dev data."""

    def loss(
        self, raw: Tensor, targets: Tensor, output: nn.Module | None = None, weights: Tensor | None = None
    ) -> Tensor:
        """Return the binary cross entropy, as the mean over texts and labels."""
        from torch.nn import functional

        return functional.binary_cross_entropy_with_logits(raw, targets)

    def soft_loss(self, raw: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        """Return T^2 times the binary cross entropy with the teacher's softened probabilities."""
        import torch
        from torch.nn import functional

        softened = torch.sigmoid(teacher / temperature)
        return temperature**2 * functional.binary_cross_entropy_with_logits(raw / temperature, softened)

    def fit_on_dev(self, raw: Tensor, targets: NDArray[np.float32], config: KindConfig) -> dict[str, Any]:
        """Fit a threshold for each label, at its best F1 on the dev data, as the metrics take them."""
        import torch

        targets = MULTILABEL.codec.hard(targets)
        scores = torch.sigmoid(raw).numpy().astype(np.float64)
        return {"thresholds": [best_threshold(scores[:, one], targets[:, one]) for one in range(scores.shape[1])]}

    def divergence(self, raw: Tensor, teacher: Tensor, config: KindConfig) -> Tensor:
        """Return the divergence, as the sum over labels. *Shape:* (rows,)."""
        import torch
        from torch.nn import functional

        theirs = torch.sigmoid(teacher)
        own = functional.binary_cross_entropy_with_logits(teacher, theirs, reduction="none")
        return (functional.binary_cross_entropy_with_logits(raw, theirs, reduction="none") - own).sum(dim=-1)


class MultilabelOutput(OutputSpec):
    """A probability for each label, independent of the others."""

    def check(self, config: KindConfig) -> None:
        """Check fitted thresholds.

        Raises:
            ValueError: There is not one for each label, or one is not between 0 and 1.
        """
        if "thresholds" not in config.fitted:
            return
        thresholds = config.fitted["thresholds"]
        if not isinstance(thresholds, list) or not all(isinstance(one, float) and 0 < one < 1 for one in thresholds):
            raise ValueError(f"fitted.thresholds must be numbers above 0 and below 1; found {thresholds!r:.60}")
        if len(thresholds) != len(labels_of(config)):
            raise ValueError(f"fitted has {len(thresholds)} thresholds for {len(labels_of(config))} labels")

    def num_outputs(self, config: KindConfig) -> int:
        """Return the number of labels."""
        return len(labels_of(config))

    def scores(self, raw: Tensor, config: KindConfig, output: nn.Module | None = None) -> Tensor:
        """Return a probability for each label."""
        import torch

        return torch.sigmoid(raw)

    def client_info(self, config: KindConfig) -> dict[str, Any]:
        """Return the thresholds in the order of the labels."""
        return {"thresholds": thresholds_of(config).tolist()}

    def describe(self, config: KindConfig) -> str:
        """List the labels."""
        return "any of " + ", ".join(f"`{label}`" for label in labels_of(config))


class MultilabelAnswers(AnswerSpec):
    """A label holds if its score reaches its threshold."""

    def predictions(self, scores: Scores, config: KindConfig) -> NDArray[np.float64]:
        """Return the margin of each label's score over its threshold: the label holds if it is 0 or more.

        Within a label, margins order the texts as scores do, which is all that average precision looks at.

        *Shape:* (rows, labels) to (rows, labels)
        """
        found: NDArray[np.float64] = scores.astype(np.float64) - thresholds_of(config)
        return found

    def labels_held(self, scores: Scores, config: KindConfig) -> NDArray[np.bool_]:
        """Return the labels that hold. *Shape:* (rows, labels) to (rows, labels)."""
        found: NDArray[np.bool_] = self.predictions(scores, config) >= 0
        return found

    def gold(self, targets: NDArray[Any]) -> NDArray[np.float64]:
        """Return a positive margin for each label that holds, and a negative one for the others."""
        return targets.astype(np.float64) - _DEFAULT_THRESHOLD

    def format(self, scores: Scores, config: KindConfig) -> str:
        """Return the labels that hold."""
        holds = self.labels_held(scores[None], config)[0]
        return ", ".join(label for label, held in zip(labels_of(config), holds, strict=True) if held) or "(none)"

    def reference(self, scores: Scores, config: KindConfig) -> Reference:
        """Return how often each label holds, and how likely the likeliest one is."""
        from scipy.special import entr

        probabilities = scores.astype(np.float64)
        holds = self.predictions(scores, config) >= 0
        return Reference(
            rows=len(scores),
            labels=rounded(holds.mean(axis=0)),
            none_of_these=mean_share(~holds.any(axis=-1)),
            confidence=histogram(probabilities.max(axis=-1)),
            entropy=mean_share((entr(probabilities) + entr(1 - probabilities)).mean(axis=-1) / np.log(2)),
        )

    def fault(self, scores: Scores, config: KindConfig) -> str | None:
        """Return whether scores are not finite, or not probabilities."""
        fault = super().fault(scores, config)
        if fault is None and (scores.min() < 0 or scores.max() > 1):
            return "its scores are not probabilities from 0 to 1: export it with its sigmoid"
        return fault

    def _same(self, first: Scores, second: Scores, config: KindConfig, other: KindConfig) -> NDArray[np.bool_]:
        one, two = self.predictions(first, config) >= 0, self.predictions(second, other) >= 0
        same: NDArray[np.bool_] = (one == two).all(axis=-1)
        return same


def _as_sparse(encoded: tuple[int, ...] | Sparse) -> Sparse:
    return tuple(one if isinstance(one, tuple) else (one, 1.0) for one in encoded)


def thresholds_of(config: KindConfig) -> NDArray[np.float64]:
    """Return the score from which each label holds. *Shape:* (labels,)."""
    default = [_DEFAULT_THRESHOLD] * len(labels_of(config))
    return np.array(config.fitted.get("thresholds", default), dtype=np.float64)


def best_threshold(scores: NDArray[np.float64], targets: NDArray[np.float32]) -> float:
    """Return the threshold with the best F1, of all that are half-way between two neighbouring scores.

    Of several best ones it is the one nearest to 0.5. Scores that cannot be told apart as they are served have no
    threshold between them; if no scores can, the threshold is 0.5.

    Args:
        scores: The scores of one label, from 0 to 1. *Shape:* (rows,)
        targets: 1 for the rows in which it holds, else 0. *Shape:* (rows,)
    """
    if not targets.any():
        return _DEFAULT_THRESHOLD
    order = np.argsort(-scores, kind="stable")
    ranked, held = scores[order], np.cumsum(targets[order])
    count = np.arange(1, len(ranked) + 1)
    f1 = 2 * held / (count + held[-1])
    below = np.append(ranked[1:], 0.0)
    possible = ranked - below > _MIN_GAP
    if not possible.any():
        return _DEFAULT_THRESHOLD
    middles = (ranked + below) / 2
    best = f1[possible].max()
    candidates = middles[possible & (f1 >= best - 1e-12)]
    return round(float(candidates[np.abs(candidates - _DEFAULT_THRESHOLD).argmin()]), _THRESHOLD_DIGITS)


def split_labels(text: str, separator: str = SEPARATOR) -> object:
    """Return the labels of a cell, which is a list or has labels with the separator between them.

    Args:
        text: The cell.
        separator: The separator.
    """
    if (found := listed(text)) is not None:
        return found
    return [label.strip() for label in text.split(separator)] if text.strip() else []


MULTILABEL = Kind(
    name="multilabel",
    codec=MultilabelCodec(),
    training=MultilabelTraining(),
    output=MultilabelOutput(),
    answers=MultilabelAnswers(),
    metrics=("mean_average_precision", "micro_f1", "macro_f1"),
)
