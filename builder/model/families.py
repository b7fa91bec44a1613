"""Which encoder families there are, by the ``model_type`` of their configuration."""

from __future__ import annotations

from builder.model.bert import BertEncoder
from builder.model.encoder import Encoder

FAMILIES: dict[str, type[Encoder]] = {family.family: family for family in (BertEncoder,)}
