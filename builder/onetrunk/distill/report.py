"""The report of a search: a Markdown page with tables and plots, and its figures as JSON.

It is made from what the search recorded; nothing is trained or measured. The functions that build its sections are
public, so that a longer report can be put together from them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from onetrunk.distill.markdown import NOT_YET, count, over_seeds, percent, points, seconds, table, times
from onetrunk.distill.plan import Plan
from onetrunk.distill.plots import (
    CHOSEN,
    COST_PLOT,
    FRONTIER_PLOT,
    PlanMark,
    depth_plot_name,
    draw_costs,
    draw_depths,
    draw_frontier,
)
from onetrunk.distill.results import PlanChoices, SearchRecords, SearchResults, TaskResult, TaskSearch
from onetrunk.distill.tensorboard import write_events
from onetrunk.distill.trials import Stage, Study, Trial
from onetrunk.files import atomic_write_text
from onetrunk.protocol.errors import UserError, counted
from onetrunk.protocol.names import LimbId

CHOSEN_PLAN = "chosen plan"
PLAN_COLUMNS = (
    "configuration",
    "kept on average",
    "keeps least",
    "taps",
    "layers in all",
    "cost share",
    "milliseconds",
)
CAVEAT = (
    "Best epochs, depths and the plan are chosen on the same dev data that the scores are of, so all scores are a "
    "little optimistic, and those of the chosen students, picked among more runs, more so than those of full "
    "fine-tuning."
)

_FRONTIER_SHARES = (0.12, 0.14, 0.16, 0.18, 0.20, 0.25, 0.30, 0.40, 0.50)
_RECIPE_ROWS: tuple[tuple[str, Study, Stage], ...] = (
    ("full fine-tuning", "baseline", "baseline"),
    ("probe", "search", "probe"),
    ("teacher", "search", "teacher"),
    ("student", "search", "student"),
)
_DIGITS = 6

Section = tuple[str, Sequence[str]]


def write_report(folder: Path, *, tensorboard: Path | None = None) -> list[Path]:
    """Write ``README.md``, ``summary.json`` and plots into a search's folder.

    What has not been measured yet is null in the summary and named in the page.

    Args:
        folder: The search's folder: ``runs/`` and, where they exist, ``plan.toml`` and ``costs.json``.
        tensorboard: A folder for the runs' curves in TensorBoard's format; None writes no curves.

    Returns:
        The paths that were written.

    Raises:
        UserError: The folder does not exist, a file in it is malformed, or a file cannot be written.
    """
    records = SearchRecords.read(folder)
    if not (records.runs or records.plan):
        raise UserError(f"{folder}: found no records of a search: name its folder, or run search-heads run first")
    results = SearchResults.of(records)
    chosen = results.choices.chosen if results.choices else None
    marks = [mark_plan(chosen, CHOSEN_PLAN, "*", CHOSEN, size=15)] if chosen else []
    plots = draw_plots(results, marks, {CHOSEN_PLAN: chosen} if chosen else {})
    names = [path.name for path in plots]
    page = [
        ("# Search results", headline(results)),
        ("## Tasks", [*score_table(results), "", CAVEAT]),
        ("## Plan and frontier", _plan_and_frontier(results, names)),
        ("## The search", search_table(results)),
        ("## Scores over depth", depth_images(results, names)),
        ("## What was tried", trial_table(results)),
        ("## How it was measured", provenance(results, f"search-heads report --study {name_folder(folder)}")),
    ]
    written = write_page(folder, page, summary_values(results))
    events = write_events(results.records.runs.values(), tensorboard) if tensorboard else []
    return [*written, *plots, *events]


def write_page(folder: Path, sections: Iterable[Section], summary: Mapping[str, Any]) -> list[Path]:
    """Write sections as ``README.md`` and figures, rounded, as ``summary.json``.

    Raises:
        OneTrunkError: A file cannot be written.
    """
    summary_path, page_path = folder / "summary.json", folder / "README.md"
    atomic_write_text(summary_path, json.dumps(_rounded(summary), indent=2) + "\n")
    atomic_write_text(page_path, "\n\n".join("\n".join([title, "", *lines]) for title, lines in sections) + "\n")
    return [summary_path, page_path]


def summary_values(results: SearchResults) -> dict[str, Any]:
    """Return the figures of a search under the names that ``summary.json`` has for them."""
    cost, plan, chosen = results.cost, results.records.plan, results.choices.chosen if results.choices else None
    return {
        "retention_average": results.retention_average,
        "retention_min": results.retention_min,
        "search_cost_ratio": cost.ratio if cost else None,
        "tasks": {result.task: _task_values(result) for result in results.tasks},
        "retention_min_task": results.worst.task if results.worst else None,
        "cost_share_by_table": chosen.share if chosen else None,
        "search_cost_ratio_with_trunk": cost.ratio_with_trunk if cost else None,
        "search_cpu_seconds": cost.search_seconds if cost else None,
        "baseline_cpu_seconds": cost.full_seconds if cost else None,
        "trunk_cpu_seconds": cost.trunk_seconds if cost else None,
        "trunk": plan.trunk if plan else None,
        "machine": results.machines,
    }


def draw_plots(
    results: SearchResults,
    marks: Sequence[PlanMark],
    plans: Mapping[str, Plan],
    *,
    goal: tuple[float, float] | None = None,
) -> list[Path]:
    """Draw every plot that there are figures for, and remove those of an earlier report that there are none for.

    Args:
        results: The results; the plots are written into their folder.
        marks: The plans to mark beside the frontier.
        plans: Label -> plan whose cost is drawn.
        goal: See ``draw_frontier``.

    Returns:
        The paths that were written.

    Raises:
        UserError: A file cannot be written.
    """
    folder, drawn = results.records.folder, []
    frontier_plot, cost_plot = folder / FRONTIER_PLOT, folder / COST_PLOT
    if results.choices is not None:
        draw_frontier(results.choices.frontier, marks, frontier_plot, goal=goal)
        drawn.append(frontier_plot)
    if plans:
        draw_costs(plans, cost_plot)
        drawn.append(cost_plot)
    for result in results.tasks:
        path = folder / depth_plot_name(result.task)
        if draw_depths(result, results.records, path):
            drawn.append(path)
    for old in {frontier_plot, cost_plot, *folder.glob(depth_plot_name("*"))} - set(drawn):
        old.unlink(missing_ok=True)
    return drawn


def mark_plan(plan: Plan, label: str, marker: str, colour: str, *, size: float = 7) -> PlanMark:
    """Return the mark of a plan at its cost by the cost table.

    Args:
        plan: The plan.
        label: The label in the legend.
        marker: matplotlib's marker.
        colour: The colour.
        size: The size of the marker, in points.
    """
    return PlanMark(label=label, share=plan.share, average=plan.average, marker=marker, colour=colour, size=size)


def headline(results: SearchResults, *, cost_share: float | None = None) -> list[str]:
    """Return the first lines of a report: retention, cost, and the search's own cost.

    Args:
        results: The results.
        cost_share: The plan's cost where it was measured directly; None gives its cost by the cost table.
    """
    number, worst, plan = len(results.tasks), results.worst, results.records.plan
    least = f", least on {worst.task} ({percent(worst.retention)})" if worst else ""
    if cost_share is None and results.choices and results.choices.chosen:
        cost_share = results.choices.chosen.share
    lines = [
        f"- Kept of full fine-tuning, average of {number} tasks: **{percent(results.retention_average)}**{least}",
        f"- Cost of all {number} tasks, against {number} single-task models: **{percent(cost_share)}**",
        "- Cost of the whole search, against one full fine-tuning of each task: "
        f"**{times(results.cost.ratio if results.cost else None)}**",
        "",
        "The same as JSON: [summary.json](summary.json).",
    ]
    note = plan.kept.note if plan else "there is no plan yet"
    return [*lines, "", f"Note on the plan: {note}."] if note else lines


def score_table(results: SearchResults) -> list[str]:
    """Return the table of tasks: full fine-tuning, teacher, and the chosen student."""
    columns = (
        "task",
        "metric",
        "full fine-tuning",
        "teacher",
        "student",
        "new seeds",
        "tap",
        "layers",
        "query",
        "kept",
    )
    return [
        *table(columns, [_score_row(result) for result in results.tasks]),
        "",
        "Dev scores in hundredths: mean ± standard deviation over seeds (number of seeds). Kept: student over full "
        "fine-tuning. New seeds: the student without the run by which the plan chose it; – where a large task has one "
        "seed. Teacher: the run that the student learned from, one seed; – where the head learned from labels alone.",
    ]


def plan_table(plans: Mapping[str, Plan]) -> list[str]:
    """Return a table with a row for each plan: what it retains, where its heads stand, what it costs."""
    return table(PLAN_COLUMNS, [(label, *_plan_cells(plan)) for label, plan in plans.items()])


def frontier_table(choices: PlanChoices) -> list[str]:
    """Return the best plan within each share of the cost, up to the share above which nothing is gained."""
    rows: list[tuple[str, ...]] = []
    last: Plan | None = None
    for share in (*_FRONTIER_SHARES, float("inf")):
        plan = choices.best_within(share)
        if plan is not None and plan is not last:
            rows.append(("any" if share == float("inf") else f"at most {percent(share, 0)}", *_plan_cells(plan)))
            last = plan
    return table(("cost allowed", *PLAN_COLUMNS[1:]), rows)


def search_table(results: SearchResults) -> list[str]:
    """Return the table of what was tried for each task and what that cost, with the search's notes."""
    if not results.searches:
        return [f"The searches: {NOT_YET}."]
    rows = [_search_row(search) for search in results.searches]
    if cost := results.cost:
        counts = [
            str(sum(search.count(stage, stopped=stopped) for search in results.searches))
            for stage, stopped in (("probe", None), ("teacher", False), ("teacher", True), ("student", None))
        ]
        sums = (seconds(cost.search_seconds), seconds(cost.full_seconds), times(cost.ratio))
        rows.append(("all", *counts, *sums, seconds(cost.trunk_seconds)))
    columns = (
        *("task", "taps probed", "teachers whole", "teachers stopped early", "students"),
        *("search CPU s", "one full fine-tuning CPU s", "ratio", "trunk's pass CPU s"),
    )
    studies = results.records.studies["search"]
    notes = [f"- {search.task}: {note}" for search in results.searches for note in studies[search.task].notes]
    if mixed := [search.task for search in results.searches if len(_processors(search, results.records)) > 1]:
        notes.insert(
            0,
            f"- {', '.join(mixed)}: the search and full fine-tuning ran on processors of several kinds, so that the "
            "ratio compares them, too",
        )
    return [
        *table(columns, rows),
        "",
        "Seconds are of the CPU, so that what else the machine did does not count. The trunk's pass over each task's "
        "texts serves every run and is kept apart from the ratio.",
        *(["", *notes] if notes else []),
    ]


