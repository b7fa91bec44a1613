"""What the answers of a task come to: counts of labels and of confidences, which can be added up."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onetrunk.client.answer import Prediction
from onetrunk.client.readers import LabelPrediction, LabelsPrediction, NumberPrediction
from onetrunk.client.tagging import SpansPrediction
from onetrunk.protocol.ensemble_info import TaskInfo
from onetrunk.protocol.reference import BINS


@dataclass
class Counts:
    """Counts over some answers of one task.

    Attributes:
        answers: The number of answers.
        labels: The place of a label -> the number of answers with it. The place behind the last label is none of these.
        bins: The bin of the confidence, or of the number -> the number of answers in it.
        entropy: The sum of the answers' entropies, each as a share of the greatest possible one.
        spans: The number of spans.
    """

    answers: int = 0
    labels: Counter[int] = field(default_factory=Counter)
    bins: Counter[int] = field(default_factory=Counter)
    entropy: float = 0.0
    spans: int = 0

    def add(self, other: Counts) -> None:
        """Add other answers."""
        self.answers += other.answers
        self.labels.update(other.labels)
        self.bins.update(other.bins)
        self.entropy += other.entropy
        self.spans += other.spans

    def remove(self, other: Counts) -> None:
        """Remove answers that were added."""
        self.answers -= other.answers
        self.labels.subtract(other.labels)
        self.bins.subtract(other.bins)
        self.entropy = max(0.0, self.entropy - other.entropy)
        self.spans -= other.spans

    def record(self) -> dict[str, Any]:
        """Return the counts as JSON values."""
        return vars(self) | {"labels": sorted(self.labels.items()), "bins": sorted(self.bins.items())}

    @classmethod
    def of_record(cls, record: dict[str, Any]) -> Counts:
        """Return the counts that ``record`` returned."""
        return cls(**record | {"labels": Counter(dict(record["labels"])), "bins": Counter(dict(record["bins"]))})


def count_predictions(task: TaskInfo, predictions: list[Prediction]) -> Counts | None:
    """Count answers as the client reads them. Return None for a kind of task that has no counts."""
    labels = task.labels or ()
    first = predictions[0]
    if isinstance(first, SpansPrediction):
        # Not its spans, which are of whole words: the reference counts those of tokens.
        rows = [said.tags for said in predictions if isinstance(said, SpansPrediction)]
        tags = np.zeros((len(rows), max(map(len, rows))))
        for place, row in enumerate(rows):
            tags[place, : len(row)] = row
        return _of_tags(tags, len(labels))
    if isinstance(first, NumberPrediction):
        return count_scores(task, np.array([[said.score] for said in predictions]))
    if isinstance(first, LabelPrediction | LabelsPrediction):
        return count_scores(task, np.array([[said.scores[label] for label in labels] for said in predictions]))
    return None


def count_scores(task: TaskInfo, scores: NDArray[Any]) -> Counts | None:
    """Count answers by their scores. Return None for a kind of task that has no counts, or for scores of another shape.

    Args:
        task: The task.
        scores: *Shape:* (rows, *dims of the task)
    """
    kind, labels = task.read_kind, task.labels or ()
    if kind == "tagging":
        return _of_tags(scores[..., 0], len(labels)) if scores.ndim == 3 else None
    if scores.ndim != 2 or scores.shape[1] != (len(labels) or 1):
        return None
    # One text's answer that is no number must not take the others' with it.
    scores = scores[np.isfinite(scores).all(axis=-1)].astype(np.float64)
    if not len(scores):
        return None
    if kind == "regression" and task.range is not None:
        low, high = task.range
        return Counts(len(scores), bins=_bins((scores[:, 0] - low) / (high - low)))
    if kind == "classification":
        none = scores.max(axis=-1) < (getattr(task, "none_below", None) or 0)
        chosen = np.where(none, len(labels), scores.argmax(axis=-1))
        entropy = -_xlogx(scores).sum(axis=-1) / np.log(max(2, len(labels)))
        return Counts(len(scores), _counted(chosen), _bins(scores.max(axis=-1)), float(entropy.sum()))
    thresholds = getattr(task, "thresholds", None)
    if kind == "multilabel" and isinstance(thresholds, list) and len(thresholds) == len(labels):
        holds = scores >= np.array(thresholds)
        held = np.concatenate([holds, ~holds.any(axis=-1, keepdims=True)], axis=-1)
        entropy = -(_xlogx(scores) + _xlogx(1 - scores)).mean(axis=-1) / np.log(2)
        return Counts(len(scores), _counted(np.nonzero(held)[1]), _bins(scores.max(axis=-1)), float(entropy.sum()))
    return None


def _of_tags(tags: NDArray[Any], types: int) -> Counts:
    """Count the spans of tags, as ``TaggingAnswers.reference`` of the builder does. *Shape:* (rows, tokens)."""
    tags = np.clip(tags, -1, 2 * types).astype(np.int64)
    before = np.pad(tags, ((0, 0), (1, 0)))[:, :-1]
    begun = (tags > 0) & ~((tags % 2 == 0) & ((before == tags) | (before == tags - 1)))
    rows, places = np.nonzero(begun)
    present = set(zip(rows.tolist(), ((tags[rows, places] - 1) // 2).tolist(), strict=True))
    found = Counter(kind for _, kind in present)
    found[types] = int((~begun.any(axis=-1)).sum())
    return Counts(len(tags), found, spans=int(begun.sum()))


def _xlogx(values: NDArray[Any]) -> NDArray[np.float64]:
    found: NDArray[np.float64] = values * np.log(np.maximum(values, 1e-30))
    return found


def _bins(values: NDArray[np.float64]) -> Counter[int]:
    return _counted(np.clip(values * BINS, 0, BINS - 1).astype(np.int64))


def _counted(places: NDArray[Any]) -> Counter[int]:
    return Counter(places.tolist())
