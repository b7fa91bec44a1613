"""Typed decisions: which head answers a question of System One, and how its scores become the answer.

No head reads a question's words: it answers what it was trained for. So a question must say which task it means, or
have exactly a task's labels as its options. Anything else is an error, never a guess.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from onetrunk.client.answer import Prediction, six_digits
from onetrunk.client.catalogue import unknown_task
from onetrunk.protocol.ensemble_info import TaskInfo
from onetrunk.protocol.errors import counted, did_you_mean

Content = str | dict[str, Any] | list[Any]
MOST_OPTIONS = 255


class _Question(BaseModel):
    model_config = ConfigDict(strict=True)

    instructions: Content | None = None


class NoulQuestion(_Question):
    """Whether something holds: answered by one label of a task.

    Attributes:
        type: Always `noul`.
        instructions: Text that no head reads, or `{"task": ..., "label": ...}`, which names the task and the label.
        criteria: What `true` and `false` mean. If `true` is one of the task's labels, that label is meant.
    """

    type: Literal["noul"]
    criteria: dict[Literal["true", "false"], Content | None] | None = None


class ChoiceQuestion(_Question):
    """Which option holds: answered by a classification task that has these options as its labels.

    Attributes:
        type: Always `choice`.
        instructions: Text that no head reads, or `{"task": ...}`, which names the task.
        criteria: Option -> its description, which no head reads.
    """

    type: Literal["choice"]
    criteria: dict[str, Content | None] = Field(min_length=1, max_length=MOST_OPTIONS)


class ScoreQuestion(_Question):
    """How much: answered by a regression, or by a classification that has these levels as its labels.

    Attributes:
        type: Always `score`.
        instructions: Text that no head reads, or `{"task": ...}`, which names the task.
        criteria: The levels, the lowest first.
    """

    type: Literal["score"]
    criteria: list[Content] = Field(min_length=1, max_length=MOST_OPTIONS)


Question = Annotated[NoulQuestion | ChoiceQuestion | ScoreQuestion, Field(discriminator="type")]


class NoHeadError(Exception):
    """A question that no head answers. The message says why, and what to do."""


@dataclass(frozen=True)
class Decision:
    """A question, and the head that answers it.

    Attributes:
        question: The question.
        task: The task.
        label: For a noul, the label that `true` stands for.
    """

    question: NoulQuestion | ChoiceQuestion | ScoreQuestion
    task: TaskInfo
    label: str | None = None

    def answer(self, said: Prediction) -> dict[str, Any]:
        """Return the protocol's answer. Fields that begin with ``x_`` are our own."""
        question = self.question
        mine: dict[str, Any] = {"x_task": self.task.name}
        if said.windows > 1:
            mine["x_windows"] = said.windows
        if isinstance(question, NoulQuestion):
            assert self.label is not None
            return {"type": "noul", "noul": six_digits(said.scores[self.label]), "x_label": self.label} | mine
        if isinstance(question, ChoiceQuestion):
            if getattr(said, "none_of_these", False):
                mine["x_none_of_these"] = True
            return choice_answer({option: said.scores[option] for option in question.criteria}) | mine
        if self.task.read_kind == "regression":
            assert self.task.range is not None
            shares = shares_of_levels(said.score, self.task.range, len(question.criteria))
            mine["x_number"] = six_digits(said.score)
        else:
            shares = [said.scores[str(level)] for level in question.criteria]
        return score_answer(question.criteria, shares) | mine


def decide(name: str, question: Any, model: str, tasks: Mapping[str, TaskInfo]) -> Decision:
    """Return which head answers a question.

    Args:
        name: The question's id.
        question: The question.
        model: The request's `model`.
        tasks: The tasks that are served.

    Raises:
        NoHeadError: None does, or more than one could.
    """
    said = question.instructions
    if isinstance(said, dict) and "task" in said and set(said) <= {"task", "label"}:
        if not isinstance(said["task"], str) or said["task"] not in tasks:
            raise NoHeadError(str(unknown_task(said["task"], tasks)))
        return _decision(question, tasks[said["task"]], said.get("label"))
    if name in tasks:
        return _decision(question, tasks[name], None)
    fitting = [task for task in tasks.values() if _has_labels(task, question)]
    if len(fitting) == 1:
        return _decision(question, fitting[0], None)
    if model in tasks:
        return _decision(question, tasks[model], None)
    if fitting:
        found = f"{', '.join(task.name for task in fitting)} all have these labels"
    else:
        found = "no task that is served has exactly these options as its labels"
    raise NoHeadError(
        f'{found}: name the task, as `instructions` {{"task": ...}}, as the id of the question, or as `model`. '
        f"Served: {', '.join(tasks) or 'none'}"
    )


