"""ModernBERT, and what was trained with its code, such as mmBERT and Ettin: rotary positions, norms before the parts.

Every third layer reads the whole text, the others only some tokens to each side.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn

from onetrunk.nn.encoder import (
    Encoder,
    LayerContext,
    LayerParts,
    Projection,
    SharedParts,
    mask_bias,
    output_of,
    token_positions,
)
from onetrunk.nn.families.rotary import check_rotary, rotary_scores
from onetrunk.nn.lean_imports import import_layers
from onetrunk.protocol.head_json import MAX_LAYERS, MAX_TOKENS, MAX_WIDTH

_layers = import_layers("transformers.models.modernbert.modeling_modernbert")

_LOCAL = "sliding_attention"


class _Shape(BaseModel):
    """The numbers of config.json that decide how many parameters there are. Absent ones are those of the base size."""

    vocab_size: int = Field(default=50_368, ge=1, le=2**22)
    hidden_size: int = Field(default=768, ge=1, le=MAX_WIDTH)
    num_hidden_layers: int = Field(default=22, ge=1, le=MAX_LAYERS)
    num_attention_heads: int = Field(default=12, ge=1, le=MAX_WIDTH)
    intermediate_size: int = Field(default=1152, ge=1, le=16 * MAX_WIDTH)
    max_position_embeddings: int = Field(default=8192, ge=1, le=MAX_TOKENS)
    # No sizes, but transformers takes any number for them: a layer that reads no token would be computed as one that
    # reads all of them alike.
    local_attention: int = Field(default=128, ge=1, le=MAX_TOKENS)
    global_attn_every_n_layers: int | None = Field(default=3, ge=1, le=MAX_LAYERS)
    norm_bias: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False


@dataclass(frozen=True)
class _Context(LayerContext):
    """Beside the mask, what depends on positions.

    Attributes:
        attention_mask: *Shape:* (batch_size, tokens)
        positions: *Shape:* (tokens,)
        rotations: Type of a layer -> cosines and sines. *Shape of each:* (1, tokens, size)
        reach: The number of tokens to each side that a local layer reads.
    """

    attention_mask: Tensor
    positions: Tensor
    rotations: dict[str, tuple[Tensor, Tensor]]
    reach: int

    @cached_property
    def local_bias(self) -> Tensor:
        """What a local layer adds to its scores. *Shape:* (batch_size, 1, tokens, tokens)."""
        return self.local_rows(self.positions)

    def local_rows(self, queries: Tensor) -> Tensor:
        """Return what queries at these positions add in a local layer. *Shape:* (batch_size, 1, queries, tokens)."""
        near = (self.positions[None, :] - queries[:, None]).abs() <= self.reach
        return mask_bias_of_pairs(self.attention_mask, near, self.mask_bias)


def mask_bias_of_pairs(attention_mask: Tensor, allowed: Tensor, like: Tensor) -> Tensor:
    """Return what a layer adds to its scores where queries read only some tokens.

    Args:
        attention_mask: *Shape:* (batch_size, tokens)
        allowed: Whether a query reads a token. *Shape:* (queries, tokens)
        like: A tensor whose dtype is used.

    Returns:
        *Shape:* (batch_size, 1, queries, tokens)
    """
    read = attention_mask[:, None, None, :].to(like.dtype) * allowed[None, None].to(like.dtype)
    return (1.0 - read) * torch.finfo(like.dtype).min


class _Shared(SharedParts):
    def __init__(self, rotary: nn.Module, final_norm: nn.Module, reach: int) -> None:
        super().__init__()
        self.rotary, self.final_norm, self.reach = rotary, final_norm, reach

    def prepare(self, attention_mask: Tensor, like: Tensor, *, query_in_front: bool = False) -> _Context:
        """See ``SharedParts.prepare``."""
        positions = token_positions(attention_mask, query_in_front=query_in_front)
        rotary: Any = self.rotary
        return _Context(
            mask_bias=mask_bias(attention_mask, like),
            attention_mask=attention_mask,
            positions=positions,
            rotations={kind: rotary(like, positions[None], kind) for kind in rotary.layer_types},
            reach=self.reach,
        )

    def close(self, state: Tensor) -> Tensor:
        """See ``SharedParts.close``."""
        closed: Tensor = self.final_norm(state)
        return closed


class ModernBertEncoder(Encoder):
    """The encoder of Hugging Face's ``ModernBertModel``."""

    family: ClassVar[str] = "modernbert"
    _hf_config, _hf_model = _layers.ModernBertConfig, _layers.ModernBertModel

    def __init__(self, config: Any) -> None:
        check_rotary(config)
        super().__init__(config)
        self.embeddings = self._model.embeddings
        self.layers = self._model.layers
        self.shared = _Shared(self._model.rotary_emb, self._model.final_norm, config.sliding_window)

    @classmethod
    def count_parameters(cls, config: dict[str, Any]) -> int:
        """See ``Encoder.count_parameters``."""
        shape = _Shape.model_validate(config)
        width, inner = shape.hidden_size, shape.intermediate_size
        norm = width * (1 + shape.norm_bias)
        attention = 4 * width * width + 4 * width * shape.attention_bias
        mlp = 3 * width * inner + (2 * inner + width) * shape.mlp_bias
        layers = shape.num_hidden_layers * (attention + mlp + 2 * norm) - norm  # the first has one norm
        return shape.vocab_size * width + norm + layers + norm

    def embed(self, input_ids: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """See ``Encoder.embed``."""
        embedded: Tensor = self.embeddings(input_ids=input_ids)
        return embedded

    @staticmethod
    def run_layer(layer: Any, hidden_state: Tensor, context: _Context) -> Tensor:
        """See ``Encoder.run_layer``."""
        kind = layer.attention_type
        bias = context.local_bias if kind == _LOCAL else context.mask_bias
        return output_of(layer(hidden_state, attention_mask=bias, position_embeddings=context.rotations[kind]))

    @staticmethod
    def take_apart(layer: Any, context: _Context) -> LayerParts:
        """See ``Encoder.take_apart``."""
        attention, kind = layer.attn, layer.attention_type
        width, size = attention.Wo.in_features, attention.head_dim
        query, key, value = (_third(attention.Wqkv, place, width) for place in range(3))

        def scores(query_state: Tensor, states: Tensor) -> Tensor:
            queries = nn.functional.linear(query_state, query.weight, query.bias).view(-1, width // size, size)
            keys = nn.functional.linear(states, key.weight, key.bias)
            bias = context.local_rows(context.positions[:1]) if kind == _LOCAL else context.mask_bias
            return rotary_scores(queries, keys, context.rotations[kind]) + bias[:, 0]

        def dropout(weights: Tensor) -> Tensor:
            return nn.functional.dropout(weights, attention.attention_dropout, attention.training)

        def finish(context_vector: Tensor, residual: Tensor) -> Tensor:
            attended = residual + attention.out_drop(attention.Wo(context_vector))
            state: Tensor = attended + layer.mlp(layer.mlp_norm(attended))
            return state

        return LayerParts(
            norm=None if isinstance(layer.attn_norm, nn.Identity) else layer.attn_norm,
            scores=scores,
            value=value,
            width=width,
            attention_heads=width // size,
            value_heads=width // size,
            head_size=size,
            dropout=dropout,
            finish=finish,
        )


def _third(joint: nn.Linear, place: int, width: int) -> Projection:
    """Return the projection of queries, keys or values, which are one layer here."""
    rows = slice(place * width, (place + 1) * width)
    return Projection(joint.weight[rows], None if joint.bias is None else joint.bias[rows])
