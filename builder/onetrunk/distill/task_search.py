"""The search for one task: full fine-tuning as the reference, probes, long heads, teachers, and their students."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from onetrunk.distill.settings import SearchSettings
from onetrunk.distill.trials import Stage, Trial, Trials, as_trial, load_trials, save_trials
from onetrunk.progress import ProgressCallback, silent
from onetrunk.protocol.errors import UserError
from onetrunk.protocol.names import LimbId
from onetrunk.tasks.kinds import get_kind
from onetrunk.tasks.metrics import measure
from onetrunk.tasks.records import SPLITS
from onetrunk.training.experiment import Experiment
from onetrunk.training.runs import RunRecord, RunSpec
from onetrunk.training.trainer import execute, find_run, is_current, run_key


def baseline_spec(task: str, experiment: Experiment, settings: SearchSettings, *, seed: int = 0) -> RunSpec:
    """Return the run of a task's full fine-tuning: the same data, epochs and recipe as its teachers have.

    Args:
        task: The task.
        experiment: The trunk, the data, the cache and the records.
        settings: The budgets of the search.
        seed: The seed of the run.
    """
    rows = len(experiment.examples(task, "train"))
    recipe = settings.tuning(
        rows, tap=0, layers=experiment.trunk.depth, seed=seed, max_length=experiment.config.max_length
    )
    return RunSpec(task=task, role="full", recipe=recipe)


def run_baseline(
    task: str,
    experiment: Experiment,
    settings: SearchSettings,
    progress: ProgressCallback = silent,
    *,
    seed: int = 0,
) -> RunRecord:
    """Fine-tune the whole encoder on a task, or find the record of it.

    Args:
        task: The task.
        experiment: The trunk, the data, the cache and the records.
        settings: The budgets of the search.
        progress: Called after each step.
        seed: The seed of the run.

    Raises:
        OneTrunkError: The training diverged, or the disk is full.
    """
    return execute(baseline_spec(task, experiment, settings, seed=seed), experiment, progress=progress)


def save_baselines(task: str, experiment: Experiment, settings: SearchSettings) -> Trials:
    """Write a task's recorded baselines, of whatever seeds there are, as ``<task>.baseline.json``."""
    return _save_all_seeds("baseline", baseline_spec(task, experiment, settings), experiment)


def save_seeds(spec: RunSpec, experiment: Experiment) -> Trials:
    """Write the recorded runs of a chosen head, of whatever seeds there are, as ``<task>.seeds.json``."""
    return _save_all_seeds("seeds", spec, experiment)


def _save_all_seeds(study: Literal["baseline", "seeds"], spec: RunSpec, experiment: Experiment) -> Trials:
    metric = experiment.task(spec.task).metric
    of_seed: dict[int, RunRecord] = {}
    for record in experiment.store:
        seed = record.spec.recipe.seed
        # A study's folder may also hold runs on data that have changed since.
        if record.state != "finished" or record.spec != spec.with_seed(seed) or not is_current(record, experiment):
            continue
        # One a seed, although it may have been trained in two data types; that of this search before all others.
        if seed not in of_seed or record.key == run_key(record.spec, experiment):
            of_seed[seed] = record
    found = [of_seed[seed] for seed in sorted(of_seed)]
    stage: Stage = "baseline" if study == "baseline" else "student"
    trials = Trials(
        study=study,
        task=spec.task,
        metric=metric,
        trials=tuple(as_trial(record, stage, f"seed {record.spec.recipe.seed}") for record in found),
    )
    save_trials(experiment.config.runs, trials)
    return trials


def search_task(
    task: str, experiment: Experiment, settings: SearchSettings, progress: ProgressCallback = silent
) -> Trials:
    """Search a task's best teachers and students, and write what was tried as ``<task>.search.json``.

    Every run is recorded, so a search that was killed finds what it had done and goes on with the rest. The records are
    enough: of what is no longer in the cache, only what the rest needs is computed again.

    1. Probes: a one-layer head on every tap, trained folded on the cached states: nearly free.
    2. Forks, for small tasks: the same at full length, on the two highest of the taps that get teachers.
    3. Long heads: where one layer falls far short of full fine-tuning on every tap, heads of several layers on low
       taps, trained on the labels alone. If one is nearly as good as full fine-tuning, the search ends with it.
    4. Teachers: all layers above the taps whose probes are best, the cheapest first, until one is nearly as good as
       full fine-tuning. Where a long head is better than all heads of one layer, its tap alone gets a teacher. None is
       stopped before its end: of small tasks, dev scores after the first epoch say next to nothing of the last.
    5. Students of the teachers that come near the best one, those on the highest tap first, the shortest first, until
       one is nearly as good as full fine-tuning, or as its teacher where that is not known. A student has fewer layers
       than its teacher; a teacher of few layers can be served itself. On the tap of a long head, a student has its
       length.
    6. Limbs: on each one that is given, a student of one layer, whose teacher is the best of those on the trunk.

    Args:
        task: The task.
        experiment: The trunk, the data, the cache and the records.
        settings: The budgets of the search.
        progress: Called after each step.

    Raises:
        UserError: The data have faults, or a record is broken.
        OneTrunkError: A training diverged, or the disk is full.
    """
    search = _TaskSearch(task, experiment, settings, progress)
    taps = search.probe()
    search.fork(taps)
    lengths: Sequence[int] = settings.student_layers
    if (long := search.lengthen()) is not None:
        if search.is_enough(long.score):
            search.stand_on_limbs(long)
            return search.save()
        taps, lengths = [long.spec.recipe.resolved_tap], (long.spec.recipe.layers,)
    teachers = search.teach(taps)
    best = max((teacher.score for teacher in teachers), default=0.0)
    for teacher in teachers:
        if teacher.score >= settings.near * best and search.distil(teacher, lengths):
            break
    search.stand_on_limbs(max([*teachers, *([long] if long is not None else [])], key=lambda one: one.score))
    return search.save()


