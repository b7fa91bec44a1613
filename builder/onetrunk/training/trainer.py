"""The trainer: one driver for every training, whatever is trained and wherever its result goes.

It resumes a training that was killed from its last checkpoint, adds up what all sessions cost, and leaves no checkpoint
of a training that diverged.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from onetrunk.files import atomic_write
from onetrunk.progress import ProgressCallback, silent
from onetrunk.protocol import __version__
from onetrunk.tasks import Task
from onetrunk.tasks.examples import part_of
from onetrunk.training.compute import describe_machine
from onetrunk.training.distillation import STATES_WEIGHT, training_data
from onetrunk.training.experiment import Experiment, labels_windows
from onetrunk.training.loop import DivergedError, FitState, Weights, fit
from onetrunk.training.models import limb_start, new_model, save_weights, start_digest, weights_file
from onetrunk.training.runs import RunRecord, RunSpec

# A base-size encoder's checkpoint has more than 1 GB, and one epoch of it may take an hour.
_CHECKPOINT_SECONDS = 600.0


def run_key(spec: RunSpec, experiment: Experiment) -> str:
    """Return the key of a run: a hash over its spec, the trunk, the data, and the device and data type.

    Raises:
        UserError: The experiment has no such task, or its data have faults.
    """
    experiment = experiment.branch(spec.limb)
    facts = [experiment.trunk.identity, json.dumps(experiment.data_facts(spec.task)), experiment.compute.identity]
    task = experiment.task(spec.task)
    if options := task.options:
        facts.append(json.dumps(options, sort_keys=True))
    if labels_windows(task):
        facts.append(f"windows that overlap by {task.window_overlap}")
    lessons = experiment.lessons(spec.task)
    if lessons is not None and lessons.states:
        facts.append(f"a teacher's states by {STATES_WEIGHT}")
    if start := limb_start(spec, experiment):
        facts.append(f"starts from {start_digest(start)}")
    if spec.distillation is not None and spec.distillation.other_texts:
        # The student also depends on the other tasks' texts.
        facts += [json.dumps(experiment.data_facts(name)) for name in sorted(experiment.tasks)]
    return spec.key(*facts)


@dataclass
class Costs:
    """What a training has cost so far, over all its sessions.

    Attributes:
        seconds: Wall-clock time.
        cpu_seconds: Processor time of this process, all its threads added up.
        labelling_cpu_seconds: The part of it in which the training data were prepared: the teacher's labelling.
    """

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    labelling_cpu_seconds: float = 0.0


class _Stopwatch:
    """A stopwatch whose readings are added to the costs."""

    def __init__(self, costs: Costs) -> None:
        self._costs, self._clock, self._cpu = costs, time.monotonic(), time.process_time()

    def read(self) -> None:
        clock, cpu = time.monotonic(), time.process_time()
        self._costs.seconds += clock - self._clock
        self._costs.cpu_seconds += cpu - self._cpu
        self._clock, self._cpu = clock, cpu


class Checkpoint:
    """The state of a training, after its last epoch or some minutes within one, and its costs up to then, in one file.

    The file's name holds the run's key. The key does not cover what the task's answers are, so the file does: a
    checkpoint with other labels or metrics than the task's is not resumed.
    """

    def __init__(self, path: Path, task: Task) -> None:
        self._path = path
        self._answers = json.dumps([task.answers, task.metrics])

    def save(self, state: FitState, costs: Costs) -> None:
        """Write a checkpoint; the one before is kept until this one is complete.

        Raises:
            OneTrunkError: The file cannot be written.
        """
        fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
        with atomic_write(self._path) as aside:
            torch.save({"state": fields, "costs": asdict(costs), "answers": self._answers}, aside)

    def load(self) -> tuple[FitState, Costs] | None:
        """Read the checkpoint; return None where there is none that can be resumed."""
        try:
            # weights_only: tensors and plain values, no code.
            found = torch.load(self._path, map_location="cpu", weights_only=True)
            state, costs, answers = FitState(**found["state"]), Costs(**found["costs"]), found["answers"]
        except FileNotFoundError:
            return None
        except Exception:  # torch raises many types for a broken file; in any case, training can start anew
            self.remove()
            return None
        return (state, costs) if answers == self._answers else None

    def remove(self) -> None:
        """Remove the checkpoint, if there is one."""
        self._path.unlink(missing_ok=True)


@dataclass(frozen=True)
class TrainedRun:
    """What a training comes to.

    Attributes:
        record: The record: scores, losses, costs.
        weights: The model's weights after its best epoch.
    """

    record: RunRecord
    weights: Weights


class Trainer:
    """The driver of one training: it trains the model of a run, from its checkpoint where there is one.

    Attributes:
        key: The run's key.
        checkpoint: Where the run is resumed from. The caller removes it once the result is stored.
    """

    def __init__(self, spec: RunSpec, experiment: Experiment) -> None:
        """Prepare a run.

        Args:
            spec: What to train, and how.
            experiment: The trunk, the data and the cache.

        Raises:
            UserError: The experiment has no such task, or its data have faults.
        """
        experiment = experiment.branch(spec.limb)
        self._spec, self._experiment = spec, experiment
        self._task = experiment.task(spec.task)
        self.key = run_key(spec, experiment)
        path = experiment.cache_root / "runs" / f"{spec.task}-{spec.role}-{self.key}.pt"
        self.checkpoint = Checkpoint(path, self._task)

    def train(self, progress: ProgressCallback = silent) -> TrainedRun:
        """Train to the last epoch, starting from the checkpoint where there is one.

        Args:
            progress: Called after each step.

        Raises:
            UserError: The spec does not fit the trunk or the data.
            DivergedError: The loss or a weight is not finite; the checkpoint is removed.
            OneTrunkError: The disk is full.
        """
        model = new_model(self._spec, self._experiment)
        resumed, costs = self.checkpoint.load() or (None, Costs())
        stopwatch = _Stopwatch(costs)
        train, objective = training_data(self._spec, self._experiment, model, progress)
        # The states of all texts are cached, so a part of them costs no pass of the trunk.
        rows = (
            part_of(self._experiment.examples(self._spec.task, "train").texts, self._spec.share)
            if self._spec.share < 1
            else None
        )
        stopwatch.read()
        if resumed is None:
            costs.labelling_cpu_seconds = costs.cpu_seconds
        dev = (
            self._experiment.labelled_tokens(self._spec.task, "dev")
            if self._spec.role == "full"
            else self._experiment.labelled_states(self._spec.task, "dev", self._spec.recipe.resolved_tap)
        )

        def save(state: FitState) -> None:
            stopwatch.read()
            self.checkpoint.save(state, costs)

        try:
            state = fit(
                model.to(self._experiment.compute.device),
                self._task,
                self._spec.recipe,
                train,
                dev,
                objective=objective,
                rows=rows,
                resume=resumed,
                save=save,
                save_seconds=_CHECKPOINT_SECONDS,
                progress=progress,
            )
        except DivergedError:
            # Resuming would come to the same end.
            self.checkpoint.remove()
            raise
        parameters = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        texts = len(train.states.lengths) if rows is None else len(rows)
        return TrainedRun(self._record(state, costs, parameters, texts), state.best_weights)

    def _record(self, state: FitState, costs: Costs, parameters: int, texts: int) -> RunRecord:
        best = state.best_epoch(self._task.metric)
        return RunRecord(
            key=self.key,
            spec=self._spec,
            state="finished",
            metric=self._task.metric,
            answers=self._task.answers,
            scores=state.scores[best],
            best_epoch=best + 1,
            losses=state.losses,
            epoch_scores=state.scores,
            seconds=round(costs.seconds, 2),
            cpu_seconds=round(costs.cpu_seconds, 2),
            labelling_cpu_seconds=round(costs.labelling_cpu_seconds, 2),
            parameters=parameters,
            texts=texts,
            data=dict(self._experiment.data_facts(self._spec.task)),
            trunk=self._experiment.trunk.root.identity,
            device=self._experiment.compute.device,
            machine=describe_machine(),
            version=__version__,
            created=datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        )


def execute_with_teacher(spec: RunSpec, experiment: Experiment, progress: ProgressCallback = silent) -> RunRecord:
    """Return the record of a run, trained again where its weights are missing, and after its teacher where it has one.

    Args:
        spec: What to train, and how.
        experiment: The trunk, the data and the cache.
        progress: Called after each step.

    Raises:
        UserError: See ``execute``; or the teacher has no record.
        DivergedError: See ``execute``.
        OneTrunkError: See ``execute``.
    """
    how = spec.distillation
    if how is not None:
        teacher = execute(experiment.store.by_key(how.teacher).spec, experiment, progress=progress)
        # A run has another key on another device.
        spec = spec.model_copy(update={"distillation": how.model_copy(update={"teacher": teacher.key})})
    return execute(spec, experiment, progress=progress)


def find_run(spec: RunSpec, experiment: Experiment) -> RunRecord | None:
    """Return the record of a run; None where there is none, or one of another metric or other answers than the task's.

    Raises:
        UserError: The record is broken, or the task's data have faults.
    """
    return _find(spec, run_key(spec, experiment), experiment)


def _find(spec: RunSpec, key: str, experiment: Experiment) -> RunRecord | None:
    record = experiment.store.find(spec, key)
    return record if record is not None and is_of_task(record, experiment) else None


def is_current(record: RunRecord, experiment: Experiment) -> bool:
    """Return whether a record is of the experiment's trunk, of its data as they are now, and of its task."""
    facts = (experiment.trunk.root.identity, experiment.data_facts(record.spec.task))
    return (record.trunk, record.data) == facts and is_of_task(record, experiment)


