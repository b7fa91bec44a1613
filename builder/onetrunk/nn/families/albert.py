"""ALBERT: layers of BERT's form that have the weights of one, or of a few, and projected embeddings."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field
from torch import Tensor, nn

from onetrunk.nn.encoder import Encoder, LayerParts, Projection, output_of
from onetrunk.nn.families.bert import BertShape
from onetrunk.nn.families.electra import ProjectedEmbeddings
from onetrunk.nn.fold import content_scores
from onetrunk.nn.lean_imports import import_layers
from onetrunk.protocol.head_json import MAX_LAYERS, MAX_WIDTH

_layers = import_layers("transformers.models.albert.modeling_albert")


class _Shape(BertShape):
    vocab_size: int = Field(default=30_000, ge=1, le=2**22)
    embedding_size: int = Field(default=128, ge=1, le=MAX_WIDTH)
    hidden_size: int = Field(default=4096, ge=1, le=MAX_WIDTH)
    num_attention_heads: int = Field(default=64, ge=1, le=MAX_WIDTH)
    intermediate_size: int = Field(default=16_384, ge=1, le=16 * MAX_WIDTH)
    num_hidden_groups: int = Field(default=1, ge=1, le=MAX_LAYERS)
    inner_group_num: int = Field(default=1, ge=1, le=1)


class AlbertEncoder(Encoder):
    """The encoder of Hugging Face's ``AlbertModel``. Layers with the weights of one have them in a head, too."""

    family: ClassVar[str] = "albert"
    _hf_config, _hf_model = _layers.AlbertConfig, _layers.AlbertModel
    _hf_options: ClassVar[dict[str, Any]] = {"add_pooling_layer": False}

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        encoder = self._model.encoder
        self.embeddings = ProjectedEmbeddings(self._model.embeddings, encoder.embedding_hidden_mapping_in)
        a_group = config.num_hidden_layers / config.num_hidden_groups
        groups = [encoder.albert_layer_groups[int(place / a_group)] for place in range(config.num_hidden_layers)]
        self.layers = nn.ModuleList([group.albert_layers[0] for group in groups])

    @classmethod
    def count_parameters(cls, config: dict[str, Any]) -> int:
        """See ``Encoder.count_parameters``."""
        shape = _Shape.model_validate(config)
        narrow, width = shape.embedding_size, shape.hidden_size
        embeddings = (shape.embedding_rows + 2) * narrow + (narrow + 1) * width
        return embeddings + shape.num_hidden_groups * shape.layer_parameters

    @staticmethod
    def run_layer(layer: nn.Module, hidden_state: Tensor, context: Any) -> Tensor:
        """See ``Encoder.run_layer``."""
        return output_of(layer(hidden_state, context.mask_bias))

    @staticmethod
    def take_apart(layer: Any, context: Any) -> LayerParts:
        """See ``Encoder.take_apart``."""
        attention, heads = layer.attention, layer.attention.num_attention_heads

        def scores(query: Tensor, states: Tensor) -> Tensor:
            found = content_scores(attention.query, attention.key, heads, query, states)
            scored: Tensor = found + context.mask_bias[:, 0]
            return scored

        def finish(context_vector: Tensor, residual: Tensor) -> Tensor:
            attended = attention.LayerNorm(residual + attention.output_dropout(attention.dense(context_vector)))
            state: Tensor = layer.full_layer_layer_norm(layer.ff_chunk(attended) + attended)
            return state

        return LayerParts(
            norm=None,
            scores=scores,
            value=Projection.of(attention.value),
            width=attention.hidden_size,
            attention_heads=heads,
            value_heads=heads,
            head_size=attention.attention_head_size,
            dropout=attention.attention_dropout,
            finish=finish,
        )