class _TaskSearch:
    def __init__(self, name: str, experiment: Experiment, settings: SearchSettings, progress: ProgressCallback) -> None:
        self._name, self._experiment, self._settings, self._progress = name, experiment, settings, progress
        self._task = experiment.task(name)
        self._rows = len(experiment.examples(name, "train"))
        self._max_length = experiment.config.max_length
        self._trials: list[Trial] = []
        self._notes = list(_data_notes(name, experiment))
        self._before = _earlier_search(name, experiment)
        self._earlier = {trial.key: trial for trial in self._before.trials} if self._before else {}
        self._trunk_cpu_seconds = 0.0
        # The baseline is not part of the search or its costs; but where its score is known, it says what is enough.
        baseline = find_run(baseline_spec(name, experiment, settings), experiment)
        # A score of 0, as of spans after too few steps, says nothing.
        self._full = baseline.score if baseline is not None and baseline.score > 0 else None

    def probe(self) -> list[int]:
        """Train the probes, and return the taps to put teachers on, the deepest, and so cheapest, first."""
        depth = self._experiment.trunk.depth
        specs = [self._probe_spec(tap) for tap in range(depth)]
        if self._before is not None and all(find_run(spec, self._experiment) for spec in specs):
            self._trunk_cpu_seconds = self._before.trunk_cpu_seconds
        else:
            for split in SPLITS:
                cached = self._experiment.states(self._name, split, range(depth), self._progress)
                self._trunk_cpu_seconds += cached.pass_cpu_seconds
        scores = {tap: self._run(spec, "probe").score for tap, spec in enumerate(specs)}
        return promising_taps(scores, self._settings.depths_for(self._rows))

    def fork(self, taps: Sequence[int]) -> None:
        """Train one-layer heads on the labels alone on the two highest of these taps, if the task is small."""
        if self._rows > self._settings.large:
            return
        for tap in sorted(taps, reverse=True)[:2]:
            recipe = self._settings.probing(
                tap=tap, seed=0, max_length=self._max_length, epochs=self._settings.fork_epochs
            )
            self._run(RunSpec(task=self._name, role="fork", recipe=recipe), "fork")

    def stand_on_limbs(self, teacher: RunRecord) -> None:
        """Train a student of one layer on each limb. It starts where the limb's training left its task's head."""
        for limb in self._settings.limbs:
            recipe = self._settings.learning(teacher.spec.recipe, layers=1, seed=0)
            how = self._settings.distillation(teacher.key, self._rows)
            self._learn(
                RunSpec(
                    task=self._name,
                    role="student",
                    recipe=recipe.model_copy(update={"tap": LimbId.parse(limb).stop}),
                    distillation=how.model_copy(update={"start": "trunk"}),
                    limb=limb,
                ),
                teacher,
            )

    def lengthen(self) -> RunRecord | None:
        """Train long heads where those of one layer fall far short; return the best where it is better than these.

        Probes see what one layer can make of a tap. What a task needs beyond that, such as the order of words, is best
        learned in several layers, and of states that have not lost it.
        """
        best = max(trial.score for trial in self._trials)
        if self._full is None or best >= self._settings.far * self._full:
            return None
        records: list[RunRecord] = []
        for tap, layers in self._settings.long_shapes(self._experiment.trunk.depth):
            recipe = self._settings.tuning(self._rows, tap=tap, layers=layers, seed=0, max_length=self._max_length)
            records.append(self._run(RunSpec(task=self._name, role="fork", recipe=recipe), "fork"))
            if self.is_enough(records[-1].score):
                break
        longest = max(records, key=lambda record: record.score, default=None)
        return longest if longest is not None and longest.score > best else None

    def is_enough(self, score: float) -> bool:
        """Return whether a score is known to be nearly that of full fine-tuning."""
        return self._full is not None and score >= self._settings.enough * self._full

    def teach(self, taps: Sequence[int]) -> list[RunRecord]:
        """Train teachers on these taps, and return them, the one on the highest tap first."""
        records = []
        for tap in taps:
            record = self._run(self._teacher_spec(tap), "teacher")
            records.append(record)
            if self._full is not None and self.is_enough(record.score):
                self._notes.append(
                    f"the teacher on tap {tap} keeps {record.score / self._full:.1%} of full fine-tuning: no lower tap "
                    "was tried"
                )
                break
        return records

    def distil(self, teacher: RunRecord, lengths: Sequence[int]) -> bool:
        """Train students of a teacher with these numbers of layers, in this order, until one is good enough.

        Returns whether one is.
        """
        recipe = teacher.spec.recipe
        enough = self._settings.enough * (teacher.score if self._full is None else self._full)
        for layers in lengths:
            if layers >= recipe.layers:
                break
            spec = RunSpec(
                task=self._name,
                role="student",
                recipe=self._settings.learning(recipe, layers=layers, seed=0),
                distillation=self._settings.distillation(teacher.key, self._rows),
            )
            if self._learn(spec, teacher).score >= enough:
                return True
        return False

    def _learn(self, spec: RunSpec, teacher: RunRecord) -> RunRecord:
        if find_run(spec, self._experiment) is None:
            # The student needs its teacher's weights, which may have gone from the cache.
            execute(teacher.spec, self._experiment, progress=self._progress)
        return self._run(spec, "student")

    def save(self, *, going_on: bool = False) -> Trials:
        """Write what was tried so far; while the search goes on, also what an earlier one had tried after that."""
        done = {trial.key for trial in self._trials}
        ahead = [trial for key, trial in self._earlier.items() if going_on and key not in done]
        trials = Trials(
            study="search",
            task=self._name,
            metric=self._task.metric,
            by_token=get_kind(self._task.kind).by_token,
            trunk_cpu_seconds=round(self._trunk_cpu_seconds, 2),
            trials=(*self._trials, *ahead),
            notes=tuple(self._notes),
            complete=not going_on,
        )
        save_trials(self._experiment.config.runs, trials)
        return trials

    def _probe_spec(self, tap: int) -> RunSpec:
        recipe = self._settings.probing(tap=tap, seed=0, max_length=self._max_length)
        return RunSpec(task=self._name, role="fork", recipe=recipe)

    def _teacher_spec(self, tap: int) -> RunSpec:
        layers = self._experiment.trunk.depth - tap
        recipe = self._settings.tuning(self._rows, tap=tap, layers=layers, seed=0, max_length=self._max_length)
        return RunSpec(task=self._name, role="teacher", recipe=recipe)

    def _run(self, spec: RunSpec, stage: Stage) -> RunRecord:
        record = execute(spec, self._experiment, weights=False, progress=self._progress)
        where = f"tap {spec.recipe.tap}" if spec.limb is None else f"limb {LimbId.parse(spec.limb).name}"
        self._trials.append(as_trial(record, stage, f"{where}, layers {spec.recipe.layers}"))
        # After each run, so that a table can show it and a kill loses nothing.
        self.save(going_on=True)
        return record


