"""The comparison of answers with the reference: the population stability index.

Source: Siddiqi 2006, "Credit Risk Scorecards", for the index and the rules of thumb by which it is read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from onetrunk.protocol.ensemble_info import TaskInfo
from onetrunk.protocol.reference import BINS, Reference
from onetrunk.serving.front.drift.counts import Counts

# Added to every share, so that one that is 0 on one side does not make the index infinite.
SMOOTHING = 0.001
# Labels that are rarer in the reference are compared as one: chance alone moves the share of each.
RARE = 0.02
# Fewer answers are not compared. With k categories, chance alone makes the index about k / answers.
MIN_ANSWERS, MIN_ANSWERS_A_CATEGORY = 100, 20


class Drift(BaseModel):
    """How far the answers of late are from those on the dev data.

    Attributes:
        answers: The number of answers that were looked at.
        psi: What was compared (``labels``, ``confidence`` or ``numbers``) -> the population stability index. What has
            too few answers is absent.
        none_of_these: The share of answers with no label; null for a kind without labels.
        entropy: The mean entropy, as a share of the greatest possible one; null for a kind without.
        spans: The mean number of spans in a text; null for a kind without.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    answers: int
    psi: dict[str, float]
    none_of_these: float | None = None
    entropy: float | None = None
    spans: float | None = None


def compare(task: TaskInfo, counts: Counts) -> Drift | None:
    """Compare answers with their task's reference; return None if it has none that fits the task."""
    reference, labels, answers = task.reference, task.labels or (), counts.answers
    if reference is None or (reference.labels is not None and len(reference.labels) != len(labels)):
        return None
    pairs: dict[str, tuple[list[float], list[float]]] = {}
    if reference.labels is not None:
        pairs["labels"] = _label_shares(reference, counts)
    for name, expected in (("confidence", reference.confidence), ("numbers", reference.numbers)):
        if expected is not None:
            pairs[name] = list(expected), [counts.bins[place] for place in range(BINS)]
    psi = {
        name: round(index(expected, found), 4)
        for name, (expected, found) in pairs.items()
        if answers >= max(MIN_ANSWERS, MIN_ANSWERS_A_CATEGORY * len(expected))
    }

    def mean(total: float, of: float | None) -> float | None:
        return round(total / answers, 5) if of is not None and answers else None

    return Drift(
        answers=answers,
        psi=psi,
        none_of_these=mean(counts.labels[len(labels)], reference.none_of_these),
        entropy=mean(counts.entropy, reference.entropy),
        spans=mean(counts.spans, reference.spans),
    )


def index(expected: Sequence[float], found: Sequence[float]) -> float:
    """Return the population stability index: the sum of (f - e) ln(f / e) over the smoothed shares f and e.

    Args:
        expected: The share of each category, or its count.
        found: The same of what is compared.
    """
    return sum((f - e) * math.log(f / e) for e, f in zip(_smoothed(expected), _smoothed(found), strict=True))


def _smoothed(values: Sequence[float]) -> list[float]:
    total = sum(values) or 1
    return [(value / total + SMOOTHING) / (1 + SMOOTHING * len(values)) for value in values]


def _label_shares(reference: Reference, counts: Counts) -> tuple[list[float], list[float]]:
    """Return how often each label was given, expected and found; the rare ones together, and at last none of these."""
    expected = [*(reference.labels or ()), reference.none_of_these or 0.0]
    total, none = sum(expected) or 1.0, len(expected) - 1
    often = [place for place in range(none) if expected[place] / total >= RARE]
    rare = sorted(set(range(none)) - set(often))
    groups = [*([place] for place in often), *([rare] if rare else []), [none]]
    return (
        [sum(expected[place] for place in group) for group in groups],
        [sum(counts.labels[place] for place in group) for group in groups],
    )
