"""What a model and a head say about the same texts: how far they agree, on which labels, and where they differ most."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onetrunk.adopt.records import Difference, LabelAgreement
from onetrunk.tasks import FittedTask, Task
from onetrunk.tasks.examples import Texts
from onetrunk.tasks.kinds import get_kind
from onetrunk.tasks.kinds.base import Scores
from onetrunk.tasks.rows import Text

_SHOWN_TEXTS = 20
_SHOWN_CHARACTERS = 400


@dataclass(frozen=True)
class Comparison:
    """What teacher and head say about the same dev texts.

    Attributes:
        teacher: The teacher's scores, as its task would serve them. *Shape:* (texts, ...)
        head: The head's, with what was fitted for it. *Shape:* as the teacher's
        config: The task with what was fitted for the head.
        agreement: The share of texts on which both answer alike; for a number the correlation.
        divergence: How far the head's probabilities are from the teacher's, in nats; None without probabilities.
            *Shape:* (texts,)
    """

    teacher: Scores
    head: Scores
    config: FittedTask
    agreement: float
    divergence: NDArray[np.float32] | None

    def constant_agreement(self) -> float | None:
        """Return the share of texts on which a head would agree that always gave the teacher's commonest answer."""
        held = self._held(self.teacher, self.config.task)
        if held is None:
            return None
        if get_kind(self.config.task.kind).by_token:
            return float((~held.any(axis=1)).mean())  # the only answer that fits every text has no spans
        return float(np.unique(held, axis=0, return_counts=True)[1].max() / len(held))

    def by_label(self, task: Task) -> tuple[LabelAgreement, ...]:
        """Return for each label how many texts have it by the teacher, by the head, and by both.

        Args:
            task: The task, as the teacher answers it.
        """
        teacher, head = self._held(self.teacher, task), self._held(self.head, self.config)
        if teacher is None or head is None or task.labels is None:
            return ()
        counts = zip(task.labels, teacher.sum(axis=0), head.sum(axis=0), (teacher & head).sum(axis=0), strict=True)
        return tuple(
            LabelAgreement(label=label, teacher=int(one), head=int(other), both=int(both))
            for label, one, other, both in counts
        )

    def _held(self, scores: Scores, config: Task | FittedTask) -> NDArray[np.bool_] | None:
        return get_kind(self.config.task.kind).answers.labels_held(scores, config)

    def differences(self, texts: Texts, task: Task) -> list[Difference]:
        """Return the texts that are answered differently, those that are furthest apart first.

        Args:
            texts: The texts that were compared.
            task: The task, as the teacher answers it.
        """
        answers = get_kind(task.kind).answers
        apart = answers.distance(self.teacher, self.head, task, self.config)
        rank = apart + (0 if self.divergence is None else 1e-3 * np.minimum(self.divergence, 1))
        return [
            Difference(
                text=_cut(texts[row]),
                teacher=answers.format(self.teacher[row], task),
                head=answers.format(self.head[row], self.config),
                distance=round(float(apart[row]), 4),
            )
            for row in np.argsort(-rank, kind="stable")[:_SHOWN_TEXTS]
            if apart[row] > 0
        ]


def agreement_of(theirs: Scores, ours: Scores, task: Task, config: FittedTask) -> float:
    """Return the share of texts on which both answer alike; for a number the correlation.

    Args:
        theirs: The teacher's scores. *Shape:* (texts, ...)
        ours: The head's. *Shape:* as the teacher's
        task: The task, as the teacher answers it.
        config: The task with what was fitted for the head.
    """
    answers = get_kind(task.kind).answers
    # What was fitted concerns the head alone: a teacher has thresholds of its own, which its outputs are moved by.
    found = answers.agreement(theirs, ours, task, config)
    # Answers that are all alike have no correlation, and nothing that could be kept.
    return 0.0 if found is None else found


def _cut(text: Text) -> Text:
    parts = (text,) if isinstance(text, str) else text
    short = tuple(part if len(part) <= _SHOWN_CHARACTERS else f"{part[:_SHOWN_CHARACTERS]}..." for part in parts)
    return short[0] if len(short) == 1 else (short[0], short[1])
