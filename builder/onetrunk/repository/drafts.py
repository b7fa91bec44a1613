"""The fp32 files of models that are served in a lower precision: made from, checked by and compared with."""

from __future__ import annotations

from pathlib import Path

from onetrunk.export.exported_head import ExportedHead
from onetrunk.export.onnx_file import export_head, export_segment
from onetrunk.export.release import Release
from onetrunk.nn.bundle import Bundle
from onetrunk.nn.trunk import Trunk
from onetrunk.protocol.names import Segment, head_name


class Drafts:
    """Exports into a folder aside, each file when it is first asked for."""

    def __init__(self, folder: Path, trunk: Trunk, release: Release) -> None:
        self._folder, self._trunk, self._release = folder, trunk, release

    def segment(self, segment: Segment) -> Path:
        """A segment's file. Raises ExportError where the release could not load it."""
        path = self._path(segment.name)
        if not path.exists():
            export_segment(self._trunk, segment, path, self._release)
        return path

    def head(self, head: Bundle | ExportedHead) -> Path:
        """A head's file; of one that was exported elsewhere, its own. Raises ExportError as above."""
        if isinstance(head, ExportedHead):
            return head.file
        path = self._path(head_name(head.spec.task))
        if not path.exists():
            export_head(head.head(self._trunk), head.spec, path, self._release)
        return path

    def _path(self, model: str) -> Path:
        self._folder.mkdir(parents=True, exist_ok=True)
        return self._folder / f"{model}.onnx"
