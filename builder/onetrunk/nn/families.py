"""Which encoder families there are, by the ``model_type`` of their configuration."""

from __future__ import annotations

from onetrunk.nn.bert import BertEncoder
from onetrunk.nn.encoder import Encoder

FAMILIES: dict[str, type[Encoder]] = {family.family: family for family in (BertEncoder,)}
