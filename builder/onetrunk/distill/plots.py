"""Plots of a search's results: score over depth, quality over cost, and the parts of a plan's cost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

from onetrunk.distill.plan import Plan
from onetrunk.distill.results import SearchRecords, TaskResult
from onetrunk.distill.trials import Trial
from onetrunk.files import atomic_write

FRONTIER_PLOT = "frontier.png"
COST_PLOT = "cost_split.png"

# One colour for one thing in all plots, distinguishable without red and green (Okabe and Ito).
FULL = "#444444"
TEACHER = "#0072B2"
STUDENTS = ("#D55E00", "#E69F00", "#CC79A7", "#8C510A")
PROBE = "#009E73"
CHOSEN = "#D55E00"
TRUNK = "#0072B2"
HEADS = "#E69F00"
OVERHEAD = "#999999"

_DOTS_PER_INCH = 110
_STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "legend.fontsize": 8,
}
_SHARE_TICKS = (5, 8, 10, 12, 15, 20, 25, 30, 40, 50, 70, 100, 150, 200)
_LEAST_SHARE = 0.1  # percent; a logarithmic axis has no 0
_REGION_TOP = 1000.0  # percent; above any plot
_MARGIN_BELOW = 0.04  # room under the lowest mark, as a share


def depth_plot_name(task: str) -> str:
    """Return the file name of a task's depth plot."""
    return f"depth_{task}.png"


def draw_depths(result: TaskResult, records: SearchRecords, path: Path) -> bool:
    """Draw a task's dev scores: teachers by layers tuned, students by their own layers, probes by tap.

    Args:
        result: The task's result; its full fine-tuning and chosen head are marked.
        records: The trials; where a full grid of teachers was trained, it is drawn too.
        path: The PNG to write.

    Returns:
        Whether there was anything to draw.

    Raises:
        OneTrunkError: The file cannot be written.
    """
    search, grid = records.trials("search", result.task), records.trials("grid", result.task)
    trials = (*grid, *search)
    if not trials:
        return False
    depth = max(trial.spec.recipe.resolved_tap + trial.spec.recipe.layers for trial in trials)
    with plot_style():
        figure = Figure(figsize=(9.2, 3.3), layout="constrained")
        axes: Sequence[Axes] = figure.subplots(1, 3, sharey=True, width_ratios=[depth, 3, depth])
        for number, panel in enumerate(axes):
            _draw_full(panel, result, label="full fine-tuning" if number == 0 else None)
        _draw_teachers(axes[0], grid, search, depth)
        _draw_students(axes[1], search, result)
        _draw_probes(axes[2], search, depth)
        axes[0].set_ylabel(f"dev {result.metric}, hundredths")
        figure.suptitle(result.task, x=0.01, ha="left", weight="bold")
        for panel in axes:
            if panel.get_legend_handles_labels()[0]:
                panel.legend(loc="best")
        write_figure(figure, path)
    return True


@dataclass(frozen=True, kw_only=True)
class PlanMark:
    """One plan, marked in the plot of quality over cost.

    Attributes:
        label: The entry in the legend.
        share: The plan's cost, as a share of single-task models.
        average: The average retention, as a share.
        marker: A Matplotlib marker.
        colour: The mark's colour.
        size: The mark's size in points.
    """

    label: str
    share: float
    average: float
    marker: str
    colour: str
    size: float = 7


FULL_FINE_TUNING = PlanMark(
    label="full fine-tuning, one model a task", share=1.0, average=1.0, marker="s", colour=FULL, size=8
)


