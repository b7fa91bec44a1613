"""What a kind of task is made of: four parts, each with one job, behind one entry of the registry.

- ``LabelCodec`` reads the texts and labels of the data and turns labels into targets.
- ``TrainingSpec`` has the losses, and what is fitted on the dev data once a head is trained.
- ``OutputSpec`` builds the output layer and defines the scores that are exported and served.
- ``AnswerSpec`` reads scores: predictions for the metrics, one answer for display, the comparison of two heads.

A ``Kind`` holds one of each. Wherever training, export, serving or deployment depends on the kind of task, it asks one
of these parts. A new kind is a file with its parts and a line in the registry (docs/tasks.md has an example).

Raw outputs are what an output layer returns: (rows, outputs), or (rows, tokens, outputs) with zeros at padding if the
kind answers by token. Scores are computed from them and have the shape (rows, *dims); ``OutputSpec.dims`` gives dims.
"""

from __future__ import annotations

import ast
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from onetrunk.protocol.errors import did_you_mean
from onetrunk.protocol.head_json import MAX_LABEL_CHARACTERS, MAX_LABELS
from onetrunk.protocol.reference import Reference

# torch is imported where it computes: reading what a head answers does not need it.
if TYPE_CHECKING:
    from torch import Tensor, nn

Offsets = Sequence[Sequence[tuple[int, int]]]
"""For each text, the start and the end of every token, in characters. Both are equal for a special token."""

Scores = NDArray[np.float32]

OptionsT = TypeVar("OptionsT", bound="Options")


class KindConfig(Protocol):
    """What a kind needs to know about one task. Tasks and bundles both provide it."""

    @property
    def labels(self) -> tuple[str, ...] | None:
        """The labels in the order of their indices; None if the kind has no labels."""

    @property
    def range(self) -> tuple[float, float] | None:
        """The lowest and the highest number; None unless the kind answers with a number."""

    @property
    def options(self) -> Mapping[str, Any]:
        """The options of the kind: the table ``[options]`` of the task file."""

    @property
    def fitted(self) -> Mapping[str, Any]:
        """What ``TrainingSpec.fit_on_dev`` found; empty before training."""


