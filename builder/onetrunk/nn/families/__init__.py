"""The families of encoders: one module for each, or for kin, imported when a trunk of it is loaded."""

from __future__ import annotations

import importlib

from onetrunk.nn.encoder import Encoder

# The `model_type` of a Hugging Face configuration -> the module, and the class in it. Each imports its own layers of
# `transformers`, which takes a second or more.
_FAMILIES = {
    "bert": ("bert", "BertEncoder"),
}

FAMILIES = tuple(_FAMILIES)
"""The ``model_type`` of every family there is."""


def find_family(model_type: str) -> type[Encoder]:
    """Import a family.

    Args:
        model_type: One of ``FAMILIES``.

    Raises:
        KeyError: There is no such family.
    """
    module, name = _FAMILIES[model_type]
    family: type[Encoder] = getattr(importlib.import_module(f"{__name__}.{module}"), name)
    return family
