"""Safetensors files, of which the header is read and checked before any tensor is."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, load_file
from torch import Tensor

from onetrunk.protocol.errors import UserError
from onetrunk.protocol.reading import open_regular

# The header is JSON. A tensor's entry has its name, dtype, shape and place, and takes about 150 bytes.
_BYTES_A_TENSOR = 1024
_BYTES_OF_METADATA = 1 << 20
_LENGTH_BYTES = 8


@dataclass(frozen=True)
class Limits:
    """How large a file may be that holds the weights of something of known shape.

    Attributes:
        tensors: The greatest number of tensors.
        data_bytes: The greatest size of all of them together.
    """

    tensors: int
    data_bytes: int

    @property
    def header_bytes(self) -> int:
        """The greatest size of the header."""
        return self.tensors * _BYTES_A_TENSOR + _BYTES_OF_METADATA


def read_tensors(path: Path, limits: Limits, *, inside: Path) -> dict[str, Tensor]:
    """Read a file that somebody else may have written, once its header has been checked.

    Args:
        path: The file.
        limits: The greatest number and size of tensors.
        inside: The folder that the file must be in once links are resolved.

    Returns:
        Name -> tensor.

    Raises:
        FileNotFoundError: There is no such file.
        UserError: It is no regular file, lies outside, is not a safetensors file, or is larger than the limits.
    """
    check_header(path, limits, inside=inside)
    with open_regular(path, inside=inside) as stream:
        content = stream.read()
    try:
        tensors: dict[str, Tensor] = load(content)
    except SafetensorError as error:
        raise UserError(f"{path} is broken: {error}") from error
    return tensors


def map_tensors(path: Path, limits: Limits) -> dict[str, Tensor]:
    """Map a large file into memory, once its header has been checked. Links are followed, as a hub's cache has them.

    Args:
        path: The file.
        limits: The greatest number and size of tensors.

    Returns:
        Name -> tensor.

    Raises:
        FileNotFoundError: There is no such file.
        UserError: It is no regular file, is not a safetensors file, or is larger than the limits.
    """
    check_header(path, limits)
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path} is broken: {error}") from error
    return tensors


def check_header(path: Path, limits: Limits, *, inside: Path | None = None) -> None:
    """Check the number of tensors and their size, of which a file may hold few bytes or none.

    Args:
        path: The file.
        limits: The greatest number and size of tensors.
        inside: The folder that the file must be in once links are resolved; None for anywhere.

    Raises:
        FileNotFoundError: There is no such file.
        UserError: It is no regular file, lies outside, is not a safetensors file, or is larger than the limits.
    """
    largest = _LENGTH_BYTES + limits.header_bytes + limits.data_bytes
    with open_regular(path, max_bytes=largest, inside=inside) as stream:
        length = int.from_bytes(stream.read(_LENGTH_BYTES), "little")
        if length > limits.header_bytes:
            raise UserError(
                f"{path} is broken, or holds more than what it belongs to: its header has {length:,} bytes; allowed "
                f"are {limits.header_bytes:,}"
            )
        content = stream.read(length)
    try:
        header: Any = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is broken: its header is not JSON: {error}") from error
    if not isinstance(header, dict):
        raise UserError(f"{path} is broken: its header is not a JSON object")
    if len(header) > limits.tensors + 1:  # __metadata__ is no tensor
        raise UserError(f"{path}: found {len(header):,} tensors; allowed are {limits.tensors:,} for what it belongs to")
