"""What training minimises: the labels' loss, or the loss of a student that also listens to its teacher."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from onetrunk.tasks import Task
from onetrunk.tasks.kinds import Kind, get_kind


class Objective(Protocol):
    """The loss of a batch. Called with raw outputs, *Shape:* (rows, outputs), and which rows they are, on the CPU."""

    def __call__(self, raw: Tensor, rows: Tensor) -> Tensor:
        """Mean loss over the batch: one number."""


class LabelObjective:
    """The kind's own loss against the labels.

    Attributes:
        kind: the task's kind.
        count: how many rows have a label: the first ones.
    """

    def __init__(
        self, kind: Kind, targets: Tensor, output: nn.Module | None = None, weights: Tensor | None = None
    ) -> None:
        """Makes the objective.

        Args:
            kind: the task's kind.
            targets: of the labelled rows; see Kind.targets. *Shape:* (labelled, ...)
            output: of the model that is trained.
            weights: how much each counts; None is alike. *Shape:* (labelled,)
        """
        self.kind, self.count, self._targets = kind, len(targets), targets
        self._output, self._weights = output, weights

    @classmethod
    def of(cls, task: Task, targets: Tensor, model: nn.Module) -> LabelObjective:
        """The objective of a task for a model, with the weights that the task asks for."""
        kind = get_kind(task.kind)
        weights = kind.training.row_weights(targets.numpy(), task)
        return cls(kind, targets, output_of(model), None if weights is None else torch.from_numpy(weights))

    def __call__(self, raw: Tensor, rows: Tensor) -> Tensor:
        """See Objective."""
        targets = self._targets[rows].to(raw.device)
        weights = None if self._weights is None else self._weights[rows].to(raw.device)
        return self.kind.training.loss(raw, targets, self._output, weights)


def output_of(model: nn.Module) -> nn.Module | None:
    """The output of a head or of a whole model, for a kind whose output has more parameters than a matrix."""
    return getattr(model, "output", None)


class DistilObjective:
    """The paper's loss of a student: ``T^2 * CE(softmax(teacher / T), student / T) + CE(label, student)``.

    Rows without a label, such as texts of other tasks, add the first term alone. Both terms are means over the batch,
    so that a label weighs the same whatever else is in its batch.
    """

    def __init__(self, labels: LabelObjective, teacher: Tensor, temperature: float) -> None:
        """Makes the objective.

        Args:
            labels: the loss against the labels of the first rows; the rows after them have none.
            teacher: the teacher's raw outputs for all rows. *Shape:* (rows, outputs)
            temperature: T.
        """
        self._labels, self._teacher, self._temperature = labels, teacher, temperature

    def __call__(self, raw: Tensor, rows: Tensor) -> Tensor:
        """See Objective."""
        loss = self._labels.kind.training.soft_loss(raw, self._teacher[rows].to(raw.device), self._temperature)
        labelled = rows < self._labels.count
        if bool(labelled.any()):
            share = float(labelled.float().mean())
            loss = loss + share * self._labels(raw[labelled.to(raw.device)], rows[labelled])
        return loss


class StateObjective:
    """Adds to an objective how far the head's last state is from the teacher's, both normalised.

    The state is what goes into the head's output; a hook on its dropout reads it, so the head knows nothing of this.
    """

    def __init__(self, objective: Objective, dropout: nn.Module, teacher_states: Tensor, weight: float) -> None:
        """Makes the objective.

        Args:
            objective: the loss on outputs.
            dropout: the module that the student's last state goes through, before its output.
            teacher_states: the teacher's last states. *Shape:* (rows, width)
            weight: of the mean squared difference.
        """
        self._objective, self._teacher, self._weight = objective, teacher_states, weight
        self._state: Tensor | None = None
        dropout.register_forward_pre_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._state = inputs[0]

    def __call__(self, raw: Tensor, rows: Tensor) -> Tensor:
        """See Objective."""
        assert self._state is not None, "the head has run"
        wanted = self._teacher[rows].to(raw.device)
        shape = wanted.shape[-1:]
        difference = functional.layer_norm(self._state.float(), shape) - functional.layer_norm(wanted.float(), shape)
        return self._objective(raw, rows) + self._weight * torch.mean(difference**2)