def depth_images(results: SearchResults, plots: Iterable[str]) -> list[str]:
    """Return the depth plots of all tasks; ``plots`` are the names of those that were drawn."""
    plots = set(plots)
    names = [(result.task, depth_plot_name(result.task)) for result in results.tasks]
    lines = [line for task, name in names for line in image(name, f"{task}: dev score over depth", plots)]
    if not lines:
        return [f"Scores over depth: {NOT_YET}."]
    return [
        "Left: teachers, by the number of layers tuned. Middle: students, by their own layers. Right: probes, one "
        "folded layer on each tap.",
        "",
        *lines[:-1],
    ]


def trial_table(results: SearchResults) -> list[str]:
    """Return a table of every run of the searches."""
    trials = [(search.task, trial) for search in results.searches for trial in search.trials]
    if not trials:
        return [f"The searches: {NOT_YET}."]
    columns = ("task", "run", "tap", "layers", "query", "epochs", "dev score", "CPU s", "record")
    return table(columns, [_trial_row(task, trial) for task, trial in trials])


def provenance(results: SearchResults, command: str) -> list[str]:
    """Return how everything was trained and measured.

    Args:
        results: The results.
        command: The command that makes the report again.
    """
    records = results.records
    runs, costs, plan = list(records.runs.values()), records.costs, records.plan
    lines = [*_recipe_table(records), ""]
    if runs:
        days = sorted({run.created for run in runs})
        period = " to ".join(dict.fromkeys([days[0], days[-1]]))
        hours = sum(run.cpu_seconds for run in runs) / 3600
        lines.append(f"- {len(runs)} recorded runs, {period}, {hours:.1f} CPU hours: [runs/](runs)")
    lines += [f"- Machine: {machine}" for machine in results.machines]
    if costs:
        versions = ", ".join(f"{name} {version}" for name, version in sorted(costs.versions.items()))
        threads, rounds = counted(costs.threads, "thread", "threads"), counted(costs.repeats, "round", "rounds")
        lines.append(f"- Costs: {versions}, {threads} a session, {rounds}")
    if plan:
        floors = plan.floors
        lines.append(f"- Trunk: `{plan.trunk}`")
        lines.append(
            f"- The plan's floors: {points(floors.average)}% on average, {points(floors.task)}% for each task"
            + (f", at most {percent(floors.most_share)} of the cost" if floors.most_share else "")
        )
    return [*lines, f"- Rebuilt from the recorded runs, without training, by `{command}`"]


