"""In which numbers trunk and heads compute: the value behind ``--precision``. Known without torch."""

from __future__ import annotations

from pathlib import Path

from onetrunk.protocol.errors import UserError
from onetrunk.protocol.manifest import DTYPES, Dtype, Precision

_PARTS = ("trunk", "heads")


def parse_precision(text: str) -> Precision:
    """Reads ``int8``, which is all parts, or one for each part, as in ``trunk=fp32,heads=int8``.

    A part that is not named stays fp32.

    Raises:
        UserError: it is neither.
    """
    if "=" not in text:
        return Precision(trunk=_dtype(text, text), heads=_dtype(text, text))
    found: dict[str, Dtype] = {}
    for item in text.split(","):
        part, _, name = (piece.strip() for piece in item.partition("="))
        if part not in _PARTS or part in found:
            wrong = f"{part!r} twice" if part in found else f"{part!r} is no part"
            raise UserError(f"--precision {text}: {wrong}; parts are trunk and heads, as in trunk=fp32,heads=int8")
        found[part] = _dtype(name, text)
    return Precision.model_validate(found)


def _dtype(name: str, text: str) -> Dtype:
    name = name.strip()
    if name not in DTYPES:
        raise UserError(
            f"--precision {text}: {name!r} is not known; give {', '.join(DTYPES)}, or one a part, "
            "as in trunk=fp32,heads=int8"
        )
    return name


def reduce_file(source: Path, target: Path, dtype: Dtype, *, thorough: bool) -> None:
    """Makes of an fp32 file one that computes in other numbers, with the same inputs and outputs.

    Args:
        source: the fp32 file.
        target: where to.
        dtype: what to compute in.
        thorough: with int8, take products on states in two steps, which is what the trunk needs: see quantization.

    Raises:
        ExportError: the file would not be a valid one.
    """
    # Imported here: who only parses an option needs no ONNX.
    if dtype == "int8":
        from onetrunk.export.quantization import quantize_file

        quantize_file(source, target, thorough=thorough)
    elif dtype == "fp16":
        from onetrunk.export.half import halve_file

        halve_file(source, target)
    else:
        raise ValueError("fp32 is what files are made from")