def draw_frontier(
    frontier: Sequence[Plan], marks: Sequence[PlanMark], path: Path, *, goal: tuple[float, float] | None = None
) -> None:
    """Draw quality over cost: the frontier as a line, single plans as marks.

    Args:
        frontier: The plans that no other beats, cheapest first.
        marks: The plans to mark; full fine-tuning is always marked too.
        path: The PNG to write.
        goal: The greatest cost share and least average retention that are aimed for, drawn as a region.

    Raises:
        OneTrunkError: The file cannot be written.
    """
    marks = (*marks, FULL_FINE_TUNING)
    with plot_style():
        figure = Figure(figsize=(7.4, 4.4), layout="constrained")
        axes = figure.subplots()
        axes.step(
            [100 * plan.share for plan in frontier],
            [100 * plan.average for plan in frontier],
            where="post",
            color=FULL,
            linewidth=1.2,
            label=f"frontier ({len(frontier)} plans)",
        )
        axes.axhline(100, color=FULL, linewidth=0.8, linestyle=":")
        for mark in marks:
            _draw_mark(axes, mark)
        if goal is not None:
            corner = (_LEAST_SHARE, 100 * goal[1])
            width = 100 * goal[0] - _LEAST_SHARE
            axes.add_patch(Rectangle(corner, width, _REGION_TOP, color=PROBE, alpha=0.1, linewidth=0, label="goal"))
        _limit_to_marks(axes, frontier, marks)
        _scale_shares(axes)
        axes.set_ylabel("kept of full fine-tuning, average of the tasks, %")
        axes.legend(loc="lower right")
        write_figure(figure, path)


def draw_costs(plans: Mapping[str, Plan], path: Path) -> None:
    """Draw the cost of plans as bars, split into trunk, heads and the overhead of calling each model.

    Args:
        plans: Label -> plan; all of them are of the same tasks.
        path: The PNG to write.

    Raises:
        OneTrunkError: The file cannot be written.
    """
    with plot_style():
        figure = Figure(figsize=(6.2, 3.6), layout="constrained")
        axes = figure.subplots()
        axes.grid(visible=False, axis="x")
        bottom = np.zeros(len(plans))
        for name, colour, values in (
            ("trunk", TRUNK, [plan.cost.trunk_ms for plan in plans.values()]),
            ("limbs", PROBE, [plan.cost.limbs_ms for plan in plans.values()]),
            ("heads", HEADS, [plan.cost.heads_ms for plan in plans.values()]),
            ("overhead: calling each model", OVERHEAD, [plan.cost.overhead_ms for plan in plans.values()]),
        ):
            if name == "limbs" and not any(values):
                continue
            axes.bar(list(plans), values, bottom=bottom, color=colour, width=0.6, label=name)
            bottom += np.array(values)
        for place, plan in enumerate(plans.values()):
            text = f"{100 * plan.share:.1f}%"
            axes.annotate(text, (place, plan.cost.total_ms), (0, 3), textcoords="offset points", ha="center")
        tasks = len(next(iter(plans.values())).options)
        singles = next(iter(plans.values())).cost.singles_ms
        axes.set_title(f"% of {tasks} single-task models, which take {singles:.1f} ms", loc="left", fontsize=9)
        axes.set_ylabel("milliseconds for one text, all tasks")
        # Room above the bars for the legend.
        axes.set_ylim(0, 1.35 * float(bottom.max()))
        axes.legend(loc="upper center", ncols=3)
        write_figure(figure, path)


def _draw_full(axes: Axes, result: TaskResult, label: str | None) -> None:
    if result.full is None:
        return
    mean, deviation = 100 * result.full.mean, result.full.deviation
    axes.axhline(mean, color=FULL, linewidth=1.2, linestyle="--", label=label)
    if deviation is not None:
        axes.axhspan(mean - 100 * deviation, mean + 100 * deviation, color=FULL, alpha=0.12, linewidth=0)


def _draw_teachers(axes: Axes, grid: Sequence[Trial], search: Sequence[Trial], depth: int) -> None:
    axes.set_title("teachers")
    axes.set_xlabel("layers tuned, from the top")
    _tick_integers(axes, 1, depth)
    tried = [trial for trial in search if trial.stage == "teacher"]
    if grid:
        _draw_by_layers(axes, grid, "o-", color=TEACHER, label="full grid", markersize=3.5, linewidth=1)
    finished = [trial for trial in tried if not trial.stopped]
    stopped = [trial for trial in tried if trial.stopped]
    if finished:
        line = "o" if grid else "o-"
        _draw_by_layers(axes, finished, line, color=TEACHER, label="search", markersize=8, alpha=0.85)
    if stopped:
        label = "search, stopped early"
        _draw_by_layers(axes, stopped, "o", color=TEACHER, label=label, markersize=8, fillstyle="none")


