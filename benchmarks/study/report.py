"""Rebuilding everything in a study's folder that is made from its recorded runs."""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.study.events import write_events
from benchmarks.study.plots.cost_plot import COST_PLOT, draw_costs
from benchmarks.study.plots.depth_plot import depth_plot_name, draw_depths
from benchmarks.study.plots.frontier_plot import FRONTIER_PLOT, draw_frontier
from benchmarks.study.readme import readme
from benchmarks.study.recorded_study import RecordedStudy
from benchmarks.study.summary import Summary
from onetrunk.files import atomic_write_text


def write_quality_report(folder: Path, *, tensorboard: Path | None = None) -> list[Path]:
    """Writes ``summary.json``, ``README.md`` and the plots of a study. Nothing is trained or measured.

    What has not been measured yet is null in the summary and said in the README.

    Args:
        folder: the study: ``runs/``, and as far as there are: ``plan.toml``, ``costs.json``, ``share.json``.
        tensorboard: also write the runs' curves for TensorBoard, into this folder.

    Returns:
        What was written.

    Raises:
        UserError: there is no such folder, a file in it is broken, or one cannot be written.
    """
    study = RecordedStudy.read(folder)
    summary = Summary.of(study)
    plots = _draw(summary)
    summary_path, readme_path = folder / "summary.json", folder / "README.md"
    atomic_write_text(summary_path, json.dumps(summary.as_values(), indent=2) + "\n")
    atomic_write_text(readme_path, readme(summary, [path.name for path in plots], _command(folder)))
    events = write_events(study.records.values(), tensorboard) if tensorboard else []
    return [summary_path, readme_path, *plots, *events]


def _draw(summary: Summary) -> list[Path]:
    """Draws all plots that there is something for, and removes those of earlier times."""
    folder = summary.study.folder
    drawn = {
        folder / FRONTIER_PLOT: draw_frontier(summary, folder / FRONTIER_PLOT),
        folder / COST_PLOT: draw_costs(summary, folder / COST_PLOT),
    }
    for result in summary.results:
        path = folder / depth_plot_name(result.task)
        drawn[path] = draw_depths(result, summary.study, path)
    for old in (folder / FRONTIER_PLOT, folder / COST_PLOT, *folder.glob(depth_plot_name("*"))):
        if not drawn.get(old):
            old.unlink(missing_ok=True)
    return [path for path, is_drawn in drawn.items() if is_drawn]


def _command(folder: Path) -> str:
    """What a reader types, from where the command was given; a folder elsewhere is told by its name alone."""
    try:
        told = folder.resolve().relative_to(Path.cwd()).as_posix()
    except ValueError:
        told = folder.name
    return f"train-head --report --study {told}"
