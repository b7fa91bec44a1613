"""A task's dev score over the layers tuned, over the student's layers, and the probes' over the tap."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.study.plots.style import CHOSEN, FULL, PROBE, STUDENTS, TEACHER, style, whole_ticks, write_plot
from benchmarks.study.recorded_study import RecordedStudy
from benchmarks.study.task_result import TaskResult
from onetrunk.distill.trials import Trial


def depth_plot_name(task: str) -> str:
    """The name of a task's plot."""
    return f"depth_{task}.png"


def draw_depths(result: TaskResult, study: RecordedStudy, path: Path) -> bool:
    """Draws a task's plot; False where there is nothing to draw yet."""
    search, grid = study.trials("search", result.task), study.trials("grid", result.task)
    trials = (*grid, *search)
    if not trials:
        return False
    depth = max(trial.spec.recipe.resolved_tap + trial.spec.recipe.layers for trial in trials)
    with style():
        figure = Figure(figsize=(9.2, 3.3), layout="constrained")
        axes: Sequence[Axes] = figure.subplots(1, 3, sharey=True, width_ratios=[depth, 3, depth])
        for number, panel in enumerate(axes):
            _full(panel, result, label="full fine-tuning" if number == 0 else None)
        _teachers(axes[0], grid, search, depth)
        _students(axes[1], search, result)
        _probes(axes[2], search, depth)
        axes[0].set_ylabel(f"dev {result.metric}, hundredths")
        figure.suptitle(result.task, x=0.01, ha="left", weight="bold")
        for panel in axes:
            if panel.get_legend_handles_labels()[0]:
                panel.legend(loc="best")
        write_plot(figure, path)
    return True


def _full(axes: Axes, result: TaskResult, label: str | None) -> None:
    if result.full is None:
        return
    mean, deviation = 100 * result.full.mean, result.full.deviation
    axes.axhline(mean, color=FULL, linewidth=1.2, linestyle="--", label=label)
    if deviation is not None:
        axes.axhspan(mean - 100 * deviation, mean + 100 * deviation, color=FULL, alpha=0.12, linewidth=0)


def _teachers(axes: Axes, grid: Sequence[Trial], search: Sequence[Trial], depth: int) -> None:
    axes.set_title("teachers")
    axes.set_xlabel("layers tuned, from the top")
    whole_ticks(axes, 1, depth)
    tried = [trial for trial in search if trial.stage == "teacher"]
    if grid:
        _line(axes, grid, "o-", TEACHER, "full grid", markersize=3.5, linewidth=1)
    whole = [trial for trial in tried if not trial.stopped]
    stopped = [trial for trial in tried if trial.stopped]
    if whole:
        _line(axes, whole, "o" if grid else "o-", TEACHER, "search", markersize=8, alpha=0.85)
    if stopped:
        _line(axes, stopped, "o", TEACHER, "search, stopped early", markersize=8, fillstyle="none")


def _students(axes: Axes, search: Sequence[Trial], result: TaskResult) -> None:
    axes.set_title("students")
    axes.set_xlabel("layers of the student")
    students = [trial for trial in search if trial.stage == "student"]
    most = max([3, *(trial.spec.recipe.layers for trial in students), result.layers or 0])
    whole_ticks(axes, 1, most)
    taps = sorted({trial.spec.recipe.resolved_tap for trial in students})
    for number, tap in enumerate(taps):
        on_tap = [trial for trial in students if trial.spec.recipe.resolved_tap == tap]
        _line(axes, on_tap, "s-", STUDENTS[number % len(STUDENTS)], f"on tap {tap}", markersize=4.5)
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
            label=f"chosen, tap {result.tap}",
        )


def _probes(axes: Axes, search: Sequence[Trial], depth: int) -> None:
    axes.set_title("probes")
    axes.set_xlabel("tap of the probe")
    whole_ticks(axes, 0, depth - 1)
    probes = sorted(
        (trial for trial in search if trial.stage == "probe"), key=lambda trial: trial.spec.recipe.resolved_tap
    )
    taps, scores = [trial.spec.recipe.resolved_tap for trial in probes], [100 * trial.score for trial in probes]
    axes.plot(taps, scores, "^-", color=PROBE, markersize=5)


def _line(axes: Axes, trials: Sequence[Trial], form: str, colour: str, label: str, **more: Any) -> None:
    ordered = sorted(trials, key=lambda trial: trial.spec.recipe.layers)
    layers, scores = [trial.spec.recipe.layers for trial in ordered], [100 * trial.score for trial in ordered]
    axes.plot(layers, scores, form, color=colour, label=label, **more)