def image(name: str, alternative: str, plots: Iterable[str]) -> list[str]:
    """Return the lines that show a plot, or none where it was not drawn."""
    return [f"![{alternative}]({name})", ""] if name in plots else []


def name_folder(folder: Path) -> str:
    """Return a folder as a reader would type it: relative to the working directory, or its name alone."""
    try:
        return folder.resolve().relative_to(Path.cwd()).as_posix()
    except ValueError:
        return folder.name


def _plan_and_frontier(results: SearchResults, plots: Sequence[str]) -> list[str]:
    choices = results.choices
    if choices is None:
        return [f"The frontier: {NOT_YET} ({results.why_no_choices})."]
    lines = image(FRONTIER_PLOT, "average retention against cost", plots)
    if choices.chosen is not None:
        lines += [*plan_table({CHOSEN_PLAN: choices.chosen}), ""]
        lines += image(COST_PLOT, "cost in trunk, heads and overhead", plots)
    return [
        *lines,
        "The frontier: the best plan at each cost.",
        "",
        *frontier_table(choices),
        "",
        "Costs are the cost table's, for one text, mean over text lengths and batch sizes; scores are of the search's "
        "own seed.",
    ]


def _score_row(result: TaskResult) -> tuple[str, ...]:
    return (
        result.task,
        result.metric or NOT_YET,
        over_seeds(result.full),
        "–" if result.teacher is None and result.student else points(result.teacher),
        over_seeds(result.student),
        "–" if result.unselected is None and result.student else over_seeds(result.unselected),
        count(result.tap) if not result.limb else f"limb {result.limb}",
        count(result.layers),
        result.query or NOT_YET,
        percent(result.retention),
    )


