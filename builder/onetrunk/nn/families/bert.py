"""BERT behind the encoder adapter, and what other families of its form share with it."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel, Field
from torch import Tensor, nn

from onetrunk.nn.encoder import Encoder, LayerParts, Projection, output_of
from onetrunk.nn.fold import content_scores
from onetrunk.nn.lean_imports import import_layers
from onetrunk.protocol.head_json import MAX_LAYERS, MAX_TOKENS, MAX_WIDTH


class BertShape(BaseModel):
    """The numbers of config.json that decide how many parameters there are. Absent ones are those of BERT-base."""

    vocab_size: int = Field(default=30_522, ge=1, le=2**22)
    hidden_size: int = Field(default=768, ge=1, le=MAX_WIDTH)
    num_hidden_layers: int = Field(default=12, ge=1, le=MAX_LAYERS)
    num_attention_heads: int = Field(default=12, ge=1, le=MAX_WIDTH)
    intermediate_size: int = Field(default=3072, ge=1, le=16 * MAX_WIDTH)
    max_position_embeddings: int = Field(default=512, ge=1, le=MAX_TOKENS)
    type_vocab_size: int = Field(default=2, ge=1, le=1024)

    @property
    def layer_parameters(self) -> int:
        """The number of parameters of one layer."""
        width, inner = self.hidden_size, self.intermediate_size
        return 4 * width * (width + 1) + 2 * width * inner + inner + width + 4 * width

    @property
    def embedding_rows(self) -> int:
        """The number of embeddings: of tokens, positions and types."""
        return self.vocab_size + self.max_position_embeddings + self.type_vocab_size


class BertFormEncoder(Encoder):
    """An encoder with layers of BERT's form: absolute positions, norms after attention and FFN."""

    shape: ClassVar[type[BertShape]] = BertShape

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.embeddings = self._model.embeddings
        self.layers = self._model.encoder.layer

    @classmethod
    def count_parameters(cls, config: dict[str, Any]) -> int:
        """See ``Encoder.count_parameters``."""
        shape = cls.shape.model_validate(config)
        return (shape.embedding_rows + 2) * shape.hidden_size + shape.num_hidden_layers * shape.layer_parameters

    @staticmethod
    def run_layer(layer: nn.Module, hidden_state: Tensor, context: Any) -> Tensor:
        """See ``Encoder.run_layer``."""
        return output_of(layer(hidden_state, context.mask_bias))

    @staticmethod
    def take_apart(layer: Any, context: Any) -> LayerParts:
        """See ``Encoder.take_apart``."""
        attention = layer.attention
        inner, heads = attention.self, attention.self.num_attention_heads

        def scores(query: Tensor, states: Tensor) -> Tensor:
            scored: Tensor = content_scores(inner.query, inner.key, heads, query, states) + context.mask_bias[:, 0]
            return scored

        def finish(context_vector: Tensor, residual: Tensor) -> Tensor:
            attended = attention.output(context_vector, residual)
            state: Tensor = layer.output(layer.intermediate(attended), attended)
            return state

        return LayerParts(
            norm=None,
            scores=scores,
            value=Projection.of(inner.value),
            width=inner.query.in_features,
            attention_heads=heads,
            value_heads=heads,
            head_size=inner.attention_head_size,
            dropout=inner.dropout,
            finish=finish,
        )


_layers = import_layers("transformers.models.bert.modeling_bert")


class BertEncoder(BertFormEncoder):
    """The encoder of Hugging Face's ``BertModel``."""

    family: ClassVar[str] = "bert"
    _hf_config, _hf_model = _layers.BertConfig, _layers.BertModel
    _hf_options: ClassVar[dict[str, Any]] = {"add_pooling_layer": False}
