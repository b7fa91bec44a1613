"""Full fine-tuning of the whole encoder: the 100% that every other score is measured against."""

from __future__ import annotations

from onetrunk.distill.settings import SearchSettings
from onetrunk.distill.trials import Trials, as_trial, save_trials
from onetrunk.progress import ProgressCallback, silent
from onetrunk.training.execute import execute
from onetrunk.training.run_record import RunRecord
from onetrunk.training.run_spec import RunSpec
from onetrunk.training.workbench import Workbench


def baseline_spec(name: str, bench: Workbench, settings: SearchSettings, seed: int) -> RunSpec:
    """Full fine-tuning of a task with one seed: the same data, epochs and recipe as its teachers have."""
    rows = len(bench.examples(name, "train"))
    recipe = settings.tuning(rows, tap=0, layers=bench.trunk.depth, seed=seed, max_length=bench.settings.max_length)
    return RunSpec(task=name, role="full", recipe=recipe)


def run_baseline(
    name: str, seed: int, bench: Workbench, settings: SearchSettings, progress: ProgressCallback = silent
) -> RunRecord:
    """Fine-tunes the whole encoder on a task, or finds the record of it."""
    return execute(baseline_spec(name, bench, settings, seed), bench, progress=progress)


def save_baselines(name: str, bench: Workbench, settings: SearchSettings) -> Trials:
    """Writes down which runs with the settings' recipe there are, of all seeds, as ``<task>.baseline.json``."""
    wanted = baseline_spec(name, bench, settings, 0)
    found = [
        record
        for record in bench.store
        if record.state == "finished" and record.spec == _with_seed(wanted, record.spec.recipe.seed)
    ]
    found.sort(key=lambda record: record.spec.recipe.seed)
    trials = tuple(as_trial(record, "baseline", f"seed {record.spec.recipe.seed}") for record in found)
    study = Trials(study="baseline", task=name, metric=bench.task(name).metric, trials=trials)
    save_trials(bench.settings.runs, study)
    return study


def seeds_of(name: str, bench: Workbench, settings: SearchSettings) -> int:
    """How many seeds a task's baseline and chosen head are trained with: one for large tasks."""
    return settings.seeds if len(bench.examples(name, "train")) <= settings.large else 1


def _with_seed(spec: RunSpec, seed: int) -> RunSpec:
    return spec.model_copy(update={"recipe": spec.recipe.model_copy(update={"seed": seed})})
