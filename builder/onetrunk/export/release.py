"""The ONNX files that a Triton release can load.

A release of NVIDIA's container fixes its ONNX Runtime, which fixes the newest ONNX IR and operator set that it reads.
Every later release reads an older file, so files are written in the oldest form that has every operator they need.
The release that a build names guards against an exporter that writes a newer form.
Source: the ONNX Runtime version pinned in Triton's build.py at each release. For the newest two that was not to be had:
of them it is only known that they are no older than what was pinned before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from onetrunk.export.errors import ExportError
from onetrunk.protocol.errors import UserError

if TYPE_CHECKING:
    import onnx

# Opset 17 introduced LayerNormalization. It belongs to IR 8.
OPSET = 17
IR_VERSION = 8

DEFAULT_RELEASE = "24.10"
"""The oldest release, which `serve-repo` starts. What it can load, every later one can."""


@dataclass(frozen=True)
class Release:
    """A Triton release as far as an ONNX file is concerned.

    Attributes:
        name: The container's tag, such as ``24.10``.
        onnxruntime: The version of ONNX Runtime in NVIDIA's container, or the oldest that it can be.
        max_ir: The newest ONNX IR that it is known to read.
        max_opset: The newest operator set that it is known to read.
    """

    name: str
    onnxruntime: str
    max_ir: int = 10
    max_opset: int = 21

    @property
    def has_known_runtime(self) -> bool:
        """Whether the version of its ONNX Runtime is known exactly."""
        return self.onnxruntime.replace(".", "").isdigit()

    def check(self, model: onnx.ModelProto, name: str) -> None:
        """Refuse a file that is newer than this release is known to read.

        Args:
            model: The file's content.
            name: The file's name, for the message.

        Raises:
            ExportError: The file's IR or operator set is too new.
        """
        opset = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)
        if model.ir_version > self.max_ir or opset > self.max_opset:
            raise ExportError(
                f"{name}: IR {model.ir_version} and opset {opset}, but Triton {self.name} reads "
                f"IR {self.max_ir} and opset {self.max_opset} at most"
            )


_ONNXRUNTIME = {
    **dict.fromkeys(["24.10", "24.11"], "1.19.2"),
    **dict.fromkeys(["24.12", "25.01", "25.02"], "1.20.1"),
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
    "26.09": "1.30.0",
    **dict.fromkeys(["26.10", "26.11"], "1.30.0 or newer"),
}

RELEASES = {name: Release(name, onnxruntime) for name, onnxruntime in _ONNXRUNTIME.items()}
"""Tag -> release, oldest first. The newest is the default of docker-compose.yml."""


def get_release(name: str) -> Release:
    """Return the release with this tag.

    Raises:
        UserError: The release is unknown. The message lists the known ones.
    """
    if name not in RELEASES:
        raise UserError(f"Triton release {name!r} is not known; known are: {', '.join(RELEASES)}")
    return RELEASES[name]
