"""Carrying out one recorded training: found if it was done, gone on with if it was killed, done if it was not."""

from __future__ import annotations

import datetime
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from onetrunk.files import atomic_write, atomic_write_text
from onetrunk.nn.head import Head, empty_head, new_head
from onetrunk.nn.whole import WholeModel, new_whole_model, trained_whole_model
from onetrunk.progress import ProgressCallback, silent
from onetrunk.protocol.errors import UserError
from onetrunk.training.checkpoint import Checkpoint
from onetrunk.training.evaluation import LabelledStates
from onetrunk.training.fitting import DivergedError, FitState, Weights, fit
from onetrunk.training.labelling import ask_teacher
from onetrunk.training.objective import DistilObjective, LabelObjective, Objective, StateObjective
from onetrunk.training.report import machine_name
from onetrunk.training.run_record import RunRecord
from onetrunk.training.run_spec import Distillation, RunSpec
from onetrunk.training.transfer import student_states
from onetrunk.training.workbench import SPLITS, Workbench

ShouldStop = Callable[[int, float], bool]
"""Asked after each epoch with its number, from 1, and its dev score."""


def never(epoch: int, score: float) -> bool:
    """Never stops a run."""
    return False


def execute(
    spec: RunSpec,
    bench: Workbench,
    *,
    should_stop: ShouldStop = never,
    progress: ProgressCallback = silent,
) -> RunRecord:
    """Trains what a spec says and leaves a record, or gives the record that is there.

    A run that was stopped as the loser of a search is as good as done for a caller that may stop it again, and goes on
    for one that may not: call it without ``should_stop``. A run that was killed goes on after its last whole epoch.

    Args:
        spec: what to train.
        bench: trunk, data, cache and records.
        should_stop: says whether to stop after an epoch.
        progress: told how many steps are done.

    Raises:
        UserError: the spec does not fit the trunk or the data.
        OneTrunkError: the loss is no number any more, or the disk is full.
    """
    run = _Run(spec, bench)
    found = bench.store.find(spec, run.key)
    if found is not None and run.has_weights() and (found.state == "finished" or should_stop is not never):
        return found
    return run.train(should_stop, progress)


def find_run(spec: RunSpec, bench: Workbench) -> RunRecord | None:
    """The record of a run; None where it has not been done."""
    return bench.store.find(spec, run_key(spec, bench))


def run_key(spec: RunSpec, bench: Workbench) -> str:
    """What a run is found by: a hash over its spec, the trunk, the data, and where it is computed."""
    facts = [bench.trunk.identity, json.dumps(bench.data_facts(spec.task)), str(bench.arithmetic)]
    if options := bench.task(spec.task).options:
        facts.append(json.dumps(options, sort_keys=True))
    how = spec.distillation
    if how is not None and how.other_texts:
        # The student also depends on the other tasks' texts.
        facts += [json.dumps(bench.data_facts(name)) for name in sorted(bench.tasks)]
    return spec.key(*facts)


def trained_head(record: RunRecord, bench: Workbench) -> Head:
    """The head of a run that was done here, in evaluation mode, with the weights of its best epoch.

    Raises:
        UserError: its weights are not in the cache any more.
    """
    recipe = record.spec.recipe
    task = bench.task(record.spec.task)
    outputs = task.answers.output(bench.trunk.width, task)
    head = empty_head(bench.trunk, outputs=outputs, layers=recipe.layers, query=recipe.query)
    head.load_state_dict(_read_weights(record, bench))
    return head.eval().requires_grad_(False)


def _read_weights(record: RunRecord, bench: Workbench) -> Weights:
    path = _weights_file(bench, record.key)
    try:
        weights = load_file(path)
    except FileNotFoundError:
        raise UserError(
            f"{path}: the weights of this run are gone; remove its record, and it is trained again"
        ) from None
    except SafetensorError as error:
        raise UserError(f"{path}: broken: {error}; remove it, and the run is trained again") from error
    return {name: tensor.float() for name, tensor in weights.items()}


