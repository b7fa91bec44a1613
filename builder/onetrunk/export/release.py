"""Which ONNX files a Triton release can load.

A release of NVIDIA's container fixes its ONNX Runtime, and that fixes the newest ONNX IR and operator set it reads.
An older file is read by every later one, so files are written at the oldest form that has every operator they need;
the release that is named guards against a builder that writes newer ones.
Source: the ONNX Runtime version pinned in Triton's build.py at each release.
"""

from __future__ import annotations

from dataclasses import dataclass

from onetrunk.protocol.errors import UserError

# LayerNormalization came with opset 17, which IR 8 belongs to.
OPSET = 17
IR_VERSION = 8

DEFAULT_RELEASE = "24.10"


@dataclass(frozen=True)
class Release:
    """A Triton release as far as an ONNX file is concerned.

    Attributes:
        name: the container's tag, as in ``24.10``.
        onnxruntime: the ONNX Runtime in NVIDIA's container.
        max_ir: newest ONNX IR that it is known to read.
        max_opset: newest operator set that it is known to read.
    """

    name: str
    onnxruntime: str
    max_ir: int = 10
    max_opset: int = 21


_ONNXRUNTIME = {
    "24.10": "1.19.2",
    **dict.fromkeys(["25.03", "25.04"], "1.21.0"),
    **dict.fromkeys(["25.05", "25.06", "25.07"], "1.22.0"),
    **dict.fromkeys(["25.08", "25.09"], "1.23.0"),
    "25.10": "1.23.1",
    **dict.fromkeys(["25.11", "25.12", "26.01"], "1.23.2"),
    "26.02": "1.24.1",
    "26.03": "1.24.2",
    **dict.fromkeys(["26.04", "26.05", "26.06"], "1.24.4"),
    "26.07": "1.27.0",
    "26.08": "1.28.0",
}

RELEASES = {name: Release(name, onnxruntime) for name, onnxruntime in _ONNXRUNTIME.items()}


def get_release(name: str) -> Release:
    """The release of this tag. Raises UserError with the known ones."""
    if name not in RELEASES:
        raise UserError(f"Triton release {name!r} is not known; known are: {', '.join(RELEASES)}")
    return RELEASES[name]
