"""Quality against cost: the frontier, with what was chosen and what the paper would choose marked on it."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

from benchmarks.study.alternatives import Alternatives
from benchmarks.study.goals import COST_SHARE, RETENTION_AVERAGE
from benchmarks.study.plots.style import CHOSEN, FULL, HEADS, PROBE, TEACHER, style, write_plot
from benchmarks.study.summary import Summary

FRONTIER_PLOT = "frontier.png"
_TICKS = (5, 8, 10, 12, 15, 20, 25, 30, 40, 50, 70, 100, 150, 200)
_LEAST_SHARE = 0.1  # a logarithmic axis has no 0
_ABOVE = 1000.0  # the goal has no upper end
_BELOW = 4.0  # points under the lowest mark
_FORMS = ("o", "s", "D", "v", "P", "X")


def draw_frontier(summary: Summary, path: Path) -> bool:
    """Draws it; False where there is nothing to draw yet."""
    found = summary.alternatives
    if found is None:
        return False
    with style():
        figure = Figure(figsize=(7.4, 4.4), layout="constrained")
        axes = figure.subplots()
        shares = [100 * plan.share for plan in found.frontier]
        axes.step(
            shares,
            [100 * plan.average for plan in found.frontier],
            where="post",
            color=FULL,
            linewidth=1.2,
            label=f"frontier ({len(shares)} plans)",
        )
        axes.axhline(100, color=FULL, linewidth=0.8, linestyle=":")
        for name, form in zip(found.paper, _FORMS, strict=False):
            plan = found.paper[name]
            colour = TEACHER if name.startswith("KD") else PROBE
            _mark(axes, plan.share, plan.average, form, colour, name)
        if found.chosen is not None:
            _mark(axes, found.chosen.share, found.chosen.average, "*", CHOSEN, "chosen plan, by the cost table", 15)
        if summary.cost_share is not None and summary.retention_average is not None:
            label = "chosen plan, measured, all seeds"
            _mark(axes, summary.cost_share, summary.retention_average, "*", HEADS, label, 15)
        _mark(axes, 1.0, 1.0, "s", FULL, "full fine-tuning, one model a task", 8)
        _goal(axes)
        _axis(axes)
        _frame(axes, found, summary.retention_average)
        axes.set_ylabel("kept of full fine-tuning, average of the tasks, %")
        axes.legend(loc="lower right")
        write_plot(figure, path)
    return True


def _mark(axes: Axes, share: float, average: float, form: str, colour: str, label: str, size: float = 7) -> None:
    # Stars are large: what lies under one would not be seen.
    zorder = 3 if form == "*" else 4
    axes.plot(
        [100 * share],
        [100 * average],
        form,
        color=colour,
        markersize=size,
        markeredgecolor="white",
        markeredgewidth=0.8,
        linestyle="none",
        label=label,
        zorder=zorder,
    )


def _goal(axes: Axes) -> None:
    corner, width, height = (_LEAST_SHARE, 100 * RETENTION_AVERAGE), 100 * COST_SHARE - _LEAST_SHARE, _ABOVE
    axes.add_patch(Rectangle(corner, width, height, color=PROBE, alpha=0.1, linewidth=0, label="goal"))


def _frame(axes: Axes, found: Alternatives, measured: float | None) -> None:
    """What the marks stand in. The frontier's cheapest plans may keep so little that all else would be one line."""
    marked = [plan for plan in (found.chosen, *found.paper.values()) if plan]
    heights = [1.0 if measured is None else measured, 1.0, *(plan.average for plan in marked)]
    low, high = min(heights) - _BELOW / 100, max(*heights, *(plan.average for plan in found.frontier))
    shown = [plan.share for plan in (*marked, *found.frontier) if plan.average >= low]
    axes.set_xlim(max(_LEAST_SHARE, 85 * min(shown)), 120 * max(1.0, *shown))
    axes.set_ylim(100 * low, 100 * high + 1)


def _axis(axes: Axes) -> None:
    """Logarithmic: plans differ by factors, and full fine-tuning is far away."""
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(_TICKS))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("cost of all tasks, % of as many single-task models")
