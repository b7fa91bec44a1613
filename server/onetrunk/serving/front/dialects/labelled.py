"""What these protocols have in common: one task a request, and answers that are labels with scores."""

from __future__ import annotations

import math
from collections.abc import Sequence

from onetrunk.client.answer import Answer, six_digits
from onetrunk.client.catalogue import Catalogue
from onetrunk.protocol.ensemble_info import TaskInfo
from onetrunk.serving.front.admission import RefusedError
from onetrunk.serving.front.operations import TEXT_EXAMPLES, tasks_for_examples
from onetrunk.serving.front.service import Service

KINDS = ("classification", "multilabel", "regression")
"""The kinds whose answers are labels with scores; a number has one label."""

NUMBER_LABEL = "LABEL_0"
"""The label of a number, as transformers names the only output of a regression."""

# The least and the greatest probability whose logit is taken: the neighbours of 0 and 1 in 32 bits.
_LEAST, _GREATEST = 2.0**-126, 1 - 2.0**-24


class WrongKindError(RefusedError):
    """A task whose answers the protocol has no form for."""

    def __init__(self, task: TaskInfo, catalogue: Catalogue) -> None:
        names = ", ".join(one.name for one in answerable(catalogue)) or "none"
        super().__init__(
            400, f"task {task.name!r} is {task.kind}, which has no labels for a whole text: ask /v1/predict, or {names}"
        )


def answerable(catalogue: Catalogue) -> list[TaskInfo]:
    """Return the tasks that can be asked."""
    return [task for task in catalogue.tasks.values() if task.read_kind in KINDS]


def chosen(catalogue: Catalogue, name: str | None, how: str) -> TaskInfo:
    """Return the task that a request asks.

    Args:
        catalogue: The tasks that are served.
        name: The task that it names, or None.
        how: How a request names a task, for the message.

    Raises:
        UnknownTask: The task is not served.
        WrongKindError: Its answers are no labels.
        RefusedError: The request names none, and there is more than one.
    """
    if name is not None:
        (task,) = catalogue.named([name])
        if task.read_kind not in KINDS:
            raise WrongKindError(task, catalogue)
        return task
    tasks = answerable(catalogue)
    if len(tasks) != 1:
        names = ", ".join(task.name for task in tasks) or "none"
        raise RefusedError(422, f"which task? This server has several: name one {how}. Served: {names}")
    return tasks[0]


async def ask(service: Service, task: TaskInfo, rows: Sequence[Sequence[str]]) -> list[Answer]:
    """Return the answers of one task.

    Args:
        service: The way to them.
        task: The task.
        rows: Of each row its text, or its two texts.
    """
    pairs = [row[1] if len(row) == 2 else None for row in rows]
    return await service.predict([row[0] for row in rows], pairs, [task.name])


def ranked(task: TaskInfo, answer: Answer, *, raw: bool) -> list[tuple[str, float]]:
    """Return label and score of an answer, the greatest first.

    Args:
        task: The task.
        answer: Its answer.
        raw: Whether to return logits in place of probabilities. Those of a classification are the logarithms of its
            probabilities, since a softmax leaves its logits open up to a constant. A number stays as it is.
    """
    said = answer[task.name]
    if task.read_kind == "regression":
        return [(NUMBER_LABEL, six_digits(said.score))]
    if not raw:
        return [(label, six_digits(score)) for label, score in said.scores.items()]
    logit = math.log if task.read_kind == "classification" else _log_odds
    return [(label, six_digits(logit(min(max(p, _LEAST), _GREATEST)))) for label, p in said.scores.items()]


def _log_odds(probability: float) -> float:
    return math.log(probability) - math.log1p(-probability)


def example_texts(catalogue: Catalogue) -> list[tuple[TaskInfo, list[str]]]:
    """Return a task of each form, with a text for it, or two."""
    return [(task, list(TEXT_EXAMPLES[task.form])) for task in tasks_for_examples(catalogue, *KINDS)]
