"""Trainings that only the study needs: full grids of depths, and ablations of distillation."""

from __future__ import annotations

from typing import Any

from onetrunk.distill.results import best_teacher
from onetrunk.distill.settings import SearchSettings
from onetrunk.distill.trials import Trial, Trials, as_trial, load_trials, save_trials
from onetrunk.progress import ProgressCallback, silent
from onetrunk.protocol.errors import UserError
from onetrunk.tasks.kinds import get_kind
from onetrunk.training.experiment import Experiment
from onetrunk.training.runs import Distillation, RunSpec
from onetrunk.training.trainer import execute

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
        progress: Called after each step.
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
        progress: Called after each step.

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


def _append(trials: Trials, trial: Trial, experiment: Experiment) -> Trials:
    """Record one more trial at once: what is finished stays recorded whatever happens next."""
    trials = trials.model_copy(update={"trials": (*trials.trials, trial)})
    save_trials(experiment.config.runs, trials)
    return trials