def fine_tuned(record: RunRecord, bench: Workbench) -> WholeModel:
    """The whole encoder of a run that was done here, in evaluation mode, with the weights of its best epoch.

    Raises:
        UserError: its weights are not in the cache any more.
    """
    task = bench.task(record.spec.task)
    return trained_whole_model(
        bench.trunk,
        outputs=task.answers.output(bench.trunk.width, task),
        vocabulary=_vocabulary(bench, task.name),
        weights=_read_weights(record, bench),
    )


def _vocabulary(bench: Workbench, task: str) -> Tensor:
    """The token ids of a task's texts. *Shape:* (token ids,)."""
    return torch.cat([bench.tokens(task, split).vocabulary for split in SPLITS])


@dataclass
class _Costs:
    """What a run has cost so far. Kept beside its checkpoint: a killed run has cost what it has cost."""

    path: Path
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    labelling_cpu_seconds: float = 0.0

    def load(self) -> None:
        try:
            said = json.loads(self.path.read_text())
        except (FileNotFoundError, ValueError):
            return
        for name, value in said.items():
            setattr(self, name, value)

    def save(self) -> None:
        names = ("seconds", "cpu_seconds", "labelling_cpu_seconds")
        atomic_write_text(self.path, json.dumps({name: getattr(self, name) for name in names}))

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)

    @contextmanager
    def counted(self) -> Iterator[None]:
        clock, cpu = time.monotonic(), time.process_time()
        try:
            yield
        finally:
            self.seconds += time.monotonic() - clock
            self.cpu_seconds += time.process_time() - cpu


