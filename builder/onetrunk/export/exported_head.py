"""A head that was exported elsewhere: ``head.onnx`` and ``head.toml`` in a folder named after its task."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import onnx
from google.protobuf.message import DecodeError, Message
from pydantic import BaseModel, ConfigDict, FiniteFloat, ValidationError

from onetrunk.export.errors import ExportError
from onetrunk.export.independence import random_operators
from onetrunk.export.release import Release
from onetrunk.nn.trunk import Trunk
from onetrunk.protocol import __version__
from onetrunk.protocol.errors import UserError
from onetrunk.protocol.head_json import OVERLAP, Labels, Layers, Limb, LongTexts, Name, Overlap, Tap
from onetrunk.protocol.reading import open_regular, read_regular
from onetrunk.tasks.head_spec import HeadSpec
from onetrunk.tasks.kinds import get_kind
from onetrunk.tasks.metrics import check_metric
from onetrunk.toml_file import explain, read_toml, refuse_unknown_keys

HEAD_ONNX = "head.onnx"
HEAD_TOML = "head.toml"
# The limit of protobuf.
_MAX_ONNX_BYTES = 2**31
_DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")


class _TaskFile(BaseModel):
    """``head.toml``."""

    model_config = ConfigDict(frozen=True, extra="forbid", coerce_numbers_to_str=True)

    task: str | None = None
    kind: Name = "classification"
    form: Literal["single", "pair"] = "single"
    labels: Labels | None = None
    range: tuple[FiniteFloat, FiniteFloat] | None = None
    tap: Tap
    trunk: Name
    limb: Limb | None = None
    metric: Name | None = None
    layers: Layers = 1
    long_texts: LongTexts = "cut"
    window_overlap: Overlap = OVERLAP
    licence: str | None = None


@dataclass(frozen=True)
class ExportedHead:
    """A head of which only the ONNX file exists, which is served as it is.

    Attributes:
        folder: The folder from which it was read.
        spec: The content of its task file, in the form of a ``head.json``.
    """

    folder: Path
    spec: HeadSpec

    @property
    def file(self) -> Path:
        """The ONNX file."""
        return self.folder / HEAD_ONNX

    def check_trunk(self, trunk: Trunk) -> None:
        """Check that the head was made for this trunk.

        Raises:
            UserError: It was made for another trunk, its limb is not found, or its tap is deeper than the trunk.
        """
        if self.spec.trunk != trunk.root.identity:
            raise UserError(f"{self.folder}: made for trunk {self.spec.trunk}, but this trunk is {trunk.root.identity}")
        try:
            branch = trunk.branch(self.spec.limb_id)
        except UserError as error:
            raise UserError(f"{self.folder}: {error}") from error
        branch.check_tap(self.spec.tap)

    def check_file(self, release: Release) -> None:
        """Check the ONNX file as far as that is possible without running it.

        Raises:
            UserError: It is no ONNX file, has external weights or random operators, or needs operators that the
                release lacks.
        """
        try:
            model = onnx.load_model_from_string(read_regular(self.file, max_bytes=_MAX_ONNX_BYTES, inside=self.folder))
        except (DecodeError, ValueError, OSError) as error:
            raise UserError(f"{self.file} is not an ONNX file: {error}") from error
        # Whoever loads the file would read any path that it names as its weights.
        if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in _tensors(model)):
            raise UserError(f"{self.file}: has external weights: export it as one file")
        foreign = sorted({entry.domain for entry in model.opset_import} - set(_DOMAINS))
        if foreign:
            raise UserError(f"{self.file}: uses operators of {', '.join(foreign)}, which Triton does not have")
        if random := random_operators(model):
            raise UserError(f"{self.file}: is random ({', '.join(random)}): export it in evaluation mode")
        try:
            release.check(model, HEAD_ONNX)
        except ExportError as error:
            raise UserError(f"{self.folder}: {error}") from error


def _tensors(message: Message) -> Iterator[onnx.TensorProto]:
    """Yield every tensor of an ONNX file: in initializers, attributes, subgraphs and functions."""
    if isinstance(message, onnx.TensorProto):
        yield message
        return
    for field, value in message.ListFields():
        if field.message_type is not None:
            for inner in [value] if isinstance(value, Message) else value:
                yield from _tensors(inner)


def read_exported_head(folder: Path, trunk: Trunk, *, any_folder: bool = False) -> ExportedHead:
    """Read ``head.toml``. The ONNX file is only checked for existence; see `ExportedHead.check_file`.

    Args:
        folder: The head's folder, which has the name of its task.
        trunk: The trunk that the head is to read.
        any_folder: Whether the folder may have another name, as that of a candidate does.

    Raises:
        UserError: A file is missing, or ``head.toml`` is broken or contradictory.
    """
    path = folder / HEAD_TOML
    values = read_toml(path, "task file of an exported head")
    refuse_unknown_keys(path, values, tuple(_TaskFile.model_fields))
    try:
        task_file = _TaskFile.model_validate(values)
        spec = HeadSpec(
            **task_file.model_dump(exclude={"task", "metric"}),
            task=task_file.task or folder.name,
            width=trunk.width,
            max_length=trunk.max_positions,
            metric=task_file.metric or get_kind(task_file.kind).metrics[0],
            scores={},
            created="",
            onetrunk_version=__version__,
        )
    except ValidationError as error:
        raise UserError(explain(path, error.errors()[0])) from error
    try:
        check_metric(spec.metric, get_kind(spec.kind), spec.labels)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error
    try:
        open_regular(folder / HEAD_ONNX, max_bytes=_MAX_ONNX_BYTES, inside=folder).close()
    except FileNotFoundError:
        raise UserError(f"{folder}: it has a {HEAD_TOML}, but no {HEAD_ONNX}") from None
    if spec.task != folder.name and not any_folder:
        raise UserError(f"{path}: its task is {spec.task!r}; a head's folder has the name of its task")
    return ExportedHead(folder, spec)
