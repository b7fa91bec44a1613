"""Running a model over labelled states: raw outputs, scores on the dev data, and a teacher's outputs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from onetrunk.nn.head import Head
from onetrunk.nn.trunk import Trunk
from onetrunk.protocol.reference import Reference
from onetrunk.tasks import Examples, FittedTask, Task
from onetrunk.tasks.examples import targets_of
from onetrunk.tasks.kinds import get_kind
from onetrunk.tasks.kinds.base import Scores
from onetrunk.tasks.metrics import measure
from onetrunk.training.objective import output_of
from onetrunk.training.states import States, plain_batches

_BATCH_SIZE = 128


@dataclass(frozen=True)
class LabelledStates:
    """Inputs with targets: what a model trains on, or is evaluated on.

    Attributes:
        states: The hidden states at a head's tap, or the token ids for a whole encoder.
        targets: The targets of the task's kind. *Shape:* (texts, ...)
        teacher: The raw outputs that the targets stand for, if they are a teacher's. *Shape:* as the model's
    """

    states: States
    targets: Tensor
    teacher: Tensor | None = None


def labelled_targets(task: Task, examples: Examples, *, trunk: Trunk, max_length: int) -> Tensor:
    """Convert labels to the targets of the task's kind. *Shape:* (texts, ...).

    Args:
        task: The task.
        examples: Its rows.
        trunk: The trunk, whose tokenizer reads the texts for a kind that labels tokens.
        max_length: The longest text in tokens.
    """
    return torch.from_numpy(
        targets_of(get_kind(task.kind), examples.targets, task, examples.texts, trunk.tokenizer, max_length)
    )


@dataclass(frozen=True)
class Evaluation:
    """The scores of a model.

    Attributes:
        scores: The scores by metric, as shares: 0.5 is 50%.
        notes: The metrics that are not defined on these data, and what soft labels say about the scores.
        fitted: What the kind fitted to the data, such as thresholds; see ``TrainingSpec.fit_on_dev``.
        reference: A summary of the answers; None for a kind without one.
    """

    scores: dict[str, float]
    notes: tuple[str, ...]
    fitted: dict[str, Any] = field(default_factory=dict)
    reference: Reference | None = None


@torch.no_grad()
def evaluate(model: nn.Module, data: LabelledStates, task: Task) -> Evaluation:
    """Fit what the kind fits to the data, and score the model by its task's metrics as it will answer with that.

    Thresholds are fitted anew for every epoch: with those of another epoch, a good model may look worthless.

    Args:
        model: The model. It is left in evaluation mode.
        data: The dev data.
        task: The task.
    """
    kind, raw, targets = get_kind(task.kind), raw_outputs(model, data.states), data.targets.numpy()
    fitted = (
        kind.training.fit_on_dev(raw, targets, task)
        if data.teacher is None
        else kind.training.fit_to_teacher(raw, data.teacher, targets, task)
    )
    config = FittedTask(task, fitted)
    served = _served(model, raw, config, task)
    scores, notes = measure(task.metrics, kind.answers.predictions(served, config), kind.codec.hard(targets))
    if data.teacher is None:
        # What a teacher says is compared by whoever asked it, in the words of teachers and heads.
        notes = (*notes, *_soft_note(config.fitted))
    return Evaluation(scores, tuple(notes), dict(config.fitted), kind.answers.reference(served, config))


@torch.no_grad()
def score(
    model: nn.Module, data: LabelledStates, task: Task, fitted: Mapping[str, Any], metrics: Sequence[str]
) -> tuple[dict[str, float], tuple[str, ...]]:
    """Score a model on data to which nothing is fitted.

    Args:
        model: The model. It is left in evaluation mode.
        data: The test data.
        task: The task.
        fitted: What was fitted on the dev data.
        metrics: The metrics.

    Returns:
        The scores by metric, and notes on metrics that are not defined on these data.
    """
    kind, config = get_kind(task.kind), FittedTask(task, fitted)
    served = _served(model, raw_outputs(model, data.states), config, task)
    targets = kind.codec.hard(data.targets.numpy())
    scores, notes = measure(metrics, kind.answers.predictions(served, config), targets)
    return scores, tuple(notes)


def commonest_score(task: Task, targets: Tensor) -> float:
    """Return the score, by a task's first metric, of a head that gives the commonest answer to every text.

    It is less than 0 where the data do not tell such a head from one that is always right.

    Args:
        task: The task.
        targets: The targets of the data. *Shape:* (texts, ...)
    """
    kind = get_kind(task.kind)
    hard = kind.codec.hard(targets.numpy())
    gold = kind.answers.gold(hard)
    # The only answer that fits texts of all lengths has no spans, and is no answer to be measured.
    constant = 0.0
    if not kind.by_token:
        answers, counts = np.unique(gold, axis=0, return_counts=True)
        commonest = np.broadcast_to(answers[counts.argmax()], gold.shape)
        constant = measure(task.metrics[:1], commonest, hard)[0][task.metric]
    return constant if constant < measure(task.metrics[:1], gold, hard)[0][task.metric] else -math.inf


def _served(model: nn.Module, raw: Tensor, config: FittedTask, task: Task) -> Scores:
    """Return scores as they are served."""
    output = output_of(model)
    # The output layer may take part in the scores (CRF), so they are computed on its device.
    device = raw.device if output is None else next(output.parameters()).device
    return get_kind(task.kind).output.scores(raw.to(device), config, output).cpu().numpy()


def _soft_note(fitted: Mapping[str, Any]) -> Iterator[str]:
    """Say how the head fares against soft dev labels, of which the metrics take the most probable ones."""
    if soft := fitted.get("soft_dev"):
        yield (
            "dev labels are soft: scores are by the most probable ones; accuracy by their probabilities is "
            f"{100 * soft['expected_accuracy']:.1f} of {100 * soft['best_accuracy']:.1f} that are possible, and the "
            f"mean divergence from them {soft['divergence_nats']:.3f} nats"
        )


@torch.no_grad()
def raw_outputs(model: nn.Module, states: States) -> Tensor:
    """Run a model over all texts. It is left in evaluation mode.

    Returns:
        The raw outputs on the CPU, in the order of the texts. *Shape:* (texts, outputs); for a model that answers for
        every token (texts, tokens of the longest text, outputs), with zeros at padding.
    """
    model.eval()
    device = next(model.parameters()).device
    batches = plain_batches(states.lengths, _BATCH_SIZE)
    parts = [model(*(tensor.to(device) for tensor in states.batch(rows))).float().cpu() for rows in batches]
    return in_order(parts, batches)


@dataclass(frozen=True)
class TeacherOutputs:
    """A teacher's outputs for some texts: the targets of its students.

    Attributes:
        raw: The raw outputs. *Shape:* (texts, outputs), or (texts, tokens, outputs) for a head that answers for every
            token.
        states: The teacher's last states, the input of its output layer. *Shape:* (texts, width); for a head that
            answers for every token (texts, 0): none are kept.
    """

    raw: Tensor
    states: Tensor


@torch.no_grad()
def teacher_outputs(teacher: Head, states: States) -> TeacherOutputs:
    """Run a teacher over texts. It is left in evaluation mode.

    Args:
        teacher: The teacher.
        states: The hidden states at its tap.
    """
    teacher.eval()
    device = next(teacher.parameters()).device
    last: list[Tensor] = []

    def keep(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        last.append(inputs[0])

    hook = teacher.dropout.register_forward_pre_hook(keep)
    batches = plain_batches(np.asarray(states.lengths), _BATCH_SIZE)
    raw, finals = [], []
    try:
        for rows in batches:
            raw.append(teacher(*(tensor.to(device) for tensor in states.batch(rows))).float().cpu())
            state = last.pop().float().cpu()
            finals.append(state[:, 0, :0] if teacher.by_token else state)
    finally:
        hook.remove()
    return TeacherOutputs(in_order(raw, batches), in_order(finals, batches))


def in_order(parts: Sequence[Tensor], batches: Sequence[NDArray[np.int64]]) -> Tensor:
    """Put the rows of several batches into the order of the data, padding with zeros where batches differ in length.

    Args:
        parts: One tensor per batch. *Shape:* (batch_size, ...), such as (batch_size, outputs) or
            (batch_size, tokens, outputs)
        batches: The row numbers of each batch. *Shape:* (batch_size,)

    Returns:
        *Shape:* (rows, ...), with as many tokens as the longest batch has.
    """
    sizes = [max(size) for size in zip(*(part.shape[1:] for part in parts), strict=True)]
    found = torch.zeros(sum(len(rows) for rows in batches), *sizes)
    for part, rows in zip(parts, batches, strict=True):
        padding = [end for most, size in zip(sizes, part.shape[1:], strict=True) for end in (most - size, 0)]
        found[torch.from_numpy(rows)] = functional.pad(part, padding[::-1])
    return found
