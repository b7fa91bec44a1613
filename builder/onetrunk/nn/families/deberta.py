"""DeBERTa-v2 and -v3: BERT's layers, whose scores have terms for the relative position of query and token.

With q and k the content's queries and keys, and r(i, j) the bucket of the distance i - j, each head scores

    q_i k_j + q_i K_r(i,j) + k_j Q_r(i,j)    over sqrt(3 d)

where K and Q are keys and queries of the embeddings of relative positions. For the one query of the fold, the keys of
the first two terms move to the query's side. In the third they move to the side of the positions: it is a product of
states with a table of one row for each bucket and head, which depends on no text. There, the key bias does not cancel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from onetrunk.nn.encoder import LayerContext, LayerParts, Projection, SharedParts, mask_bias, output_of, token_positions
from onetrunk.nn.families.bert import BertFormEncoder, BertShape
from onetrunk.nn.fold import content_scores
from onetrunk.nn.lean_imports import import_layers
from onetrunk.protocol.head_json import MAX_TOKENS, MAX_WIDTH

_layers = import_layers("transformers.models.deberta_v2.modeling_deberta_v2")


class _Shape(BertShape):
    vocab_size: int = Field(default=128_100, ge=1, le=2**22)
    hidden_size: int = Field(default=1536, ge=1, le=MAX_WIDTH)
    num_hidden_layers: int = Field(default=24, ge=1, le=128)
    num_attention_heads: int = Field(default=24, ge=1, le=MAX_WIDTH)
    intermediate_size: int = Field(default=6144, ge=1, le=16 * MAX_WIDTH)
    type_vocab_size: int = Field(default=0, ge=0, le=1024)
    embedding_size: int | None = Field(default=None, ge=1, le=MAX_WIDTH)
    position_buckets: int = Field(default=-1, ge=-1, le=MAX_TOKENS)
    max_relative_positions: int = Field(default=-1, ge=-1, le=MAX_TOKENS)
    position_biased_input: bool = True
    share_att_key: bool = False
    pos_att_type: str | list[str] | None = None
    norm_rel_ebd: str = "none"

    @property
    def span(self) -> int:
        """The number of relative positions to each side."""
        if self.position_buckets > 0:
            return self.position_buckets
        return self.max_relative_positions if self.max_relative_positions > 0 else self.max_position_embeddings


@dataclass(frozen=True)
class _Context(LayerContext):
    """Beside the mask, what depends on positions.

    Attributes:
        attention_mask: *Shape:* (batch_size, tokens)
        buckets: The bucket of each distance between query and token. *Shape:* (1, tokens, tokens)
        embeddings: Those of relative positions. *Shape:* (2 * span, width)
    """

    attention_mask: Tensor
    buckets: Tensor
    embeddings: Tensor


class _RelativePositions(SharedParts):
    def __init__(self, encoder: Any, longest: int) -> None:
        super().__init__()
        self.embeddings = encoder.rel_embeddings
        self.norm = getattr(encoder, "LayerNorm", None)
        self.longest = longest
        # As a table, since another runtime's logarithm could put a distance into the neighbouring bucket.
        distances = torch.arange(1 - longest, longest)
        if encoder.position_buckets > 0:
            distances = _layers.make_log_bucket_position(
                distances, encoder.position_buckets, encoder.max_relative_positions
            ).long()
        self.register_buffer("bucket_of_distance", distances, persistent=False)

    def prepare(self, attention_mask: Tensor, like: Tensor, *, query_in_front: bool = False) -> _Context:
        """See ``SharedParts.prepare``."""
        positions = token_positions(attention_mask, query_in_front=query_in_front)
        distances = positions[:, None] - positions[None, :]
        buckets = self.get_buffer("bucket_of_distance")[distances + self.longest - 1]
        embeddings = self.embeddings.weight if self.norm is None else self.norm(self.embeddings.weight)
        return _Context(mask_bias(attention_mask, like), attention_mask, buckets[None], embeddings)


class DebertaEncoder(BertFormEncoder):
    """The encoder of Hugging Face's ``DebertaV2Model``."""

    family: ClassVar[str] = "deberta-v2"
    shape: ClassVar[type[BertShape]] = _Shape
    _hf_config, _hf_model = _layers.DebertaV2Config, _layers.DebertaV2Model

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.shared = _RelativePositions(self._model.encoder, config.max_position_embeddings)

    @classmethod
    def check_form(cls, config: dict[str, Any]) -> None:
        """See ``Encoder.check_form``."""
        super().check_form(config)
        if config.get("conv_kernel_size"):
            raise ValueError("conv_kernel_size is set, a convolution beside the first layer; allowed are layers alone")
        if not config.get("relative_attention"):
            raise ValueError("relative_attention is false; allowed is true")
        if config.get("norm_rel_ebd", "none") not in ("none", "layer_norm"):
            raise ValueError(f"norm_rel_ebd is {config['norm_rel_ebd']!r:.40}; allowed are 'none' and 'layer_norm'")
        if "attention_head_size" in config:
            raise ValueError("attention_head_size is set; allowed are heads of width / number of heads")

    @classmethod
    def count_parameters(cls, config: dict[str, Any]) -> int:
        """See ``Encoder.count_parameters``."""
        shape = _Shape.model_validate(config)
        width, narrow = shape.hidden_size, shape.embedding_size or shape.hidden_size
        rows = shape.vocab_size + shape.type_vocab_size + shape.max_position_embeddings * shape.position_biased_input
        embeddings = rows * narrow + (narrow * width if narrow != width else 0) + 2 * width
        terms = sum(term in (shape.pos_att_type or ()) for term in ("c2p", "p2c"))
        own_projections = 0 if shape.share_att_key else terms * width * (width + 1)
        relative = 2 * shape.span * width + 2 * width * (shape.norm_rel_ebd == "layer_norm")
        return embeddings + relative + shape.num_hidden_layers * (shape.layer_parameters + own_projections)

    @staticmethod
    def run_layer(layer: nn.Module, hidden_state: Tensor, context: _Context) -> Tensor:
        """See ``Encoder.run_layer``."""
        read = context.attention_mask[:, None, None, :].bool()
        result = layer(hidden_state, read, relative_pos=context.buckets, rel_embeddings=context.embeddings)
        return output_of(result)

    @staticmethod
    def take_apart(layer: Any, context: _Context) -> LayerParts:
        """See ``Encoder.take_apart``."""
        attention = layer.attention
        inner = attention.self
        heads, size = inner.num_attention_heads, inner.attention_head_size
        terms = [term for term in ("c2p", "p2c") if term in inner.pos_att_type]
        scale = (1 + len(terms)) ** -0.5

        def scores(query: Tensor, states: Tensor) -> Tensor:
            found = content_scores(inner.query_proj, inner.key_proj, heads, query, states) * scale
            # Tokens stand behind the query, so that only the lower half of the embeddings is needed.
            span = inner.pos_ebd_size
            embeddings = inner.pos_dropout(context.embeddings)[: span + 1]
            rows = torch.clamp(context.buckets[0, 0] + span, 0, span)
            if "c2p" in terms:
                project = inner.key_proj if inner.share_att_key else inner.pos_key_proj
                keys = project(embeddings).view(-1, heads, size)[rows].permute(1, 2, 0)  # (heads, size, tokens)
                queries = inner.query_proj(query).view(-1, heads, size).transpose(0, 1)
                found = found + torch.matmul(queries, keys).transpose(0, 1) * (scale * size**-0.5)
            if "p2c" in terms:
                project = inner.query_proj if inner.share_att_key else inner.pos_query_proj
                queries = project(embeddings).view(-1, heads, size).transpose(0, 1)  # (heads, buckets, size)
                key_weight = inner.key_proj.weight.view(heads, size, -1)
                table = torch.matmul(queries, key_weight).permute(1, 2, 0)[rows]  # (tokens, width, heads)
                of_bias = torch.matmul(queries, inner.key_proj.bias.view(heads, size, 1))[:, :, 0]
                by_token = torch.matmul(states.transpose(0, 1), table).permute(1, 2, 0)
                found = found + (by_token + of_bias[:, rows]) * (scale * size**-0.5)
            scored: Tensor = found + context.mask_bias[:, 0]
            return scored

        def finish(context_vector: Tensor, residual: Tensor) -> Tensor:
            attended = attention.output(context_vector, residual)
            state: Tensor = layer.output(layer.intermediate(attended), attended)
            return state

        return LayerParts(
            norm=None,
            scores=scores,
            value=Projection.of(inner.value_proj),
            width=inner.query_proj.in_features,
            attention_heads=heads,
            value_heads=heads,
            head_size=size,
            dropout=inner.dropout,
            finish=finish,
        )
