"""BERT behind the encoder adapter, with the layers of Hugging Face's implementation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn

from onetrunk.nn.encoder import Encoder, LayerParts
from onetrunk.nn.lean_imports import import_layers
from onetrunk.protocol.head_json import MAX_LAYERS, MAX_TOKENS, MAX_WIDTH

if TYPE_CHECKING:
    from transformers import BertConfig
    from transformers.models.bert.modeling_bert import BertModel
else:
    _layers = import_layers("transformers.models.bert.modeling_bert")
    BertConfig, BertModel = _layers.BertConfig, _layers.BertModel


class _Shape(BaseModel):
    """The numbers of config.json that decide how many parameters there are. Absent ones are those of BERT-base."""

    vocab_size: int = Field(default=30_522, ge=1, le=2**22)
    hidden_size: int = Field(default=768, ge=1, le=MAX_WIDTH)
    num_hidden_layers: int = Field(default=12, ge=1, le=MAX_LAYERS)
    num_attention_heads: int = Field(default=12, ge=1, le=MAX_WIDTH)
    intermediate_size: int = Field(default=3072, ge=1, le=16 * MAX_WIDTH)
    max_position_embeddings: int = Field(default=512, ge=1, le=MAX_TOKENS)
    type_vocab_size: int = Field(default=2, ge=1, le=1024)


class BertEncoder(Encoder):
    """The encoder of Hugging Face's ``BertModel``."""

    family: ClassVar[str] = "bert"

    def __init__(self, config: BertConfig) -> None:
        # Every exporter and every transformers release supports eager attention.
        model = BertModel._from_config(config, attn_implementation="eager", add_pooling_layer=False)
        self._model = model
        self.embeddings = model.embeddings
        self.layers = model.encoder.layer
        self.width = config.hidden_size
        self.vocab_size = config.vocab_size
        self.max_positions = config.max_position_embeddings
        self.pad_token_id = config.pad_token_id or 0

    @classmethod
    def count_parameters(cls, config: dict[str, Any]) -> int:
        """See ``Encoder.count_parameters``."""
        shape = _Shape.model_validate(config)
        width, inner = shape.hidden_size, shape.intermediate_size
        rows = shape.vocab_size + shape.max_position_embeddings + shape.type_vocab_size
        layer = 4 * width * (width + 1) + 2 * width * inner + inner + width + 4 * width
        return (rows + 2) * width + shape.num_hidden_layers * layer

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> BertEncoder:
        """See ``Encoder.from_config``."""
        # A dtype in it is that of the stored weights; a trunk computes in fp32.
        numbers = {name: value for name, value in config.items() if name not in ("dtype", "torch_dtype")}
        return cls(BertConfig.from_dict(numbers))

    def embed(self, input_ids: Tensor, token_type_ids: Tensor) -> Tensor:
        """See ``Encoder.embed``."""
        embedded: Tensor = self.embeddings(input_ids=input_ids, token_type_ids=token_type_ids)
        return embedded

    @staticmethod
    def mask_bias(attention_mask: Tensor, like: Tensor) -> Tensor:
        """See ``Encoder.mask_bias``."""
        return (1.0 - attention_mask[:, None, None, :].to(like.dtype)) * torch.finfo(like.dtype).min

    @staticmethod
    def run_layer(layer: nn.Module, hidden_state: Tensor, mask_bias: Tensor) -> Tensor:
        """See ``Encoder.run_layer``."""
        result = layer(hidden_state, mask_bias)
        # transformers 4 returns a tuple, 5 the tensor.
        state: Tensor = result[0] if isinstance(result, tuple) else result
        return state

    @staticmethod
    def take_apart(layer: nn.Module) -> LayerParts:
        """See ``Encoder.take_apart``."""
        attention: Any = layer.attention
        inner: Any = attention.self

        def finish(context: Tensor, residual: Tensor) -> Tensor:
            attended = attention.output(context, residual)
            state: Tensor = layer.output(layer.intermediate(attended), attended)  # type: ignore[operator]
            return state

        return LayerParts(
            query=inner.query,
            key=inner.key,
            value=inner.value,
            attention_heads=inner.num_attention_heads,
            dropout=inner.dropout,
            finish=finish,
        )
