"""What training minimises: the loss against the labels, and the losses of a student against its teacher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from onetrunk.nn.encoder import output_of as state_of
from onetrunk.tasks import Task
from onetrunk.tasks.kinds import Kind, get_kind
from onetrunk.training.states import States


class Objective(Protocol):
    """The loss of a batch."""

    def __call__(self, raw: Tensor, rows: Tensor) -> Tensor:
        """Return the mean loss over a batch. *Shape:* ().

        Args:
            raw: The model's raw outputs. *Shape:* (batch_size, outputs)
            rows: The row number of each, on the CPU. *Shape:* (batch_size,)
        """


class LabelObjective:
    """The kind's own loss against the labels.

    Attributes:
        kind: The task's kind.
        count: The number of labelled rows; they come first.
    """

    def __init__(
        self, kind: Kind, targets: Tensor, output: nn.Module | None = None, weights: Tensor | None = None
    ) -> None:
        """Create the objective.

        Args:
            kind: The task's kind.
            targets: The targets of the labelled rows. *Shape:* (labelled, ...)
            output: The output layer of the model that is trained.
            weights: The weight of each target; None weighs all alike. *Shape:* (labelled,)
        """
        self.kind, self.count, self._targets = kind, len(targets), targets
        self._output, self._weights = output, weights

    @classmethod
    def of(cls, task: Task, targets: Tensor, model: nn.Module) -> LabelObjective:
        """Create the objective of a task for a model, with the weights that the task asks for.

        Args:
            task: The task.
            targets: The targets of the labelled rows. *Shape:* (labelled, ...)
            model: The model that is trained.
        """
        kind = get_kind(task.kind)
        weights = kind.training.row_weights(targets.numpy(), task)
        return cls(kind, targets, output_of(model), None if weights is None else torch.from_numpy(weights))

    def __call__(self, raw: Tensor, rows: Tensor) -> Tensor:
        """See ``Objective``."""
        targets = self._targets[rows].to(raw.device)
        weights = None if self._weights is None else self._weights[rows].to(raw.device)
        return self.kind.training.loss(raw, targets, self._output, weights)


def output_of(model: nn.Module) -> nn.Module | None:
    """Return the output layer of a head or a whole model, for a kind whose loss or scores use it, such as a CRF."""
    return getattr(model, "output", None)


class DistilObjective:
    """The paper's loss of a student: ``T^2 * CE(softmax(teacher / T), student / T) + CE(label, student)``.

    Rows without a label, such as texts of other tasks, contribute the first term only; rows that the teacher says
    nothing about, the second. Both terms are means over the batch, so that a label weighs the same whatever else is in
    its batch.
    """

    def __init__(self, labels: LabelObjective, teacher: Tensor, temperature: float) -> None:
        """Create the objective.

        Args:
            labels: The loss against the labels of the first rows; the rows after them have none.
            teacher: The teacher's raw outputs for all rows; NaN in those that it says nothing about.
                *Shape:* (rows, outputs)
            temperature: The temperature T.
        """
        self._labels, self._teacher, self._temperature = labels, teacher, temperature
        self._given = ~torch.isnan(teacher).flatten(1).any(dim=1)

    def __call__(self, raw: Tensor, rows: Tensor) -> Tensor:
        """See ``Objective``."""
        given = self._given[rows]
        # A sum over no rows is 0, with a gradient of 0.
        loss = raw[:0].sum()
        if bool(given.any()):
            theirs = self._teacher[rows[given]].to(raw.device)
            share = float(given.float().mean())
            ours = raw[given.to(raw.device)]
            loss = share * self._labels.kind.training.soft_loss(ours, theirs, self._temperature)
        labelled = rows < self._labels.count
        if bool(labelled.any()):
            share = float(labelled.float().mean())
            loss = loss + share * self._labels(raw[labelled.to(raw.device)], rows[labelled])
        return loss


class StateObjective:
    """Another objective plus the distance of the head's last state from the teacher's, both normalised.

    The last state is the input of the head's output layer. A hook on the dropout before it reads the state, so that
    the head itself needs no code for distillation.
    """

    def __init__(self, objective: Objective, dropout: nn.Module, teacher_states: Tensor, weight: float) -> None:
        """Create the objective.

        Args:
            objective: The loss on outputs.
            dropout: The module that the student's last state passes through before its output layer.
            teacher_states: The teacher's last states. *Shape:* (rows, width)
            weight: The weight of the mean squared difference.
        """
        self._objective, self._teacher, self._weight = objective, teacher_states, weight
        self._state: Tensor | None = None
        dropout.register_forward_pre_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._state = inputs[0]

    def __call__(self, raw: Tensor, rows: Tensor) -> Tensor:
        """See ``Objective``."""
        assert self._state is not None, "the head has run"
        distance = _distance(self._state, self._teacher[rows].to(raw.device))
        return self._objective(raw, rows) + self._weight * distance.mean()


class LayersObjective:
    """Another objective plus the distance of the states within a head from those after the same layers of its teacher.

    A head that starts from its teacher's own layers computes what the teacher does, but for what fine-tuning changed
    below the head's tap. How to make up for that is told by every token's state, where an answer is a few numbers a
    text. Sources: Sun et al. 2019, "Patient Knowledge Distillation for BERT Model Compression" (arXiv:1908.09355);
    Jiao et al. 2020, "TinyBERT" (arXiv:1909.10351), section 3. Hooks on the layers read the states, so that the head
    itself needs no code for distillation.
    """

    def __init__(
        self, objective: Objective, layers: Sequence[nn.Module], teacher: Sequence[States], weight: float
    ) -> None:
        """Create the objective.

        Args:
            objective: The loss on outputs.
            layers: The layers of the head that run whole, in their order. One may be there several times.
            teacher: The teacher's states of the texts that are trained on, after each of these layers.
            weight: The weight of the mean squared difference of normalised states, over tokens and layers.
        """
        self._objective, self._teacher, self._weight = objective, tuple(teacher), weight
        self._states: list[Tensor] = []
        for layer in dict.fromkeys(layers):
            layer.register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: object, output: Any) -> None:
        # Not while the head is scored between epochs.
        if module.training:
            self._states.append(state_of(output))

    def __call__(self, raw: Tensor, rows: Tensor) -> Tensor:
        """See ``Objective``."""
        states, self._states = self._states, []
        total = raw[:0].sum()
        for state, teacher in zip(states, self._teacher, strict=True):
            target, mask = (tensor.to(raw.device) for tensor in teacher.batch(rows.numpy()))
            total = total + (_distance(state, target) * mask).sum() / mask.sum()
        return self._objective(raw, rows) + self._weight * total / len(self._teacher)


def _distance(state: Tensor, target: Tensor) -> Tensor:
    """Return the mean squared difference of normalised states. *Shape:* (..., width), twice, to (...)."""
    shape = target.shape[-1:]
    difference = functional.layer_norm(state.float(), shape) - functional.layer_norm(target.float(), shape)
    return (difference**2).mean(dim=-1)
