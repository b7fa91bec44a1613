"""Training a limb: a few layers on a tap, together with a one-layer head for each task of a family.

All tasks read the limb's last state, so that a small task learns from a large one. The limb is kept, and beside it what
the heads had learned: a head is trained on the frozen limb alone, like any other, and starts from there.

Finished heads of the family may teach: each says what it makes of the train texts of all tasks of its form, and the
joint heads learn that beside the labels. One pass of the limb serves all of them, since a head of one folded layer
costs little.
"""

from __future__ import annotations

import copy
import dataclasses
import datetime
import hashlib
import math
import shutil
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from onetrunk.files import atomic_write, check_replaceable
from onetrunk.nn.bundle import Bundle
from onetrunk.nn.encoder import Encoder
from onetrunk.nn.head import Head, new_head
from onetrunk.nn.limb import FamilyTask, LimbSpec, grafted, load_limb, new_layers, save_limb
from onetrunk.progress import ProgressCallback, silent
from onetrunk.protocol import __version__
from onetrunk.protocol.errors import UserError
from onetrunk.protocol.head_json import LIMB_JSON
from onetrunk.protocol.names import LimbId
from onetrunk.tasks.examples import rows_elsewhere
from onetrunk.tasks.kinds import get_kind
from onetrunk.tasks.records import Split
from onetrunk.training.evaluation import LabelledStates, evaluate
from onetrunk.training.experiment import Experiment
from onetrunk.training.head_teacher import HeadTeacher
from onetrunk.training.lessons import TEMPERATURE
from onetrunk.training.loop import (
    DivergedError,
    Weights,
    autocast,
    check_score,
    check_weights,
    copy_weights,
    generator_states,
    linear_schedule,
    new_optimizer,
    set_dropout,
    set_generators,
)
from onetrunk.training.objective import LabelObjective
from onetrunk.training.states import epoch_batches

_CHECKPOINT_SECONDS = 600.0


