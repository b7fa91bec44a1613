"""The study's report: the product's report of a search, with acceptance criteria, the paper's plans and ablations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.study.acceptance import COST_SHARE, RETENTION_AVERAGE, criteria_table
from benchmarks.study.linear import linear_summary, linear_table, read_linear
from benchmarks.study.measured_cost import MeasuredCost
from benchmarks.study.paper_plans import paper_plans
from onetrunk.distill.markdown import NOT_YET, gain, percent, points, seconds, table
from onetrunk.distill.plan import Plan
from onetrunk.distill.plan_file import PlanFile
from onetrunk.distill.plots import CHOSEN, COST_PLOT, FRONTIER_PLOT, HEADS, PROBE, TEACHER, PlanMark
from onetrunk.distill.report import (
    CAVEAT,
    CHOSEN_PLAN,
    depth_images,
    draw_plots,
    frontier_table,
    headline,
    image,
    mark_plan,
    name_folder,
    plan_table,
    provenance,
    score_table,
    search_table,
    summary_values,
    write_page,
)
from onetrunk.distill.results import SearchRecords, SearchResults, SeedScores, best_teacher
from onetrunk.distill.tensorboard import write_events
from onetrunk.distill.trials import Trial
from onetrunk.protocol.errors import UserError

BASIS = "basis"
_MARKERS = ("o", "s", "D", "v", "P", "X")


def write_quality_report(folder: Path, *, tensorboard: Path | None = None) -> list[Path]:
    """Write ``README.md``, ``summary.json`` and plots into the study's folder. Nothing is trained or measured.

    What has not been measured yet is null in the summary and named in the page.

    Args:
        folder: The folder of the search: ``runs/`` and, where they exist, ``plan.toml``, ``costs.json``,
            ``share.json``.
        tensorboard: A folder for the runs' curves in TensorBoard's format; None writes no curves.

    Returns:
        The paths that were written.

    Raises:
        UserError: The folder does not exist, a file in it is malformed, or a file cannot be written.
    """
    results = SearchResults.of(SearchRecords.read(folder))
    share_path = folder / "share.json"
    recorded = MeasuredCost.read(share_path) if share_path.is_file() else None
    measured = recorded if recorded and _is_of_plan(recorded, results.records.plan) else None
    paper, why = _paper_plans(results)
    plots = _draw(results, paper, measured)
    names = [path.name for path in plots]
    linear = read_linear(folder)
    direct = _direct_cost(measured, outdated=recorded is not None)
    page = [
        ("# Quality against cost", headline(results, cost_share=measured.share if measured else None)),
        ("## Goals", [*criteria_table(results, measured), "", CAVEAT]),
        ("## Tasks", score_table(results)),
        ("## What is in the embedding already", linear_table(results, linear)),
        ("## Quality and cost", _quality_and_cost(results, paper, why, direct, names)),
        ("## The search", search_table(results)),
        ("## The search against the full grid", grid_table(results.records)),
        ("## Scores over depth", depth_images(results, names)),
        ("## What each part of distillation is worth", ablation_tables(results.records)),
        ("## How it was measured", provenance(results, f"python -m benchmarks.study report {name_folder(folder)}")),
    ]
    written = write_page(folder, page, {**_summary(results, measured), **linear_summary(results, linear)})
    events = write_events(results.records.runs.values(), tensorboard) if tensorboard else []
    return [*written, *plots, *events]


def grid_table(records: SearchRecords) -> list[str]:
    """Return the table of full grids beside what the search tried of them, one row per task that has a grid."""
    grids = {task: [trial for trial in records.trials("grid", task) if not trial.stopped] for task in records.tasks}
    rows = [_grid_row(task, grid, records) for task, grid in grids.items() if grid]
    if not rows:
        return [f"The full grids: {NOT_YET}."]
    columns = (
        *("task", "grid's best", "its score", "search's best", "its score", "difference"),
        *("full fine-tuning's deviation", "grid CPU s", "search CPU s", "saved"),
    )
    unfinished = [
        f"The grid of {task} is not finished: {len(grid)} of {_depth(grid)} taps."
        for task, grid in grids.items()
        if grid and len(grid) < _depth(grid)
    ]
    return [
        *table(columns, rows),
        "",
        "The grid has a teacher on every tap, each trained to its end. The search's seconds here are those of its "
        "probes and teachers, which do the grid's work; students come on top of either.",
        *unfinished,
    ]


def ablation_tables(records: SearchRecords) -> list[str]:
    """Return a table for each part of distillation that was changed, with the unchanged student first in each."""
    # Variant -> task -> score, the variants in the order in which they were tried.
    scores: dict[str, dict[str, float]] = {}
    for task, trials in records.studies["ablation"].items():
        for trial in trials.trials:
            scores.setdefault(trial.what, {})[task] = trial.score
    if not scores:
        return [f"The ablations: {NOT_YET}."]
    tasks = sorted({task for by_task in scores.values() for task in by_task})
    # The part that was changed -> its variants, as in start -> start: random.
    parts: dict[str, list[str]] = {}
    for variant in scores:
        if variant != BASIS:
            parts.setdefault(variant.partition(":")[0], []).append(variant)
    lines = [
        "One thing is changed at a time, on each task's best teacher, one seed. `basis` is what the search does. "
        f"Scores in hundredths; the mean is over {', '.join(tasks)}.",
    ]
    for part, variants in parts.items():
        rows = [_ablation_row(BASIS, BASIS, scores, tasks)] if BASIS in scores else []
        rows += [_ablation_row(variant, variant.partition(":")[2].strip(), scores, tasks) for variant in variants]
        lines += ["", *table((part, "mean", "against basis", *tasks), rows)]
    return lines


def _is_of_plan(measured: MeasuredCost, plan: PlanFile | None) -> bool:
    """Return whether the cost was measured of this plan's heads, not of an earlier plan's."""
    if plan is None or measured.trunk != plan.trunk:
        return False
    planned = sorted((head.tap, head.layers, head.query) for head in plan.tasks.values())
    return sorted(measured.heads) == planned


def _paper_plans(results: SearchResults) -> tuple[dict[str, Plan] | None, str]:
    """Return the paper's configurations; where something is missing for them, None and what that is."""
    if results.choices is None:
        return None, results.why_no_choices
    try:
        return paper_plans(results.choices, results.records), ""
    except UserError as error:
        return None, str(error)


