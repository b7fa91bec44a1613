"""What it would save to stop teachers that are behind, and what it would cost: replayed on recorded dev scores."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from onetrunk.training.runs import RunStore

Curve = Sequence[float]
Behind = Callable[[Curve, Sequence[Curve], int], bool]
"""Whether a teacher is stopped, by its scores so far, those of the teachers before it for as many epochs, and the count
of dev rows."""


@dataclass(frozen=True)
class Replay:
    """What a rule would have come to.

    Attributes:
        epochs: The epochs that are trained.
        lost: Task -> how far its best teacher that is left is below the best of all, where it is.
    """

    epochs: int
    lost: dict[str, float]


def never(scores: Curve, before: Sequence[Curve], rows: int) -> bool:
    """Stop no teacher."""
    return False


def below_median(scores: Curve, before: Sequence[Curve], rows: int) -> bool:
    """Stop a teacher whose best score is below the median of the others' at the same epoch."""
    return bool(before) and max(scores) < statistics.median(map(max, before))


def far_behind(errors: float, first: int) -> Behind:
    """Return a rule that stops a teacher which is behind the best by more than so many standard errors.

    Args:
        errors: The number of standard errors; that of a score is taken as if it were a share of right answers.
        first: The first epoch after which it may be stopped, from 1.
    """

    def behind(scores: Curve, before: Sequence[Curve], rows: int) -> bool:
        if len(scores) < first or not before:
            return False
        best = max(map(max, before))
        share = min(max(best, 0.05), 0.95)
        return max(scores) < best - errors * math.sqrt(share * (1 - share) / rows)

    return behind


RULES: dict[str, Behind] = {
    "none is stopped": never,
    "below the median": below_median,
    **{
        f"after epoch {first}, {errors} standard errors behind the best": far_behind(errors, first)
        for first in (1, 2)
        for errors in (0, 2, 4)
    },
}


def teachers_of(store: RunStore) -> dict[str, tuple[int, list[Curve]]]:
    """Return each task's dev rows and the curves of its teachers that ended, in the order in which a search meets them.

    Args:
        store: The records of a study; those of its grid make the curves complete.
    """
    found: dict[str, dict[int, Curve]] = {}
    rows: dict[str, int] = {}
    for record in store:
        recipe = record.spec.recipe
        if (record.spec.role, record.state, recipe.seed) == ("teacher", "finished", 0):
            curve = [scores[record.metric] for scores in record.epoch_scores]
            found.setdefault(record.spec.task, {})[recipe.resolved_tap] = curve
            rows[record.spec.task] = int(record.data["dev_rows"])
    return {
        task: (rows[task], [curves[tap] for tap in sorted(curves, reverse=True)])
        for task, curves in sorted(found.items())
        if len(curves) > 1
    }


def replay(teachers: dict[str, tuple[int, list[Curve]]], behind: Behind) -> Replay:
    """Return what a rule would have come to.

    Args:
        teachers: See ``teachers_of``.
        behind: The rule.
    """
    epochs, lost = 0, {}
    for task, (rows, curves) in teachers.items():
        seen: list[Curve] = []
        left = 0.0
        for curve in curves:
            last = next(
                (
                    epoch
                    for epoch in range(1, len(curve))
                    if behind(curve[:epoch], [one[:epoch] for one in seen if len(one) >= epoch], rows)
                ),
                len(curve),
            )
            epochs += last
            seen.append(curve[:last])
            if last == len(curve):
                left = max(left, *curve)
        best = max(map(max, curves))
        if left < best:
            lost[task] = best - left
    return Replay(epochs, lost)
