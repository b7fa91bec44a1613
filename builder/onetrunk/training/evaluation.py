"""How good a head is on labelled states."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from onetrunk.tasks import Task
from onetrunk.tasks.kinds import get_kind
from onetrunk.tasks.metrics import measure
from onetrunk.training.batches import plain_batches
from onetrunk.training.objective import output_of
from onetrunk.training.states import States

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
        parts: a tensor a batch. *Shape:* (batch_size, ...), as (batch_size, outputs) or (batch_size, tokens, outputs)
        rows_of: which rows these are. *Shape:* (batch_size,)

    Returns:
        *Shape:* (rows, ...), of as many tokens as the longest batch has
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
        fitted: what the kind fitted to the data; see ``TrainingSpec.fit_on_dev``.
    """

    scores: dict[str, float]
    notes: tuple[str, ...]
    fitted: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _FittedConfig:
    """The ``KindConfig`` of a task with what was fitted for one model."""

    labels: tuple[str, ...] | None
    range: tuple[float, float] | None
    options: Mapping[str, Any]
    fitted: Mapping[str, Any]


@torch.no_grad()
def evaluate(model: nn.Module, data: LabelledStates, task: Task) -> Evaluation:
    """Fits what the kind fits to the data, and measures the model by its task's metrics as it will answer with that.

    After each epoch as at the end: by the thresholds of another epoch, or by none, a good one may look worthless.

    Args:
        model: the model; it is left in evaluation mode.
        data: the dev data.
        task: its task.
    """
    kind, raw, targets = get_kind(task.kind), raw_outputs(model, data.states), data.targets.numpy()
    config = _FittedConfig(task.labels, task.range, task.options, kind.training.fit_on_dev(raw, targets, task))
    output = output_of(model)
    # The output may have a part in the scores, so they are computed where it is.
    device = raw.device if output is None else next(output.parameters()).device
    served = kind.output.scores(raw.to(device), config, output).cpu().numpy()
    scores, notes = measure(task.metrics, kind.answers.predictions(served, config), targets)
    return Evaluation(scores, notes, dict(config.fitted))


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
