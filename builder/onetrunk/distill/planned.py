"""From what a search found to a plan: the students as options, chosen against measured costs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from onetrunk.distill.choice import choose
from onetrunk.distill.cost_table import CostTable
from onetrunk.distill.options import Option
from onetrunk.distill.plan_file import PlanFile, plan_file, read_plan, write_plan
from onetrunk.distill.trials import Trials, load_trials
from onetrunk.protocol.errors import UserError


def servable_options(runs: Path, tasks: Sequence[str]) -> list[Option]:
    """Every head of the search that could be served, with what full fine-tuning reached.

    These are students, one-layer forks, and teachers: a teacher of three layers on tap 3 is a head like any other.
    Probes are not: they are trained just long enough to compare taps.

    Args:
        runs: the folder of run records.
        tasks: of which tasks.

    Raises:
        UserError: a task has not been searched, or its baseline has not been trained, or has learned nothing.
    """
    baselines = {study.task: study for study in load_trials(runs, ["baseline"]) if study.trials}
    searches = {study.task: study for study in load_trials(runs, ["search"])}
    options = []
    for task in tasks:
        for name, found in (("searched", searches), ("fine-tuned as a whole", baselines)):
            if task not in found:
                raise UserError(f"task {task} has not been {name} yet; search again with all tasks")
        full = fmean(trial.score for trial in baselines[task].trials)
        if not full > 0:  # NaN is nothing to keep a share of
            raise UserError(
                f"task {task}: full fine-tuning scores {full:.3f} by {baselines[task].metric} on the dev data, so "
                "there is nothing to keep a share of; give more dev rows or another metric"
            )
        options += _options(searches[task], full)
    return options


def make_plan(
    path: Path,
    options: Sequence[Option],
    table: CostTable,
    *,
    floor_task: float,
    floor_average: float,
    most_share: float | None,
) -> PlanFile:
    """Chooses the cheapest plan above the floors, and writes it. See ``choose`` for the arguments.

    A plan of other heads that is there already is kept beside it, as ``plan.toml.old``.
    """
    plan = choose(options, table.rates(), floor_task=floor_task, floor_average=floor_average, most_share=most_share)
    written = plan_file(plan, table, floor_task=floor_task, floor_average=floor_average, most_share=most_share)
    if path.is_file() and read_plan(path).tasks != written.tasks:
        os.replace(path, path.with_name(f"{path.name}.old"))
    write_plan(path, written)
    return written


def _options(search: Trials, full: float) -> list[Option]:
    return [
        Option(
            task=search.task,
            tap=recipe.standing,
            layers=recipe.layers,
            query=recipe.query,
            score=trial.score,
            full=full,
            run=trial.key,
            by_token=search.by_token or None,
        )
        for trial in search.trials
        if trial.stage != "probe" and not trial.stopped
        for recipe in (trial.spec.recipe,)
    ]
