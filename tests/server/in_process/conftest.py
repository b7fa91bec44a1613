"""Triton's side of a Python model, so that the model files run inside the test process."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[3]


class TritonModelException(Exception):
    pass


class TritonError:
    INVALID_ARG = 3
    INTERNAL = 1

    def __init__(self, message: str, code: int = INTERNAL) -> None:
        self.message, self.code = message, code


@dataclass
class Tensor:
    name_: str
    value: np.ndarray

    def name(self) -> str:
        return self.name_

    def as_numpy(self) -> np.ndarray:
        return self.value


@dataclass
class InferenceResponse:
    output_tensors: list[Tensor] = field(default_factory=list)
    error: TritonError | None = None

    def values(self) -> dict[str, np.ndarray]:
        """The response's outputs; a response that is an error has none to give."""
        assert self.error is None, self.error.message
        return {tensor.name(): tensor.as_numpy() for tensor in self.output_tensors}


@dataclass
class Request:
    tensors: dict[str, np.ndarray]
    wanted: list[str]

    def requested_output_names(self) -> list[str]:
        return self.wanted


def get_input_tensor_by_name(request: Request, name: str) -> Tensor | None:
    return Tensor(name, request.tensors[name]) if name in request.tensors else None


@pytest.fixture
def triton(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """`triton_python_backend_utils` as far as the models use it, and `Request` to ask them with."""
    module = ModuleType("triton_python_backend_utils")
    for thing in (TritonModelException, TritonError, Tensor, InferenceResponse, Request, get_input_tensor_by_name):
        setattr(module, thing.__name__, thing)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


@pytest.fixture
def load(triton: ModuleType) -> Callable[[str], Any]:
    """Imports a model file by its path below the checkout, as Triton's stub does."""

    def load(path: str) -> Any:
        spec = importlib.util.spec_from_file_location(path.replace("/", "_").removesuffix(".py"), ROOT / path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        # dataclasses look their module up by name while they are made
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        return module

    return load
