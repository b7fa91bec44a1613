"""The full grid of depths, without probes and without stopping: what a search is compared with."""

from __future__ import annotations

from onetrunk.distill.settings import SearchSettings
from onetrunk.distill.trials import Trial, Trials, as_trial, save_trials
from onetrunk.progress import ProgressCallback, silent
from onetrunk.training.experiment import Experiment
from onetrunk.training.runs import RunSpec
from onetrunk.training.trainer import execute


def run_grid(
    name: str, experiment: Experiment, settings: SearchSettings, progress: ProgressCallback = silent
) -> Trials:
    """Trains a teacher on every tap to its end, and writes that down as ``<task>.grid.json``.

    Runs that the search has done already are not done again, but count with their whole cost.
    """
    rows = len(experiment.examples(name, "train"))
    trials: list[Trial] = []
    study = Trials(study="grid", task=name, metric=experiment.task(name).metric)
    # The cheap ones first: a grid that was killed has most of its points.
    for tap in reversed(range(experiment.trunk.depth)):
        layers = experiment.trunk.depth - tap
        recipe = settings.tuning(rows, tap=tap, layers=layers, seed=0, max_length=experiment.config.max_length)
        record = execute(RunSpec(task=name, role="teacher", recipe=recipe), experiment, progress=progress)
        trials.append(as_trial(record, "teacher", f"tap {tap}, layers {layers}"))
        study = study.model_copy(update={"trials": tuple(trials)})
        save_trials(experiment.config.runs, study)
    return study
