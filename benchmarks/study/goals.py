"""What was to be reached, and whether it was."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.study.markdown import NOT_YET, percent, table, times
from benchmarks.study.summary import Summary

RETENTION_AVERAGE = 0.996
RETENTION_MIN = 0.97
COST_SHARE = 0.25
FRONTIER_SHARE = 0.12
SEARCH_COST_RATIO = 2.0


@dataclass(frozen=True)
class Goal:
    """One row.

    Attributes:
        what: what is measured.
        goal: what was to be reached, in words.
        measured: what was, in words.
        met: None where it has not been measured.
        missed_by: by how much it was missed, in words.
    """

    what: str
    goal: str
    measured: str
    met: bool | None
    missed_by: str = ""

    @property
    def verdict(self) -> str:
        """In a few words."""
        if self.met is None:
            return NOT_YET
        return "met" if self.met else f"**missed by {self.missed_by}**"


def goals(summary: Summary) -> list[Goal]:
    """All goals, each with what was measured."""
    return [_average(summary), _worst(summary), _cost(summary), _frontier(summary), _search(summary)]


def goals_table(summary: Summary) -> list[str]:
    """The goals as a Markdown table."""
    rows = [(goal.what, goal.goal, goal.measured, goal.verdict) for goal in goals(summary)]
    return table(("what", "goal", "measured", "verdict"), rows)


def _average(summary: Summary) -> Goal:
    found = summary.retention_average
    return Goal(
        "average of all tasks, against full fine-tuning of the same encoder",
        f"at least {percent(RETENTION_AVERAGE)}, aim above 100%",
        percent(found, 2),
        None if found is None else found >= RETENTION_AVERAGE,
        _points(RETENTION_AVERAGE, found),
    )


def _worst(summary: Summary) -> Goal:
    found, worst = summary.retention_min, summary.worst
    return Goal(
        "the task that keeps least",
        f"at least {percent(RETENTION_MIN)}",
        f"{percent(found, 2)} ({worst.task})" if worst else NOT_YET,
        None if found is None else found >= RETENTION_MIN,
        _points(RETENTION_MIN, found),
    )


def _cost(summary: Summary) -> Goal:
    found, spread = summary.cost_share, summary.cost_share_range
    return Goal(
        "measured cost of all tasks, against as many single-task models, one run",
        f"at most {percent(COST_SHARE)}",
        f"{percent(found)} ({percent(spread[0])} to {percent(spread[1])} by text length and batch)"
        if spread
        else NOT_YET,
        None if found is None else found <= COST_SHARE,
        _points(found, COST_SHARE),
    )


def _frontier(summary: Summary) -> Goal:
    what, goal = "the frontier goes down to", f"{percent(FRONTIER_SHARE)} of the cost"
    if summary.alternatives is None:
        return Goal(what, goal, NOT_YET, None)
    plan = summary.alternatives.best_within(FRONTIER_SHARE) or summary.alternatives.frontier[0]
    return Goal(
        what,
        goal,
        f"{percent(plan.share)} by the cost table, where {percent(plan.average)} is kept on average",
        plan.share <= FRONTIER_SHARE,
        _points(plan.share, FRONTIER_SHARE),
    )


def _search(summary: Summary) -> Goal:
    cost = summary.cost
    return Goal(
        "cost of the whole search, against one full fine-tuning of each task",
        f"at most {times(SEARCH_COST_RATIO, 0)}",
        f"{times(cost.ratio)} ({times(cost.ratio_with_trunk)} with the trunk's passes)" if cost else NOT_YET,
        None if cost is None else cost.ratio <= SEARCH_COST_RATIO,
        times(cost.ratio - SEARCH_COST_RATIO) if cost else "",
    )


def _points(greater: float | None, less: float | None) -> str:
    return "" if greater is None or less is None else f"{100 * (greater - less):.2f} points"
