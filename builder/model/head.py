"""A head: a task's own layers on a tap of the trunk, the last of them folded, and its output."""

from __future__ import annotations

import copy

from torch import Tensor, nn

from builder.errors import UserError
from builder.model.encoder import Encoder
from builder.model.fold import folded_cls_state
from builder.model.trunk import Trunk


class Head(nn.Module):
    """Own layers on a trunk's state, and a linear output on [CLS].

    Attributes:
        layers: the head's layers, first to last, of the trunk's own form.
        output: Linear, width -> outputs.
    """

    def __init__(self, encoder: type[Encoder], layers: nn.ModuleList, output: nn.Linear, dropout: float = 0.1) -> None:
        super().__init__()
        self.encoder = encoder
        self.layers = layers
        self.dropout = nn.Dropout(dropout)
        self.output = output

    def forward(self, hidden_state: Tensor, attention_mask: Tensor) -> Tensor:
        """Raw outputs, the last layer folded.

        Args:
            hidden_state: the trunk's state at the head's tap. *Shape:* (batch_size, tokens, width)
            attention_mask: ones and zeros. *Shape:* (batch_size, tokens)

        Returns:
            *Shape:* (batch_size, outputs)
        """
        bias = self.encoder.mask_bias(attention_mask, hidden_state)
        for layer in self.layers[:-1]:
            hidden_state = self.encoder.run_layer(layer, hidden_state, bias)
        cls = folded_cls_state(self.encoder.take_apart(self.layers[-1]), hidden_state, bias)
        return self._answer(cls)

    def forward_whole(self, hidden_state: Tensor, attention_mask: Tensor) -> Tensor:
        """The same outputs with every layer run whole: what the fold is checked against. Shapes as in forward."""
        bias = self.encoder.mask_bias(attention_mask, hidden_state)
        for layer in self.layers:
            hidden_state = self.encoder.run_layer(layer, hidden_state, bias)
        return self._answer(hidden_state[:, 0])

    def _answer(self, cls: Tensor) -> Tensor:
        raw: Tensor = self.output(self.dropout(cls))
        return raw


def new_head(trunk: Trunk, *, outputs: int, tap: int, layers: int) -> Head:
    """A head to be trained: a copy of the trunk's layers ``tap + 1`` to ``tap + layers``, and a fresh output.

    The output's weights come from torch's global generator: seed it first for a result that can be repeated.

    Raises:
        UserError: the trunk has no such tap, or not that many layers above it.
    """
    trunk.check_tap(tap)
    most = trunk.depth - tap
    if most < 1:
        raise UserError(f"tap {tap} has no layer above it on this trunk: give 0 to {trunk.depth - 1}")
    if not 1 <= layers <= most:
        raise UserError(f"a head on tap {tap} of this trunk has 1 to {most} layers, not {layers}")
    own = copy.deepcopy(trunk.layers[tap : tap + layers])
    own.requires_grad_(True)
    output = nn.Linear(trunk.width, outputs)
    nn.init.normal_(output.weight, std=0.02)
    nn.init.zeros_(output.bias)
    return Head(type(trunk.encoder), own, output).train()


def empty_head(trunk: Trunk, *, outputs: int, layers: int) -> Head:
    """A head of the trunk's form in evaluation mode, whose weights are still to be loaded."""
    own = nn.ModuleList([copy.deepcopy(trunk.layers[0]) for _ in range(layers)])
    return Head(type(trunk.encoder), own, nn.Linear(trunk.width, outputs)).eval().requires_grad_(False)
