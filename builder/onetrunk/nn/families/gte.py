"""GTE and NomicBERT: layers of BERT's order, with rotary positions and a gated FFN."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel, Field
from torch import Tensor, nn

from onetrunk.nn.encoder import Encoder, LayerParts, Projection
from onetrunk.nn.families.rotary import RotaryShared, check_rotary, rotary_scores, run_rotary_layer
from onetrunk.nn.lean_imports import import_layers
from onetrunk.protocol.head_json import MAX_LAYERS, MAX_TOKENS, MAX_WIDTH

_gte = import_layers("transformers.models.gte.modeling_gte")
_nomic = import_layers("transformers.models.nomic_bert.modeling_nomic_bert")


class _Shape(BaseModel):
    """The numbers of config.json that decide how many parameters there are."""

    vocab_size: int = Field(default=250_048, ge=1, le=2**22)
    hidden_size: int = Field(default=768, ge=1, le=MAX_WIDTH)
    num_hidden_layers: int = Field(default=12, ge=1, le=MAX_LAYERS)
    num_attention_heads: int = Field(default=12, ge=1, le=MAX_WIDTH)
    head_dim: int | None = Field(default=None, ge=1, le=MAX_WIDTH)
    intermediate_size: int = Field(default=3072, ge=1, le=16 * MAX_WIDTH)
    max_position_embeddings: int = Field(default=8192, ge=1, le=MAX_TOKENS)
    type_vocab_size: int = Field(default=1, ge=0, le=1024)


class _NomicShape(_Shape):
    vocab_size: int = Field(default=30_528, ge=1, le=2**22)
    max_position_embeddings: int = Field(default=2048, ge=1, le=MAX_TOKENS)
    type_vocab_size: int = Field(default=2, ge=1, le=1024)


class GteEncoder(Encoder):
    """The encoder of Hugging Face's ``GteModel``."""

    family: ClassVar[str] = "gte"
    shape: ClassVar[type[_Shape]] = _Shape
    biased: ClassVar[bool] = True
    _hf_config, _hf_model = _gte.GteConfig, _gte.GteModel
    _hf_options: ClassVar[dict[str, Any]] = {"add_pooling_layer": False}

    def __init__(self, config: Any) -> None:
        check_rotary(config)
        super().__init__(config)
        self.embeddings = self._model.embeddings
        self.layers = self._model.layers
        self.shared = RotaryShared(self._model.rotary_emb)

    @classmethod
    def check_form(cls, config: dict[str, Any]) -> None:
        """See ``Encoder.check_form``."""
        super().check_form(config)
        # Configurations for code of the authors' own have other names for the sizes, and forms that this code lacks.
        if strange := sorted({"n_embd", "n_layer", "n_head", "n_inner"} & config.keys()):
            raise ValueError(
                f"{', '.join(strange)} are of the authors' own code; allowed is the form of transformers' "
                f"{cls._hf_model.__name__}: load it with transformers and save it again"
            )

    @classmethod
    def count_parameters(cls, config: dict[str, Any]) -> int:
        """See ``Encoder.count_parameters``."""
        shape = cls.shape.model_validate(config)
        width, inner, heads = shape.hidden_size, shape.intermediate_size, shape.num_attention_heads
        all_heads = heads * (shape.head_dim or width // heads)
        biases = (3 * all_heads + width + width) * cls.biased
        layer = 4 * width * all_heads + 3 * width * inner + biases + 4 * width
        return (shape.vocab_size + shape.type_vocab_size + 2) * width + shape.num_hidden_layers * layer

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
            attended = attention.o_proj(context_vector)
            attended = layer.post_attention_layernorm(residual + layer.post_attention_dropout(attended))
            state: Tensor = layer.post_mlp_layernorm(attended + layer.post_mlp_dropout(layer.mlp(attended)))
            return state

        return LayerParts(
            norm=None,
            scores=scores,
            value=Projection.of(attention.v_proj),
            width=attention.v_proj.in_features,
            attention_heads=heads,
            value_heads=heads,
            head_size=size,
            dropout=dropout,
            finish=finish,
        )


class NomicBertEncoder(GteEncoder):
    """The encoder of Hugging Face's ``NomicBertModel``."""

    family: ClassVar[str] = "nomic_bert"
    shape: ClassVar[type[_Shape]] = _NomicShape
    biased: ClassVar[bool] = False
    _hf_config, _hf_model = _nomic.NomicBertConfig, _nomic.NomicBertModel
