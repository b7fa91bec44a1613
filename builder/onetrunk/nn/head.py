"""A head: a task's own layers on a tap of the trunk, the last of them folded, and its output layer."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from onetrunk.nn.encoder import Encoder, LayerContext, SharedParts
from onetrunk.nn.fold import folded_state, query_state
from onetrunk.nn.trunk import Trunk
from onetrunk.protocol.errors import UserError, counted
from onetrunk.protocol.head_json import Query


class Head(nn.Module):
    """A task's own layers on a hidden state of the trunk, the last of them for one query, and a linear output layer.

    If the output layer is ``by_token``, the last layer runs whole, and there is an output for every token.

    Attributes:
        layers: The head's layers, first to last, of the same form as the trunk's.
        shared: Its own copy of what the trunk's layers share.
        output: The output layer, width -> outputs; that of a kind may have more parameters than a weight and a bias.
        by_token: Whether it answers for every token.
        query: The query of the last layer.
        pool: The vector of a learned query; None for the others. *Shape:* (width,)
    """

    def __init__(
        self,
        encoder: type[Encoder],
        layers: nn.ModuleList,
        shared: SharedParts,
        output: nn.Linear,
        dropout: float = 0.1,
        query: Query = "cls",
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.layers = layers
        self.shared = shared
        self.dropout = nn.Dropout(dropout)
        self.output = output
        self.by_token = bool(getattr(output, "by_token", False))
        if self.by_token and query != "cls":
            raise UserError(f"query {query!r}: a head that answers for every token has none; leave it out")
        self.query = query
        self.pool = nn.Parameter(torch.zeros(output.in_features)) if query == "learned" else None

    @property
    def layers_run_whole(self) -> tuple[nn.Module, ...]:
        """Its layers but the last, which is folded; all of a head that answers for every token."""
        return tuple(self.layers if self.by_token else self.layers[:-1])

    def forward(self, hidden_state: Tensor, attention_mask: Tensor) -> Tensor:
        """Return raw outputs, with the last layer folded.

        Args:
            hidden_state: The trunk's hidden state at the head's tap. *Shape:* (batch_size, tokens, width)
            attention_mask: Ones and zeros. *Shape:* (batch_size, tokens)

        Returns:
            *Shape:* (batch_size, outputs); by token (batch_size, tokens, outputs), with zeros at padding.
        """
        if self.by_token:
            return self.forward_whole(hidden_state, attention_mask)
        context = self.shared.prepare(attention_mask, hidden_state)
        hidden_state = self._run_lower(hidden_state, context)
        query = query_state(self.query, hidden_state, context.mask_bias, self.pool)
        parts = self.encoder.take_apart(self.layers[-1], context)
        return self._answer(folded_state(parts, query, hidden_state))

    def forward_whole(self, hidden_state: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the same outputs with every layer run whole, to check the fold. Shapes are those of ``forward``."""
        context = self.shared.prepare(attention_mask, hidden_state)
        hidden_state = self._run_lower(hidden_state, context)
        if self.by_token:
            state = self.encoder.run_layer(self.layers[-1], hidden_state, context)
            return self._answer(state) * attention_mask[..., None].to(state.dtype)
        if self.query != "cls":
            # The query goes in front as one more token, which attends to all others and which they cannot see.
            query = query_state(self.query, hidden_state, context.mask_bias, self.pool)
            hidden_state = torch.cat([query[:, None], hidden_state], dim=1)
            mask = nn.functional.pad(attention_mask, (1, 0))
            context = self.shared.prepare(mask, hidden_state, query_in_front=True)
        return self._answer(self.encoder.run_layer(self.layers[-1], hidden_state, context)[:, 0])

    def _run_lower(self, hidden_state: Tensor, context: LayerContext) -> Tensor:
        for layer in self.layers[:-1]:
            hidden_state = self.encoder.run_layer(layer, hidden_state, context)
        return hidden_state

    def _answer(self, state: Tensor) -> Tensor:
        raw: Tensor = self.output(self.dropout(self.shared.close(state)))
        return raw


def new_head(trunk: Trunk, *, outputs: int | nn.Linear, tap: int, layers: int, query: Query = "cls") -> Head:
    """Create a head to be trained: a copy of the trunk's layers ``tap + 1`` to ``tap + layers`` and a new output layer.

    A learned query starts as the mean. The output layer's weights come from torch's global generator: seed it first for
    a reproducible result.

    Args:
        trunk: The trunk.
        outputs: The number of outputs, or the output layer of a kind (``OutputSpec.build_layer``).
        tap: The tap that it reads.
        layers: The number of its layers.
        query: The query of the last layer.

    Raises:
        UserError: The trunk has no such tap, or not that many layers above it.
    """
    trunk.check_tap(tap, above=1)
    most = trunk.depth - tap
    if not 1 <= layers <= most:
        count = counted(most, "layer", "layers")
        raise UserError(f"a head on tap {tap} of this trunk has {count} at most, not {layers}")
    own, shared = _copy_layers(trunk, tap, layers)
    own.requires_grad_(True)
    shared.requires_grad_(True)
    output = nn.Linear(trunk.width, outputs) if isinstance(outputs, int) else outputs
    nn.init.normal_(output.weight, std=0.02)
    nn.init.zeros_(output.bias)
    return Head(type(trunk.encoder), own, shared, output, query=query).train()


def empty_head(trunk: Trunk, *, outputs: int | nn.Linear, tap: int, layers: int, query: Query = "cls") -> Head:
    """Create a head in evaluation mode, whose weights are loaded afterwards.

    Args:
        trunk: The trunk, which the layers' form follows.
        outputs: The number of outputs, or the output layer of a kind (``OutputSpec.build_layer``).
        tap: The tap that it reads: layers may differ among themselves.
        layers: The number of its layers.
        query: The query of the last layer.
    """
    own, shared = _copy_layers(trunk, tap, layers)
    output = nn.Linear(trunk.width, outputs) if isinstance(outputs, int) else outputs
    return Head(type(trunk.encoder), own, shared, output, query=query).eval().requires_grad_(False)


def _copy_layers(trunk: Trunk, tap: int, layers: int) -> tuple[nn.ModuleList, SharedParts]:
    """Return copies of the trunk's layers above a tap and of what they share."""
    # In one pass, so that layers with the weights of one stay so.
    return copy.deepcopy((trunk.layers[tap : tap + layers], trunk.encoder.shared))