def _draw(results: SearchResults, paper: Mapping[str, Plan] | None, measured: MeasuredCost | None) -> list[Path]:
    chosen, average = results.choices.chosen if results.choices else None, results.retention_average
    marks = [
        mark_plan(plan, name, marker, TEACHER if name.startswith("KD") else PROBE)
        for (name, plan), marker in zip((paper or {}).items(), _MARKERS, strict=False)
    ]
    if chosen is not None:
        marks.append(mark_plan(chosen, "chosen plan, by the cost table", "*", CHOSEN, size=15))
    if measured is not None and average is not None:
        label = "chosen plan, measured, all seeds"
        marks.append(PlanMark(label=label, share=measured.share, average=average, marker="*", colour=HEADS, size=15))
    # The bars of Mixed-c would be near copies of those of KD-l.
    bars = {CHOSEN_PLAN: chosen} if chosen else {}
    bars |= {name: plan for name, plan in (paper or {}).items() if name.startswith("KD")}
    return draw_plots(results, marks, bars, goal=(COST_SHARE, RETENTION_AVERAGE))


def _direct_cost(measured: MeasuredCost | None, *, outdated: bool) -> str:
    if measured is None:
        why = " (there is one of other heads)" if outdated else ""
        return f"The plan's cost, measured directly: {NOT_YET}{why}."
    return (
        "Measured directly, all models of the plan one after another against as many single-task models: "
        f"{percent(measured.share)}; {percent(measured.folded_share)} where the last layers of those are folded too."
    )


def _quality_and_cost(
    results: SearchResults, paper: Mapping[str, Plan] | None, why: str, direct: str, plots: Sequence[str]
) -> list[str]:
    if results.choices is None or paper is None:
        return [f"Plans beside the chosen one: {NOT_YET} ({why})."]
    chosen = {CHOSEN_PLAN: results.choices.chosen} if results.choices.chosen else {}
    return [
        *image(FRONTIER_PLOT, "average retention against cost", plots),
        *plan_table({**chosen, **paper}),
        "",
        "KD-l: every task has l layers, or as many of them as the search tried, which adds layers only while they may "
        "still help. Mixed-c: layers are added for as long as each gains at least c points (the paper's selection). "
        "Both stand on the tap of each task's best student. Costs are the cost table's, for one text, mean over text "
        "lengths and batch sizes; scores are of the search's own seed.",
        "",
        *image(COST_PLOT, "cost in trunk, heads and overhead", plots),
        direct,
        "",
        "The frontier: the best plan at each cost.",
        "",
        *frontier_table(results.choices),
    ]


def _grid_row(task: str, grid: Sequence[Trial], records: SearchRecords) -> tuple[str, ...]:
    search = records.trials("search", task)
    best, searched = max(grid, key=lambda trial: trial.score), best_teacher(search)
    full = SeedScores.of(trial.score for trial in records.trials("baseline", task))
    deviation = full.deviation if full else None
    grid_seconds = sum(trial.cpu_seconds for trial in grid)
    search_seconds = sum(trial.cpu_seconds for trial in search if trial.stage in ("probe", "teacher"))
    return (
        task,
        _depth_words(best),
        points(best.score),
        _depth_words(searched) if searched else NOT_YET,
        points(searched.score if searched else None),
        gain(searched.score - best.score if searched else None),
        points(deviation),
        seconds(grid_seconds),
        seconds(search_seconds) if searched else NOT_YET,
        percent(1 - search_seconds / grid_seconds, 0) if searched and grid_seconds else NOT_YET,
    )


def _depth(grid: Sequence[Trial]) -> int:
    recipe = grid[0].spec.recipe
    return recipe.resolved_tap + recipe.layers


def _depth_words(trial: Trial) -> str:
    recipe = trial.spec.recipe
    return f"tap {recipe.resolved_tap}, top {recipe.layers}"


def _ablation_row(
    variant: str, name: str, scores: Mapping[str, Mapping[str, float]], tasks: Sequence[str]
) -> tuple[str, ...]:
    found, basis = scores[variant], scores.get(BASIS, {})
    # A variant that does not apply to a task is compared on the others; its mean would not be comparable with basis's.
    mean = points(fmean(found.values())) if len(found) == len(tasks) else "–"
    gains = [found[task] - basis[task] for task in found if task in basis]
    difference = "" if variant == BASIS else gain(fmean(gains) if gains else None)
    return (name, mean, difference, *(points(found[task]) if task in found else "–" for task in tasks))


def _summary(results: SearchResults, measured: MeasuredCost | None) -> dict[str, Any]:
    return {
        **summary_values(results),
        "cost_share": measured.share if measured else None,
        "cost_share_range": measured.share_range if measured else None,
        "cost_share_folded": measured.folded_share if measured else None,
    }
