"""RoBERTa and its kin, XLM-RoBERTa and CamemBERT: BERT's layers, with positions counted from the padding's id."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import Field

from onetrunk.nn.families.bert import BertFormEncoder, BertShape
from onetrunk.nn.lean_imports import import_layers
from onetrunk.protocol.head_json import MAX_TOKENS

_roberta = import_layers("transformers.models.roberta.modeling_roberta")
_xlm_roberta = import_layers("transformers.models.xlm_roberta.modeling_xlm_roberta")
_camembert = import_layers("transformers.models.camembert.modeling_camembert")


class _Shape(BertShape):
    vocab_size: int = Field(default=50_265, ge=1, le=2**22)
    # The padding's own position and those below it are no token's.
    max_position_embeddings: int = Field(default=512, ge=3, le=MAX_TOKENS)


class RobertaEncoder(BertFormEncoder):
    """The encoder of Hugging Face's ``RobertaModel``."""

    family: ClassVar[str] = "roberta"
    shape: ClassVar[type[BertShape]] = _Shape
    _hf_config, _hf_model = _roberta.RobertaConfig, _roberta.RobertaModel
    _hf_options: ClassVar[dict[str, Any]] = {"add_pooling_layer": False}

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        # The first token stands at the padding's id + 1: of 514 positions, 512 are tokens'.
        self.max_positions = config.max_position_embeddings - config.pad_token_id - 1

    @classmethod
    def check_form(cls, config: dict[str, Any]) -> None:
        """See ``Encoder.check_form``."""
        super().check_form(config)
        if config.get("pad_token_id", 1) is None:
            raise ValueError("pad_token_id is null; positions are counted from it: give the padding's id")


class XlmRobertaEncoder(RobertaEncoder):
    """The encoder of Hugging Face's ``XLMRobertaModel``."""

    family: ClassVar[str] = "xlm-roberta"
    _hf_config, _hf_model = _xlm_roberta.XLMRobertaConfig, _xlm_roberta.XLMRobertaModel


class CamembertEncoder(RobertaEncoder):
    """The encoder of Hugging Face's ``CamembertModel``."""

    family: ClassVar[str] = "camembert"
    _hf_config, _hf_model = _camembert.CamembertConfig, _camembert.CamembertModel
