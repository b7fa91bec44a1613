"""EuroBERT: rotary positions, norms before the parts, and heads of attention that share keys and values."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel, Field
from torch import Tensor, nn

from onetrunk.nn.encoder import Encoder, LayerParts, Projection
from onetrunk.nn.families.rotary import RotaryShared, check_rotary, rotary_scores, run_rotary_layer
from onetrunk.nn.lean_imports import import_layers
from onetrunk.protocol.head_json import MAX_LAYERS, MAX_TOKENS, MAX_WIDTH

_layers = import_layers("transformers.models.eurobert.modeling_eurobert")


class _Shape(BaseModel):
    """The numbers of config.json that decide how many parameters there are."""

    vocab_size: int = Field(default=128_256, ge=1, le=2**22)
    hidden_size: int = Field(default=768, ge=1, le=MAX_WIDTH)
    num_hidden_layers: int = Field(default=12, ge=1, le=MAX_LAYERS)
    num_attention_heads: int = Field(default=12, ge=1, le=MAX_WIDTH)
    num_key_value_heads: int | None = Field(default=None, ge=1, le=MAX_WIDTH)
    head_dim: int | None = Field(default=None, ge=1, le=MAX_WIDTH)
    intermediate_size: int = Field(default=3072, ge=1, le=16 * MAX_WIDTH)
    max_position_embeddings: int = Field(default=8192, ge=1, le=MAX_TOKENS)
    attention_bias: bool = False
    mlp_bias: bool = False


class EuroBertEncoder(Encoder):
    """The encoder of Hugging Face's ``EuroBertModel``."""

    family: ClassVar[str] = "eurobert"
    # Its norms are not recognised as such, so states are rounded once where other families' are rounded twice.
    fits_int8: ClassVar[bool] = False
    _hf_config, _hf_model = _layers.EuroBertConfig, _layers.EuroBertModel

    def __init__(self, config: Any) -> None:
        check_rotary(config)
        super().__init__(config)
        self.embeddings = nn.ModuleDict({"embed_tokens": self._model.embed_tokens})
        self.layers = self._model.layers
        self.shared = RotaryShared(self._model.rotary_emb, self._model.norm)

    @classmethod
    def check_form(cls, config: dict[str, Any]) -> None:
        """See ``Encoder.check_form``."""
        super().check_form(config)
        shape = _Shape.model_validate(config)
        heads, shared = shape.num_attention_heads, shape.num_key_value_heads
        if shared is not None and heads % shared:
            raise ValueError(
                f"num_key_value_heads is {shared}; allowed are divisors of num_attention_heads, which is {heads}"
            )

    @classmethod
    def count_parameters(cls, config: dict[str, Any]) -> int:
        """See ``Encoder.count_parameters``."""
        shape = _Shape.model_validate(config)
        width, inner, heads = shape.hidden_size, shape.intermediate_size, shape.num_attention_heads
        size = shape.head_dim or width // heads
        queries, keys = heads * size, (shape.num_key_value_heads or heads) * size
        attention = 2 * width * (queries + keys) + (queries + 2 * keys + width) * shape.attention_bias
        mlp = 3 * width * inner + (2 * inner + width) * shape.mlp_bias
        return shape.vocab_size * width + width + shape.num_hidden_layers * (attention + mlp + 2 * width)

    def embed(self, input_ids: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """See ``Encoder.embed``."""
        embeddings: Any = self.embeddings
        embedded: Tensor = embeddings["embed_tokens"](input_ids)
        return embedded

    @staticmethod
    def run_layer(layer: nn.Module, hidden_state: Tensor, context: Any) -> Tensor:
        """See ``Encoder.run_layer``."""
        return run_rotary_layer(layer, hidden_state, context)

    @staticmethod
    def take_apart(layer: Any, context: Any) -> LayerParts:
        """See ``Encoder.take_apart``."""
        attention, size = layer.self_attn, layer.self_attn.head_dim
        heads = attention.q_proj.out_features // size

        def scores(query: Tensor, states: Tensor) -> Tensor:
            queries = attention.q_proj(query).view(-1, heads, size)
            found = rotary_scores(queries, attention.k_proj(states), context.rotation)
            scored: Tensor = found + context.mask_bias[:, 0]
            return scored

        def dropout(weights: Tensor) -> Tensor:
            return nn.functional.dropout(weights, attention.attention_dropout, attention.training)

        def finish(context_vector: Tensor, residual: Tensor) -> Tensor:
            attended = residual + attention.o_proj(context_vector)
            state: Tensor = attended + layer.mlp(layer.post_attention_layernorm(attended))
            return state

        return LayerParts(
            norm=layer.input_layernorm,
            scores=scores,
            value=Projection.of(attention.v_proj),
            width=attention.v_proj.in_features,
            attention_heads=heads,
            value_heads=attention.v_proj.out_features // size,
            head_size=size,
            dropout=dropout,
            finish=finish,
        )