def _plan_cells(plan: Plan) -> tuple[str, ...]:
    return (
        percent(plan.average),
        f"{percent(plan.worst.retention)} ({plan.worst.task})",
        ", ".join([*(str(tap) for tap in plan.taps), *(f"limb {LimbId.parse(one).name}" for one in plan.limbs)]),
        str(sum(option.layers for option in plan.options)),
        percent(plan.share),
        f"{plan.cost.total_ms:.2f}",
    )


def _processors(search: TaskSearch, records: SearchRecords) -> set[str]:
    """Return the processors on which a task's search and its full fine-tuning ran."""
    trials = [*search.trials, *records.trials("baseline", search.task)]
    machines = (records.runs[trial.key].machine for trial in trials if trial.key in records.runs)
    return {machine.split(" (")[0] for machine in machines}


def _search_row(search: TaskSearch) -> tuple[str, ...]:
    return (
        search.task,
        str(search.count("probe")),
        str(search.count("teacher", stopped=False)),
        str(search.count("teacher", stopped=True)),
        str(search.count("student")),
        seconds(search.seconds),
        seconds(search.full_seconds),
        times(search.seconds / search.full_seconds if search.full_seconds else None),
        seconds(search.trunk_seconds),
    )


def _trial_row(task: str, trial: Trial) -> tuple[str, ...]:
    recipe = trial.spec.recipe
    return (
        task,
        f"{trial.stage}, stopped early" if trial.stopped else trial.stage,
        str(recipe.resolved_tap) if trial.spec.limb is None else f"limb {LimbId.parse(trial.spec.limb).name}",
        str(recipe.layers),
        recipe.query,
        f"{trial.epochs} of {recipe.epochs}",
        points(trial.score),
        seconds(trial.cpu_seconds),
        f"`{trial.key}`",
    )


def _recipe_table(records: SearchRecords) -> list[str]:
    """Return a row for each kind of run; where tasks differ, all values are listed."""
    rows = []
    for name, study, stage in _RECIPE_ROWS:
        trials = [trial for task in records.tasks for trial in records.trials(study, task) if trial.stage == stage]
        rows.append((name, *_recipe_cells(trials)) if trials else (name, *[NOT_YET] * 5))
    return table(("run", "epochs", "learning rate", "batch size", "dropout", "tokens at most"), rows)


def _recipe_cells(trials: Sequence[Trial]) -> tuple[str, ...]:
    recipes = [trial.spec.recipe for trial in trials]
    return (
        _distinct(recipe.epochs for recipe in recipes),
        _distinct(recipe.learning_rate for recipe in recipes),
        _distinct(recipe.batch_size for recipe in recipes),
        _distinct("the trunk's own" if recipe.dropout is None else recipe.dropout for recipe in recipes),
        _distinct(recipe.max_length for recipe in recipes),
    )


def _distinct(values: Iterable[float | str]) -> str:
    return " or ".join(sorted({value if isinstance(value, str) else f"{value:g}" for value in values}))


def _task_values(result: TaskResult) -> dict[str, Any]:
    full, student, unselected = result.full, result.student, result.unselected
    return {
        "full": full.mean if full else None,
        "teacher": result.teacher,
        "student": student.mean if student else None,
        "tap": result.tap,
        "limb": result.limb,
        "layers": result.layers,
        "seeds": student.seeds if student else None,
        "sd": student.deviation if student else None,
        "retention": result.retention,
        "metric": result.metric,
        "query": result.query,
        "full_seeds": full.seeds if full else None,
        "full_sd": full.deviation if full else None,
        "student_new_seeds": unselected.mean if unselected else None,
    }


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, _DIGITS)
    if isinstance(value, Mapping):
        return {key: _rounded(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(each) for each in value]
    return value