class LimbRecipe(BaseModel):
    """How a limb is trained: AdamW, a linear warm-up and decay, and the epoch with the best average on the dev data.

    Attributes:
        tap: The tap of the trunk that it stands on.
        layers: The number of its layers.
        epochs: The number of passes over the largest task.
        learning_rate: The peak learning rate.
        batch_size: The number of texts of a step, which are all of one task.
        sampling: A task of n rows is passed as often as n to this power asks for, relative to the largest: 1 takes each
            row of each task once an epoch, 0 as many rows of each task.
        weight_decay: Applied to weight matrices, not to biases and norms.
        warmup: The share of all steps in which the learning rate rises.
        clip: The greatest norm of a step's gradient.
        dropout: The dropout probability everywhere; None is the trunk's own configuration.
        mixed_precision: Run the layers in bf16 while training; see ``Recipe``.
        seed: The seed of the heads, of the order of the texts and of the dropout.
        max_length: The longest text in tokens.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    tap: int = Field(ge=0)
    layers: int = Field(default=1, ge=1)
    epochs: int = Field(default=4, ge=1)
    learning_rate: float = Field(default=2e-4, gt=0, allow_inf_nan=False)
    batch_size: int = Field(default=32, ge=1)
    sampling: float = Field(default=0.5, ge=0, le=1)
    weight_decay: float = Field(default=0.01, ge=0, allow_inf_nan=False)
    warmup: float = Field(default=0.1, ge=0, le=1)
    clip: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    dropout: float | None = Field(default=None, ge=0, lt=1)
    mixed_precision: bool = False
    seed: int = Field(default=0, ge=0, lt=2**32)
    max_length: int = Field(default=128, ge=3)


@dataclass(frozen=True)
class TrainedLimb:
    """What came of a training.

    Attributes:
        folder: The limb's folder.
        identity: Its identity.
        spec: Its limb.json.
        epochs: The dev scores after each epoch: task -> score. Empty if the limb was there already.
        seconds: Wall-clock time of the training, over all its sessions.
        notes: What a user should know about the data.
    """

    folder: Path
    identity: LimbId
    spec: LimbSpec
    epochs: tuple[dict[str, float], ...] = ()
    seconds: float = 0.0
    notes: tuple[str, ...] = ()


# Task -> its teacher's raw outputs. *Shape:* (texts, outputs), or by token (texts, tokens, outputs).
Taught = Mapping[str, Tensor]


class JointModel(nn.Module):
    """A limb with a head for each task above it.

    Attributes:
        limb: The limb's layers.
        heads: ``head_<task>`` -> head.
        shared: A frozen copy of what the trunk's layers share.
    """

    def __init__(self, encoder: Encoder, limb: nn.ModuleList, heads: Mapping[str, Head]) -> None:
        super().__init__()
        # With a prefix: a task may have the name of a method of ModuleDict.
        self.limb, self.heads = limb, nn.ModuleDict({f"head_{name}": head for name, head in heads.items()})
        # What layers share stays as the trunk has it, since other branches stand on it, too. A copy of it moves to the
        # device of the training, and the trunk stays where it is.
        self.shared = copy.deepcopy(encoder.shared).requires_grad_(False).eval()
        self._encoder = type(encoder)

    def forward(self, hidden_state: Tensor, attention_mask: Tensor, tasks: Sequence[str]) -> dict[str, Tensor]:
        """Return the raw outputs of some tasks, for which the limb runs once.

        Args:
            hidden_state: The state at the limb's tap. *Shape:* (batch_size, tokens, width)
            attention_mask: Ones and zeros. *Shape:* (batch_size, tokens)
            tasks: The tasks.

        Returns:
            Task -> outputs. *Shape:* (batch_size, outputs); by token (batch_size, tokens, outputs).
        """
        context = self.shared.prepare(attention_mask, hidden_state)
        for layer in self.limb:
            hidden_state = self._encoder.run_layer(layer, hidden_state, context)
        return {task: self.head(task)(hidden_state, attention_mask) for task in tasks}

    def head(self, task: str) -> nn.Module:
        """Return a task's head."""
        return self.heads[f"head_{task}"]


class _OneTask(nn.Module):
    """A joint model as one task sees it, for the evaluation."""

    def __init__(self, model: JointModel, task: str) -> None:
        super().__init__()
        self.model, self.task = model, task
        self.output = model.head(task).output

    def forward(self, hidden_state: Tensor, attention_mask: Tensor) -> Tensor:
        raw: Tensor = self.model(hidden_state, attention_mask, [self.task])[self.task]
        return raw


@dataclass(frozen=True)
class _JointState:
    """All that is needed to resume a training.

    Attributes:
        steps: The steps that are done.
        scores: The dev scores after each epoch.
        weights: The model's weights.
        optimizer: The optimizer's state.
        best: The weights of the limb and of its heads after the best epoch; empty before the end of the first.
        generators: The states of the generators that dropout draws from, of the CPU and of a GPU in use.
        seconds: What the training has taken.
    """

    steps: int
    scores: tuple[dict[str, float], ...]
    weights: Weights
    optimizer: dict[str, Any]
    best: Weights
    generators: tuple[Tensor, ...]
    seconds: float


