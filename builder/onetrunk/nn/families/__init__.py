"""The families of encoders: one module for each, or for kin, imported when a trunk of it is loaded."""

from __future__ import annotations

import importlib

from onetrunk.nn.encoder import Encoder
from onetrunk.protocol.errors import UserError

# The `model_type` of a Hugging Face configuration -> the module, and the class in it. Each imports its own layers of
# `transformers`, which takes a second or more.
_FAMILIES = {
    "bert": ("bert", "BertEncoder"),
    "roberta": ("roberta", "RobertaEncoder"),
    "xlm-roberta": ("roberta", "XlmRobertaEncoder"),
    "camembert": ("roberta", "CamembertEncoder"),
    "electra": ("electra", "ElectraEncoder"),
    "distilbert": ("distilbert", "DistilBertEncoder"),
    "mpnet": ("mpnet", "MpnetEncoder"),
    "modernbert": ("modernbert", "ModernBertEncoder"),
    "deberta-v2": ("deberta", "DebertaEncoder"),
    "eurobert": ("eurobert", "EuroBertEncoder"),
    "gte": ("gte", "GteEncoder"),
    "nomic_bert": ("gte", "NomicBertEncoder"),
    "albert": ("albert", "AlbertEncoder"),
}

FAMILIES = tuple(_FAMILIES)
"""The ``model_type`` of every family there is."""

# The signatures of the layers settled there. BERT's were the same before.
_TRANSFORMERS = (5, 20)


def find_family(model_type: str) -> type[Encoder]:
    """Import a family.

    Args:
        model_type: One of ``FAMILIES``.

    Raises:
        KeyError: There is no such family.
        UserError: The `transformers` that is installed is too old for it.
    """
    module, name = _FAMILIES[model_type]
    if model_type != "bert":
        _check_transformers(model_type)
    family: type[Encoder] = getattr(importlib.import_module(f"{__name__}.{module}"), name)
    return family


def _check_transformers(model_type: str) -> None:
    from transformers import __version__

    if tuple(int(part) for part in __version__.split(".")[:2]) < _TRANSFORMERS:
        floor = ".".join(map(str, _TRANSFORMERS))
        raise UserError(
            f"a trunk of family {model_type!r} needs transformers {floor} or newer, and {__version__} is installed: "
            f"pip install 'transformers>={floor}'"
        )