class _Run:
    def __init__(self, spec: RunSpec, bench: Workbench) -> None:
        self.spec, self.bench = spec, bench
        self.task = bench.task(spec.task)
        self.key = run_key(spec, bench)
        base = bench.root / "runs" / f"{spec.task}-{spec.role}-{self.key}"
        self.checkpoint = Checkpoint(base.with_suffix(".pt"))
        self.costs = _Costs(base.with_suffix(".costs.json"))

    def has_weights(self) -> bool:
        """Whether the head of a finished run is there. A whole encoder's weights are nothing that others need."""
        return self.spec.role == "full" or _weights_file(self.bench, self.key).is_file()

    def train(self, should_stop: ShouldStop, progress: ProgressCallback) -> RunRecord:
        model = self._model()
        self.costs.load()
        labelled_at = self.costs.cpu_seconds
        with self.costs.counted():
            train, objective = self._material(model)
        resume = self.checkpoint.load()
        if resume is None:
            self.costs.labelling_cpu_seconds = self.costs.cpu_seconds - labelled_at
        dev = self._dev()
        clock, cpu = time.monotonic(), time.process_time()

        def after_epoch(state: FitState) -> bool:
            nonlocal clock, cpu
            now, now_cpu = time.monotonic(), time.process_time()
            self.costs.seconds += now - clock
            self.costs.cpu_seconds += now_cpu - cpu
            clock, cpu = now, now_cpu
            self.checkpoint.save(state)
            self.costs.save()
            return should_stop(len(state.losses), state.scores[-1][self.task.metric])

        try:
            state = fit(
                model.to(self.bench.arithmetic.device),
                self.task,
                self.spec.recipe,
                train,
                dev,
                objective=objective,
                resume=resume,
                after_epoch=after_epoch,
                progress=progress,
            )
        except DivergedError:
            # Going on from it would come to the same end.
            self.checkpoint.remove()
            self.costs.remove()
            raise
        return self._finish(state, model, len(train.states.lengths))

    def _model(self) -> nn.Module:
        recipe = self.spec.recipe
        outputs = self.task.answers.output(self.bench.trunk.width, self.task)
        with torch.random.fork_rng([]):
            torch.manual_seed(recipe.seed)
            if self.spec.role == "full":
                return new_whole_model(
                    self.bench.trunk, outputs=outputs, vocabulary=_vocabulary(self.bench, self.task.name)
                )
            trunk = self.bench.trunk
            head = new_head(trunk, outputs=outputs, tap=recipe.standing, layers=recipe.layers, query=recipe.query)
            if self.spec.distillation is not None:
                start_student(head, self._teacher(self.spec.distillation), self.spec.distillation)
            return head

    def _teacher(self, how: Distillation) -> Head:
        return trained_head(self.bench.store.by_key(how.teacher), self.bench)

    def _material(self, model: nn.Module) -> tuple[LabelledStates, Objective]:
        name, recipe, how = self.spec.task, self.spec.recipe, self.spec.distillation
        targets = self.bench.targets(name, "train")
        plain = LabelObjective.of(self.task, targets, model)
        if self.spec.role == "full":
            return LabelledStates(self.bench.tokens(name, "train"), targets), plain
        if how is None:
            states = self.bench.states(name, "train", [recipe.standing]).states[recipe.standing]
            return LabelledStates(states, targets), plain
        joined = student_states(self.bench, name, recipe.standing, how, recipe.seed)
        if not how.soft:
            return LabelledStates(joined, targets), plain
        asked = f"{how.teacher} {how.other_texts} {how.masked_texts} {recipe.seed} {recipe.standing}"
        device = self.bench.arithmetic.device
        answers = self.bench.answers(asked, lambda: ask_teacher(self._teacher(how).to(device), joined))
        objective: Objective = DistilObjective(plain, answers.raw, how.temperature)
        if how.state_weight:
            if self.task.answers.by_token:
                raise UserError(f"task {name}: a student that answers for every token learns no states")
            assert isinstance(model, Head)
            objective = StateObjective(objective, model.dropout, answers.states, how.state_weight)
        return LabelledStates(joined, targets), objective

    def _dev(self) -> LabelledStates:
        name, tap = self.spec.task, self.spec.recipe.standing
        targets = self.bench.targets(name, "dev")
        if self.spec.role == "full":
            return LabelledStates(self.bench.tokens(name, "dev"), targets)
        return LabelledStates(self.bench.states(name, "dev", [tap]).states[tap], targets)

    def _finish(self, state: FitState, model: nn.Module, texts: int) -> RunRecord:
        best = state.best_epoch(self.task.metric)
        whole = len(state.losses) == self.spec.recipe.epochs
        record = RunRecord(
            key=self.key,
            spec=self.spec,
            state="finished" if whole else "stopped",
            metric=self.task.metric,
            scores=state.scores[best],
            best_epoch=best + 1,
            losses=state.losses,
            epoch_scores=state.scores,
            seconds=round(self.costs.seconds, 2),
            cpu_seconds=round(self.costs.cpu_seconds, 2),
            labelling_cpu_seconds=round(self.costs.labelling_cpu_seconds, 2),
            parameters=sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
            texts=texts,
            data=dict(self.bench.data_facts(self.spec.task)),
            trunk=self.bench.trunk.identity,
            device=self.bench.arithmetic.device,
            machine=machine_name(),
            created=datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        )
        self._save_weights(state)
        self.bench.store.save(record)
        if whole:
            self.checkpoint.remove()
            self.costs.remove()
        return record

    def _save_weights(self, state: FitState) -> None:
        with atomic_write(_weights_file(self.bench, self.key)) as aside:
            save_file({name: tensor.half().contiguous() for name, tensor in state.best_weights.items()}, aside)


def start_student(student: Head, teacher: Head, how: Distillation) -> None:
    """Gives a fresh student its first weights: the teacher's lowest layers, or random ones; or leaves the trunk's.

    The output stays fresh: the teacher's reads a state that the student does not have yet.
    """
    if how.start == "teacher":
        for own, theirs in zip(student.layers, teacher.layers, strict=False):
            own.load_state_dict(theirs.state_dict())
    elif how.start == "random":
        for module in student.layers.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm):
                nn.init.ones_(module.weight)
                nn.init.zeros_(module.bias)


def _weights_file(bench: Workbench, key: str) -> Path:
    return bench.root / "runs" / f"{key}.safetensors"