def promising_taps(scores: dict[int, float], count: int) -> list[int]:
    """Return the taps to put teachers on: the one with the best probe and those below it, the deepest first.

    A teacher tunes all layers above its tap, so it makes up for what a lower tap lacks, but not for what a higher one
    has lost already: the layers of an encoder that was trained for something else stop helping at some depth, and that
    is what the probes see.

    Args:
        scores: The score of the probe on each tap.
        count: The number of taps to return.
    """
    best = max(scores, key=lambda tap: (scores[tap], tap))
    chosen = [tap for tap in sorted(scores, reverse=True) if tap <= best][:count]
    # Where there are too few below, the ones above are next.
    above = [tap for tap in sorted(scores) if tap > best][: count - len(chosen)]
    return sorted([*chosen, *above], reverse=True)


def _data_notes(name: str, experiment: Experiment) -> tuple[str, ...]:
    """Return what a reader of the scores should know about the data, files named as the task file names them.

    The records are read on other machines, too, where the data lie elsewhere.
    """
    task, notes = experiment.task(name), experiment.data_notes(name)
    for split in SPLITS:
        written = {"train": task.train, "dev": task.dev}[split]
        if isinstance(written, str):
            place = experiment.examples(name, split).source
            notes = tuple(note.replace(place, written) for note in notes)
    targets = get_kind(task.kind).codec.hard(experiment.targets(name, "dev").numpy())
    # With the data's own labels as answers: a metric that is not defined for them is not defined for any answers.
    undefined = measure(task.metrics, get_kind(task.kind).answers.gold(targets), targets)[1]
    return (*notes, *undefined)


def _earlier_search(name: str, experiment: Experiment) -> Trials | None:
    """Return an earlier search of this task, complete or killed; None where there is none."""
    try:
        studies = load_trials(experiment.config.runs, ["search"])
    except UserError:
        # The file is broken; the search writes a new one.
        return None
    return next((study for study in studies if study.task == name), None)
