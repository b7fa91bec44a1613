"""MPNet: layers of BERT's form that add one bias of relative positions, the same in every layer, to their scores."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from onetrunk.nn.encoder import LayerContext, LayerParts, Projection, SharedParts, mask_bias, output_of, token_positions
from onetrunk.nn.families.bert import BertFormEncoder, BertShape
from onetrunk.nn.fold import content_scores
from onetrunk.nn.lean_imports import import_layers
from onetrunk.protocol.head_json import MAX_TOKENS

_layers = import_layers("transformers.models.mpnet.modeling_mpnet")

# At this distance and beyond, all tokens are in the last bucket.
_FARTHEST = 128
_BUCKETS = 32
# MPNet's embeddings have it as a constant.
_PADDING = 1


class _Shape(BertShape):
    vocab_size: int = Field(default=30_527, ge=1, le=2**22)
    max_position_embeddings: int = Field(default=512, ge=3, le=MAX_TOKENS)
    relative_attention_num_buckets: int = Field(default=_BUCKETS, ge=_BUCKETS, le=1024)


@dataclass(frozen=True)
class _Context(LayerContext):
    """Beside the mask, the position of each token, and the bias of each distance, *Shape:* (distances, heads)."""

    positions: Tensor
    biases: Tensor

    @cached_property
    def position_bias(self) -> Tensor:
        """What each query adds to its scores. *Shape:* (1, heads, tokens, tokens)."""
        return self.rows(self.positions)

    def rows(self, queries: Tensor) -> Tensor:
        """Return what queries at these positions add to their scores. *Shape:* (1, heads, queries, tokens)."""
        distances = self.positions[None, :] - queries[:, None]
        places = torch.clamp(distances, -_FARTHEST, _FARTHEST) + _FARTHEST
        return self.biases[places].permute(2, 0, 1)[None]


class _RelativeBias(SharedParts):
    def __init__(self, bias_of_bucket: nn.Embedding) -> None:
        super().__init__()
        self.bias_of_bucket = bias_of_bucket
        # As a table, since another runtime's logarithm could put a distance into the neighbouring bucket.
        bucket = _layers.MPNetEncoder.relative_position_bucket
        distances = torch.arange(-_FARTHEST, _FARTHEST + 1)
        self.register_buffer("buckets", bucket(distances, num_buckets=_BUCKETS), persistent=False)

    def prepare(self, attention_mask: Tensor, like: Tensor, *, query_in_front: bool = False) -> _Context:
        """See ``SharedParts.prepare``."""
        return _Context(
            mask_bias=mask_bias(attention_mask, like),
            positions=token_positions(attention_mask, query_in_front=query_in_front),
            biases=self.bias_of_bucket(self.buckets),
        )


class MpnetEncoder(BertFormEncoder):
    """The encoder of Hugging Face's ``MPNetModel``."""

    family: ClassVar[str] = "mpnet"
    shape: ClassVar[type[BertShape]] = _Shape
    _hf_config, _hf_model = _layers.MPNetConfig, _layers.MPNetModel
    _hf_options: ClassVar[dict[str, Any]] = {"add_pooling_layer": False}

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.shared = _RelativeBias(self._model.encoder.relative_attention_bias)
        # The first token stands at the padding's id + 1: of 514 positions, 512 are tokens'.
        self.max_positions = config.max_position_embeddings - _PADDING - 1
        self.pad_token_id = _PADDING

    @classmethod
    def count_parameters(cls, config: dict[str, Any]) -> int:
        """See ``Encoder.count_parameters``."""
        shape = _Shape.model_validate({**config, "type_vocab_size": 1})
        of_bias = shape.relative_attention_num_buckets * shape.num_attention_heads
        rows = shape.embedding_rows - 1 + 2
        return rows * shape.hidden_size + shape.num_hidden_layers * shape.layer_parameters + of_bias

    @staticmethod
    def run_layer(layer: nn.Module, hidden_state: Tensor, context: _Context) -> Tensor:
        """See ``Encoder.run_layer``."""
        return output_of(layer(hidden_state, context.mask_bias, context.position_bias))

    @staticmethod
    def take_apart(layer: Any, context: _Context) -> LayerParts:
        """See ``Encoder.take_apart``."""
        attention = layer.attention
        inner, heads = attention.attn, attention.attn.num_attention_heads

        def scores(query: Tensor, states: Tensor) -> Tensor:
            bias = context.rows(context.positions[:1])[:, :, 0] + context.mask_bias[:, 0]
            return content_scores(inner.q, inner.k, heads, query, states) + bias

        def finish(context_vector: Tensor, residual: Tensor) -> Tensor:
            attended = attention.LayerNorm(attention.dropout(inner.o(context_vector)) + residual)
            state: Tensor = layer.output(layer.intermediate(attended), attended)
            return state

        return LayerParts(
            norm=None,
            scores=scores,
            value=Projection.of(inner.v),
            width=inner.q.in_features,
            attention_heads=heads,
            value_heads=heads,
            head_size=inner.attention_head_size,
            dropout=inner.dropout,
            finish=finish,
        )