def train_limb(
    name: str,
    tasks: Sequence[str],
    recipe: LimbRecipe,
    experiment: Experiment,
    *,
    limbs: Path,
    teachers: Mapping[str, Bundle] | None = None,
    force: bool = False,
    progress: ProgressCallback = silent,
) -> TrainedLimb:
    """Train a limb on a family of tasks, and write it. What was killed goes on; what is finished is not repeated.

    Args:
        name: The limb's name.
        tasks: The family.
        recipe: The recipe.
        experiment: The trunk, the tasks' data, and the cache.
        limbs: The folder of limbs.
        teachers: Task -> a finished head of it, from which it learns, too.
        force: Whether to train although a limb of the same recipe, trunk and data exists.
        progress: Called as the trunk's passes and the training go on.

    Raises:
        UserError: The recipe does not fit the trunk, the data have faults, what is in the limb's place is none, or a
            teacher was trained for another task or on another trunk.
        DivergedError: The loss or a dev score is not finite; the checkpoint is removed.
        OneTrunkError: The disk is full.
    """
    check_replaceable(limbs / name, LIMB_JSON)
    trunk = experiment.trunk
    layers = new_layers(trunk, recipe.tap, recipe.layers)
    heads = {
        task: HeadTeacher(
            bundle,
            experiment.task(task),
            trunk,
            experiment.compute,
            max_length=recipe.max_length,
            cache=experiment.config.cache,
        )
        for task, bundle in (teachers or {}).items()
    }
    learned = {task: _learned_rows(task, tasks, experiment) for task in tasks}
    rows = {task: _family_task(task, experiment, heads.get(task), learned[task]) for task in tasks}
    notes = tuple(dict.fromkeys(f"{task}: {note}" for task in tasks for note in experiment.data_notes(task)))
    notes += tuple(
        f"{task}: left out as dev or test texts of another task: {one.train_rows_left_out:,} of the train texts"
        for task, one in rows.items()
        if one.train_rows_left_out
    )
    plan = LimbSpec(
        name=name,
        tap=recipe.tap,
        layers=recipe.layers,
        trunk=trunk.identity,
        width=trunk.width,
        max_length=recipe.max_length,
        tasks=rows,
        recipe=recipe.model_dump(exclude={"tap", "layers", "max_length"}),
        created="",
        onetrunk_version=__version__,
    )
    if not force and (found := _finished(limbs / name, plan)) is not None:
        return dataclasses.replace(found, notes=notes)
    for task in tasks:
        # In one pass for the limb and its teachers on the trunk.
        readers = [heads[one].bundle.spec for one in _teachers_of(task, heads, experiment)]
        taps = {recipe.tap, *(one.tap for one in readers if (one.limb, one.max_length) == (None, recipe.max_length))}
        experiment.states(task, "train", sorted(taps), progress)
        experiment.states(task, "dev", [recipe.tap], progress)
    facts = [plan.model_dump_json(exclude={"onetrunk_version"}), experiment.compute.identity]
    facts += [f"{teacher.identity} {teacher.bundle.spec.max_length}" for teacher in heads.values()]
    key = hashlib.sha256("\0".join(facts).encode()).hexdigest()[:16]
    checkpoint = experiment.cache_root / "runs" / f"limb-{name}-{key}.pt"
    if force:
        _remove(checkpoint)
    taught = _ask_teachers(heads, tasks, experiment, _said_beside(checkpoint), progress)
    training = _Training(learned, recipe, experiment, layers, checkpoint, taught)
    try:
        state = training.run(progress)
    except DivergedError:
        _remove(checkpoint)
        raise
    training.model.load_state_dict(state.best)
    best = max(state.scores, key=lambda scores: fmean(scores.values()))
    spec = plan.model_copy(
        update={
            "tasks": {task: one.model_copy(update={"score": best[task]}) for task, one in rows.items()},
            "recipe": {**plan.recipe, "best_epoch": state.scores.index(best) + 1, "seconds": round(state.seconds, 1)},
            "created": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        }
    )
    identity = save_limb(limbs / name, spec, layers, {task: training.model.head(task) for task in tasks})
    _remove(checkpoint)
    return TrainedLimb(limbs / name, identity, spec, state.scores, state.seconds, notes)


