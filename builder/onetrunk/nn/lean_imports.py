"""Imports the encoder's layers without torch's compiler and what is for training on many machines.

`transformers` imports both with any model, which takes half of the processor time of a short command. It needs nothing
of them but marks on its functions. Only commands ask for this, since their process is theirs alone: for `transformers`,
what is left out is missing until it ends.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any
from unittest import mock

_COMPILER = "torch._dynamo"
_wanted = False


def import_lean() -> None:
    """Have encoders imported without what is left out, from now on. Nothing is imported yet."""
    global _wanted
    _wanted = True


def import_layers(module: str) -> Any:
    """Return a module of `transformers`, lean if that was asked for and something else has not imported it whole."""
    if not _wanted or _COMPILER in sys.modules:
        return importlib.import_module(module)
    import torch
    from transformers import utils

    stand_ins = _stand_ins()
    sys.modules.update(stand_ins)
    try:
        # transformers goes without what is not there: the first is missing in some builds of torch, the other is needed
        # for losses of object detection.
        with (
            mock.patch.object(torch.distributed, "is_available", return_value=False),
            mock.patch.object(utils, "is_scipy_available", return_value=False),
        ):
            return importlib.import_module(module)
    finally:
        for name in stand_ins:
            del sys.modules[name]


def _stand_ins() -> dict[str, ModuleType]:
    """Return modules in the compiler's place: everything in it marks functions, and does not change them."""
    compiler, wrapped = _Marks(_COMPILER), _Marks(f"{_COMPILER}._trace_wrapped_higher_order_op")
    return {module.__name__: module for module in (compiler, wrapped)}


class _Marks(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _mark


def _mark(function: Any = None, *options: Any, **more: Any) -> Any:
    return function if function is not None else _mark
