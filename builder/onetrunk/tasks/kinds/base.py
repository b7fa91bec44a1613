"""What a kind of task is: how labels become numbers, how outputs are trained, and what a user gets to read.

Whatever the line does differently for one kind than for another, it asks of the kind. So a new kind is a subclass in a
file of its own, and a line in the registry beside it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from onetrunk.tasks.kinds.options import Options

if TYPE_CHECKING:
    from torch import Tensor, nn

Offsets = Sequence[Sequence[tuple[int, int]]]
"""For each text, the first character of every token and the one after its last; equal for a special token."""

Scores = NDArray[np.float32]


class AnswerSpace(Protocol):
    """What a task can answer. Tasks and bundles both have it."""

    @property
    def labels(self) -> tuple[str, ...] | None:
        """The labels in the order of their indices, where the kind has labels."""

    @property
    def range(self) -> tuple[float, float] | None:
        """Lowest and highest number, where the kind answers with one."""

    @property
    def options(self) -> Mapping[str, Any]:
        """What the kind is told, beside labels and range: the table ``[options]`` of the task file."""

    @property
    def fitted(self) -> Mapping[str, Any]:
        """What ``Kind.fit`` found on the dev data; empty before that, and where the kind fits nothing."""


class Kind(ABC):
    """A kind of task. It has no state: what differs between tasks comes in as an AnswerSpace.

    Raw outputs are (rows, outputs), or of a kind ``by_token`` (rows, tokens, outputs) with noughts at padding. Scores,
    which are what is served, are (rows, dims): ``dims`` says what follows the rows, (outputs,) or, say, (tokens, 2).

    Attributes:
        name: as a task file and head.json give it.
        forms: whether it may read one text, a pair, or both.
        by_token: whether a head answers for every token, and the metrics are about words.
        uses_labels: whether a task of the kind has labels.
        fewest_labels: how many it has at least.
        uses_range: whether it has a range.
        softens: whether a teacher's answers can be softened by a temperature.
        options: what a task of the kind can be told beside labels and range.
        metrics: names in ``onetrunk.tasks.metrics`` by which it can be measured; the first is the usual one.
        reads_as: the kind whose answers the client reads in the same way; None where it has a reader of its own.
        agreement_is: what ``agreement`` gives.
    """

    name: ClassVar[str]
    forms: ClassVar[tuple[str, ...]] = ("single", "pair")
    by_token: ClassVar[bool] = False
    uses_labels: ClassVar[bool] = False
    fewest_labels: ClassVar[int] = 2
    uses_range: ClassVar[bool] = False
    softens: ClassVar[bool] = True
    options: ClassVar[type[Options]] = Options
    metrics: ClassVar[tuple[str, ...]]
    reads_as: ClassVar[str | None] = None
    agreement_is: ClassVar[str] = "share"

    def check(self, space: AnswerSpace) -> None:
        """Raises ValueError where a task of this kind cannot have these labels, this range or these options.

        A kind that fits something checks that too: bundles come from anywhere.
        """
        if self.uses_labels != (space.labels is not None):
            raise ValueError(f"a {self.name} task {'needs' if self.uses_labels else 'has no'} labels")
        if self.uses_range != (space.range is not None):
            raise ValueError(f"a {self.name} task {'needs' if self.uses_range else 'has no'} range")
        labels = space.labels or ()
        if self.uses_labels and (len(labels) < self.fewest_labels or len(set(labels)) < len(labels)):
            fewest = "one" if self.fewest_labels == 1 else "two"
            raise ValueError(f"labels needs at least {fewest}, all different; found {list(labels)}")
        if any(not label.strip() or "\n" in label or "\r" in label for label in labels):
            raise ValueError("labels has one that is empty or has a line break in it")
        self.options.read(space.options)
        if space.range is not None and not -float("inf") < space.range[0] < space.range[1] < float("inf"):
            raise ValueError(f"range is the lowest and the highest number; found {list(space.range)}")

    @abstractmethod
    def outputs(self, space: AnswerSpace) -> int:
        """How many numbers a head of this kind gives for a text, or for a token."""

    def dims(self, space: AnswerSpace) -> list[int]:
        """Dims of what is served for a text, as Triton's configs have them; -1 stands for its tokens."""
        return [self.outputs(space)]

    def output(self, width: int, space: AnswerSpace) -> nn.Linear:
        """A head's output, untrained: raw outputs of its last state. *Shape:* (..., width) to (..., outputs).

        A kind may give it more parameters than those; the loss and the scores get to see them.
        """
        from torch import nn

        return nn.Linear(width, self.outputs(space))

    @abstractmethod
    def describe(self, space: AnswerSpace) -> str:
        """What it may answer, for a card, in Markdown."""

    def served(self, space: AnswerSpace) -> dict[str, Any]:
        """What a client needs to know beside labels and range, as JSON. Names are those of the client's TaskInfo."""
        return {}

    # Data.

    def text(self, value: object) -> str:
        """A text of the data, or its words with a blank between them. Raises ValueError with what is in its place."""
        if isinstance(value, list):
            return text_of_words(value)
        if not isinstance(value, str):
            raise ValueError(f"is {value!r:.40}")
        return value

    @abstractmethod
    def encode(self, label: object, space: AnswerSpace, text: str = "") -> Any:
        """A label of the data as what ``targets`` takes.

        Args:
            label: as the data have it.
            space: what the task may answer.
            text: the row's text, for a kind whose labels are about parts of it.

        Raises ValueError with what is wrong and what is allowed.
        """

    @abstractmethod
    def targets(self, encoded: Sequence[Any], space: AnswerSpace, offsets: Offsets | None = None) -> NDArray[Any]:
        """Encoded labels as what the loss and the metrics take. *Shape:* (rows, ...).

        Args:
            encoded: what ``encode`` gave.
            space: what the task may answer.
            offsets: the rows' tokens, for a kind ``by_token``.
        """

    def absent(self, encoded: Sequence[Any], space: AnswerSpace) -> list[str]:
        """The labels that no row has."""
        return []

    # Training.

    def weights(self, targets: NDArray[Any], space: AnswerSpace) -> NDArray[np.float32] | None:
        """How much each train row counts in the loss; None where all count alike. *Shape:* (rows, ...) to (rows,)."""
        return None

    @abstractmethod
    def loss(
        self, raw: Tensor, targets: Tensor, output: nn.Module | None = None, weights: Tensor | None = None
    ) -> Tensor:
        """Mean loss: over the batch's rows, or of a kind ``by_token`` over its tokens. One number.

        Args:
            raw: a head's raw outputs. *Shape:* (rows, outputs), by token (rows, tokens, outputs)
            targets: see ``targets``; by token of as many tokens or more. *Shape:* (rows, ...)
            output: the head's output, for a kind whose output has more parameters than a matrix.
            weights: of the rows, where the kind's ``weights`` gives some. *Shape:* (rows,)
        """

    @abstractmethod
    def soft_loss(self, raw: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        """How far a student's answers are from its teacher's: mean over rows, or tokens, as ``loss``. One number.

        Args:
            raw: the student's raw outputs. *Shape:* (rows, outputs), by token (rows, tokens, outputs)
            teacher: the teacher's; by token of as many tokens or more. *Shape:* as of ``raw``
            temperature: how much both are softened, where the kind has something to soften.
        """

    def fit(self, raw: Tensor, targets: NDArray[Any], space: AnswerSpace) -> dict[str, Any]:
        """What is chosen on the dev data, such as thresholds, after each epoch: JSON, the best epoch's in the bundle.

        Args:
            raw: the head's raw outputs. *Shape:* (rows, outputs), by token (rows, tokens, outputs)
            targets: of the same rows; see ``targets``. *Shape:* (rows, ...)
            space: what it may answer; with nothing fitted yet.
        """
        return {}

    # Answers.

    @abstractmethod
    def scores(self, raw: Tensor, space: AnswerSpace, output: nn.Module | None = None) -> Tensor:
        """What is served: numbers that a user can read. *Shape:* (rows, dims).

        Args:
            raw: raw outputs. *Shape:* (rows, outputs), by token (rows, tokens, outputs)
            space: what the task may answer.
            output: the head's output, as for ``loss``.
        """

    @abstractmethod
    def predictions(self, scores: Scores, space: AnswerSpace) -> NDArray[Any]:
        """What the metrics compare with the targets.

        Args:
            scores: what is served. *Shape:* (rows, dims)
            space: what it may answer.

        Returns:
            In the form of ``right``. *Shape:* (rows, ...), as (rows,), (rows, labels) or (rows, tokens)
        """

    def difference(self, found: Scores, expected: Scores, space: AnswerSpace) -> float:
        """By how much served scores are not what they should be: the greatest difference of a number.

        Infinite where they differ in shape. *Shape of both:* (rows, dims).
        """
        return float(np.abs(found - expected).max()) if found.shape == expected.shape else float("inf")

    def right(self, targets: NDArray[Any]) -> NDArray[Any]:
        """The predictions that are all right. *Shape:* (rows, ...) as of ``targets``, to that of ``predictions``."""
        return targets

    def fault(self, scores: Scores, space: AnswerSpace) -> str | None:
        """What is wrong with scores that a head of unknown origin gives for real texts; None where nothing is.

        Args:
            scores: what it gave. *Shape:* (rows, dims)
            space: what it may answer.
        """
        return None if np.isfinite(scores).all() else "NaN or infinity among its scores"

    def agreement(self, first: Scores, second: Scores, space: AnswerSpace) -> float | None:
        """How far two heads agree on the same texts: by default, the share of texts with the same prediction.

        None where there is no saying. *Shape of both:* (rows, dims).
        """
        return float(self._same(first, second, space).mean())

    def distance(self, first: Scores, second: Scores, space: AnswerSpace) -> NDArray[np.float32]:
        """By how much two heads disagree on each text, 0 where they agree. *Shape:* (rows, dims) to (rows,)."""
        found: NDArray[np.float32] = np.abs(first - second).max(axis=-1) * ~self._same(first, second, space)
        return found

    def mean_difference(self, first: Scores, second: Scores, space: AnswerSpace) -> float:
        """The mean difference of two heads' scores. *Shape of both:* (rows, dims)."""
        return float(np.abs(first - second).mean())

    @abstractmethod
    def shown(self, scores: Scores, space: AnswerSpace) -> str:
        """One text's answer in a few letters. *Shape of the scores:* ``dims``, without rows."""

    def _same(self, first: Scores, second: Scores, space: AnswerSpace) -> NDArray[np.bool_]:
        one, other = (self.predictions(scores, space) for scores in (first, second))
        same: NDArray[np.bool_] = (one == other).reshape(len(one), -1).all(axis=-1)
        return same


def text_of_words(words: list[object]) -> str:
    """The words with a blank between them. Raises ValueError with the word that is none."""
    return " ".join(_word(place, word) for place, word in enumerate(words, start=1))


def _word(place: int, word: object) -> str:
    if not isinstance(word, str):
        raise ValueError(f"has {word!r:.40} as word {place}")
    if word.split() != [word]:
        raise ValueError(f"has {word!r:.40} as word {place}: empty, or with a blank in it")
    return word


def labels_of(space: AnswerSpace) -> tuple[str, ...]:
    """The labels of a task that has passed ``Kind.check``."""
    if not space.labels:
        raise ValueError("the task needs labels")
    return space.labels


def known_label(label: object, space: AnswerSpace) -> int:
    """A label's index.

    Raises ValueError with those that there are.
    """
    labels = labels_of(space)
    # CSV gives every label as text, JSON may give a number or a bool: both name a label by how it is written.
    text = label if isinstance(label, str) else str(label)
    if text not in labels:
        shown = ", ".join(labels[:10]) + (", ..." if len(labels) > 10 else "")
        raise ValueError(f"label {label!r:.60} is not one of: {shown}")
    return labels.index(text)


def stack_rows(rows: Sequence[Scores]) -> Scores:
    """The scores of several texts as one array; where they differ in tokens, filled up with -1, which no tag is.

    Args:
        rows: a text's scores each. *Shape:* (outputs,), or (tokens, 2)

    Returns:
        *Shape:* (rows, outputs), or (rows, tokens of the longest, 2)
    """
    if len({row.shape for row in rows}) == 1:
        return np.stack(rows)
    found = np.full((len(rows), max(len(row) for row in rows), *rows[0].shape[1:]), -1, dtype=np.float32)
    for place, row in enumerate(rows):
        found[place, : len(row)] = row
    return found
