"""How good a head is on labelled states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from builder.model.head_spec import HeadSpec
from builder.model.kinds import AnswerSpace
from builder.tasks import Task
from builder.tasks.metrics import measure
from builder.training.batches import plain_batches
from builder.training.objective import output_of
from builder.training.states import States

_BATCH = 128


@dataclass(frozen=True)
class LabelledStates:
    """What a head trains on, or is measured on.

    Attributes:
        states: the trunk's states at the head's tap.
        targets: what the kind's ``targets`` gives. *Shape:* (texts, ...)
    """

    states: States
    targets: Tensor


def in_order(parts: Sequence[Tensor], rows_of: Sequence[NDArray[np.int64]]) -> Tensor:
    """The rows of several batches in the order of the data; where batches differ in length, filled up with noughts.

    Args:
        parts: a tensor a batch. *Shape:* (batch_size, ...)
        rows_of: which rows these are. *Shape:* (batch_size,)
    """
    sizes = [max(size) for size in zip(*(part.shape[1:] for part in parts), strict=True)]
    found = torch.zeros(sum(len(rows) for rows in rows_of), *sizes)
    for part, rows in zip(parts, rows_of, strict=True):
        padding = [end for most, size in zip(sizes, part.shape[1:], strict=True) for end in (most - size, 0)]
        found[torch.from_numpy(rows)] = functional.pad(part, padding[::-1])
    return found


@dataclass(frozen=True)
class Evaluation:
    """The scores of a head.

    Attributes:
        scores: by metric, as shares: 0.5 is 50%.
        notes: metrics that had no value.
    """

    scores: dict[str, float]
    notes: tuple[str, ...]


def evaluate(model: nn.Module, data: LabelledStates, task: Task) -> Evaluation:
    """Measures a model by its task's metrics, with nothing fitted. The model is left in evaluation mode."""
    return measure_raw(raw_outputs(model, data.states), data.targets, task, task, output_of(model))


def fit_answers(model: nn.Module, data: LabelledStates, task: Task, plan: HeadSpec) -> tuple[HeadSpec, Evaluation]:
    """Fits what the kind fits on the dev data, and measures the model as it will answer with that.

    Args:
        model: the trained model; it is left in evaluation mode.
        data: the dev data.
        task: its task.
        plan: its head.json, with nothing fitted.

    Returns:
        The head.json with what was fitted, and the scores.
    """
    raw = raw_outputs(model, data.states)
    spec = plan.model_copy(update={"fitted": task.answers.fit(raw, data.targets.numpy(), plan)})
    return spec, measure_raw(raw, data.targets, task, spec, output_of(model))


@torch.no_grad()
def measure_raw(
    raw: Tensor, targets: Tensor, task: Task, space: AnswerSpace, output: nn.Module | None = None
) -> Evaluation:
    """The scores of raw outputs. *Shape:* (texts, outputs) and (texts, ...)."""
    # Where the output is: it may have a part in it.
    device = raw.device if output is None else next(output.parameters()).device
    served = task.answers.scores(raw.to(device), space, output).cpu().numpy()
    scores, notes = measure(task.metrics, task.answers.predictions(served, space), targets.numpy())
    return Evaluation(scores, notes)


@torch.no_grad()
def raw_outputs(model: nn.Module, states: States) -> Tensor:
    """A model's raw outputs, on the CPU, in the texts' order.

    *Shape:* (texts, outputs); by token (texts, tokens of the longest, outputs), with noughts at padding.
    """
    model.eval()
    device = next(model.parameters()).device
    rows_of = plain_batches(states.lengths, _BATCH)
    parts = [model(*(tensor.to(device) for tensor in states.batch(rows))).float().cpu() for rows in rows_of]
    return in_order(parts, rows_of)
