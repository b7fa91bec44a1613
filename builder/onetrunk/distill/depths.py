"""One task's search: probes on every tap, teachers on the best few, students of these."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from onetrunk.distill.baseline import baseline_spec
from onetrunk.distill.settings import SearchSettings
from onetrunk.distill.trials import Stage, Trial, Trials, as_trial, load_trials, save_trials
from onetrunk.progress import ProgressCallback, silent
from onetrunk.protocol.errors import UserError
from onetrunk.tasks.metrics import measure
from onetrunk.tasks.overlap import overlap_notes
from onetrunk.training.execute import execute, find_run, run_key
from onetrunk.training.run_record import RunRecord
from onetrunk.training.run_spec import RunSpec
from onetrunk.training.workbench import Workbench


def search_task(name: str, bench: Workbench, settings: SearchSettings, progress: ProgressCallback = silent) -> Trials:
    """Looks for a task's best teachers and students, and writes down what it tried as ``<task>.search.json``.

    Every run is a record, so a search that was killed finds what it had done and goes on with the rest.

    1. Probes: a one-layer head on every tap, trained folded on the cached states: nearly free.
    2. Forks, for small tasks: the same at full length, on the two highest of the taps that get teachers.
    3. Teachers: all layers above the taps that the probes liked best, the cheapest first, until one is nearly as good
       as full fine-tuning. One that is behind the others after the same epoch is stopped (Optuna's median rule).
    4. Students of the teachers that come near the best one, those on the highest tap first, the shortest first, until
       one is nearly as good as full fine-tuning, or as its teacher where that is not known. A student has fewer layers
       than its teacher; a teacher of few layers can be served itself.

    Args:
        name: the task.
        bench: trunk, data, cache and records.
        settings: budgets.
        progress: see ProgressCallback.
    """
    search = _TaskSearch(name, bench, settings, progress)
    taps = search.probe()
    search.fork(taps)
    teachers = search.teach(taps)
    best = max((teacher.score for teacher in teachers), default=0.0)
    for teacher in teachers:
        if teacher.score >= settings.near * best and search.distil(teacher):
            break
    return search.save()


class _TaskSearch:
    def __init__(self, name: str, bench: Workbench, settings: SearchSettings, progress: ProgressCallback) -> None:
        self._name, self._bench, self._settings, self._progress = name, bench, settings, progress
        self._task = bench.task(name)
        self._rows = len(bench.examples(name, "train"))
        self._trials: list[Trial] = []
        self._notes = list(_data_notes(name, bench))
        self._earlier = _earlier_trials(name, bench)
        self._trunk_cpu_seconds = 0.0
        # The baseline is not of the search, and not among its costs; but where it is known, it says what is enough.
        baseline = find_run(baseline_spec(name, bench, settings, 0), bench)
        # A score of nought, as of spans after too few steps, says nothing.
        self._full = baseline.score if baseline is not None and baseline.score > 0 else None

    def probe(self) -> list[int]:
        """Trains the probes. Gives the taps to put teachers on, the deepest, and so cheapest, first."""
        depth = self._bench.trunk.depth
        for split in ("train", "dev"):
            cached = self._bench.states(self._name, split, range(depth), self._progress)
            self._trunk_cpu_seconds += cached.pass_cpu_seconds
        scores = {}
        for tap in range(depth):
            recipe = self._settings.probing(tap=tap, seed=0, max_length=self._bench.settings.max_length)
            scores[tap] = self._run(RunSpec(task=self._name, role="fork", recipe=recipe), "probe").score
        return promising_taps(scores, self._settings.depths_for(self._rows))

    def teach(self, taps: Sequence[int]) -> list[RunRecord]:
        """Trains teachers on these taps. Gives those that were not stopped, the one on the highest tap first."""
        study = _open_study(
            self._bench.settings.runs.parent / "optuna" / f"{self._study_name()}.log", self._study_name()
        )
        records = []
        for tap in taps:
            spec = self._teacher_spec(tap)
            earlier = self._earlier.get(run_key(spec, self._bench))
            if earlier is not None and earlier.stopped:
                # Its run may have gone on since, for a full grid; this search stopped it, and that is what it cost.
                self._keep(earlier)
                continue
            record = self._teach_one(study, spec, tap)
            self._add(record, "teacher")
            if record.state == "finished":
                records.append(record)
                if self._full is not None and record.score >= self._settings.enough * self._full:
                    self._notes.append(
                        f"the teacher on tap {tap} keeps {record.score / self._full:.1%} of full fine-tuning: no lower "
                        "tap tried"
                    )
                    break
        return records

    def fork(self, taps: Sequence[int]) -> None:
        """Trains one-layer heads on the labels alone, where the task is small, on the two highest of these taps."""
        if self._rows > self._settings.large:
            return
        for tap in sorted(taps, reverse=True)[:2]:
            recipe = self._settings.probing(
                tap=tap, seed=0, max_length=self._bench.settings.max_length, epochs=self._settings.fork_epochs
            )
            self._run(RunSpec(task=self._name, role="fork", recipe=recipe), "fork")

    def distil(self, teacher: RunRecord) -> bool:
        """Trains students of a teacher, the shortest first. Gives whether one is good enough."""
        recipe = teacher.spec.recipe
        wanted = self._settings.enough * (teacher.score if self._full is None else self._full)
        for layers in self._settings.student_layers:
            if layers >= recipe.layers:
                break
            spec = RunSpec(
                task=self._name,
                role="student",
                recipe=self._settings.learning(recipe, layers=layers, seed=0),
                distillation=self._settings.distillation(teacher.key, self._rows),
            )
            if self._run(spec, "student").score >= wanted:
                return True
        return False

    def save(self, *, going_on: bool = False) -> Trials:
        """Writes down what was tried so far; while it goes on, also what an earlier search had come to before it."""
        done = {trial.key for trial in self._trials}
        ahead = [trial for key, trial in self._earlier.items() if going_on and key not in done]
        trials = Trials(
            study="search",
            task=self._name,
            metric=self._task.metric,
            by_token=self._task.answers.by_token,
            trunk_cpu_seconds=round(self._trunk_cpu_seconds, 2),
            trials=(*self._trials, *ahead),
            notes=tuple(self._notes),
        )
        save_trials(self._bench.settings.runs, trials)
        return trials

    def _teacher_spec(self, tap: int) -> RunSpec:
        layers, max_length = self._bench.trunk.depth - tap, self._bench.settings.max_length
        recipe = self._settings.tuning(self._rows, tap=tap, layers=layers, seed=0, max_length=max_length)
        return RunSpec(task=self._name, role="teacher", recipe=recipe)

    def _teach_one(self, study: optuna.Study, spec: RunSpec, tap: int) -> RunRecord:
        if any(trial.params.get("tap") == tap for trial in study.get_trials(states=(TrialState.COMPLETE,))):
            # Told already, and not to be told twice: the median would count it double.
            return execute(spec, self._bench, progress=self._progress)
        trial = _open_trial(study, tap, self._bench.trunk.depth)

        def is_behind(epoch: int, score: float) -> bool:
            trial.report(score, epoch)
            return epoch < spec.recipe.epochs and trial.should_prune()

        record = execute(spec, self._bench, should_stop=is_behind, progress=self._progress)
        if not trial.storage.get_trial(trial._trial_id).intermediate_values:
            # Found, not trained just now: the next ones are to be compared with it all the same.
            for epoch, scores in enumerate(record.epoch_scores, start=1):
                trial.report(scores[self._task.metric], epoch)
        if record.state == "stopped":
            # Without a value: Optuna takes the last one that was reported.
            study.tell(trial, state=TrialState.PRUNED)
        else:
            study.tell(trial, record.score)
        return record

    def _run(self, spec: RunSpec, stage: Stage) -> RunRecord:
        record = execute(spec, self._bench, progress=self._progress)
        self._add(record, stage)
        return record

    def _add(self, record: RunRecord, stage: Stage) -> None:
        recipe = record.spec.recipe
        self._keep(as_trial(record, stage, f"tap {recipe.tap}, layers {recipe.layers}"))

    def _keep(self, trial: Trial) -> None:
        self._trials.append(trial)
        if trial.stopped:
            tap = trial.spec.recipe.tap
            self._notes.append(f"the teacher on tap {tap} was behind after epoch {trial.epochs}: stopped")
        # After each run, so that a table can show it and a kill loses nothing.
        self.save(going_on=True)

    def _study_name(self) -> str:
        recipe = self._settings.tuning(self._rows, tap=0, layers=1, seed=0, max_length=self._bench.settings.max_length)
        key = run_key(RunSpec(task=self._name, role="teacher", recipe=recipe), self._bench)
        return f"{self._name}-{key}"


def promising_taps(scores: dict[int, float], count: int) -> list[int]:
    """The taps to put teachers on: the one with the best probe, and those below it, the deepest first.

    A teacher tunes all layers above its tap, so it makes up for what a lower tap lacks, and not for what a higher one
    has lost already: the layers of an encoder that was trained for something else stop helping at some depth, and that
    is what the probes see.
    """
    best = max(scores, key=lambda tap: (scores[tap], tap))
    chosen = [tap for tap in sorted(scores, reverse=True) if tap <= best][:count]
    # Too few below: the ones above are next.
    above = [tap for tap in sorted(scores) if tap > best][: count - len(chosen)]
    return sorted([*chosen, *above], reverse=True)


def _data_notes(name: str, bench: Workbench) -> tuple[str, ...]:
    """What a reader of the scores should know of the data."""
    train, dev = bench.examples(name, "train"), bench.examples(name, "dev")
    task, targets = bench.task(name), bench.targets(name, "dev").numpy()
    # With the data's own labels as answers, a metric that has no value has none on any answers.
    undefined = measure(task.metrics, task.answers.right(targets), targets)[1]
    return (*train.notes, *dev.notes, *overlap_notes(train, dev), *undefined)


def _earlier_trials(name: str, bench: Workbench) -> dict[str, Trial]:
    """Run's key -> its trial, of a search of this task before, whole or killed."""
    try:
        studies = load_trials(bench.settings.runs, ["search"])
    except UserError:
        # Broken: the search writes its own anew.
        return {}
    return {trial.key: trial for study in studies if study.task == name for trial in study.trials}


def _open_trial(study: optuna.Study, tap: int, depth: int) -> optuna.Trial:
    """The trial that a kill left unfinished, with what it had reported; or a new one."""
    for left in study.get_trials(states=(TrialState.RUNNING,)):
        if left.params.get("tap") == tap:
            return optuna.Trial(study, left._trial_id)
    study.enqueue_trial({"tap": tap})
    return study.ask({"tap": optuna.distributions.IntDistribution(0, depth - 1)})


def _open_study(log: Path, name: str) -> optuna.Study:
    logging.getLogger("optuna").setLevel(logging.WARNING)
    log.parent.mkdir(parents=True, exist_ok=True)
    return optuna.create_study(
        study_name=name,
        storage=JournalStorage(JournalFileBackend(str(log))),
        direction="maximize",
        pruner=optuna.pruners.MedianPruner(n_startup_trials=1, n_warmup_steps=0),
        load_if_exists=True,
    )