def _draw_students(axes: Axes, search: Sequence[Trial], result: TaskResult) -> None:
    axes.set_title("students")
    axes.set_xlabel("layers of the student")
    students = [trial for trial in search if trial.stage == "student"]
    most = max([3, *(trial.spec.recipe.layers for trial in students), result.layers or 0])
    _tick_integers(axes, 1, most)
    for number, tap in enumerate(sorted({trial.spec.recipe.resolved_tap for trial in students})):
        on_tap = [trial for trial in students if trial.spec.recipe.resolved_tap == tap]
        colour = STUDENTS[number % len(STUDENTS)]
        _draw_by_layers(axes, on_tap, "s-", color=colour, label=f"on tap {tap}", markersize=4.5)
    if result.student is not None and result.layers is not None:
        axes.errorbar(
            [result.layers],
            [100 * result.student.mean],
            yerr=100 * (result.student.deviation or 0.0) or None,
            fmt="*",
            markersize=13,
            markerfacecolor="none",
            color=CHOSEN,
            markeredgecolor="black",
            ecolor="black",
            capsize=3,
            zorder=5,
            label=f"chosen, {f'limb {result.limb}' if result.limb else f'tap {result.tap}'}",
        )


def _draw_probes(axes: Axes, search: Sequence[Trial], depth: int) -> None:
    axes.set_title("probes")
    axes.set_xlabel("tap of the probe")
    _tick_integers(axes, 0, depth - 1)
    probes = sorted(
        (trial for trial in search if trial.stage == "probe"), key=lambda trial: trial.spec.recipe.resolved_tap
    )
    taps, scores = [trial.spec.recipe.resolved_tap for trial in probes], [100 * trial.score for trial in probes]
    axes.plot(taps, scores, "^-", color=PROBE, markersize=5)


def _draw_by_layers(axes: Axes, trials: Sequence[Trial], line: str, **style: Any) -> None:
    ordered = sorted(trials, key=lambda trial: trial.spec.recipe.layers)
    layers, scores = [trial.spec.recipe.layers for trial in ordered], [100 * trial.score for trial in ordered]
    axes.plot(layers, scores, line, **style)


def _draw_mark(axes: Axes, mark: PlanMark) -> None:
    axes.plot(
        [100 * mark.share],
        [100 * mark.average],
        mark.marker,
        color=mark.colour,
        markersize=mark.size,
        markeredgecolor="white",
        markeredgewidth=0.8,
        linestyle="none",
        label=mark.label,
        # Stars are large and would hide what lies under them.
        zorder=3 if mark.marker == "*" else 4,
    )


def _limit_to_marks(axes: Axes, frontier: Sequence[Plan], marks: Sequence[PlanMark]) -> None:
    """Fit the axes to the marks: the frontier's cheapest plans may retain so little that they flatten the rest."""
    low = min(mark.average for mark in marks) - _MARGIN_BELOW
    high = max([*(mark.average for mark in marks), *(plan.average for plan in frontier)])
    shares = [*(mark.share for mark in marks), *(plan.share for plan in frontier if plan.average >= low)]
    axes.set_xlim(max(_LEAST_SHARE, 85 * min(shares)), 120 * max(shares))
    axes.set_ylim(100 * low, 100 * high + 1)


def _scale_shares(axes: Axes) -> None:
    # Logarithmic: plans differ by factors, and full fine-tuning is far away.
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(_SHARE_TICKS))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("cost of all tasks, % of as many single-task models")


def _tick_integers(axes: Axes, first: int, last: int) -> None:
    axes.set_xticks(range(first, last + 1))
    axes.set_xlim(first - 0.4, last + 0.4)


@contextmanager
def plot_style() -> Iterator[None]:
    """Apply the plots' style to what is drawn within, whatever the user's own Matplotlib settings are."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_STYLE)
        yield


def write_figure(figure: Figure, path: Path) -> None:
    """Write a PNG atomically. The same figure always gives the same bytes."""
    with atomic_write(path) as aside:
        # The key "Software" would hold Matplotlib's version, so that an update would change every plot.
        figure.savefig(aside, format="png", dpi=_DOTS_PER_INCH, metadata={"Software": None})
