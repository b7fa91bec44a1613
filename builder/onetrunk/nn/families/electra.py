"""ELECTRA: BERT's layers above embeddings that may be narrower, and are then projected."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field
from torch import Tensor, nn

from onetrunk.nn.families.bert import BertFormEncoder, BertShape
from onetrunk.nn.lean_imports import import_layers
from onetrunk.protocol.head_json import MAX_WIDTH

_layers = import_layers("transformers.models.electra.modeling_electra")


class _Shape(BertShape):
    embedding_size: int = Field(default=128, ge=1, le=MAX_WIDTH)
    hidden_size: int = Field(default=256, ge=1, le=MAX_WIDTH)
    num_attention_heads: int = Field(default=4, ge=1, le=MAX_WIDTH)
    intermediate_size: int = Field(default=1024, ge=1, le=16 * MAX_WIDTH)


class ElectraEncoder(BertFormEncoder):
    """The encoder of Hugging Face's ``ElectraModel``."""

    family: ClassVar[str] = "electra"
    _hf_config, _hf_model = _layers.ElectraConfig, _layers.ElectraModel

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.embeddings = ProjectedEmbeddings(self._model.embeddings, getattr(self._model, "embeddings_project", None))

    @classmethod
    def count_parameters(cls, config: dict[str, Any]) -> int:
        """See ``Encoder.count_parameters``."""
        shape = _Shape.model_validate(config)
        narrow, width = shape.embedding_size, shape.hidden_size
        projection = (narrow + 1) * width if narrow != width else 0
        return (shape.embedding_rows + 2) * narrow + projection + shape.num_hidden_layers * shape.layer_parameters


class ProjectedEmbeddings(nn.Module):
    """Embeddings and their projection to the width of the hidden states, if there is one."""

    def __init__(self, embeddings: nn.Module, projection: nn.Module | None) -> None:
        super().__init__()
        self.embeddings, self.projection = embeddings, projection

    def forward(self, input_ids: Tensor, token_type_ids: Tensor) -> Tensor:
        """Return the embeddings. *Shapes:* (batch_size, tokens), then (batch_size, tokens, width)."""
        state: Tensor = self.embeddings(input_ids=input_ids, token_type_ids=token_type_ids)
        return state if self.projection is None else self.projection(state)
