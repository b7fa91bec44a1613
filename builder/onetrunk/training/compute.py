"""Where training runs, and in which data type the frozen trunk computes the states that are cached."""

from __future__ import annotations

import functools
import platform
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch

from onetrunk.machine import processor_name
from onetrunk.nn.trunk import Trunk
from onetrunk.protocol.errors import UserError

DeviceName = Literal["auto", "cpu", "cuda"]
TrunkDtype = Literal["auto", "fp32", "bf16"]

# The default trunk's error at tap 5 is 0.005. A trunk whose error is more than four times as large runs in fp32.
_MAX_RELATIVE_ERROR = 0.02
# How many times as fast a product has to be in bf16 for the pass as a whole to gain.
_FAST = 1.5


@dataclass(frozen=True)
class ComputeConfig:
    """The device of a training, and the data type of the trunk's forward pass.

    Heads are always trained and evaluated in fp32; see ``Recipe.mixed_precision`` for the exception.

    Attributes:
        device: ``cpu`` or ``cuda``.
        trunk_dtype: ``fp32`` or ``bf16``.
    """

    device: Literal["cpu", "cuda"]
    trunk_dtype: Literal["fp32", "bf16"]

    @property
    def exact(self) -> ComputeConfig:
        """The same device in fp32.

        Heads are served on fp32 states, so dev scores are measured on these: bf16 moves a score by up to half a point,
        either way.
        """
        return ComputeConfig(self.device, "fp32")

    @property
    def identity(self) -> str:
        """The text that stands for this configuration in a run's key."""
        # Runs recorded on disk are found by keys that hash exactly this text.
        return f"Arithmetic(device={self.device!r}, precision={self.trunk_dtype!r})"

    def context(self) -> AbstractContextManager[object]:
        """Return a context in which the trunk runs in its data type. The states that it returns are fp32 either way."""
        if self.trunk_dtype == "fp32":
            return nullcontext()
        return torch.autocast(self.device, torch.bfloat16)


def choose_device(device: DeviceName = "auto") -> Literal["cpu", "cuda"]:
    """Resolve ``auto``: CUDA where it is available.

    Args:
        device: The requested device.

    Raises:
        UserError: CUDA was requested and is not available.
    """
    cuda = torch.cuda.is_available()
    if device == "cuda" and not cuda:
        raise UserError("--device cuda: torch finds no CUDA device here; allowed are auto, cpu")
    return "cuda" if cuda and device != "cpu" else "cpu"


def choose_compute(trunk: Trunk, device: DeviceName = "auto", trunk_dtype: TrunkDtype = "auto") -> ComputeConfig:
    """Resolve ``auto``: CUDA where it is available, and bf16 where it is fast and accurate enough on this trunk.

    Args:
        trunk: The trunk whose accuracy in bf16 is measured where both are possible.
        device: The requested device.
        trunk_dtype: The requested data type of the trunk's forward pass.

    Raises:
        UserError: CUDA was requested and is not available.
    """
    where = choose_device(device)
    if trunk_dtype != "auto":
        return ComputeConfig(where, trunk_dtype)
    fast = torch.cuda.is_bf16_supported() if where == "cuda" else _cpu_has_fast_bf16()
    if fast and _relative_error(trunk, ComputeConfig(where, "bf16")) <= _MAX_RELATIVE_ERROR:
        return ComputeConfig(where, "bf16")
    return ComputeConfig(where, "fp32")


def describe_machine() -> str:
    """Return the processor or GPU with the versions of Python and torch, for a record."""
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, {versions}"
    return f"{processor_name()[:-1]}, {torch.get_num_threads()} in use), {versions}"


@functools.cache
def _cpu_has_fast_bf16() -> bool:
    """Measure it, since no flag tells: AVX-512's instructions for bf16 make one processor slower, another much faster.

    Either is by a factor, so that a busy machine comes to the same answer as an idle one.
    """
    seconds = {dtype: _product_seconds(dtype) for dtype in (torch.float32, torch.bfloat16)}
    return seconds[torch.float32] >= _FAST * seconds[torch.bfloat16]


@torch.no_grad()
def _product_seconds(dtype: torch.dtype) -> float:
    """Return the shortest of some times that a product of a layer's size takes."""
    rows, layer = torch.ones(256, 768, dtype=dtype), torch.nn.Linear(768, 768, dtype=dtype)
    times = []
    for _ in range(20):
        start = time.perf_counter()
        layer(rows)
        times.append(time.perf_counter() - start)
    return min(times)


@torch.no_grad()
def _relative_error(trunk: Trunk, compute: ComputeConfig) -> float:
    """Return the error of the deepest states in this data type against fp32, relative to their norm.

    Those of a branch are the ones above its limb.
    """
    deepest = trunk.depth if trunk.limb is None else trunk.limb.stop
    generator = torch.Generator().manual_seed(0)
    tokens = min(32, trunk.max_positions)
    input_ids = torch.randint(trunk.vocab_size, (8, tokens), generator=generator).to(compute.device)
    zeros, ones = torch.zeros_like(input_ids), torch.ones_like(input_ids)
    home = next(trunk.parameters()).device
    trunk.to(compute.device)
    try:
        exact = trunk.states(input_ids, zeros, ones, [deepest])[deepest]
        with compute.context():
            found = trunk.states(input_ids, zeros, ones, [deepest])[deepest]
    finally:
        trunk.to(home)
    return float((found.float() - exact).norm() / exact.norm())
