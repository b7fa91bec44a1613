"""The model of a run: fresh at its start, and with the weights of its best epoch afterwards."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save, save_file
from torch import Tensor, nn

from onetrunk.files import atomic_write
from onetrunk.nn.head import Head, empty_head, new_head
from onetrunk.nn.whole_model import WholeModel, new_whole_model, trained_whole_model
from onetrunk.protocol.errors import UserError
from onetrunk.tasks.kinds import get_kind
from onetrunk.tasks.records import SPLITS
from onetrunk.training.experiment import Experiment
from onetrunk.training.loop import Weights
from onetrunk.training.runs import RunRecord, RunSpec, Start


def new_model(spec: RunSpec, experiment: Experiment) -> nn.Module:
    """Build the model that a run trains: a whole encoder, or a head on its tap. The same seed gives the same weights.

    Raises:
        UserError: The trunk has no such tap or not that many layers above it, or the teacher's run is missing.
    """
    recipe, trunk, task = spec.recipe, experiment.trunk, experiment.task(spec.task)
    with torch.random.fork_rng([]):
        torch.manual_seed(recipe.seed)
        outputs = get_kind(task.kind).output.build_layer(trunk.width, task)
        if spec.role == "full":
            return new_whole_model(trunk, outputs=outputs, vocabulary=_vocabulary(spec.task, experiment))
        lessons = experiment.lessons(spec.task)
        source = lessons.encoder if lessons is not None and lessons.encoder is not None else trunk
        head = new_head(source, outputs=outputs, tap=recipe.resolved_tap, layers=recipe.layers, query=recipe.query)
        start_on_limb(head, limb_start(spec, experiment))
        if (how := spec.distillation) is not None:
            record = experiment.store.by_key(how.teacher)
            initialise_student(head, trained_head(record, experiment.beside(record.spec.limb)), how.start)
        return head


def limb_start(spec: RunSpec, experiment: Experiment) -> Mapping[str, Tensor]:
    """Return the weights that a run's head on a limb starts from, which its task's head had when the limb was trained.

    There are none for a task that was not of the family, or has other labelled data now; for a head of another form
    than those of a limb's training; and where those were not kept.
    """
    lessons, recipe, task = experiment.lessons(spec.task), spec.recipe, experiment.task(spec.task)
    other_encoder = lessons is not None and lessons.encoder is not None
    labelled = bool(task.train) if lessons is None else lessons.labelled > 0
    other_form = (recipe.layers, recipe.query) != (1, "cls")
    # A part of the texts is to show what it alone teaches, and the start has learned from all of them.
    if other_encoder or other_form or spec.share != 1 or not labelled or not experiment.trunk.starts:
        return {}
    return experiment.trunk.starts.get((task.name, experiment.task_digest(task.name)), {})


def start_digest(start: Mapping[str, Tensor]) -> str:
    """Return a hash over the weights that a head on a limb starts from."""
    return hashlib.sha256(save(dict(start))).hexdigest()


def start_on_limb(head: Head, start: Mapping[str, Tensor]) -> None:
    """Set a fresh head's weights to those that its task had when the limb was trained, where there are any.

    Raises:
        UserError: They are those of another head.
    """
    if start:
        try:
            head.load_state_dict(dict(start))
        except RuntimeError as error:
            first = str(error).splitlines()[-1].strip()
            raise UserError(f"what its head had learned with the limb does not fit: {first}") from error


def initialise_student(student: Head, teacher: Head, start: Start) -> None:
    """Set a fresh student's layers to the teacher's lowest ones, or to random ones, or leave the trunk's own.

    The output stays fresh: the teacher's reads a state that the student does not compute yet.
    """
    if start == "teacher":
        student.shared.load_state_dict(teacher.shared.state_dict())
        for own, theirs in zip(student.layers, teacher.layers, strict=False):
            # Layers of other taps may lack a norm that these have, which then stays the trunk's.
            own.load_state_dict(theirs.state_dict(), strict=False)
    elif start == "random":
        for module in student.layers.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
            elif isinstance(module, nn.LayerNorm):
                nn.init.ones_(module.weight)
            if isinstance(module, nn.Linear | nn.LayerNorm) and module.bias is not None:
                nn.init.zeros_(module.bias)


def head_with_weights(spec: RunSpec, weights: Weights, experiment: Experiment) -> Head:
    """Build the head of a run with trained weights, in evaluation mode.

    Weights are rounded to fp16, the precision in which bundles and the cache store them.
    """
    experiment = experiment.branch(spec.limb)
    recipe, task = spec.recipe, experiment.task(spec.task)
    outputs = get_kind(task.kind).output.build_layer(experiment.trunk.width, task)
    head = empty_head(
        experiment.trunk, outputs=outputs, tap=recipe.resolved_tap, layers=recipe.layers, query=recipe.query
    )
    head.load_state_dict({name: tensor.half().float() for name, tensor in weights.items()})
    return head.eval().requires_grad_(False)


def trained_head(record: RunRecord, experiment: Experiment) -> Head:
    """Load the head of a recorded run with the weights of its best epoch, in evaluation mode.

    Raises:
        UserError: Its weights are no longer in the cache.
    """
    return head_with_weights(record.spec, load_weights(record.spec.task, record.key, experiment), experiment)


def fine_tuned_model(record: RunRecord, experiment: Experiment) -> WholeModel:
    """Load the whole encoder of a recorded run with the weights of its best epoch, in evaluation mode.

    Raises:
        UserError: Its weights are no longer in the cache.
    """
    task = experiment.task(record.spec.task)
    return trained_whole_model(
        experiment.trunk,
        outputs=get_kind(task.kind).output.build_layer(experiment.trunk.width, task),
        vocabulary=_vocabulary(task.name, experiment),
        weights=load_weights(task.name, record.key, experiment),
    )


def weights_file(task: str, key: str, experiment: Experiment) -> Path:
    """Return the path of a run's weights in the cache.

    The key covers neither what the task answers nor the metric that chose the best epoch. Several studies share the
    cache, in which equal data may teach tasks of one name different things, so the file's name covers both.
    """
    about = experiment.task(task)
    answers = hashlib.sha256(json.dumps([about.answers, about.metric]).encode()).hexdigest()[:8]
    return experiment.cache_root / "runs" / f"{key}-{answers}.safetensors"


def save_weights(task: str, key: str, weights: Weights, experiment: Experiment) -> None:
    """Write a run's weights to the cache in fp16.

    Args:
        task: The run's task.
        key: The run's key.
        weights: The weights.
        experiment: The experiment, which has the cache.

    Raises:
        OneTrunkError: The file cannot be written; the one before is kept.
    """
    with atomic_write(weights_file(task, key, experiment)) as aside:
        save_file({name: tensor.half().contiguous() for name, tensor in weights.items()}, aside)


def load_weights(task: str, key: str, experiment: Experiment) -> Weights:
    """Read a run's weights from the cache.

    Raises:
        UserError: The file is missing or broken.
    """
    path = weights_file(task, key, experiment)
    try:
        weights = load_file(path)
    except FileNotFoundError:
        raise UserError(
            f"{path}: the weights of this run are missing; remove its record, and it is trained again"
        ) from None
    except SafetensorError as error:
        raise UserError(f"{path}: broken: {error}; remove it, and the run is trained again") from error
    return {name: tensor.float() for name, tensor in weights.items()}


def _vocabulary(task: str, experiment: Experiment) -> Tensor:
    """Return the token ids that a task's texts contain. *Shape:* (token ids,)."""
    return torch.cat([experiment.tokens(task, split).vocabulary for split in SPLITS])