def is_of_task(record: RunRecord, experiment: Experiment) -> bool:
    """Return whether a record is about what its task is now.

    A run's key covers neither the metric, which chose the best epoch, nor what is answered.
    """
    task = experiment.task(record.spec.task)
    return record.metric == task.metric and record.answers in ("", task.answers)


def execute(
    spec: RunSpec,
    experiment: Experiment,
    *,
    weights: bool = True,
    progress: ProgressCallback = silent,
) -> RunRecord:
    """Return the record of a run, training it where it is not recorded yet.

    A run that a search of an earlier version stopped early is trained to its end.

    Args:
        spec: What to train, and how.
        experiment: The trunk, the data, the cache and the records.
        weights: Whether the head's weights are needed, so that a run whose weights are no longer in the cache is
            trained again.
        progress: Called after each step.

    Raises:
        UserError: The spec does not fit the trunk or the data, or its record is broken.
        OneTrunkError: The training diverged, or the disk is full.
    """
    trainer = Trainer(spec, experiment)
    found = _find(spec, trainer.key, experiment)
    # Nothing is computed from a whole encoder's weights, so they may be missing.
    has_weights = not weights or spec.role == "full" or weights_file(spec.task, trainer.key, experiment).is_file()
    if found is not None and has_weights and found.state == "finished":
        return found
    run = trainer.train(progress)
    save_weights(spec.task, trainer.key, run.weights, experiment)
    experiment.store.save(run.record)
    trainer.checkpoint.remove()
    return run.record