def _teachers_of(task: str, teachers: Collection[str], experiment: Experiment) -> list[str]:
    """Return the tasks whose heads say what they make of a task's texts.

    A head reads the texts of all tasks of its form. One that answers for every token reads those of its own alone,
    since others have no words to label.
    """
    own = experiment.task(task)
    others = [] if get_kind(own.kind).by_token else [experiment.task(one) for one in teachers if one != task]
    alike = [one.name for one in others if one.form == own.form and not get_kind(one.kind).by_token]
    return [one for one in teachers if one == task or one in alike]


def _said_beside(checkpoint: Path) -> Path:
    """Return the folder in which what the teachers said is kept until the training is finished."""
    return checkpoint.with_suffix(".said")


def _remove(checkpoint: Path) -> None:
    checkpoint.unlink(missing_ok=True)
    shutil.rmtree(_said_beside(checkpoint), ignore_errors=True)


def _ask_teachers(
    teachers: Mapping[str, HeadTeacher],
    tasks: Sequence[str],
    experiment: Experiment,
    folder: Path,
    progress: ProgressCallback,
) -> Mapping[str, Taught]:
    """Return what the teachers say about the train texts: task of the texts -> task of the teacher -> raw outputs.

    They are as the labels' loss sees them, not calibrated: the labels beside them say how sure an answer should be.

    Args:
        teachers: Task -> its head.
        tasks: The tasks of the texts.
        experiment: The trunk, the data and the cache.
        folder: Where what was said is kept, for a training that is killed before it has a checkpoint.
        progress: Called as the teachers go on.
    """
    found: dict[str, dict[str, Tensor]] = {task: {} for task in tasks}
    pairs = [(teacher, task) for task in tasks for teacher in _teachers_of(task, teachers, experiment)]
    for done, (teacher, task) in enumerate(pairs):
        progress(f"what {teacher}'s head says about {task}'s texts", done, len(pairs))
        kept = folder / f"{teacher} of {task}.safetensors"
        try:
            found[task][teacher] = load_file(kept)["said"]
        except (OSError, SafetensorError, KeyError):
            texts = experiment.examples(task, "train").texts
            found[task][teacher] = teachers[teacher].outputs(texts, experiment.compute, progress)
            with atomic_write(kept) as aside:
                save_file({"said": found[task][teacher].contiguous()}, aside)
    return found


def _learned_rows(task: str, family: Sequence[str], experiment: Experiment) -> NDArray[np.int64]:
    """Return the train rows of a task whose texts are no dev or test texts of another task of the family.

    With another label they would tell the limb about texts that it is judged by.

    Raises:
        UserError: No row is left.
    """
    texts, others = experiment.examples(task, "train").texts, [one for one in family if one != task]
    splits: list[tuple[str, Split]] = [(one, "dev") for one in others]
    splits += [(one, split) for one in others for split in experiment.task(one).test_splits]
    judged = (experiment.examples(one, split).texts for one, split in splits)
    found = np.flatnonzero(~rows_elsewhere(texts, judged))
    if not len(found):
        raise UserError(
            f"task {task}: all of its train texts are dev or test texts of another task of the family "
            f"({', '.join(others)}): split the texts alike in both"
        )
    return found


def _family_task(
    name: str, experiment: Experiment, teacher: HeadTeacher | None, learned: NDArray[np.int64]
) -> FamilyTask:
    task, facts = experiment.task(name), experiment.data_facts(name)
    left_out = np.setdiff1d(np.arange(int(facts["train_rows"])), learned)
    return FamilyTask(
        metric=task.metric,
        score=0.0,
        train_rows=len(learned),
        train_rows_left_out=len(left_out),
        left_out_sha256=hashlib.sha256(left_out.tobytes()).hexdigest() if len(left_out) else None,
        dev_rows=int(facts["dev_rows"]),
        outputs=get_kind(task.kind).output.num_outputs(task),
        sha256=experiment.task_digest(name),
        licence=task.licence,
        teacher_sha256=None if teacher is None else teacher.sha256,
    )


