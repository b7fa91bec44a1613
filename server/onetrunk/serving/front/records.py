"""The schemas of answers in our own form, which are those of ask-repo's JSON lines.

Answers are not checked against them while they are sent; tests do that.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class LabelRecord(BaseModel):
    """The answer of a task with one label.

    Attributes:
        label: The most likely label.
        score: Its probability.
        none_of_these: True if even that label is less likely than the task requires of an answer; absent otherwise.
        scores: Label -> probability, the most likely first.
        windows: The number of windows in which a long text was read; absent if the text was read in one piece.
    """

    model_config = ConfigDict(extra="forbid")

    label: str
    score: float
    none_of_these: bool | None = None
    scores: dict[str, float]
    windows: int | None = None


class LabelsRecord(BaseModel):
    """The answer of a task with any number of labels.

    Attributes:
        labels: The labels that hold, the most likely first.
        scores: Label -> probability, the most likely first.
        windows: The number of windows in which a long text was read; absent if the text was read in one piece.
    """

    model_config = ConfigDict(extra="forbid")

    labels: list[str]
    scores: dict[str, float]
    windows: int | None = None


class NumberRecord(BaseModel):
    """The answer of a task with a number.

    Attributes:
        score: The number.
        windows: The number of windows in which a long text was read; absent if the text was read in one piece.
    """

    model_config = ConfigDict(extra="forbid")

    score: float
    windows: int | None = None


class SpanRecord(BaseModel):
    """Words that belong together. Characters are Unicode code points of the text as it was sent.

    Attributes:
        type: The type, such as `artist`.
        text: The words as written.
        start: The first character.
        end: The character after the last.
        score: The lowest probability of its tokens.
    """

    model_config = ConfigDict(extra="forbid")

    type: str
    text: str
    start: int
    end: int
    score: float


class WordRecord(BaseModel):
    """A word of the text.

    Attributes:
        text: The word as written.
        start: The first character.
        end: The character after the last.
        tag: The tag in the task's scheme, such as `B-artist`; null if the word was not read.
        score: The probability of the tag.
    """

    model_config = ConfigDict(extra="forbid")

    text: str
    start: int
    end: int
    tag: str | None
    score: float


class SpansRecord(BaseModel):
    """The answer of a task with spans.

    Attributes:
        spans: The spans in the order of the text.
        words: The words of the text that were read, and at most 128 of those behind them that were not.
        windows: The number of windows in which a long text was read; absent if the text was read in one piece.
    """

    model_config = ConfigDict(extra="forbid")

    spans: list[SpanRecord]
    words: list[WordRecord]
    windows: int | None = None


class EmbeddingRecord(BaseModel):
    """The answer of an embedding.

    Attributes:
        embedding: The vector, of length 1.
        windows: The number of windows in which a long text was read; absent if the text was read in one piece.
    """

    model_config = ConfigDict(extra="forbid")

    embedding: list[float]
    windows: int | None = None


TaskRecord = LabelRecord | LabelsRecord | NumberRecord | SpansRecord | EmbeddingRecord


class AnswerRecord(BaseModel):
    """What all tasks that were asked say of one text.

    Attributes:
        text: The text.
        text_pair: The second text; absent if there is none.
        truncated: Whether the text was longer than the server reads, and some task did not read its end.
        ms: The milliseconds until the model server had answered.
        predictions: Task -> its answer.
    """

    model_config = ConfigDict(extra="forbid")

    text: str
    text_pair: str | None = None
    truncated: bool
    ms: float
    predictions: dict[str, TaskRecord]
