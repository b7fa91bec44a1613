"""How good a head is on labelled states."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from builder.tasks import Task
from builder.tasks.metrics import measure
from builder.training.batches import plain_batches
from builder.training.states import States

_BATCH = 128


@dataclass(frozen=True)
class LabelledStates:
    """What a head trains on, or is measured on.

    Attributes:
        states: the trunk's states at the head's tap.
        targets: encoded labels. *Shape:* (texts,)
    """

    states: States
    targets: Tensor


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
    """Measures a model by its task's metrics. The model is left in evaluation mode."""
    predictions = answers(model, data.states, task)
    scores, notes = measure(task.metrics, predictions.numpy(), data.targets.numpy())
    return Evaluation(scores, notes)


@torch.no_grad()
def answers(model: nn.Module, states: States, task: Task) -> Tensor:
    """What a model answers: indices of labels, or numbers in the task's range. *Shape:* (texts,)."""
    model.eval()
    device = next(model.parameters()).device
    found: Tensor | None = None
    for rows in plain_batches(states.lengths, _BATCH):
        scores = task.answers.scores(model(*(tensor.to(device) for tensor in states.batch(rows))), task)
        chosen = scores.argmax(dim=-1) if task.answers.uses_labels else scores.squeeze(-1)
        if found is None:
            found = torch.empty(len(states.lengths), dtype=chosen.dtype)
        found[torch.from_numpy(rows)] = chosen.cpu()
    assert found is not None, "examples are never empty"
    return found
