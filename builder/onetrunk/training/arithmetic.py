"""On which device and in which precision the trunk runs while its states are cached."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch

from onetrunk.nn.trunk import Trunk
from onetrunk.protocol.errors import UserError

DeviceName = Literal["auto", "cpu", "cuda"]
Precision = Literal["auto", "fp32", "bf16"]

# Measured on the default trunk: 0.005 at tap 5. A trunk whose states suffer more than four times as much is run in
# fp32.
_MOST_RELATIVE_ERROR = 0.02


@dataclass(frozen=True)
class Arithmetic:
    """A device and a precision.

    Attributes:
        device: ``cpu`` or ``cuda``.
        precision: ``fp32`` or ``bf16``.
    """

    device: Literal["cpu", "cuda"]
    precision: Literal["fp32", "bf16"]

    def context(self) -> AbstractContextManager[object]:
        """Within it, the trunk runs in the precision. The states that come out are fp32 either way."""
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device, torch.bfloat16)


def choose_arithmetic(trunk: Trunk, device: DeviceName = "auto", precision: Precision = "auto") -> Arithmetic:
    """The device and precision to use; ``auto`` is CUDA where there is one, and bf16 where it is fast and exact enough.

    Raises:
        UserError: CUDA was asked for and there is none.
    """
    cuda = torch.cuda.is_available()
    if device == "cuda" and not cuda:
        raise UserError("--device cuda: torch sees no CUDA device here; allowed are auto, cpu")
    where: Literal["cpu", "cuda"] = "cuda" if cuda and device != "cpu" else "cpu"
    if precision != "auto":
        return Arithmetic(where, precision)
    fast = torch.cuda.is_bf16_supported() if where == "cuda" else _cpu_has_fast_bf16()
    if not (fast and _relative_error(trunk, Arithmetic(where, "bf16")) <= _MOST_RELATIVE_ERROR):  # NaN is too far off
        return Arithmetic(where, "fp32")
    return Arithmetic(where, "bf16")


def _cpu_has_fast_bf16() -> bool:
    # Only matrix units (AMX) make it fast: AVX-512's bf16 instructions alone took 1.4 times fp32's time where they were
    # tried. torch has no public question for it.
    return bool(getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)())


@torch.no_grad()
def _relative_error(trunk: Trunk, arithmetic: Arithmetic) -> float:
    """How far the deepest states in this precision are from those in fp32, relative to their size."""
    generator = torch.Generator().manual_seed(0)
    tokens = min(32, trunk.max_positions)
    input_ids = torch.randint(trunk.vocab_size, (8, tokens), generator=generator).to(arithmetic.device)
    zeros, ones = torch.zeros_like(input_ids), torch.ones_like(input_ids)
    home = next(trunk.parameters()).device
    trunk.to(arithmetic.device)
    try:
        exact = trunk.states(input_ids, zeros, ones, [trunk.depth])[trunk.depth]
        with arithmetic.context():
            found = trunk.states(input_ids, zeros, ones, [trunk.depth])[trunk.depth]
    finally:
        trunk.to(home)
    return float((found.float() - exact).norm() / exact.norm())
