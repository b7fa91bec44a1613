"""The kinds of task that this client can read. `onetrunk.client.tagging` has the reader of spans.

A new kind is one class here, or in a file of its own, and one entry in `READERS`. A kind whose scores look like those
of another one needs neither: its tasks say ``reads_as``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from onetrunk.client.answer import Prediction, Reader, TokenizedText, six_digits
from onetrunk.client.tagging import TaggingReader
from onetrunk.protocol.ensemble_info import TaskInfo


@dataclass(frozen=True)
class LabelPrediction(Prediction):
    """The most likely label, and the probabilities of all.

    Attributes:
        none_of_these: Whether even the most likely label is less likely than the task requires of an answer.
    """

    none_of_these: bool = False

    def record(self, top: int | None) -> dict[str, Any]:
        """See `Prediction.record`."""
        scores = {label: six_digits(score) for label, score in islice(self.scores.items(), top)}
        none = {"none_of_these": True} if self.none_of_these else {}
        return {"label": self.label, "score": six_digits(self.score), **none, "scores": scores}

    def lines(self, top: int) -> list[tuple[str, str]]:
        """See `Prediction.lines`."""
        ranked = [(label, f"{score:.3f}") for label, score in islice(self.scores.items(), top)]
        return [("(none of these)", ""), *ranked] if self.none_of_these else ranked


class ClassificationReader(Reader):
    """Reads a probability for each label, of which one holds."""

    kind: ClassVar[str] = "classification"

    def missing(self, task: TaskInfo) -> str | None:
        """See `Reader.missing`."""
        return None if task.labels else f"a {task.kind} task without labels"

    def shape(self, task: TaskInfo) -> tuple[int | None, ...]:
        """Return one score for each label."""
        return (len(task.labels or ()),)

    def read(self, task: TaskInfo, scores: Any, text: TokenizedText | None = None) -> Prediction:
        """See `Reader.read`."""
        ranked = dict(sorted(zip(task.labels or (), scores, strict=True), key=lambda pair: -pair[1]))
        label, score = next(iter(ranked.items()))
        return LabelPrediction(task.name, label, score, ranked, score < (getattr(task, "none_below", None) or 0))

    def answers(self, task: TaskInfo) -> str:
        """Return its labels."""
        return ", ".join(task.labels or ())


@dataclass(frozen=True)
class LabelsPrediction(Prediction):
    """All labels that hold. ``label`` and ``score`` are those of the most likely one, whether it holds or not.

    Attributes:
        labels: The labels that hold, the most likely first; empty if none does.
    """

    labels: tuple[str, ...] = ()

    def record(self, top: int | None) -> dict[str, Any]:
        """See `Prediction.record`. All labels that hold are in it, whatever ``top`` is."""
        most = len(self.scores) if top is None else top
        shown = [label for at, label in enumerate(self.scores) if at < most or label in self.labels]
        return {"labels": list(self.labels), "scores": {label: six_digits(self.scores[label]) for label in shown}}

    def lines(self, top: int) -> list[tuple[str, str]]:
        """Return a line for each label that holds, or one that says that none does."""
        return [(label, f"{self.scores[label]:.3f}") for label in self.labels] or [("(none)", f"{self.score:.3f}")]


class MultilabelReader(Reader):
    """Reads a probability for each label, of which any may hold, each with its own threshold."""

    kind: ClassVar[str] = "multilabel"

    def missing(self, task: TaskInfo) -> str | None:
        """See `Reader.missing`."""
        thresholds = getattr(task, "thresholds", None)
        if not task.labels:
            return f"a {task.kind} task without labels"
        if not isinstance(thresholds, list) or len(thresholds) != len(task.labels):
            return f"a {task.kind} task without one threshold for each label"
        return None

    def shape(self, task: TaskInfo) -> tuple[int | None, ...]:
        """Return one score for each label."""
        return (len(task.labels or ()),)

    def read(self, task: TaskInfo, scores: Any, text: TokenizedText | None = None) -> Prediction:
        """See `Reader.read`."""
        thresholds: Sequence[float] = task.thresholds  # type: ignore[attr-defined]  # `missing` has looked
        triples = sorted(zip(task.labels or (), scores, thresholds, strict=True), key=lambda triple: -triple[1])
        holding = tuple(label for label, score, threshold in triples if score >= threshold)
        label, score, _ = triples[0]
        return LabelsPrediction(task.name, label, score, {one: value for one, value, _ in triples}, holding)

    def pool(self, scores: Sequence[NDArray[Any]], tokens: Sequence[int]) -> NDArray[Any]:
        """Return the greatest probability of each label: a label holds for a text if it holds for a part of it."""
        greatest: NDArray[Any] = np.max(scores, axis=0)
        return greatest

    def answers(self, task: TaskInfo) -> str:
        """Return its labels."""
        return "any of " + ", ".join(task.labels or ())


@dataclass(frozen=True)
class NumberPrediction(Prediction):
    """A number.

    Attributes:
        decimals: The number of decimals to show to people.
    """

    decimals: int = 2

    def record(self, top: int | None) -> dict[str, Any]:
        """See `Prediction.record`."""
        return {"score": six_digits(self.score)}

    def lines(self, top: int) -> list[tuple[str, str]]:
        """See `Prediction.lines`."""
        return [("", f"{self.score:.{self.decimals}f}")]


class RegressionReader(Reader):
    """Reads one number."""

    kind: ClassVar[str] = "regression"

    def missing(self, task: TaskInfo) -> str | None:
        """Return None: a number can always be read."""
        return None

    def shape(self, task: TaskInfo) -> tuple[int | None, ...]:
        """Return one score."""
        return (1,)

    def read(self, task: TaskInfo, scores: Any, text: TokenizedText | None = None) -> Prediction:
        """See `Reader.read`."""
        return NumberPrediction(task.name, None, scores[0], {}, _decimals(task))

    def answers(self, task: TaskInfo) -> str:
        """Return its range."""
        return "{:.10g} to {:.10g}".format(*task.range) if task.range else "a number"


@dataclass(frozen=True)
class EmbeddingPrediction(Prediction):
    """A vector that stands for the text. ``label`` is None, and ``score`` 0.

    Attributes:
        embedding: The vector, of length 1.
    """

    embedding: tuple[float, ...] = field(default=(), repr=False)

    def record(self, top: int | None) -> dict[str, Any]:
        """Return the vector, to eight decimals, whatever ``top`` is."""
        return {"embedding": [round(number, 8) for number in self.embedding]}

    def lines(self, top: int) -> list[tuple[str, str]]:
        """Return the first numbers, since nobody reads all of them."""
        first = ", ".join(f"{number:.3f}" for number in self.embedding[:3])
        return [(f"[{first}, ...]", "")]


class EmbeddingReader(Reader):
    """Reads a vector."""

    kind: ClassVar[str] = "embedding"

    def missing(self, task: TaskInfo) -> str | None:
        """See `Reader.missing`."""
        width = getattr(task, "width", None)
        return None if isinstance(width, int) and width > 0 else f"a {task.kind} task without its width"

    def shape(self, task: TaskInfo) -> tuple[int | None, ...]:
        """Return the width of the trunk."""
        return (width_of(task),)

    def read(self, task: TaskInfo, scores: Any, text: TokenizedText | None = None) -> Prediction:
        """See `Reader.read`."""
        return EmbeddingPrediction(task.name, None, 0.0, {}, tuple(scores))

    def pool(self, scores: Sequence[NDArray[Any]], tokens: Sequence[int]) -> NDArray[Any]:
        """Return the mean of the vectors, in which each token weighs the same, scaled to length 1."""
        mean = np.average(np.asarray(scores, np.float64), axis=0, weights=tokens)
        unit: NDArray[Any] = mean / max(float(np.linalg.norm(mean)), 1e-12)
        return unit

    def answers(self, task: TaskInfo) -> str:
        """Return its size, and that it must be asked for."""
        return f"a vector of {width_of(task)} numbers" + (", if it is named" if task.on_request else "")


def width_of(task: TaskInfo) -> int:
    """Return the size of an embedding's vectors."""
    width: int = task.width  # type: ignore[attr-defined]  # `missing` has looked
    return width


def _decimals(task: TaskInfo) -> int:
    """Return enough decimals for a five-hundredth of the range, and at least two."""
    size = task.range[1] - task.range[0] if task.range else 1.0
    return max(2, 2 - math.floor(math.log10(size))) if 0 < size < math.inf else 2


READERS: dict[str, Reader] = {
    reader.kind: reader
    for reader in (
        ClassificationReader(),
        RegressionReader(),
        MultilabelReader(),
        TaggingReader(),
        EmbeddingReader(),
    )
}


def reader_of(task: TaskInfo) -> Reader | None:
    """Return the reader of a task's scores, or None if this client has none."""
    return READERS.get(task.read_kind)


def answers_of(task: TaskInfo) -> str:
    """Return what a task answers, for a list of tasks."""
    reader = reader_of(task)
    return reader.answers(task) if reader else "(this client cannot read it)"