class Options(BaseModel):
    """The options of a kind without options. A kind that has some derives a model of its own."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def read(cls: type[OptionsT], given: Mapping[str, Any]) -> OptionsT:
        """Read and check the options of a task.

        Raises:
            ValueError: An option is unknown or has a value that is not allowed.
        """
        if unknown := sorted(set(given) - set(cls.model_fields)):
            allowed = ", ".join(cls.model_fields) or "none"
            hint = did_you_mean(unknown[0], list(cls.model_fields))
            raise ValueError(f"options has {', '.join(unknown)}{hint}; allowed for this kind: {allowed}")
        try:
            return cls.model_validate(dict(given))
        except ValidationError as error:
            # If a value may have several forms, report the form that it matches furthest: most likely it was meant.
            fault = max(error.errors(), key=lambda one: len(one["loc"]))
            rule = fault["msg"].removeprefix("Value error, ")
            # Between the first and the last part, pydantic puts names of its own.
            where = ".".join(str(part) for part in dict.fromkeys((fault["loc"][0], *fault["loc"][2:])))
            raise ValueError(f"options.{where}: {rule} (found {fault['input']!r:.60})") from None


class LabelCodec(ABC):
    """Reads texts and labels, and turns labels into targets.

    Attributes:
        uses_labels: Whether a task of the kind has labels.
        min_labels: The smallest number of labels.
        uses_range: Whether a task of the kind has a range.
        accepts_soft: Whether ``encode`` takes a ``SoftLabel``, of a text that has one label or several; None if it does
            not.
    """

    uses_labels: ClassVar[bool] = False
    min_labels: ClassVar[int] = 2
    uses_range: ClassVar[bool] = False
    accepts_soft: ClassVar[Literal["one", "several"] | None] = None

    def check(self, config: KindConfig) -> None:
        """Check the labels or the range of a task.

        Raises:
            ValueError: A task of this kind cannot have them.
        """
        labels = config.labels or ()
        if self.uses_labels and (len(labels) < self.min_labels or len(set(labels)) < len(labels)):
            fewest = "one" if self.min_labels == 1 else "two"
            raise ValueError(f"labels needs at least {fewest}, all different; found {list(labels)!s:.200}")
        if len(labels) > MAX_LABELS:
            raise ValueError(f"found {len(labels):,} labels; allowed are {MAX_LABELS:,}: leave out those that are rare")
        if any(len(label) > MAX_LABEL_CHARACTERS for label in labels):
            raise ValueError(f"labels contains one of more than {MAX_LABEL_CHARACTERS:,} characters: shorten it")
        if any(not label.strip() or "\n" in label or "\r" in label for label in labels):
            raise ValueError("labels contains one that is empty or has a line break in it")
        if config.range is not None and not -float("inf") < config.range[0] < config.range[1] < float("inf"):
            raise ValueError(f"range is the lowest and the highest number; found {list(config.range)}")

    def read_text(self, value: object) -> str:
        """Return a text of the data, which may also be a list of words.

        Raises:
            ValueError: The value is neither; the message says what was found.
        """
        return text_or_words(value)

    @abstractmethod
    def encode(self, label: object, config: KindConfig, text: str = "") -> Any:
        """Encode a label of the data for ``targets``.

        Args:
            label: The label as the data have it, or a ``SoftLabel`` if the kind accepts them.
            config: The task's configuration.
            text: The row's text, for a kind whose labels are about parts of it.

        Raises:
            ValueError: The label is not allowed; the message says what is.
        """

    @abstractmethod
    def targets(self, encoded: Sequence[Any], config: KindConfig, offsets: Offsets | None = None) -> NDArray[Any]:
        """Return the targets that the loss and the metrics take.

        Args:
            encoded: One encoded label a row.
            config: The task's configuration.
            offsets: The rows' tokens, for a kind that answers by token.

        Returns:
            *Shape:* (rows, ...)
        """

    def hard(self, targets: NDArray[Any]) -> NDArray[Any]:
        """Return targets as the metrics take them: in place of soft ones, the labels that are most probable."""
        return targets

    def part(self, encoded: Any, start: int, end: int) -> Any:
        """Return the encoded label of a part of a text, of a kind whose labels are about parts of it.

        Args:
            encoded: The encoded label of the whole text.
            start: The part's first character.
            end: The character after its last.

        Raises:
            ValueError: Labels of this kind are about whole texts.
        """
        raise ValueError("a label of this kind is about a whole text")

    def encoded_of(
        self,
        raw: NDArray[np.float32],
        config: KindConfig,
        text: str = "",
        offsets: Sequence[tuple[int, int]] | None = None,
    ) -> Any:
        """Return the encoded label that a teacher's raw outputs for one text stand for.

        Args:
            raw: *Shape:* (outputs,), by token (tokens, outputs)
            config: The task's configuration.
            text: The text, for a kind whose labels are about parts of it.
            offsets: Its tokens, for a kind that answers by token.

        Raises:
            ValueError: Nothing can be learned from a teacher in tasks of this kind.
        """
        raise ValueError("a task of this kind has no teacher")

    def unused_labels(self, encoded: Sequence[Any], config: KindConfig) -> list[str]:
        """Return the labels that no row has."""
        return []


class TrainingSpec(ABC):
    """The losses of a kind, and what is fitted on the dev data.

    Attributes:
        supports_temperature: Whether a temperature can soften a teacher's outputs.
    """

    supports_temperature: ClassVar[bool] = True

    def check(self, config: KindConfig) -> None:
        """Check the options that concern training.

        Raises:
            ValueError: An option does not fit the task.
        """
        return

    def row_weights(self, targets: NDArray[Any], config: KindConfig) -> NDArray[np.float32] | None:
        """Return the weight of each train row in the loss, or None if all rows weigh the same.

        Args:
            targets: *Shape:* (rows, ...)
            config: The task's configuration.

        Returns:
            *Shape:* (rows,); for soft targets (rows, labels), the weight of each label
        """
        return None

    @abstractmethod
    def loss(
        self, raw: Tensor, targets: Tensor, output: nn.Module | None = None, weights: Tensor | None = None
    ) -> Tensor:
        """Return the mean loss over the rows of a batch, or over its tokens if the kind answers by token.

        Args:
            raw: Raw outputs. *Shape:* (batch_size, outputs), by token (batch_size, tokens, outputs)
            targets: Targets; by token they may have more tokens than ``raw``. *Shape:* (batch_size, ...)
            output: The output layer, for a kind whose layer has more parameters than a weight and a bias.
            weights: The rows' weights, if ``row_weights`` returned some. *Shape:* as ``row_weights``

        Returns:
            *Shape:* ()
        """

    @abstractmethod
    def soft_loss(self, raw: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        """Return the distillation loss: the mean over rows or tokens, as for ``loss``.

        Args:
            raw: The student's raw outputs. *Shape:* (batch_size, outputs), by token (batch_size, tokens, outputs)
            teacher: The teacher's raw outputs; by token they may have more tokens. *Shape:* as ``raw``
            temperature: How much both are softened, if the kind supports it.

        Returns:
            *Shape:* ()
        """

    def fit_on_dev(self, raw: Tensor, targets: NDArray[Any], config: KindConfig) -> dict[str, Any]:
        """Fit what is chosen on the dev data, such as thresholds or a temperature.

        It is fitted after each epoch; the bundle keeps what was fitted in the best one.

        Args:
            raw: Raw outputs on the dev data. *Shape:* (rows, outputs), by token (rows, tokens, outputs)
            targets: The targets of the same rows. *Shape:* (rows, ...)
            config: The task's configuration, with nothing fitted yet.

        Returns:
            JSON values, which become ``KindConfig.fitted``.
        """
        return {}

    def fit_to_teacher(self, raw: Tensor, teacher: Tensor, targets: NDArray[Any], config: KindConfig) -> dict[str, Any]:
        """Fit the same where the dev labels are a teacher's, whose raw outputs are known.

        Args:
            raw: Raw outputs on the dev data. *Shape:* (rows, outputs), by token (rows, tokens, outputs)
            teacher: The teacher's. *Shape:* as ``raw``
            targets: The targets that these stand for. *Shape:* (rows, ...)
            config: The task's configuration, with nothing fitted yet.
        """
        return self.fit_on_dev(raw, targets, config)

    def divergence(self, raw: Tensor, teacher: Tensor, config: KindConfig) -> Tensor | None:
        """Return the Kullback-Leibler divergence of a head's probabilities from its teacher's, for each row.

        By token it is the mean over the row's tokens, and for independent labels the sum over them. A kind without
        probabilities returns None.

        Args:
            raw: Raw outputs. *Shape:* (rows, outputs), by token (rows, tokens, outputs)
            teacher: The teacher's. *Shape:* as ``raw``
            config: The task's configuration, with what was fitted.

        Returns:
            In nats. *Shape:* (rows,)
        """
        return None


class OutputSpec(ABC):
    """The output layer of a head, and the scores that are exported and served.

    Attributes:
        reads_as: The kind whose answers a client reads in the same way; None if the client has a reader for this kind.
    """

    reads_as: ClassVar[str | None] = None

    def check(self, config: KindConfig) -> None:
        """Check what the scores depend on. Bundles come from anywhere, so fitted values are checked as well.

        Raises:
            ValueError: An option or a fitted value does not fit the task.
        """
        return

    @abstractmethod
    def num_outputs(self, config: KindConfig) -> int:
        """Return the number of raw outputs for a text, or for a token."""

    def dims(self, config: KindConfig) -> list[int]:
        """Return the dims of one text's scores as in a Triton config; -1 is its number of tokens."""
        return [self.num_outputs(config)]

    def build_layer(self, width: int, config: KindConfig) -> nn.Linear:
        """Build an untrained output layer.

        A kind may give its layer more parameters than a weight and a bias: ``loss`` and ``scores`` are given the layer.

        Args:
            width: The width of the hidden state.
            config: The task's configuration.

        Returns:
            A layer that maps (..., width) to (..., outputs).
        """
        from torch import nn

        return nn.Linear(width, self.num_outputs(config))

    @abstractmethod
    def scores(self, raw: Tensor, config: KindConfig, output: nn.Module | None = None) -> Tensor:
        """Return the scores that are served: numbers that a user can read.

        Args:
            raw: Raw outputs. *Shape:* (batch_size, outputs), by token (batch_size, tokens, outputs)
            config: The task's configuration.
            output: The output layer, as for ``TrainingSpec.loss``.

        Returns:
            *Shape:* (batch_size, *dims)
        """

    def has_loops(self, config: KindConfig) -> bool:
        """Return whether the scores are computed in loops, which not every runtime takes."""
        return False

    def client_info(self, config: KindConfig) -> dict[str, Any]:
        """Return what a client needs beside labels and range, as fields of ``onetrunk.protocol.ensemble_info``."""
        return {}

    @abstractmethod
    def describe(self, config: KindConfig) -> str:
        """Return what a head may answer, in Markdown for its card."""


