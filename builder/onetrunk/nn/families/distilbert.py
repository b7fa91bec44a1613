"""DistilBERT: layers of BERT's form under names of their own, and no token types."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel, Field
from torch import Tensor, nn

from onetrunk.nn.encoder import Encoder, LayerContext, LayerParts, Projection, output_of
from onetrunk.nn.fold import content_scores
from onetrunk.nn.lean_imports import import_layers
from onetrunk.protocol.head_json import MAX_LAYERS, MAX_TOKENS, MAX_WIDTH

_layers = import_layers("transformers.models.distilbert.modeling_distilbert")

# The configuration class knows some numbers by the names that other families use, too.
_COMMON_NAMES = {"dim": "hidden_size", "n_layers": "num_hidden_layers", "n_heads": "num_attention_heads"}


class _Shape(BaseModel):
    """The numbers of config.json that decide how many parameters there are."""

    vocab_size: int = Field(default=30_522, ge=1, le=2**22)
    dim: int = Field(default=768, ge=1, le=MAX_WIDTH)
    n_layers: int = Field(default=6, ge=1, le=MAX_LAYERS)
    n_heads: int = Field(default=12, ge=1, le=MAX_WIDTH)
    hidden_dim: int = Field(default=3072, ge=1, le=16 * MAX_WIDTH)
    max_position_embeddings: int = Field(default=512, ge=1, le=MAX_TOKENS)


class DistilBertEncoder(Encoder):
    """The encoder of Hugging Face's ``DistilBertModel``."""

    family: ClassVar[str] = "distilbert"
    _hf_config, _hf_model = _layers.DistilBertConfig, _layers.DistilBertModel

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.embeddings = self._model.embeddings
        self.layers = self._model.transformer.layer

    @classmethod
    def count_parameters(cls, config: dict[str, Any]) -> int:
        """See ``Encoder.count_parameters``."""
        own_names = {common: own for own, common in _COMMON_NAMES.items()}
        shape = _Shape.model_validate({own_names.get(name, name): value for name, value in config.items()})
        width, inner = shape.dim, shape.hidden_dim
        layer = 4 * width * (width + 1) + 2 * width * inner + inner + width + 4 * width
        return (shape.vocab_size + shape.max_position_embeddings + 2) * width + shape.n_layers * layer

    @classmethod
    def check_form(cls, config: dict[str, Any]) -> None:
        """See ``Encoder.check_form``."""
        super().check_form(config)
        for own, common in _COMMON_NAMES.items():
            if own in config and config.get(common, config[own]) != config[own]:
                raise ValueError(f"{own} and {common} are two names of one number, and differ")

    def embed(self, input_ids: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        """See ``Encoder.embed``."""
        embedded: Tensor = self.embeddings(input_ids)
        return embedded

    @staticmethod
    def run_layer(layer: nn.Module, hidden_state: Tensor, context: LayerContext) -> Tensor:
        """See ``Encoder.run_layer``."""
        return output_of(layer(hidden_state, context.mask_bias))

    @staticmethod
    def take_apart(layer: Any, context: LayerContext) -> LayerParts:
        """See ``Encoder.take_apart``."""
        attention = layer.attention

        def scores(query: Tensor, states: Tensor) -> Tensor:
            found = content_scores(attention.q_lin, attention.k_lin, attention.n_heads, query, states)
            return found + context.mask_bias[:, 0]

        def finish(context_vector: Tensor, residual: Tensor) -> Tensor:
            attended = layer.sa_layer_norm(attention.out_lin(context_vector) + residual)
            state: Tensor = layer.output_layer_norm(layer.ffn(attended) + attended)
            return state

        return LayerParts(
            norm=None,
            scores=scores,
            value=Projection.of(attention.v_lin),
            width=attention.dim,
            attention_heads=attention.n_heads,
            value_heads=attention.n_heads,
            head_size=attention.attention_head_size,
            dropout=attention.dropout,
            finish=finish,
        )
