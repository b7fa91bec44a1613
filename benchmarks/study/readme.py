"""The README of a study's folder: headline first, then every table and plot."""

from __future__ import annotations

from collections.abc import Collection

from benchmarks.study.ablation_tables import ablation_tables
from benchmarks.study.goals import goals_table
from benchmarks.study.markdown import NOT_YET, percent, points, times
from benchmarks.study.plan_tables import alternatives_table, frontier_table
from benchmarks.study.plots.cost_plot import COST_PLOT
from benchmarks.study.plots.depth_plot import depth_plot_name
from benchmarks.study.plots.frontier_plot import FRONTIER_PLOT
from benchmarks.study.recipe_table import recipe_table
from benchmarks.study.score_table import score_table
from benchmarks.study.search_tables import grid_table, search_table
from benchmarks.study.summary import Summary

_CAVEAT = (
    "Best epochs, depths and the plan are chosen on the same dev data that the scores are of, so all scores are a "
    "little optimistic, and those of the chosen students, picked among more runs, more so than those of full "
    "fine-tuning."
)


def readme(summary: Summary, plots: Collection[str], command: str) -> str:
    """The whole text.

    Args:
        summary: the figures.
        plots: names of the plots that were drawn.
        command: what rebuilds it.
    """
    study = summary.study
    sections = [
        ("# Quality against cost", _headline(summary)),
        ("## Goals", [*goals_table(summary), "", _CAVEAT]),
        ("## Tasks", score_table(summary)),
        ("## Quality and cost", _quality_and_cost(summary, plots)),
        ("## The search", [*search_table(study, summary.cost), *_stopped(summary)]),
        ("## The search against the full grid", grid_table(study)),
        ("## Scores over depth", _depths(summary, plots)),
        ("## What each part of distillation is worth", ablation_tables(study)),
        ("## How it was measured", _how(summary, command)),
    ]
    return "\n\n".join("\n".join([title, "", *lines]) for title, lines in sections) + "\n"


def _headline(summary: Summary) -> list[str]:
    tasks, worst = len(summary.results), summary.worst
    least = f", least on {worst.task} ({percent(worst.retention)})" if worst else ""
    lines = [
        f"- Kept of full fine-tuning, average of {tasks} tasks: **{percent(summary.retention_average)}**{least}",
        f"- Cost of all {tasks} tasks, against {tasks} single-task models: **{percent(summary.cost_share)}**",
        "- Cost of the whole search, against one full fine-tuning of each task: "
        f"**{times(summary.cost.ratio if summary.cost else None)}**",
        "",
        "The same as JSON: [summary.json](summary.json).",
    ]
    note = summary.study.plan.kept.note if summary.study.plan else "there is no plan yet"
    return [*lines, "", f"Of the plan, when it was chosen: {note}."] if note else lines


def _quality_and_cost(summary: Summary, plots: Collection[str]) -> list[str]:
    if summary.alternatives is None:
        return [f"Plans beside the chosen one: {NOT_YET} ({summary.why_no_alternatives})."]
    lines = [*_image(FRONTIER_PLOT, "average retention against cost", plots), *alternatives_table(summary.alternatives)]
    lines += ["", *_image(COST_PLOT, "cost in trunk, heads and overhead", plots), *_direct(summary)]
    return [*lines, "", "The frontier: the best plan at each cost.", "", *frontier_table(summary.alternatives)]


def _direct(summary: Summary) -> list[str]:
    report = summary.study.share_of_plan
    if report is None:
        why = " (there is one of other heads)" if summary.study.share else ""
        return [f"The plan's cost, measured directly: {NOT_YET}{why}."]
    return [
        f"Measured directly, all models of the plan one after another against as many single-task models: "
        f"{percent(report.share)}; {percent(report.folded_share)} where the last layers of those are folded too.",
    ]


def _stopped(summary: Summary) -> list[str]:
    found = summary.study.studies["search"]
    notes = [f"- {task}: {note}" for task in summary.study.tasks if task in found for note in found[task].notes]
    return ["", *notes] if notes else []


def _depths(summary: Summary, plots: Collection[str]) -> list[str]:
    names = [(result.task, depth_plot_name(result.task)) for result in summary.results]
    lines = [line for task, name in names for line in _image(name, f"{task}: dev score over depth", plots)]
    if not lines:
        return [f"Scores over depth: {NOT_YET}."]
    return [
        "Left: teachers, by the number of layers tuned. Middle: students, by their own layers. Right: probes, one "
        "folded layer on each tap.",
        "",
        *lines[:-1],
    ]


def _image(name: str, alternative: str, plots: Collection[str]) -> list[str]:
    return [f"![{alternative}]({name})", ""] if name in plots else []


def _how(summary: Summary, command: str) -> list[str]:
    study = summary.study
    records = list(study.records.values())
    lines = [*recipe_table(study), ""]
    if records:
        days = sorted({record.created for record in records})
        days = days if len(days) == 1 else [days[0], days[-1]]
        hours = sum(record.cpu_seconds for record in records) / 3600
        lines.append(f"- {len(records)} recorded runs, {' to '.join(days)}, {hours:.1f} CPU hours: [runs/](runs)")
    lines += [f"- Machine: {machine}" for machine in summary.machines]
    if study.costs:
        versions = ", ".join(f"{name} {version}" for name, version in sorted(study.costs.versions.items()))
        lines.append(f"- Costs: {versions}, {study.costs.threads} thread(s) a session, {study.costs.repeats} rounds")
    if study.plan:
        floors = study.plan.floors
        lines.append(f"- Trunk: `{study.plan.trunk}`")
        lines.append(
            f"- The plan's floors: {points(floors.average)}% on average, {points(floors.task)}% for each task"
            + (f", at most {percent(floors.most_share)} of the cost" if floors.most_share else "")
        )
    return [*lines, f"- Rebuilt from the recorded runs, without training, by `{command}`"]
