"""Trainings that only the study needs: full grids of depths, ablations of distillation, and more seeds."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from onetrunk.distill.jobs import Job, JobRunner
from onetrunk.distill.pipeline import longest_first
from onetrunk.distill.plan_file import read_plan
from onetrunk.distill.results import best_teacher
from onetrunk.distill.settings import SearchSettings
from onetrunk.distill.task_search import run_baseline, save_baselines
from onetrunk.distill.trials import Trial, Trials, as_trial, load_trials, save_trials
from onetrunk.progress import ProgressCallback, silent
from onetrunk.protocol.errors import UserError
from onetrunk.tasks.kinds import get_kind
from onetrunk.training.experiment import Experiment, open_experiment
from onetrunk.training.runs import Distillation, RunSpec
from onetrunk.training.trainer import execute, find_run

# The shortest student with a layer below the folded one, so that the layers that it starts from can matter.
_ABLATION_LAYERS = 2

# Name -> what is changed of the distillation, and of the recipe. `basis` is what the search does.
_VARIANTS: tuple[tuple[str, dict[str, Any], dict[str, Any]], ...] = (
    ("basis", {}, {}),
    ("start: trunk's layers", {"start": "trunk"}, {}),
    ("start: random", {"start": "random"}, {}),
    ("loss: labels alone, teacher's start", {"soft": False, "other_texts": 0.0}, {}),
    ("loss: labels alone, trunk's start (plain fork)", {"soft": False, "start": "trunk", "other_texts": 0.0}, {}),
    ("loss: also the last state, weight 1", {"state_weight": 1.0}, {}),
    ("temperature: 1", {"temperature": 1.0}, {}),
    ("temperature: 4", {"temperature": 4.0}, {}),
    ("texts: its own alone", {"other_texts": 0.0}, {}),
    ("texts: its own alone, also masked", {"other_texts": 0.0, "masked_texts": 1.0}, {}),
    ("query: mean", {}, {"query": "mean"}),
    ("query: learned", {}, {"query": "learned"}),
)


def run_grid(
    task: str, experiment: Experiment, settings: SearchSettings, progress: ProgressCallback = silent
) -> Trials:
    """Train a teacher on every tap to its end, and record that as ``<task>.grid.json``.

    Runs that the search has finished are not repeated, but count with their whole cost.

    Args:
        task: The task's name.
        experiment: Trunk, data, cache and records.
        settings: The search's settings.
        progress: The callback that is told of every step.
    """
    rows = len(experiment.examples(task, "train"))
    grid = Trials(study="grid", task=task, metric=experiment.task(task).metric)
    # The cheap depths first, so that a grid that was interrupted has most of its points.
    for tap in reversed(range(experiment.trunk.depth)):
        layers = experiment.trunk.depth - tap
        recipe = settings.tuning(rows, tap=tap, layers=layers, seed=0, max_length=experiment.config.max_length)
        record = execute(RunSpec(task=task, role="teacher", recipe=recipe), experiment, progress=progress)
        grid = _append(grid, as_trial(record, "teacher", f"tap {tap}, layers {layers}"), experiment)
    return grid


def run_ablation(
    task: str, experiment: Experiment, settings: SearchSettings, progress: ProgressCallback = silent
) -> Trials:
    """Train variants of a student of the task's best teacher, and record that as ``<task>.ablation.json``.

    Args:
        task: The task's name.
        experiment: Trunk, data, cache and records.
        settings: The search's settings.
        progress: The callback that is told of every step.

    Raises:
        UserError: The task has not been searched yet.
    """
    searches = {search.task: search for search in load_trials(experiment.config.runs, ["search"])}
    teacher = best_teacher(searches[task].trials) if task in searches else None
    if teacher is None:
        raise UserError(f"task {task}: no finished search in {experiment.config.runs}; search it first")
    layers = min(_ABLATION_LAYERS, teacher.spec.recipe.layers)
    recipe = settings.learning(teacher.spec.recipe, layers=layers, seed=0)
    basis = settings.distillation(teacher.key, len(experiment.examples(task, "train")))
    ablation = Trials(study="ablation", task=task, metric=experiment.task(task).metric)
    for name, changes, recipe_changes in _VARIANTS:
        if "temperature" in changes and not get_kind(experiment.task(task).kind).training.supports_temperature:
            continue  # nothing would change
        distillation = Distillation.model_validate({**basis.model_dump(), **changes})
        student = recipe.model_copy(update=recipe_changes)
        spec = RunSpec(task=task, role="student", recipe=student, distillation=distillation)
        record = execute(spec, experiment, progress=progress)
        ablation = _append(ablation, as_trial(record, "ablation", name), experiment)
    return ablation


def train_seeds(runner: JobRunner, plan_path: Path, seeds: int, tasks: Collection[str] | None = None) -> None:
    """Train the baseline and the chosen head of every small task with more seeds, and write them as studies.

    Args:
        runner: Runs the trainings; its experiment is the search's.
        plan_path: The plan, which names the chosen heads.
        seeds: How often each is trained; once for large tasks.
        tasks: The tasks; None is all of the plan's.

    Raises:
        UserError: The plan is malformed, or a run that it names has no record.
        OneTrunkError: A training failed; what the others came to is kept.
    """
    experiment, plan = open_experiment(runner.config), read_plan(plan_path)
    wanted = plan.tasks.keys() if tasks is None else tasks
    tasks = [task for task in longest_first(experiment) if task in wanted]
    runs: dict[str, list[RunSpec]] = {}
    for task in tasks:
        chosen = experiment.store.by_key(plan.tasks[task].run).spec
        small = len(experiment.examples(task, "train")) <= runner.settings.large
        runs[task] = [chosen.with_seed(seed) for seed in range(seeds if small else 1)]
    runner.run(
        [
            Job(task, f"baseline, seed {seed}", partial(run_baseline, seed=seed))
            for task in tasks
            for seed in range(len(runs[task]))
        ]
    )
    runner.run(
        [
            Job(task, f"student, seed {spec.recipe.seed}", partial(_train_run, spec=spec))
            for task in tasks
            for spec in runs[task]
        ]
    )
    for task in tasks:
        save_baselines(task, experiment, runner.settings)
        _save_seeds(task, runs[task], experiment)


def _append(trials: Trials, trial: Trial, experiment: Experiment) -> Trials:
    """Record one more trial at once: what is finished stays recorded whatever happens next."""
    trials = trials.model_copy(update={"trials": (*trials.trials, trial)})
    save_trials(experiment.config.runs, trials)
    return trials


def _train_run(
    task: str, experiment: Experiment, settings: SearchSettings, progress: ProgressCallback, *, spec: RunSpec
) -> None:
    """Train a run as its spec says, as a job."""
    execute(spec, experiment, progress=progress)


def _save_seeds(task: str, runs: Sequence[RunSpec], experiment: Experiment) -> None:
    """Write the recorded runs of a chosen head, of all seeds, as ``<task>.seeds.json``."""
    trials = tuple(
        as_trial(record, "student", f"seed {spec.recipe.seed}")
        for spec in runs
        if (record := find_run(spec, experiment)) is not None
    )
    study = Trials(study="seeds", task=task, metric=experiment.task(task).metric, trials=trials)
    save_trials(experiment.config.runs, study)
