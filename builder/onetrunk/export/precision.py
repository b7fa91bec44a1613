"""In which numbers trunk and heads compute: the value behind ``--precision``. Known without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict

from onetrunk.protocol.errors import UserError
from onetrunk.protocol.names import Segment

Numbers = Literal["fp32", "int8", "fp16"]
"""``int8``: products of 8-bit integers, for CPUs. ``fp16``: 16-bit floats, for GPUs. Inputs and outputs stay FP32."""

NUMBERS: tuple[Numbers, ...] = get_args(Numbers)
_PARTS = ("trunk", "heads")


class Precision(BaseModel):
    """What a repository's models compute in.

    Attributes:
        trunk: the trunk's segments.
        heads: the heads that are exported here; one that was exported elsewhere stays as it is.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    trunk: Numbers = "fp32"
    heads: Numbers = "fp32"

    @property
    def is_reduced(self) -> bool:
        """Whether any part computes in less than fp32."""
        return self != FP32

    def of_segment(self, segment: Segment) -> Numbers:
        """What a segment computes in. The embeddings alone look up and normalise: there is nothing to reduce."""
        return "fp32" if segment.stop == 0 else self.trunk

    def __str__(self) -> str:
        return self.trunk if self.trunk == self.heads else f"trunk={self.trunk},heads={self.heads}"


FP32 = Precision()


def parse_precision(text: str) -> Precision:
    """Reads ``int8``, which is all parts, or one for each part, as in ``trunk=fp32,heads=int8``.

    A part that is not named stays fp32.

    Raises:
        UserError: it is neither.
    """
    if "=" not in text:
        return Precision(trunk=_numbers(text, text), heads=_numbers(text, text))
    found: dict[str, Numbers] = {}
    for item in text.split(","):
        part, _, name = (piece.strip() for piece in item.partition("="))
        if part not in _PARTS or part in found:
            wrong = f"{part!r} twice" if part in found else f"{part!r} is no part"
            raise UserError(f"--precision {text}: {wrong}; parts are trunk and heads, as in trunk=fp32,heads=int8")
        found[part] = _numbers(name, text)
    return Precision.model_validate(found)


def _numbers(name: str, text: str) -> Numbers:
    name = name.strip()
    if name not in NUMBERS:
        raise UserError(
            f"--precision {text}: {name!r} is not known; give {', '.join(NUMBERS)}, or one a part, "
            "as in trunk=fp32,heads=int8"
        )
    return name


def reduce_file(source: Path, target: Path, numbers: Numbers, *, thorough: bool) -> None:
    """Makes of an fp32 file one that computes in other numbers, with the same inputs and outputs.

    Args:
        source: the fp32 file.
        target: where to.
        numbers: what to compute in.
        thorough: with int8, take products on states in two steps, which is what the trunk needs: see quantization.

    Raises:
        ExportError: the file would not be a valid one.
    """
    # Imported here: who only parses an option needs no ONNX.
    if numbers == "int8":
        from onetrunk.export.quantization import quantize_file

        quantize_file(source, target, thorough=thorough)
    elif numbers == "fp16":
        from onetrunk.export.half import halve_file

        halve_file(source, target)
    else:
        raise ValueError("fp32 is what files are made from")
