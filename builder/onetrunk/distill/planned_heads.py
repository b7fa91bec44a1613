"""Making the heads of a plan: each chosen run becomes the bundle of its task."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from onetrunk.distill.plan_file import PlanFile
from onetrunk.distill.trials import Trials, load_trials
from onetrunk.progress import ProgressCallback, silent
from onetrunk.protocol.errors import UserError
from onetrunk.training.bundles import write_bundle
from onetrunk.training.experiment import Experiment
from onetrunk.training.models import trained_head, weights_file
from onetrunk.training.results import TrainResult
from onetrunk.training.runs import RunRecord, RunStore
from onetrunk.training.trainer import execute_with_teacher, is_current


def make_head(
    task: str, plan: PlanFile, experiment: Experiment, *, heads: Path, progress: ProgressCallback = silent
) -> TrainResult:
    """Write the bundle of a task from the run that the plan names, evaluated again with its weights as they are stored.

    Where the run's weights are no longer in the cache, it and its teacher are trained again from their records.

    Args:
        task: The task.
        plan: The plan.
        experiment: The trunk, the data, the cache and the records.
        heads: The folder of bundles.
        progress: Called as a training goes on.

    Raises:
        UserError: The run has no record, is another head than the plan says, or was trained for another text length.
        OneTrunkError: The bundle cannot be written; the one before is kept.
    """
    planned = plan.tasks[task]
    record = experiment.store.by_key(planned.run)
    spec = record.spec
    found = (spec.task, spec.recipe.resolved_tap, spec.recipe.layers, spec.recipe.query, spec.limb)
    if spec.role == "full" or found != (task, planned.tap, planned.layers, planned.query, planned.limb):
        limb = f", limb {spec.limb}" if spec.limb else ""
        raise UserError(
            f"task {task}: the plan's run {planned.run} is {spec.role} training of task {found[0]} with tap "
            f"{found[1]}, layers {found[2]}, query {found[3]}{limb}; name the run of a head that agrees with the "
            "plan's table"
        )
    if spec.recipe.max_length != experiment.config.max_length:
        raise UserError(
            f"task {task}: planned for texts of up to {spec.recipe.max_length} tokens, not "
            f"{experiment.config.max_length}; leave --max-length out, or search again with it"
        )
    try:
        experiment.branch(spec.limb)
    except UserError as error:
        raise UserError(f"task {task}: {error}") from error
    notes = []
    # The planned run's own weights come first, on whatever device and in whatever data type it was trained.
    if not (is_current(record, experiment) and weights_file(task, record.key, experiment).is_file()):
        record = execute_with_teacher(spec, experiment, progress)
        if record.key != planned.run:
            notes.append(
                f"trained anew on {record.device}: {record.metric} {100 * record.score:.1f}; the plan was made with "
                f"{100 * planned.score:.1f}"
            )
    head = trained_head(record, experiment)
    result = write_bundle(head, record, experiment, heads=heads, story=_story(record, experiment))
    return dataclasses.replace(result, notes=(*notes, *result.notes))


def planned_length(plan: PlanFile, runs: Path) -> int:
    """Return the longest text in tokens that a plan's heads were trained for.

    Args:
        plan: The plan.
        runs: The folder of run records.

    Raises:
        UserError: The run that the plan names has no record.
    """
    first = next(iter(plan.tasks.values()))
    return RunStore(runs).by_key(first.run).spec.recipe.max_length


def _story(record: RunRecord, experiment: Experiment) -> dict[str, Any]:
    """Return how a head came about, for its card: full fine-tuning, its teacher, itself, and what else was tried.

    Scores are dev scores by the task's first metric, as shares.
    """
    task, how = record.spec.task, record.spec.distillation
    studies: Mapping[str, Trials] = {
        study.study: study
        for study in load_trials(experiment.config.runs, ["baseline", "search", "seeds"])
        if study.task == task
    }
    story: dict[str, Any] = {"metric": record.metric}
    if "baseline" in studies:
        story["full_fine_tuning"] = _over_seeds([trial.score for trial in studies["baseline"].trials])
    if how is not None:
        teacher = experiment.store.by_key(how.teacher)
        story["teacher"] = {
            "score": round(teacher.score, 4),
            "tap": teacher.spec.recipe.tap,
            "layers": teacher.spec.recipe.layers,
        }
        story["distillation"] = how.model_dump(exclude={"teacher"})
    # The seeds of another head are left, where the plan was changed by hand.
    same = record.spec.with_seed(0)
    seeds = [
        trial.score
        for trial in (studies["seeds"].trials if "seeds" in studies else ())
        if trial.spec.with_seed(0) == same
    ]
    story["student"] = _over_seeds(seeds or [record.score])
    if "search" in studies:
        story["tried"] = [
            f"{trial.stage} on {trial.what}: {100 * trial.score:.1f}" + (" (stopped early)" if trial.stopped else "")
            for trial in studies["search"].trials
        ]
    return story


def _over_seeds(scores: list[float]) -> dict[str, Any]:
    summary: dict[str, Any] = {"score": round(fmean(scores), 4), "seeds": len(scores)}
    if len(scores) > 1:
        summary["deviation"] = round(stdev(scores), 4)
    return summary
