"""The study's acceptance criteria, and whether its figures meet them."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.study.measured_cost import MeasuredCost
from onetrunk.distill.markdown import NOT_YET, percent, table, times
from onetrunk.distill.results import PlanChoices, SearchCost, SearchResults

RETENTION_AVERAGE = 0.996
RETENTION_MIN = 0.97
COST_SHARE = 0.25
FRONTIER_SHARE = 0.12
SEARCH_COST_RATIO = 2.0


@dataclass(frozen=True)
class Criterion:
    """One acceptance criterion and the figure that it is about.

    Attributes:
        what: The figure, in words.
        bar: The bar that it has to reach, in words.
        measured: The measured value, formatted.
        met: Whether the bar is reached; None where nothing has been measured.
        missed_by: The distance to the bar, formatted.
    """

    what: str
    bar: str
    measured: str
    met: bool | None
    missed_by: str = ""

    @property
    def verdict(self) -> str:
        """The last column of the table."""
        if self.met is None:
            return NOT_YET
        return "met" if self.met else f"**missed by {self.missed_by}**"


def criteria_table(results: SearchResults, measured: MeasuredCost | None) -> list[str]:
    """Return the criteria as a Markdown table.

    Args:
        results: The search's results.
        measured: The plan's cost, measured directly; None where it has not been measured.
    """
    criteria = (
        _average(results),
        _worst(results),
        _cost(measured),
        _frontier(results.choices),
        _search(results.cost),
    )
    rows = [(each.what, each.bar, each.measured, each.verdict) for each in criteria]
    return table(("what", "goal", "measured", "verdict"), rows)


def _average(results: SearchResults) -> Criterion:
    average = results.retention_average
    return Criterion(
        "average of all tasks, against full fine-tuning of the same encoder",
        f"at least {percent(RETENTION_AVERAGE)}, aim above 100%",
        percent(average, 2),
        None if average is None else average >= RETENTION_AVERAGE,
        _points(RETENTION_AVERAGE, average),
    )


def _worst(results: SearchResults) -> Criterion:
    worst = results.worst
    retention = worst.retention if worst else None
    return Criterion(
        "the task that keeps least",
        f"at least {percent(RETENTION_MIN)}",
        f"{percent(retention, 2)} ({worst.task})" if worst else NOT_YET,
        None if retention is None else retention >= RETENTION_MIN,
        _points(RETENTION_MIN, retention),
    )


def _cost(measured: MeasuredCost | None) -> Criterion:
    what = "measured cost of all tasks, against as many single-task models, one run"
    bar = f"at most {percent(COST_SHARE)}"
    if measured is None:
        return Criterion(what, bar, NOT_YET, None)
    low, high = measured.share_range
    return Criterion(
        what,
        bar,
        f"{percent(measured.share)} ({percent(low)} to {percent(high)} by text length and batch)",
        measured.share <= COST_SHARE,
        _points(measured.share, COST_SHARE),
    )


def _frontier(choices: PlanChoices | None) -> Criterion:
    what, bar = "the frontier goes down to", f"{percent(FRONTIER_SHARE)} of the cost"
    if choices is None:
        return Criterion(what, bar, NOT_YET, None)
    plan = choices.best_within(FRONTIER_SHARE) or choices.frontier[0]
    return Criterion(
        what,
        bar,
        f"{percent(plan.share)} by the cost table, where {percent(plan.average)} is kept on average",
        plan.share <= FRONTIER_SHARE,
        _points(plan.share, FRONTIER_SHARE),
    )


def _search(cost: SearchCost | None) -> Criterion:
    return Criterion(
        "cost of the whole search, against one full fine-tuning of each task",
        f"at most {times(SEARCH_COST_RATIO, 0)}",
        f"{times(cost.ratio)} ({times(cost.ratio_with_trunk)} with the trunk's passes)" if cost else NOT_YET,
        None if cost is None else cost.ratio <= SEARCH_COST_RATIO,
        times(cost.ratio - SEARCH_COST_RATIO) if cost else "",
    )


def _points(greater: float | None, less: float | None) -> str:
    return "" if greater is None or less is None else f"{100 * (greater - less):.2f} points"
