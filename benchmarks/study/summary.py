"""The figures of a study, under the names by which others read them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from benchmarks.study.alternatives import Alternatives
from benchmarks.study.recorded_study import RecordedStudy
from benchmarks.study.search_cost import SearchCost
from benchmarks.study.task_result import TaskResult
from onetrunk.protocol.errors import UserError

_DIGITS = 6


@dataclass(frozen=True)
class Summary:
    """What a study came to. None is what has not been measured yet.

    Attributes:
        study: what it was read from.
        results: one a task.
        cost: of the search.
        alternatives: other plans.
        why_no_alternatives: what is missing for them.
    """

    study: RecordedStudy
    results: Sequence[TaskResult]
    cost: SearchCost | None
    alternatives: Alternatives | None
    why_no_alternatives: str = ""

    @classmethod
    def of(cls, study: RecordedStudy) -> Summary:
        """The figures of a study."""
        alternatives, why = None, ""
        try:
            alternatives = Alternatives.of(study)
        except UserError as error:
            # A study that is under way lacks something; the report says what.
            why = str(error)
        results = [TaskResult.of(task, study) for task in study.tasks]
        return cls(study, results, SearchCost.of(study), alternatives, why)

    @property
    def retention_average(self) -> float | None:
        """Mean score over mean score of full fine-tuning; None until every task of the plan has both."""
        full = [result.full.mean for result in self.results if result.full]
        students = [result.student.mean for result in self.results if result.student]
        if not self.results or not len(full) == len(students) == len(self.results) or not fmean(full) > 0:
            return None
        return fmean(students) / fmean(full)

    @property
    def worst(self) -> TaskResult | None:
        """The task that keeps least; None until every task of the plan has its share."""
        kept = {result.task: result.retention for result in self.results if result.retention is not None}
        if not self.results or len(kept) < len(self.results):
            return None
        # NaN is worse than any number, and min() alone would lose it.
        return min(self.results, key=lambda result: (not math.isnan(kept[result.task]), kept[result.task]))

    @property
    def retention_min(self) -> float | None:
        """What that task keeps."""
        return self.worst.retention if self.worst else None

    @property
    def cost_share(self) -> float | None:
        """What the plan's models cost, of as many single-task models, measured directly."""
        return self.study.share_of_plan.share if self.study.share_of_plan else None

    @property
    def cost_share_range(self) -> tuple[float, float] | None:
        """Least and greatest of it over padded lengths and batch sizes."""
        if self.study.share_of_plan is None:
            return None
        shares = [row.share.median for row in self.study.share_of_plan.rows]
        return min(shares), max(shares)

    @property
    def machines(self) -> list[str]:
        """What all runs and measurements were done on."""
        measured = [each for each in (self.study.costs, self.study.share) if each]
        return sorted({record.machine for record in self.study.records.values()} | {each.machine for each in measured})

    def as_values(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        share, cost, plan = self.study.share_of_plan, self.cost, self.study.plan
        chosen = self.alternatives.chosen if self.alternatives else None
        values = {
            "retention_average": self.retention_average,
            "retention_min": self.retention_min,
            "cost_share": self.cost_share,
            "search_cost_ratio": cost.ratio if cost else None,
            "tasks": {result.task: _task_values(result) for result in self.results},
            "retention_min_task": self.worst.task if self.worst else None,
            "cost_share_range": self.cost_share_range,
            "cost_share_folded": share.folded_share if share else None,
            "cost_share_by_table": chosen.share if chosen else None,
            "search_cost_ratio_with_trunk": cost.ratio_with_trunk if cost else None,
            "search_cpu_seconds": cost.search_seconds if cost else None,
            "baseline_cpu_seconds": cost.full_seconds if cost else None,
            "trunk_cpu_seconds": cost.trunk_seconds if cost else None,
            "trunk": plan.trunk if plan else None,
            "machine": self.machines,
        }
        rounded: dict[str, Any] = _rounded(values)
        return rounded


def _task_values(result: TaskResult) -> dict[str, Any]:
    full, student, new = result.full, result.student, result.new_student
    return {
        "full": full.mean if full else None,
        "teacher": result.teacher,
        "student": student.mean if student else None,
        "tap": result.tap,
        "layers": result.layers,
        "seeds": student.seeds if student else None,
        "sd": student.deviation if student else None,
        "retention": result.retention,
        "metric": result.metric,
        "query": result.query,
        "full_seeds": full.seeds if full else None,
        "full_sd": full.deviation if full else None,
        "student_new_seeds": new.mean if new else None,
    }


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, _DIGITS)
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(each) for each in value]
    return value
