"""How good a head is on labelled states."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from builder.model.head_spec import HeadSpec
from builder.model.kinds import AnswerSpace
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
        targets: what the kind's ``targets`` gives. *Shape:* (texts, ...)
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
    """Measures a model by its task's metrics, with nothing fitted. The model is left in evaluation mode."""
    return measure_raw(raw_outputs(model, data.states), data.targets, task, task)


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
    return spec, measure_raw(raw, data.targets, task, spec)


def measure_raw(raw: Tensor, targets: Tensor, task: Task, space: AnswerSpace) -> Evaluation:
    """The scores of raw outputs. *Shape:* (texts, outputs) and (texts, ...)."""
    served = task.answers.scores(raw, space).numpy()
    scores, notes = measure(task.metrics, task.answers.predictions(served, space), targets.numpy())
    return Evaluation(scores, notes)


@torch.no_grad()
def raw_outputs(model: nn.Module, states: States) -> Tensor:
    """A model's raw outputs, on the CPU, in the texts' order. *Shape:* (texts, outputs)."""
    model.eval()
    device = next(model.parameters()).device
    found: Tensor | None = None
    for rows in plain_batches(states.lengths, _BATCH):
        raw = model(*(tensor.to(device) for tensor in states.batch(rows))).float().cpu()
        if found is None:
            found = torch.empty(len(states.lengths), *raw.shape[1:])
        found[torch.from_numpy(rows)] = raw
    assert found is not None, "examples are never empty"
    return found
