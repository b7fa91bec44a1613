"""One named input tensor, as bytes on the wire."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Tensor:
    """An input of a request.

    Attributes:
        name: of the model's input.
        datatype: Triton's name of the type.
        shape: rows first.
        content: row-major and little-endian; strings each behind their length in 4 bytes.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    content: bytes


def bytes_tensor(name: str, values: Sequence[bytes]) -> Tensor:
    """A column of strings. *Shape:* (rows, 1)."""
    content = b"".join(struct.pack("<I", len(value)) + value for value in values)
    return Tensor(name, "BYTES", (len(values), 1), content)


def int64_tensor(name: str, values: NDArray[np.int64]) -> Tensor:
    """A matrix of whole numbers. *Shape:* (rows, tokens)."""
    return Tensor(name, "INT64", values.shape, values.astype("<i8", copy=False).tobytes())