def _has_labels(task: TaskInfo, question: Any) -> bool:
    """Return whether a question has exactly a task's labels, in any order but that of levels."""
    if task.read_kind != "classification" or not task.labels:
        return False
    if isinstance(question, ScoreQuestion):
        return list(task.labels) == question.criteria
    if isinstance(question, ChoiceQuestion):
        return set(task.labels) == set(question.criteria)
    meanings = list((question.criteria or {}).values())
    return len(task.labels) == 2 and all(label in meanings for label in task.labels)


def _decision(question: Any, task: TaskInfo, label: Any) -> Decision:
    """Return the decision of a task that was named, or that has the question's labels.

    Raises:
        NoHeadError: The task cannot answer such a question.
    """
    kind, labels = task.read_kind, task.labels or ()
    if isinstance(question, NoulQuestion):
        return Decision(question, task, _true_label(question, task, label))
    if isinstance(question, ChoiceQuestion):
        if kind != "classification":
            raise NoHeadError(f"task {task.name!r} is {kind}: a choice needs a classification")
        if set(question.criteria) != set(labels):
            raise NoHeadError(f"task {task.name!r} chooses from {', '.join(labels)}: give exactly these options")
    elif kind == "regression":
        if task.range is None:
            raise NoHeadError(f"task {task.name!r} has no range, so its numbers have no place between levels")
    elif kind != "classification" or not _has_labels(task, question):
        raise NoHeadError(f"task {task.name!r} is {kind}: a score needs a regression, or its labels as levels in order")
    return Decision(question, task)


def _true_label(question: NoulQuestion, task: TaskInfo, label: Any) -> str:
    """Return the label that `true` stands for: the one that is named, or the second of two.

    Raises:
        NoHeadError: The task has no such label, or none is named and it has not two.
    """
    kind, labels = task.read_kind, task.labels or ()
    if kind not in ("classification", "multilabel"):
        raise NoHeadError(f"task {task.name!r} is {kind}: a noul needs a label")
    if label is None:
        meanings = question.criteria or {}
        label = next((one for one in labels if one == meanings.get("true")), None)
        other = next((one for one in labels if one == meanings.get("false")), None)
        if label is None and kind == "classification" and len(labels) == 2:
            label = labels[1] if other is None or other == labels[0] else labels[0]
    if label not in labels:
        if label is None:
            found = f"has {counted(len(labels), 'label', 'labels')}"
        else:
            found = f"has no label {label!r:.60}{did_you_mean(str(label), labels)}"
        raise NoHeadError(
            f'task {task.name!r} {found}: name one, as `instructions` {{"task": "{task.name}", "label": ...}}. '
            f"Labels: {', '.join(labels)}"
        )
    return str(label)


def choice_answer(scores: Mapping[str, float]) -> dict[str, Any]:
    """Return the answer to a choice. Confidence is 0 where all options are equally likely, and 1 where one is certain.

    Args:
        scores: Option -> probability.
    """
    best, count = max(scores, key=lambda option: scores[option]), len(scores)
    confidence = 1.0 if count == 1 else max(0.0, (scores[best] - 1 / count) / (1 - 1 / count))
    return {
        "type": "choice",
        "choice": best,
        "confidence": six_digits(confidence),
        "probabilities": {option: six_digits(score) for option, score in scores.items()},
    }


def score_answer(levels: Sequence[Content], shares: Sequence[float]) -> dict[str, Any]:
    """Return the answer to a score. Confidence falls with the mean distance from the likeliest level.

    Args:
        levels: The levels, the lowest first.
        shares: The probability of each level.
    """
    count = len(levels)
    best = max(range(count), key=lambda level: shares[level])
    distance = sum(share * abs(level - best) for level, share in enumerate(shares))
    uniform = sum(abs(level - (count - 1) / 2) for level in range(count)) / count
    return {
        "type": "score",
        "score": six_digits(sum(level * share for level, share in enumerate(shares))),
        "legend": {str(at): level for at, level in enumerate(levels)},
        "confidence": six_digits(1.0 if count == 1 else max(0.0, 1 - distance / uniform)),
        "probabilities": {str(level): six_digits(share) for level, share in enumerate(shares)},
    }


def shares_of_levels(number: float, limits: tuple[float, float], count: int) -> list[float]:
    """Return shares of levels whose mean is where a number lies in its range.

    The number is all that a regression says: the two levels next to it share 1, and how they do says nothing about how
    sure the head is.

    Args:
        number: The number. What lies outside of the range counts as its end.
        limits: The lowest and the highest number.
        count: The number of levels, spread evenly over the range.
    """
    low, high = limits
    place = min(max((number - low) / (high - low), 0.0), 1.0) * (count - 1)
    below = math.floor(place)
    shares = [0.0] * count
    shares[below] = 1 - (place - below)
    if below + 1 < count:
        shares[below + 1] = place - below
    return shares
