"""What each part of distillation is worth: one thing changed at a time, on one task."""

from __future__ import annotations

from typing import Any

from onetrunk.distill.settings import SearchSettings
from onetrunk.distill.trials import Trials, as_trial, load_trials, save_trials
from onetrunk.progress import ProgressCallback, silent
from onetrunk.protocol.errors import UserError
from onetrunk.training.experiment import Experiment
from onetrunk.training.runs import Distillation, RunSpec
from onetrunk.training.trainer import execute

# Length of the students: the shortest that has a layer below the folded one, so that a start can matter.
_LAYERS = 2

# What is changed of the distillation, and of the recipe. `basis` is what the search does.
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


def run_ablation(
    name: str, experiment: Experiment, settings: SearchSettings, progress: ProgressCallback = silent
) -> Trials:
    """Trains the variants on one task's best teacher, and writes that down as ``<task>.ablation.json``.

    Raises:
        UserError: the task has not been searched yet.
    """
    teacher = _best_teacher(name, experiment)
    rows = len(experiment.examples(name, "train"))
    recipe = settings.learning(teacher[1], layers=min(_LAYERS, teacher[1].layers), seed=0)
    basis = settings.distillation(teacher[0], rows)
    study = Trials(study="ablation", task=name, metric=experiment.task(name).metric)
    for what, how, changes in _VARIANTS:
        if "temperature" in how and not experiment.task(name).answers.softens:
            continue  # nothing would change
        distillation = Distillation.model_validate({**basis.model_dump(), **how})
        spec = RunSpec(task=name, role="student", recipe=recipe.model_copy(update=changes), distillation=distillation)
        record = execute(spec, experiment, progress=progress)
        study = study.model_copy(update={"trials": (*study.trials, as_trial(record, "ablation", what))})
        save_trials(experiment.config.runs, study)
    return study


def _best_teacher(name: str, experiment: Experiment) -> tuple[str, Any]:
    for study in load_trials(experiment.config.runs, ["search"]):
        teachers = [trial for trial in study.trials if trial.stage == "teacher" and not trial.stopped]
        if study.task == name and teachers:
            best = max(teachers, key=lambda trial: trial.score)
            return best.key, best.spec.recipe
    raise UserError(f"task {name}: no finished search in {experiment.config.runs}; search it first")
