"""Labels as tensors: what training compares raw outputs with."""

from __future__ import annotations

import torch
from torch import Tensor

from onetrunk.nn.trunk import Trunk
from onetrunk.tasks import Examples, Task
from onetrunk.tasks.kinds import get_kind
from onetrunk.tasks.offsets import targets_of


def labelled_targets(task: Task, examples: Examples, trunk: Trunk, max_length: int) -> Tensor:
    """What the kind's ``targets`` gives. *Shape:* (texts, ...).

    Args:
        task: the task.
        examples: its rows.
        trunk: reads the texts, for a kind whose answers are about tokens.
        max_length: longest text in tokens.
    """
    return torch.from_numpy(
        targets_of(get_kind(task.kind), examples.targets, task, examples.texts, trunk.tokenizer, max_length)
    )