def _finished(folder: Path, plan: LimbSpec) -> TrainedLimb | None:
    """Return the limb in a folder if it was trained from the same input."""
    try:
        found = load_limb(folder)
    except UserError:
        return None
    spec = found.spec
    ours = {task: one.model_copy(update={"score": 0.0}) for task, one in spec.tasks.items()}
    same_recipe = all(spec.recipe.get(key) == value for key, value in plan.recipe.items())
    outcome = {"tasks", "recipe", "created", "onetrunk_version"}
    same = spec.model_dump(exclude=outcome) == plan.model_dump(exclude=outcome)
    return TrainedLimb(folder, found.identity, spec) if same and same_recipe and ours == plan.tasks else None


class _Training:
    """The training of a limb, which goes on from its checkpoint."""

    def __init__(
        self,
        learned: Mapping[str, NDArray[np.int64]],
        recipe: LimbRecipe,
        experiment: Experiment,
        layers: nn.ModuleList,
        checkpoint: Path,
        taught: Mapping[str, Taught],
    ) -> None:
        self._recipe, self._experiment, self._path = recipe, experiment, checkpoint
        self._learned, self._taught, tasks = learned, taught, list(learned)
        self._tasks = {name: experiment.task(name) for name in tasks}
        trunk, stop = experiment.trunk, recipe.tap + recipe.layers
        branch = grafted(trunk, layers, LimbId("new", recipe.tap, stop, "0" * 12))
        layers.requires_grad_(True)  # they were frozen as parts of the branch
        heads = {}
        with torch.random.fork_rng([]):
            torch.manual_seed(recipe.seed)
            for name, task in self._tasks.items():
                outputs = get_kind(task.kind).output.build_layer(trunk.width, task)
                heads[name] = new_head(branch, outputs=outputs, tap=stop, layers=1)
        device = experiment.compute.device
        self.model = JointModel(trunk.encoder, layers, heads).to(device)
        self._train = {name: experiment.labelled_states(name, "train", recipe.tap) for name in tasks}
        self._dev = {name: experiment.labelled_states(name, "dev", recipe.tap) for name in tasks}
        self._objectives = {
            name: LabelObjective.of(task, self._train[name].targets, heads[name]) for name, task in self._tasks.items()
        }
        if recipe.dropout is not None:
            set_dropout(self.model, recipe.dropout)
        self._optimizer = new_optimizer(self.model, recipe.learning_rate, recipe.weight_decay)

    def run(self, progress: ProgressCallback) -> _JointState:
        """Train to the end, and return the last state."""
        state, began = self._resume(), time.monotonic()
        seconds_before = state.seconds if state is not None else 0.0
        done = state.steps if state is not None else 0
        scores = state.scores if state is not None else ()
        best = state.best if state is not None else {}
        saved = began
        device = torch.device(self._experiment.compute.device)
        devices = [torch.cuda.current_device()] if device.type == "cuda" else []

        def now(steps: int) -> _JointState:
            seconds = seconds_before + time.monotonic() - began
            weights, optimizer = copy_weights(self.model), self._optimizer.state_dict()
            return _JointState(steps, scores, weights, optimizer, best, generator_states(device), seconds)

        order = [self.batches(epoch) for epoch in range(self._recipe.epochs)]
        steps = sum(map(len, order))
        with torch.random.fork_rng(devices):
            torch.manual_seed(self._recipe.seed)
            if state is not None:
                set_generators(state.generators, device)
            reached = 0
            for epoch, batches in enumerate(order):
                self.model.train()
                for task, rows in batches:
                    reached += 1
                    if reached <= done:
                        continue
                    self._step(task, rows, reached - 1, steps)
                    progress(f"limb: epoch {epoch + 1} of {len(order)}, {task}", reached, steps)
                    if time.monotonic() - saved >= _CHECKPOINT_SECONDS and reached < steps:
                        self._save(now(reached))
                        saved = time.monotonic()
                if epoch < len(scores):
                    continue
                check_weights(self.model, "limb", epoch)
                found = self._evaluate(epoch, progress, reached, steps)
                if not scores or fmean(found.values()) > max(fmean(one.values()) for one in scores):
                    best = copy_weights(self.model)
                scores = (*scores, found)
                self._save(now(reached))
                saved = time.monotonic()
            return now(reached)

    def batches(self, epoch: int) -> list[tuple[str, NDArray[np.int64]]]:
        """Return the batches of an epoch: tasks mixed, each batch of one task; see ``LimbRecipe.sampling``."""
        recipe = self._recipe
        counts = {name: len(rows) for name, rows in self._learned.items()}
        largest = max(counts.values())
        found: list[tuple[str, NDArray[np.int64]]] = []
        for place, (name, count) in enumerate(counts.items()):
            wanted = math.ceil(largest ** (1 - recipe.sampling) * count**recipe.sampling / recipe.batch_size)
            own: list[NDArray[np.int64]] = []
            turn = 0
            while len(own) < wanted:
                # Each pass over a small task has an order of its own.
                seed = int(np.random.SeedSequence((recipe.seed, place, turn)).generate_state(1)[0])
                lengths = self._train[name].states.lengths[self._learned[name]]
                batches = epoch_batches(lengths, recipe.batch_size, seed=seed, epoch=epoch)
                own += [self._learned[name][rows] for rows in batches]
                turn += 1
            found += [(name, rows) for rows in own[:wanted]]
        order = np.random.default_rng((recipe.seed, epoch)).permutation(len(found))
        return [found[place] for place in order]

    def _step(self, task: str, rows: NDArray[np.int64], step: int, steps: int) -> None:
        recipe = self._recipe
        for group in self._optimizer.param_groups:
            group["lr"] = recipe.learning_rate * linear_schedule(step, steps, recipe.warmup)
        device = torch.device(self._experiment.compute.device)
        with autocast(device, mixed=recipe.mixed_precision):
            asked = dict.fromkeys((task, *self._taught[task]))
            raw = self.model(*(tensor.to(device) for tensor in self._train[task].states.batch(rows)), tuple(asked))
        loss = self._objectives[task](raw[task].float(), torch.from_numpy(rows))
        for other, said in self._taught[task].items():
            training = get_kind(self._tasks[other].kind).training
            theirs = said[torch.from_numpy(rows)].to(device)
            loss = loss + training.soft_loss(raw[other].float(), theirs, TEMPERATURE)
        if not math.isfinite(loss.item()):
            raise DivergedError(f"task {task}: the loss is {loss.item()} at step {step + 1}: train with a lower --lr")
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), recipe.clip)
        self._optimizer.step()

    def _evaluate(self, epoch: int, progress: ProgressCallback, done: int, steps: int) -> dict[str, float]:
        found = {}
        for name, task in self._tasks.items():
            progress(f"limb: epoch {epoch + 1}, dev data of {name}", done, steps)
            data: LabelledStates = self._dev[name]
            found[name] = evaluate(_OneTask(self.model, name), data, task).scores[task.metric]
            check_score(found[name], task, epoch)
        return found

    def _save(self, state: _JointState) -> None:
        fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
        with atomic_write(self._path) as aside:
            torch.save(fields, aside)

    def _resume(self) -> _JointState | None:
        fresh = copy_weights(self.model)
        try:
            # weights_only: tensors and plain values, no code.
            state = _JointState(**torch.load(self._path, map_location="cpu", weights_only=True))
            self.model.load_state_dict(state.weights)
            self._optimizer.load_state_dict(state.optimizer)
        except FileNotFoundError:
            return None
        except Exception:  # torch raises many types for a broken file; in any case, training can start anew
            # What was loaded before the fault was found must not be where it starts.
            self.model.load_state_dict(fresh)
            self._path.unlink(missing_ok=True)
            return None
        return state
