"""Carrying out a plan: each chosen student becomes the bundle of its task."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from onetrunk.distill.plan_file import PlanFile
from onetrunk.distill.trials import Trials, load_trials
from onetrunk.nn.bundle import save_bundle
from onetrunk.progress import ProgressCallback, silent
from onetrunk.protocol.errors import UserError
from onetrunk.training.evaluation import LabelledStates, evaluate
from onetrunk.training.execute import execute, trained_head
from onetrunk.training.provenance import finished_spec, planned_spec
from onetrunk.training.result import TrainResult
from onetrunk.training.run_record import RunRecord, RunStore
from onetrunk.training.run_spec import RunSpec
from onetrunk.training.workbench import SPLITS, Workbench


def carry_out(
    task: str, plan: PlanFile, bench: Workbench, heads: Path, progress: ProgressCallback = silent
) -> TrainResult:
    """Writes the bundle of a task as the plan says it: its run's best weights, measured again as they are stored.

    Where the run's weights are not in the cache, its teacher and it are trained again by their records.

    Args:
        task: the task.
        plan: the plan.
        bench: trunk, data, cache and records.
        heads: the folder of bundles.
        progress: see ProgressCallback.

    Raises:
        UserError: there is no record of the run that the plan names, or it read longer or shorter texts.
    """
    head_planned = plan.tasks[task]
    wanted = bench.store.by_key(head_planned.run).spec
    found = (wanted.task, wanted.recipe.standing, wanted.recipe.layers, wanted.recipe.query)
    if wanted.role == "full" or found != (task, head_planned.tap, head_planned.layers, head_planned.query):
        raise UserError(
            f"task {task}: its run {head_planned.run} in the plan is {wanted.role} training of task {found[0]} with "
            f"tap {found[1]}, layers {found[2]}, query {found[3]}; name the run of a head as the plan's table says it"
        )
    if wanted.recipe.max_length != bench.settings.max_length:
        raise UserError(
            f"task {task}: planned for texts of up to {wanted.recipe.max_length} tokens, not "
            f"{bench.settings.max_length}; leave --max-length out, or search again with it"
        )
    record = _trained(wanted, bench, progress)
    recipe, head = record.spec.recipe, trained_head(record, bench)
    dev = bench.states(task, "dev", [recipe.standing]).states[recipe.standing]
    examples = {split: bench.examples(task, split) for split in SPLITS}
    planned = planned_spec(bench.task(task), bench.trunk, recipe, examples)
    data = LabelledStates(dev, bench.targets(task, "dev"))
    spec = finished_spec(
        planned,
        evaluate(head, data, bench.task(task)),
        bench.arithmetic,
        record.best_epoch,
        bench.states(task, "train", [recipe.standing]).pass_seconds,
        record.seconds,
    )
    spec = spec.model_copy(update={"story": story(record, bench)})
    save_bundle(heads / task, spec, head)
    return TrainResult(spec, heads / task, epoch_scores=record.epoch_scores, train_seconds=record.seconds)


def planned_length(plan: PlanFile, runs: Path) -> int:
    """The longest text in tokens that a plan's heads were trained for.

    Args:
        plan: the plan.
        runs: the folder of run records.

    Raises:
        UserError: there is no record of the run that the plan names.
    """
    first = next(iter(plan.tasks.values()))
    return RunStore(runs).by_key(first.run).spec.recipe.max_length


def story(record: RunRecord, bench: Workbench) -> dict[str, Any]:
    """How a head came about, for its card: full fine-tuning, its teacher, itself, and what else was tried.

    Scores are dev scores by the task's first metric, as shares.
    """
    task, how = record.spec.task, record.spec.distillation
    studies: Mapping[str, Trials] = {
        study.study: study
        for study in load_trials(bench.settings.runs, ["baseline", "search", "seeds"])
        if study.task == task
    }
    told: dict[str, Any] = {"metric": record.metric}
    if "baseline" in studies:
        told["full_fine_tuning"] = _over_seeds([trial.score for trial in studies["baseline"].trials])
    if how is not None:
        teacher = bench.store.by_key(how.teacher)
        told["teacher"] = {
            "score": round(teacher.score, 4),
            "tap": teacher.spec.recipe.tap,
            "layers": teacher.spec.recipe.layers,
        }
        told["distillation"] = how.model_dump(exclude={"teacher"})
    seeds = [trial.score for trial in studies["seeds"].trials] if "seeds" in studies else []
    told["student"] = _over_seeds(seeds or [record.score])
    if "search" in studies:
        told["tried"] = [
            f"{trial.stage} on {trial.what}: {100 * trial.score:.1f}" + (" (stopped early)" if trial.stopped else "")
            for trial in studies["search"].trials
        ]
    return told


def _over_seeds(scores: list[float]) -> dict[str, Any]:
    told: dict[str, Any] = {"score": round(fmean(scores), 4), "seeds": len(scores)}
    if len(scores) > 1:
        told["deviation"] = round(stdev(scores), 4)
    return told


def _trained(spec: RunSpec, bench: Workbench, progress: ProgressCallback) -> RunRecord:
    """The record of a run whose weights are here: trained again where they are not."""
    how = spec.distillation
    if how is not None:
        teacher = execute(bench.store.by_key(how.teacher).spec, bench, progress=progress)
        # On another device a run has another key.
        spec = spec.model_copy(update={"distillation": how.model_copy(update={"teacher": teacher.key})})
    return execute(spec, bench, progress=progress)
