"""What a teacher answers: its raw outputs for texts, which its students learn."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from onetrunk.nn.head import Head
from onetrunk.training.batches import plain_batches
from onetrunk.training.evaluation import in_order
from onetrunk.training.states import States

_BATCH = 128


@dataclass(frozen=True)
class TeacherAnswers:
    """What a teacher gave for some texts.

    Attributes:
        raw: raw outputs. *Shape:* (texts, outputs); by token (texts, tokens, outputs)
        states: its last states, before the output. *Shape:* (texts, width); by token none are kept: (texts, 0)
    """

    raw: Tensor
    states: Tensor


@torch.no_grad()
def ask_teacher(teacher: Head, states: States) -> TeacherAnswers:
    """Runs a teacher over texts. It is left in evaluation mode.

    Args:
        teacher: the teacher.
        states: the trunk's states at its tap.
    """
    teacher.eval()
    device = next(teacher.parameters()).device
    last: list[Tensor] = []

    def keep(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        last.append(inputs[0])

    hook = teacher.dropout.register_forward_pre_hook(keep)
    rows_of = plain_batches(np.asarray(states.lengths), _BATCH)
    raw, finals = [], []
    try:
        for rows in rows_of:
            raw.append(teacher(*(tensor.to(device) for tensor in states.batch(rows))).float().cpu())
            state = last.pop().float().cpu()
            finals.append(state[:, 0, :0] if teacher.by_token else state)
    finally:
        hook.remove()
    return TeacherAnswers(in_order(raw, rows_of), in_order(finals, rows_of))