class AnswerSpec(ABC):
    """Reads scores: predictions for the metrics, answers for display, and the comparison of two heads.

    Attributes:
        agreement_measure: What ``agreement`` returns: a share of texts, or a correlation.
    """

    agreement_measure: ClassVar[Literal["share", "correlation"]] = "share"

    @abstractmethod
    def predictions(self, scores: Scores, config: KindConfig) -> NDArray[Any]:
        """Return what the metrics compare with the targets.

        Args:
            scores: *Shape:* (rows, *dims)
            config: The task's configuration.

        Returns:
            *Shape:* (rows,), (rows, labels) or (rows, tokens)
        """

    def gold(self, targets: NDArray[Any]) -> NDArray[Any]:
        """Return the predictions of a head that is always right: the targets in the form of ``predictions``."""
        return targets

    @abstractmethod
    def format(self, scores: Scores, config: KindConfig) -> str:
        """Return one text's answer in a few characters.

        Args:
            scores: The scores of one text. *Shape:* dims
            config: The task's configuration.
        """

    def fault(self, scores: Scores, config: KindConfig) -> str | None:
        """Return what is wrong with the scores of a head of unknown origin on real texts, or None.

        Args:
            scores: *Shape:* (rows, *dims)
            config: The task's configuration.
        """
        return None if np.isfinite(scores).all() else "NaN or infinity among its scores"

    def reference(self, scores: Scores, config: KindConfig) -> Reference | None:
        """Return a summary of the answers, with which later ones are compared; None for a kind without one.

        Args:
            scores: The scores of the dev data as they are served. *Shape:* (rows, *dims)
            config: The task's configuration, with what was fitted.
        """
        return None

    def difference(self, found: Scores, expected: Scores, config: KindConfig) -> float:
        """Return the greatest difference between scores and what they should be; infinity if the shapes differ.

        Args:
            found: *Shape:* (rows, *dims)
            expected: *Shape:* (rows, *dims)
            config: The task's configuration.
        """
        return float(np.abs(found - expected).max()) if found.shape == expected.shape else float("inf")

    def agreement(
        self, first: Scores, second: Scores, config: KindConfig, other: KindConfig | None = None
    ) -> float | None:
        """Return how far two heads agree on the same texts, or None if that is undefined.

        Args:
            first: *Shape:* (rows, *dims)
            second: *Shape:* (rows, *dims)
            config: The task's configuration, with what was fitted for the first.
            other: That of the second; None if it is the same.
        """
        return float(self._same(first, second, config, other or config).mean())

    def distance(
        self, first: Scores, second: Scores, config: KindConfig, other: KindConfig | None = None
    ) -> NDArray[np.float32]:
        """Return how far two heads disagree on each text; 0 where they agree.

        Args:
            first: *Shape:* (rows, *dims)
            second: *Shape:* (rows, *dims)
            config: The task's configuration, with what was fitted for the first.
            other: That of the second; None if it is the same.

        Returns:
            *Shape:* (rows,)
        """
        apart = np.abs(first - second).max(axis=-1)
        found: NDArray[np.float32] = np.where(self._same(first, second, config, other or config), 0, apart)
        return found

    def labels_held(self, scores: Scores, config: KindConfig) -> NDArray[np.bool_] | None:
        """Return which labels each answer has, or of a tagger spans of which types; None for a kind without labels.

        Args:
            scores: *Shape:* (rows, *dims)
            config: The task's configuration.

        Returns:
            *Shape:* (rows, labels)
        """
        return None

    def mean_difference(self, first: Scores, second: Scores, config: KindConfig) -> float:
        """Return the mean difference between two heads' scores.

        Args:
            first: *Shape:* (rows, *dims)
            second: *Shape:* (rows, *dims)
            config: The task's configuration.
        """
        return float(np.abs(first - second).mean())

    def _same(self, first: Scores, second: Scores, config: KindConfig, other: KindConfig) -> NDArray[np.bool_]:
        """Return on which rows both heads predict the same. *Shape:* (rows,)."""
        one, two = self.predictions(first, config), self.predictions(second, other)
        same: NDArray[np.bool_] = (one == two).reshape(len(one), -1).all(axis=-1)
        return same


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of task. It has no state: what differs between tasks is passed in as a ``KindConfig``.

    Attributes:
        name: The name in task files and in head.json.
        codec: Reads labels.
        training: Has the losses.
        output: Builds the output layer and defines what is served.
        answers: Reads and compares scores.
        metrics: Names in ``onetrunk.tasks.metrics``; the first is the default.
        options: The model of the table ``[options]``.
        forms: Whether a head may read one text, a pair, or either.
        by_token: Whether a head answers for every token.
        has_weights: Whether a head has layers and weights. One without is not trained: ``head.json`` is all of it.
    """

    name: str
    codec: LabelCodec
    training: TrainingSpec
    output: OutputSpec
    answers: AnswerSpec
    metrics: tuple[str, ...]
    options: type[Options] = Options
    forms: tuple[str, ...] = ("single", "pair")
    by_token: bool = False
    has_weights: bool = True

    def check(self, config: KindConfig) -> None:
        """Check that a task of this kind can have these labels, this range, these options and these fitted values.

        Raises:
            ValueError: It cannot.
        """
        for field, value, used in (
            ("labels", config.labels, self.codec.uses_labels),
            ("range", config.range, self.codec.uses_range),
        ):
            if used != (value is not None):
                raise ValueError(f"a {self.name} task {'needs' if used else 'has no'} {field}")
        self.codec.check(config)
        self.options.read(config.options)
        self.training.check(config)
        self.output.check(config)


_LONGEST_LIST = 2**16


def listed(cell: str) -> list[Any] | None:
    """Return the list that a table's cell holds, as JSON writes it or as Python and so pandas does; None if it is none.

    Args:
        cell: The cell.
    """
    if not cell.lstrip().startswith("["):
        return None
    # Python's own reader takes a hundred times a text's size.
    readers = (json.loads, ast.literal_eval) if len(cell) <= _LONGEST_LIST else (json.loads,)
    for read in readers:
        try:
            found = read(cell.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError):  # a label may start with a bracket
            continue
        return found if isinstance(found, list) else None
    return None


def text_or_words(value: object) -> str:
    """Return a text of the data, which may also be a list of words.

    Raises:
        ValueError: The value is neither; the message says what was found.
    """
    if isinstance(value, list):
        return join_words(value)
    if not isinstance(value, str):
        raise ValueError(f"is {value!r:.40}")
    return value


def join_words(words: list[object]) -> str:
    """Return the words as one text, separated by spaces.

    Raises:
        ValueError: One of them is not a word.
    """
    return " ".join(_word(place, word) for place, word in enumerate(words, start=1))


def _word(place: int, word: object) -> str:
    if not isinstance(word, str):
        raise ValueError(f"has {word!r:.40} as word {place}")
    if word.split() != [word]:
        raise ValueError(f"has {word!r:.40} as word {place}: it is empty or contains a space")
    return word


def labels_of(config: KindConfig) -> tuple[str, ...]:
    """Return the labels of a task that has passed ``Kind.check``.

    Raises:
        ValueError: The task has no labels.
    """
    if not config.labels:
        raise ValueError("the task needs labels")
    return config.labels


def label_index(label: object, config: KindConfig) -> int:
    """Return the index of a label.

    Raises:
        ValueError: The task has no such label; the message names those that it has.
    """
    labels = labels_of(config)
    for spelling in label_spellings(label):
        if spelling in labels:
            return labels.index(spelling)
    shown = ", ".join(labels[:10]) + (", ..." if len(labels) > 10 else "")
    raise ValueError(f"label {written(label)} is not one of: {shown}")


def written(label: object) -> str:
    """Return a label for a message, booleans as JSON and TOML write them."""
    return json.dumps(label) if isinstance(label, bool) else f"{label!r:.60}"


def label_spellings(label: object) -> tuple[str, ...]:
    """Return how a task file may spell a label that data give as a text, a boolean or a number, likeliest first.

    CSV has only texts. JSON and hubs have values: ``true`` is spelled so in JSON and TOML but ``True`` by Python's
    tools, and a column of whole numbers may have become one of floats, or the reverse.
    """
    if isinstance(label, str):
        return (label,)
    if isinstance(label, bool):
        return (json.dumps(label), str(label))
    if isinstance(label, int):
        return (str(label), f"{label}.0")
    if isinstance(label, float):
        return (str(label), str(int(label))) if label.is_integer() else (str(label),)
    return ()


def stack_scores(rows: Sequence[Scores]) -> Scores:
    """Stack the scores of several texts. Texts with fewer tokens are filled up with -1, which is no tag.

    Args:
        rows: The scores of each text. *Shape:* (outputs,) or (tokens, 2)

    Returns:
        *Shape:* (rows, outputs) or (rows, longest number of tokens, 2)
    """
    if len({row.shape for row in rows}) == 1:
        return np.stack(rows)
    found = np.full((len(rows), max(len(row) for row in rows), *rows[0].shape[1:]), -1, dtype=np.float32)
    for place, row in enumerate(rows):
        found[place, : len(row)] = row
    return found
